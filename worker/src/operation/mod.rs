//! Privileged operations: system calls that need a few system calls with more rights than the
//! caller has.
//!
//! A worker is a small process in the control groups of its callers, so what an operation uses is
//! charged to them and their device policy applies. It takes one `Task` at a time from its socket
//! and assumes root, ids and umask of the caller. It must never execute a program, fork, or hold a
//! capability that overrides file permissions while it resolves a path of the container. It ends
//! with the process that called last, because a control group with a process in it cannot be
//! removed, or after two seconds without a task. Start reading at `process.rs`.

pub mod bpf;
mod caller_handle;
mod identity;
mod is_roots;
mod magic_link;
mod mknod;
mod pool;
mod process;
mod reply;
mod set_opaque;
mod task;

pub use caller_handle::{Base, CallerHandle};
pub use identity::Identity;
pub use is_roots::IsRoots;
pub use magic_link::MagicLink;
pub use mknod::Mknod;
pub use pool::{TIMES, Workers};
pub(super) use process::serve;
pub use reply::{Answer, Reply};
pub use set_opaque::SetOpaque;
pub use task::Operation;
