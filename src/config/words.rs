//! Parses the list of `ambit run --intercept`: names of calls, and settings such as
//! `mount.allowed=ext4`.
//!
//! The names are the keys of `[intercept]`: the list is converted to a TOML table, which is read
//! like the configuration.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::{self, LXD, layers};
use ambit_intercept::settings::{Key, Section, nearest};
use ambit_intercept::{HANDLERS, Policy, Settings};

/// True if an element of the list is a setting, and not the name of a call.
pub fn is_setting(word: &str) -> bool {
    let key = Settings::TABLE.key(word);
    word.contains('.') || word != "view" && key.is_some_and(|key| key.table.is_none())
}

/// Returns a message for each call of a policy that is on and grants nothing.
pub fn grant_nothing(policy: &Policy) -> Vec<&'static str> {
    let Settings { mount, bpf, .. } = policy.settings();
    let reasons = policy.names().filter_map(|name| match name {
        "bpf" if !bpf.devices => Some("bpf grants nothing without bpf.devices"),
        "mount" if mount.allowed.is_empty() && mount.fuse.is_empty() => {
            Some("mount grants nothing without mount.allowed or mount.fuse")
        }
        _ => None,
    });
    reasons.collect()
}

/// Parses a list into a policy. An element is the name of a call, `SETTING` or `SETTING=VALUE`; the
/// items of a value are joined by `+`.
///
/// # Errors
/// An element is unknown or has an invalid value, or a setting's call is not in the list.
pub fn parse(list: &str) -> Result<Policy, String> {
    let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
    let (settings, calls): (Vec<_>, Vec<_>) = words.partition(|word| is_setting(name_of(word)));
    if let Some(word) = calls.iter().find(|word| word.contains('=')) {
        return Err(format!("{word} is no setting: the name of a call alone switches it on"));
    }
    let policy = Policy::from_names(&calls).map_err(|unknown| unknown.to_string())?;
    let mut table = DeTable::new();
    insert(&mut table, "view", DeValue::Boolean(false), 0..0);
    for name in policy.names() {
        let mut switch = DeTable::new();
        insert(&mut switch, "enabled", DeValue::Boolean(true), 0..0);
        insert(&mut table, name, DeValue::Table(switch), 0..0);
    }
    // Errors find a setting by its span, for which its index in the list is used.
    for (place, word) in (0..).map(|at| at..at + 1).zip(settings) {
        let name = name_of(word);
        let key = Settings::TABLE.find(name).filter(|key| key.table.is_none());
        let key = key.ok_or_else(|| unknown(name))?;
        let value = value(key, word.split_once('=').map(|(_, text)| text));
        let value = value.ok_or_else(|| {
            format!("{name}: use {} (here {})", config::what_fits(key), example(name, key))
        })?;
        let (above, below) = name.split_once('.').unwrap_or(("", name));
        let is_call = HANDLERS.iter().any(|handler| handler.describe().name == above);
        if is_call && policy.names().all(|call| call != above) {
            return Err(format!("{name} has no effect without {above}: use {above},{word}"));
        }
        if policy == Policy::none() {
            return Err(format!("{name} belongs to calls that are answered: name some as well"));
        }
        if above.is_empty() {
            insert(&mut table, name, value, place);
            continue;
        }
        match table.get_mut(above).map(Spanned::get_mut) {
            Some(DeValue::Table(table)) => insert(table, below, value, place),
            _ => {
                let mut below_it = DeTable::new();
                insert(&mut below_it, below, value, place);
                insert(&mut table, above, DeValue::Table(below_it), 0..0);
            }
        }
    }
    layers::policy(&[&table]).map_err(|mistake| match Settings::TABLE.find(&mistake.path) {
        Some(key) => format!("{mistake} (here {})", example(&mistake.path, key)),
        None => mistake.to_string(),
    })
}

fn name_of(word: &str) -> &str {
    word.split('=').next().unwrap_or(word)
}

fn insert<'i>(table: &mut DeTable<'i>, key: &'i str, value: DeValue<'i>, place: Range<usize>) {
    table.insert(Spanned::new(place.clone(), key.into()), Spanned::new(place, value));
}

/// What a word says, in the shape that its setting has.
fn value<'i>(key: &Key, text: Option<&'i str>) -> Option<DeValue<'i>> {
    let text_of = |text: &'i str| Spanned::new(0..0, DeValue::String(text.into()));
    let parts = |text: &'i str| text.split('+').filter(|part| !part.is_empty());
    Some(match (key.example()?, text) {
        (toml::Value::Boolean(_), None | Some("true")) => DeValue::Boolean(true),
        (toml::Value::Boolean(_), Some("false")) => DeValue::Boolean(false),
        (toml::Value::Integer(_), Some(text)) => {
            let value = text.parse::<i64>().ok().and_then(|_| DeValue::parse(text).ok());
            value?.into_inner()
        }
        (toml::Value::Array(_), Some(text)) => DeValue::Array(parts(text).map(text_of).collect()),
        (toml::Value::Table(_), Some(text)) => {
            let pair = |part: &'i str| {
                let (name, value) = part.split_once('=')?;
                Some((Spanned::new(0..0, name.into()), text_of(value)))
            };
            DeValue::Table(parts(text).map(pair).collect::<Option<_>>()?)
        }
        (toml::Value::String(_), Some(text)) => DeValue::String(text.into()),
        _ => return None,
    })
}

