//! The owner of a user namespace, which decides whether privileged operations are performed for it.
//!
//! A container's user namespace is a child of the daemon's own. One that a container made itself is
//! further down, and is allowed only with the setting `nested`. A caller in the daemon's own user
//! namespace, or in one outside of it, must never be allowed.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::fs::fstat;

use ambit_kernel::sys::user_namespace;

/// The owner of a user namespace, which never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UserNamespaceOwner {
    /// The host: the parent of the user namespace is the daemon's own.
    Host,
    /// A container: the user namespace is further below the daemon's own.
    Container,
    /// None of these: it is the daemon's own user namespace, or not a descendant of it.
    Other,
}

impl UserNamespaceOwner {
    /// Returns the owner of a user namespace.
    pub(super) fn of(users: BorrowedFd<'_>) -> Self {
        /// Device and inode of the daemon's own user namespace.
        static OWN: OnceLock<Option<(u64, u64)>> = OnceLock::new();
        let place = |fd: BorrowedFd<'_>| fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let own = *OWN.get_or_init(|| {
            let file = std::fs::File::open("/proc/self/ns/user").ok()?;
            place(file.as_fd())
        });
        let here = place(users);
        if own.is_none() || here.is_none() || here == own {
            return Self::Other;
        }
        match user_namespace::parent(users) {
            Ok(above) if place(above.as_fd()) == own => Self::Host,
            Ok(_) => Self::Container,
            Err(_) => Self::Other,
        }
    }

    /// True if operations are performed for the user namespace. With `nested`, they are also
    /// performed for one that a container made.
    pub(super) fn is_allowed(self, nested: bool) -> bool {
        self == Self::Host || nested && self == Self::Container
    }
}
