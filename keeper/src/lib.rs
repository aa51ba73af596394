//! The keeper: the parent of the server and of its broker, which holds what must outlive them.
//!
//! `ambit serve` becomes the keeper and starts the server as its child. The server gives it every
//! descriptor that a container depends on, under a name, as one gives them to systemd's store;
//! when the server dies, its successor gets all of them back and goes on. The keeper has one
//! thread, waits in one poll(2), reads only what the server says, and never looks into what it
//! holds. Until it is stopped it never exits, and it waits for nothing without a bound: not for a
//! process, a peer of a socket, or standard error.
//!
//! Start reading at [`process`] (the keeper), then [`link`] (the server's side of it).

mod child;
mod death;
mod edition;
pub mod link;
mod manager;
pub mod memory;
pub mod process;
mod program;
pub mod socket;
mod store;
mod succession;
pub mod wire;

pub use store::has_manager;