/// How a list has a setting.
fn example(name: &str, key: &Key) -> String {
    let text = |value: &toml::Value| value.as_str().map_or(value.to_string(), str::to_owned);
    match key.example() {
        Some(toml::Value::Array(parts)) => {
            format!("{name}={}", parts.iter().map(text).collect::<Vec<_>>().join("+"))
        }
        Some(toml::Value::Table(pairs)) => {
            let pairs = pairs.iter().map(|(name, value)| format!("{name}={}", text(value)));
            format!("{name}={}", pairs.collect::<Vec<_>>().join("+"))
        }
        Some(toml::Value::Boolean(_)) | None => name.to_owned(),
        Some(value) => format!("{name}={}", text(&value)),
    }
}

fn unknown(name: &str) -> String {
    if let Some(short) = name.strip_prefix(LXD) {
        return format!("{name} is called {short} here");
    }
    let paths = Settings::TABLE.paths();
    let renamed = name.strip_prefix("sched.").map(|key| format!("sched_setscheduler.{key}"));
    let renamed = renamed.as_deref().unwrap_or(name);
    match nearest(renamed, paths.iter().map(String::as_str)) {
        Some(near) => format!("{name} is unknown: did you mean {near}?"),
        None => {
            let settings = paths.iter().filter(|path| is_setting(path));
            let known: Vec<_> = settings.filter(|path| !path.ends_with(".enabled")).collect();
            let known = known.iter().map(|path| path.as_str()).collect::<Vec<_>>().join(", ");
            format!("{name} is unknown; known are {known}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_calls_and_settings() {
        let list = "mount, mknod,mount.allowed=ext4+xfs,mount.shift,mount.fuse=squashfs=squashfuse,\
                    mknod.devices=10:229";
        let policy = parse(list).unwrap();
        assert_eq!(policy.names().collect::<Vec<_>>(), ["mknod", "mount"]);
        let Settings { mount, mknod, .. } = policy.settings();
        assert_eq!((&*mount.allowed, mount.shift), (&["ext4".into(), "xfs".into()][..], true));
        assert_eq!(mount.fuse["squashfs"], "squashfuse");
        let devices = mknod.devices.iter().copied().map(String::from).collect::<Vec<_>>();
        assert_eq!(devices, ["10:229"]);
        assert_eq!(parse("view").unwrap(), Policy::default());
        let limited = parse("sysinfo,limit.calls=7,nested=true").unwrap();
        assert_eq!((limited.settings().limit.calls, limited.settings().nested), (7, true));
    }

    #[test]
    fn a_call_that_grants_nothing_without_settings_has_a_message() {
        for (list, told) in [
            ("bpf,mount", 2),
            ("bpf,bpf.devices=false,sysinfo", 1),
            ("bpf,bpf.devices=true,mount,mount.allowed=ext4", 0),
            ("mount,mount.fuse=ext4=fuse2fs,mknod", 0),
        ] {
            assert_eq!(grant_nothing(&parse(list).unwrap()).len(), told, "{list}");
        }
    }

    #[test]
    fn errors_name_the_allowed_values() {
        for (list, right) in [
            ("sysinf", "did you mean sysinfo?"),
            ("swapon", "known are: view, sysinfo"),
            ("mount.alowed=ext4", "mount.alowed is unknown: did you mean mount.allowed?"),
            ("banana.x=1", "known are mknod.devices"),
            ("sched.priority=5", "did you mean sched_setscheduler.priority?"),
            ("security.syscalls.intercept.mknod", "is called mknod here"),
            ("mount,mount.shift=yes", "use true or false (here mount.shift)"),
            ("mount.shift", "mount.shift has no effect without mount: use mount,mount.shift"),
            ("mknod,mount.fuse=ext4=fuse2fs", "use mount,mount.fuse=ext4=fuse2fs"),
            ("sysinfo,bpf.devices", "bpf.devices has no effect without bpf"),
            ("view,sched_setscheduler.priority=5", "without sched_setscheduler: use sched_sets"),
            ("nested", "name some as well"),
            ("mount=ext4", "the name of a call alone switches it on"),
            ("mount,mount.allowed", "use a list, such as allowed = [\"ext4\"]"),
            ("mount,mount.allowed", "(here mount.allowed=ext4)"),
            ("mount,mount.fuse", "(here mount.fuse=squashfs=squashfuse)"),
            ("mount,mount.sources", "(here mount.sources=nfs=filer:/export/*)"),
            ("mount,mount.fuse=ext4", "(here mount.fuse=squashfs=squashfuse)"),
            ("mount,mount.deadline=soon", "use a whole number, 1 to 24"),
            ("mount,mount.deadline=60", "mount.deadline: 60 is not possible: use 1 to 24"),
            ("mknod,mknod.devices=8", "MAJOR:MINOR"),
            ("mknod,mknod.devices=10:229+1:1", "mknod.devices: 1:1 is the machine's memory"),
            ("mount,mount.allowed=ext4+proc", "mount.allowed: proc is never mounted"),
            ("mount,mount.fuse=ext4=", "\"ext4\" needs"),
            ("mount,mount.allowed=ext4,mount.fuse=ext4=fuse2fs", "both"),
            ("mknod,limit.acts=0", "limit.acts: 0 is not possible: use 1 or more"),
            ("mknod,limit.calls=-1", "limit.calls: use a whole number, 1 or more"),
            ("sched_setscheduler,sched_setscheduler.priority=100", "use 0 to 99"),
        ] {
            let error = parse(list).unwrap_err();
            assert!(error.contains(right), "{list}: {error}");
        }
    }
}
