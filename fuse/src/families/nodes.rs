//! `/sys/devices/system/node`: the memory nodes of the processors the container is shown, and those
//! that its memory is bound to. Without NUMA support in the kernel the directory is empty.
//!
//! Members: 0..16 are the lists of the directory itself; from `NODES` on 10 bits of node number
//! and 5 bits of [`Part`]; from `LINKS` on the links to processors, by 13 bits of their number.

use ambit_sysinfo::topology::{NODE_FILES, NODE_LISTS, NodeAttributes};
use ambit_sysinfo::{CpuSet, StatSet, View};

use super::{Family, Shape, list, mask, node_meminfo, numbered};
use crate::text::Text;

/// `node` and `nodeN`.
#[derive(Debug)]
pub(super) struct Nodes;

const NODES: u32 = 1 << 16;
const LINKS: u32 = 1 << 20;
const FILE_BITS: u32 = 5;
const LARGEST: u32 = (1 << 10) - 1;
const LARGEST_CPU: u32 = (1 << 13) - 1;

/// A member, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A file of the directory itself, by its position in [`NODE_LISTS`].
    List(usize),
    /// `nodeN`
    Whole(u32),
    /// A file of `nodeN`, by its position in [`NODE_FILES`].
    File(u32, usize),
    /// The link to a processor in the directory of its node.
    Cpu(u32),
}

impl Part {
    fn number(self) -> u32 {
        let at = |at: usize| u32::try_from(at).unwrap_or(0);
        match self {
            Self::List(list) => at(list),
            Self::Whole(node) => NODES + (node << FILE_BITS),
            Self::File(node, file) => NODES + (node << FILE_BITS) + 1 + at(file),
            Self::Cpu(cpu) => LINKS + cpu,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        if number < NODES {
            return Some(Self::List(number as usize));
        }
        if number >= LINKS {
            return Some(Self::Cpu(number - LINKS)).filter(|_| number <= LINKS + LARGEST_CPU);
        }
        let node = (number - NODES) >> FILE_BITS;
        let part = match number % (1 << FILE_BITS) {
            0 => Self::Whole(node),
            file => Self::File(node, file as usize - 1),
        };
        Some(part).filter(|_| node <= LARGEST)
    }
}

/// Returns the node of a processor.
fn home(view: &View, cpu: u32) -> Option<&NodeAttributes> {
    view.node_attributes(view.cpu_attributes(cpu)?.node?)
}

impl Family for Nodes {
    fn directory(&self) -> &'static str {
        "sys/devices/system/node"
    }

    fn needs(&self) -> StatSet {
        StatSet::MEMORY | StatSet::PROCESSORS
    }

    fn shape(&self, view: &View, member: u32) -> Option<Shape> {
        match Part::from_number(member)? {
            Part::List(at) => {
                view.topology().node_lists.iter().find(|list| list.0 == at).map(|_| Shape::File)
            }
            Part::Whole(node) => view.node_attributes(node).map(|_| Shape::Directory),
            Part::File(node, at) => view
                .node_attributes(node)
                .filter(|node| node.files.contains(&at))
                .map(|_| Shape::File),
            Part::Cpu(cpu) => home(view, cpu).map(|_| Shape::Link),
        }
    }

    fn parent(&self, member: u32) -> Option<u32> {
        match Part::from_number(member)? {
            Part::List(_) | Part::Whole(_) => None,
            Part::File(node, _) => Some(Part::Whole(node).number()),
            // A link contains no member, so this is not called for one.
            Part::Cpu(_) => None,
        }
    }

    fn members(&self, view: &View, directory: Option<u32>) -> Vec<u32> {
        let Some(directory) = directory else {
            let lists = view.topology().node_lists.iter().map(|&(at, _)| Part::List(at));
            let nodes = view.shown_nodes().map(|node| node.number);
            let nodes = nodes.filter(|&node| node <= LARGEST).map(Part::Whole);
            return lists.chain(nodes).map(Part::number).collect();
        };
        let Some(Part::Whole(number)) = Part::from_number(directory) else { return Vec::new() };
        let Some(node) = view.node_attributes(number) else { return Vec::new() };
        let files = node.files.iter().map(|&at| Part::File(number, at));
        let cpus = node.cpus.iter().filter(|&cpu| cpu <= LARGEST_CPU && view.shows_cpu(cpu));
        files.chain(cpus.map(Part::Cpu)).map(Part::number).collect()
    }

