//! Errors of the overlay as a whole: it could not be mounted, served, taken over or unmounted. Each
//! message says the object, the system call and, where there is one, the next step. Errors of
//! single requests are sent to the reader and must not appear here; they are in `service.rs`.

use std::io;
use std::path::PathBuf;

/// An error of the overlay as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no FUSE device, or it may not be opened.
    #[error(
        "cannot open /dev/fuse: {0}; load the module `fuse`, or give this container the device 10:229"
    )]
    Device(#[source] io::Error),
    /// The mount point cannot be made or looked at.
    #[error("cannot use {path} as the mount point: {source}", path = .path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// Something is mounted there and alive.
    #[error("{path} is in use: {holder} is mounted there; stop its server and unmount it, or choose another mount point", path = .path.display())]
    Busy {
        /// The mount point.
        path: PathBuf,
        /// Type and source of the mount in the way.
        holder: String,
    },
    /// A system call that makes a mount of the FUSE connection failed.
    #[error("cannot make a FUSE mount: {call}: {source}; it needs root and Linux 5.2")]
    NewMount {
        /// The system call.
        call: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// The mount could not be attached to its mount point.
    #[error("cannot mount the overlay at {path}: {call}: {source}", path = .path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// The system call.
        call: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// A mount could not be removed.
    #[error("cannot unmount {path}: {source}", path = .path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The first request of the kernel, or the record of it, is no INIT request.
    #[error("the FUSE connection cannot be begun: {0}")]
    Init(&'static str),
    /// Beginning the session, or handing the device to it, failed.
    #[error("cannot serve the FUSE connection: {call}: {source}")]
    Session {
        /// The system call or the step.
        call: &'static str,
        /// What the kernel, or fuser, said.
        source: io::Error,
    },
    /// The connection could not be ended, so its threads go on serving.
    #[error("the FUSE connection does not end: {reason}; its threads go on serving")]
    StillServing {
        /// The reason.
        reason: &'static str,
    },
}
