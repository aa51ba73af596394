//! Reads the memory nodes of a container's cpuset: `cpuset.mems`.
//!
//! Read only on machines with memory on several nodes. The free memory of the nodes is read only
//! for a container whose cpuset excludes some. See Documentation/admin-guide/cgroup-v2.rst and
//! cgroup-v1/cpusets.rst. Start reading at [`NodeFiles::sample`].

use ambit_kernel::text::scan;

use super::{Cgroup, CgroupFile, lineage};
use crate::Error;
use crate::cpuset::CpuSet;
use crate::hierarchy::{Controller, Hierarchies};
use crate::host::{Host, RawFiles};
use crate::limit::Limit;
use crate::membership::Membership;
use crate::sample::NodeSample;

/// The files of one container, nearest level first; the first that exists counts.
#[derive(Debug, Default)]
pub(crate) struct NodeFiles {
    files: Option<Vec<CgroupFile>>,
}

impl NodeFiles {
    /// Reads the nodes of the cpuset; `None` if it has all nodes with memory.
    pub(crate) fn sample(
        &mut self,
        host: &Host,
        hierarchies: &Hierarchies,
        membership: &Membership,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<NodeSample>, Error> {
        let nodes = || host.topology.nodes.iter().filter(|node| node.memory > 0);
        if nodes().count() < 2 {
            return Ok(None);
        }
        let populated: CpuSet = nodes().map(|node| node.number).collect();
        let files = self.files.get_or_insert_with(|| files(hierarchies, membership));
        for file in files {
            let Some(allowed) = file.read(buffer)?.and_then(CpuSet::parse) else { continue };
            let allowed = allowed.intersection(&populated);
            if allowed.is_empty() {
                continue;
            }
            if allowed == populated {
                break;
            }
            let left = host.raw.as_deref().and_then(|raw| left(raw, &allowed, buffer));
            return Ok(Some(NodeSample {
                allowed,
                left: left.map_or(Limit::Unlimited, Limit::At),
            }));
        }
        Ok(None)
    }

    pub(crate) fn close(&mut self) {
        self.files = None;
    }
}

fn files(hierarchies: &Hierarchies, membership: &Membership) -> Vec<CgroupFile> {
    match hierarchies.cgroup_with(Controller::Cpuset, membership) {
        Some((mount, cgroup, true)) => {
            let file = |level| Cgroup::new(mount, level).file("cpuset.mems.effective");
            lineage(cgroup).map(file).collect()
        }
        Some((mount, cgroup, false)) => {
            let cgroup = Cgroup::new(mount, cgroup);
            ["cpuset.effective_mems", "cpuset.mems"].map(|name| cgroup.file(name)).into()
        }
        None => Vec::new(),
    }
}

/// Returns the bytes that can be allocated on these nodes without swapping: free memory, page
/// cache, reclaimable slab.
fn left(raw: &dyn RawFiles, nodes: &CpuSet, text: &mut Vec<u8>) -> Option<u64> {
    let mut kib: u64 = 0;
    for node in nodes.iter() {
        text.clear();
        raw.read(&format!("sys/devices/system/node/node{node}/meminfo"), text).ok()?;
        // "Node 0 MemFree:         1234 kB"
        for line in scan::lines(text) {
            let mut words = scan::words(line).skip(2);
            let (Some(label), Some(number)) = (words.next(), words.next()) else { continue };
            let counts = [&b"MemFree:"[..], b"Active(file):", b"Inactive(file):", b"SReclaimable:"];
            if counts.contains(&label) {
                kib = kib.saturating_add(scan::decimal(number).unwrap_or(0));
            }
        }
    }
    Some(kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::topology::{NodeAttributes, Topology};

    #[derive(Debug)]
    struct Sysfs;

    impl RawFiles for Sysfs {
        fn read(&self, path: &str, text: &mut Vec<u8>) -> io::Result<()> {
            assert_eq!(path, "sys/devices/system/node/node1/meminfo", "no other is looked at");
            text.extend_from_slice(
                b"Node 1 MemTotal: 900 kB\nNode 1 MemFree: 100 kB\nNode 1 Active(file): 20 kB\n\
                  Node 1 Inactive(file): 3 kB\nNode 1 SReclaimable: 7 kB\nNode 1 AnonPages: 9 kB\n",
            );
            Ok(())
        }
    }

    fn host() -> Host {
        let node = |number, memory| NodeAttributes { number, memory, ..NodeAttributes::default() };
        let nodes = vec![node(0, 1 << 20), node(1, 900), node(2, 0)];
        let topology = Arc::new(Topology { nodes, ..Topology::default() });
        Host { topology, raw: Some(Arc::new(Sysfs)), ..Host::default() }
    }

    fn sample(mounts: &[u8], cgroup: &[u8], files: &[(&str, &str)]) -> Option<NodeSample> {
        let (_root, hierarchies) = crate::fixture::hierarchies(mounts, files);
        let membership = Membership::parse(cgroup);
        let mut read = NodeFiles::default();
        read.sample(&host(), &hierarchies, &membership, &mut Vec::new()).unwrap()
    }

    #[test]
    fn what_the_bound_nodes_leave_is_read_from_them_alone() {
        let bound = |allowed: &str| Some((allowed.to_owned(), Limit::At(130 << 10)));
        let found = |sample: Option<NodeSample>| sample.map(|it| (it.allowed.to_string(), it.left));
        let v2 = |mems: &str| {
            found(sample(
                b"30 1 0:1 / /c rw - cgroup2 cgroup2 rw\n",
                b"0::/a/b\n",
                &[
                    ("c/cgroup.controllers", "cpuset\n"),
                    ("c/a/cpuset.mems.effective", mems),
                    // The controller is not enabled here.
                    ("c/a/b/cgroup.procs", ""),
                ],
            ))
        };
        assert_eq!(v2("1-2\n"), bound("1"));
        assert_eq!(v2("0-2\n"), None);
        let v1 = found(sample(
            b"30 1 0:1 / /c rw - cgroup cgroup rw,cpuset\n",
            b"3:cpuset:/a\n",
            &[("c/a/cpuset.effective_mems", "\n"), ("c/a/cpuset.mems", "1\n")],
        ));
        assert_eq!(v1, bound("1"));
    }
}
