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

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Initial size of a buffer, which grows for larger files (`memory.stat` has about 4 KiB).
const ONE_READ: usize = 16 * 1024;

/// A file that stays open between samples.
#[derive(Debug)]
pub(crate) struct KeptFile {
    fd: OwnedFd,
}

impl KeptFile {
    /// Opens a file below a directory. `Ok(None)` when there is no such file.
    pub(crate) fn open(dir: BorrowedFd<'_>, path: &str) -> io::Result<Option<Self>> {
        match open_below(dir, path) {
            Ok(fd) => Ok(Some(Self { fd })),
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
    let fd = open_below(dir, path)?;
    let mut filled = text.len();
    loop {
        text.resize(filled + ONE_READ, 0);
        match rustix::io::retry_on_intr(|| rustix::io::read(&fd, &mut text[filled..])) {
            Ok(0) => break,
            Ok(len) => filled += len,
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
        let mut bytes = [0; 64];
        let _ = write!(&mut bytes[..63], "{pid}/ns/{kind}");
        Self { bytes }
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
