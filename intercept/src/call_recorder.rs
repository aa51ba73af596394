//! The interface to what records the call that each thread is handling, in memory that outlives the
//! process: the kernel sends a call that kills the server to its successor again.

use std::fmt::Debug;

use libseccomp_sys::seccomp_data;

/// Is told which call each thread is about to handle.
pub trait CallRecorder: Send + Sync + Debug {
    /// This call of this thread is about to be handled. Returns the place of the record, or `None` if
    /// the call must be left to the kernel.
    fn begin_call(&self, thread: u32, data: &seccomp_data) -> Option<usize>;

    /// The call at this place has been handled.
    fn end_call(&self, place: usize);
}

/// A call that is being handled: its record is cleared when this is dropped.
#[derive(Debug)]
pub struct InHand<'a> {
    call_recorder: &'a dyn CallRecorder,
    place: usize,
}

impl<'a> InHand<'a> {
    /// Tells the call_recorder. `None` if the call must be left to the kernel.
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
