//! Receives listeners from OCI runtimes (`linux.seccomp.listenerPath`).
//!
//! For every process that installs a filter, the runtime connects to the daemon's socket, sends one
//! JSON object with the listener attached, and closes the connection some time later. There is no
//! answer, and the runtime never sends a listener twice. After the daemon closes a listener, the
//! calls of its container fail with ENOSYS for ever. So a listener must never be lost because of an
//! unexpected field or a wrong annotation.
//!
//! `message.rs` is the JSON, `receive.rs` reads a connection, and `serve.rs` adopts the listener:
//! start there. `deliver.rs` is the sender, for sandboxes of `ambit run`.

mod deliver;
mod message;
#[cfg(feature = "fuzzing")]
pub(super) use message::parse;
mod receive;
mod serve;

pub use deliver::deliver;
pub(super) use serve::{accepted, entrance, take_over};

/// The annotation that chooses the calls that are answered for a container: names between commas.
pub const ANNOTATION: &str = "ambit.intercept";
