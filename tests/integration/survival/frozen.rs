//! Containers that are frozen.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::upgrade::upgrade;
use super::{next_read, resends, survivors};
use crate::harness::daemon::{Daemon, Place};
use crate::harness::{cgroup, command, machine, sandbox, text};

/// Holds the container of a process still, and lets it go at last: what is frozen cannot even be
/// killed on v1.
struct Freezer {
    pid: u32,
    kind: Kind,
}

enum Kind {
    V1 { place: PathBuf, _made: cgroup::Cgroup },
    V2(PathBuf),
    Signals,
}

impl Freezer {
    fn of(pid: u32) -> Self {
        let kind = Self::v1(pid).or_else(|| Self::v2(pid)).unwrap_or_else(|| {
            machine::not_on_this_kernel("a freezer of control groups; SIGSTOP instead");
            Kind::Signals
        });
        Self { pid, kind }
    }

    /// A cgroup of our own in the hierarchy that does nothing else.
    fn v1(pid: u32) -> Option<Kind> {
        let all = cgroup::hierarchies();
        let freezer = all.iter().find(|one| !one.is_v2() && one.has("freezer"))?;
        let name = format!("frozen-{pid}");
        let made = cgroup::Cgroup::new(&name, cgroup::Limits::default());
        let place = made.dirs().find(|place| place.starts_with(freezer.root()))?.to_owned();
        fs::write(place.join("cgroup.procs"), pid.to_string()).unwrap();
        Some(Kind::V1 { place, _made: made })
    }

    /// The cgroup in which the container is, and we are not.
    fn v2(pid: u32) -> Option<Kind> {
        let all = cgroup::hierarchies();
        let root = all.iter().find(|one| one.is_v2())?.root();
        let path = |who: &str| {
            let text = fs::read_to_string(format!("/proc/{who}/cgroup")).unwrap();
            Some(text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned())
        };
        let (its, ours) = (path(&pid.to_string())?, path("self")?);
        let place = root.join(&its);
        (!Path::new(&ours).starts_with(&its) && place.join("cgroup.freeze").exists())
            .then_some(Kind::V2(place))
    }

    fn freeze(&self) {
        let (is_frozen, seen) = match &self.kind {
            Kind::V1 { place, .. } => {
                fs::write(place.join("freezer.state"), "FROZEN").unwrap();
                ("FROZEN", place.join("freezer.state"))
            }
            Kind::V2(place) => {
                fs::write(place.join("cgroup.freeze"), "1").unwrap();
                ("frozen 1", place.join("cgroup.events"))
            }
            Kind::Signals => {
                self.signal(Signal::STOP);
                ("(stopped)", PathBuf::from(format!("/proc/{}/status", self.pid)))
            }
        };
        let until = Instant::now() + machine::patience(20);
        while !fs::read_to_string(&seen).unwrap().contains(is_frozen) {
            assert!(Instant::now() < until, "it does not freeze");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn thaw(&self) {
        // At the end of a test it may be gone.
        match &self.kind {
            Kind::V1 { place, .. } => drop(fs::write(place.join("freezer.state"), "THAWED")),
            Kind::V2(place) => drop(fs::write(place.join("cgroup.freeze"), "0")),
            Kind::Signals => self.signal(Signal::CONT),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid.cast_signed()).unwrap();
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
    }
}

#[test]
fn a_frozen_container_delays_no_other_and_goes_on() {
    let daemon = Daemon::start_at(Place::intercepting("mknod = true\n"));
    let (stop, mut running) = survivors(&daemon, 2);
    let freezers: Vec<_> =
        running.iter().map(|one| Freezer::of(below(one.pid(), "survivor"))).collect();
    for turn in 0..6u64 {
        // At another moment of the loop each time.
        std::thread::sleep(Duration::from_millis(turn * 7 % 30));
        freezers.iter().for_each(Freezer::freeze);
        assert!(text::kb(&next_read(&daemon), "MemTotal") > 0);
        let others = sandbox::run(&daemon, &["--memory", "32M"], "/mnt/sysinfo").ok();
        assert!(!others.is_empty());
        match turn {
            1 => upgrade(&daemon),
            3 => {
                let mut reload = command::quiet(machine::AMBIT);
                command::run(reload.arg("reload").arg("--config").arg(daemon.place().config()))
                    .ok();
            }
            _ => {}
        }
        freezers.iter().for_each(Freezer::thaw);
    }
    // One goes on, the other is frozen when the server ends.
    freezers[1].freeze();
    fs::write(stop.path().join("stop"), "").unwrap();
    let output = running.remove(0).finish(machine::patience(60)).ok();
    assert!(!resends() || output.contains(" failures=0 "), "{output}");
    let (stopped, left) = daemon.stop();
    assert_eq!((stopped.status, left), (0, "unmounted"), "{stopped:?}");
    freezers[1].thaw();
    assert!(running.remove(0).finish(machine::patience(60)).ok().contains("rounds="));
}

/// The descendant of a process that has this name.
fn below(ancestor: u32, name: &str) -> u32 {
    let status = |pid: u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = |pid: u32| {
        let status = status(pid);
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        line.and_then(|pid| pid.trim().parse().ok()).filter(|pid| *pid > 0)
    };
    let until = Instant::now() + machine::patience(20);
    loop {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = entries.filter_map(|one| one.file_name().to_str()?.parse::<u32>().ok());
        let found = pids.find(|pid| {
            status(*pid).starts_with(&format!("Name:\t{name}\n"))
                && std::iter::successors(Some(*pid), |pid| parent(*pid)).any(|one| one == ancestor)
        });
        if let Some(pid) = found {
            return pid;
        }
        assert!(Instant::now() < until, "no {name} below {ancestor}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
