//! Parsers of this package, as fuzz targets call them (`fuzz/`): kernel text, and names and writes
//! of containers.
//!
//! Compiled with the feature `fuzzing` only.

use crate::{families, pressure};

/// Runs every parser on the same bytes.
///
/// # Panics
/// A parser returned what is not in the text.
pub fn parse_all(text: &[u8]) {
    let _ = pressure::window(text);
    if let Some(number) = families::numbered(text, "cpu") {
        assert_eq!(format!("cpu{number}").as_bytes(), text);
    }
}
