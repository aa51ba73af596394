//! Killed and replaced again and again.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::unmounted::wait_for_triggers;
use super::upgrade::upgrade;
use super::{faults, keeper, kill_server, next_read, number, resends, survivors};
use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::machine;
use crate::steady::held;

/// What happens to a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    /// The server is killed.
    Server,
    /// The same program takes over as a new one.
    Upgrade,
    /// The keeper is killed, and started again by who holds its descriptors.
    Keeper,
    /// The keeper is stopped for a second.
    Pause,
    /// The server is killed while the configuration file is wrong.
    Mistake,
    /// The brokers are killed.
    Brokers,
    /// Servers are killed while the kernel lets the keeper start no process.
    NoRoom,
    /// The server is killed while the keeper's standard error has no reader.
    Unread,
    /// The overlay is unmounted, once more with the server killed.
    Unmounted,
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story")]
fn nothing_fails_while_servers_are_killed_and_replaced() {
    let containers = number("AMBIT_SURVIVAL_CONTAINERS", 6);
    let mut log = Log::new();
    let mut rooms = Vec::new();
    let daemon = keeper::managed_with_log(Place::intercepting("mknod = true\n"), &log.path());
    let keeper = |daemon: &Daemon| keeper::pid(daemon).cast_unsigned();
    let (stop, running) = survivors(&daemon, usize::try_from(containers).unwrap());
    let mut random = std::process::id().wrapping_mul(2_654_435_761);
    let mut pauses = Vec::new();
    let turns = turns([
        (Blow::Server, number("AMBIT_SURVIVAL_KILLS", 20)),
        (Blow::Upgrade, number("AMBIT_SURVIVAL_UPGRADES", 4)),
        (Blow::Keeper, number("AMBIT_SURVIVAL_KEEPERS", 2)),
        (Blow::Pause, number("AMBIT_SURVIVAL_PAUSES", 2)),
        (Blow::Mistake, number("AMBIT_SURVIVAL_MISTAKES", 2)),
        (Blow::Brokers, number("AMBIT_SURVIVAL_BROKERS", 4)),
        (Blow::NoRoom, number("AMBIT_SURVIVAL_NO_ROOM", 2)),
        (Blow::Unread, number("AMBIT_SURVIVAL_UNREAD", 2)),
        (Blow::Unmounted, number("AMBIT_SURVIVAL_UNMOUNTS", 2)),
    ]);
    let early = held(keeper(&daemon));
    for blow in &turns {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_millis(u64::from(random >> 16) % 200));
        eprintln!("{blow:?}");
        match blow {
            Blow::Upgrade => upgrade(&daemon),
            Blow::Keeper => keeper::kill(&daemon),
            Blow::Pause => {
                let keeper = Pid::from_raw(keeper::pid(&daemon)).unwrap();
                kill_process(keeper, Signal::STOP).unwrap();
                std::thread::sleep(Duration::from_secs(1));
                kill_process(keeper, Signal::CONT).unwrap();
            }
            Blow::Mistake => {
                let config = daemon.place().config();
                let right = fs::read_to_string(&config).unwrap();
                // In one step: a server that starts meanwhile must not read half of it.
                let replace = |text: &str| {
                    let new = config.with_extension("new");
                    fs::write(&new, text).unwrap();
                    fs::rename(&new, &config).unwrap();
                };
                replace(&format!("{right}mistake = 1\n"));
                kill_server(&daemon);
                next_read(&daemon);
                replace(&right);
            }
            Blow::Brokers => faults::kill_all(&faults::children(&daemon, "ambit-broker")),
            Blow::NoRoom => rooms.push(leave_no_room(&daemon, rooms.len())),
            Blow::Unmounted => {
                let (mount, server) = (daemon.place().mount(), daemon.server_pid());
                unmount(&mount, UnmountFlags::DETACH).unwrap();
                wait_for_triggers(&daemon);
                unmount(&mount, UnmountFlags::DETACH).unwrap();
                kill_process(Pid::from_raw(server.cast_signed()).unwrap(), Signal::KILL).unwrap();
                wait_for_triggers(&daemon);
            }
            Blow::Unread => {
                log.close();
                kill_server(&daemon);
                next_read(&daemon);
                log.open();
            }
            Blow::Server => {
                kill_server(&daemon);
                let killed = Instant::now();
                next_read(&daemon);
                pauses.push(killed.elapsed());
            }
        }
    }
    let late = held(keeper(&daemon));
    fs::write(stop.path().join("stop"), "").unwrap();
    let mut failed = Vec::new();
    for one in running {
        let output = one.finish(machine::patience(60)).ok();
        if !output.contains(" failures=0 ") {
            failed.push(output);
        }
    }
    pauses.sort();
    let median = pauses.get(pauses.len() / 2).copied().unwrap_or_default();
    eprintln!(
        "{} blows, {} of {containers} containers failed; from SIGKILL of the server to the next answered read: median {median:?}, longest {:?}",
        turns.len(),
        failed.len(),
        pauses.last()
    );
    eprintln!("kB and descriptors of the keeper: {early:?} before, {late:?} after");
    // A standby or a new program that is just started has two.
    assert!(
        late.0 <= early.0 + early.0 / 8 + 2048 && late.1 <= early.1 + 8,
        "the keeper went from {early:?} to {late:?}"
    );
    if resends() {
        let (count, texts) = (failed.len(), failed.join("\n"));
        assert!(failed.is_empty(), "{count} of {containers}: {texts}\n{}", log.text());
    } else {
        eprintln!("unavoidable before Linux 6.9: {}\n{}", failed.join("\n"), log.text());
        assert!(
            failed.iter().all(|text| !text.contains("goes back") && !text.contains("wrong memory"))
        );
    }
    keeper::release(daemon);
}

