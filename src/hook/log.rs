//! What a hook and the wrapper of a runtime tell: on the journal's or syslog's socket. Errors of a
//! hook are on standard error too, which engines show.

use std::os::unix::net::UnixDatagram;

use ambit_kernel::output::stderr;

/// The priorities of syslog(3), of the facility `daemon`.
pub(super) const INFO: u8 = 30;
pub(crate) const WARNING: u8 = 28;

/// Logs a line, if a log is there and has room. Never waits.
pub(super) fn log(priority: u8, text: &str) {
    // Without a log there is standard error, for errors.
    let _ = send(priority, &format!("hook: {text}"));
}

/// Sends a line to the log. True if a log is there and has room. Never waits.
pub(crate) fn send(priority: u8, text: &str) -> bool {
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        let line = format!("<{priority}>ambit[{}]: {text}", std::process::id());
        socket.send_to(line.as_bytes(), "/dev/log")
    });
    sent.is_ok()
}

/// Logs an error. Paths of a bundle may have control characters.
pub(super) fn complain(text: &str) {
    let text: String = text.chars().map(|one| if one.is_control() { '?' } else { one }).collect();
    let text = text.as_str();
    log(WARNING, text);
    stderr::line(&format!("hook: {text}"));
}
