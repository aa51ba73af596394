//! The program `ambit`: one daemon that makes every container see its own bounds.
//!
//! Start reading at `daemon` (what is started, in which order), then the packages:
//! `ambit-fuse` (the overlay), `ambit-intercept` (system calls), `ambit-sysinfo` (accounting).
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod absence;
pub mod attach;
pub mod attacher;
pub mod check;
pub mod check_process;
pub mod cli;
pub mod config;
pub mod containers;
pub mod control;
pub mod crash_guard;
pub mod daemon;
pub mod dead_mounts;
pub mod dependents;
pub mod drop_in;
pub mod hook;
pub mod logging;
pub mod lxcfs;
pub mod mount_namespaces;
pub mod oci_runtime;
mod overlay_connection;
mod process_setup;
pub mod profile;
pub mod run;
pub mod self_check;
pub mod serve;
mod server_filter;
pub mod setup;
pub mod status;
pub mod stop;
mod threads;
pub mod verify;
pub mod visitor;
pub mod watcher;
