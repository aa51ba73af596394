//! Limits and usage of any size, set in any order, with and without swap accounting, read from
//! files as the kernel writes them: what is shown is consistent under every policy.
#![allow(clippy::unwrap_used, reason = "a test fails where something is missing")]

use std::fs;
use std::path::Path;

use ambit_sysinfo::hierarchy::Hierarchies;
use ambit_sysinfo::host::{Host, HostTexts};
use ambit_sysinfo::membership::Membership;
use ambit_sysinfo::policy::{MemoryLimit, SwapPolicy};
use ambit_sysinfo::sample::Sample;
use ambit_sysinfo::source::Source;
use ambit_sysinfo::view::{Memory, Swap};
use ambit_sysinfo::{Options, StatSet, derive};
use proptest::prelude::*;

const V2: &[u8] = b"30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
const V1: &[u8] = b"31 1 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

fn host() -> Host {
    Host::parse(HostTexts {
        meminfo: b"MemTotal: 1048576 kB\nSwapTotal: 524288 kB\nSwapFree: 500000 kB\n",
        ..HostTexts::default()
    })
}

fn put(root: &Path, file: &str, text: &str) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn sample(mounts: &[u8], cgroup: &[u8], root: &Path, memory_limit: MemoryLimit) -> Sample {
    let hierarchies = Hierarchies::from_mountinfo(mounts, root).unwrap();
    let mut sample = Sample::default();
    let options = Options { memory_limit, ..Options::default() };
    let mut source = Source::new(&hierarchies, &Membership::parse(cgroup), &options);
    source.sample(StatSet::BASE, &mut sample, &mut Vec::new()).unwrap();
    sample
}

/// Derives what is shown, and asserts the invariants.
fn shown(sample: &Sample) -> (Memory, Swap) {
    let host = host();
    let memory = derive::memory(sample, &host);
    assert!(memory.free <= memory.available && memory.available <= memory.total);
    assert!(memory.free + memory.used <= memory.total);
    assert!(memory.total > 0 && memory.total <= host.memory_total);
    for policy in [SwapPolicy::None, SwapPolicy::Host, SwapPolicy::Limit] {
        let swap = derive::swap(sample, &host, policy);
        assert!(swap.free <= swap.total && swap.total <= host.swap_total, "{policy:?}");
        assert!(swap.cached <= swap.total - swap.free, "{policy:?}");
        assert!(swap.zswapped <= swap.total - swap.free, "{policy:?}");
        assert!(swap.zswap <= memory.used, "{policy:?}");
    }
    (memory, derive::swap(sample, &host, SwapPolicy::Limit))
}

/// Sizes from 0 to more than any machine has, with pairs that are close to each other.
fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![0..=3_u64, 0..=1_u64 << 31, (0..=1024_u64).prop_map(|mib| mib << 20), any::<u64>()]
}

fn word(limit: Option<u64>) -> String {
    limit.map_or_else(|| "max\n".to_owned(), |bytes| format!("{bytes}\n"))
}

