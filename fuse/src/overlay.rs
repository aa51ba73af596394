//! The trait of a file of the overlay.
//!
//! To add a file, add a module under `files/` and a line in [`FILES`](crate::FILES);
//! [`OverlayFile::path`] determines its position in the tree. A renderer formats numbers of the
//! [`View`]; it must not compute them, read anything, or show a number of the machine that is not
//! in the view.

use std::fmt::Debug;

use ambit_sysinfo::{Host, StatSet, View};

use crate::text::Text;

/// A file that shows every container its own numbers.
pub trait OverlayFile: Sync + Debug {
    /// The path below the root of the overlay, such as `proc/meminfo`; the file of the kernel has
    /// the same path below `/`.
    fn path(&self) -> &'static str;

    /// Writes the file as the container of `view` sees it.
    fn render(&self, view: &View, out: &mut Text);

    /// True if the kernel shows 32-bit programs another text.
    fn differs_for_32_bit(&self, _host: &Host) -> bool {
        false
    }

    /// Writes the file as a thread with the personality of a 32-bit program sees it.
    fn render_32_bit(&self, view: &View, out: &mut Text) {
        self.render(view, out);
    }

    /// Writes the file as a container that has it on lease sees it, whose texts must all have the
    /// same layout: in columns that hold the largest numbers of this machine.
    fn render_columns(&self, view: &View, out: &mut Text) {
        self.render(view, out);
    }

    /// The groups of numbers that it shows. Only these are read for its readers; the others can be
    /// old.
    fn needs(&self) -> StatSet;

    /// The mode of the kernel's file. A file without read permission for others may be opened by
    /// root only, and even root on the host is not shown the machine's text.
    fn mode(&self) -> u16 {
        WORLD_READABLE
    }

    /// An upper bound for the length of the file on this machine. A file that fits in a page has
    /// the size of a page for every caller; the size of a longer one is that of the caller's own
    /// text.
    fn longest(&self, _host: &Host) -> usize {
        PAGE
    }
}

/// The mode of a file that every user may read.
pub const WORLD_READABLE: u16 = 0o444;

/// The size of files that are not longer than this.
pub const PAGE: usize = 4096;
