//! The keeper: the parent of the server, which holds what must outlive it.
//!
//! `ambit serve` becomes the keeper and starts the server as its child. The server gives it every
//! descriptor that a container depends on, under a name, as one gives them to systemd's store;
//! when the server dies, its successor gets all of them back and goes on. The keeper has one
//! thread, waits in one poll(2), reads only what the server says, and never looks into what it
//! holds.
//!
//! Start reading at [`process`] (the keeper), then [`link`] (the server's side of it).
#![allow(clippy::print_stderr, reason = "the keeper reports in its own way")]

pub mod link;
pub(crate) mod memory;
pub mod process;
mod store;
pub mod wire;

pub use store::has_manager;
