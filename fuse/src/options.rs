//! Where and how the overlay is served.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ambit_kernel::recorder::Recorder;

use crate::connection::ServeOptions;
use crate::mount::{self, MountKind, Writes};
use crate::visit::{self, Visitor};

/// Where and how the overlay is served.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The mount point; created if missing. Without one the overlay is attached nowhere, and
    /// `Overlay::detached` returns its mounts.
    pub path: Option<PathBuf>,
    /// Number of threads that answer requests. More than containers keep busy only wake each other
    /// up.
    pub threads: usize,
    /// How long a reader waits for a kernel file that hangs. Longer than the `patience` of
    /// accounting, after which a thread that waits for a sample of another one gets the last good
    /// numbers.
    pub patience: Duration,
    /// The source of the mount, and what follows `fuse.` in its type.
    pub name: &'static str,
    /// The label that SELinux gives all files, if the kernel has SELinux.
    pub context: Option<Arc<str>>,
    /// Files that every reader sees as on the machine, by their paths below the root.
    pub passed: &'static [&'static str],
    /// The recorder of requests, if there is one.
    pub recorder: Option<Arc<dyn Recorder>>,
    /// True if triggers can be set on `/proc/pressure`. Its files are then a mount of their own
    /// over the overlay; in a mount namespace with that mount, the overlay cannot be bound as a
    /// whole.
    pub triggers: bool,
    /// How long the kernel may keep a file of a container; 0 for not at all.
    pub lease: Duration,
    /// Runs visits of mounts in another process. The default is [`visit::in_place`].
    pub visitor: Visitor,
}

impl MountOptions {
    /// The default: two threads.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::detached() }
    }

    /// The default, without a mount point.
    pub fn detached() -> Self {
        Self {
            path: None,
            threads: 2,
            patience: Duration::from_secs(8),
            name: mount::NAME,
            context: None,
            passed: &[],
            recorder: None,
            triggers: true,
            lease: Duration::ZERO,
            visitor: visit::in_place,
        }
    }

    pub(crate) fn serving(&self, threads: usize, writes: Writes) -> ServeOptions {
        let kind = MountKind { context: self.context.clone(), ..MountKind::new(self.name, writes) };
        ServeOptions { kind, threads, patience: self.patience }
    }
}
