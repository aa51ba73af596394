//! The pid file in the format of lxcfs: locked by its owner, with the pid and a newline, removed at
//! the end. The lock tells a second instance that the first one runs; the file of a killed instance
//! is reused.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// A locked pid file; removed when dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// Closing any descriptor of it would release the lock.
    locked: File,
}

impl PidFile {
    /// Locks the file and writes this process's id.
    ///
    /// # Errors
    /// Another process holds the lock, or the file cannot be written.
    pub fn write(path: &Path) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot open the pid file {}", path.display()))?;
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => anyhow::bail!(
                "{} is already locked: another instance runs; stop it or name another file with -p",
                path.display()
            ),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), locked: file })
    }

    /// The pid file that this process has locked before it executed its program again.
    pub(super) fn from_locked(path: &Path, locked: File) -> Self {
        Self { path: path.to_owned(), locked }
    }

    pub(super) fn locked(&self) -> BorrowedFd<'_> {
        self.locked.as_fd()
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the pid file");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_pid_and_is_removed_on_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        std::fs::write(&path, "a longer text of a predecessor\n").unwrap();
        let pid_file = PidFile::write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        drop(pid_file);
        assert!(!path.exists());
    }
}
