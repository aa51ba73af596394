//! `[attach] auto = true` in the daemon's configuration, for engines whose containers the daemon
//! attaches.

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::block;
use super::edit::Edit;
use crate::config::{Config, DEFAULT_PATH};

/// The line below a header that is there already.
const LINE: &str = "auto = true # ambit setup\n";
/// The block where there is no header.
const LINES: &str = "[attach]\nauto = true\n";

/// Returns the path of the configuration.
pub(super) fn path(named: Option<&Path>) -> PathBuf {
    named.unwrap_or(Path::new(DEFAULT_PATH)).to_owned()
}

/// Returns what is done to the file. Its configuration is right.
pub(super) fn setup(text: Option<&str>, path: &Path) -> anyhow::Result<Edit> {
    let Some(text) = text else { return Ok(Edit::to(LINES)) };
    let before = Config::parse(text, path)?;
    if before.attach.auto {
        return Ok(Edit::Same);
    }
    let new = match header(text) {
        Some(place) => format!("{}{LINE}{}", &text[..place], &text[place..]),
        None => block::add(text, LINES),
    };
    let mut wanted = before;
    wanted.attach.auto = true;
    match Config::parse(&new, path) {
        Ok(config) if config == wanted => Ok(Edit::to(new)),
        // `auto` is there, or the table has another form.
        _ => Ok(Edit::Skip("auto is off in it: set auto = true in its table attach".to_owned())),
    }
}

/// Returns what is done to the file to take the setting away.
pub(super) fn undo(text: &str) -> anyhow::Result<Edit> {
    if text == LINES {
        return Ok(Edit::removal());
    }
    if let Some(place) = header(text)
        && let Some(rest) = text[place..].strip_prefix(LINE)
    {
        return Ok(Edit::to(format!("{}{rest}", &text[..place])));
    }
    match block::find(text)? {
        None => Ok(Edit::Nothing),
        Some(_) => match block::remove(text, LINES) {
            Some(new) => Ok(Edit::to(new)),
            None => bail!("the block of ambit in it was changed: remove it by hand"),
        },
    }
}

/// Returns the place after the line `[attach]`.
fn header(text: &str) -> Option<usize> {
    let mut end = 0;
    text.split_inclusive('\n').find_map(|line| {
        end += line.len();
        (line.trim() == "[attach]" && line.ends_with('\n')).then_some(end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::print::default_file;

    fn added(text: &str) -> String {
        match setup(Some(text), Path::new("x.toml")).unwrap() {
            Edit::Change { text: Some(new), note: None } => new,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn setup_and_undo_leave_every_byte_as_it_was() {
        let default = default_file();
        for text in [
            "",
            "# nothing",
            "[overlay]\nswap = \"none\"\n",
            "[attach]\nexclude = [\"ci-*\"]\n\n[[container]]\nid = \"x\"\n",
            "  [attach]  \n",
            "[[container]]\nid = \"x\"",
            &default,
        ] {
            let new = added(text);
            assert!(Config::parse(&new, Path::new("x")).unwrap().attach.auto, "{new}");
            assert_eq!(setup(Some(&new), Path::new("x")).unwrap(), Edit::Same);
            assert_eq!(undo(&new).unwrap(), Edit::to(text), "{new}");
        }
        assert_eq!(setup(None, Path::new("x")).unwrap(), Edit::to(LINES));
        assert_eq!(undo(LINES).unwrap(), Edit::removal());
    }

    #[test]
    fn what_the_user_has_set_stays() {
        for text in ["[attach]\nauto = false\n", "attach.auto = false\n", "attach = {}\n"] {
            let edit = setup(Some(text), Path::new("x")).unwrap();
            assert!(matches!(edit, Edit::Skip(_)), "{text}: {edit:?}");
        }
        let own = "[attach]\nauto = true\n# mine\n";
        assert_eq!(setup(Some(own), Path::new("x")).unwrap(), Edit::Same);
        assert_eq!(undo(own).unwrap(), Edit::Nothing);
    }
}
