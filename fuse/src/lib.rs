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
mod connection;
pub mod counters;
mod entries;
pub mod error;
pub mod families;
pub mod files;
pub mod filesystem;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod handles;
pub mod mount;
pub mod overlay;
mod prefault_allocator;
pub mod pressure;
mod recorder;
mod request_slot;
mod service;
pub mod session;
mod spare;
pub mod text;
mod thread_pool;
pub mod tree;
pub mod visit;

pub use counters::Counts;
pub use error::Error;
pub use families::{FAMILIES, Family};
pub use files::FILES;
pub use overlay::OverlayFile;
pub use prefault_allocator::PrefaultAllocator;
pub use recorder::{FileRequest, Operation, RequestRecorder, describe};
pub use session::{Detached, MountOptions, Overlay, Restored};
pub use text::Text;
pub use visit::{Visit, Visitor};

/// What is bound over the same path of a container, as paths below the root of the overlay: files
/// such as `proc/meminfo`, and directories whole where their entries are the container's own,
/// such as `sys/devices/system/cpu`.
pub fn bind_points() -> impl Iterator<Item = &'static str> {
    let directories = || FAMILIES.iter().map(|family| family.directory());
    let within = move |path: &str| {
        directories()
            .any(|directory| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/')))
    };
    let files = FILES.iter().map(|file| file.path());
    files.filter(move |path| !within(path)).chain(directories())
}

#[cfg(test)]
mod fixture;
