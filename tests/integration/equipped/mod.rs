//! Containers that engines equip by themselves: with a hook in the bundle (runc, crun), in hooks.d
//! (Podman), or in common.conf.d (LXC), or by the wrapper of the runtime, and no option of ambit on
//! the command line. Docker, containerd and systemd-nspawn have rows with the watcher too.
//!
//! Each engine prints a row of what a user sees. Start reading at [`is_equipped`].

mod engine;
mod hook;
mod inside;
mod lxc;
mod pod;
mod rows;
mod served;
mod wrapped;

use std::io::Write as _;
use std::time::Instant;

use rustix::process::Signal;

use crate::harness::command::{self, quiet};
use crate::harness::daemon::{Daemon, Place};
use crate::harness::machine;
use engine::{Container, DEVICE, Engine};

/// The container's memory in KiB.
const MEMORY: u64 = 160 << 10;

/// A daemon whose sockets are those of a socket unit.
#[track_caller]
fn daemon() -> Daemon {
    daemon_at(Place::new())
}

#[track_caller]
fn daemon_at(place: Place) -> Daemon {
    let store = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/fd_store.py");
    let mut serve = quiet(store);
    serve.args(["--preserve", "--sockets"]).arg(place.runtime());
    serve.args([machine::AMBIT, "serve", "--config"]).arg(place.config());
    Daemon::start_below(place, &mut serve)
}

