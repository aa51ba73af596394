//! The requests of FUSE as the recorder knows them (`ambit_kernel::recorder`). The kernel sends a
//! request that killed the server to the successor again, which must then refuse it.

use ambit_kernel::recorder;
use fuser::{Errno, INodeNo, Request};

use crate::lease_nodes;
use crate::tree::Tree;

/// Returns what is recorded of a request.
pub(crate) fn recorded(
    operation: Operation,
    node: INodeNo,
    request: &Request,
) -> recorder::Request {
    let operation = operation as u32;
    recorder::Request { operation, number: node.0, thread: request.pid() }
}

macro_rules! operations {
    ($($name:ident = $number:literal),*) => {
        /// The FUSE operations that are handled, with the kernel's numbers.
        #[allow(missing_docs, reason = "the names are the kernel's")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Operation {
            $($name = $number),*
        }

        /// The kernel's name of an operation.
        fn name(number: u32) -> Option<&'static str> {
            match number {
                $($number => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

operations!(
    Lookup = 1,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Open = 14,
    Read = 15,
    Write = 16,
    Release = 18,
    Opendir = 27,
    Readdir = 28,
    Access = 34,
    Poll = 40,
    Readdirplus = 44
);

/// Describes a request, which may be that of another version of this program.
pub fn describe(operation: u32, node: u64) -> String {
    let asked = name(operation).map_or_else(|| operation.to_string(), str::to_uppercase);
    match Tree::default().node(node) {
        Some(node) => format!("{asked} of {}", node.path),
        None => match lease_nodes::path_of(node) {
            Some(path) => format!("{asked} of {path} on lease"),
            None => format!("{asked} of node {node}"),
        },
    }
}

/// A reply that can be EIO.
pub(crate) trait Refuse {
    fn refuse(self);
}

macro_rules! refuse {
    ($($reply:ident),*) => {
        $(impl Refuse for fuser::$reply {
            fn refuse(self) {
                self.error(Errno::EIO);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyOpen,
    ReplyPoll,
    ReplyWrite
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::node_id;

    #[test]
    fn a_request_is_described_by_operation_and_path() {
        let open = describe(Operation::Open as u32, node_id("proc/meminfo"));
        assert_eq!(open, "OPEN of proc/meminfo");
        assert_eq!(describe(99, 5), "99 of node 5");
    }
}
