//! The FUSE connections besides the overlay's own, each mounted on a folder of the overlay. What
//! holds for a whole connection, such as an operation that is never sent again, does not hold for
//! the overlay. Start reading at [`Submount`].

use crate::tree::{LEASES, PRESSURE};

/// A file among those on lease that is opened once, so that the kernel learns which requests are not
/// answered.
pub(crate) const PRIMER: &str = "primer";

/// A connection besides the overlay's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submount {
    /// `/proc/pressure`, on whose files triggers can be set.
    Pressure,
    /// The files of single containers, which the kernel keeps for a moment.
    Leases,
}

impl Submount {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Pressure, Self::Leases];

    /// The name under which its descriptors are kept.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pressure => "pressure",
            Self::Leases => "leases",
        }
    }

    /// Its mount point, below the root of the overlay.
    pub const fn place(self) -> &'static str {
        match self {
            Self::Pressure => PRESSURE,
            Self::Leases => LEASES,
        }
    }

    /// What containers lack without it.
    pub(crate) const fn missing(self) -> &'static str {
        match self {
            Self::Pressure => "no triggers can be set on /proc/pressure",
            Self::Leases => "the kernel keeps no file for containers: each read is answered here",
        }
    }
}
