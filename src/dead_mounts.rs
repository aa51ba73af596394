//! Mounts of ours whose server is gone for good, on the machine and in containers.
//!
//! A connection that was aborted cannot be brought back: every access to its files fails, wherever
//! they are bound, until they are unmounted. Those who have such files never reach a new server, so
//! it cannot know them; they are looked for in every mount namespace. That is done by the program
//! that the administrator calls and not by the daemon, because a mount may not answer.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ambit_fuse::mountinfo::{self, Mounted};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::kernel_text::control_groups;

/// How long all mounts together may take to answer. Those that do not are taken for alive: their
/// device may be kept for a successor.
const PATIENCE: Duration = Duration::from_secs(2);
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
    let namespace = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/mnt")).map(|ns| ns.ino());
    let own = namespace("self").ok();
    let mut seen: HashMap<u64, DeadMounts> = HashMap::new();
    let mut verdicts = Verdicts { known: HashMap::new(), until: Instant::now() + PATIENCE };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    for process in processes.flatten() {
        let name = process.file_name();
        let Some((pid, number)) = name.to_str().and_then(|pid| Some((pid, pid.parse().ok()?)))
        else {
            continue;
        };
        let Ok(namespace) = namespace(pid) else { continue };
        if seen.contains_key(&namespace) {
            continue;
        }
        let Ok(text) = fs::read(process.path().join("mountinfo")) else { continue };
        let mounts: Vec<_> = mountinfo::all(&text).collect();
        let ours = mounts.iter().filter(|mount| KINDS.contains(&mount.kind.as_str()));
        // Many programs have a namespace of their own with a copy of the machine's mounts, which they
        // never look into: what matters to others lies over their own files.
        let is_own = own == Some(namespace);
        let is_seen = |path: &Path| path.starts_with("/proc") || path.starts_with("/sys");
        let paths = ours
            .filter(|mount| is_own || is_seen(&mount.path))
            .filter(|mount| !is_below_a_stranger(mount, &mounts))
            .filter(|mount| verdicts.is_dead(&process.path().join("root"), mount))
            .map(|mount| mount.path.clone())
            .collect();
        let pid = (!is_own).then_some(number);
        seen.insert(namespace, DeadMounts { pid, name: cgroup_of(&process.path()), paths });
    }
    let mut found: Vec<_> = seen.into_values().filter(|one| !one.paths.is_empty()).collect();
    found.sort_by_key(|one| one.pid);
    found
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

/// What is known of connections, by their numbers.
struct Verdicts {
    known: HashMap<u32, bool>,
    until: Instant,
}

impl Verdicts {
    /// Is the connection of this mount dead? `root` is the root of a process that sees it.
    fn is_dead(&mut self, root: &Path, mount: &Mounted) -> bool {
        if let Some(known) = self.known.get(&mount.minor) {
            return *known;
        }
        let (tell, told) = mpsc::channel();
        let (root, wanted) = (root.to_owned(), mount.clone());
        let ask = move || {
            // Nobody listens any more when it took too long.
            let _ = tell.send(ask(&root, &wanted));
        };
        if thread::Builder::new().name("mount-probe".into()).spawn(ask).is_err() {
            return false;
        }
        match told.recv_timeout(self.until.saturating_duration_since(Instant::now())) {
            // Covered by another mount: a second place of it may be visible.
            Ok(None) => false,
            Ok(Some(dead)) => *self.known.entry(mount.minor).or_insert(dead),
            Err(_) => *self.known.entry(mount.minor).or_insert(false),
        }
    }
}

/// Asks the mount for what is never answered from a cache. `None`: it cannot be reached.
fn ask(root: &Path, mount: &Mounted) -> Option<bool> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let there = rustix::fs::openat2(&root, &mount.path, flags, Mode::empty(), within).ok()?;
    // The device's number is known without asking the server.
    let known = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&there, "", known, StatxFlags::empty()).ok()?;
    if (stat.stx_dev_major, stat.stx_dev_minor) != (0, mount.minor) {
        return None;
    }
    let answer = rustix::fs::fstatfs(&there);
    Some(matches!(answer, Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::CONNREFUSED)))
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
