//! Results are written into the caller's memory only, and only where the caller itself could write.

use std::fs;
use std::process::Command;

use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{command, machine, sandbox};

const ALL: [&str; 2] = ["--intercept", "sysinfo,mknod"];

fn daemon() -> Daemon {
    Daemon::start_at(Place::intercepting("mknod = true\n"))
}

/// What a program says that is not intercepted.
#[track_caller]
fn by_the_kernel(words: &[&str]) -> String {
    command::run(Command::new(machine::program(words[0])).args(&words[1..])).ok()
}

#[test]
fn pages_are_written_as_by_the_kernel() {
    let (daemon, folder) = (daemon(), readable_dir());
    let file = folder.path().join("file");
    for program in machine::runnable(&["memory", "memory-32"]) {
        let kernels = by_the_kernel(&[program, "pages", file.to_str().unwrap()]);
        let script = format!("/mnt/{program} pages /tmp/file");
        assert_eq!(sandbox::run(&daemon, &ALL, &script).ok(), kernels, "{program}");
    }
    daemon.stop().0.ok();
}

#[test]
fn strings_are_read_as_by_the_kernel() {
    let (daemon, folder) = (daemon(), readable_dir());
    for program in machine::runnable(&["memory", "memory-32"]) {
        let nodes = folder.path().join(program);
        fs::create_dir(&nodes).unwrap();
        let kernels = by_the_kernel(&[program, "strings", nodes.to_str().unwrap()]);
        assert!(kernels.starts_with("read-only: ok\n"), "{kernels}");
        if !kernels.contains("no access: EFAULT\n") {
            machine::not_on_this_kernel("memory that system calls cannot access (User-Mode Linux)");
            continue;
        }
        let script = format!("mkdir /tmp/nodes; /mnt/{program} strings /tmp/nodes");
        assert_eq!(sandbox::run(&daemon, &ALL, &script).ok(), kernels, "{program}");
    }
    daemon.stop().0.ok();
}

/// A mapping that is found late in the list: an older kernel is asked for a part of the list only,
/// and answers the call itself beyond that.
#[test]
fn a_program_with_many_mappings_has_an_answer() {
    let daemon = daemon();
    for count in [300, 9000] {
        let said = sandbox::run(&daemon, &ALL, &format!("/mnt/memory many {count}")).ok();
        assert_eq!(said, "ok\n", "{count} gaps");
    }
    daemon.stop().0.ok();
}

/// Another thread executes a program while a call is answered: the same thread id then has the
/// memory of that program.
#[test]
fn a_result_is_not_written_into_another_program() {
    let daemon = daemon();
    let script = format!("/mnt/memory race /mnt/memory {} 1000", 2000 / machine::slowness());
    assert_eq!(sandbox::run(&daemon, &ALL, &script).ok(), "hits=0 failed=0\n");
    daemon.stop().0.ok();
}

#[test]
fn a_result_that_is_written_late_is_not_written_into_another_program() {
    let place = Place::intercepting("mknod = true\n");
    let mut serve = place.serve();
    serve.env("LD_PRELOAD", machine::program("slow.so"));
    let daemon = Daemon::start_below(place, &mut serve);
    let script = format!("/mnt/memory race /mnt/memory {} 3000", 1000 / machine::slowness());
    assert_eq!(sandbox::run(&daemon, &ALL, &script).ok(), "hits=0 failed=0\n");
    let output = daemon.stop().0;
    assert!(output.stderr.contains("writes wait"), "the library has no effect: {output:?}");
    output.ok();
}
