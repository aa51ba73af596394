//! Output of a process that is not trusted, made safe for a terminal.
//!
//! Escape sequences can change the title, answer for the user or hide text. Each control character
//! but the line feed and the tab becomes `\u00NN`, which JSON understands too, and what is no UTF-8
//! becomes U+FFFD.

use std::fmt::Write;

/// Converts a stream of bytes piece by piece.
#[derive(Debug, Default)]
pub struct Printable {
    /// The beginning of a character whose other bytes are in the next piece.
    begun: Vec<u8>,
}

impl Printable {
    /// Converts the next piece.
    pub fn convert(&mut self, piece: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.begun);
        bytes.extend_from_slice(piece);
        let mut text = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            for char in chunk.valid().chars() {
                match char {
                    '\n' | '\t' => text.push(char),
                    // Writing to a string does not fail.
                    _ if char.is_control() => drop(write!(text, "\\u{:04x}", u32::from(char))),
                    _ => text.push(char),
                }
            }
            let invalid = chunk.invalid();
            let is_begun = chunks.peek().is_none()
                && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if is_begun {
                self.begun = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        let convert = |bytes: &[u8]| Printable::default().convert(bytes);
        assert_eq!(convert(b"a\tb\n"), "a\tb\n");
        assert_eq!(convert(b"\x1b[2J\r\x07\x7f"), "\\u001b[2J\\u000d\\u0007\\u007f");
        // CSI as one character.
        assert_eq!(convert("\u{9b}2J ✓".as_bytes()), "\\u009b2J ✓");
        assert_eq!(convert(b"\xff\xc2x"), "\u{fffd}\u{fffd}x");
    }

    #[test]
    fn characters_are_whole_across_pieces() {
        let mut printable = Printable::default();
        let text: String = "✓ é".as_bytes().chunks(1).map(|byte| printable.convert(byte)).collect();
        assert_eq!(text, "✓ é");
        assert_eq!(printable.convert(b"\xe2\x9c"), "");
        assert_eq!(printable.convert(b"x"), "\u{fffd}x");
    }
}
