//! The interface to what records the call that each thread is handling, in memory that outlives the
//! process (the crash guard of the program).
//!
//! A call that kills the server is in the journal, and its successor handles it again. The recorder
//! finds such calls, and leaves them to the kernel.

use std::fmt::Debug;

use libseccomp_sys::seccomp_data;

/// Records the call that each thread is handling.
pub trait CallRecorder: Send + Sync + Debug {
    /// Records that this call of this caller's thread is about to be handled. Returns the place of
    /// the record, or `None` if the call must be left to the kernel.
    fn begin_call(&self, thread: u32, data: &seccomp_data) -> Option<usize>;

    /// Clears the record at this place, after the call was handled.
    fn end_call(&self, place: usize);
}

/// The record of a call that is being handled. Dropping it clears the record.
#[derive(Debug)]
pub struct InHand<'a> {
    call_recorder: &'a dyn CallRecorder,
    place: usize,
}

impl<'a> InHand<'a> {
    /// Records the call. `None` if it must be left to the kernel.
    #[must_use]
    pub fn begin(
        call_recorder: &'a dyn CallRecorder,
        thread: u32,
        data: &seccomp_data,
    ) -> Option<Self> {
        let place = call_recorder.begin_call(thread, data)?;
        Some(Self { call_recorder, place })
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.call_recorder.end_call(self.place);
    }
}
