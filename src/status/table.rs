//! The output of `ambit status` for people: lines about the daemon, and tables of its containers.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use ambit_sysinfo::engines;

use super::{Configuration, ContainerStatus, Files, Status, size};
use crate::attacher::LeftAlone;
use crate::containers::short;
use crate::daemon::MountsRestored;
use crate::dependents::Table;

impl ContainerStatus {
    /// The name that other commands take: that of the container, or else of its cgroup.
    fn known_as(&self) -> String {
        let found = engines::find(&self.cgroup).map(|container| container.name());
        short(found.as_deref().unwrap_or(&self.name)).escape_debug().to_string()
    }
}

/// Columns of a name. JSON has it whole.
const NAME: usize = 17;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ambit {} (pid {}), cgroups {}", self.version, self.pid, self.cgroups)?;
        if let Configuration { read, wrong: Some(wrong) } = &self.configuration {
            writeln!(f, "{wrong}; running with the one read at {read}")?;
        }
        match (self.restarts, self.broker_restarts) {
            (0, 0) => {}
            (server, 0) => writeln!(f, "the server died and was replaced {server} times")?,
            (0, broker) => writeln!(f, "the broker died and was replaced {broker} times")?,
            (server, broker) => writeln!(
                f,
                "the server died and was replaced {server} times, the broker {broker} times"
            )?,
        }
        let Files { opened, failed } = self.files;
        writeln!(f, "overlay {}: {opened} files opened, {failed} failed", self.mount.display())?;
        let MountsRestored { count, last } = self.mounts_restored;
        if count > 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let ago = now.as_secs().saturating_sub(last);
            writeln!(
                f,
                "files of the overlay were unmounted and mounted again: {count} times, last {ago} s ago"
            )?;
        }
        writeln!(f, "{}", self.auto)?;
        for call in &self.calls {
            writeln!(
                f,
                "{}: {} answered, {} left to the kernel, {} failed",
                call.name, call.answered, call.continued, call.failed
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<NAME$} {:>7} {:>7} {:>9} {:>6} {:>7} {:>6} {:>8}  CPUS",
            "CONTAINER", "INIT", "MEMORY", "AVAILABLE", "SWAP", "THREADS", "LOAD", "UPTIME"
        )?;
        for c in &self.containers {
            let init = c.init_pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            writeln!(
                f,
                "{:<NAME$.NAME$} {init:>7} {:>7} {:>9} {:>6} {:>7} {:>6.2} {:>8.0}  {}",
                c.known_as(),
                size(c.memory_total),
                size(c.memory_available),
                size(c.swap_total),
                c.threads,
                c.load[0],
                c.uptime,
                c.cpus
            )?;
        }
        if self.intercepted.iter().any(|container| !container.calls.is_empty()) {
            writeln!(
                f,
                "\n{:<NAME$} {:<18} {:>7} {:>7} {:>7} {:>6} {:>4} {:>7}",
                "CONTAINER", "CALL", "GRANTED", "REFUSED", "KERNEL", "FAILED", "LATE", "DELAYED"
            )?;
        }
        for container in &self.intercepted {
            for c in &container.calls {
                writeln!(
                    f,
                    "{:<NAME$.NAME$} {:<18} {:>7} {:>7} {:>7} {:>6} {:>4} {:>7}",
                    short(&container.container).escape_debug().to_string(),
                    c.name,
                    c.granted,
                    c.refused,
                    c.continued,
                    c.failed,
                    c.late,
                    container.delayed
                )?;
            }
        }
        if !self.equipped.is_empty() {
            write!(f, "\n{}", Table(&self.equipped))?;
        }
        if !self.left_alone.is_empty() || !self.dead.is_empty() {
            writeln!(f)?;
        }
        for LeftAlone { pid, report, .. } in &self.left_alone {
            writeln!(f, "left alone: process {pid}: {report}")?;
        }
        self.dead.iter().try_for_each(|dead| writeln!(f, "dead: {dead}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Calls, Intercepted};
    use super::*;
    use crate::watcher::WatcherStatus;

    #[test]
    fn the_tables_fit_a_terminal_and_have_the_names_of_containers() {
        let id = "f".repeat(64);
        let container = |name: &str, cgroup: String| ContainerStatus {
            name: name.into(),
            cgroup,
            init_pid: Some(4_194_304),
            pid_namespace: 1,
            cpus: "0-7".into(),
            cpu_count: 8,
            memory_total: 268_435_456,
            memory_free: 0,
            memory_available: 1_610_612_736,
            swap_total: 0,
            swap_free: 0,
            threads: 12,
            load: [0.5; 3],
            uptime: 1_000_000.0,
        };
        let call = Calls { name: "sched_setscheduler".into(), granted: 7, ..Calls::default() };
        let status = Status {
            version: "0.1.0".into(),
            pid: 1,
            server_pid: 2,
            restarts: 0,
            broker_restarts: 0,
            configuration: Configuration::default(),
            cgroups: "v2".into(),
            mount: "/var/lib/ambit".into(),
            files: Files::default(),
            mounts_restored: MountsRestored::default(),
            calls: vec![call.clone()],
            containers: vec![
                container("lxc.payload.web", "/lxc.payload.web".into()),
                container("docker", format!("/system.slice/docker-{id}.scope")),
                container(&"n".repeat(40), format!("/{}", "n".repeat(40))),
            ],
            intercepted: vec![Intercepted { container: id, delayed: 0, calls: vec![call] }],
            left_alone: Vec::new(),
            auto: WatcherStatus::default(),
            equipped: Vec::new(),
            dead: Vec::new(),
        };
        let text = status.to_string();
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        for name in ["web", "ffffffffffff", "nnnnnnnnnnnnnnnnn"] {
            let has_line = text.lines().any(|line| line.split(' ').next() == Some(name));
            assert!(has_line, "{name}: {text}");
        }
    }
}
