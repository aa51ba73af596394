//! System calls that neither nix nor rustix offers, one file each. Nothing here decides anything. Only
//! `raw` allows `unsafe_code`.

pub mod affinity;
pub mod arches;
pub mod arenas;
pub mod bpf;
pub mod close_range;
pub mod file_handle;
pub mod fork;
pub mod fuse_connections;
pub mod inherited;
pub mod loop_device;
pub mod mapping;
pub mod mount_setattr;
pub mod pid_in_namespace;
pub mod procmap_query;
mod raw;
pub mod scheduling;
pub mod seccomp;
pub mod setxattrat;
pub mod shared_descriptors;
pub mod signal_defaults;
pub mod superblock_owner;
mod uapi;
pub mod user_namespace;
pub mod x32;
