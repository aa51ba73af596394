//! Affinity under a quota: every way to ask gives as many processors as the container is shown,
//! and every way to set keeps working inside that mask, because it is a part of the kernel's.

use crate::harness::daemon::Daemon;
use crate::harness::sandbox::{Questions, Survey};
use crate::harness::text::{list_length, value};
use crate::harness::{machine, sandbox};

const QUESTIONS: Questions<'_> = &[
    // coreutils and busybox.
    ("nproc", "nproc"),
    ("busybox", "busybox nproc"),
    // What CPython calls process_cpu_count(), and multiprocessing's pools.
    ("python", "/usr/bin/python3 -c 'import os; print(len(os.sched_getaffinity(0)))'"),
    // Go's runtime, Rust's std and libuv count the mask of the raw call, in 64 and 32 bits.
    ("raw", "/mnt/affinity | sed -n s/^count=//p"),
    ("raw-musl", "/mnt/affinity-musl | sed -n s/^count=//p"),
    ("node", "node -p 'os.availableParallelism()'"),
    // nginx on musl: sysconf(_SC_NPROCESSORS_ONLN) is the mask there.
    ("sysconf-musl", "/mnt/sysconf-musl | sed -n s/^online=//p"),
    // A child, a thread and another process's mask, asked by its number.
    ("by-pid", "taskset -cp $$ | sed 's/.*: //'"),
    ("init", "taskset -cp 1 | sed 's/.*: //'"),
    ("openmp", "OMP_NUM_THREADS= nproc"),
];

#[test]
fn every_way_to_ask_counts_the_quota() {
    let daemon = Daemon::start();
    for (cpus, wanted) in [("0.5", 1), ("1", 1), ("1.5", machine::processors().min(2))] {
        let survey = Survey::run(&daemon, &["--cpus", cpus], QUESTIONS);
        for (name, _) in QUESTIONS {
            let answer = survey.get(name).trim();
            let count = match *name {
                "by-pid" | "init" => list_length(answer),
                _ => answer.parse().unwrap_or_else(|_| panic!("{name}: {answer}")),
            };
            assert_eq!(count, wanted, "{name} under --cpus {cpus}");
        }
    }
}

#[test]
fn pinning_works_inside_the_mask_that_is_shown() {
    let daemon = Daemon::start();
    let script = "mask=$(taskset -cp $$ | sed 's/.*: //'); first=${mask%%[-,]*}
        echo shown=$mask
        echo pinned=$(taskset -c $first sh -c 'taskset -cp $$' | sed 's/.*: //')
        echo counted=$(taskset -c $first nproc)
        taskset -cp $mask $$ >/dev/null && echo whole=$(taskset -cp $$ | sed 's/.*: //')
        /usr/bin/python3 -c 'import os
mask = os.sched_getaffinity(0)
for cpu in mask:
    os.sched_setaffinity(0, {cpu}); assert os.sched_getaffinity(0) == {cpu}
os.sched_setaffinity(0, mask); assert os.sched_getaffinity(0) == mask
try: os.sched_setaffinity(0, {1000})
except OSError as error: print(f\"refused={error.errno}\")'
        taskset -c 1000 true 2>/dev/null || echo beyond=refused";
    for cpus in ["0.5", "1.5"] {
        let said = sandbox::run(&daemon, &["--cpus", cpus], script).ok();
        let shown = value(&said, "shown");
        let first = shown.split(['-', ',']).next().unwrap();
        assert_eq!(value(&said, "pinned"), first, "{said}");
        assert_eq!(value(&said, "counted"), "1", "{said}");
        assert_eq!(value(&said, "whole"), shown, "{said}");
        assert_eq!((value(&said, "refused"), value(&said, "beyond")), ("22", "refused"), "{said}");
    }
}
