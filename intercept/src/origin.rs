//! Who made a user namespace.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::fs::fstat;

use ambit_kernel::sys::user_namespace;

/// Who made a user namespace; that never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The host.
    Host,
    /// A container.
    Container,
    /// It is our own, or none below it.
    Foreign,
}

impl Origin {
    pub(super) fn of(users: BorrowedFd<'_>) -> Self {
        /// Our own.
        static OWN: OnceLock<Option<(u64, u64)>> = OnceLock::new();
        let place = |fd: BorrowedFd<'_>| fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let own = *OWN.get_or_init(|| {
            let file = std::fs::File::open("/proc/self/ns/user").ok()?;
            place(file.as_fd())
        });
        let here = place(users);
        if own.is_none() || here.is_none() || here == own {
            return Self::Foreign;
        }
        match user_namespace::parent(users) {
            Ok(above) if place(above.as_fd()) == own => Self::Host,
            Ok(_) => Self::Container,
            Err(_) => Self::Foreign,
        }
    }

    /// Is it a container's? With `nested`, one that a container made will do.
    pub(super) fn fits(self, nested: bool) -> bool {
        self == Self::Host || nested && self == Self::Container
    }
}
