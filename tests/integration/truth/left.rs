//! Available memory: memory that others use under the same limit or on the machine, a container
//! with nested cgroups, a controller that is enabled late, kills, huge pages.
//!
//! Each situation is made for real. What is shown is held against what the kernel counts and, where
//! it is about available memory, against whether a program that uses it lives.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::container::{Container, MIB, eat, eaten, limits};
use crate::harness::cgroup::{self, Cgroup, Limits};
use crate::harness::command::{Running, quiet, run};
use crate::harness::daemon::Daemon;
use crate::harness::machine;
use crate::harness::table::row;
use crate::harness::text::{first_number, kb, list_length};

/// Of what is said to be available, a program can have this much more or less: the kernel charges
/// page tables and stacks, and each processor keeps some pages in stock.
const PERCENT: u64 = 5;

/// What is shown as available is there, and not much more: a program that uses a little less lives,
/// and so do `others`; with a little more the kernel kills it. What it had by then was available.
#[track_caller]
fn is_there(what: &str, container: &Container<'_>, cgroup: &Cgroup, others: &mut [Running]) {
    let available = container.meminfo("MemAvailable");
    let less = eaten(cgroup, available * (100 - PERCENT) / 100);
    std::thread::sleep(Duration::from_millis(200));
    assert!(!others.iter_mut().any(Running::ended), "{what}: {available} are not there");
    drop(less);
    let mut more = eat(cgroup, available * (100 + PERCENT) / 100);
    let until = Instant::now() + machine::patience(30);
    while !more.ended() {
        assert!(Instant::now() < until, "{what}: more than {available} is there");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!others.iter_mut().any(Running::ended), "{what}: another program was killed");
    let (had, _) = more.printed();
    let had = had.lines().last().and_then(|line| line.parse::<u64>().ok()).expect(&had) * MIB;
    row("MemAvailable", what).because("page tables, CPUs' stock").bytes(
        available,
        had,
        available * PERCENT / 100,
    );
}

#[test]
fn available_memory_can_be_used_under_an_own_limit() {
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("alone", limits(200));
    let container = Container::start(&daemon, &cgroup);
    is_there("alone under 200 MiB", &container, &cgroup, &mut []);
}

#[test]
fn memory_of_a_sibling_under_the_same_limit_is_not_available() {
    let daemon = Daemon::start();
    let slice = Cgroup::new("slice", limits(300));
    let (own, busy) = (slice.child("own", limits(400)), slice.child("busy", Limits::default()));
    let container = Container::start(&daemon, &own);
    let before = container.meminfo("MemAvailable");
    assert!(before > 280 * MIB, "{before}");
    let mut others = [eaten(&busy, 180 * MIB)];
    let (total, free) = (container.meminfo("MemTotal"), container.meminfo("MemFree"));
    assert_eq!(total, 300 * MIB);
    assert!(free <= container.meminfo("MemAvailable"), "{free}");
    is_there("a sibling uses 180 of 300 MiB", &container, &own, &mut others);
}

#[test]
fn a_container_with_nested_cgroups_is_accounted_as_a_whole() {
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("divided", limits(200));
    let container = Container::start(&daemon, &cgroup);
    let before = container.meminfo("MemAvailable");
    let _init = cgroup.divide("init");
    let app = cgroup.child("app", Limits::default());
    std::thread::sleep(Duration::from_millis(600));
    let mut others = [eaten(&app, 120 * MIB)];
    let after = container.meminfo("MemAvailable");
    row("MemAvailable", "divided: less by what a child eats")
        .because("its page tables and stack")
        .bytes(before - after, 120 * MIB, 3 * MIB);
    row("MemTotal", "divided: the limit of the whole").bytes(
        container.meminfo("MemTotal"),
        200 * MIB,
        0,
    );
    is_there("divided, a child uses 120 of 200 MiB", &container, &app, &mut others);
}

