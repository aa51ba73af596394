//! Logging: to the journal if standard error is the journal, otherwise to standard error.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;

use ambit_kernel::output::stderr::Stderr;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogLevel;

/// Starts logging, once per process.
pub fn start(level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let registry = tracing_subscriber::registry().with(level);
    let started = match tracing_journald::layer() {
        Ok(journal) if stderr_is_the_journal() => registry.with(journal).try_init(),
        _ => {
            let lines = tracing_subscriber::fmt::layer()
                .with_writer(|| OneLine(Stderr))
                .with_ansi(std::io::stderr().is_terminal())
                .log_internal_errors(false)
                .with_target(false)
                .without_time();
            registry.with(lines).try_init()
        }
    };
    // It fails only if logging was started before, and then that one stays in use.
    drop(started);
}

/// Writes each event on one line. Text that a container chooses, such as a path, may have line
/// breaks, and must not look like a line of ambit's. The subscriber writes an event in one call,
/// with a line break at its end.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let (text, end) = match event {
            [text @ .., b'\n'] => (text, &event[text.len()..]),
            text => (text, &[][..]),
        };
        // Escape characters are those of colours: others were escaped before.
        let breaks = |byte: u8| byte.is_ascii_control() && byte != b'\x1b';
        if text.iter().any(|&byte| breaks(byte)) {
            let mut line = Vec::with_capacity(event.len() + 16);
            for &byte in text {
                if breaks(byte) {
                    line.extend(byte.escape_ascii());
                } else {
                    line.push(byte);
                }
            }
            line.extend(end);
            self.0.write_all(&line)?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// systemd names the journal's stream as `device:inode` in the environment.
fn stderr_is_the_journal() -> bool {
    let Some(named) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|file| named == format!("{}:{}", file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_container_cannot_start_a_new_line() {
        let mut lines = OneLine(Vec::new());
        for event in ["plain \u{e9}\n", "no such file a\nERROR b\r\x07\n", "cut"] {
            lines.write_all(event.as_bytes()).unwrap();
        }
        let text = String::from_utf8(lines.0).unwrap();
        assert_eq!(text, "plain \u{e9}\nno such file a\\nERROR b\\r\\x07\ncut");
    }
}
