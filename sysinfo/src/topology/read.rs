//! Reads the topology below a descriptor of `/sys` that was opened before an overlay could be
//! mounted over it.
//!
//! Masks are not read, because each has a list of the same processors. Equal sets are stored once:
//! on a large machine most of them are equal. Start reading at [`Topology::read`].

use std::collections::{BTreeSet, HashMap};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ambit_kernel::text::scan;
use rustix::fs::{Mode, OFlags};

use super::{
    Attribute, CACHE_FILES, CacheAttributes, CpuAttributes, Form, NODE_FILES, NODE_LISTS,
    NodeAttributes, NodeLine, TOPOLOGY_FILES, Topology, placement,
};
use crate::cpuset::CpuSet;
use crate::kernel_file::read_to_end;

const CPU: &str = "devices/system/cpu";
const NODE: &str = "devices/system/node";

impl Topology {
    /// Reads the topology below this `/sys`. What cannot be read is absent.
    pub fn read(sys: BorrowedFd<'_>) -> Self {
        let mut reader = Reader { sys, text: Vec::new(), sets: HashMap::new() };
        let node_lists = NODE_LISTS.iter().enumerate().filter_map(|(at, name)| {
            let set = CpuSet::parse(reader.text(&format!("{NODE}/{name}"))?)?;
            Some((at, set))
        });
        let node_lists: Vec<_> = node_lists.collect();
        let online: Vec<u32> = match node_lists.first() {
            Some((0, set)) => set.iter().collect(),
            _ => Vec::new(),
        };
        let nodes = reader.numbered(NODE, "node");
        let nodes: Vec<_> = nodes.into_iter().map(|number| reader.node(number, &online)).collect();
        let mut home = HashMap::new();
        for node in &nodes {
            home.extend(node.cpus.iter().map(|cpu| (cpu, node.number)));
        }
        let cpus = reader.numbered(CPU, "cpu");
        let cpus: Vec<_> =
            cpus.into_iter().map(|number| reader.cpu(number, home.get(&number).copied())).collect();
        let mask_digits = reader.mask_digits(&cpus);
        let kernel_max = reader.text(&format!("{CPU}/kernel_max")).and_then(scan::decimal);
        let kernel_max = kernel_max.and_then(|max| u32::try_from(max).ok());
        let possible = reader.text(&format!("{CPU}/possible")).and_then(CpuSet::parse);
        let possible = possible.unwrap_or_default();
        Self { kernel_max, possible, mask_digits, cpus, nodes, node_lists }
    }
}

struct Reader<'s> {
    sys: BorrowedFd<'s>,
    text: Vec<u8>,
    sets: HashMap<CpuSet, Arc<CpuSet>>,
}

