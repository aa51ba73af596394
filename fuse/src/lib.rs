//! The overlay: files of `/proc` and `/sys` rendered with the numbers of the container that reads
//! them.
//!
//! The path of a read: the kernel sends OPEN with the id of the calling thread. [`filesystem`]
//! decodes it, `service` gets the numbers of that thread's container from [`ambit_sysinfo::Views`],
//! and the file is rendered into a pooled buffer of `handles`. Every READ copies from that buffer.
//! Renderers (`files/`) format a view and compute nothing.
//!
//! The package never reads a cgroup or a process, never opens a path of the host that a container
//! names, and holds no lock while it gets numbers, but that of one open file. Start reading at
//! [`overlay`] (what a file is), then [`session`] (how serving starts, ends and is handed
//! over).

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
pub mod lease_nodes;
mod leases;
pub mod mount;
pub mod options;
pub mod overlay;
mod prefault_allocator;
pub mod pressure;
mod recorder;
mod refuse;
mod request_slot;
mod service;
pub mod session;
mod spare;
pub mod submount;
pub mod text;
mod thread_pool;
pub mod tree;
mod turns;
pub mod visit;

pub use counters::Counts;
pub use error::Error;
pub use families::{FAMILIES, Family};
pub use files::FILES;
pub use options::MountOptions;
pub use overlay::OverlayFile;
pub use prefault_allocator::PrefaultAllocator;
pub use recorder::{Operation, describe};
pub use session::{Detached, Overlay, Restored};
pub use submount::Submount;
pub use text::Text;
pub use visit::{Visit, Visitor};

/// Returns the paths below the root of the overlay that are bind-mounted over the same paths of a
/// container: files such as `proc/meminfo`, and whole directories if their entries differ between
/// containers, such as `sys/devices/system/cpu`.
pub fn bind_points() -> impl Iterator<Item = &'static str> {
    let directories = || FAMILIES.iter().map(|family| family.directory());
    let within = move |path: &str| {
        directories()
            .any(|directory| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/')))
    };
    let files = FILES.iter().map(|file| file.path);
    files.filter(move |path| !within(path)).chain(directories())
}

#[cfg(test)]
mod fixture;
