//! The one way to write to standard output and error. `print!` and `eprintln!` panic when a write fails
//! and are not used.
//!
//! Commands wait for their reader. A reader that closes its end of a pipe needs no more, so the rest is
//! dropped. Any other failure to write standard output is an error of the command. A message that
//! standard error does not take is dropped. The keeper and the log of the server must not wait: they
//! write through [`stderr`].

pub mod printable;
pub mod stderr;

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind, Write};

/// Standard output cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write standard output: {0}")]
pub struct Unwritable(#[from] io::Error);

/// Writes a text to standard output.
///
/// # Errors
/// The file or its device takes no more. A closed pipe is no error.
pub fn print(text: impl fmt::Display) -> Result<(), Unwritable> {
    let mut stdout = io::stdout().lock();
    // One write(2), not one for each line.
    unless_closed(stdout.write_all(text.to_string().as_bytes()).and_then(|()| stdout.flush()))
}

/// Turns the error of a closed pipe into success.
pub fn unless_closed(written: io::Result<()>) -> Result<(), Unwritable> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Returns an error and its causes in one line. A cause that the line already contains is left out:
/// the text of many errors contains that of their cause.
pub fn one_line(error: &impl AsRef<dyn Error + Send + Sync>) -> String {
    let first: &(dyn Error + 'static) = error.as_ref();
    let (mut line, mut next) = (String::new(), Some(first));
    while let Some(error) = next {
        next = error.source();
        let cause = error.to_string();
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

/// Writes a line to standard error.
pub fn complain(line: impl fmt::Display) {
    // In one piece: several processes may share the file.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_device_is() {
        assert!(unless_closed(Err(ErrorKind::BrokenPipe.into())).is_ok());
        let full = unless_closed(Err(ErrorKind::StorageFull.into())).unwrap_err();
        assert!(full.to_string().starts_with("cannot write standard output: "), "{full}");
    }

    #[test]
    fn a_cause_is_printed_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read x: {source}")]
        struct Names {
            source: std::io::Error,
        }
        let error = anyhow::Error::from(Names { source: ErrorKind::NotFound.into() });
        let error = error.context("cannot start");
        assert_eq!(one_line(&error), "cannot start: cannot read x: entity not found");
        let plain = anyhow::Error::msg("inner").context("outer");
        assert_eq!(one_line(&plain), "outer: inner");
    }
}
