//! The watcher: attaches the overlay's files to every container of an engine, soon after its start
//! and without the engine's help.
//!
//! New containers are found by the cgroups that engines make (`folders.rs`), and only those: a pid
//! namespace elsewhere (a browser's sandbox, bubblewrap, a service) is never touched. A container
//! is looked at until it runs its program (`pending.rs`, `look.rs`), and is then attached by the
//! `Attacher`, as by `ambit attach`. One thread watches and looks, and opens no file of a
//! container. Each attach has a thread of its own, because a container may not answer. Start
//! reading at `Watcher::start`.

mod account;
mod folders;
mod look;
mod pending;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use ambit_intercept::fits;
use ambit_kernel::lock;
use ambit_kernel::output;
use ambit_sysinfo::engines;
use ambit_sysinfo::hierarchy::{Controller, Hierarchies, Mount};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::attacher::Attacher;
use crate::config::Attach;
use folders::{Folders, Found, Report};
use look::{Look, Machine, Process};
use pending::Pending;

/// The shortest time between two scans after lost events.
const BETWEEN_SCANS: Duration = Duration::from_secs(1);

/// What the watcher has done, for `ambit status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherStatus {
    /// True if containers are attached when they start.
    pub is_on: bool,
    /// How many containers got files. This and what follows is counted since the server started.
    pub attached: u64,
    /// How many containers got none, because that failed.
    pub failed: u64,
    /// The last container that got none, and the reason.
    pub last_failure: Option<String>,
}

impl fmt::Display for WatcherStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { is_on, attached, failed, last_failure } = self;
        if !is_on && attached + failed == 0 {
            return f.write_str("attach at start: off");
        }
        let state = if *is_on { "on" } else { "off" };
        write!(f, "attach at start: {state}, containers attached: {attached}, failed: {failed}")?;
        last_failure.iter().try_for_each(|last| write!(f, "; the last: {}", last.escape_debug()))
    }
}

/// The watcher of a server. It ends when this is dropped.
#[derive(Debug)]
pub struct Watcher(Arc<Shared>);

/// What the watcher's thread shares with others.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Readable when the state has changed.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    settings: Attach,
    /// All containers are to be attached.
    is_scan_due: bool,
    is_ended: bool,
    /// The containers whose attach has ended.
    ended: Vec<String>,
    status: WatcherStatus,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        // It fails only if the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Watcher {
    /// Starts the watcher. If the settings say so, it attaches all containers that run.
    pub(crate) fn start(
        attacher: Arc<Attacher>,
        hierarchies: &Hierarchies,
        settings: Attach,
    ) -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { state: Mutex::default(), wake });
        let watcher = Self(shared.clone());
        watcher.reconfigure(settings);
        let mounts = watched(hierarchies);
        let run = move || Thread::new(shared, attacher, mounts).run();
        thread::Builder::new().name("watcher".into()).spawn(run)?;
        Ok(watcher)
    }

    /// Applies new settings, and attaches all containers that run.
    pub(crate) fn reconfigure(&self, settings: Attach) {
        self.0.change(|state| {
            state.status.is_on = settings.auto;
            state.settings = settings;
            state.is_scan_due = true;
        });
    }

    /// Attaches all containers that run, as when the files are mounted anew. Does not wait.
    pub(crate) fn attach_all(&self) {
        self.0.change(|state| state.is_scan_due = true);
    }

    /// Returns what it has done.
    pub fn status(&self) -> WatcherStatus {
        self.0.state().status.clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.change(|state| state.is_ended = true);
    }
}

/// Returns the hierarchies in which engines make a cgroup for each container: the unified one, and
/// on cgroup v1 that of the memory controller. crun knows only one of both.
fn watched(hierarchies: &Hierarchies) -> Vec<Mount> {
    let unified = hierarchies.unified.as_ref().map(|(mount, _)| mount);
    let memory = hierarchies.legacy_mount(Controller::Memory);
    let legacy = memory.or_else(|| hierarchies.legacy.first().map(|(_, mount)| mount));
    unified.into_iter().chain(legacy).cloned().collect()
}

