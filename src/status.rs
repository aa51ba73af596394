//! `ambit status`: what a daemon serves, for which containers, and their numbers. `table.rs` prints
//! it.

mod table;

use std::path::PathBuf;

use ambit_sysinfo::view::Load;
use ambit_sysinfo::{Container, StatSet, View, sysinfo};
use serde::{Deserialize, Serialize};

use crate::attacher::LeftAlone;
use crate::config::Config;
use crate::daemon::{MountsRestored, Origin, Server};
use crate::dead_mounts::DeadMounts;
use crate::dependents::Dependent;
use crate::watcher::{Watcher, WatcherStatus};
use ambit_intercept::timestamp;
use ambit_intercept::{CallCount, ContainerCounts};

/// The state of a daemon. Memory is in bytes, times in seconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process id: the one that runs for as long as the service does.
    pub pid: u32,
    /// The process that answers now.
    pub server_pid: u32,
    /// How often the server was replaced because it had died.
    pub restarts: u64,
    /// How often the broker, which starts the workers, was replaced because it had died.
    #[serde(default)]
    pub broker_restarts: u64,
    /// Its configuration.
    #[serde(default)]
    pub configuration: Configuration,
    /// `v2`, `v1` or `hybrid`.
    pub cgroups: String,
    /// Where the overlay is mounted.
    pub mount: PathBuf,
    /// Requests for files: served and failed. This and what follows is counted since the server
    /// started.
    pub files: Files,
    /// How often the overlay was unmounted, or the connection of its pressure files aborted, and
    /// attached again.
    #[serde(default)]
    pub mounts_restored: MountsRestored,
    /// System calls by name.
    pub calls: Vec<Calls>,
    /// Containers that asked and still exist.
    pub containers: Vec<ContainerStatus>,
    /// Calls of the containers whose filter reports them.
    #[serde(default)]
    pub intercepted: Vec<Intercepted>,
    /// Containers that were attached when they started.
    #[serde(default)]
    pub auto: WatcherStatus,
    /// Containers that were asked for and in which files were left alone.
    #[serde(default)]
    pub left_alone: Vec<LeftAlone>,
    /// Containers that have files of the overlay, and how many attach has mounted. The command looks
    /// for them, not the daemon.
    #[serde(default)]
    pub equipped: Vec<Dependent>,
    /// Files whose server has ended for good. The command looks for them, not the daemon.
    #[serde(default)]
    pub dead: Vec<DeadMounts>,
}

/// The configuration of a daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// When it was read, in UTC.
    pub read: String,
    /// The error of the file on disk, if the daemon runs with an earlier configuration.
    pub wrong: Option<String>,
}

impl Configuration {
    fn of(server: &Server) -> Self {
        let Origin { file, read, instead } = server.origin();
        let wrong = match Config::load(file.as_deref()) {
            Err(error) => Some(format!("the configuration file is wrong: {error}")),
            Ok(_) if instead => Some(
                "servers with the configuration file that is there died early; `ambit reload` \
                 tries it again"
                    .to_owned(),
            ),
            Ok(_) => None,
        };
        Self { read: timestamp::seconds(read), wrong }
    }
}

/// Requests for files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Files opened.
    pub opened: u64,
    /// Requests that failed inside ambit.
    pub failed: u64,
}

/// One intercepted system call.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Its name.
    pub name: String,
    /// Answered by ambit: granted and refused.
    pub answered: u64,
    /// Answered with a result.
    #[serde(default)]
    pub granted: u64,
    /// Answered with an error.
    #[serde(default)]
    pub refused: u64,
    /// Left to the kernel.
    pub continued: u64,
    /// Left to the kernel because something in ambit failed.
    pub failed: u64,
    /// Answers that came when the caller did not wait any more. They are counted above too.
    #[serde(default)]
    pub late: u64,
}

impl From<&CallCount> for Calls {
    fn from(count: &CallCount) -> Self {
        let &CallCount { name, granted, refused, continued, failed, late } = count;
        let (name, answered) = (name.to_owned(), count.served());
        Self { name, answered, granted, refused, continued, failed, late }
    }
}

