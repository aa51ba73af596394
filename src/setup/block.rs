//! A block of lines at the end of a TOML file, between two comments by which it is found again.

use anyhow::bail;

const BEGIN: &str = "# ambit setup: what follows up to `end` is removed by `ambit setup --undo`.\n";
const END: &str = "# ambit setup: end\n";

/// Returns the text with a block at its end. A text whose last line has no end keeps that: the
/// block has no end then.
pub(super) fn add(text: &str, lines: &str) -> String {
    let block = format!("\n{BEGIN}{lines}{END}");
    if text.is_empty() || text.ends_with('\n') {
        format!("{text}{block}")
    } else {
        format!("{text}\n{}", block.trim_end())
    }
}

/// Returns the lines in the block.
pub(super) fn find(text: &str) -> anyhow::Result<Option<&str>> {
    let Some((_, rest)) = text.split_once(BEGIN) else { return Ok(None) };
    match rest.split_once(END.trim_end()) {
        Some((lines, _)) => Ok(Some(lines)),
        None => bail!("the line {:?} is missing: add it, or remove the block", END.trim_end()),
    }
}

/// Returns the text without the block of these lines.
pub(super) fn remove(text: &str, lines: &str) -> Option<String> {
    let block = format!("\n{BEGIN}{lines}{END}");
    if let Some((before, after)) = text.split_once(&block) {
        return Some(format!("{before}{after}"));
    }
    let open = format!("\n{}", block.trim_end());
    text.strip_suffix(&open).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_removed_to_the_byte() {
        for text in ["", "\n", "a = 1\n", "a = 1\n\n", "a = 1", "a = 1\r\n"] {
            let new = add(text, "[b]\n");
            assert_eq!(find(&new).unwrap(), Some("[b]\n"));
            assert_eq!(remove(&new, "[b]\n").as_deref(), Some(text));
            let more = format!("{new}\n[c]\n");
            assert!(remove(&new, "[c]\n").is_none());
            assert!(text.is_empty() || !text.ends_with('\n') || remove(&more, "[b]\n").is_some());
        }
    }

    #[test]
    fn a_block_without_its_end_is_an_error() {
        let text = format!("a = 1\n\n{BEGIN}[b]\n");
        assert!(find(&text).unwrap_err().to_string().contains("# ambit setup: end"));
        assert_eq!(find("a = 1\n").unwrap(), None);
    }
}
