//! `ambit-verify` in containers with and without ambit. That it finds nothing wrong under each kind
//! of limit is a row of the matrix.

use serde_json::Value;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{quiet, run};
use crate::harness::daemon::Daemon;
use crate::harness::sandbox::PROGRAMS;
use crate::harness::{machine, sandbox};

const MIB: u64 = 1 << 20;

/// The rows that contradict something.
fn contradictions(said: &Value) -> Vec<&Value> {
    said["rows"].as_array().unwrap().iter().filter(|row| row["result"] == "contradicts").collect()
}

#[test]
fn a_sandbox_shows_exactly_the_limits_that_it_was_given() {
    let daemon = Daemon::start();
    let verify = format!("{PROGRAMS}/ambit-verify --memory 256M --cpus 1");
    // The status of the container is that of the last one.
    let script = format!("{verify} --junit=/tmp/junit && cat /tmp/junit && {verify}");
    let args = ["--memory", "256M", "--cpus", "0.5"];
    let said = sandbox::run(&daemon, &args, &script).ok();
    assert!(said.contains("✗ 0 contradict"), "{said}");
    assert!(said.contains("failures=\"0\""), "{said}");
    assert!(!said.contains("\n✗"), "{said}");
    let more = format!("{PROGRAMS}/ambit-verify --memory 512M");
    let said = sandbox::run(&daemon, &args, &more);
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.stdout.contains("less than 512 MiB (--memory)"), "{said:?}");
}

#[test]
fn a_container_without_ambit_contradicts_its_limits() {
    let limits = Limits { memory: Some(64 * MIB), quota: Some(50_000), ..Limits::default() };
    let cgroup = Cgroup::new("verified", limits);
    let verify = machine::program("ambit-verify").display().to_string();
    let script = format!("exec unshare --mount-proc --pid --fork {verify} --json");
    let said = run(&mut cgroup.run(&script));
    assert_eq!(said.status, 1, "{said:?}");
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    let found = contradictions(&said);
    let of = |reader: &str| {
        let row = found.iter().find(|row| row["reader"] == reader);
        row.and_then(|row| row["reason"].as_str()).unwrap_or_else(|| panic!("{reader}: {said:#}"))
    };
    let reason = of("/proc/meminfo MemTotal");
    assert!(reason.starts_with("/proc/meminfo shows the machine's "), "{reason}");
    assert!(reason.contains("the limit is 64 MiB (memory."), "{reason}");
    assert!(reason.ends_with(": nothing covers it"), "{reason}");
    assert!(of("sysinfo(2) totalram").ends_with(": no seccomp filter answers the call"));
    // A guest has booted a moment ago, so that its uptime is not told from a container's.
    if machine::slowness() == 1 {
        assert!(of("/proc/uptime").starts_with("the machine's, "));
    }
    if machine::processors() > 1 && machine::has_controller("cpu") {
        assert!(of("sched_getaffinity(2)").contains("the limit is 1 processor (cpu."));
    }
}

#[test]
fn the_machine_itself_is_consistent() {
    let program = machine::program("ambit-verify");
    let said = run(quiet(program.to_str().unwrap()).arg("--json"));
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    // Natively the tests have a pid namespace, whose uptime and pressure are not the machine's.
    let mut own = vec!["uptime", "pressure"];
    if machine::missing_kb() > 0 {
        machine::not_on_this_kernel("zones that have all of MemTotal");
        own.extend(["memory size", "memory free"]);
    }
    let found = contradictions(&said);
    assert!(found.iter().all(|row| own.iter().any(|own| row["subject"] == *own)), "{found:#?}");
}
