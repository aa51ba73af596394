//! What is done to one file, and what that depends on.

use std::path::Path;

use anyhow::bail;

use super::files::Files;
use crate::config::Config;

/// What is done to a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// Nothing: the piece does not apply here, or is not there.
    Nothing,
    /// Nothing: it is as it should be.
    Same,
    /// Nothing, for a reason that is no failure.
    Skip(String),
    /// It gets this text, or is removed. The note is for the user.
    Change { text: Option<String>, note: Option<String> },
}

impl Edit {
    pub(super) fn to(text: impl Into<String>) -> Self {
        Self::Change { text: Some(text.into()), note: None }
    }

    pub(super) fn removal() -> Self {
        Self::Change { text: None, note: None }
    }
}

/// Where things are.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) files: &'a Files,
    /// The program `ambit`.
    pub(super) program: &'a Path,
    pub(super) config: &'a Config,
    /// The configuration that was named.
    pub(super) config_file: Option<&'a Path>,
}

/// Returns what is done to a file that is ambit's as a whole. It gets the first of the texts.
pub(super) fn whole(text: Option<&str>, ours: &[String]) -> anyhow::Result<Edit> {
    match text {
        Some(text) if text == ours[0] => Ok(Edit::Same),
        Some(text) if !ours.iter().any(|ours| ours == text) => bail!(
            "it is not what this version of ambit writes: remove it, or compare it with what \
             `ambit drop-in` prints"
        ),
        _ => Ok(Edit::to(&*ours[0])),
    }
}

/// Returns what is done to a file that is ambit's as a whole to take it away.
pub(super) fn gone(text: &str, ours: &[String]) -> anyhow::Result<Edit> {
    if !ours.iter().any(|ours| ours == text) {
        bail!("it is not what this version of ambit writes: remove it if it is not needed");
    }
    Ok(Edit::removal())
}
