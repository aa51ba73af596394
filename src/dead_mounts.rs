//! Finds dead mounts: mounts of ambit whose FUSE connection was aborted, on the machine and in
//! containers.
//!
//! An aborted connection cannot be restored: every access to its files fails, wherever they are
//! bound, until they are unmounted. Containers with such files never reach a new server, so that
//! does not know them, and every mount namespace is searched. The command of the administrator does
//! that and not the daemon, because a mount may not answer.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ambit_kernel::sys::fork::{Fork, fork};
use ambit_kernel::text::control_groups;
use ambit_kernel::text::mountinfo::{self, Mounted};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open,
    set_parent_process_death_signal, waitpid,
};
use serde::{Deserialize, Serialize};

use crate::mount_namespaces::{self, Namespace};

/// How long all mounts together may take to answer. A mount that does not answer counts as alive:
/// the keeper may hold its device for the next server.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one mount may take.
const ONE_PATIENCE: Duration = Duration::from_secs(1);
/// The filesystem types of ambit's mounts.
const KINDS: [&str; 2] = ["fuse.ambit", "fuse.lxcfs"];

/// The dead mounts of one mount namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadMounts {
    /// A process in that namespace; `None` for the machine's own.
    pub pid: Option<u32>,
    /// The last part of that process's cgroup.
    pub name: String,
    /// Their mount points, as seen in that namespace.
    pub paths: Vec<PathBuf>,
}

impl fmt::Display for DeadMounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.paths.first().map(|path| path.display().to_string()).unwrap_or_default();
        let first = first.escape_debug();
        match (self.pid, self.paths.len().saturating_sub(1)) {
            (None, _) => write!(
                f,
                "the mount {first} is dead: every access to it fails; `umount -l {first}`, and if the \
                 daemon's files are there, start it again with `ambit serve`"
            ),
            (Some(pid), more) => {
                write!(f, "the container {} (process {pid}) has dead files: {first}", self.name)?;
                if more > 0 {
                    write!(f, " and {more} more")?;
                }
                write!(f, "; every access to them fails; `ambit attach {pid}` replaces them")
            }
        }
    }
}

/// Finds all dead mounts in these mount namespaces.
pub fn find(namespaces: &[Namespace]) -> Vec<DeadMounts> {
    let own = mount_namespaces::of("self");
    let mut verdicts = Verdicts { known: HashMap::new(), until: Instant::now() + PATIENCE };
    let mut found: Vec<_> = namespaces
        .iter()
        .map(|namespace| {
            let Namespace { id, pid, process, mounts } = namespace;
            let ours = mounts.iter().filter(|mount| is_ours(mount));
            // Many programs have a copy of the machine's mounts in a namespace of their own, and do
            // not use the overlay. Containers have its files bound over their own.
            let is_own = own == Some(*id);
            let is_seen = |path: &Path| path.starts_with("/proc") || path.starts_with("/sys");
            let paths = ours
                .filter(|mount| is_own || is_seen(&mount.path))
                .filter(|mount| !is_below_a_stranger(mount, mounts))
                .filter(|mount| verdicts.is_dead(&process.join("root"), mount))
                .map(|mount| mount.path.clone())
                .collect();
            DeadMounts { pid: (!is_own).then_some(*pid), name: cgroup_of(process), paths }
        })
        .filter(|one| !one.paths.is_empty())
        .collect();
    found.sort_by_key(|one| one.pid);
    found
}

/// True for a mount of this program.
pub fn is_ours(mount: &Mounted) -> bool {
    KINDS.contains(&mount.kind.as_str())
}

/// True for a mount of an aborted connection. `root` is the root of a process in its mount
/// namespace.
pub fn is_dead(root: &Path, mount: &Mounted) -> bool {
    probe(root, mount, ONE_PATIENCE) == Verdict::Dead
}

/// The state of a mount point of ambit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No mount of ambit.
    Absent,
    /// Files of an aborted connection.
    Dead,
    /// Files whose server does not run now: reads wait.
    Waiting,
    /// Files that a server serves.
    Served,
}

/// Returns the state of the topmost mount at a mount point.
pub fn state(point: &Path) -> State {
    let Some(mount) = top(point) else { return State::Absent };
    match probe(Path::new("/"), &mount, ONE_PATIENCE) {
        Verdict::Dead => State::Dead,
        Verdict::Alive => State::Served,
        Verdict::Silent => State::Waiting,
        Verdict::Hidden => State::Absent,
    }
}

/// Unmounts the dead mounts at a mount point. Returns how many there were.
pub fn clear(point: &Path) -> io::Result<usize> {
    let mut count = 0;
    while state(point) == State::Dead {
        let Some(mount) = top(point) else { break };
        // MNT_DETACH also detaches the mounts on top of it.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(&mount.path, flags)?;
        count += 1;
    }
    Ok(count)
}

/// Returns the topmost mount at a mount point, if it is one of ambit. Reads mountinfo only, because
/// the mount may not answer.
fn top(point: &Path) -> Option<Mounted> {
    let point = point.parent()?.canonicalize().ok()?.join(point.file_name()?);
    let top = mountinfo::own().ok()?.into_iter().rfind(|mount| mount.path == point)?;
    is_ours(&top).then_some(top)
}

