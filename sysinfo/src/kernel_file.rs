//! Reads kernel files (procfs, cgroupfs), without allocation after the first reads. Knows no format
//! of any file. Start reading at [`KeptFile`].
//!
//! Such files are generated at the moment they are read. A file with one record (every value
//! file, `memory.stat`, `/proc/<pid>/cgroup`) comes whole in one read if the buffer is large
//! enough; a file of many records (`/proc/cpuinfo`, `cgroup.procs`) must be read to its end,
//! since a short read only means that the kernel's own buffer was full.

use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Initial size of a buffer, which grows for larger files (`memory.stat` has about 4 KiB).
const ONE_READ: usize = 16 * 1024;

/// A file that stays open between samples. A read takes a seventh of what opening, reading and
/// closing it does, below a directory that is kept open as below the root; for that the kernel
/// keeps a page for each file that was read.
#[derive(Debug)]
pub(crate) struct KeptFile {
    fd: OwnedFd,
}

/// The number of kept files of this process.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Returns how many files this process keeps open.
pub(crate) fn kept() -> usize {
    KEPT.load(Ordering::Relaxed)
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}

impl KeptFile {
    /// Opens a file below a directory. `Ok(None)` when there is no such file.
    pub(crate) fn open(dir: BorrowedFd<'_>, path: &str) -> io::Result<Option<Self>> {
        match open_below(dir, path) {
            Ok(fd) => {
                KEPT.fetch_add(1, Ordering::Relaxed);
                Ok(Some(Self { fd }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a file of one record from its start, in one system call.
    pub(crate) fn read<'b>(&self, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
        if buffer.len() < ONE_READ {
            buffer.resize(ONE_READ, 0);
        }
        loop {
            let len = rustix::io::retry_on_intr(|| rustix::io::pread(&self.fd, &mut **buffer, 0))?;
            if len < buffer.len() {
                return Ok(&buffer[..len]);
            }
            buffer.resize(buffer.len() * 2, 0);
        }
    }
}

/// Reads a file to its end, whatever its number of records, and closes it. The text is
/// appended.
pub(crate) fn read_to_end(dir: BorrowedFd<'_>, path: &str, text: &mut Vec<u8>) -> io::Result<()> {
    read_until(dir, path, text, |len, _| len == 0)
}

/// Reads a file of one record and closes it. The text is appended.
pub(crate) fn read_record(dir: BorrowedFd<'_>, path: &str, text: &mut Vec<u8>) -> io::Result<()> {
    read_until(dir, path, text, |len, room| len < room)
}

/// Reads until a read is the last one, given its length and the room that there was.
fn read_until(
    dir: BorrowedFd<'_>,
    path: &str,
    text: &mut Vec<u8>,
    is_last: impl Fn(usize, usize) -> bool,
) -> io::Result<()> {
    let fd = open_below(dir, path)?;
    let mut filled = text.len();
    loop {
        text.resize(filled + ONE_READ, 0);
        match rustix::io::retry_on_intr(|| rustix::io::read(&fd, &mut text[filled..])) {
            Ok(len) => {
                filled += len;
                if is_last(len, ONE_READ) {
                    break;
                }
            }
            Err(error) => {
                text.truncate(filled);
                return Err(error.into());
            }
        }
    }
    text.truncate(filled);
    Ok(())
}

/// A path below a directory such as `4711/ns/pid`, built on the stack.
#[derive(Debug)]
pub(crate) struct ShortPath {
    bytes: [u8; 64],
}

impl ShortPath {
    /// `<pid>/<name>`.
    pub(crate) fn of_process(pid: u32, name: &impl std::fmt::Display) -> Self {
        let mut bytes = [0; 64];
        // 10 digits, a slash and names of at most 20 letters: it always fits, with its NUL.
        let _ = write!(&mut bytes[..63], "{pid}/{name}");
        Self { bytes }
    }

    /// `<pid>/ns/<kind>`.
    pub(crate) fn of_namespace(pid: u32, kind: &str) -> Self {
        Self::of_process(pid, &format_args!("ns/{kind}"))
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    pub(crate) fn as_str(&self) -> &str {
        self.as_c_str().to_str().unwrap_or_default()
    }
}

fn open_below(dir: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    rustix::io::retry_on_intr(|| {
        rustix::fs::openat(dir.as_fd(), path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_larger_than_the_buffer_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("big"), vec![b'x'; ONE_READ + 7]).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let kept = KeptFile::open(root.as_fd(), "big").unwrap().unwrap();
        let mut buffer = Vec::new();
        assert_eq!(kept.read(&mut buffer).unwrap().len(), ONE_READ + 7);
        let mut text = b"before".to_vec();
        read_to_end(root.as_fd(), "big", &mut text).unwrap();
        assert_eq!(text.len(), ONE_READ + 7 + 6);
        text.clear();
        read_record(root.as_fd(), "big", &mut text).unwrap();
        assert_eq!(text.len(), ONE_READ + 7);
        assert!(KeptFile::open(root.as_fd(), "none").unwrap().is_none());
    }

    #[test]
    fn paths_of_processes() {
        assert_eq!(
            ShortPath::of_process(u32::MAX, &"timens_offsets").as_str(),
            "4294967295/timens_offsets"
        );
    }
}
