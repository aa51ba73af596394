//! Reads files of processes and threads in procfs, and pins a task by a descriptor of its folder.
//! What is found by a number is valid only while the task is pinned; see `callers.rs`. Start
//! reading at [`Task`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::KernelFiles;
use crate::kernel_file::{ShortPath, read_record};

impl KernelFiles {
    /// Reads `<pid>/<name>`, a file of one record, into an emptied buffer.
    pub(crate) fn read_of<'t>(
        &self,
        pid: u32,
        name: &str,
        text: &'t mut Vec<u8>,
    ) -> io::Result<&'t [u8]> {
        text.clear();
        read_record(self.as_fd(), ShortPath::of_process(pid, &name).as_str(), text)?;
        Ok(text)
    }

    /// Returns the inode number of a task's namespace of this kind (`pid`, `cgroup`), by one system
    /// call.
    pub(crate) fn namespace(&self, tid: u32, kind: &str) -> io::Result<u64> {
        let path = ShortPath::of_namespace(tid, kind);
        let mut target = [0u8; 48];
        let len = rustix::fs::readlinkat_raw(self.as_fd(), path.as_c_str(), &mut target)?;
        inode(&target[..len]).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Returns the inode number of a task's pid namespace, by one system call.
    pub(crate) fn pid_namespace(&self, tid: u32) -> io::Result<u64> {
        self.namespace(tid, "pid")
    }

    /// Opens a task's namespace of this kind.
    pub(crate) fn open_namespace(&self, tid: u32, kind: &str) -> io::Result<OwnedFd> {
        let path = ShortPath::of_namespace(tid, kind);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.as_fd(), path.as_c_str(), flags, Mode::empty())?)
    }

    /// Opens the folder of a task. It refers to the same task even if the number is reused.
    pub(crate) fn open_task(&self, tid: u32) -> io::Result<Task> {
        let path = ShortPath::of_process(tid, &"");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Task(rustix::fs::openat(self.as_fd(), path.as_c_str(), flags, Mode::empty())?))
    }

    /// The process ids that exist now.
    pub(crate) fn processes(&self) -> io::Result<Vec<u32>> {
        let root = rustix::fs::openat(
            self.as_fd(),
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut pids = Vec::new();
        for entry in rustix::fs::Dir::new(root)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name.iter().all(u8::is_ascii_digit)
                && let Some(pid) = ambit_kernel::text::scan::decimal(name)
            {
                pids.push(u32::try_from(pid).unwrap_or(0));
            }
        }
        Ok(pids)
    }
}

/// The folder of a task.
#[derive(Debug)]
pub(crate) struct Task(OwnedFd);

impl Task {
    /// True while the task has not ended, by one system call: after that nothing is found in the
    /// folder.
    pub(crate) fn is_alive(&self) -> bool {
        rustix::fs::accessat(&self.0, c"ns", rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }
}

/// The number in a link such as `pid:[4026531836]`.
pub(crate) fn inode(link: &[u8]) -> Option<u64> {
    let colon = memchr::memchr(b':', link)?;
    link[colon + 1..].strip_prefix(b"[").and_then(ambit_kernel::text::scan::decimal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_this_process() {
        let proc = KernelFiles::procfs().unwrap();
        let mut text = Vec::new();
        let pid = std::process::id();
        let stat = proc.read_of(pid, "stat", &mut text).unwrap();
        assert!(stat.starts_with(format!("{pid} ").as_bytes()));
        assert!(proc.pid_namespace(pid).unwrap() > 0);
        assert!(proc.processes().unwrap().contains(&pid));
        assert!(proc.read_of(u32::MAX, "stat", &mut text).is_err());
    }
}
