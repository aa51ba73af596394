//! Attach under readers, and for many containers: no read fails, and nothing is left.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::harness::command::start;
use crate::harness::daemon::Daemon;
use crate::harness::host::Host;
use crate::harness::machine;
use crate::harness::text::kb;

use super::container::{FRESH, MEMORY_KB, Unshared};

/// Sends a question to the control socket, and returns the answer.
#[track_caller]
pub(super) fn ask(daemon: &Daemon, question: &str) -> serde_json::Value {
    let mut stream = UnixStream::connect(daemon.socket("control.sock")).unwrap();
    writeln!(stream, "{question}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(answer.get("error").is_none(), "{question}: {answer}");
    answer
}

#[test]
fn readers_see_old_or_new_and_never_an_error() {
    const ROUNDS: usize = 200;
    let daemon = Daemon::start();
    let container = Unshared::start("readers", FRESH);
    let (ours, machine) = (MEMORY_KB, machine::memory_kb());
    let reader = |command: &str, fits: &str| {
        format!(
            "n=0; while [ ! -e /dev/end ]; do {command} || {{ echo failed; exit 1; }}; \
             case $got in {fits}) n=$((n+1));; *) echo \"odd: $got\"; exit 1;; esac; done; echo $n"
        )
    };
    let possible = machine::possible_processors() - 1;
    let scripts = [
        reader("read -r key got unit </proc/meminfo", &format!("{ours}|{machine}")),
        reader("read -r got rest </proc/stat", "cpu"),
        reader("read -r got </sys/devices/system/cpu/possible", &format!("0|0-{possible}")),
    ];
    let mut readers: Vec<_> =
        scripts.iter().map(|script| start(&mut container.command(script))).collect();
    for _ in 0..ROUNDS {
        ask(&daemon, &format!("attach {}", container.pid));
        ask(&daemon, &format!("detach {}", container.pid));
    }
    container.exec("echo >/dev/end").ok();
    while let Some(reader) = readers.pop() {
        let reads = reader.finish(machine::patience(30)).ok();
        assert!(reads.trim().parse::<u64>().unwrap() > 0, "{reads}");
    }
}

/// How many containers there are; `AMBIT_TEST_ATTACHED` may ask for more.
fn how_many() -> usize {
    std::env::var("AMBIT_TEST_ATTACHED").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

#[test]
fn nothing_is_left_of_many_containers() {
    let daemon = Daemon::start();
    let container = |number: usize| {
        let container = Unshared::start(&format!("many-{number}"), FRESH);
        let begin = Instant::now();
        let answer = ask(&daemon, &format!("attach {}", container.pid));
        let time = begin.elapsed();
        let targets = answer["targets"].as_array().unwrap();
        let covered = |one: &&serde_json::Value| one[1] == "Covered";
        assert!(targets.iter().filter(covered).count() > 10, "{answer}");
        assert_eq!(kb(&container.exec("cat /proc/meminfo").ok(), "MemTotal"), MEMORY_KB);
        time
    };
    // The first ones fill caches.
    for number in 0..10 {
        container(number);
    }
    let processes = [daemon.server_pid(), broker(&daemon)];
    let memory = || processes.map(machine::resident_kb);
    let (before, early) = (Host::with(&daemon), memory());
    let mut times: Vec<Duration> = (0..how_many()).map(container).collect();
    let again = || assert!(container(0) > Duration::ZERO);
    before.is_as_it_was(&daemon, again);
    let late = memory();
    for (early, late) in early.into_iter().zip(late) {
        assert!(late <= early + early / 10 + 1024, "grew from {early} to {late} kB");
    }
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    // Around the capture of output.
    let _ = writeln!(
        std::io::stderr(),
        "\n    {} containers: attach median {:.1?}, p99 {:.1?}; server {} kB, broker {} kB",
        times.len(),
        at(50),
        at(99),
        late[0],
        late[1]
    );
}

/// The broker of the daemon.
#[track_caller]
fn broker(daemon: &Daemon) -> u32 {
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    let children = std::fs::read_to_string(children).unwrap();
    let is_broker = |pid: &&str| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "ambit-broker"
    };
    let broker = children.split_whitespace().find(is_broker);
    broker.unwrap_or_else(|| panic!("no broker among {children}")).parse().unwrap()
}
