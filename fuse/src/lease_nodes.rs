//! The files on lease and their node ids, which name container and file in every server: the kernel
//! has the ids from a predecessor, perhaps of another version. Start reading at [`sources`].

use ambit_sysinfo::{FirstProcess, Views};

use crate::files::meminfo::MEMINFO;
use crate::overlay::OverlayFile;
use crate::tree::LEASES;

/// The files. The position of a file is part of its node ids, so files are only appended.
static LEASED: &[&OverlayFile] = &[&MEMINFO];

/// Bits of a node id: the position of the file counted from 1, the pid, and the start.
const PID_BITS: u32 = 22;
const START_BITS: u32 = 32;

/// The node of the file that is opened once (`submount::PRIMER`).
pub(crate) const PRIMER_NODE: u64 = 2;

/// Returns the paths of the files that are served for the container of a thread, with the names
/// below the overlay's root to bind in their place.
pub fn sources(views: &dyn Views, thread: u32) -> Vec<(String, String)> {
    views.first_process(thread).map(names).unwrap_or_default()
}

/// Returns the same for the container of a first process. The server does not find these names if
/// [`sources`] would return none.
#[must_use]
pub fn names(first: FirstProcess) -> Vec<(String, String)> {
    let numbers = 1u64..;
    let source = |(number, file): (u64, &&OverlayFile)| {
        let node = node_of(first, number)?;
        Some((file.path.to_owned(), format!("{LEASES}/{node:x}")))
    };
    numbers.zip(LEASED).filter_map(source).collect()
}

fn node_of(first: FirstProcess, number: u64) -> Option<u64> {
    let pid = u64::from(first.pid);
    (pid >> PID_BITS == 0)
        .then_some(number << (PID_BITS + START_BITS) | pid << START_BITS | u64::from(first.start))
}

/// Returns the file of a node, and the first process of its container.
pub(crate) fn parse(node: u64) -> Option<(&'static OverlayFile, FirstProcess)> {
    let number = usize::try_from(node >> (PID_BITS + START_BITS)).ok()?;
    let file = *LEASED.get(number.checked_sub(1)?)?;
    let pid = u32::try_from(node >> START_BITS & ((1 << PID_BITS) - 1)).ok()?;
    let start = u32::try_from(node & u64::from(u32::MAX)).ok()?;
    Some((file, FirstProcess { pid, start }))
}

/// Returns the path of the file of a node.
pub(crate) fn path_of(node: u64) -> Option<&'static str> {
    parse(node).map(|(file, _)| file.path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::ROOT;

    #[test]
    fn a_node_id_names_container_and_file() {
        let first = FirstProcess { pid: 4_194_303, start: u32::MAX };
        let node = node_of(first, 1).unwrap();
        // The kernel remembers ids across takeovers: these may never change.
        assert_eq!(node, 0x7f_ffff_ffff_ffff);
        let (file, parsed) = parse(node).unwrap();
        assert_eq!((file.path, parsed), ("proc/meminfo", first));
        assert_eq!(node_of(FirstProcess { pid: 1 << 22, start: 0 }, 1), None);
        for node in [0, ROOT, PRIMER_NODE, 0x3f_ffff_ffff_ffff, 0x80_0000_0000_0000, u64::MAX] {
            assert!(parse(node).is_none(), "{node:x}");
        }
    }
}