/// Has the keeper start nothing for a moment, in which the server and the one that follows it die.
/// It stays in the cgroup that is returned; what it started before is not limited.
fn leave_no_room(daemon: &Daemon, number: usize) -> Cgroup {
    let cgroup = Cgroup::new(&format!("keeper-{number}"), Limits::default());
    let limited = cgroup.dirs().find(|dir| dir.join("pids.max").exists());
    let Some(dir) = limited else {
        machine::not_on_this_kernel("a limit of processes");
        return cgroup;
    };
    fs::write(dir.join("cgroup.procs"), keeper::pid(daemon).to_string()).unwrap();
    fs::write(dir.join("pids.max"), "0").unwrap();
    kill_server(daemon);
    next_read(daemon);
    kill_server(daemon);
    std::thread::sleep(Duration::from_millis(300));
    fs::write(dir.join("pids.max"), "max").unwrap();
    next_read(daemon);
    cgroup
}

/// The log of a daemon: a FIFO with as much as there is room for, which can be without a reader.
struct Log {
    folder: tempfile::TempDir,
    reader: Option<File>,
}

impl Log {
    fn new() -> Self {
        let mut log = Self { folder: readable_dir(), reader: None };
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, log.path(), mode).unwrap();
        log.open();
        log
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn open(&mut self) {
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut options = File::options();
        self.reader = Some(options.read(true).custom_flags(nonblocking).open(self.path()).unwrap());
    }

    fn close(&mut self) {
        self.reader = None;
    }

    /// What was not read yet.
    fn text(&mut self) -> String {
        let mut text = Vec::new();
        // It ends with EAGAIN while the daemon runs.
        let _ = self.reader.as_mut().map(|reader| reader.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.text());
        }
    }
}

/// All blows, each kind spread over the whole time.
fn turns<const KINDS: usize>(counts: [(Blow, u64); KINDS]) -> Vec<Blow> {
    let spread = |(blow, count): (Blow, u64)| {
        (0..count).map(move |index| ((2 * index + 1) * 1_000_000 / count, blow))
    };
    let mut all: Vec<_> = counts.into_iter().flat_map(spread).collect();
    all.sort();
    all.into_iter().map(|(_, blow)| blow).collect()
}
