//! Mounts of ours whose server is gone for good, on the machine and in containers.
//!
//! A connection that was aborted cannot be brought back: every access to its files fails, wherever
//! they are bound, until they are unmounted. Those who have such files never reach a new server, so
//! it cannot know them; they are looked for in every mount namespace. That is done by the program
//! that the administrator calls and not by the daemon, because a mount may not answer.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ambit_kernel::text::control_groups;
use ambit_kernel::text::mountinfo::{self, Mounted};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

use crate::mount_namespaces::{self, Namespace};

/// How long all mounts together may take to answer. Those that do not are taken for alive: their
/// device may be kept for a successor.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one mount may take.
const ONE_PATIENCE: Duration = Duration::from_secs(1);
/// The types of our mounts, with and without the name of lxcfs.
const KINDS: [&str; 2] = ["fuse.ambit", "fuse.lxcfs"];

/// The dead mounts of one mount namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadMounts {
    /// A process that sees them; `None` for the mounts of the machine itself.
    pub pid: Option<u32>,
    /// The last part of that process's cgroup.
    pub name: String,
    /// Where they are, as seen there.
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
                write!(
                    f,
                    "; every access to them fails; restart the container, or unmount them there"
                )
            }
        }
    }
}

/// Looks for all. Takes a moment for each mount namespace.
#[must_use]
pub fn find() -> Vec<DeadMounts> {
    let own = mount_namespaces::of("self");
    let mut verdicts = Verdicts { known: HashMap::new(), until: Instant::now() + PATIENCE };
    let mut found: Vec<_> = mount_namespaces::all()
        .map(|namespace| {
            let Namespace { id, pid, process, mounts } = namespace;
            let ours = mounts.iter().filter(|mount| is_ours(mount));
            // Many programs have a namespace of their own with a copy of the machine's mounts, which
            // they never look into: what matters to others lies over their own files.
            let is_own = own == Some(id);
            let is_seen = |path: &Path| path.starts_with("/proc") || path.starts_with("/sys");
            let paths = ours
                .filter(|mount| is_own || is_seen(&mount.path))
                .filter(|mount| !is_below_a_stranger(mount, &mounts))
                .filter(|mount| verdicts.is_dead(&process.join("root"), mount))
                .map(|mount| mount.path.clone())
                .collect();
            DeadMounts { pid: (!is_own).then_some(pid), name: cgroup_of(&process), paths }
        })
        .filter(|one| !one.paths.is_empty())
        .collect();
    found.sort_by_key(|one| one.pid);
    found
}

/// True for a mount of this program.
#[must_use]
pub fn is_ours(mount: &Mounted) -> bool {
    KINDS.contains(&mount.kind.as_str())
}

/// What is mounted at a mount point of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing of ours.
    Absent,
    /// The files of a server that is gone for good.
    Dead,
    /// Files that no server answers for now: reads wait.
    Waiting,
    /// Files that a server answers for.
    Served,
}

/// Asks the topmost mount at a mount point.
#[must_use]
pub fn state(point: &Path) -> State {
    let Some(mount) = top(point) else { return State::Absent };
    match probe(Path::new("/"), &mount, ONE_PATIENCE) {
        Verdict::Dead => State::Dead,
        Verdict::Alive => State::Served,
        Verdict::Silent => State::Waiting,
        Verdict::Hidden => State::Absent,
    }
}

/// Unmounts what dead servers left at a mount point. Returns how many mounts that were.
///
/// # Errors
/// The kernel refuses.
pub fn clear(point: &Path) -> io::Result<usize> {
    let mut count = 0;
    while state(point) == State::Dead {
        let Some(mount) = top(point) else { break };
        // What lies upon it goes with it.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(&mount.path, flags)?;
        count += 1;
    }
    Ok(count)
}

/// The topmost mount at a mount point, if it is ours. The point itself is not looked at, because
/// its server may be dead.
fn top(point: &Path) -> Option<Mounted> {
    let point = point.parent()?.canonicalize().ok()?.join(point.file_name()?);
    let top = mountinfo::own().ok()?.into_iter().rfind(|mount| mount.path == point)?;
    is_ours(&top).then_some(top)
}

/// Does the way to it lead through a filesystem that another program serves? That one may never
/// answer.
fn is_below_a_stranger(mount: &Mounted, mounts: &[Mounted]) -> bool {
    mounts.iter().any(|other| {
        other.kind.starts_with("fuse")
            && !KINDS.contains(&other.kind.as_str())
            && mount.path.starts_with(&other.path)
    })
}

/// The last part of a process's cgroup. A container may have chosen it.
fn cgroup_of(process: &Path) -> String {
    let text = fs::read(process.join("cgroup")).unwrap_or_default();
    let name = control_groups::name(&text).unwrap_or_else(|| "without a cgroup".to_owned());
    name.escape_debug().to_string()
}

/// What a mount answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Alive,
    Dead,
    /// Nothing in time.
    Silent,
    /// It is covered by another mount, and cannot be asked.
    Hidden,
}

/// What is known of connections, by their numbers.
struct Verdicts {
    known: HashMap<u32, Verdict>,
    until: Instant,
}

impl Verdicts {
    /// Is the connection of this mount dead? `root` is the root of a process that sees it.
    fn is_dead(&mut self, root: &Path, mount: &Mounted) -> bool {
        let left = || self.until.saturating_duration_since(Instant::now());
        let known = self.known.get(&mount.minor).copied();
        let verdict = known.unwrap_or_else(|| probe(root, mount, left()));
        // A second place of one that is hidden may be visible.
        if verdict != Verdict::Hidden {
            self.known.insert(mount.minor, verdict);
        }
        verdict == Verdict::Dead
    }
}

/// Asks a mount, as a process with this root sees it, on a thread that is left behind if there is
/// no answer.
fn probe(root: &Path, mount: &Mounted, patience: Duration) -> Verdict {
    let (tell, told) = mpsc::channel();
    let (root, wanted) = (root.to_owned(), mount.clone());
    let ask = move || {
        // The receiver is gone when the answer took too long.
        let _ = tell.send(ask(&root, &wanted));
    };
    if thread::Builder::new().name("mount-probe".into()).spawn(ask).is_err() {
        return Verdict::Silent;
    }
    told.recv_timeout(patience).unwrap_or(Verdict::Silent)
}

/// Asks the mount for what is never answered from a cache.
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
    fn a_sentence_says_where_and_what_to_do() {
        let paths = ["/proc/meminfo", "/proc/stat"].map(PathBuf::from).to_vec();
        let mut dead = DeadMounts { pid: Some(7), name: "web".to_owned(), paths };
        let text = dead.to_string();
        assert!(text.contains("web (process 7)") && text.contains("/proc/meminfo and 1 more"));
        assert!(text.contains("restart the container"));
        dead.pid = None;
        assert!(dead.to_string().contains("ambit serve"));
    }

    #[test]
    fn the_way_must_not_lead_through_another_programs_files() {
        let text = b"1 0 0:5 / / rw - ext4 /dev/sda rw\n2 1 0:6 / /x rw - fuse.other o rw\n\
                     3 2 0:7 / /x/a rw - fuse.ambit ambit ro\n4 1 0:7 / /b rw - fuse.ambit ambit ro\n";
        let mounts: Vec<_> = mountinfo::all(text).collect();
        assert!(is_below_a_stranger(&mounts[2], &mounts));
        assert!(!is_below_a_stranger(&mounts[3], &mounts));
    }
}
