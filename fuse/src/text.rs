//! A column writer over one buffer that is used again and again: nothing is allocated once the
//! buffer has grown to the size of the text.
//!
//! It knows decimal numbers and columns, which is all that files of `/proc` are made of. It
//! must stay free of `format!` and of anything that allocates.

use std::fmt;

/// A text being written.
#[derive(Debug, Default)]
pub struct Text {
    bytes: Vec<u8>,
    line: usize,
}

impl Text {
    /// An empty text without a buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), line: 0 }
    }

    /// What was written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets what was written and keeps the buffer.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.line = 0;
    }

    /// How much the buffer takes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The buffer itself, for texts that come whole from elsewhere.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Bytes as they are.
    pub fn put(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.bytes.extend_from_slice(bytes.as_ref());
        self
    }

    /// One byte.
    pub fn byte(&mut self, byte: u8) -> &mut Self {
        self.bytes.push(byte);
        self
    }

    /// One blank.
    pub fn space(&mut self) -> &mut Self {
        self.byte(b' ')
    }

    /// The end of a line.
    pub fn newline(&mut self) -> &mut Self {
        self.byte(b'\n');
        self.line = self.bytes.len();
        self
    }

    /// Blanks up to a column of the line, the first column being 0.
    pub fn pad_to(&mut self, column: usize) -> &mut Self {
        let end = self.line + column;
        if self.bytes.len() < end {
            self.bytes.resize(end, b' ');
        }
        self
    }

    /// A decimal number.
    pub fn dec(&mut self, value: u64) -> &mut Self {
        self.right(value, 0)
    }

    /// A decimal number, right aligned in at least `width` columns.
    pub fn right(&mut self, value: u64, width: usize) -> &mut Self {
        let mut digits = [b' '; 20];
        let mut at = digits.len();
        let mut rest = value;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let first = at.min(digits.len() - width.min(digits.len()));
        self.put(&digits[first..])
    }

    /// `whole.cc`: a number with two digits after the point.
    pub fn hundredths(&mut self, whole: u64, hundredths: u64) -> &mut Self {
        let hundredths = hundredths % 100;
        self.dec(whole).byte(b'.');
        self.byte(b'0' + (hundredths / 10) as u8).byte(b'0' + (hundredths % 10) as u8)
    }
}

/// For the `Display` of types that print themselves without allocating, such as
/// [`CpuSet`](ambit_sysinfo::CpuSet).
impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_count_from_the_start_of_the_line() {
        let mut text = Text::new();
        text.put("first").newline().put("ab").pad_to(4).dec(7).pad_to(2).newline();
        assert_eq!(text.as_bytes(), b"first\nab  7\n");
        text.clear();
        text.hundredths(3, 7).space().hundredths(0, 199);
        assert_eq!(text.as_bytes(), b"3.07 0.99");
    }

    proptest! {
        #[test]
        fn numbers_are_printed_like_format_prints_them(value: u64, width in 0usize..20) {
            let mut text = Text::new();
            text.right(value, width).space().dec(value);
            let printed = String::from_utf8(text.as_bytes().to_vec()).unwrap();
            prop_assert_eq!(printed, format!("{value:width$} {value}"));
        }
    }
}
