//! System calls that neither nix nor rustix offers. Nothing here decides anything. Only
//! `raw` allows `unsafe_code`.

/// Processors of a thread.
pub mod affinity {
    pub use super::raw::sched_getaffinity;
}
pub mod arches;
pub mod arenas;
pub mod bpf;
pub mod capabilities;
pub mod close_range;
pub mod command_line;
pub mod errno;
pub mod file_handle;
mod filter_program;
pub mod fork;
pub mod fuse_connections;
/// Descriptors that came with `execve`.
pub mod inherited {
    pub use super::raw::take;
}
pub mod loop_device;
/// Memory that processes share by mapping one file.
pub mod mapping {
    pub use super::raw::{Lasting, Mapping};
}
pub mod mount_setattr;
pub mod named_copy;
/// Ids of processes in other namespaces.
pub mod pid_in_namespace {
    pub use super::raw::pid_from_namespace;
}
pub mod procmap_query;
mod raw;
pub mod release;
pub mod remount;
pub mod scheduling;
/// Filters with a listener.
pub mod seccomp {
    pub use super::filter_program::{export, refusing};
    pub use super::raw::{install_with_listener, notification_sizes};
}
pub mod setxattrat;
/// Tables of descriptors of threads.
pub mod shared_descriptors {
    pub use super::raw::shared;
}
pub mod signal_defaults;
pub mod superblock_owner;
mod uapi;
pub mod user_namespace;
pub mod x32;

#[cfg(test)]
mod tests;
