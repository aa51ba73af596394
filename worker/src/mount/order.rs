//! The description of a granted mount: everything that policy has decided, as it is sent to the
//! process that makes the mount.
//!
//! Paths are bytes as the caller gave them, and must only be resolved as the caller. Start reading
//! at [`Order`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A mount that policy grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The source, as the caller gave it.
    pub source: Option<Vec<u8>>,
    /// The target, as the caller gave it.
    pub target: Vec<u8>,
    /// The filesystem type.
    pub filesystem: String,
    /// `MOUNT_ATTR_*`.
    pub attributes: u64,
    /// Set for a read-only mount, whose source is opened for reading.
    pub read_only: bool,
    /// Kernel or helper.
    pub how: How,
    /// The timeout.
    pub deadline: Duration,
}

/// The maker of the filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// The kernel.
    Kernel(Superblock),
    /// A FUSE program that runs as the caller.
    Helper(Handler),
    /// The kernel, with the caller's rights: a procfs or sysfs of its namespaces, covered as the
    /// container's own is.
    Own(Parameters),
}

/// The parameters for fsconfig(2), flags without a value.
pub type Parameters = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A FUSE program and its options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handler {
    /// The program.
    pub program: Executable,
    /// The options of the filesystem.
    pub options: Vec<Vec<u8>>,
    /// The options of the mount, for a program that calls mount(2) itself.
    pub mount_options: Vec<String>,
}

/// The executable of a helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Executable {
    /// Its name or path in the container.
    InContainer(String),
    /// Its path on the host.
    OnHost(String),
}

impl Executable {
    /// Returns the name or path.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::InContainer(name) | Self::OnHost(name) => name,
        }
    }
}

/// The parameters of a filesystem of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superblock {
    /// Its parameters.
    pub parameters: Parameters,
    /// Set if the source is a block device or an image file.
    pub on_device: bool,
    /// Set if file owners are mapped to the container's user namespace (`MOUNT_ATTR_IDMAP`).
    pub shift: bool,
}
