//! Reading files of the container: bounded, without waiting for what is no regular file, and with
//! an error that says what a user can do about it. Also what is mounted over a file.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// More than any file of the kernel that is read here.
const LARGEST: u64 = 16 << 20;

/// Why a file says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unread {
    Missing,
    /// This user may not read it, or the kernel has switched it off.
    Refused(String),
    /// A mount covers it whose server has ended.
    Dead,
    Empty,
    /// It says something else than the kernel does.
    Garbled,
    Failed(String),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no such file"),
            Self::Refused(why) => write!(f, "it may not be read here: {why}"),
            Self::Dead => f.write_str(
                "the server of the mount that covers it has ended; unmount it, or restart the container",
            ),
            Self::Empty => f.write_str("the file is empty"),
            Self::Garbled => f.write_str("the file does not say what the kernel's says"),
            Self::Failed(why) => write!(f, "it cannot be read: {why}"),
        }
    }
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Self::Missing,
            Some(libc::EACCES | libc::EPERM | libc::EOPNOTSUPP) => Self::Refused(error.to_string()),
            Some(libc::ENOTCONN | libc::ECONNABORTED) => Self::Dead,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// What was read.
pub(crate) type Reading<T> = Result<T, Unread>;

/// The folder in which `proc` and `sys` are looked for: `/` but for tests.
#[derive(Debug)]
pub(crate) struct Root(PathBuf);

impl Root {
    pub(crate) fn new(folder: &str) -> Self {
        Self(folder.into())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The text of a file.
    pub(crate) fn read(&self, path: &str) -> Reading<String> {
        // A pipe in the place of a file would wait for a writer.
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(self.path(path))?;
        if !file.metadata()?.is_file() {
            return Err(Unread::Failed("it is no regular file".into()));
        }
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Err(Unread::Empty);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What a parser makes of a file.
    pub(crate) fn parse<T>(&self, path: &str, parse: impl FnOnce(&str) -> Option<T>) -> Reading<T> {
        parse(&self.read(path)?).ok_or(Unread::Garbled)
    }

    /// The names in a folder; none where it cannot be read.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Where a symbolic link of the kernel leads, such as `pid:[4026531836]`.
    pub(crate) fn link(&self, path: &str) -> Option<String> {
        Some(fs::read_link(self.path(path)).ok()?.to_string_lossy().into_owned())
    }
}

/// A line of mountinfo.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    /// What of the file system is mounted.
    pub(crate) root: String,
    pub(crate) point: String,
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: String,
}

/// The mounts of this mount namespace, in the order in which they were made.
pub(crate) fn mounts(root: &Root) -> Vec<Mount> {
    let text = root.read("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut words = before.split(' ').skip(3).map(unescape);
        let (root, point) = (words.next()?, words.next()?);
        let mut words = after.split(' ').map(unescape);
        let (kind, source) = (words.next()?, words.next()?);
        Some(Mount { root, point, kind, source, options: words.next().unwrap_or_default() })
    };
    text.lines().filter_map(mount).collect()
}

/// Blanks and the like are printed as `\040`.
fn unescape(word: &str) -> String {
    let mut parts = word.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(byte.into());
                text.push_str(&part[3..]);
            }
            None => text.push_str(part),
        }
    }
    text
}

/// Whether `path` is `folder` or below it.
pub(crate) fn is_below(path: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What a program gets when it opens a file of `/proc` or `/sys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cover {
    /// The kernel's own file.
    Nothing,
    /// A mount, by its type and source.
    Mount(String),
}

impl Cover {
    /// The topmost mount at a path or above it.
    pub(crate) fn of(path: &str, mounts: &[Mount]) -> Self {
        let over = mounts.iter().filter(|mount| is_below(path, &mount.point));
        match over.max_by_key(|mount| mount.point.trim_end_matches('/').len()) {
            Some(mount) if !["proc", "sysfs"].contains(&&*mount.kind) => {
                Self::Mount(format!("{} ({})", mount.kind, mount.source))
            }
            _ => Self::Nothing,
        }
    }
}

impl fmt::Display for Cover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing covers it"),
            Self::Mount(what) => write!(f, "it is covered by {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_at_the_longest_path_covers_a_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("proc/self")).unwrap();
        fs::write(
            folder.path().join("proc/self/mountinfo"),
            "1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / /proc rw - proc proc rw\n\
             3 2 0:3 /proc/x\\040y /proc/meminfo ro shared:1 - fuse.lxcfs lxcfs rw\nnonsense\n",
        )
        .unwrap();
        let mounts = mounts(&Root::new(folder.path().to_str().unwrap()));
        assert_eq!((mounts.len(), &*mounts[2].root), (3, "/proc/x y"));
        assert_eq!(Cover::of("/proc/stat", &mounts), Cover::Nothing);
        let cover = Cover::of("/proc/meminfo", &mounts);
        assert_eq!(cover.to_string(), "it is covered by fuse.lxcfs (lxcfs)");
        assert_eq!(Cover::of("/proc/meminfos", &mounts), Cover::Nothing);
    }

    #[test]
    fn what_is_no_regular_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path().to_str().unwrap());
        fs::write(folder.path().join("empty"), "").unwrap();
        assert_eq!(root.read("/empty"), Err(Unread::Empty));
        assert_eq!(root.read("/none"), Err(Unread::Missing));
        assert!(matches!(root.read("/"), Err(Unread::Failed(_))));
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(matches!(root.read("/pipe"), Err(Unread::Failed(_))));
    }
}
