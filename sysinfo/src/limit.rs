//! A limit of a cgroup, which may be absent. "max" is a variant, never a number, so that it takes
//! part in no arithmetic. Limits are combined here; `derive.rs` applies them. Start reading at
//! [`Limit`].

use ambit_kernel::text::scan;

/// A limit of a cgroup, or of a cgroup and its ancestors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Limit {
    /// No limit was set.
    #[default]
    Unlimited,
    /// A limit of this many units.
    At(u64),
}

impl Limit {
    /// Parses a limit as cgroup v2 prints it: `max` or a number.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        if text == b"max" { Some(Self::Unlimited) } else { scan::decimal(text).map(Self::At) }
    }

    /// The tighter of two limits.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        match (self, other) {
            (Self::At(a), Self::At(b)) => Self::At(a.min(b)),
            (Self::Unlimited, limit) | (limit, Self::Unlimited) => limit,
        }
    }

    /// Returns the limit less this usage, at least 0.
    #[must_use]
    pub fn less(self, usage: u64) -> Self {
        match self {
            Self::Unlimited => Self::Unlimited,
            Self::At(limit) => Self::At(limit.saturating_sub(usage)),
        }
    }

    /// Returns the smaller of the limit and what the machine has.
    pub fn capped_at(self, machine: u64) -> u64 {
        match self {
            Self::Unlimited => machine,
            Self::At(limit) => limit.min(machine),
        }
    }

    /// Converts a limit of cgroup v1. The ceiling of the page counter means "no limit": `LONG_MAX`
    /// rounded down to the page size, which is 4 KiB to 64 KiB.
    pub fn from_v1(bytes: u64) -> Self {
        const CEILING: u64 = (i64::MAX as u64) & !0xFFFF;
        if bytes >= CEILING { Self::Unlimited } else { Self::At(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_is_no_number() {
        assert_eq!(Limit::parse(b"max\n"), Some(Limit::Unlimited));
        assert_eq!(Limit::parse(b"4096\n"), Some(Limit::At(4096)));
        assert_eq!(Limit::parse(b""), None);
    }

    #[test]
    fn the_ceiling_of_v1_is_no_limit() {
        assert_eq!(Limit::from_v1(9_223_372_036_854_771_712), Limit::Unlimited);
        assert_eq!(Limit::from_v1(268_435_456), Limit::At(268_435_456));
    }

    #[test]
    fn the_tighter_limit_wins() {
        assert_eq!(Limit::Unlimited.min(Limit::At(3)), Limit::At(3));
        assert_eq!(Limit::At(2).min(Limit::At(3)), Limit::At(2));
        assert_eq!(Limit::Unlimited.capped_at(7), 7);
        assert_eq!(Limit::At(9).capped_at(7), 7);
    }
}
