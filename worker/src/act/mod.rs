//! Quick acts: calls that are a few system calls when made with the rights to make them.
//!
//! A worker is a small process in the control groups of those for whom it acts, so that what an act
//! uses is theirs and their device policy decides. It takes one `Task` at a time from its socket,
//! takes on root, users and mask of the caller, and never executes a program or forks. It ends
//! together with the process that asked last, because a control group with a process in it cannot
//! be removed, or when nobody has asked for a while. Start reading at `process.rs`.

mod actor;
pub mod bpf;
mod identity;
mod mknod;
mod pool;
mod process;
mod reply;
mod set_opaque;
mod task;

pub use actor::{Actor, Base};
pub use identity::Identity;
pub use mknod::Mknod;
pub use pool::{TIMES, Workers};
pub(super) use process::serve;
pub use reply::{Answer, Reply};
pub use set_opaque::SetOpaque;
pub use task::What;
