//! What is to be mounted: everything that was decided, as it is handed to the process that acts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A mount that policy grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The source, as the caller named it.
    pub source: Option<Vec<u8>>,
    /// The target, as the caller named it.
    pub target: Vec<u8>,
    /// The kernel's name of the filesystem.
    pub filesystem: String,
    /// `MOUNT_ATTR_*`.
    pub attributes: u64,
    /// Is nothing written?
    pub read_only: bool,
    /// Who mounts.
    pub how: How,
    /// How long it may take.
    pub deadline: Duration,
}

/// Who makes the filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// The kernel.
    Kernel(Superblock),
    /// A program, as the caller.
    Helper(Handler),
}

/// A program that serves a filesystem by FUSE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handler {
    /// Where it is.
    pub program: Executable,
    /// Options of the filesystem.
    pub options: Vec<Vec<u8>>,
    /// Options of the mount, for a program that mounts by itself.
    pub mount_options: Vec<String>,
}

/// The program of a helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Executable {
    /// Its name, or its path in the container.
    InContainer(String),
    /// Its path on the host.
    OnHost(String),
}

impl Executable {
    /// The name or path.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::InContainer(name) | Self::OnHost(name) => name,
        }
    }
}

/// What the kernel is told of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superblock {
    /// Parameters without (flags) and with values.
    pub parameters: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Is the source a block device or an image file?
    pub on_device: bool,
    /// Are the owners of its files the container's users?
    pub shift: bool,
}
