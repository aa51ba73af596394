//! The topology of the machine: what `/sys/devices/system/cpu/cpuN` and
//! `/sys/devices/system/node/nodeN` contain.
//!
//! A [`Topology`] is read at start and again when processors come or go (`read.rs`). It describes
//! the machine; which processors a container is shown is decided in its [`View`]. Values that name
//! other processors or nodes are kept as sets, never as the kernel's text, so that they can be cut
//! to those of the view (`shown.rs`). The choice of processors under a quota follows the topology
//! (`placement.rs`). Files that the kernel does not have are absent.
//!
//! The positions of names in [`TOPOLOGY_FILES`], [`CACHE_FILES`], [`NODE_LISTS`] and [`NODE_FILES`]
//! are part of node ids that the kernel remembers: new names go to the end.
//!
//! [`View`]: crate::View

mod placement;
mod read;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use read::parse;
mod shown;

use std::sync::Arc;

use crate::cpuset::CpuSet;

/// The form of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One value of this processor.
    Value,
    /// A list of processors.
    List,
    /// The mask of the processors in the list of this name.
    MaskOf(&'static str),
}

use Form::{List, MaskOf, Value};

/// The files of `cpuN/topology`.
pub const TOPOLOGY_FILES: &[(&str, Form)] = &[
    ("physical_package_id", Value),
    ("die_id", Value),
    ("cluster_id", Value),
    ("core_id", Value),
    ("thread_siblings", MaskOf("thread_siblings_list")),
    ("thread_siblings_list", List),
    ("core_cpus", MaskOf("core_cpus_list")),
    ("core_cpus_list", List),
    ("cluster_cpus", MaskOf("cluster_cpus_list")),
    ("cluster_cpus_list", List),
    ("die_cpus", MaskOf("die_cpus_list")),
    ("die_cpus_list", List),
    ("core_siblings", MaskOf("core_siblings_list")),
    ("core_siblings_list", List),
    ("package_cpus", MaskOf("package_cpus_list")),
    ("package_cpus_list", List),
    // s390x
    ("book_id", Value),
    ("book_siblings", MaskOf("book_siblings_list")),
    ("book_siblings_list", List),
    ("drawer_id", Value),
    ("drawer_siblings", MaskOf("drawer_siblings_list")),
    ("drawer_siblings_list", List),
];

/// The files of `cpuN/cache/indexN`.
pub const CACHE_FILES: &[(&str, Form)] = &[
    ("level", Value),
    ("type", Value),
    ("size", Value),
    ("coherency_line_size", Value),
    ("number_of_sets", Value),
    ("ways_of_associativity", Value),
    ("physical_line_partition", Value),
    ("id", Value),
    ("shared_cpu_list", List),
    ("shared_cpu_map", MaskOf("shared_cpu_list")),
    ("allocation_policy", Value),
    ("write_policy", Value),
];

/// The files of `/sys/devices/system/node` itself, each a list of nodes.
pub const NODE_LISTS: &[&str] =
    &["online", "possible", "has_cpu", "has_memory", "has_normal_memory", "has_generic_initiator"];

/// The files of `nodeN`.
pub const NODE_FILES: &[&str] = &["cpulist", "cpumap", "distance", "meminfo", "numastat"];

/// The arrangement of one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// The largest processor number of this kernel.
    pub kernel_max: Option<u32>,
    /// Possible processors: no thread ever runs on another one.
    pub possible: CpuSet,
    /// Hexadecimal digits of a mask of processors.
    pub mask_digits: usize,
    /// Present processors, in the order of their numbers.
    pub cpus: Vec<CpuAttributes>,
    /// Memory nodes, in the order of their numbers; empty without NUMA support.
    pub nodes: Vec<NodeAttributes>,
    /// The existing [`NODE_LISTS`], by position, with their nodes.
    pub node_lists: Vec<(usize, CpuSet)>,
}

/// One processor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuAttributes {
    /// Its number.
    pub number: u32,
    /// The node it belongs to.
    pub node: Option<u32>,
    /// True if it can be taken offline. Then it has a file `online`.
    pub has_online: bool,
    /// Its [`TOPOLOGY_FILES`], by position.
    pub topology: Vec<(usize, Attribute)>,
    /// Its caches, by index.
    pub caches: Vec<CacheAttributes>,
    /// Groups of processors that it belongs to, from the largest to the core.
    groups: placement::Groups,
}

/// One cache of a processor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheAttributes {
    /// The number in `indexN`.
    pub index: u32,
    /// Its [`CACHE_FILES`], by position.
    pub files: Vec<(usize, Attribute)>,
}

/// The content of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// A value without its newline.
    Value(Box<str>),
    /// Processors, printed as a list.
    List(Arc<CpuSet>),
    /// Processors, printed as a mask.
    Mask(Arc<CpuSet>),
}

/// One memory node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeAttributes {
    /// Its number.
    pub number: u32,
    /// Its processors.
    pub cpus: CpuSet,
    /// Its memory in KiB.
    pub memory: u64,
    /// Its [`NODE_FILES`], by position.
    pub files: Vec<usize>,
    /// Distance to each node of the machine, with the node's number.
    pub distances: Vec<(u32, u64)>,
    /// The lines of its `meminfo`.
    pub meminfo: Vec<NodeLine>,
    /// The labels of its `numastat`.
    pub numastat: Vec<Box<str>>,
}

/// The layout of one line of a node's `meminfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLine {
    /// Such as `MemTotal`.
    pub label: Box<str>,
    /// Columns from the colon to the end of the number, if that is not longer.
    pub width: usize,
    /// True if the line ends in `kB`.
    pub kib: bool,
}

impl Topology {
    /// Returns a processor by its number.
    pub fn cpu(&self, number: u32) -> Option<&CpuAttributes> {
        let place = self.cpus.binary_search_by_key(&number, |cpu| cpu.number).ok()?;
        self.cpus.get(place)
    }

    /// Returns a node by its number.
    pub fn node(&self, number: u32) -> Option<&NodeAttributes> {
        let place = self.nodes.binary_search_by_key(&number, |node| node.number).ok()?;
        self.nodes.get(place)
    }
}

impl CpuAttributes {
    /// Returns a cache by its index.
    pub fn cache(&self, index: u32) -> Option<&CacheAttributes> {
        self.caches.iter().find(|cache| cache.index == index)
    }
}

/// Returns the content of the file at this position of its table of names.
pub fn attribute(files: &[(usize, Attribute)], position: usize) -> Option<&Attribute> {
    files.iter().find(|(at, _)| *at == position).map(|(_, attribute)| attribute)
}
