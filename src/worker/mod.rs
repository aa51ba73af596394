//! Work for containers that needs more rights than they have.

pub mod mount;
