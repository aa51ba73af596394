//! All attacks at once, by a container of a tenth of a processor and 64 MiB: another container must
//! not notice. `make bench-hostile` runs it for a minute (`AMBIT_HOSTILE_SECONDS`), and prints what it
//! costs.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{ALL, Attack, CALLS};
use crate::harness::daemon::Daemon;
use crate::harness::{command, machine, sandbox};
use crate::survival::survivors;

/// What the attacker runs, all at once: paths and memory that change, calls and mounts that fail,
/// first visits, descriptors and texts that are held, threads that flood.
const ATTACKS: &str = "mkdir c; again() { while :; do \"$@\"; done >/dev/null 2>&1 & }
    again /mnt/hostile flip /tmp ../../../../../../nowhere /run/i/ext4 1000
    again /mnt/hostile change /tmp/c /run/i/squashfs /run/i/ext4 1000
    again /mnt/hostile flood 20 1000
    again /mnt/hostile bytes /tmp/m /run/i/ext4
    again /mnt/hostile marks /tmp/m
    again /mnt/mount_call /run/i/junk m ext4 1
    again /mnt/node_call flood /tmp/c 10 1000
    again sh -c '/mnt/namespaces 50 </dev/null'
    again timeout 1 /mnt/hoarder 20 64 /proc/pressure/cpu
    again timeout 1 /mnt/hoarder 20 0 /proc/stat
    again cat /proc/stat /proc/meminfo /proc/interrupts /proc/vmstat";

/// What the daemon and its processes use.
struct Usage {
    descriptors: usize,
    resident_kb: u64,
    processor: Duration,
}

impl Usage {
    fn of(daemon: &Daemon) -> Self {
        let server = daemon.server_pid();
        Self {
            descriptors: fs::read_dir(format!("/proc/{server}/fd")).unwrap().count(),
            resident_kb: machine::resident_kb(server),
            processor: Duration::from_millis(ticks(daemon.pid()) * 10),
        }
    }
}

/// Returns the processor time of a process, of all below it and of those that have ended, in ticks.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = ambit_kernel::text::stat::fields(&stat).into_iter().flatten().skip(11).take(4);
    let number = |field| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let own: u64 = fields.filter_map(number).sum();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    own + children.split_whitespace().filter_map(|one| one.parse().ok()).map(ticks).sum::<u64>()
}

/// Returns what the other container says of its own calls and reads while something is done.
#[track_caller]
fn meanwhile(daemon: &Daemon, act: impl FnOnce()) -> String {
    let (stop, mut others) = survivors(daemon, 1);
    act();
    fs::write(stop.path().join("stop"), "").unwrap();
    let said = others.remove(0).finish(machine::patience(30)).ok();
    assert!(said.contains(" failures=0 "), "{said}");
    said.lines().last().unwrap_or_default().to_owned()
}

fn attack_for(daemon: &Daemon, folder: &Path, seconds: u64) {
    let images = format!("{}:/run/i", folder.display());
    let limits = ["--cpus", "0.1", "--memory", "64M"];
    let args = [&limits[..], &["--intercept", CALLS, "--bind", &images]].concat();
    let until = Instant::now() + Duration::from_secs(seconds);
    // With so little memory its first process may be killed.
    while let left @ 1.. = until.saturating_duration_since(Instant::now()).as_millis() {
        let left = left / 1000 + 1;
        let script = format!("mkdir /tmp/m; cd /tmp; {ATTACKS}\nsleep {left}; echo over");
        command::run(&mut sandbox::command(daemon, &args, &script));
    }
}

#[test]
fn all_attacks_at_once_do_not_disturb_another_container() {
    let seconds = std::env::var("AMBIT_HOSTILE_SECONDS").ok().and_then(|text| text.parse().ok());
    let attack = Attack::on(ALL);
    let daemon = attack.stage.daemon();
    let quiet = seconds
        .map(|seconds| meanwhile(daemon, || std::thread::sleep(Duration::from_secs(seconds))));
    let before = Usage::of(daemon);
    let attacked = meanwhile(daemon, || {
        attack_for(daemon, attack.stage.folder(), seconds.unwrap_or(2));
    });
    let after = Usage::of(daemon);
    let log = attack.ends();
    let row = |name: &str, first: String, second: String| {
        println!("{name:<36}{first:>12}{second:>12}");
    };
    // The name of the test is on this line.
    println!();
    if let Some(quiet) = quiet {
        row("another container", "quiet".into(), "attacked".into());
        for (name, key) in [
            ("rounds of calls and reads", "rounds"),
            ("calls and reads that failed", "failures"),
            ("99 % took less than, us", "p99_us"),
            ("the longest one, ms", "longest_ms"),
        ] {
            row(name, word(&quiet, key), word(&attacked, key));
        }
    }
    let used = after.processor.saturating_sub(before.processor).as_secs_f64();
    row("the daemon", "before".into(), "after".into());
    row("descriptors", before.descriptors.to_string(), after.descriptors.to_string());
    row("resident memory, kB", before.resident_kb.to_string(), after.resident_kb.to_string());
    row("processor time, s", String::new(), format!("{used:.1}"));
    row("bytes of its log", String::new(), log.len().to_string());
    row("lines of its log", String::new(), log.lines().count().to_string());
}

/// Returns the value of a `key=value` in a line of them.
#[track_caller]
fn word(line: &str, key: &str) -> String {
    let word = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no {key} in {line}")).to_owned()
}