/// Stops the daemon and its mounts, and leaves the sockets to the stand-in for the socket unit.
#[track_caller]
fn stop(daemon: &mut Daemon) {
    daemon.place().ambit(&["stop", "--release"]).ok();
    let until = Instant::now() + machine::patience(20);
    while !daemon.log().contains("fd_store: stopped with") {
        assert!(Instant::now() < until, "{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(!daemon.place().is_mounted());
}

/// Starts it again.
#[track_caller]
fn start_again(daemon: &Daemon) {
    daemon.signal(Signal::USR1);
    let until = Instant::now() + machine::patience(20);
    while daemon.try_status().is_none() {
        assert!(Instant::now() < until, "the daemon does not come back");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The script of a container: what its first process sees, and then nothing more.
const FIRST: &str = "/mnt/ambit-verify --memory 160M --cpus 1 >/tmp/verify 2>&1; echo verify $?
grep -e ✗ /tmp/verify; busybox free -k; echo nproc $(nproc); echo ready; exec sleep 600";

/// The same later, by another process.
const LATER: &str = "/mnt/ambit-verify --memory 160M --cpus 1 >/tmp/later 2>&1; echo verify $?
grep -e ✗ /tmp/later; busybox free -k; echo nproc $(nproc)";

/// What is seen without ambit's files.
const TOTAL: &str = "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/total \\1/p' /proc/meminfo";

/// The number of ambit's mounts.
const MOUNTS: &str = "echo mounts $(grep -c fuse.ambit /proc/self/mountinfo)";

fn all_files() -> u64 {
    // Kernels without NUMA or SMP lack folders, and containers have only what the kernel has.
    let exists = |point: &&str| std::path::Path::new("/").join(point).exists();
    ambit_fuse::bind_points().filter(exists).count() as u64
}

/// The number behind a word at the start of a line.
fn number(said: &str, word: &str) -> Option<u64> {
    let mut lines = said.lines().map(str::split_whitespace);
    lines.find_map(|mut words| {
        words.next().filter(|first| *first == word).and(words.next()?.parse().ok())
    })
}

/// A row of the table: what was looked at, and whether it was right.
struct Row {
    engine: String,
    /// `None` for what its engine does not have.
    cells: Vec<(&'static str, Option<bool>)>,
    said: String,
}

impl Row {
    fn check(&mut self, name: &'static str, is_right: bool, said: &str) {
        if !is_right {
            self.said += &format!("\n--- {name}:\n{said}\n");
        }
        self.cells.push((name, Some(is_right)));
    }

    fn lacks<const COUNT: usize>(&mut self, names: [&'static str; COUNT]) {
        self.cells.extend(names.map(|name| (name, None)));
    }

    fn numbers(&mut self, names: [&'static str; 3], said: &str) {
        self.check(names[0], number(said, "verify") == Some(0), said);
        self.check(names[1], number(said, "Mem:") == Some(MEMORY), said);
        self.check(names[2], number(said, "nproc") == Some(1), said);
    }

    #[track_caller]
    fn print(self) {
        let mark = |right: &Option<bool>| right.map_or("–", |right| if right { "✓" } else { "✗" });
        let cells = self.cells.iter().map(|(name, right)| format!(" {name} {}", mark(right)));
        let row = format!("{}\n{}", self.engine, cells.collect::<String>());
        // Around the capture of output.
        let _ = writeln!(std::io::stderr(), "\n{row}");
        assert!(self.cells.iter().all(|(_, right)| *right != Some(false)), "{row}{}", self.said);
    }
}

#[track_caller]
fn is_equipped(engine: Engine) {
    engine.needs();
    let mut daemon = daemon();
    let mut row = Row { engine: engine.to_string(), cells: Vec::new(), said: String::new() };
    let mut container = Container::start(engine, &daemon, FIRST);
    container.wait_for("ready");
    row.numbers(["verify", "free", "nproc"], &container.printed());
    let said = container.exec(&format!("{LATER}; {MOUNTS}"));
    let is_right = number(&said, "verify") == Some(0)
        && number(&said, "nproc") == Some(1)
        && number(&said, "mounts") == Some(all_files());
    row.check("exec", is_right, &said);
    let pid = container.pid().to_string();
    let detached = daemon.place().ambit(&["detach", &pid]).ok();
    let said = container.exec(&format!("{TOTAL}; {MOUNTS}"));
    let is_right = number(&said, "total").is_some_and(|total| total != MEMORY)
        && number(&said, "mounts") == Some(0);
    row.check("detach", is_right, &format!("{detached}{said}"));
    container.end();

    stop(&mut daemon);
    let mut container =
        Container::start(engine, &daemon, &format!("{TOTAL}; echo ready; sleep 600"));
    container.wait_for("ready");
    let said = container.printed();
    let is_plain = number(&said, "total").is_some_and(|total| total != MEMORY);
    start_again(&daemon);
    let attached = daemon.place().ambit(&["attach", &container.pid().to_string()]).ok();
    let later = container.exec(LATER);
    let is_right = number(&later, "verify") == Some(0) && number(&later, "nproc") == Some(1);
    row.check("down", is_plain && is_right, &format!("{said}{attached}{later}"));
    container.end();
    row.print();
    daemon.place().ambit(&["stop", "--release"]).ok();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), "unmounted");
}

#[test]
fn lxc_equips_its_containers() {
    is_equipped(Engine::Lxc);
}

#[test]
fn runc_equips_its_containers() {
    is_equipped(Engine::Runc);
}

#[test]
fn crun_equips_its_containers() {
    is_equipped(Engine::Crun);
}

#[test]
fn the_wrapper_of_runc_equips_its_containers() {
    is_equipped(Engine::WrappedRunc);
}

#[test]
fn the_wrapper_of_crun_equips_its_containers() {
    is_equipped(Engine::WrappedCrun);
}

#[test]
fn podman_with_runc_equips_its_containers() {
    is_equipped(Engine::PodmanRunc);
}

#[test]
fn podman_with_crun_equips_its_containers() {
    is_equipped(Engine::PodmanCrun);
}

/// The whole of `/proc` is visible in a container with `unmask=ALL`, and nested containers need that.
#[test]
fn nested_containers_work_where_podman_hides_nothing() {
    const NESTED: &str = "unshare -Urpf --mount-proc true 2>/dev/null && echo nested 1
        grep -c fuse.ambit /proc/self/mountinfo; echo ready; sleep 600";
    for engine in [Engine::PodmanRunc, Engine::PodmanCrun] {
        engine.needs();
        let daemon = Daemon::start();
        for (options, nested) in [(&["--security-opt=unmask=ALL"][..], Some(1)), (&[], None)] {
            let mut container = Container::start_with(engine, daemon.place(), options, NESTED);
            container.wait_for("ready");
            let said = container.printed();
            assert_eq!(number(&said, "nested"), nested, "{engine} {options:?}: {said}");
            assert!(said.contains(&format!("{}\n", all_files())), "{engine} {options:?}: {said}");
            container.end();
        }
    }
}

#[test]
fn podman_equips_a_container_that_has_the_device() {
    let engine = Engine::PodmanRunc;
    engine.needs();
    let daemon = Daemon::start();
    let script = format!("{MOUNTS}; {TOTAL}; echo ready; sleep 600");
    let mut container = Container::start_with(engine, daemon.place(), &[DEVICE], &script);
    container.wait_for("ready");
    let said = container.printed();
    assert_eq!(number(&said, "mounts"), Some(all_files()), "{said}");
    assert_eq!(number(&said, "total"), Some(MEMORY), "{said}");
    container.end();
}

/// A script that is `ambit oci-runtime` with this runtime and this daemon.
fn wrapper(place: &Place, runtime: &str) -> String {
    format!(
        "#!/bin/sh\nexec {} oci-runtime --config {} --runtime {runtime} \"$@\"\n",
        machine::AMBIT,
        place.config().display()
    )
}

/// `ambit drop-in KIND` for this program and this daemon.
#[track_caller]
fn drop_in(place: &Place, kind: &str) -> String {
    let mut print = quiet(machine::AMBIT);
    print.args(["drop-in", kind, "--program", machine::AMBIT, "--config"]).arg(place.config());
    command::run(&mut print).ok()
}
