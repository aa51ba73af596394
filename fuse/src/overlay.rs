//! What a file of the overlay is.
//!
//! A new file is one new module under `files/` and one line in [`FILES`](crate::FILES): its
//! place in the tree comes from [`OverlayFile::path`]. A renderer formats numbers of the [`View`];
//! it must not compute them, read anything, or show a number of the machine that the view does not
//! carry.

use std::fmt::Debug;

use ambit_sysinfo::{Host, StatSet, View};

use crate::text::Text;

/// A file that shows every container its own numbers.
pub trait OverlayFile: Sync + Debug {
    /// The path below the root of the overlay, such as `proc/meminfo`; the file of the kernel has the
    /// same path below `/`.
    fn path(&self) -> &'static str;

    /// Writes the file as the container of `view` sees it.
    fn render(&self, view: &View, out: &mut Text);

    /// Does the machine show 32-bit programs another text?
    fn differs_for_32_bit(&self, _host: &Host) -> bool {
        false
    }

    /// Writes the file as a thread with the personality of a 32-bit program sees it.
    fn render_32_bit(&self, view: &View, out: &mut Text) {
        self.render(view, out);
    }

    /// The numbers it shows that few other files show: they are sampled for its readers only.
    fn needs(&self) -> StatSet {
        StatSet::NONE
    }

    /// Its mode, as the kernel's file has it. What not everybody may read, only root may open,
    /// and even root is never shown the machine's text.
    fn mode(&self) -> u16 {
        EVERYBODY
    }

    /// At least as many bytes as the file can have on a machine. A file that fits a page has
    /// the size of a page, whoever looks; of a longer one, each reader is told its own size.
    fn longest(&self, _host: &Host) -> usize {
        PAGE
    }
}

/// The mode of a file that everybody may read.
pub const EVERYBODY: u16 = 0o444;

/// The size that files show which are no longer than this.
pub const PAGE: usize = 4096;
