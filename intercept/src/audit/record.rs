//! One line of the audit log: what a handler notes about an operation, and its form as JSON.
//!
//! Everything that a container chose is cut to a bounded length and escaped ([`shown`]): a path with
//! a line break must never make a second line. Start reading at [`Record`].

use crate::timestamp::rfc3339;
use std::cell::{Cell, RefCell};
use std::time::{Duration, SystemTime};

use ambit_kernel::sys::errno;
pub(crate) use ambit_kernel::text::shown::shown as text;
use ambit_kernel::text::shown::{LONGEST_MESSAGE, shown, shown_within};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::{Map, Value};

/// What a handler notes about the operation that it decides on.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// True if the call is audited.
    wanted: bool,
    arguments: RefCell<Map<String, Value>>,
    no_operation: Cell<bool>,
    reason: RefCell<Option<String>>,
    is_error: Cell<bool>,
}

impl Notes {
    /// Returns empty notes. Unless they are `wanted`, nothing that is added is kept.
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, ..Self::default() }
    }

    pub(crate) fn add(&self, name: &str, value: impl FnOnce() -> String) {
        if self.wanted {
            self.arguments.borrow_mut().insert(name.to_owned(), Value::String(value()));
        }
    }

    /// Marks the call as one without an operation: its result is that of an earlier operation, or
    /// it changes nothing. It is not logged.
    pub(crate) fn no_operation(&self) {
        self.no_operation.set(true);
    }

    pub(crate) fn is_operation(&self) -> bool {
        self.wanted && !self.no_operation.get()
    }

    /// Sets the reason of a refusal.
    pub(crate) fn set_reason(&self, reason: &dyn std::fmt::Display) {
        if self.wanted {
            *self.reason.borrow_mut() = Some(reason.to_string());
        }
    }

    /// Sets the reason, and marks the outcome as an error of the daemon.
    pub(crate) fn set_error(&self, reason: &dyn std::fmt::Display) {
        self.is_error.set(true);
        self.set_reason(reason);
    }

    pub(crate) fn is_error(&self) -> bool {
        self.is_error.get()
    }
}

/// The caller, as `/proc/<tid>/status` describes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Its process id in its own pid namespace.
    pub(super) pid: Option<u32>,
    /// Its process id on the host.
    pub(super) host_pid: Option<u32>,
    pub(super) comm: Option<String>,
}

impl Caller {
    /// Parses the text of `/proc/<tid>/status`. The kernel escapes the name in it, so the caller
    /// cannot forge the fields that follow.
    pub(crate) fn parse(status: &[u8]) -> Self {
        let mut caller = Self::default();
        for line in status.split(|&byte| byte == b'\n') {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let (label, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            let last = || {
                let word = value.rsplit(u8::is_ascii_whitespace).next()?;
                std::str::from_utf8(word).ok()?.parse().ok()
            };
            match label {
                b"Name" if caller.comm.is_none() => caller.comm = Some(shown(value)),
                b"Tgid" => caller.host_pid = last(),
                b"NStgid" => caller.pid = last(),
                _ => {}
            }
        }
        caller
    }
}

/// An operation that was granted or refused, or that failed.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) container: &'a str,
    pub(crate) call: &'a str,
    pub(crate) tid: u32,
    pub(crate) caller: Caller,
    pub(crate) notes: &'a Notes,
    pub(crate) outcome: &'static str,
    pub(crate) errno: Option<Errno>,
    pub(crate) took: Duration,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    container: String,
    call: &'a str,
    pid: Option<u32>,
    host_pid: Option<u32>,
    host_tid: u32,
    comm: Option<&'a str>,
    arguments: &'a Map<String, Value>,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    duration_us: u64,
}

impl Record<'_> {
    pub(super) fn line(&self) -> Vec<u8> {
        let line = Line {
            time: rfc3339(SystemTime::now()),
            container: shown(self.container.as_bytes()),
            call: self.call,
            pid: self.caller.pid,
            host_pid: self.caller.host_pid,
            host_tid: self.tid,
            comm: self.caller.comm.as_deref(),
            arguments: &self.notes.arguments.borrow(),
            outcome: self.outcome,
            errno: self.errno.map(errno::name),
            reason: self.notes.reason.borrow().as_ref().map(|reason| message(reason)),
            duration_us: u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX),
        };
        written(&line)
    }
}

/// Returns the line that says how many lines of a container were left out.
pub(super) fn left_out(container: &str, lines: u64) -> Vec<u8> {
    #[derive(Serialize)]
    struct LeftOut {
        time: String,
        container: String,
        lines_left_out: u64,
    }
    let time = rfc3339(SystemTime::now());
    written(&LeftOut { time, container: shown(container.as_bytes()), lines_left_out: lines })
}

fn written(line: &impl Serialize) -> Vec<u8> {
    // Serializing strings and numbers cannot fail.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Returns a message for a log, cut to [`LONGEST_MESSAGE`].
pub(crate) fn message(text: &str) -> String {
    shown_within(text.as_bytes(), LONGEST_MESSAGE)
}

#[cfg(test)]
mod tests {
    use ambit_kernel::text::shown::LONGEST;

    use super::*;

    fn parsed(record: &Record<'_>) -> Value {
        let line = record.line();
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1, "one line");
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn text_of_a_container_is_escaped_and_cut() {
        let notes = Notes::new(true);
        notes.add("path", || text(b"/a\n{\"\xff"));
        notes.add("long", || text(&[b'x'; 5000]));
        let status = b"Name:\tx\\ny\nTgid:\t41\nPid:\t42\nNStgid:\t41\t3\nSeccomp:\t2\n";
        let record = Record {
            container: "c",
            call: "mknod",
            tid: 42,
            caller: Caller::parse(status),
            notes: &notes,
            outcome: "refused",
            errno: Some(Errno::EXIST),
            took: Duration::from_micros(7),
        };
        let line = parsed(&record);
        assert_eq!(line["arguments"]["path"], "/a\n{\"\\xff");
        assert_eq!(line["arguments"]["long"].as_str().unwrap().len(), LONGEST + "…".len());
        assert!(record.line().len() < 1000, "of 5000 bytes");
        assert_eq!(
            (&line["pid"], &line["host_pid"], &line["host_tid"]),
            (&3.into(), &41.into(), &42.into())
        );
        assert_eq!((&line["comm"], &line["errno"]), (&"x\\ny".into(), &"EEXIST".into()));
        assert_eq!(line["duration_us"], 7);
        assert!(line.get("reason").is_none());
    }

    #[test]
    fn nothing_is_kept_of_calls_that_are_not_audited() {
        let notes = Notes::new(false);
        notes.add("path", || panic!("not asked for"));
        assert!(notes.arguments.borrow().is_empty());
    }
}