/// An engine inside a container that gives it no cgroup namespace of its own: the limits that count
/// are those of the inner one.
#[test]
fn a_shared_cgroup_namespace_does_not_hide_a_cgroup_of_its_own() {
    let daemon = Daemon::start();
    let outer = Cgroup::new("outer", limits(200));
    let inner = outer.child("inner", limits(100));
    let file = daemon.file("proc/meminfo");
    // The parent, which is the engine, has the namespace of the container that it runs in.
    let script = format!("unshare --pid --fork --kill-child cat {}", file.display());
    let dirs: Vec<_> = inner.dirs().map(|dir| dir.display().to_string()).collect();
    let script = format!(
        "unshare --cgroup unshare --pid --fork --kill-child sh -c '
             for d in {}; do echo 0 >$d/cgroup.procs || exit 99; done; exec {script}'",
        dirs.join(" ")
    );
    let text = run(quiet("sh").args(["-c", &script])).ok();
    assert_eq!(kb(&text, "MemTotal"), 100 << 10);
}

#[test]
fn memory_of_other_processes_of_the_machine_is_not_available() {
    let daemon = Daemon::start();
    // None of it can be swapped out, where cgroups say so.
    let no_swap = Limits { swap: Some(0), ..Limits::default() };
    let cgroup = Cgroup::new("unlimited", no_swap);
    let container = Container::start(&daemon, &cgroup);
    let kernel = || kb(&fs::read_to_string("/proc/meminfo").unwrap(), "MemAvailable") << 10;
    // A guest is filled to a half; natively the machine is others' as well, and stays as full as it
    // is.
    let is_guest = machine::slowness() > 1;
    let full = Cgroup::new("full", no_swap);
    let mut others = eaten(&full, if is_guest { kernel() / 2 } else { 64 * MIB });
    // Other programs of the machine come and go meanwhile: one look of some has to agree.
    let looks = (0..20).map(|_| {
        let (before, shown, after) = (kernel(), container.meminfo("MemAvailable"), kernel());
        (shown, before.max(after))
    });
    let agrees = |&(shown, most): &(u64, u64)| shown.abs_diff(most) <= most / 20;
    let (shown, after) = looks.into_iter().find(agrees).expect("what the machine has");
    assert!(container.meminfo("MemFree") < machine::memory_kb() << 10);
    if is_guest {
        // With more the kernel's own estimate is put to the test, which is low on purpose.
        let _less = eaten(&cgroup, shown * (100 - PERCENT) / 100);
        std::thread::sleep(Duration::from_millis(200));
        assert!(!others.ended(), "{shown} are not there");
    }
    row("MemAvailable", "no limit, others use the machine").because("others come and go").bytes(
        shown,
        after,
        after / 20,
    );
}

#[test]
fn a_controller_that_is_enabled_late_is_seen() {
    if !cgroup::memory_is_v2() {
        return machine::not_on_this_kernel("memory on cgroup v2, where controllers are enabled");
    }
    let daemon = Daemon::start();
    let parent = Cgroup::new("late", Limits::default());
    let own = parent.divide("own");
    let container = Container::start(&daemon, &own);
    let memory = machine::memory_kb() << 10;
    assert_eq!(container.meminfo("MemTotal"), memory);
    for dir in parent.dirs() {
        fs::write(dir.join("cgroup.subtree_control"), "+memory").unwrap();
        fs::write(dir.join("own/memory.max"), "104857600").unwrap();
    }
    container.wait_for_total(100 * MIB);
    let total = container.meminfo("MemTotal");
    row("MemTotal", "memory controller enabled late").bytes(total, 100 * MIB, 0);
    for dir in parent.dirs() {
        fs::write(dir.join("cgroup.subtree_control"), "-memory").unwrap();
    }
    container.wait_for_total(memory);
}

#[test]
fn kills_for_want_of_memory_are_counted() {
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("killed", limits(64));
    let container = Container::start(&daemon, &cgroup);
    assert_eq!(container.event("oom_kill"), 0);
    for kills in 1..=2 {
        let killed = eat(&cgroup, 128 * MIB).finish(machine::patience(30));
        assert_eq!(killed.status, 137, "{killed:?}");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(container.event("oom_kill"), kills);
    }
    row("vmstat oom_kill", "two programs killed by the limit").numbers(
        container.event("oom_kill") as f64,
        2.0,
        0.0,
    );
}

