//! What a container may leave behind on the host, counted before and after: mounts, loop devices,
//! processes, control groups, descriptors of the daemon.
//!
//! Tolerated is only what the daemon keeps for a while and then closes by itself: descriptors of
//! files of control groups that are gone, up to [`KEPT`] for each of its processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::daemon::{Daemon, mounts};
use super::{cgroup, machine};

/// How many descriptors more than before a process of the daemon may have.
const KEPT: usize = 12;

/// A moment of the host.
#[derive(Debug)]
pub(crate) struct Host {
    things: BTreeSet<String>,
    /// Of each process of the daemon.
    descriptors: Vec<usize>,
}

impl Host {
    /// Now, or when the daemon has come to rest: it is still starting a standby when it serves.
    pub(crate) fn with(daemon: &Daemon) -> Self {
        let until = Instant::now() + machine::patience(10);
        while !has_standby(daemon) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut things: BTreeSet<_> = mounts().lines().map(str::to_owned).collect();
        let (processes, ours) = processes(daemon);
        things.extend(processes);
        things.extend(loop_devices());
        things.extend(groups().iter().map(|group| format!("cgroup {}", group.display())));
        let descriptors = ours.iter().map(|pid| descriptors(pid)).collect();
        Self { things, descriptors }
    }

    /// Waits until nothing is there that was not there at this moment. `sandbox` runs one, because
    /// the next sandbox is what removes control groups of one that was killed.
    #[track_caller]
    pub(crate) fn is_as_it_was(&self, daemon: &Daemon, sandbox: impl Fn()) {
        let until = Instant::now() + machine::patience(15);
        loop {
            for _ in 0..20 {
                let now = Self::with(daemon);
                let new: Vec<_> = now.things.difference(&self.things).collect();
                let grown = now.descriptors.len() > self.descriptors.len()
                    || now.descriptors.iter().zip(&self.descriptors).any(|(n, b)| *n > b + KEPT);
                if new.is_empty() && !grown {
                    return;
                }
                assert!(
                    Instant::now() < until,
                    "left over: {new:#?}\ndescriptors: {:?}, before {:?}",
                    now.descriptors,
                    self.descriptors
                );
                std::thread::sleep(Duration::from_millis(20));
            }
            sandbox();
        }
    }
}

/// True if two servers have threads: the one that serves and the standby.
fn has_standby(daemon: &Daemon) -> bool {
    let (_, ours) = processes(daemon);
    let threads =
        |pid: &String| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    ours.iter().filter(|pid| threads(pid) > 1).count() == 2
}

/// All processes but the kernel's own, and which of them are the daemon's: a keeper, a server, a
/// standby and the broker of each, in the order of their numbers.
fn processes(daemon: &Daemon) -> (Vec<String>, Vec<String>) {
    let (mut all, mut ours) = (Vec::new(), Vec::new());
    let config = daemon.place().config().display().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let text = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let status = text("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        if !pid.starts_with(|c: char| c.is_ascii_digit())
            || status.is_empty()
            || pid == "2"
            || field("PPid:") == "2"
            // The first process of the machine is to wait for it, which may be this very program.
            || (field("PPid:") == "1" && field("State:").starts_with('Z'))
        {
            continue;
        }
        let line = text("cmdline").replace('\0', " ");
        all.push(format!("process {pid} {} {} {line}", field("Name:"), field("State:")));
        let is_broker = line.starts_with("ambit-broker");
        if is_broker || line.contains(" serve ") && line.contains(&config) {
            ours.push(pid);
        }
    }
    // What a process is doing does not matter, only whether it is there.
    let all = all.into_iter().map(|line| {
        ["R (running) ", "S (sleeping) ", "D (disk sleep) "]
            .iter()
            .fold(line, |line, state| line.replace(state, ""))
    });
    ours.sort_by_key(|pid| pid.parse::<u32>().unwrap_or(0));
    (all.collect(), ours)
}

fn descriptors(pid: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn loop_devices() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.path());
    let file = |device: PathBuf| {
        let file = fs::read_to_string(device.join("loop/backing_file")).ok()?;
        // Other tests of this machine are none of our business.
        file.contains("ambit-test-").then(|| format!("{} {}", device.display(), file.trim()))
    };
    devices.filter_map(file).collect()
}

/// All control groups of this machine.
fn groups() -> Vec<PathBuf> {
    let base = cgroup::base();
    let top = |hierarchy: &cgroup::Hierarchy| hierarchy.root().join(base.trim_start_matches('/'));
    let mut folders: Vec<_> = cgroup::hierarchies().iter().map(top).collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
        found.push(folder);
    }
    found
}