impl Reader<'_> {
    fn text(&mut self, path: &str) -> Option<&[u8]> {
        self.text.clear();
        read_to_end(self.sys, path, &mut self.text).ok()?;
        Some(&self.text)
    }

    fn names(&self, path: &str) -> BTreeSet<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listed = rustix::fs::openat(self.sys, path, flags, Mode::empty());
        let Ok(entries) = listed.and_then(rustix::fs::Dir::new) else { return BTreeSet::new() };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_str().ok()?.into()));
        names.collect()
    }

    /// Returns the numbers of the entries `<prefix>N`, in order.
    fn numbered(&self, path: &str, prefix: &str) -> BTreeSet<u32> {
        let names = self.names(path);
        names.iter().filter_map(|name| number(name, prefix)).collect()
    }

    fn cpu(&mut self, number: u32, node: Option<u32>) -> CpuAttributes {
        let path = format!("{CPU}/cpu{number}");
        let indexes = self.numbered(&format!("{path}/cache"), "index");
        let mut attributes = CpuAttributes {
            number,
            node,
            has_online: self.names(&path).contains("online"),
            topology: self.attributes(&format!("{path}/topology"), TOPOLOGY_FILES),
            caches: indexes
                .into_iter()
                .map(|index| CacheAttributes {
                    index,
                    files: self.attributes(&format!("{path}/cache/index{index}"), CACHE_FILES),
                })
                .collect(),
            ..CpuAttributes::default()
        };
        attributes.groups = placement::groups(&attributes);
        attributes
    }

    fn attributes(&mut self, path: &str, files: &[(&str, Form)]) -> Vec<(usize, Attribute)> {
        let names = self.names(path);
        let there = files.iter().enumerate().filter(|(_, (name, _))| names.contains(*name));
        let read = |(at, &(name, form)): (usize, &(&str, Form))| {
            let attribute = match form {
                Form::Value => {
                    let text = self.text(&format!("{path}/{name}"))?;
                    Attribute::Value(std::str::from_utf8(text).ok()?.trim_end().into())
                }
                Form::List => Attribute::List(self.set(&format!("{path}/{name}"))?),
                Form::MaskOf(list) => Attribute::Mask(self.set(&format!("{path}/{list}"))?),
            };
            Some((at, attribute))
        };
        there.filter_map(read).collect()
    }

    fn set(&mut self, path: &str) -> Option<Arc<CpuSet>> {
        let set = CpuSet::parse(self.text(path)?)?;
        Some(Arc::clone(self.sets.entry(set.clone()).or_insert_with(|| Arc::new(set))))
    }

    /// Returns the number of digits in a mask on this machine, from any mask.
    fn mask_digits(&mut self, cpus: &[CpuAttributes]) -> usize {
        let digits = cpus.iter().find_map(|cpu| {
            let mask = self.text(&format!("{CPU}/cpu{}/topology/thread_siblings", cpu.number))?;
            Some(digits(mask))
        });
        digits.unwrap_or(0)
    }

    fn node(&mut self, number: u32, online: &[u32]) -> NodeAttributes {
        let path = format!("{NODE}/node{number}");
        let names = self.names(&path);
        let files = NODE_FILES.iter().enumerate().filter(|(_, name)| names.contains(**name));
        let mut attributes = NodeAttributes {
            number,
            files: files.map(|(at, _)| at).collect(),
            ..NodeAttributes::default()
        };
        if let Some(set) = self.text(&format!("{path}/cpulist")).and_then(CpuSet::parse) {
            attributes.cpus = set;
        }
        if let Some(row) = self.text(&format!("{path}/distance")) {
            attributes.distances = distances(row, online);
        }
        if let Some(text) = self.text(&format!("{path}/meminfo")) {
            (attributes.meminfo, attributes.memory) = meminfo(text);
        }
        if let Some(text) = self.text(&format!("{path}/numastat")) {
            attributes.numastat = first_words(text);
        }
        attributes
    }
}

/// The number of a name `<prefix>N`.
fn number(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&number| plain && number <= CpuSet::MAX)
}

/// How many digits a mask has.
fn digits(mask: &[u8]) -> usize {
    mask.iter().filter(|byte| byte.is_ascii_hexdigit()).count()
}

/// Parses distances: the kernel prints a column for each online node.
fn distances(row: &[u8], online: &[u32]) -> Vec<(u32, u64)> {
    let row = row.split(u8::is_ascii_whitespace).filter_map(scan::decimal);
    online.iter().copied().zip(row).collect()
}

/// Parses the lines of a node's `meminfo`, and its memory.
fn meminfo(text: &[u8]) -> (Vec<NodeLine>, u64) {
    let (mut lines, mut memory) = (Vec::new(), 0);
    for (line, value) in scan::lines(text).filter_map(meminfo_line) {
        if &*line.label == "MemTotal" {
            memory = value;
        }
        lines.push(line);
    }
    (lines, memory)
}

/// The labels of `numastat`.
fn first_words(text: &[u8]) -> Vec<Box<str>> {
    let label = |line| std::str::from_utf8(line).ok()?.split(' ').next().map(Into::into);
    scan::lines(text).filter_map(label).collect()
}

/// Parses layout and number of `Node 0 MemTotal: 17262796 kB` (`drivers/base/node.c` prints numbers
/// of KiB in 8 columns and others in 5; longer ones push the line's end).
fn meminfo_line(line: &[u8]) -> Option<(NodeLine, u64)> {
    let line = std::str::from_utf8(line).ok()?;
    let (head, rest) = line.split_once(':')?;
    let label = head.strip_prefix("Node ")?.split_once(' ')?.1;
    let digits = rest.trim_start();
    let blanks = rest.len() - digits.len();
    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
    let kib = digits.ends_with("kB");
    let columns = if kib { 8 } else { 5 };
    let line = NodeLine { label: label.into(), width: blanks + count.min(columns), kib };
    Some((line, scan::decimal(digits.as_bytes())?))
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(text: &[u8]) {
    let _ = (meminfo(text), first_words(text), digits(text));
    assert!(distances(text, &[0, 1, 7]).len() <= 3);
    if let Ok(name) = std::str::from_utf8(text) {
        let _ = number(name, "cpu");
    }
}
