//! SIGUSR1: the process executes its program file again, which may be a newer one, and the mount
//! stays. lxcfs loads its library again on this signal.
//!
//! The pid file, the counter store and the devices of the FUSE connections stay open for the next program, which finds
//! their numbers and the kernel's INIT requests in the environment. A failure leaves everything as
//! it is. Start reading at [`Program::execute_again`].

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ambit_fuse::{Overlay, Submount};
use ambit_kernel::sys::inherited;
use ambit_sysinfo::COUNTER_STORE;
use nix::sys::signal::{SigSet, Signal};
use rustix::io::{FdFlags, fcntl_setfd};

/// Process id, pid file, name and descriptor of the counter store, and device and INIT request of each
/// connection, joined by colons.
const VARIABLE: &str = "AMBIT_LXCFS_STATE";

/// How long requests that wait for their turn have to be answered.
const DRAIN_WITHIN: Duration = Duration::from_secs(1);

/// The program and how it was called. Its path is found before the file is replaced.
pub(super) struct Program {
    path: PathBuf,
    args: Vec<OsString>,
}

impl Program {
    pub(super) fn this(args: Vec<OsString>) -> io::Result<Self> {
        Ok(Self { path: std::env::current_exe()?, args })
    }

    /// Executes the program file again. Returns only if that failed.
    pub(super) fn execute_again(
        &self,
        overlay: &Overlay,
        pid_file: BorrowedFd<'_>,
        counters: BorrowedFd<'_>,
    ) -> io::Error {
        overlay.drain(DRAIN_WITHIN);
        let pressure = overlay.submount(Submount::Pressure);
        let mut kept = vec![(overlay.device(), overlay.init_record())];
        kept.extend(pressure.as_ref().map(|(device, init)| (device.as_fd(), &init[..])));
        let mut state = format!(
            "{}:{}:{COUNTER_STORE}:{}",
            std::process::id(),
            pid_file.as_raw_fd(),
            counters.as_raw_fd()
        );
        for (device, init) in &kept {
            let init: String = init.iter().map(|byte| format!("{byte:02x}")).collect();
            state += &format!(":{}:{init}", device.as_raw_fd());
        }
        let error = self
            .execute(&state, || kept.iter().map(|(device, _)| *device).chain([pid_file, counters]));
        unblock_signals();
        error
    }

    fn execute<'a, Fds: Iterator<Item = BorrowedFd<'a>>>(
        &self,
        state: &str,
        fds: impl Fn() -> Fds,
    ) -> io::Error {
        // What arrives before the next program handles it would end it.
        if let Err(error) = handled().thread_block() {
            return error.into();
        }
        if let Err(error) = fds().try_for_each(|fd| fcntl_setfd(fd, FdFlags::empty())) {
            return error.into();
        }
        let mut program = Command::new(&self.path);
        let error = program.arg0("lxcfs").args(&self.args).env(VARIABLE, state).exec();
        for fd in fds() {
            let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
        error
    }
}

/// Returns the signals that are blocked until the next program handles them.
fn handled() -> SigSet {
    use Signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    [SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().collect()
}

/// Has the signals delivered that arrived while the program was executed.
pub(super) fn unblock_signals() {
    let _ = handled().thread_unblock();
}

/// What the program left to the next one: the locked pid file, the counter store if its layout is the
/// same, and device and INIT request of each connection, that of the overlay first.
pub(super) struct Left {
    pub(super) pid_file: File,
    pub(super) counters: Option<OwnedFd>,
    pub(super) connections: Vec<(OwnedFd, Vec<u8>)>,
}

impl Left {
    /// Takes what this process has left to itself. `None` at its start, and if the descriptors are
    /// not open.
    pub(super) fn take() -> Option<Self> {
        let state = std::env::var(VARIABLE).ok()?;
        let parts: Vec<_> = state.split(':').collect();
        let (process, rest) = parts.split_first()?;
        // A child of a server has the variable too.
        if *process != std::process::id().to_string() {
            return None;
        }
        let ([pid_file, name, counters], connections) = rest.split_first_chunk()?;
        let open = |number: &str| inherited::take(number.parse().ok()?);
        let pid_file = open(pid_file)?.into();
        let counters = open(counters).filter(|_| *name == COUNTER_STORE);
        let pairs = connections.chunks_exact(2);
        let connections = pairs.map(|pair| Some((open(pair[0])?, bytes(pair[1])?)));
        let connections: Vec<_> = connections.collect::<Option<_>>()?;
        (!connections.is_empty()).then_some(Self { pid_file, counters, connections })
    }
}

/// Parses hexadecimal digits.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hexadecimal_digits_are_bytes() {
        assert_eq!(bytes("00ff1A"), Some(vec![0, 255, 26]));
        assert_eq!(bytes(""), Some(vec![]));
        assert_eq!(bytes("0g"), None);
        assert_eq!(bytes("é"), None);
    }
}
