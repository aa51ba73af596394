//! Looks up a path of a container: opens it with `O_PATH`, and never through a magic link.
//!
//! A magic link, such as `/proc/self/fd/3` or `/proc/1/root`, leads to an open file whatever the
//! root of the process is, and the one of this process is not the caller's: symlink(7). Symbolic
//! links are followed below the root of this process, which must be the caller's by now.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// Opens a path that starts at `base`. ELOOP if a magic link is on the way.
pub(super) fn open_path(base: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    openat2(base, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn a_magic_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink("/proc/self/root", &link).unwrap();
        let through_a_link = [link.as_os_str().as_bytes(), b"/etc"].concat();
        for path in [b"/proc/self/root/etc", &b"/proc/self/cwd/."[..], b"/proc/self/exe"] {
            let opened = open_path(CWD, path, OFlags::empty());
            assert_eq!(opened.unwrap_err(), Errno::LOOP, "{}", String::from_utf8_lossy(path));
        }
        assert_eq!(open_path(CWD, &through_a_link, OFlags::empty()).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_symbolic_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        symlink("/etc", folder.path().join("link")).unwrap();
        let base = std::fs::File::open(folder.path()).unwrap();
        assert!(open_path(&base, b"link", OFlags::DIRECTORY).is_ok());
        assert!(open_path(&base, b"link", OFlags::DIRECTORY | OFlags::NOFOLLOW).is_err());
    }
}