/// The watcher's thread.
struct Thread {
    shared: Arc<Shared>,
    attacher: Arc<Attacher>,
    mounts: Vec<Mount>,
    /// `None` while the watcher is off.
    folders: Option<Folders>,
    pending: Pending,
    exclude: Vec<String>,
    machine: Option<Machine>,
    /// When events were lost, and a scan follows.
    scan_due: Option<Instant>,
    last_scan: Instant,
}

impl Thread {
    fn new(shared: Arc<Shared>, attacher: Arc<Attacher>, mounts: Vec<Mount>) -> Self {
        Self {
            shared,
            attacher,
            mounts,
            folders: None,
            pending: Pending::default(),
            exclude: Vec::new(),
            machine: Machine::new(),
            scan_due: None,
            last_scan: Instant::now(),
        }
    }

    fn run(mut self) {
        loop {
            let (is_changed, has_events) = self.wait();
            if is_changed && !self.take_changes() {
                return;
            }
            let now = Instant::now();
            if has_events {
                self.read_events(now);
            }
            self.scan_if_due(now);
            self.look(now);
        }
    }

    /// Waits for something to do: without a limit if no container starts.
    fn wait(&self) -> (bool, bool) {
        let folders = self.folders.as_ref().and_then(Folders::next_due);
        let due = [self.pending.next_due(), self.scan_due, folders].into_iter().flatten().min();
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut polled = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        polled.extend(self.folders.as_ref().map(|folders| PollFd::new(folders, PollFlags::IN)));
        // EINTR is an early look.
        let _ = poll(&mut polled, left.as_ref());
        let is_ready = |at: usize| polled.get(at).is_some_and(|one| !one.revents().is_empty());
        (is_ready(0), is_ready(1))
    }

    /// Applies what other threads have changed. False if the watcher is to end.
    fn take_changes(&mut self) -> bool {
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        let now = Instant::now();
        let (settings, is_scan_due, ended) = {
            let mut state = self.shared.state();
            if state.is_ended {
                return false;
            }
            let is_scan_due = std::mem::take(&mut state.is_scan_due);
            (state.settings.clone(), is_scan_due, std::mem::take(&mut state.ended))
        };
        for path in ended {
            self.pending.end(&path, now);
        }
        self.exclude = settings.exclude;
        if !settings.auto {
            self.folders = None;
            self.scan_due = None;
            self.pending.clear();
        } else if self.folders.is_none() {
            match Folders::new(self.mounts.clone()) {
                Ok(folders) => self.folders = Some(folders),
                Err(errno) => tracing::error!(
                    "containers are not attached when they start: inotify_init1: {errno} (is \
                     fs.inotify.max_user_instances used up?)"
                ),
            }
        }
        if is_scan_due && let Some(folders) = &mut self.folders {
            let found = folders.scan(Report::All, now);
            self.add(found, now);
        }
        true
    }

    fn read_events(&mut self, now: Instant) {
        let Some(folders) = &mut self.folders else { return };
        match folders.read(now) {
            Some(found) => self.add(found, now),
            None => self.scan_due = Some((self.last_scan + BETWEEN_SCANS).max(now)),
        }
    }

    /// Looks for containers whose events were lost, or were not read for a while.
    fn scan_if_due(&mut self, now: Instant) {
        let Some(folders) = &mut self.folders else { return };
        let mut found = folders.resume(now);
        if self.scan_due.is_some_and(|due| due <= now) {
            tracing::info!("events of control groups were lost; looking at all of them");
            (self.scan_due, self.last_scan) = (None, now);
            found.extend(folders.scan(Report::New, now));
        }
        self.add(found, now);
    }

