//! Requests that a server takes while it dies.

use std::fs;
use std::sync::Barrier;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{faults, resends};
use crate::harness::command::quiet;
use crate::harness::daemon::{Daemon, Place};
use crate::harness::machine;
use crate::harness::text::kb;

const READERS: usize = 8;
const TURNS: usize = 20;

/// A thread that is killed in read(2) on the device takes a request still, and the kernel writes that
/// only to pages that need no fault (`ambit_fuse::PrefaultAllocator`). After a fork of the server each
/// page needs one until it is written: a server that has read nothing since it started is killed.
/// Buffers have mappings of their own here; in the heap, their pages may have been written since.
#[test]
fn no_read_fails_at_a_kill_of_a_server_that_has_read_nothing_yet() {
    if !resends() {
        return;
    }
    let all = sched_getaffinity(None).unwrap();
    let processor = (0..CpuSet::MAX_CPU).find(|&number| all.is_set(number)).unwrap();
    let place = Place::new();
    // On one processor, requests are there before a killed thread runs.
    let mut serve = quiet("taskset");
    serve.args(["--cpu-list", &processor.to_string(), machine::AMBIT, "serve", "--config"]);
    serve.arg(place.config()).env("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1048576");
    let daemon = Daemon::start_below(place, &mut serve);
    let meminfo = daemon.file("proc/meminfo");
    let begin = Barrier::new(READERS + 1);
    let arrive = || {
        let mut one = CpuSet::new();
        one.set(processor);
        sched_setaffinity(None, &one).unwrap();
        begin.wait();
    };
    let kill = |server| kill_process(server, Signal::KILL).unwrap();
    for _ in 0..TURNS {
        let last = server(&daemon, None);
        kill(last);
        let server = server(&daemon, Some(last));
        std::thread::scope(|threads| {
            let readers = [(); READERS].map(|()| {
                threads.spawn(|| {
                    arrive();
                    fs::read_to_string(&meminfo)
                })
            });
            threads.spawn(|| {
                // The readers wait by then.
                std::thread::sleep(Duration::from_millis(50));
                arrive();
                kill(server);
            });
            for reader in readers {
                let text = reader.join().unwrap().unwrap();
                assert_eq!(kb(&text, "MemTotal"), machine::memory_kb());
            }
        });
    }
}

fn children(pid: u32) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
}

/// Waits for the server that follows this one, and returns it. `ambit status` would have it read a
/// request (statfs), so it is told by the thread that it starts last.
fn server(daemon: &Daemon, last: Option<Pid>) -> Pid {
    let is_serving = |pid: &Pid| {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut names = threads.map(|one| fs::read_to_string(one.path().join("comm")));
        Some(*pid) != last && names.any(|name| name.is_ok_and(|name| name == "keeper\n"))
    };
    let find = || children(daemon.pid()).into_iter().find(is_serving);
    faults::wait_until("no server serves", || find().is_some());
    find().unwrap()
}
