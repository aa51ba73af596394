//! A TOML document with the spans of its values. Structs of settings are read from it, and errors
//! have the place and the allowed values.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::LXD;
use ambit_intercept::Settings;
use ambit_intercept::settings::{Key, Section, Table, nearest};

/// An error in a document, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The offset in the text.
    pub at: usize,
    /// The path of the key, such as `mount.allowed`.
    pub path: String,
    pub reason: String,
}

impl Mistake {
    /// Creates the error of a key.
    pub fn new(at: usize, path: &str, reason: impl Into<String>) -> Self {
        Self { at, path: path.to_owned(), reason: reason.into() }
    }

    /// Prepends the path of the table.
    pub fn below(mut self, table: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.path.insert_str(0, &format!("{table}{dot}"));
        self
    }
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let colon = if self.path.is_empty() { "" } else { ": " };
        write!(f, "{}{colon}{}", self.path, self.reason)
    }
}

/// Reads a table of settings, from which other keys were taken before.
pub(super) fn read<T: Section>(table: DeTable<'_>, others: &[&'static str]) -> Result<T, Mistake> {
    let places = table.clone();
    let read = T::deserialize(toml::Deserializer::from(Spanned::new(0..0, table)));
    let settings = read.map_err(|error| explain(&error, &places, T::TABLE, others))?;
    match settings.wrong_value() {
        None => Ok(settings),
        Some((path, reason)) => {
            Err(Mistake { at: place(&places, &path).unwrap_or(0), path, reason })
        }
    }
}

/// Takes a table of settings out of its parent table.
pub(super) fn take<T: Section>(document: &mut DeTable<'_>, name: &str) -> Result<T, Mistake> {
    let table = take_table(document, name)?;
    read(table.unwrap_or_default(), &[]).map_err(|mistake| mistake.below(name))
}

/// Takes a table out of its parent table.
pub(super) fn take_table<'i>(
    document: &mut DeTable<'i>,
    name: &str,
) -> Result<Option<DeTable<'i>>, Mistake> {
    let Some(value) = document.remove(name) else { return Ok(None) };
    let at = value.span().start;
    match value.into_inner() {
        DeValue::Table(table) => Ok(Some(table)),
        _ => Err(Mistake::new(at, name, format!("this is a table: write [{name}]"))),
    }
}

/// Returns the span of the key at a path.
pub(super) fn place(table: &DeTable<'_>, path: &str) -> Option<usize> {
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    let (key, value) = table.get_key_value(name)?;
    let below = value.get_ref().as_table().and_then(|table| place(table, rest));
    below.or(Some(key.span().start))
}

/// Returns the path of the innermost key whose name or value contains this offset.
fn path_at(table: &DeTable<'_>, at: usize) -> Option<Vec<String>> {
    table.iter().find_map(|(key, value)| {
        let below = value.get_ref().as_table().and_then(|table| path_at(table, at));
        let here = key.span().contains(&at) || value.span().contains(&at);
        let below = below.or_else(|| here.then(Vec::new))?;
        Some([vec![key.get_ref().to_string()], below].concat())
    })
}

/// Rewrites an error of serde in terms of the configuration.
fn explain(
    error: &toml::de::Error,
    table: &DeTable<'_>,
    keys: &'static Table,
    others: &[&'static str],
) -> Mistake {
    let (at, message) = (error.span().map_or(0, |span| span.start), error.message());
    let path = path_at(table, at).unwrap_or_default();
    if message.starts_with("unknown field") {
        let (name, above) = path.split_last().map_or(("", &path[..]), |(name, path)| (name, path));
        let above = above.join(".");
        let table = keys.find(&above).and_then(|key| key.table).unwrap_or(keys);
        let known: Vec<_> =
            table.keys.iter().map(|key| key.name).chain(others.iter().copied()).collect();
        return Mistake::new(at, &above, unknown_key(name, &known));
    }
    // Keys inside a value, such as a filesystem in `fuse`, are not settings.
    let paths = (1..=path.len()).rev().map(|length| path[..length].join("."));
    let (path, key) = paths
        .map(|path| (keys.find(&path), path))
        .find_map(|(key, path)| Some((path, key?)))
        .map_or((path.join("."), None), |(path, key)| (path, Some(key)));
    let reason = match (key, message.split_once(", expected ")) {
        (Some(key), _) if message.starts_with("invalid ") => format!("use {}", what_fits(key)),
        (_, Some((variant, others))) if message.starts_with("unknown variant") => {
            let variant = variant.trim_start_matches("unknown variant ");
            format!("{variant} is not possible: use {}", others.trim_start_matches("one of "))
        }
        _ => message.to_owned(),
    };
    Mistake::new(at, &path, reason)
}

/// Returns the allowed values of a key, and an example.
pub fn what_fits(key: &Key) -> String {
    if key.table.is_some() {
        return "a table".to_owned();
    }
    let example = key.example();
    let kind = match &example {
        Some(toml::Value::Boolean(_)) => "true or false",
        Some(toml::Value::Integer(_)) => "a whole number",
        Some(toml::Value::Array(_)) => "a list",
        Some(toml::Value::Table(_)) => "a table",
        _ => "a text in quotes",
    };
    let range = key.range().map(|range| format!(", {range}")).unwrap_or_default();
    match example {
        Some(toml::Value::Boolean(_)) | None => kind.to_owned(),
        Some(example) => format!("{kind}{range}, such as {} = {example}", key.name),
    }
}

/// Returns the key that an unknown key most likely means.
pub fn unknown_key(name: &str, known: &[&str]) -> String {
    let hint = if let Some(spelling) = new_spelling(name) {
        spelling
    } else if let Some(near) = nearest(name, known.iter().copied()) {
        format!("did you mean {near}?")
    } else {
        let tables = super::print::tables();
        let has_it = tables.iter().filter(|(_, table)| table.key(name).is_some());
        let headers: Vec<_> = has_it.map(|(table, _)| format!("[{table}]")).collect();
        match &*headers {
            [] => format!("known are {}", known.join(", ")),
            headers => format!("it belongs in {}", headers.join(" or ")),
        }
    };
    let shown: String = name.chars().take(60).collect();
    format!("unknown key {shown:?}: {hint}")
}

/// Returns how to write a setting whose name is that of LXD, or has its table and a dot in front.
fn new_spelling(name: &str) -> Option<String> {
    if name == "security" {
        return Some(format!("what LXD calls {LXD}NAME is NAME in [intercept]"));
    }
    let short = name.strip_prefix(LXD).unwrap_or(name);
    let path = short.strip_prefix("sched.").map(|key| format!("sched_setscheduler.{key}"));
    let path = path.unwrap_or_else(|| short.to_owned());
    let key = Settings::TABLE.find(&path)?;
    let Some((table, _)) = path.split_once('.') else {
        return (short != name).then(|| format!("it is called {path} in [intercept]"));
    };
    let switch = Settings::TABLE.find(&format!("{table}.enabled"));
    let switch = switch.map(|_| "enabled = true, ").unwrap_or_default();
    let example = key.example()?;
    Some(format!("write {table} = {{ {switch}{} = {example} }}", key.name))
}
