//! The FUSE connections besides the overlay's own, each mounted on a folder of the overlay: what
//! holds for a whole connection, such as an operation that is never sent again, does not hold for
//! the overlay. Start reading at [`Upper`].

use crate::tree::PRESSURE;

/// A connection besides the overlay's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upper {
    /// `/proc/pressure`, on whose files triggers can be set.
    Pressure,
}

impl Upper {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Pressure];

    /// The name under which its descriptors are kept.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pressure => "pressure",
        }
    }

    /// Its mount point, below the root of the overlay.
    #[must_use]
    pub const fn place(self) -> &'static str {
        match self {
            Self::Pressure => PRESSURE,
        }
    }

    /// What containers lack without it.
    pub(crate) const fn missing(self) -> &'static str {
        match self {
            Self::Pressure => "no triggers can be set on /proc/pressure",
        }
    }
}
