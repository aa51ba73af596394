//! What a hook tells: on the journal's or syslog's socket, and errors on standard error too, which
//! engines show.

use std::os::unix::net::UnixDatagram;

use ambit_kernel::output::stderr;

/// The priorities of syslog(3), of the facility `daemon`.
pub(super) const INFO: u8 = 30;
const WARNING: u8 = 28;

/// Logs a line, if a log is there and has room. Never waits.
pub(super) fn log(priority: u8, text: &str) {
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        let line = format!("<{priority}>ambit[{}]: hook: {text}", std::process::id());
        socket.send_to(line.as_bytes(), "/dev/log")
    });
    // Without a log there is standard error, for errors.
    let _ = sent;
}

/// Logs an error.
pub(super) fn complain(text: &str) {
    log(WARNING, text);
    stderr::line(&format!("hook: {text}"));
}
