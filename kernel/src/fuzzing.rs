//! The parsers of kernel text, as fuzz targets call them (`fuzz/`).
//!
//! Compiled with the feature `fuzzing` only.

use crate::text::id_map::IdMap;
use crate::text::maps::{Access, Coverage};
use crate::text::status::{Credentials, Status};
use crate::text::{control_groups, limits, mountinfo, numbers, profile, scan, stat, watches};

/// Runs every parser on the same bytes.
///
/// # Panics
/// A parser returned what is not in the text.
pub fn parse_all(text: &[u8]) {
    let status = Status(text);
    for label in ["Name:", "Umask:", "Tgid:", "Uid:", "Groups:", "NSpid:", "CapEff:", ""] {
        assert!(status.numbers(label).count() <= text.len());
        let _ = (status.radix(label, 8), status.radix(label, 16));
    }
    assert!(Credentials::of(status).is_none_or(|all| all.groups.len() <= text.len()));
    let _ = (scan::signed(text), scan::words(text).count(), scan::pairs(text).count());
    let map = IdMap::parse(text);
    for (first, count) in map.outsiders() {
        if count > 0
            && let Some(inside) = map.inside(first)
        {
            assert!(map.outside(inside).is_some());
        }
    }
    assert!(limits::parse(text).len() <= text.len() && watches::parse(text).len() <= text.len());
    let _ = (profile::parse(text), numbers::<i32>(text).count());
    let _ = (control_groups::path(text), control_groups::name(text));
    let _ = (stat::state(text), control_groups::lines(text).count());
    let mut coverage = Coverage::new(1 << 12, 1 << 20, Access::Write);
    coverage.feed(text);
    assert!((1 << 12..=1 << 20).contains(&coverage.covered()));
    // Paths and sources in it are names that containers choose.
    let mounts: Vec<_> = mountinfo::all(text).collect();
    assert!(mounts.len() <= text.len());
    let groups = control_groups::folders(&mounts, text);
    assert!(groups.count() <= text.len());
}
