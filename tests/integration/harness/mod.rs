//! What starts, limits and stops things for the tests. Nothing here asserts what the product
//! promises; it fails only when a test cannot be carried out.
//!
//! Start reading at [`daemon::Daemon`] and [`sandbox`].

pub(crate) mod cgroup;
pub(crate) mod command;
pub(crate) mod daemon;
pub(crate) mod host;
pub(crate) mod lxc;
pub(crate) mod machine;
pub(crate) mod oci;
pub(crate) mod profile;
pub(crate) mod sandbox;
pub(crate) mod table;
pub(crate) mod text;
