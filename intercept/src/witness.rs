//! The interface to what records the call that each thread is handling, in memory that outlives the
//! process: the kernel sends a call that kills the server to its successor again.

use std::fmt::Debug;

use libseccomp_sys::seccomp_data;

/// Is told which call each thread is about to handle.
pub trait Witness: Send + Sync + Debug {
    /// This call of this thread is about to be handled. Returns the place of the record, or `None` if
    /// the call must be left to the kernel.
    fn begin_call(&self, thread: u32, data: &seccomp_data) -> Option<usize>;

    /// The call at this place has been handled.
    fn end_call(&self, place: usize);
}

/// A call that is being handled: its record is cleared when this is dropped.
#[derive(Debug)]
pub struct InHand<'a> {
    witness: &'a dyn Witness,
    place: usize,
}

impl<'a> InHand<'a> {
    /// Tells the witness. `None` if the call must be left to the kernel.
    #[must_use]
    pub fn begin(witness: &'a dyn Witness, thread: u32, data: &seccomp_data) -> Option<Self> {
        let place = witness.begin_call(thread, data)?;
        Some(Self { witness, place })
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.witness.end_call(self.place);
    }
}
