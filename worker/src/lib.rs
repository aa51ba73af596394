//! Privileged work for containers: mounts, device nodes and other operations that need more rights
//! than a container has.
//!
//! [`Broker`] is a single-threaded process that forks all others: one process for each mount
//! ([`mount`]), and one long-lived worker for each set of control groups ([`act`]). A process that
//! works as the caller gets descriptors and numbers only, which were taken while the caller was
//! known to wait in its system call ([`Caller`], [`act::Actor`]).
//!
//! This package must never decide whether a call is granted: the policies are in `intercept`. Start
//! reading at `broker.rs`.

pub mod act;
mod bind;
mod broker;
mod caller;
mod child;
mod failure;
mod find;
mod line;
pub mod mount;
mod pin;

pub use bind::Bind;
pub use broker::Broker;
pub use caller::{Caller, Facts, IdMaps};
pub use failure::Failure;
pub use find::Find;
