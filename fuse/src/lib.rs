//! The overlay: `/proc` and `/sys` files rendered for the container that reads them.
//!
//! The life of a read: the kernel sends OPEN with the thread that asks; [`filesystem`] decodes
//! it, `service` asks [`ambit_sysinfo::Views`] for the numbers of that thread's container and
//! has the file rendered into a pooled buffer of `handles`; every READ is a copy out of that
//! buffer. Renderers (`files/`) format a view and compute nothing.
//!
//! The package never reads a cgroup or a process, never passes a path of the host through, and
//! never holds a lock while it asks for numbers. Start reading at [`overlay`] (what a file is
//! and the list of all of them), then [`session`] (how serving starts, ends and is handed over).

pub mod adopt;
pub mod counters;
pub mod error;
pub mod files;
pub mod filesystem;
mod handles;
pub mod mount;
mod mountinfo;
pub mod overlay;
mod service;
pub mod session;
pub mod text;
pub mod tree;

pub use counters::Counts;
pub use error::Error;
pub use files::FILES;
pub use filesystem::OverlayFilesystem;
pub use overlay::{Description, OverlayFile};
pub use session::{MountOptions, Overlay};
pub use text::Text;

/// The files of the overlay as paths below its root, such as `proc/meminfo`. Each of them is
/// bound by itself over the same path of a container.
pub fn bind_points() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|file| file.describe().path)
}

#[cfg(test)]
mod fixture;