#[test]
fn huge_pages_of_the_machine_are_not_free_memory() {
    const POOL: &str = "/proc/sys/vm/nr_hugepages";
    // Natively the pool is the machine's, which is not ours to change.
    if machine::slowness() == 1 || !Path::new(POOL).exists() {
        return machine::not_on_this_kernel("a pool of huge pages that a test may fill");
    }
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("huge", Limits::default());
    let container = Container::start(&daemon, &cgroup);
    let promised = |container: &Container<'_>| {
        (container.meminfo("CommitLimit") - container.meminfo("SwapTotal")) * 2
    };
    let (total, before) = (container.meminfo("MemTotal"), promised(&container));
    assert!(before.abs_diff(total) <= 2048, "{before} of {total}");
    fs::write(POOL, "32").unwrap();
    let pool = kb(&fs::read_to_string("/proc/meminfo").unwrap(), "Hugetlb") << 10;
    assert!(pool > 0, "no huge page is to be had");
    let (free, after) = (container.meminfo("MemFree"), promised(&container));
    fs::write(POOL, "0").unwrap();
    assert!((total - pool).abs_diff(after) <= 2048, "{after} of {total} less {pool}");
    assert!(free <= total - pool, "{free} of {total} less {pool}");
    row("CommitLimit, doubled", "a pool of huge pages on the machine")
        .because("whole pages are halved")
        .bytes(after, total - pool, 2048);
}

#[test]
fn memory_of_nodes_that_a_container_is_not_bound_to_is_not_available() {
    let list = fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    if list_length(if list.trim().is_empty() { "0" } else { &list }) < 2
        || !machine::has_controller("cpuset")
    {
        return machine::not_on_this_kernel("memory on several nodes (`qemu -n` has two)");
    }
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("bound", Limits { swap: Some(0), ..Limits::default() });
    for mems in cgroup.dirs().map(|dir| dir.join("cpuset.mems")).filter(|mems| mems.exists()) {
        fs::write(mems, "0").unwrap();
    }
    let container = Container::start(&daemon, &cgroup);
    let node = fs::read_to_string("/sys/devices/system/node/node0/meminfo").unwrap();
    let node = node.replace("Node 0 ", "");
    let shown = container.read("sys/devices/system/node/node0/meminfo").replace("Node 0 ", "");
    assert_eq!(container.meminfo("MemTotal"), kb(&node, "MemTotal") << 10);
    assert_eq!(kb(&shown, "MemTotal"), kb(&node, "MemTotal"));
    let available = container.meminfo("MemAvailable");
    assert!(available < kb(&node, "MemTotal") << 10);
    let _less = eaten(&cgroup, available * (100 - PERCENT) / 100);
    row("MemTotal", "bound to one of two nodes").bytes(
        container.meminfo("MemTotal"),
        kb(&node, "MemTotal") << 10,
        0,
    );
}

/// Tools make pid namespaces inside containers. The container is still the same.
#[test]
fn a_pid_namespace_inside_a_container_is_a_part_of_it() {
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("parts", limits(200));
    let container = Container::start(&daemon, &cgroup);
    std::thread::sleep(Duration::from_secs(3));
    let (before, part) =
        (first_number(&container.read("proc/uptime")), inner(&container, &cgroup, None));
    let after = first_number(&container.read("proc/uptime"));
    assert!((before..=after).contains(&part), "{part} is not in {before}..{after}");
    row("uptime", "a pid namespace inside the container").because("between two looks").numbers(
        part,
        before,
        after - before,
    );
    let status = daemon.status();
    let inits = status["containers"].as_array().unwrap().iter().map(|one| &one["init_pid"]);
    assert_eq!(inits.filter(|init| !init.is_null()).count(), 1, "{status}");
    // One that was given a cgroup of its own is a container of its own.
    let init = cgroup.divide("init");
    let own = inner(&container, &init, Some(&cgroup.child("own", Limits::default())));
    assert!(own < part, "{own} after {part}");
}

/// The uptime that is shown in a new pid namespace inside a container. It is made by a process in
/// one cgroup, and its first process is moved to another.
#[track_caller]
fn inner(container: &Container<'_>, from: &Cgroup, to: Option<&Cgroup>) -> f64 {
    let to: Vec<_> = to.iter().flat_map(|to| to.dirs()).map(|dir| dir.to_str().unwrap()).collect();
    let script = format!(
        "for d in {}; do echo 0 >$d/cgroup.procs || exit 99; done; cat {}",
        to.join(" "),
        container.daemon.file("proc/uptime").display()
    );
    let enter = "exec nsenter --target $INIT --pid --cgroup unshare --pid --fork sh -c \"$SCRIPT\"";
    let text = run(from.run(enter).env("INIT", &container.init).env("SCRIPT", script)).ok();
    first_number(&text)
}
