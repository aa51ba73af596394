//! A file of the overlay.
//!
//! To add a file, add a module under `files/` and a line in [`FILES`](crate::FILES);
//! [`OverlayFile::path`] determines its position in the tree. A renderer formats numbers of the
//! [`View`]; it must not compute them, read anything, or show a number of the machine that is not
//! in the view.

use ambit_sysinfo::{Host, StatSet, View};

use crate::text::Text;

/// Writes a file as the container of a view sees it.
pub type Renderer = fn(&View, &mut Text);

/// A file that shows every container its own numbers.
#[derive(Debug)]
pub struct OverlayFile {
    /// The path below the root of the overlay, such as `proc/meminfo`; the file of the kernel has
    /// the same path below `/`.
    pub path: &'static str,
    /// The groups of numbers that it shows. Only these are read for its readers; the others can be
    /// old.
    pub needs: StatSet,
    /// The mode of the kernel's file. A file without read permission for others may be opened by
    /// root only, and even root on the host is not shown the machine's text.
    pub mode: u16,
    /// Writes the file.
    pub render: Renderer,
    /// Writes the file as a container that has it on lease sees it, whose texts must all have the
    /// same layout: in columns that hold the largest numbers of this machine.
    pub render_columns: Renderer,
    /// Writes the file as a thread with the personality of a 32-bit program sees it, on machines
    /// that have another text for those (`Host::cpuinfo_32`).
    pub render_32_bit: Option<Renderer>,
    /// An upper bound for the length of the file on this machine. A file that fits in a page has
    /// the size of a page for every caller; the size of a longer one is that of the caller's own
    /// text.
    pub longest: fn(&Host) -> usize,
}

impl OverlayFile {
    /// Makes a file of at most a page that every user may read.
    pub(crate) const fn new(path: &'static str, needs: StatSet, render: Renderer) -> Self {
        let (mode, longest) = (WORLD_READABLE, |_: &Host| PAGE);
        Self { path, needs, mode, render, render_columns: render, render_32_bit: None, longest }
    }
}

/// The mode of a file that every user may read.
pub const WORLD_READABLE: u16 = 0o444;

/// The size of files that are not longer than this.
pub const PAGE: usize = 4096;
