//! inotify watches of the cgroup folders in which engines make cgroups.
//!
//! The kernel reports each new folder in a watched one, so that nothing runs while no cgroup is
//! made, however many processes start. All folders of the machine are watched, and those in a
//! container and of a user for engines in it, which may make folders as often as they like. Those
//! have an account (`account.rs`): if it is used up, their watches are removed, and a scan after
//! [`PAUSE`] finds what was missed. Start reading at [`Folders::scan`] and [`Folders::read`].

use std::collections::HashMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ambit_sysinfo::engines;
use ambit_sysinfo::hierarchy::Mount;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::account::{Account, account_of, depth_in};

/// How long an account that is used up has no watches.
const PAUSE: Duration = Duration::from_secs(10);
/// What a container costs, in folders: it is looked at and attached.
const CONTAINER: u32 = 20;
/// The most watches of an account, and of all together.
const MOST_OF_ACCOUNT: usize = 512;
const MOST: usize = 16 * 1024;
/// How far below a container folders are watched. The pods of a Kubernetes node are five below.
const DEPTH: usize = 5;
/// The most folders of an account that one walk visits.
const MOST_VISITED: usize = 1024;
/// The most events that are handled at once.
const BATCH: usize = 512;

/// The watches.
#[derive(Debug)]
pub(super) struct Folders {
    inotify: OwnedFd,
    hierarchies: Vec<Mount>,
    watched: HashMap<i32, Folder>,
    accounts: HashMap<String, Account>,
    /// That not all folders can be watched was logged.
    has_warned: bool,
    /// The number of the last scan.
    scans: u64,
}

/// A watched folder.
#[derive(Debug, Clone)]
struct Folder {
    /// The scan that has found it, or after which it was found.
    scan: u64,
    /// The index of its hierarchy.
    hierarchy: usize,
    /// Its path below the root of the mount; empty for that root.
    relative: String,
    account: Option<String>,
}

/// The cgroup of a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its path, as `/proc/<pid>/cgroup` shows it.
    pub(super) path: String,
    pub(super) folder: PathBuf,
}

/// Which containers are reported by a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    All,
    /// Those that were not seen before.
    New,
}

