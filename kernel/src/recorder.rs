//! The interface to what records the request that each thread is handling, in memory that outlives
//! the process.
//!
//! A request that kills the server is given to its successor again: by the kernel, or by the journal
//! of calls. The recorder finds such requests, and refuses them. Start reading at [`RequestRecord::begin`].

use std::fmt::Debug;

/// The operation of a system call; those of files are FUSE's, which are smaller.
pub const CALL: u32 = 1 << 16;

/// A request that is about to be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The number of a FUSE operation, or [`CALL`]. Never 0.
    pub operation: u32,
    /// The node of a file; the number of a call, below its architecture.
    pub number: u64,
    /// The thread that waits, 0 where the kernel does not say.
    pub thread: u32,
}

/// Records the request that each thread is handling.
pub trait Recorder: Send + Sync + Debug {
    /// Records that a request is about to be handled. Returns the place of the record, or `None` if
    /// the request must not be handled.
    fn begin(&self, request: Request) -> Option<usize>;

    /// Clears the record at this place, after the request was answered.
    fn end(&self, place: usize);
}

/// The record of a request that is being handled. Dropping it clears the record.
#[derive(Debug)]
pub struct RequestRecord<'a>(Option<(&'a dyn Recorder, usize)>);

impl<'a> RequestRecord<'a> {
    /// Records a request, if there is a recorder. `None` if the request must not be handled.
    #[must_use]
    pub fn begin(recorder: Option<&'a dyn Recorder>, request: Request) -> Option<Self> {
        let Some(recorder) = recorder else { return Some(Self(None)) };
        Some(Self(Some((recorder, recorder.begin(request)?))))
    }
}

impl Drop for RequestRecord<'_> {
    fn drop(&mut self) {
        if let Some((recorder, place)) = self.0 {
            recorder.end(place);
        }
    }
}