/// True if the path leads through a FUSE filesystem of another program, which may never answer.
fn is_below_a_stranger(mount: &Mounted, mounts: &[Mounted]) -> bool {
    mounts.iter().any(|other| {
        other.kind.starts_with("fuse")
            && !KINDS.contains(&other.kind.as_str())
            && mount.path.starts_with(&other.path)
    })
}

/// Returns the last part of a process's cgroup. A container may have chosen it.
fn cgroup_of(process: &Path) -> String {
    let text = fs::read(process.join("cgroup")).unwrap_or_default();
    let name = control_groups::name(&text).unwrap_or_else(|| "without a cgroup".to_owned());
    name.escape_debug().to_string()
}

/// The answer of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Alive,
    Dead,
    /// It does not answer in time.
    Silent,
    /// It is covered by another mount, and cannot be reached.
    Hidden,
}

/// The answers of connections, by device number.
struct Verdicts {
    known: HashMap<u32, Verdict>,
    until: Instant,
}

impl Verdicts {
    /// True if the connection of this mount is aborted. `root` is the root of a process in its
    /// mount namespace.
    fn is_dead(&mut self, root: &Path, mount: &Mounted) -> bool {
        let left = || self.until.saturating_duration_since(Instant::now());
        let known = self.known.get(&mount.minor).copied();
        let verdict = known.unwrap_or_else(|| probe(root, mount, left()));
        // Another mount of the same connection may not be covered.
        if verdict != Verdict::Hidden {
            self.known.insert(mount.minor, verdict);
        }
        verdict == Verdict::Dead
    }
}

/// Asks a mount, as seen from this root, by a child that is left behind if there is no answer: a process with
/// a thread that waits for a FUSE server cannot end.
fn probe(root: &Path, mount: &Mounted, patience: Duration) -> Verdict {
    if patience.is_zero() {
        return Verdict::Silent;
    }
    let Ok(null) = fs::OpenOptions::new().read(true).write(true).open("/dev/null") else {
        return Verdict::Silent;
    };
    let child = match fork() {
        Ok(Fork::Parent(child)) => Pid::from_raw(child.as_raw()),
        Ok(Fork::Child) => {
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            // The reader of this command's output waits for its end, and not for that of the child.
            let _ = rustix::stdio::dup2_stdin(&null);
            let _ = rustix::stdio::dup2_stdout(&null);
            let _ = rustix::stdio::dup2_stderr(&null);
            #[allow(clippy::exit, reason = "the child has nothing to return to")]
            std::process::exit(match ask(root, mount) {
                Verdict::Alive => 0,
                Verdict::Dead => 1,
                Verdict::Silent | Verdict::Hidden => 2,
            });
        }
        Err(_) => None,
    };
    let Some(child) = child else { return Verdict::Silent };
    let timeout = Timespec::try_from(patience).unwrap_or_default();
    let has_ended = pidfd_open(child, PidfdFlags::empty())
        .and_then(|pidfd| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)));
    if has_ended != Ok(1) {
        let _ = kill_process(child, Signal::KILL);
        return Verdict::Silent;
    }
    let status = waitpid(Some(child), WaitOptions::empty()).ok().flatten();
    match status.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Verdict::Alive,
        Some(1) => Verdict::Dead,
        _ => Verdict::Hidden,
    }
}

/// Makes a request that the kernel never answers from a cache.
fn ask(root: &Path, mount: &Mounted) -> Verdict {
    let look = || {
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let there = rustix::fs::openat2(&root, &mount.path, flags, Mode::empty(), within)?;
        // The device's number is known without asking the server.
        let known = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&there, "", known, StatxFlags::empty())?;
        Ok::<_, Errno>(((stat.stx_dev_major, stat.stx_dev_minor), there))
    };
    match look() {
        Ok((device, there)) if device == (0, mount.minor) => match rustix::fs::fstatfs(&there) {
            Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::CONNREFUSED) => Verdict::Dead,
            _ => Verdict::Alive,
        },
        _ => Verdict::Hidden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_the_mount_points_and_the_remedy() {
        let paths = ["/proc/meminfo", "/proc/stat"].map(PathBuf::from).to_vec();
        let mut dead = DeadMounts { pid: Some(7), name: "web".to_owned(), paths };
        let text = dead.to_string();
        assert!(text.contains("web (process 7)") && text.contains("/proc/meminfo and 1 more"));
        assert!(text.contains("ambit attach 7"));
        dead.pid = None;
        assert!(dead.to_string().contains("ambit serve"));
    }

    #[test]
    fn a_path_through_the_fuse_filesystem_of_another_program_is_not_followed() {
        let text = b"1 0 0:5 / / rw - ext4 /dev/sda rw\n2 1 0:6 / /x rw - fuse.other o rw\n\
                     3 2 0:7 / /x/a rw - fuse.ambit ambit ro\n4 1 0:7 / /b rw - fuse.ambit ambit ro\n";
        let mounts: Vec<_> = mountinfo::all(text).collect();
        assert!(is_below_a_stranger(&mounts[2], &mounts));
        assert!(!is_below_a_stranger(&mounts[3], &mounts));
    }
}