impl Folders {
    /// Creates an instance without watches.
    pub(super) fn new(hierarchies: Vec<Mount>) -> Result<Self, Errno> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
            hierarchies,
            watched: HashMap::new(),
            accounts: HashMap::new(),
            has_warned: false,
            scans: 0,
        })
    }

    /// Watches all folders, and returns the containers. Watches that it does not find again are
    /// removed: the event that the kernel has removed one may have been lost.
    pub(super) fn scan(&mut self, report: Report, now: Instant) -> Vec<Found> {
        let mut found = Vec::new();
        self.scans += 1;
        for hierarchy in 0..self.hierarchies.len() {
            self.watch(hierarchy, String::new(), report, now, &mut found);
        }
        let old = self.watched.iter().filter(|(_, folder)| folder.scan != self.scans);
        let old: Vec<i32> = old.map(|(&watch, _)| watch).collect();
        for watch in old {
            // An error means that the folder is gone.
            let _ = inotify::remove_watch(&self.inotify, watch);
            self.forget(watch);
        }
        found
    }

    /// Handles events that have arrived, at most [`BATCH`]. Returns the new containers; `None` if
    /// events were lost, and a scan is needed.
    pub(super) fn read(&mut self, now: Instant) -> Option<Vec<Found>> {
        let mut events = Vec::new();
        let mut buffer = [const { MaybeUninit::uninit() }; 8192];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        while events.len() < BATCH || !reader.is_buffer_empty() {
            let Ok(event) = reader.next() else { break };
            let name = event.file_name().and_then(|name| name.to_str().ok()).map(str::to_owned);
            events.push((event.wd(), event.events(), name));
        }
        let (mut found, mut is_complete) = (Vec::new(), true);
        for (watch, what, name) in events {
            is_complete &= !what.contains(ReadFlags::QUEUE_OVERFLOW);
            if what.contains(ReadFlags::IGNORED) {
                self.forget(watch);
            }
            let (Some(name), true) = (name, what.contains(ReadFlags::CREATE)) else { continue };
            // The watch may have been removed after the event.
            let Some(folder) = self.watched.get(&watch).cloned() else { continue };
            let may_make = |account: &String| self.charge(account, 1, now);
            if !folder.account.as_ref().is_none_or(may_make) {
                continue;
            }
            let (relative, before) = (join(&folder.relative, &name), found.len());
            self.watch(folder.hierarchy, relative, Report::New, now, &mut found);
            let count = u32::try_from(found.len() - before).unwrap_or(u32::MAX);
            if let Some(account) = folder.account.filter(|_| count > 0) {
                self.charge(&account, count.saturating_mul(CONTAINER), now);
            }
        }
        is_complete.then_some(found)
    }

    /// Returns when a pause ends.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.accounts.values().filter_map(|account| account.paused_until).min()
    }

    /// Watches the folders of accounts again whose pause has ended, and returns their containers.
    pub(super) fn resume(&mut self, now: Instant) -> Vec<Found> {
        let is_over = |account: &Account| account.paused_until.is_some_and(|until| until <= now);
        let over = self.accounts.iter().filter(|(_, account)| is_over(account));
        let over: Vec<String> = over.map(|(path, _)| path.clone()).collect();
        let mut found = Vec::new();
        for path in over {
            if let Some(account) = self.accounts.get_mut(&path) {
                account.resume(now);
            }
            for hierarchy in 0..self.hierarchies.len() {
                let relative = self.hierarchies[hierarchy].relative(&path).map(str::to_owned);
                if let Some(relative) = relative {
                    self.watch(hierarchy, relative, Report::New, now, &mut found);
                }
            }
            // It is gone.
            if self.accounts.get(&path).is_some_and(|account| account.watches == 0) {
                self.accounts.remove(&path);
            }
        }
        found
    }

    /// Watches a folder and those below it, and adds the containers among them.
    fn watch(
        &mut self,
        hierarchy: usize,
        relative: String,
        report: Report,
        now: Instant,
        found: &mut Vec<Found>,
    ) {
        let mount = self.hierarchies[hierarchy].clone();
        // Through the descriptor: another mount may lie on the path.
        let base = PathBuf::from(format!("/proc/self/fd/{}", mount.root().as_raw_fd()));
        let (mut walk, mut visited) = (vec![relative], HashMap::new());
        while let Some(relative) = walk.pop() {
            let (path, folder) = (mount.cgroup(&relative), base.join(&relative));
            let account = account_of(&path);
            let added = self.add(hierarchy, &relative, &folder, account, now);
            if added == Added::Gone {
                continue;
            }
            let is_container = engines::find(&path).is_some_and(|found| found.path == path);
            if is_container && (added != Added::Known || report == Report::All) {
                found.push(Found { path: path.clone(), folder: folder.clone() });
            }
            let below = children(&folder).map(|name| join(&relative, &name));
            let Some(account) = account else {
                walk.extend(below);
                continue;
            };
            if added != Added::Unwatched && depth_in(&path, account) < DEPTH {
                let count = visited.entry(account.to_owned()).or_insert(0);
                let before = walk.len();
                walk.extend(below.take(MOST_VISITED - *count));
                *count += walk.len() - before;
            }
        }
    }

    /// Adds the watch of one folder, if its account may have one more.
    fn add(
        &mut self,
        hierarchy: usize,
        relative: &str,
        folder: &Path,
        account: Option<&str>,
        now: Instant,
    ) -> Added {
        if let Some(account) = account {
            let known = self.accounts.get(account);
            if known.is_some_and(|known| known.paused_until.is_some()) {
                return Added::Gone;
            }
            if known.is_some_and(|known| known.watches >= MOST_OF_ACCOUNT) {
                return Added::Unwatched;
            }
        }
        let flags = WatchFlags::CREATE | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        // A mask replaces the previous one of the same folder.
        let added = match self.watched.len() {
            0..MOST => inotify::add_watch(&self.inotify, folder, flags),
            _ => Err(Errno::NOSPC),
        };
        let watch = match added {
            Ok(watch) => watch,
            Err(Errno::NOENT | Errno::NODEV | Errno::NOTDIR) => return Added::Gone,
            Err(errno) => {
                if !std::mem::replace(&mut self.has_warned, true) {
                    tracing::warn!(
                        "not all control groups are watched: inotify_add_watch: {errno}; containers \
                         in some are not found when they start: raise fs.inotify.max_user_watches"
                    );
                }
                return Added::Unwatched;
            }
        };
        let account = account.map(str::to_owned);
        let relative = relative.to_owned();
        let folder = Folder { scan: self.scans, hierarchy, relative, account: account.clone() };
        if self.watched.insert(watch, folder).is_some() {
            return Added::Known;
        }
        if let Some(account) = account {
            self.accounts.entry(account).or_insert_with(|| Account::new(now)).watches += 1;
        }
        Added::New
    }

    /// Forgets a watch that the kernel has removed.
    fn forget(&mut self, watch: i32) {
        let account = self.watched.remove(&watch).and_then(|folder| folder.account);
        if let Some(path) = account
            && let Some(account) = self.accounts.get_mut(&path)
        {
            account.watches = account.watches.saturating_sub(1);
            if account.watches == 0 && account.paused_until.is_none() {
                self.accounts.remove(&path);
            }
        }
    }

    /// Charges new folders to an account. False if the account is used up: its watches are gone.
    fn charge(&mut self, path: &str, cost: u32, now: Instant) -> bool {
        let Some(account) = self.accounts.get_mut(path) else { return false };
        if account.charge(cost, now) {
            return true;
        }
        if !std::mem::replace(&mut account.has_warned, true) {
            tracing::warn!(
                cgroup = path,
                "it makes control groups too often: containers in it are found with a delay of up \
                 to {} s",
                PAUSE.as_secs()
            );
        }
        account.paused_until = Some(now + PAUSE);
        account.watches = 0;
        let is_its = |folder: &Folder| folder.account.as_deref() == Some(path);
        for (watch, _) in self.watched.extract_if(|_, folder| is_its(folder)) {
            // An error means that the folder is gone.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
        false
    }
}

impl AsFd for Folders {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// What became of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Added {
    New,
    /// There was one.
    Known,
    /// There are too many, so that it is not known whether the folder is new.
    Unwatched,
    /// The folder is gone, or its account is paused.
    Gone,
}

fn join(relative: &str, name: &str) -> String {
    if relative.is_empty() { name.to_owned() } else { format!("{relative}/{name}") }
}

/// Returns the names of the child folders. Engines use no names that are not UTF-8.
fn children(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
mod tests;
