//! End-to-end tests: what a user sees, with the real program, real programs in real containers,
//! and the kernel this runs on.
//!
//! One program, because one boot of a guest runs all of it. Run it through `scripts/test`, which
//! gives it a machine of its own; it needs root and `--test-threads=1`. A test that lacks a
//! program fails; what a kernel does not have at all (a cpuset controller, a second processor)
//! is said on standard error as `not on this kernel`.
//!
//! Start reading at `limited.rs`; `harness/` holds what starts and stops things.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

mod accounts;
mod attach;
mod audit;
mod behaviour;
mod bounds;
mod bpf;
mod budget;
mod callers_files;
mod calls;
mod covered;
mod cpu_policies;
mod crash_guard;
mod crowd;
mod dead;
mod engines;
mod equipped;
mod fallbacks;
mod foreign;
mod hostile;
mod lifecycle;
mod limited;
mod lxcfs;
mod memory;
mod mknod;
mod mount;
mod older_kernel;
mod output;
mod pressure;
mod processors;
mod profile;
mod program;
mod protocols;
mod rootless;
mod sched;
mod setup;
mod sockets;
mod steady;
mod stop;
mod survival;
mod terminal;
mod toolchain;
mod truth;
mod under_systemd;
mod views;
