//! `/sys/devices/system/cpu/cpuN`: the processors the container is shown, each with the values of
//! the real processor behind it. Names of other processors are cut to those shown.
//!
//! Members: 13 bits of processor number (`NR_CPUS` is 8192 at most), then 9 bits of [`Part`].

use ambit_sysinfo::topology::{Attribute, CACHE_FILES, TOPOLOGY_FILES, attribute};
use ambit_sysinfo::{StatSet, View};

use super::{Family, Shape, list, mask, numbered};
use crate::text::Text;

/// `cpuN`.
#[derive(Debug)]
pub(super) struct Cpus;

const PART_BITS: u32 = 9;
const LARGEST: u32 = (1 << 13) - 1;

/// A file or directory of a processor. Its number is part of node ids and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Online,
    Topology,
    Cache,
    Node,
    TopologyFile(usize),
    Index(u32),
    CacheFile(u32, usize),
}

impl Part {
    fn number(self) -> u32 {
        match self {
            Self::Whole => 0,
            Self::Online => 1,
            Self::Topology => 2,
            Self::Cache => 3,
            Self::Node => 4,
            Self::TopologyFile(at) => 16 + u32::try_from(at).unwrap_or(0),
            Self::Index(index) => 256 + index * 16,
            Self::CacheFile(index, at) => 257 + index * 16 + u32::try_from(at).unwrap_or(0),
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Whole),
            1 => Some(Self::Online),
            2 => Some(Self::Topology),
            3 => Some(Self::Cache),
            4 => Some(Self::Node),
            16..256 => Some(Self::TopologyFile(number as usize - 16)),
            256.. => Some(match number % 16 {
                0 => Self::Index((number - 256) / 16),
                at => Self::CacheFile((number - 256) / 16, at as usize - 1),
            }),
            _ => None,
        }
    }
}

fn split(member: u32) -> (u32, Option<Part>) {
    (member >> PART_BITS, Part::from_number(member & ((1 << PART_BITS) - 1)))
}

fn member(cpu: u32, part: Part) -> u32 {
    cpu << PART_BITS | part.number()
}

/// Returns the attribute that a file shows.
fn shown(view: &View, cpu: u32, part: Part) -> Option<&Attribute> {
    let attributes = view.cpu_attributes(cpu)?;
    match part {
        Part::TopologyFile(at) => attribute(&attributes.topology, at),
        Part::CacheFile(index, at) => attribute(&attributes.cache(index)?.files, at),
        _ => None,
    }
}

fn node_of(view: &View, cpu: u32) -> Option<u32> {
    let node = view.cpu_attributes(cpu)?.node?;
    view.node_attributes(node).map(|attributes| attributes.number)
}