/// The rows that swap and available memory are made of.
fn rows(prefix: &str, names: &[&str], values: &[u64]) -> String {
    names.iter().zip(values).map(|(name, value)| format!("{prefix}{name} {value}\n")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn on_v2(
        levels in prop::collection::vec(
            [prop::option::of(bytes()), prop::option::of(bytes()), prop::option::of(bytes())], 1..4),
        usage in bytes(),
        swapped in prop::option::of(bytes()),
        stat in prop::array::uniform8(bytes()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut cgroup = "sys/fs/cgroup".to_owned();
        put(dir.path(), "sys/fs/cgroup/cgroup.controllers", "memory\n");
        for [max, high, swap] in &levels {
            cgroup += "/c";
            put(dir.path(), &format!("{cgroup}/memory.max"), &word(*max));
            put(dir.path(), &format!("{cgroup}/memory.high"), &word(*high));
            if swapped.is_some() {
                put(dir.path(), &format!("{cgroup}/memory.swap.max"), &word(*swap));
            }
        }
        put(dir.path(), &format!("{cgroup}/memory.current"), &format!("{usage}\n"));
        if let Some(swapped) = swapped {
            put(dir.path(), &format!("{cgroup}/memory.swap.current"), &format!("{swapped}\n"));
        }
        let names = ["anon", "file", "active_file", "inactive_file", "slab_reclaimable",
            "swapcached", "zswap", "zswapped"];
        put(dir.path(), &format!("{cgroup}/memory.stat"), &rows("", &names, &stat));
        let path = format!("0::{}\n", cgroup.strip_prefix("sys/fs/cgroup").unwrap());
        let of = |limit| shown(&sample(V2, path.as_bytes(), dir.path(), limit));
        let ((max, swap), (high, _)) = (of(MemoryLimit::Max), of(MemoryLimit::High));
        let tightest = |column: usize| levels.iter().filter_map(|level| level[column]).min();
        let machine = host().memory_total;
        let total = |limit: Option<u64>| match limit.unwrap_or(machine).min(machine) {
            0 => machine,
            total => total,
        };
        prop_assert_eq!(max.total, total(tightest(0)));
        let both = [tightest(0), tightest(1)];
        prop_assert_eq!(high.total, total(both.into_iter().flatten().min()));
        let wanted = swapped.map_or(0, |_| tightest(2).unwrap_or(u64::MAX).min(host().swap_total));
        prop_assert_eq!(swap.total, wanted);
        let machine = 500_000 << 10;
        prop_assert_eq!(swap.free, wanted.saturating_sub(swapped.unwrap_or(0)).min(machine));
    }

    /// Available memory is the smallest rest of any level: its limit, less what is charged there
    /// and cannot be reclaimed.
    #[test]
    fn available_is_what_the_tightest_level_leaves(
        mut levels in prop::collection::vec(
            (prop::option::of(1..=2048_u64), 0..=700_u64, 0..=700_u64), 1..5),
        v1: bool,
    ) {
        // Each level is also charged for those below it.
        for at in (1..levels.len()).rev() {
            let (_, hard, cache) = levels[at];
            levels[at - 1].1 += hard;
            levels[at - 1].2 += cache;
        }
        let dir = tempfile::tempdir().unwrap();
        let base = if v1 { "sys/fs/cgroup/memory" } else { "sys/fs/cgroup" };
        let tightest = levels.iter().filter_map(|level| level.0).min();
        put(dir.path(), "sys/fs/cgroup/cgroup.controllers", "memory\n");
        let (mut cgroup, mut least) = (String::new(), u64::MAX);
        for &(limit, hard, cache) in &levels {
            cgroup += "/c";
            let file = |name: &str, text: String| {
                put(dir.path(), &format!("{base}{cgroup}/{name}"), &text);
            };
            let (limit, hard, cache) = (limit.map(|mib| mib << 20), hard << 20, cache << 20);
            let used = hard + cache;
            if v1 {
                let shown = |limit: Option<u64>| limit.unwrap_or(9_223_372_036_854_771_712);
                file("memory.limit_in_bytes", format!("{}\n", shown(limit)));
                file("memory.usage_in_bytes", format!("{used}\n"));
                let tightest = shown(tightest.map(|mib| mib << 20));
                file("memory.stat", format!(
                    "hierarchical_memory_limit {tightest}\ntotal_cache {cache}\n\
                     total_inactive_file {cache}\n"));
            } else {
                file("memory.max", word(limit));
                file("memory.current", format!("{used}\n"));
                file("memory.stat", format!("file {cache}\ninactive_file {cache}\n"));
            }
            if let Some(limit) = limit {
                least = least.min(limit.saturating_sub(hard));
            }
        }
        let (_, hard, cache) = *levels.last().unwrap();
        let (mounts, path) = if v1 { (V1, format!("4:memory:{cgroup}\n")) }
            else { (V2, format!("0::{cgroup}\n")) };
        let (memory, _) = shown(&sample(mounts, path.as_bytes(), dir.path(), MemoryLimit::Max));
        let used = ((hard + cache) << 20).min(memory.total);
        let own = memory.total - used + (cache << 20).min(used);
        prop_assert_eq!(memory.available, own.min(least), "{:?}", levels);
        prop_assert_eq!(memory.free, (memory.total - used).min(memory.available));
    }

    #[test]
    fn on_v1(
        usage in bytes(), limit in bytes(), both in prop::option::of((bytes(), bytes())),
        swappiness in 0..3_u64, stat in prop::array::uniform4(bytes()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = "sys/fs/cgroup/memory/c";
        let file = |name: &str, text: String| put(dir.path(), &format!("{cgroup}/{name}"), &text);
        file("memory.usage_in_bytes", format!("{usage}\n"));
        file("memory.swappiness", format!("{swappiness}\n"));
        let names = ["cache", "active_file", "inactive_file", "swapcached"];
        let mut text = rows("total_", &names, &stat);
        text += &format!("hierarchical_memory_limit {limit}\n");
        if let Some((used, limit)) = both {
            file("memory.memsw.usage_in_bytes", format!("{used}\n"));
            text += &format!("hierarchical_memsw_limit {limit}\n");
        }
        file("memory.stat", text);
        let sample = sample(V1, b"4:memory:/c\n", dir.path(), MemoryLimit::High);
        let (memory, swap) = shown(&sample);
        prop_assert_eq!(memory.used, usage.min(memory.total));
        match both {
            None => prop_assert_eq!((swap.total, swap.free), (0, 0), "swap is not accounted"),
            Some((used, _)) if swappiness == 0 => {
                prop_assert!(swap.total <= used.saturating_sub(usage), "what was swapped before");
            }
            Some(_) => {}
        }
    }
}
