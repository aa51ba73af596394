//! Work for containers that needs more rights than they have.
//!
//! [`Broker`] is a process with one thread that forks everything else: a process for each
//! mount (`mount`), and a lasting one for the quick acts of a control group (`act`). What acts in
//! the caller's place is told by descriptors and numbers that were taken while the caller was
//! known to wait ([`Caller`], [`act::Actor`]).

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
