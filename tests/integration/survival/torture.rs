//! Killed and replaced again and again.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::upgrade::upgrade;
use super::{faults, keeper, kill_server, next_read, number, resends, survivors};
use crate::harness::daemon::{Daemon, Place};
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
}

#[test]
fn nothing_fails_while_servers_are_killed_and_replaced() {
    let containers = number("AMBIT_SURVIVAL_CONTAINERS", 6);
    let mut daemon = keeper::managed(Place::intercepting("mknod = true\n"));
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
    ]);
    let early = held(keeper(&daemon));
    for blow in &turns {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_millis(u64::from(random >> 16) % 200));
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
                fs::write(&config, format!("{right}mistake = 1\n")).unwrap();
                kill_server(&daemon);
                next_read(&daemon);
                fs::write(&config, right).unwrap();
            }
            Blow::Brokers => faults::kill_all(&faults::children(&daemon, "ambit-broker")),
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
        assert!(failed.is_empty(), "{count} of {containers}: {texts}\n{}", daemon.log());
    } else {
        eprintln!("unavoidable before Linux 6.9: {}\n{}", failed.join("\n"), daemon.log());
        assert!(
            failed.iter().all(|text| !text.contains("goes back") && !text.contains("wrong memory"))
        );
    }
    keeper::release(daemon);
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
