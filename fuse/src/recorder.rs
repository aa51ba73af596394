//! The interface of a recorder of requests: it stores the request that each thread is about to
//! handle where that outlives the process. The kernel sends a request that killed the server to the
//! successor again, which must then refuse it. Nothing here decides; see
//! [`RequestRecorder::begin`].

use std::fmt::Debug;

use fuser::{
    Errno, INodeNo, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyPoll, ReplyWrite, Request,
};

use crate::tree::Tree;

/// A request that is about to be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRequest {
    /// The operation.
    pub operation: Operation,
    /// The node id.
    pub node: u64,
    /// The id of the calling thread; 0 if the kernel does not give it.
    pub thread: u32,
}

impl FileRequest {
    pub(crate) fn new(operation: Operation, node: INodeNo, request: &Request) -> Self {
        Self { operation, node: node.0, thread: request.pid() }
    }
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
#[must_use]
pub fn describe(operation: u32, node: u64) -> String {
    let asked = name(operation).map_or_else(|| operation.to_string(), str::to_uppercase);
    match Tree::default().node(node) {
        Some(node) => format!("{asked} of {}", node.path),
        None => format!("{asked} of node {node}"),
    }
}

/// Records the request that each thread is about to handle.
pub trait RequestRecorder: Send + Sync + Debug {
    /// Returns a slot for a serving thread, which it keeps until the process ends.
    fn register_thread(&self) -> usize;

    /// Records that the thread of this slot is about to handle a request. If false, the request
    /// must not be handled and is answered EIO.
    fn begin(&self, slot: usize, asked: FileRequest) -> bool;

    /// Records that the request was answered.
    fn end(&self, slot: usize);
}

/// A reply that can be EIO.
pub(crate) trait Refuse {
    fn refuse(self);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
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
