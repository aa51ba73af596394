//! A program that the keeper starts. Its file is held open, so that it can be started again after a
//! package manager has replaced or deleted the file.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

/// An executable file.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    file: File,
    /// True for a script, which is started by its path: the kernel passes a path to the
    /// interpreter, which must lead to the script after `execve`.
    is_script: bool,
}

impl Program {
    /// Opens the program of this process.
    pub(super) fn own() -> anyhow::Result<Self> {
        const OWN: &str = "/proc/self/exe";
        let path = std::fs::read_link(OWN).unwrap_or_else(|_| OWN.into());
        Ok(Self { path, ..Self::open(Path::new(OWN))? })
    }

    /// Opens the program at a path.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot start {}", path.display());
        // O_NONBLOCK: opening a FIFO would block.
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let mut file = opened.with_context(cannot)?;
        anyhow::ensure!(
            file.metadata().is_ok_and(|about| about.is_file()),
            "{}: it is not a regular file",
            cannot()
        );
        let mut first = [0; 2];
        let is_script = file.read(&mut first).is_ok_and(|read| read == 2 && first == *b"#!");
        Ok(Self { path: path.to_owned(), file, is_script })
    }

    /// The path that it was opened at.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a command that starts it.
    pub(super) fn command(&self) -> Command {
        let mut command = if self.is_script {
            Command::new(&self.path)
        } else {
            // The descriptor is closed by `execve`, after the kernel has opened the file.
            Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
        };
        command.arg0("ambit");
        command
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_starts_after_its_file_was_deleted_or_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::copy("/bin/true", &path).unwrap();
        let program = Program::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(program.command().status().unwrap().success());
        std::fs::copy("/bin/false", &path).unwrap();
        assert!(program.command().status().unwrap().success());
    }

    #[test]
    fn a_script_is_started_by_its_path_and_a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        std::fs::write(&path, "#!/bin/sh\n[ \"$1\" = word ]\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Program::open(&path).unwrap().command().arg("word").status().unwrap().success());
        let refused = Program::open(folder.path()).unwrap_err();
        assert!(refused.to_string().contains("not a regular file"), "{refused}");
    }
}
