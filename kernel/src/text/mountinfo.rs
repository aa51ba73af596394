//! The list of mounts, `/proc/self/mountinfo`, and which one is on top at a path.
//!
//! The list is read instead of asking the mount itself: a mount whose server is dead or stuck
//! answers with an error, or never. Format: `proc_pid_mountinfo(5)`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec};

/// A mount: the fields of its line that ambit uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounted {
    /// Its id, unique while the mount exists.
    pub id: u64,
    /// The id of the mount that it is mounted on.
    pub parent: u64,
    /// The folder of the filesystem that is the root of the mount.
    pub root: PathBuf,
    /// Where it is mounted.
    pub path: PathBuf,
    /// Options of the mount itself, separated by commas.
    pub attributes: String,
    /// Its peer group: what is mounted on one of its mounts appears on all of them.
    pub peers: Option<u32>,
    /// Minor number of its device: for FUSE the number of the connection.
    pub minor: u32,
    /// Type, such as `fuse.ambit`.
    pub kind: String,
    /// Source, such as `ambit` or a block device.
    pub source: String,
    /// Options of the filesystem itself, separated by commas.
    pub options: String,
}

/// Returns the topmost mount exactly at a path, which must be absolute and free of symbolic links.
pub fn top(path: &Path) -> io::Result<Option<Mounted>> {
    Ok(own()?.into_iter().rfind(|mount| mount.path == path))
}

/// A watch of the list of mounts of this process.
#[derive(Debug)]
pub struct Watch(fs::File);

impl Watch {
    /// Starts the watch.
    pub fn new() -> io::Result<Self> {
        fs::File::open("/proc/self/mountinfo").map(Self)
    }

    /// True if the list has changed since the last call (`proc_pid_mounts(5)`). Reads nothing.
    pub fn has_changed(&self) -> bool {
        let mut poll = [PollFd::new(&self.0, PollFlags::PRI)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let polled = rustix::event::poll(&mut poll, Some(&now));
        polled.is_ok() && poll[0].revents().contains(PollFlags::PRI)
    }
}

/// Returns all mounts that this process sees.
pub fn own() -> io::Result<Vec<Mounted>> {
    Ok(all(&fs::read("/proc/self/mountinfo")?).collect())
}

/// Returns all mounts of a list. A mount comes after those that it covers.
pub fn all(text: &[u8]) -> impl Iterator<Item = Mounted> {
    text.split(|&byte| byte == b'\n').filter_map(parse)
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let name = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let (root, path) = (name(fields.next()?), name(fields.next()?));
    let attributes = String::from_utf8_lossy(fields.next()?).into_owned();
    let mut peers = None;
    while let Some(field) = Some(fields.next()?).filter(|field| *field != b"-") {
        peers = field.strip_prefix(b"shared:").map_or(peers, number);
    }
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    // Only filesystems without a block device can be connections of FUSE.
    let minor = if major == "0" { minor.parse().ok()? } else { 0 };
    let (kind, source) = (text(fields.next()?), text(fields.next()?));
    let options = text(fields.next().unwrap_or_default());
    Some(Mounted { id, parent, root, path, attributes, peers, minor, kind, source, options })
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Decodes blank, tab, newline and backslash, which the kernel writes as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        plain.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_type_source_and_connection() {
        let line = b"36 25 0:47 / /var/lib/a\\040b ro,nosuid shared:7 - fuse.ambit am\\134bit ro,user_id=0";
        let found = parse(line).unwrap();
        assert_eq!(found.path, Path::new("/var/lib/a b"));
        assert_eq!((found.minor, &*found.kind, &*found.source), (47, "fuse.ambit", "am\\bit"));
        assert_eq!((found.id, found.parent, found.peers), (36, 25, Some(7)));
        assert_eq!(&*found.attributes, "ro,nosuid");
        assert_eq!((&*found.root, &*found.options), (Path::new("/"), "ro,user_id=0"));
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(top(Path::new("/proc")).unwrap().is_some_and(|mount| mount.kind == "proc"));
        assert_eq!(top(Path::new("/proc/self")).unwrap(), None);
    }

    proptest::proptest! {
        /// Paths and sources are names that containers choose.
        #[test]
        fn any_list_is_parsed_without_a_panic(text in "([0-9]{1,3}|:|/|-|\\\\[0-7]{0,4}|[ \n]|fuse){0,60}") {
            let mounts = all(text.as_bytes()).count();
            proptest::prop_assert!(mounts <= text.lines().count());
        }
    }
}
