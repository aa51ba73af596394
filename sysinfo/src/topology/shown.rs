//! Cuts the machine's topology to what one view shows.
//!
//! A node is shown if one of its processors is, or if it is in the container's `cpuset.mems`. The
//! memory of a container is divided among the shown nodes that it may use, in proportion to their
//! memory and without a remainder: the nodes add up to what `/proc/meminfo` shows, unless that
//! exceeds the memory of the shown nodes. No number of a hidden processor or node may be shown.

use super::{CpuAttributes, NODE_LISTS, NodeAttributes, Topology};
use crate::cpuset::CpuSet;
use crate::policy::PossibleCpus;
use crate::view::{Origin, View};

impl View {
    /// Returns the topology of the machine.
    pub fn topology(&self) -> &Topology {
        &self.host.topology
    }

    /// True if this processor is shown. On the machine itself, offline processors are shown too.
    pub fn shows_cpu(&self, cpu: u32) -> bool {
        let is_host = self.origin == Origin::Host;
        self.cpu.online.contains(cpu) || (is_host && self.topology().cpu(cpu).is_some())
    }

    /// Returns the possible processors: those that a thread of the container can run on. A quota
    /// limits time only; the kernel runs the container on all processors of its cpuset, and
    /// programs with a table entry for each processor index it by these numbers.
    pub fn possible_cpus(&self) -> &CpuSet {
        match self.cpu.possible {
            PossibleCpus::View => &self.cpu.online,
            // The kernel has no file `possible`.
            PossibleCpus::Machine if self.topology().possible.is_empty() => &self.host.online,
            PossibleCpus::Machine => &self.topology().possible,
        }
    }

    /// Returns the possible nodes: those that a thread of the container can run on.
    pub fn possible_nodes(&self) -> CpuSet {
        let is_it = |list: &&(usize, CpuSet)| NODE_LISTS.get(list.0) == Some(&"possible");
        match (self.cpu.possible, self.topology().node_lists.iter().find(is_it)) {
            (PossibleCpus::Machine, Some((_, nodes))) => nodes.clone(),
            _ => self.shown_nodes().map(|node| node.number).collect(),
        }
    }

    /// Returns what is shown for this affinity mask: as many processors as the container is shown,
    /// first those that are shown, then others in the container's own order. Never empty unless the
    /// mask is.
    pub fn affinity_of(&self, mask: &CpuSet) -> CpuSet {
        let shown = self.shown_of(mask);
        let missing = self.cpu.online.len().max(1).saturating_sub(shown.len());
        if missing == 0 {
            return shown;
        }
        let others = mask.without(&shown).collect();
        let others = self.topology().choose(&others, missing, self.cpu.seed);
        shown.iter().chain(others.iter()).collect()
    }

    /// Returns the processors that have a directory `cpuN`.
    pub fn shown_cpus(&self) -> CpuSet {
        match self.origin {
            Origin::Container => self.cpu.online.clone(),
            Origin::Host => {
                let present = self.topology().cpus.iter().map(|cpu| cpu.number);
                present.chain(self.cpu.online.iter()).collect()
            }
        }
    }

    /// Returns a processor if it is shown.
    pub fn cpu_attributes(&self, cpu: u32) -> Option<&CpuAttributes> {
        self.topology().cpu(cpu).filter(|_| self.shows_cpu(cpu))
    }

    /// Returns those of the given processors that are shown.
    pub fn shown_of(&self, cpus: &CpuSet) -> CpuSet {
        cpus.intersection(&self.cpu.online)
    }

    /// Iterates over the shown nodes, in the order of their numbers.
    pub fn shown_nodes(&self) -> impl Iterator<Item = &NodeAttributes> {
        self.topology().nodes.iter().filter(|node| {
            self.origin == Origin::Host
                || node.cpus.iter().any(|cpu| self.cpu.online.contains(cpu))
                || self.nodes.as_ref().is_some_and(|nodes| nodes.contains(node.number))
        })
    }

    /// Returns a node if it is shown.
    pub fn node_attributes(&self, node: u32) -> Option<&NodeAttributes> {
        self.shown_nodes().find(|attributes| attributes.number == node)
    }

    /// Returns the share of a node in a number of the container, in KiB. The share of the total is
    /// at most the memory of the node.
    pub fn part_of(&self, node: u32, number: u64) -> u64 {
        let allowed = |node| self.nodes.as_ref().is_none_or(|nodes| nodes.contains(node));
        let usable = || self.shown_nodes().filter(|attributes| allowed(attributes.number));
        let weights =
            || usable().map(|attributes| (attributes.number, u128::from(attributes.memory)));
        let all: u128 = weights().map(|(_, weight)| weight).sum();
        let all = all.max(u128::from(self.memory.total >> 10));
        if all == 0 || !weights().any(|(number, _)| number == node) {
            return 0;
        }
        let upto = |last: bool| {
            let before: u128 = weights()
                .filter(|&(other, _)| other < node || (last && other == node))
                .map(|(_, weight)| weight)
                .sum();
            u128::from(number) * before / all
        };
        u64::try_from(upto(true) - upto(false)).unwrap_or(u64::MAX)
    }
}
