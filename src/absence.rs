//! Explains to the commands that need a daemon why none answers.
//!
//! A service that is stopped while its service manager holds its descriptors has no process, but
//! its files are mounted and their readers wait. A daemon whose sockets were removed serves files,
//! and binds the sockets again within a second.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::control::NoDaemon;
use crate::dead_mounts::{self, State};

/// How long a daemon that serves files may take to bind its socket anew.
const PATIENCE: Duration = Duration::from_secs(5);

/// Calls `ask` with the path of the control socket. Retries while the daemon is about to bind it.
///
/// # Errors
/// The error of `ask`. If no daemon answers, the error says why and what to do.
pub fn ask_daemon<T>(
    config: &Config,
    ask: impl Fn(&Path) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let socket = config.socket("control.sock");
    let mount = &config.overlay.mount;
    let until = Instant::now() + PATIENCE;
    loop {
        let error = match ask(&socket) {
            Err(error) if error.is::<NoDaemon>() => error,
            answer => return answer,
        };
        match dead_mounts::state(mount) {
            State::Served if Instant::now() < until => thread::sleep(Duration::from_millis(100)),
            State::Served | State::Absent => return Err(error),
            State::Dead => anyhow::bail!(
                "the daemon is dead and its files are still mounted at {}: start one with \
                 `ambit serve`, or remove them with `ambit stop --release`",
                mount.display()
            ),
            State::Waiting => anyhow::bail!(stopped(mount)),
        }
    }
}

/// Returns the message that the service is stopped.
pub fn stopped(mount: &Path) -> String {
    format!(
        "ambit is stopped, and its service manager holds the files at {} and the listeners: reads \
         and calls of containers wait until it starts (`systemctl start ambit`)",
        mount.display()
    )
}
