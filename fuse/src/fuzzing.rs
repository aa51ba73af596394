//! Parsers of this package, as fuzz targets call them (`fuzz/`): text of the kernel, and what
//! containers name and write.
//!
//! Compiled with the feature `fuzzing` only.

use crate::{families, pressure};

/// Every parser, on the same bytes.
pub fn parse_all(text: &[u8]) {
    let _ = pressure::window(text);
    if let Some(number) = families::numbered(text, "cpu") {
        assert_eq!(format!("cpu{number}").as_bytes(), text);
    }
}
