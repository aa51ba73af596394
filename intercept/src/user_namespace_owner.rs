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
        let id = |fd: BorrowedFd<'_>| fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let own = *OWN.get_or_init(|| {
            let file = std::fs::File::open("/proc/self/ns/user").ok()?;
            id(file.as_fd())
        });
        // EPERM for the daemon's own namespace, and for one that is not a descendant of it.
        let parent = user_namespace::parent(users).ok();
        Self::from_ids(own, id(users), parent.and_then(|parent| id(parent.as_fd())))
    }

    /// Decides by device and inode of the daemon's own user namespace, of the caller's and of the
    /// parent of that; `None` if one is not known.
    fn from_ids(
        own: Option<(u64, u64)>,
        callers: Option<(u64, u64)>,
        parent: Option<(u64, u64)>,
    ) -> Self {
        match (own, callers, parent) {
            (Some(own), Some(callers), Some(_)) if callers == own => Self::Other,
            (Some(own), Some(_), Some(parent)) if parent == own => Self::Host,
            (Some(_), Some(_), Some(_)) => Self::Container,
            _ => Self::Other,
        }
    }

    /// True if operations are performed for the user namespace. With `nested`, they are also
    /// performed for one that a container made.
    pub(super) fn is_allowed(self, nested: bool) -> bool {
        self == Self::Host || nested && self == Self::Container
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Option<(u64, u64)> = Some((4, 1));
    const CONTAINERS: Option<(u64, u64)> = Some((4, 2));
    const NESTED: Option<(u64, u64)> = Some((4, 3));

    /// Whether a caller is served without and with the setting `nested`.
    fn is_allowed(callers: Option<(u64, u64)>, parent: Option<(u64, u64)>) -> [bool; 2] {
        let owner = UserNamespaceOwner::from_ids(OWN, callers, parent);
        [false, true].map(|nested| owner.is_allowed(nested))
    }

    #[test]
    fn a_containers_user_namespace_is_served_and_a_nested_one_only_if_set() {
        assert_eq!(is_allowed(CONTAINERS, OWN), [true, true]);
        assert_eq!(is_allowed(NESTED, CONTAINERS), [false, true]);
        // The same inode on another device is another namespace.
        assert_eq!(is_allowed(NESTED, Some((5, 1))), [false, true]);
    }

    #[test]
    fn the_daemons_own_user_namespace_and_those_outside_of_it_are_never_served() {
        assert_eq!(is_allowed(OWN, None), [false, false]);
        assert_eq!(is_allowed(OWN, CONTAINERS), [false, false]);
        assert_eq!(is_allowed(CONTAINERS, None), [false, false]);
        assert_eq!(is_allowed(None, OWN), [false, false]);
        let unknown = UserNamespaceOwner::from_ids(None, CONTAINERS, OWN);
        assert!(!unknown.is_allowed(true));
        let own = std::fs::File::open("/proc/self/ns/user").unwrap();
        assert_eq!(UserNamespaceOwner::of(own.as_fd()), UserNamespaceOwner::Other);
    }
}
