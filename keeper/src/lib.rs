//! The keeper: the parent process of the server and of its broker. It holds the descriptors that
//! must outlive them.
//!
//! `ambit serve` becomes the keeper and starts the server as its child. The server sends every
//! descriptor that a container depends on to the keeper, under a name, like sd_notify(3) with
//! `FDSTORE=1`. When the server dies, the next server gets all of them back. The keeper has one
//! thread, waits in one poll(2), reads only messages of the server, and never reads the descriptors
//! that it holds. It does not exit until it is stopped. It never waits without a time limit: not
//! for a process, a peer of a socket, or standard error.
//!
//! Start reading at [`process`] (the keeper), then [`client`] (the server's side).

mod candidate;
mod child;
pub mod client;
mod death;
mod edition;
mod manager;
pub mod memory;
pub mod process;
mod program;
pub mod socket;
mod store;
mod succession;
mod wait;
pub mod wire;

pub use store::has_manager;
