//! A writer of columns into a buffer that is reused: nothing is allocated once the buffer has the
//! size of the text.
//!
//! It writes decimal numbers and columns, which are all that files of `/proc` need. It must not use
//! `format!` or anything else that allocates. Start reading at [`Text`].

use std::fmt;

/// A text being written.
#[derive(Debug, Default)]
pub struct Text {
    bytes: Vec<u8>,
    line: usize,
}

impl Text {
    /// An empty text without a buffer.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), line: 0 }
    }

    /// Returns the text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Empties the text and keeps the buffer.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.line = 0;
    }

    /// How much the buffer takes.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Returns the buffer, for texts that come whole from elsewhere.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Writes bytes.
    pub fn put(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.bytes.extend_from_slice(bytes.as_ref());
        self
    }

    /// Writes one byte.
    pub fn byte(&mut self, byte: u8) -> &mut Self {
        self.bytes.push(byte);
        self
    }

    /// Writes a blank.
    pub fn space(&mut self) -> &mut Self {
        self.byte(b' ')
    }

    /// Writes a newline.
    pub fn newline(&mut self) -> &mut Self {
        self.byte(b'\n');
        self.line = self.bytes.len();
        self
    }

    /// Writes blanks up to a column of the line; the first column is 0.
    pub fn pad_to(&mut self, column: usize) -> &mut Self {
        let end = self.line + column;
        if self.bytes.len() < end {
            self.bytes.resize(end, b' ');
        }
        self
    }

    /// Writes a decimal number.
    pub fn dec(&mut self, value: u64) -> &mut Self {
        self.right(value, 0)
    }

    /// Writes a decimal number, right aligned in at least `width` columns.
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

    /// Writes `whole.cc`: a number with two digits after the point.
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
