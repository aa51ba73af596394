//! Listeners from OCI runtimes (`linux.seccomp.listenerPath`).
//!
//! For every process that installs a filter the runtime connects to our socket, sends one JSON
//! object with the listener attached, and sooner or later closes. There is no answer and no
//! second chance: once we close a listener, the calls of its container fail with ENOSYS for
//! ever. So a message is read generously, and what is wrong with its annotations never costs
//! the listener.
//!
//! `message.rs` is the JSON, `receive.rs` reads a connection, `serve.rs` adopts the listener,
//! `deliver.rs` the other side, for our own sandboxes.

mod deliver;
mod message;
#[cfg(feature = "fuzzing")]
pub(super) use message::parse;
mod receive;
mod serve;

pub use deliver::deliver;
pub(super) use serve::{accepted, entrance, take_over};

/// The annotation that chooses the calls to be answered for a container: a comma list of names.
pub const ANNOTATION: &str = "ambit.intercept";