    fn add(&mut self, found: Vec<Found>, now: Instant) {
        for Found { path, folder } in found {
            if is_excluded(&path, &self.exclude) {
                tracing::debug!(cgroup = path, "the container is excluded");
            } else if !self.pending.add(path.clone(), folder, now) {
                tracing::debug!(cgroup = path, "too many containers start; it is not attached");
            }
        }
    }

    /// Looks at the containers whose turn it is.
    fn look(&mut self, now: Instant) {
        let Some(machine) = &self.machine else { return };
        for (path, folders) in self.pending.due(now) {
            if self.pending.is_resting(&path, now) {
                continue;
            }
            let begin = processor_time();
            let seen = look::look(&path, &folders, machine);
            self.pending.charge(&path, processor_time().saturating_sub(begin), Instant::now());
            let ready = match seen {
                Look::Runs(process) => process,
                Look::Gone => {
                    self.pending.remove(&path);
                    continue;
                }
                Look::ReportsMachine(reason) => {
                    tracing::info!(cgroup = path, "the container is left alone: {reason}");
                    self.pending.remove(&path);
                    continue;
                }
                Look::BeingMade(progress, process) => {
                    if self.pending.look_again(&path, progress, now) {
                        continue;
                    }
                    // Such as a container that was created and is started later: its engine has
                    // made its mounts long ago.
                    let Some(process) = process else {
                        tracing::debug!(cgroup = path, "no container has started in it");
                        self.pending.remove(&path);
                        continue;
                    };
                    if let Some(reason) = look::reports_machine(&process, machine) {
                        tracing::info!(cgroup = path, "the container is left alone: {reason}");
                        self.pending.remove(&path);
                        continue;
                    }
                    process
                }
            };
            if self.pending.begin(&path, now) {
                self.attach(path, ready);
            }
        }
    }

    /// Attaches a container on a thread of its own.
    fn attach(&self, path: String, process: Process) {
        let (shared, attacher, name) = (self.shared.clone(), self.attacher.clone(), path.clone());
        let work = move || {
            let done = attacher.attach(process.pid, process.folder.as_fd());
            shared.change(|state| {
                match done {
                    Ok(report) => state.status.attached += u64::from(report.has_changed()),
                    Err(error) => {
                        state.status.failed += 1;
                        let error = output::one_line(&error);
                        state.status.last_failure = Some(format!("{}: {error}", name_of(&name)));
                    }
                }
                state.ended.push(name);
            });
        };
        if let Err(error) = thread::Builder::new().name("attach".into()).spawn(work) {
            tracing::warn!(cgroup = path, "nothing was attached: cannot start a thread: {error}");
            self.shared.change(|state| state.ended.push(path));
        }
    }
}

/// Returns the processor time of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Returns the name of a container, as its engine has it.
fn name_of(path: &str) -> String {
    engines::find(path).map_or_else(|| path.to_owned(), |found| found.name())
}

/// True if a pattern fits the name or the cgroup of a container, or of one around it.
fn is_excluded(path: &str, patterns: &[String]) -> bool {
    engines::all(path).any(|container| {
        let name = container.name();
        let texts = [name.as_str(), container.path];
        patterns.iter().any(|pattern| texts.iter().any(|text| fits(pattern, text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_excludes_a_container_and_those_in_it() {
        let excluded = |path: &str, pattern: &str| is_excluded(path, &[pattern.to_owned()]);
        assert!(excluded("/lxc.payload.ci-7", "ci-*"));
        assert!(excluded("/lxc.payload.ci-7/system.slice/docker-ab.scope", "ci-*"));
        assert!(excluded("/kubepods/burstable/pod1/ab", "/kubepods/*"));
        assert!(excluded("/machine.slice/machine-a\\x2db.scope", "a-b"));
        assert!(!excluded("/lxc.payload.web", "ci-*"));
        assert!(!excluded("/lxc.payload.web", ""));
        assert!(!is_excluded("/lxc.payload.web", &[]));
    }
}
