//! The result as a table, as JSON and as JUnit.

use std::fmt::Write as _;

use serde_json::json;

use crate::limits::{Bounds, Limits};
use crate::text::{print_list, size};
use crate::verdict::{Mark, Row, Rows};

/// Columns of a terminal.
const WIDTH: usize = 80;

/// What is said about the limits, a line each.
fn limits(bounds: &Bounds) -> Vec<String> {
    let line = |limits: &Limits| {
        let mut lines = Vec::new();
        let mut bytes = |what: &str, limit: &Option<crate::limits::Limit<u64>>| {
            if let Some(limit) = limit {
                lines.push(format!("{what} {} ({})", size(limit.value), limit.from));
            }
        };
        bytes("memory", &limits.memory);
        bytes("memory slowed down above", &limits.high);
        bytes("swap", &limits.swap);
        if let Some(quota) = &limits.quota {
            lines.push(format!("processors' time {} ({})", quota.value, quota.from));
        }
        if let Some(set) = &limits.cpuset {
            lines.push(format!("processors {} ({})", print_list(&set.value), set.from));
        }
        lines
    };
    let mut lines: Vec<String> = Vec::new();
    for one in bounds.limits.iter().flat_map(line) {
        if !lines.contains(&one) {
            lines.push(one);
        }
    }
    lines
}

/// The table, 80 columns wide at most.
pub(crate) fn table(rows: &Rows, bounds: &Bounds) -> String {
    let mut out = String::new();
    let limits = limits(bounds);
    let none = if limits.is_empty() { " none seen" } else { "" };
    let _ = writeln!(out, "Limits, {}:{none}", bounds.version);
    for limit in limits {
        wrap(&mut out, &limit);
    }
    out.push('\n');
    for Row { subject, reader, mark, shown, reason, .. } in &rows.0 {
        let line = format!("{} {subject:<17} {reader:<32} {shown}", mark.symbol());
        let line = line.trim_end();
        let length = line.chars().count();
        if reason.is_empty() {
            let _ = writeln!(out, "{line}");
        } else if *mark == Mark::Agrees && length + 2 + reason.chars().count() <= WIDTH {
            let _ = writeln!(out, "{line}  {reason}");
        } else {
            let _ = writeln!(out, "{line}");
            // The limits are above, and the others of a subject beside it.
            if *mark != Mark::Agrees {
                wrap(&mut out, reason);
            }
        }
    }
    let _ = writeln!(out, "\n{}", summary(rows));
    out
}

fn summary(rows: &Rows) -> String {
    let [agree, untold, contradict] =
        [Mark::Agrees, Mark::Untold, Mark::Contradicts].map(|mark| rows.count(mark));
    format!("✓ {agree} agree   ✗ {contradict} contradict   – {untold} cannot be told here")
}

/// Indented lines that fit; words longer than a line, which are paths, are cut.
fn wrap(out: &mut String, text: &str) {
    const INDENT: usize = 4;
    let mut length = 0;
    for word in text.split(' ') {
        let mut letters: Vec<char> = word.chars().collect();
        if length > 0 && length + 1 + letters.len() > WIDTH {
            out.push('\n');
            length = 0;
        }
        out.push_str(if length == 0 { "    " } else { " " });
        length = if length == 0 { INDENT } else { length + 1 };
        while length + letters.len() > WIDTH {
            let rest = letters.split_off(WIDTH - length);
            out.extend(std::mem::replace(&mut letters, rest));
            out.push_str("\n    ");
            length = INDENT;
        }
        length += letters.len();
        out.extend(letters);
    }
    out.push('\n');
}

fn word(mark: Mark) -> &'static str {
    match mark {
        Mark::Agrees => "agrees",
        Mark::Untold => "untold",
        Mark::Contradicts => "contradicts",
    }
}

pub(crate) fn json(rows: &Rows, bounds: &Bounds) -> String {
    let row = |row: &Row| {
        json!({
            "subject": row.subject, "reader": row.reader, "result": word(row.mark),
            "shown": row.shown, "value": row.value, "reason": row.reason,
        })
    };
    let document = json!({
        "consistent": rows.count(Mark::Contradicts) == 0,
        "agree": rows.count(Mark::Agrees),
        "contradict": rows.count(Mark::Contradicts),
        "untold": rows.count(Mark::Untold),
        "cgroups": bounds.version,
        "limits": limits(bounds),
        "rows": rows.0.iter().map(row).collect::<Vec<_>>(),
    });
    format!("{document:#}\n")
}

pub(crate) fn junit(rows: &Rows) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        out,
        "<testsuite name=\"ambit-verify\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{}\">",
        rows.0.len(),
        rows.count(Mark::Contradicts),
        rows.count(Mark::Untold),
    );
    for row in &rows.0 {
        let (subject, reader) = (xml(row.subject), xml(&row.reader));
        let _ = write!(out, "  <testcase classname=\"{subject}\" name=\"{reader}\">");
        let message = xml(&format!("{} {}", row.shown, row.reason));
        let message = message.trim();
        let _ = match row.mark {
            Mark::Agrees => write!(out, "<system-out>{message}</system-out>"),
            Mark::Untold => write!(out, "<skipped message=\"{message}\"/>"),
            Mark::Contradicts => write!(out, "<failure message=\"{message}\"/>"),
        };
        out.push_str("</testcase>\n");
    }
    out.push_str("</testsuite>\n");
    out
}

/// Text within XML, which has no control characters.
fn xml(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            letter if letter.is_control() => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}
