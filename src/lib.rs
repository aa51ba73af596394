//! The program `ambit`: one daemon that makes every container see its own bounds.
//!
//! Start reading at `daemon` (what is started, in which order), then the packages:
//! `ambit-fuse` (the overlay), `ambit-intercept` (system calls), `ambit-sysinfo` (accounting).
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![allow(unreachable_pub, reason = "a program, whose modules are all private")]

mod absence;
mod attach;
mod attacher;
mod check;
mod check_process;
mod cli;
mod config;
mod containers;
mod control;
mod crash_guard;
mod daemon;
mod dead_mounts;
mod dependents;
mod drop_in;
mod hook;
mod logging;
mod lxcfs;
mod mount_namespaces;
mod oci_runtime;
mod overlay_connection;
mod process_setup;
mod profile;
mod run;
mod self_check;
mod serve;
mod server_filter;
mod setup;
mod status;
mod stop;
mod threads;
mod verify;
mod visitor;
mod watcher;

pub use cli::{Cli, main};
pub use config::Config;
pub use config::print::default_file;