impl Family for Cpus {
    fn directory(&self) -> &'static str {
        "sys/devices/system/cpu"
    }

    fn needs(&self) -> StatSet {
        StatSet::PROCESSORS
    }

    fn shape(&self, view: &View, member: u32) -> Option<Shape> {
        let (cpu, part) = split(member);
        let part = part.filter(|_| view.shows_cpu(cpu))?;
        let attributes = view.cpu_attributes(cpu);
        let there = match part {
            Part::Whole => true,
            Part::Online => attributes?.has_online,
            Part::Topology => !attributes?.topology.is_empty(),
            Part::Cache => !attributes?.caches.is_empty(),
            Part::Node => node_of(view, cpu).is_some(),
            Part::Index(index) => attributes?.cache(index).is_some(),
            Part::TopologyFile(_) | Part::CacheFile(..) => shown(view, cpu, part).is_some(),
        };
        there.then_some(match part {
            Part::Whole | Part::Topology | Part::Cache | Part::Index(_) => Shape::Directory,
            Part::Online | Part::TopologyFile(_) | Part::CacheFile(..) => Shape::File,
            Part::Node => Shape::Link,
        })
    }

    fn parent(&self, of: u32) -> Option<u32> {
        let (cpu, part) = split(of);
        Some(member(
            cpu,
            match part? {
                Part::Whole => return None,
                Part::Online | Part::Topology | Part::Cache | Part::Node => Part::Whole,
                Part::TopologyFile(_) => Part::Topology,
                Part::Index(_) => Part::Cache,
                Part::CacheFile(index, _) => Part::Index(index),
            },
        ))
    }

    fn members(&self, view: &View, directory: Option<u32>) -> Vec<u32> {
        let Some(directory) = directory else {
            let cpus = view.shown_cpus();
            return cpus
                .iter()
                .take_while(|&cpu| cpu <= LARGEST)
                .map(|cpu| member(cpu, Part::Whole))
                .collect();
        };
        let (cpu, part) = split(directory);
        let attributes = view.cpu_attributes(cpu);
        let parts: Vec<Part> = match (part, attributes) {
            (Some(Part::Whole), _) => {
                vec![Part::Online, Part::Topology, Part::Cache, Part::Node]
            }
            (Some(Part::Topology), Some(attributes)) => {
                attributes.topology.iter().map(|&(at, _)| Part::TopologyFile(at)).collect()
            }
            (Some(Part::Cache), Some(attributes)) => {
                attributes.caches.iter().map(|cache| Part::Index(cache.index)).collect()
            }
            (Some(Part::Index(index)), Some(attributes)) => {
                let files = attributes.cache(index).map_or(&[][..], |cache| &cache.files);
                files.iter().map(|&(at, _)| Part::CacheFile(index, at)).collect()
            }
            _ => Vec::new(),
        };
        let members = parts.into_iter().map(|part| member(cpu, part));
        members.filter(|&member| self.shape(view, member).is_some()).collect()
    }

    fn name(&self, view: &View, member: u32, out: &mut Text) {
        let (cpu, part) = split(member);
        let of = |files: &[(&'static str, _)], at: usize| files.get(at).map_or("", |file| file.0);
        match part {
            None => {}
            Some(Part::Whole) => drop(out.put("cpu").dec(cpu.into())),
            Some(Part::Online) => drop(out.put("online")),
            Some(Part::Topology) => drop(out.put("topology")),
            Some(Part::Cache) => drop(out.put("cache")),
            Some(Part::Node) => drop(out.put("node").dec(node_of(view, cpu).unwrap_or(0).into())),
            Some(Part::TopologyFile(at)) => drop(out.put(of(TOPOLOGY_FILES, at))),
            Some(Part::Index(index)) => drop(out.put("index").dec(index.into())),
            Some(Part::CacheFile(_, at)) => drop(out.put(of(CACHE_FILES, at))),
        }
    }

    fn render(&self, view: &View, member: u32, out: &mut Text) {
        let (cpu, part) = split(member);
        match part {
            Some(Part::Node) => {
                out.put("../../node/node").dec(node_of(view, cpu).unwrap_or(0).into());
                return;
            }
            // Containers are shown online processors only.
            Some(Part::Online) => drop(out.byte(b'1')),
            Some(part) => match shown(view, cpu, part) {
                Some(Attribute::Value(value)) => drop(out.put(value.as_bytes())),
                Some(Attribute::List(set)) => list(&view.shown_of(set), out),
                Some(Attribute::Mask(set)) => mask(&view.shown_of(set), view, out),
                None => {}
            },
            None => {}
        }
        out.newline();
    }

    fn find(&self, view: &View, directory: Option<u32>, name: &[u8]) -> Option<u32> {
        let Some(directory) = directory else {
            // Called for each component of a path, so no list of all processors is made.
            let cpu = numbered(name, "cpu").filter(|&cpu| cpu <= LARGEST && view.shows_cpu(cpu))?;
            return Some(member(cpu, Part::Whole));
        };
        let mut text = Text::new();
        self.members(view, Some(directory)).into_iter().find(|&member| {
            text.clear();
            self.name(view, member, &mut text);
            text.as_bytes() == name
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_their_numbers_are_inverse() {
        for number in 0..1 << PART_BITS {
            if let Some(part) = Part::from_number(number) {
                assert_eq!(part.number(), number, "{part:?}");
            }
        }
        assert!(TOPOLOGY_FILES.len() <= 240 && CACHE_FILES.len() <= 15);
    }
}