    fn name(&self, _: &View, member: u32, out: &mut Text) {
        match Part::from_number(member) {
            None => {}
            Some(Part::List(at)) => drop(out.put(NODE_LISTS.get(at).unwrap_or(&""))),
            Some(Part::Whole(node)) => drop(out.put("node").dec(node.into())),
            Some(Part::File(_, at)) => drop(out.put(NODE_FILES.get(at).unwrap_or(&""))),
            Some(Part::Cpu(cpu)) => drop(out.put("cpu").dec(cpu.into())),
        }
    }

    fn render(&self, view: &View, member: u32, out: &mut Text) {
        match Part::from_number(member) {
            Some(Part::List(at)) => {
                let nodes: CpuSet = view.shown_nodes().map(|node| node.number).collect();
                match view.topology().node_lists.iter().find(|list| list.0 == at) {
                    Some(_) if NODE_LISTS.get(at) == Some(&"possible") => {
                        list(&view.possible_nodes(), out);
                    }
                    Some((at, set)) => {
                        let mut shown = set.intersection(&nodes);
                        if let (Some(bound), true) = (&view.nodes, is_of_memory(*at)) {
                            shown = shown.intersection(bound);
                        }
                        list(&shown, out);
                    }
                    None => {}
                }
                out.newline();
            }
            Some(Part::File(number, at)) => {
                if let Some(node) = view.node_attributes(number) {
                    file(view, node, NODE_FILES.get(at).unwrap_or(&""), out);
                }
            }
            Some(Part::Cpu(cpu)) => drop(out.put("../../cpu/cpu").dec(cpu.into())),
            Some(Part::Whole(_)) | None => {}
        }
    }

    fn find(&self, view: &View, directory: Option<u32>, name: &[u8]) -> Option<u32> {
        let part = match directory.map(Part::from_number) {
            None => match numbered(name, "node") {
                Some(node) => Part::Whole(node),
                None => Part::List(NODE_LISTS.iter().position(|list| list.as_bytes() == name)?),
            },
            Some(Some(Part::Whole(node))) => match numbered(name, "cpu") {
                Some(cpu) if view.cpu_attributes(cpu)?.node == Some(node) => Part::Cpu(cpu),
                Some(_) => return None,
                None => {
                    Part::File(node, NODE_FILES.iter().position(|file| file.as_bytes() == name)?)
                }
            },
            Some(_) => return None,
        };
        // A number that does not fit in an id names no member.
        let found = part.number();
        (Part::from_number(found) == Some(part) && self.shape(view, found).is_some())
            .then_some(found)
    }
}

/// True if this list of [`NODE_LISTS`] names nodes with memory.
fn is_of_memory(list: usize) -> bool {
    NODE_LISTS.get(list).is_some_and(|name| name.ends_with("_memory"))
}

fn file(view: &View, node: &NodeAttributes, name: &str, out: &mut Text) {
    match name {
        "cpulist" => list(&view.shown_of(&node.cpus), out),
        "cpumap" => mask(&view.shown_of(&node.cpus), view, out),
        "distance" => {
            let shown = node.distances.iter().filter(|to| view.node_attributes(to.0).is_some());
            for (index, &(_, distance)) in shown.enumerate() {
                if index > 0 {
                    out.space();
                }
                out.dec(distance);
            }
        }
        "meminfo" => return node_meminfo::render(view, node, out),
        "numastat" => {
            // Cgroups do not account allocations by wanted node.
            for label in &node.numastat {
                out.put(label.as_bytes()).put(" 0").newline();
            }
            return;
        }
        _ => return,
    }
    out.newline();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_their_numbers_are_inverse() {
        for part in [
            Part::List(5),
            Part::Whole(0),
            Part::Whole(LARGEST),
            Part::File(LARGEST, NODE_FILES.len() - 1),
            Part::Cpu(0),
            Part::Cpu(LARGEST_CPU),
        ] {
            assert_eq!(Part::from_number(part.number()), Some(part));
            assert!(part.number() < 1 << 22);
        }
        assert_eq!(Part::from_number(LINKS + LARGEST_CPU + 1), None);
        assert!(NODE_FILES.len() < 1 << FILE_BITS);
    }
}
