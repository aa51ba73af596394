//! Counters of the overlay's work: files opened, reads, refusals. They are shown by `ambit status`,
//! and tests use them instead of time. Counting must never wait nor order memory: all operations
//! are relaxed. Start reading at [`Counts`].

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one overlay.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) opens: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) renders: AtomicU64,
    pub(crate) adopted: AtomicU64,
    pub(crate) unkept: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) panics: AtomicU64,
}

/// The counters at one instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files opened.
    pub opens: u64,
    /// READ requests answered, the one at the end of a file included.
    pub reads: u64,
    /// Texts rendered.
    pub renders: u64,
    /// Handles of a predecessor that were served after identifying the reader again.
    pub adopted: u64,
    /// Reads whose text was not kept, because open files hold too much text.
    pub unkept: u64,
    /// Opens and reads that failed, because the reader is not known or has no numbers.
    pub refused: u64,
    /// Requests answered EIO because their code panicked.
    pub panics: u64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            opens: of(&self.opens),
            reads: of(&self.reads),
            renders: of(&self.renders),
            adopted: of(&self.adopted),
            unkept: of(&self.unkept),
            refused: of(&self.refused),
            panics: of(&self.panics),
        }
    }
}
