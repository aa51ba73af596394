//! Prints a default configuration file and the reference in `docs`. Both are generated from the
//! descriptions of the settings.

use std::fmt::Write;

use super::{Attach, Audit, Daemon, LXD, Overlay};
use ambit_intercept::settings::{Key, Section, Table};
use ambit_intercept::{Matcher, Settings};

/// The width at which prose is wrapped.
const WIDTH: usize = 80;

const HEAD: &str = "\
# The configuration of ambit. It is read from /etc/ambit/ambit.toml, or from the
# file that --config names.
#
# A key behind a # is at its default: take the # away to change it. `ambit
# config` tells whether the file is right; after `ambit reload` it holds.
";

const REFERENCE: &str = "\
# Configuration

`/etc/ambit/ambit.toml`, or the file that `--config` names, is TOML. Every key has a default; an
unknown key is an error. `ambit config --default` prints a file that has all of them as comments,
`ambit config` tells whether a file is right, and `ambit reload` has the daemon read it again.

This page is printed by `ambit config --reference`.
";

/// Returns the tables of a file, with their headers.
pub fn tables() -> Vec<(String, &'static Table)> {
    let sections = [
        ("daemon", Daemon::TABLE),
        ("overlay", Overlay::TABLE),
        ("attach", Attach::TABLE),
        ("audit", Audit::TABLE),
        ("intercept", Settings::TABLE),
        ("[container]", Matcher::TABLE),
    ];
    let below = |(name, table): (&str, &'static Table)| {
        let keys = table.keys.iter().filter_map(|key| Some((key.name, large(key)?)));
        let tables = keys.map(|(key, table)| (format!("{name}.{key}"), table));
        [(name.to_owned(), table)].into_iter().chain(tables).collect::<Vec<_>>()
    };
    sections.into_iter().flat_map(below).collect()
}

/// Returns the table of a key, unless it has only `enabled`.
fn large(key: &Key) -> Option<&'static Table> {
    key.table.filter(|table| table.keys.len() > 1)
}

/// Returns a file with every key and its default as a comment.
pub fn default_file() -> String {
    let mut text = HEAD.to_owned();
    for (name, table) in tables() {
        text.push('\n');
        comment(&mut text, &prose(table.doc));
        // A section fits some containers, and the table of a call that is off is a mistake.
        let off = name.starts_with('[') || name.contains('.') && table.key("enabled").is_some();
        let _ = writeln!(text, "{}[{name}]", if off { "#" } else { "" });
        for key in table.keys.iter().filter(|key| large(key).is_none()) {
            // A call without settings is a switch, and its table tells about it.
            let (doc, value) = match key.table {
                Some(switch) => (switch.doc, (switch.keys[0].default)()),
                None => (key.doc, (key.default)()),
            };
            let mut doc = prose(doc);
            doc.extend(key.range().map(|range| format!(" Range: {range}.")));
            let value = value.filter(|value| !is_empty(value));
            if value.is_none() {
                doc.push_str(" None by default; for example:");
            }
            comment(&mut text, &doc);
            if let Some(value) = value.or_else(|| key.example()) {
                let _ = writeln!(text, "#{} = {value}", key.name);
            }
        }
    }
    text
}

/// Returns the reference of all keys, in Markdown.
pub fn reference() -> String {
    let mut text = REFERENCE.to_owned();
    for (name, table) in tables() {
        let _ = write!(text, "\n## `[{name}]`\n\n{}\n", wrapped(&prose(table.doc), 100, ""));
        let lxd = table.keys.iter().any(|key| lxd_name(key).is_some());
        let (head, line) = if lxd { (" in LXD and Incus |", "---|") } else { ("", "") };
        let _ = write!(text, "\n| key |{head} default | meaning |\n|---|{line}---|---|\n");
        for key in table.keys {
            let other = match lxd_name(key) {
                Some(other) => format!(" `{LXD}{other}` |"),
                None if lxd => " |".to_owned(),
                None => String::new(),
            };
            let (default, meaning) = (default(key), meaning(&name, key));
            let _ = writeln!(text, "| `{}` |{other} {default} | {meaning} |", key.name);
        }
    }
    text
}

/// Returns LXD's name for a key, or for `enabled` of a call.
fn lxd_name(key: &Key) -> Option<&'static str> {
    key.lxd.or_else(|| key.table?.key("enabled")?.lxd)
}

fn default(key: &Key) -> String {
    if key.table.is_some_and(|table| table.key("enabled").is_none()) {
        return String::new();
    }
    let switch = || key.table?.key("enabled").and_then(|enabled| (enabled.default)());
    let value = (key.default)().or_else(switch);
    value.filter(|value| !is_empty(value)).map_or("none".to_owned(), |value| format!("`{value}`"))
}

fn meaning(table: &str, key: &Key) -> String {
    let mut text = prose(key.table.map_or(key.doc, |table| table.doc));
    if large(key).is_some() {
        let anchor: String = format!("{table}{}", key.name).replace(['[', ']', '.'], "");
        return format!("see [`[{table}.{}]`](#{anchor})", key.name);
    }
    text.extend(key.range().map(|range| format!(" Range: {range}.")));
    let example = key.example().filter(|_| key.example.is_some());
    text.extend(example.map(|example| format!(" An example: `{} = {example}`", key.name)));
    text
}

fn is_empty(value: &toml::Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
        || value.as_table().is_some_and(toml::Table::is_empty)
}

/// Returns a doc comment in one line.
fn prose(doc: &[&str]) -> String {
    doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

fn comment(text: &mut String, prose: &str) {
    text.push_str(&wrapped(prose, WIDTH, "# "));
    text.push('\n');
}

/// Wraps prose into lines with a prefix.
pub(crate) fn wrapped(prose: &str, width: usize, front: &str) -> String {
    let mut lines = vec![String::new()];
    for word in prose.split_whitespace() {
        let line = lines.last_mut().expect("there is one");
        if front.len() + line.len() + word.len() >= width && !line.is_empty() {
            lines.push(word.to_owned());
        } else {
            let blank = if line.is_empty() { "" } else { " " };
            line.push_str(blank);
            line.push_str(word);
        }
    }
    lines.iter().map(|line| format!("{front}{line}")).collect::<Vec<_>>().join("\n")
}
