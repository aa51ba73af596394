//! The table of what is shown and what is true. A test states one row for each formula that it
//! holds against the kernel; `scripts/test` prints the rows of a run as one table.
//!
//! A row is one line of fields between bars, on standard error and around the capture of output:
//! `row|6.1 v2|formula|situation|shown|true|tolerance|reason`.

use std::io::Write as _;

use super::cgroup;

/// Starts a row: the formula, and the situation that was made for it.
pub(crate) fn row<'a>(formula: &'a str, situation: &'a str) -> Row<'a> {
    Row { formula, situation, reason: "" }
}

/// A row whose numbers are still to be given.
#[derive(Debug)]
#[must_use = "a row without numbers checks nothing"]
pub(crate) struct Row<'a> {
    formula: &'a str,
    situation: &'a str,
    reason: &'a str,
}

impl<'a> Row<'a> {
    /// Says why what is shown may differ from what is true, in at most 26 letters.
    pub(crate) fn because(self, reason: &'a str) -> Self {
        Self { reason, ..self }
    }

    /// Prints the row of two sizes in bytes, and fails if they are further apart than the
    /// tolerance.
    #[track_caller]
    pub(crate) fn bytes(self, shown: u64, right: u64, tolerance: u64) {
        const MIB: f64 = (1 << 20) as f64;
        self.check(shown as f64 / MIB, right as f64 / MIB, tolerance as f64 / MIB, " MiB");
    }

    /// The same of two numbers.
    #[track_caller]
    pub(crate) fn numbers(self, shown: f64, right: f64, tolerance: f64) {
        self.check(shown, right, tolerance, "");
    }

    #[track_caller]
    fn check(self, shown: f64, right: f64, tolerance: f64, unit: &str) {
        let Self { formula, situation, reason } = self;
        let is_right = (shown - right).abs() <= tolerance;
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let release = release.split('.').take(2).collect::<Vec<_>>().join(".");
        let version = if cgroup::memory_is_v2() { "v2" } else { "v1" };
        let text = |number: f64| {
            let decimals = if number.fract() == 0.0 { 0 } else { 2 };
            format!("{number:.decimals$}{unit}")
        };
        let numbers = [shown, right, tolerance].map(text).join("|");
        let mark = if is_right { "" } else { "WRONG: " };
        let _ = writeln!(
            std::io::stderr(),
            "\nrow|{release} {version}|{formula}|{situation}|{numbers}|{mark}{reason}"
        );
        assert!(
            is_right,
            "{formula}, {situation}: {shown}{unit} shown, {right}{unit} true, {tolerance} allowed"
        );
    }
}