/// The calls of one container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Intercepted {
    /// Its id: that of an OCI runtime, or the cookie of liblxc, or without one the name in LXC.
    pub container: String,
    /// How often it had exceeded its rate limit, and its next call was delayed.
    pub delayed: u64,
    /// The calls that it has made.
    pub calls: Vec<Calls>,
}

impl From<ContainerCounts> for Intercepted {
    fn from(counts: ContainerCounts) -> Self {
        let ContainerCounts { container, calls, delayed } = counts;
        let calls = calls.iter().map(Calls::from);
        let made = calls.filter(|call| call.answered + call.continued + call.failed > 0);
        Self { container, delayed, calls: made.collect() }
    }
}

/// The groups of numbers of a container that are shown.
const NEEDS: StatSet = sysinfo::NEEDS.and(StatSet::PROCESSORS);

/// One container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The last part of its cgroup.
    pub name: String,
    /// Its cgroup.
    pub cgroup: String,
    /// Its first process, in the daemon's numbering.
    pub init_pid: Option<u32>,
    /// The inode of its pid namespace; 0 for a cgroup of the host.
    pub pid_namespace: u64,
    /// The processors it sees, as a list.
    pub cpus: String,
    /// The number of processors it sees.
    pub cpu_count: usize,
    /// Memory it sees.
    pub memory_total: u64,
    /// Memory that is not charged.
    pub memory_free: u64,
    /// Memory it could have without swapping.
    pub memory_available: u64,
    /// Swap it sees.
    pub swap_total: u64,
    /// Swap it does not use.
    pub swap_free: u64,
    /// Threads.
    pub threads: u64,
    /// Averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Seconds since it started.
    pub uptime: f64,
}

impl Status {
    /// The state of a server in this process.
    #[must_use]
    pub fn of(server: &Server) -> Self {
        let accounting = &server.accounting;
        let mut containers: Vec<_> = accounting
            .containers()
            .iter()
            .filter_map(|container| {
                let view = accounting.groups_of(container, NEEDS).ok()?;
                Some(ContainerStatus::of(container, &view))
            })
            .collect();
        containers.sort_by(|a, b| a.cgroup.cmp(&b.cgroup));
        server.restore_mounts();
        let files = server.overlay.counters();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: server.keeper.service_pid(),
            server_pid: std::process::id(),
            restarts: server.keeper.restarts(),
            broker_restarts: server.keeper.broker_restarts(),
            configuration: Configuration::of(server),
            cgroups: accounting.hierarchies().layout().to_owned(),
            mount: server.mount().to_owned(),
            files: Files { opened: files.opens, failed: files.refused + files.panics },
            mounts_restored: server.mounts_restored(),
            calls: server.notifier.counters().calls.iter().map(Calls::from).collect(),
            containers,
            intercepted: server.notifier.containers().into_iter().map(Into::into).collect(),
            auto: server.watcher.as_ref().map(Watcher::status).unwrap_or_default(),
            left_alone: server.attacher.left_alone(),
            equipped: Vec::new(),
            dead: Vec::new(),
        }
    }
}

impl ContainerStatus {
    fn of(container: &Container, view: &View) -> Self {
        let membership = container.membership();
        let average = |load: u64| {
            let load = load as f64 / f64::from(1u32 << Load::SHIFT);
            (load * 100.0).round() / 100.0
        };
        Self {
            name: membership.name().to_owned(),
            cgroup: membership.path().to_owned(),
            init_pid: container.init_pid(),
            pid_namespace: container.pid_namespace(),
            cpus: view.cpu.online.to_string(),
            cpu_count: view.cpu.online.len(),
            memory_total: view.memory.total,
            memory_free: view.memory.free,
            memory_available: view.memory.available,
            swap_total: view.swap.total,
            swap_free: view.swap.free,
            threads: view.tasks.total,
            load: [view.load.one, view.load.five, view.load.fifteen].map(average),
            uptime: (view.clock.uptime / 10_000_000) as f64 / 100.0,
        }
    }
}

/// Formats bytes with a binary unit and about three digits.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "K", "M", "G", "T", "P"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}{}", units[unit])
    } else {
        format!("{value:.1}{}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_binary_unit_and_three_digits() {
        assert_eq!(size(268_435_456), "256M");
        assert_eq!(size(1_610_612_736), "1.5G");
        assert_eq!(size(0), "0B");
    }
}
