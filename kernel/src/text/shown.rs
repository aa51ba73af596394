//! Texts that a container chose, as logs and messages show them: bounded, and always UTF-8.
//!
//! A path may have 4096 bytes, and each of them may take four in a log. Line breaks are escaped
//! where a line is written. Start reading at [`shown`].

/// The most bytes of one text.
pub const LONGEST: usize = 256;
/// The most bytes of a message, which may have several texts in it.
pub const LONGEST_MESSAGE: usize = 1024;

/// Returns bytes that a container chose as text, cut to [`LONGEST`]. A byte that is not UTF-8
/// becomes `\xNN`.
pub fn shown(bytes: &[u8]) -> String {
    shown_within(bytes, LONGEST)
}

/// Returns bytes as text, cut to a length. What is cut off becomes `…`.
pub fn shown_within(bytes: &[u8], longest: usize) -> String {
    let mut text = String::with_capacity(bytes.len().min(longest));
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid();
        let end = valid.floor_char_boundary(longest - text.len());
        text.push_str(&valid[..end]);
        if end < valid.len() {
            return text + "…";
        }
        for byte in chunk.invalid() {
            let escaped = format!("\\x{byte:02x}");
            if text.len() + escaped.len() > longest {
                return text + "…";
            }
            text += &escaped;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(shown(b"/a\n{\"\xff"), "/a\n{\"\\xff");
        assert_eq!(shown(&[b'x'; LONGEST]), "x".repeat(LONGEST));
        for long in [&[b'x'; 5000][..], "ü".repeat(2000).as_bytes(), &[0xff; 4096]] {
            let text = shown(long);
            assert!(text.ends_with('…'), "{text}");
            assert!((LONGEST - 4..=LONGEST).contains(&(text.len() - '…'.len_utf8())), "{text}");
        }
    }
}
