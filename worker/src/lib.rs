//! Privileged work for containers: mounts, device nodes and other operations that need more rights
//! than a container has, and the overlay's files in containers that run.
//!
//! [`Broker`] is a single-threaded process that forks all others: one process for each mount
//! ([`mount`]) and for each container to be equipped ([`attach`]), and one long-lived worker for each
//! set of control groups ([`operation`]). A process that works as the caller gets descriptors and
//! numbers only, which were taken while the caller was known to wait in its system call ([`WholeCaller`],
//! [`operation::CallerHandle`]).
//!
//! This package must never decide whether a call is granted: the policies are in `intercept`. Start
//! reading at `broker.rs`.

pub mod attach;
mod bind_device;
mod broker;
mod caller;
mod child;
mod error;
mod find;
mod inside;
mod lookup;
pub mod mount;
mod no_mounts;
pub mod operation;
mod pin;
mod report_channel;

pub use bind_device::Bind;
pub use broker::Broker;
pub use caller::{Facts, IdMaps, WholeCaller};
pub use error::Error;
pub use find::Find;
pub use inside::run_inside;
