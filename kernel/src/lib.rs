//! The kernel's interfaces that nix and rustix lack.
//!
//! [`sys`] has raw system calls and ioctls, [`text`] has parsers of what the kernel writes in
//! `/proc`, [`channel`] has messages with descriptors, [`output`] writes to standard output and
//! error without panics, [`watchdog`] checks threads that may hang, [`recorder`] is the interface to
//! what records the requests in hand, and [`lock()`] locks a mutex. This package decides nothing and
//! knows no other package of ambit.

pub mod channel;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod lock;
pub mod output;
pub mod recorder;
pub mod sys;
pub mod text;
pub mod watchdog;

pub use lock::lock;
