//! Operations other than a plain read on the files, compared with the kernel's own files.
//! docs/file-behaviour.md lists the allowed differences.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{quiet, run, start};
use crate::harness::daemon::{Daemon, readable_dir};
use crate::harness::machine;

/// Those with content in every container: of an empty file there is less to ask.
const FILES: &[&str] = &[
    "proc/cpuinfo",
    "proc/interrupts",
    "proc/loadavg",
    "proc/meminfo",
    "proc/partitions",
    "proc/pressure/cpu",
    "proc/pressure/memory",
    "proc/slabinfo",
    "proc/softirqs",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "proc/vmstat",
    "proc/zoneinfo",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/cpu0/online",
    "sys/devices/system/cpu/cpu0/topology/core_id",
];

const OTHER_USER: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";

/// The third column of the table, by operation.
fn documented() -> BTreeMap<String, String> {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/file-behaviour.md");
    let table = fs::read_to_string(table).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let names = cells[1].split(',').map(|name| name.trim().trim_matches('`').to_owned());
        let ours = cells[3].to_owned();
        names.map(move |name| (name, ours.clone())).collect::<Vec<_>>()
    })
    .collect()
}

fn answers(output: &str) -> BTreeMap<&str, &str> {
    output.lines().filter_map(|line| line.split_once(' ')).collect()
}

#[test]
fn every_operation_has_the_result_of_the_kernels_file() {
    let (daemon, allowed) = (Daemon::start(), documented());
    let cgroup = Cgroup::new("operations", Limits::default());
    let program = machine::program("operations").display().to_string();
    let mut wrong = String::new();
    let mut compared = 0;
    let there = |file: &&&str| Path::new("/").join(file).exists();
    let files: Vec<_> = FILES.iter().filter(there).copied().collect();
    for user in ["", OTHER_USER] {
        let script = format!(
            "for f in {}; do echo \"@@ $f\"; {user} {program} /$f; echo --; \
             {user} {program} {}/$f; done",
            files.join(" "),
            daemon.place().mount().display()
        );
        let output = run(&mut cgroup.script(&script)).ok();
        let parts: Vec<_> = output.split("@@ ").skip(1).collect();
        assert_eq!(parts.len(), files.len(), "{output}");
        for (part, file) in parts.into_iter().zip(&files) {
            let (kernels, ours) = part.split_once("--\n").unwrap();
            let (kernels, ours) = (answers(kernels), answers(ours));
            assert!(ours.len() > 20, "{file}: {ours:?}");
            for (operation, kernel) in &kernels {
                compared += 1;
                // A file that one of them does not open is not asked more.
                let Some(answer) = ours.get(operation) else {
                    wrong += &format!("{file} {user}: {operation} was not asked of ours\n");
                    continue;
                };
                let may = allowed.get(*operation).map_or("", |may| may);
                let fits = |may: &str| may == *answer || (may == "0444" && answer.contains("444"));
                if answer != kernel && !may.split(", ").any(fits) {
                    wrong += &format!("{file} {user}: {operation} is {answer}, {kernel} there\n");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    eprintln!("{compared} answers compared");
}

/// The kernel remembers that there is nothing to poll.
#[test]
fn polling_sends_no_requests_to_the_daemon() {
    if machine::slowness() > 1 {
        return machine::not_on_this_kernel("counting by ptrace at native speed");
    }
    machine::needs(&["strace", "python3"]);
    let daemon = Daemon::start();
    let dir = readable_dir();
    let trace = dir.path().join("trace");
    let poll = format!(
        "import select\nf = open('{}')\np = select.poll()\np.register(f, select.POLLIN)\n\
         print(p.poll(), flush=True)\ninput()\n\
         for _ in range(5000): p.poll()\nprint('polled', flush=True)\ninput()",
        daemon.file("proc/meminfo").display()
    );
    let (ours, theirs) = std::io::pipe().unwrap();
    let mut python = quiet("python3");
    let mut polling = start(python.args(["-c", &poll]).stdin(ours));
    polling.wait_for("[(", machine::patience(10));
    let mut strace = quiet("strace");
    strace.args(["-f", "-o"]).arg(&trace).args(["-p", &daemon.server_pid().to_string()]);
    let mut tracing = start(&mut strace);
    tracing.wait_for("attached", machine::patience(10));
    std::io::Write::write_all(&mut &theirs, b"\n").unwrap();
    polling.wait_for("polled", machine::patience(10));
    tracing.signal(Signal::INT);
    tracing.finish(machine::patience(10));
    drop(theirs);
    let calls = fs::read_to_string(&trace).unwrap().lines().count();
    assert!(calls < 500, "{calls} system calls of the daemon for 5000 polls");
}

/// Files that only the host's root may read cannot be read inside, not even by root there.
#[test]
fn files_of_the_hosts_root_cannot_be_read_inside() {
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("leaks", Limits { memory: Some(64 << 20), ..Limits::default() });
    let read = |user: &str, file: &str| {
        let path = daemon.file(file).display().to_string();
        run(&mut cgroup.script(&format!("{user} cat {path}")))
    };
    let refused = read(OTHER_USER, "proc/slabinfo");
    assert!(refused.status != 0 && refused.stdout.is_empty(), "{refused:?}");
    assert!(refused.stderr.contains("Permission denied"), "{refused:?}");
    let slabs = read("", "proc/slabinfo").ok();
    assert_eq!(slabs.lines().count(), 2, "only the header: {slabs}");
    for user in ["", OTHER_USER] {
        let partitions = read(user, "proc/partitions").ok();
        let disks = partitions.lines().skip(2).count();
        assert_eq!(disks, 0, "a container that used no disk sees {partitions}");
        let zones = read(user, "proc/zoneinfo").ok();
        let present: u64 = zones
            .lines()
            .filter_map(|line| line.trim().strip_prefix("present"))
            .map(|pages| pages.trim().parse::<u64>().unwrap())
            .sum();
        assert!(present * 4 <= 64 << 10, "{present} pages in 64 MiB:\n{zones}");
        let vmstat = read(user, "proc/vmstat").ok();
        let value = |name: &str| -> u64 {
            let line = vmstat.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {vmstat}")).trim().parse().unwrap()
        };
        assert!(value("nr_free_pages ") * 4 <= 64 << 10, "{vmstat}");
        assert!(value("nr_anon_pages ") * 4 <= 64 << 10, "{vmstat}");
        let host = fs::read_to_string("/proc/vmstat").unwrap();
        let hosts = host.lines().find_map(|line| line.strip_prefix("pgfault ")).unwrap();
        assert!(value("pgfault ") < hosts.parse::<u64>().unwrap() / 2, "{vmstat}");
    }
}
