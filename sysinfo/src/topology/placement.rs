//! Chooses the processors that a container with a quota is shown.
//!
//! Each container has its own order of the machine's processors, and a quota selects the first of
//! the allowed ones. So a larger quota adds processors to those of a smaller one, and a change of
//! the cpuset moves no other processor. The order is that of random numbers (rendezvous hashing)
//! drawn from the container's seed for each processor: each allowed processor has the same chance
//! to be the first. It is followed by its siblings, then by the rest of its cluster, cache, die,
//! node and package: a group has the rank of its first member, so that groups stay together.
//!
//! The order is the same in every process and release: a change here moves running containers.

use std::cmp::Reverse;

use super::{Attribute, CACHE_FILES, CpuAttributes, Form, TOPOLOGY_FILES, Topology, attribute};
use crate::cpuset::CpuSet;
use crate::hash::splitmix64;

/// The groups of a processor, from the largest to the processor itself, each as a number.
pub(super) type Groups = [u32; 9];

impl Topology {
    /// Returns `count` of the allowed processors, in the order of the container with this seed.
    pub fn choose(&self, allowed: &CpuSet, count: usize, seed: u64) -> CpuSet {
        if count >= allowed.len() {
            return allowed.clone();
        }
        let candidate = |cpu| Candidate {
            // A processor without topology is a core of its own.
            groups: self
                .cpu(cpu)
                .map_or([0, 0, 0, 0, 0, 0, 0, cpu, cpu], |attributes| attributes.groups),
            weight: splitmix64(seed, cpu.into()),
        };
        let mut candidates: Vec<_> = allowed.iter().map(candidate).collect();
        let mut chosen = CpuSet::default();
        choose_from(&mut candidates, 0, count, &mut chosen);
        chosen
    }
}

struct Candidate {
    groups: Groups,
    weight: u64,
}

impl Candidate {
    fn cpu(&self) -> u32 {
        self.groups[CPU]
    }
}

/// Index of the processor itself among its groups.
const CPU: usize = size_of::<Groups>() / size_of::<u32>() - 1;

/// Chooses the first `count` candidates, which are in the same groups above this level.
fn choose_from(candidates: &mut [Candidate], level: usize, count: usize, chosen: &mut CpuSet) {
    if count >= candidates.len() {
        candidates.iter().for_each(|candidate| chosen.insert(candidate.cpu()));
        return;
    }
    if level == CPU {
        candidates.sort_unstable_by_key(|candidate| Reverse(candidate.weight));
        candidates[..count].iter().for_each(|candidate| chosen.insert(candidate.cpu()));
        return;
    }
    candidates.sort_unstable_by_key(|candidate| candidate.groups[level]);
    let together = |a: &Candidate, b: &Candidate| a.groups[level] == b.groups[level];
    let mut groups: Vec<_> = candidates.chunk_by_mut(together).collect();
    groups.sort_unstable_by_key(|group| Reverse(group.iter().map(|member| member.weight).max()));
    let mut left = count;
    for group in groups {
        let from_here = left.min(group.len());
        choose_from(group, level + 1, from_here, chosen);
        left -= from_here;
        if left == 0 {
            break;
        }
    }
}

/// Returns the groups of a processor, each named by its lowest member. Of several file names for
/// one kind of group, the kernel has at least one.
pub(super) fn groups(attributes: &CpuAttributes) -> Groups {
    let lowest = |names: &[&str]| {
        let set = names.iter().find_map(|name| set(&attributes.topology, TOPOLOGY_FILES, name))?;
        set.iter().next()
    };
    let group = |names: &[&str]| lowest(names).unwrap_or(0);
    [
        group(&["drawer_siblings_list"]),
        group(&["book_siblings_list"]),
        group(&["package_cpus_list", "core_siblings_list"]),
        attributes.node.unwrap_or(0),
        group(&["die_cpus_list"]),
        last_cache(attributes).and_then(|set| set.iter().next()).unwrap_or(0),
        group(&["cluster_cpus_list"]),
        lowest(&["core_cpus_list", "thread_siblings_list"]).unwrap_or(attributes.number),
        attributes.number,
    ]
}

/// Returns the processors that share the last-level cache.
fn last_cache(attributes: &CpuAttributes) -> Option<&CpuSet> {
    let level = |files: &[(usize, Attribute)]| match attribute(files, at(CACHE_FILES, "level")?)? {
        Attribute::Value(level) => level.parse::<u32>().ok(),
        _ => None,
    };
    let last = attributes.caches.iter().max_by_key(|cache| level(&cache.files))?;
    set(&last.files, CACHE_FILES, "shared_cpu_list")
}

fn set<'f>(
    files: &'f [(usize, Attribute)],
    names: &[(&str, Form)],
    name: &str,
) -> Option<&'f CpuSet> {
    match attribute(files, at(names, name)?)? {
        Attribute::List(set) => Some(set),
        _ => None,
    }
}

fn at(names: &[(&str, Form)], name: &str) -> Option<usize> {
    names.iter().position(|file| file.0 == name)
}
