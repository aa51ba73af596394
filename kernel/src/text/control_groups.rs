//! `/proc/<tid>/cgroup`: a line `number:controllers:path` for each hierarchy.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::mountinfo::Mounted;
use super::scan;

/// Returns number, controllers and path of each line. The path may contain colons.
pub fn lines(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8], &[u8])> {
    scan::lines(text).filter_map(|line| {
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        // The kernel marks a removed cgroup this way; its numbers are still there.
        Some((number, controllers, path.strip_suffix(b" (deleted)").unwrap_or(path)))
    })
}

/// Returns controllers and path of each line.
fn places(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines(text).map(|(_, controllers, path)| (controllers, path))
}

/// Returns the path by which a container is known: that of cgroup v2, or that of the first hierarchy
/// whose path is not the root, or the root. Empty if the text has no line.
pub fn path(text: &[u8]) -> String {
    let unified = places(text).find(|(controllers, _)| controllers.is_empty());
    let own = |(_, path): &(&[u8], &[u8])| *path != b"/";
    let chosen =
        unified.filter(own).or_else(|| places(text).find(own)).or_else(|| places(text).next());
    chosen.map_or_else(String::new, |(_, path)| String::from_utf8_lossy(path).into_owned())
}

/// Returns the last component of the first path that has one, for messages.
pub fn name(text: &[u8]) -> Option<String> {
    let last = |(_, path): (&'_ [u8], &'_ [u8])| {
        let last = path.rsplit(|&byte| byte == b'/').next().filter(|last| !last.is_empty())?;
        Some(String::from_utf8_lossy(last).into_owned())
    };
    places(text).find_map(last)
}

/// Returns the folders of the control groups below the mounts of their hierarchies. A hierarchy that
/// is not mounted is left out: limits cannot be set in it.
pub fn folders(mounts: &[Mounted], text: &[u8]) -> impl Iterator<Item = PathBuf> {
    let place =
        |(controllers, path)| folder(mounts, controllers, Path::new(OsStr::from_bytes(path)));
    places(text).filter_map(place)
}

fn folder(mounts: &[Mounted], controllers: &[u8], path: &Path) -> Option<PathBuf> {
    let has = |mount: &Mounted, controller: &[u8]| {
        mount.options.split(',').any(|option| option.as_bytes() == controller)
    };
    mounts.iter().find_map(|mount| {
        let fits = match (mount.kind.as_str(), controllers) {
            ("cgroup2", b"") => true,
            ("cgroup", b"") => false,
            ("cgroup", all) => all.split(|&byte| byte == b',').all(|one| has(mount, one)),
            _ => false,
        };
        // `join` replaces the whole path by one that starts with a slash.
        let below = path.strip_prefix(&mount.root).ok().filter(|_| fits)?;
        Some(mount.path.join(below))
    })
}

#[cfg(test)]
mod tests {
    use crate::text::mountinfo;

    use super::*;

    #[test]
    fn the_path_of_cgroup_v2_comes_first() {
        assert_eq!(path(b"4:memory:/lxc/a:b\n0::/\n"), "/lxc/a:b");
        assert_eq!(path(b"4:memory:/lxc/a\n0::/user/x\n"), "/user/x");
        assert_eq!((&*path(b"0::/\n"), &*path(b"")), ("/", ""));
        assert_eq!(name(b"4:memory:/\n0::/lxc/w\xffb\n").as_deref(), Some("w\u{fffd}b"));
        assert_eq!(name(b"0::/\n"), None);
    }

    #[test]
    fn control_groups_are_found_below_their_mounts() {
        let mounts = "1 2 0:3 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      4 2 0:5 /a /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      6 2 0:7 / /sys/fs/cgroup/systemd rw - cgroup none rw,xattr,name=systemd\n";
        let mounts: Vec<_> = mountinfo::all(mounts.as_bytes()).collect();
        let place = |text: &[u8]| folders(&mounts, text).next();
        assert_eq!(place(b"3:cpu,cpuacct:/x"), Some("/sys/fs/cgroup/cpu,cpuacct/x".into()));
        assert_eq!(place(b"0::/a/b:c"), Some("/sys/fs/cgroup/unified/b:c".into()));
        assert_eq!(place(b"0::/c"), None, "outside of what is mounted");
        assert_eq!(place(b"1:name=systemd:/"), Some("/sys/fs/cgroup/systemd".into()));
        assert_eq!(place(b"2:memory:/"), None);
        let no_text = OsStr::from_bytes(b"/sys/fs/cgroup/systemd/\xff");
        assert_eq!(place(b"1:name=systemd:/\xff"), Some(no_text.into()));
    }
}
