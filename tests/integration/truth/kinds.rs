//! Kinds of memory: locked, huge, names that the kernel keeps. What is shown of each is held
//! against what the container's cgroup counts, and against what a program used.

use std::fs;

use super::container::{Container, MIB, eaten_as, limits};
use crate::harness::cgroup::{self, Cgroup};
use crate::harness::daemon::Daemon;
use crate::harness::machine;
use crate::harness::table::row;

/// A number of the container's cgroup: a file that is a number, or a line of `memory.stat`.
fn counted(cgroup: &Cgroup, name: &str) -> Option<u64> {
    let mut texts = cgroup.dirs().filter_map(|dir| fs::read_to_string(dir.join(name)).ok());
    if let Some(text) = texts.next() {
        return text.trim().parse().ok();
    }
    let mut stats =
        cgroup.dirs().filter_map(|dir| fs::read_to_string(dir.join("memory.stat")).ok());
    let stat = stats.next()?;
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// What a page of the machine has, in bytes.
fn page() -> u64 {
    rustix::param::page_size() as u64
}

#[test]
fn locked_memory_is_unevictable_and_not_available() {
    const LOCKED: u64 = 40 * MIB;
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("locked", limits(200));
    let container = Container::start(&daemon, &cgroup);
    let before = container.meminfo("MemAvailable");
    let _eater = eaten_as(&cgroup, LOCKED, "locked");
    let batch = "pages moved in batches";
    for label in ["Unevictable", "Mlocked"] {
        let shown = container.meminfo(label);
        row(label, "a program locked 40 MiB").because(batch).bytes(shown, LOCKED, 2 * MIB);
    }
    let right = counted(&cgroup, "unevictable").unwrap();
    let shown = container.event("nr_mlock") * page();
    row("vmstat nr_mlock", "the same, as the cgroup counts it")
        .because(batch)
        .bytes(shown, right, MIB);
    let less = before.saturating_sub(container.meminfo("MemAvailable"));
    row("MemAvailable", "less by what is locked").because("its page tables and stack").bytes(
        less,
        LOCKED,
        2 * MIB,
    );
}

#[test]
fn huge_pages_of_a_program_are_counted_as_they_are_shown() {
    const HUGE: u64 = 32 * MIB;
    let mode = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if mode.is_ok_and(|mode| mode.contains("[never]")) || !has_huge_pages() {
        return machine::not_on_this_kernel("transparent huge pages");
    }
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("thp", limits(200));
    let container = Container::start(&daemon, &cgroup);
    let _eater = eaten_as(&cgroup, HUGE, "huge");
    // The machine may have had none left for some.
    let name = if cgroup::memory_is_v2() { "anon_thp" } else { "rss_huge" };
    let right = counted(&cgroup, name).unwrap();
    let shown = container.meminfo("AnonHugePages");
    row("AnonHugePages", "a program asked for 32 MiB of them").bytes(shown, right, 0);
    let size = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").unwrap();
    let size: u64 = size.trim().parse().unwrap();
    let shown = container.event("nr_anon_transparent_hugepages") * size;
    row("vmstat anon huge pages", "the same, times their size").bytes(shown, right, 0);
    if let Some(faults) = counted(&cgroup, "thp_fault_alloc") {
        let shown = container.event("thp_fault_alloc");
        row("vmstat thp_fault_alloc", "the same, as the cgroup counts it").numbers(
            shown as f64,
            faults as f64,
            0.0,
        );
    }
}

fn has_huge_pages() -> bool {
    fs::exists("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").unwrap_or(false)
}

/// Names are kept in slabs that the kernel gives back. cgroup v1 does not tell which those are.
#[test]
fn names_that_the_kernel_keeps_are_slab_and_still_available_on_v2() {
    const NAMES: u64 = 24 * MIB;
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("names", limits(200));
    let container = Container::start(&daemon, &cgroup);
    let (reclaimable, available) =
        (container.meminfo("SReclaimable"), container.meminfo("MemAvailable"));
    let slab = container.meminfo("Slab");
    let _names = eaten_as(&cgroup, NAMES, "names");
    let kernel = |cgroup: &Cgroup| match cgroup::memory_is_v2() {
        true => counted(cgroup, "slab"),
        false => counted(cgroup, "memory.kmem.usage_in_bytes"),
    };
    let Some(right) = kernel(&cgroup).filter(|bytes| *bytes > NAMES / 2) else {
        return machine::not_on_this_kernel("cgroups that account for the names of files");
    };
    let batch = "CPUs summed up every 2 s";
    std::thread::sleep(std::time::Duration::from_secs(3));
    row("Slab", "names of files that are not there").because(batch).bytes(
        container.meminfo("Slab"),
        kernel(&cgroup).unwrap(),
        MIB,
    );
    assert!(container.meminfo("Slab") > slab + NAMES / 2, "{right}");
    if !cgroup::memory_is_v2() {
        return;
    }
    let right = counted(&cgroup, "slab_reclaimable").unwrap();
    row("SReclaimable", "the same").because(batch).bytes(
        container.meminfo("SReclaimable"),
        right,
        MIB,
    );
    assert!(container.meminfo("SReclaimable") > reclaimable + NAMES / 2);
    row("MemAvailable", "the same: names are given back").because("the program itself").bytes(
        container.meminfo("MemAvailable"),
        available,
        3 * MIB,
    );
}
