//! The options of a sandbox. Some are functions of the program, because this package depends neither
//! on the overlay nor on the interception of system calls.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::signals::Signals;

/// The options of a sandbox.
#[derive(Debug)]
pub struct Options {
    /// The most memory, in bytes.
    pub memory: Option<u64>,
    /// The most swap beside it, in bytes; without a number, as much as the memory.
    pub swap: Option<u64>,
    /// How many processors' time, such as 1.5.
    pub cpus: Option<f64>,
    /// The processors that it may run on, as the kernel's list: `0-3,8`.
    pub cpuset: Option<String>,
    /// The most processes and threads.
    pub pids: Option<u32>,
    /// The folder that becomes its root; without one, the host's files, read-only.
    pub rootfs: Option<PathBuf>,
    /// What of the host is shown in it.
    pub binds: Vec<Bind>,
    /// Devices of the host that it may use.
    pub devices: Vec<PathBuf>,
    /// True if device nodes of the root folder and of what is shown work: it may make some.
    pub device_nodes: bool,
    /// Its host name; without one, its own name.
    pub hostname: Option<String>,
    /// Root in it is the host's root: there is no user namespace.
    pub no_userns: bool,
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Installs the filter of its system calls.
    pub intercept: Option<Intercept>,
    /// Attaches the pressure files upon the overlay.
    pub attach_pressure: AttachPressure,
}

/// Attaches the second mount, that of the pressure files, upon the first one, which is the
/// overlay's. The process that calls this does not serve them.
pub type AttachPressure = fn(BorrowedFd<'_>, Option<BorrowedFd<'_>>) -> rustix::io::Result<()>;

/// A bind mount in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host: absolute, links resolved.
    pub source: PathBuf,
    /// In the sandbox: absolute.
    pub target: PathBuf,
    /// True if it must not be written.
    pub read_only: bool,
}

/// Installs a seccomp filter in the calling thread and returns its listener.
pub struct Intercept(pub Box<dyn Fn() -> anyhow::Result<OwnedFd>>);

impl fmt::Debug for Intercept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Intercept")
    }
}

/// The options that init needs.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) hostname: String,
    /// The command's current folder, if it exists in the sandbox.
    pub(super) folder: PathBuf,
    pub(super) command: Vec<OsString>,
    pub(super) intercept: Option<Intercept>,
    /// True if it gets a terminal of its own.
    pub(super) terminal: bool,
    /// True if it has a user namespace.
    pub(super) own_users: bool,
    pub(super) signals: Signals,
}
