//! The sysfs that accounting reads: private, so that no overlay ever covers it (`private_mount`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::kernel_file::read_to_end;
use crate::private_mount;

/// A kept directory descriptor of a sysfs.
#[derive(Debug)]
pub struct Sysfs {
    root: OwnedFd,
}

impl Sysfs {
    /// Opens an instance that nothing can be mounted over.
    ///
    /// # Errors
    /// Neither a private instance nor `/sys` can be opened.
    pub fn private() -> io::Result<Self> {
        Ok(Self { root: private_mount::instance("sysfs", Path::new("/sys"))? })
    }

    /// A directory that looks like a sysfs (fixtures), or `/sys` itself.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { root: private_mount::folder(path)? })
    }

    /// Reads a file such as `devices/system/cpu/online` to its end; the text is appended.
    ///
    /// # Errors
    /// The file cannot be opened or read.
    pub fn read(&self, path: &str, text: &mut Vec<u8>) -> io::Result<()> {
        read_to_end(self.root.as_fd(), path, text)
    }
}

impl AsFd for Sysfs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_this_machine() {
        let mut text = Vec::new();
        Sysfs::private().unwrap().read("devices/system/cpu/online", &mut text).unwrap();
        assert!(text.starts_with(b"0"));
    }
}
