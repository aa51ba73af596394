//! The words of interception: names of calls, and settings such as `mount.allowed`. The
//! configuration and `ambit run --intercept` have the same.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use crate::notify::Policy;
use crate::notify::settings::{Device, Settings};

/// Settings, what they are, and how a list of words has them, for messages.
const SETTINGS: [(&str, &str, &str); 16] = [
    ("mknod.bind", "true or false", "mknod.bind"),
    ("mknod.devices", "a list of character devices, such as [\"10:229\"]", "mknod.devices=10:229"),
    ("bpf.devices", "true or false", "bpf.devices"),
    ("mount.allowed", "a list of filesystems, such as [\"ext4\"]", "mount.allowed=ext4+xfs"),
    (
        "mount.fuse",
        "helpers of filesystems, such as { ext4 = \"fuse2fs\" }",
        "mount.fuse=ext4=fuse2fs",
    ),
    (
        "mount.sources",
        "a list of patterns, such as [\"nfs=filer:/export/*\"]",
        "mount.sources=nfs=filer:/export/*",
    ),
    ("mount.shift", "true or false", "mount.shift"),
    ("mount.dev_and_suid", "true or false", "mount.dev_and_suid"),
    ("mount.nested", "true or false", "mount.nested"),
    ("mount.deadline", "a number of seconds", "mount.deadline=20"),
    ("nested", "true or false", "nested"),
    ("sched.priority", "the highest real-time priority, 0 to 99", "sched.priority=10"),
    ("sched.nice", "how far below 0 nice values may be, 0 to 20", "sched.nice=10"),
    ("limit.acts", "a number of calls at a time", "limit.acts=512"),
    ("limit.calls", "a number of calls a second", "limit.calls=1000"),
    ("limit.mounts", "a number of filesystems at a time", "limit.mounts=64"),
];

/// In front of the same words where LXD and Incus have them.
const LXD: &str = "security.syscalls.intercept.";

/// What a word is set to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// On or off.
    Switch(bool),
    /// Names.
    List(Vec<String>),
    /// Names and programs.
    Map(BTreeMap<String, String>),
    /// A number.
    Number(u64),
    /// A text, which no word can be.
    Text(String),
    /// Anything else: told with what this one can be.
    Other(serde::de::IgnoredAny),
}

/// Words and what they are set to, as they stand in a section of the configuration.
pub type Words = BTreeMap<Spanned<String>, Value>;

/// Is it a setting, and not the name of a call?
#[must_use]
pub fn is_setting(word: &str) -> bool {
    word.contains('.') || SETTINGS.iter().any(|(name, ..)| *name == word)
}

/// The call without which a setting has no effect.
#[must_use]
pub fn switch_of(setting: &str) -> Option<&'static str> {
    match setting.split_once('.')?.0 {
        "mknod" => Some("mknod"),
        "bpf" => Some("bpf"),
        "mount" => Some("mount"),
        "sched" => Some("sched_setscheduler"),
        _ => None,
    }
}

/// Changes a policy by the words of a section. An error comes with the place of its word.
///
/// # Errors
/// A word is unknown, or set to something that it cannot be, or contradicts another one.
pub fn apply(words: &Words, policy: Policy) -> Result<Policy, (usize, String)> {
    let mut settings = policy.settings().clone();
    let mut policy = policy;
    for (word, value) in words {
        let at = word.span().start;
        let name = word.get_ref();
        if is_setting(name) {
            set(name, value, &mut settings).map_err(|reason| (at, reason))?;
            if let Some(mistake) = settings.mount.mistake() {
                return Err((at, mistake));
            }
        } else {
            let known = policy.set(name, matches!(value, Value::Switch(true)));
            known.map_err(|unknown| (at, unknown.to_string()))?;
            if !matches!(value, Value::Switch(_)) {
                return Err((at, format!("{name}: use true or false{}", quoted(name, value))));
            }
        }
    }
    Ok(policy.with(settings))
}

/// A name with a dot that is not quoted is a table to TOML.
fn quoted(name: &str, value: &Value) -> String {
    match value {
        Value::Map(_) | Value::Other(_) => {
            format!("; a setting with a dot is quoted, such as \"{name}.SETTING\"")
        }
        _ => String::new(),
    }
}

/// The calls of a policy that are on and grant nothing, and why.
#[must_use]
pub fn grant_nothing(policy: &Policy) -> Vec<(&'static str, &'static str)> {
    let Settings { mount, bpf_devices, .. } = policy.settings();
    let reasons = policy.names().filter_map(|name| match name {
        "bpf" if !bpf_devices => Some((name, "bpf grants nothing without bpf.devices")),
        "mount" if mount.allowed.is_empty() && mount.fuse.is_empty() => {
            Some((name, "mount grants nothing without mount.allowed or mount.fuse"))
        }
        _ => None,
    });
    reasons.collect()
}

/// The policy of a list of words: calls, and `SETTING` or `SETTING=VALUE`, whose parts are joined
/// by `+`.
///
/// # Errors
/// As [`apply`], or a setting's call is not in the list.
pub fn parse(list: &str) -> Result<Policy, String> {
    let mut policy = Policy::none();
    let mut settings = Settings::default();
    let words = || list.split(',').map(str::trim).filter(|word| !word.is_empty());
    for word in words() {
        let (name, text) = word.split_once('=').map_or((word, None), |(n, t)| (n, Some(t)));
        if is_setting(name) {
            let value = value(name, text)?;
            set(name, &value, &mut settings).map_err(|error| as_in_a_list(name, error))?;
        } else if text.is_some() && policy.clone().set(name, true).is_ok() {
            return Err(format!("{word}: {name} has no value; {name} alone switches it on"));
        } else {
            policy.set(word, true).map_err(|unknown| unknown.to_string())?;
        }
    }
    settings.mount.mistake().map_or(Ok(()), Err)?;
    for word in words() {
        let name = word.split('=').next().unwrap_or_default();
        let missing = switch_of(name).filter(|call| policy.names().all(|on| on != *call));
        if let Some(call) = missing {
            return Err(format!("{name} has no effect without {call}: use {call},{word}"));
        }
        if is_setting(name) && policy.names().next().is_none() {
            return Err(format!("{name} belongs to calls that are answered: name some as well"));
        }
    }
    Ok(policy.with(settings))
}

/// What is wrong with a setting, and how a list has it.
fn as_in_a_list(name: &str, error: String) -> String {
    match SETTINGS.iter().find(|(known, ..)| *known == name) {
        Some((.., example)) => format!("{error} (here {example})"),
        None => error,
    }
}

/// What a word of a list says, by the shape that its setting has.
fn value(name: &str, text: Option<&str>) -> Result<Value, String> {
    let Some(text) = text else { return Ok(Value::Switch(true)) };
    let parts = text.split('+').filter(|part| !part.is_empty()).map(str::to_owned);
    Ok(match name {
        "mount.fuse" => {
            let pairs = parts.map(|part| {
                let pair =
                    part.split_once('=').map(|(kind, program)| (kind.into(), program.into()));
                pair.ok_or_else(|| format!("{part} is not FILESYSTEM=PROGRAM"))
            });
            Value::Map(pairs.collect::<Result<_, _>>()?)
        }
        "mount.deadline" | "limit.acts" | "limit.calls" | "limit.mounts" | "sched.priority"
        | "sched.nice" => Value::Number(text.parse().map_err(|_| format!("{text} is no number"))?),
        "mknod.bind" | "bpf.devices" | "mount.shift" | "mount.dev_and_suid" | "mount.nested"
        | "nested" => match text {
            "true" => Value::Switch(true),
            "false" => Value::Switch(false),
            _ => Value::Text(text.to_owned()),
        },
        _ => Value::List(parts.collect()),
    })
}

fn set(name: &str, value: &Value, settings: &mut Settings) -> Result<(), String> {
    let mount = &mut settings.mount;
    match (name, value) {
        ("mknod.devices", Value::List(devices)) => {
            for device in devices {
                let device: Device = device.parse()?;
                if !settings.devices.contains(&device) {
                    settings.devices.push(device);
                }
            }
        }
        ("mknod.bind", Value::Switch(on)) => settings.bind = *on,
        ("bpf.devices", Value::Switch(on)) => settings.bpf_devices = *on,
        ("mount.allowed", Value::List(names)) => mount.allowed.clone_from(names),
        ("mount.fuse", Value::Map(helpers)) => mount.fuse.clone_from(helpers),
        ("mount.sources", Value::List(patterns)) => mount.sources.clone_from(patterns),
        ("mount.shift", Value::Switch(on)) => mount.shift = *on,
        ("mount.dev_and_suid", Value::Switch(on)) => mount.dev_and_suid = *on,
        ("mount.nested", Value::Switch(on)) => mount.nested = *on,
        ("mount.deadline", Value::Number(seconds)) => mount.deadline = *seconds,
        ("nested", Value::Switch(on)) => settings.nested = *on,
        ("sched.priority", Value::Number(highest @ 0..=99)) => {
            settings.priority = u32::try_from(*highest).unwrap_or(0);
        }
        ("sched.nice", Value::Number(below @ 0..=20)) => {
            settings.nice = -i32::try_from(*below).unwrap_or(0);
        }
        ("limit.acts", Value::Number(acts)) if *acts > 0 => {
            settings.acts = usize::try_from(*acts).unwrap_or(usize::MAX);
        }
        ("limit.calls", Value::Number(calls)) if *calls > 0 => settings.calls = *calls,
        ("limit.mounts", Value::Number(mounts)) if *mounts > 0 => {
            settings.mounts = usize::try_from(*mounts).unwrap_or(usize::MAX);
        }
        _ => {
            let known = SETTINGS.iter().find(|(known, ..)| *known == name);
            return Err(match known {
                Some((name, what, _)) => format!("{name}: use {what}"),
                None if let Some(short) = name.strip_prefix(LXD) => {
                    format!("{name} is called {short} here")
                }
                None => {
                    let known: Vec<_> = SETTINGS.iter().map(|(name, ..)| *name).collect();
                    format!("{name} is unknown; known are {}", known.join(", "))
                }
            });
        }
    }
    Ok(())
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
        let Settings { mount, devices, .. } = policy.settings();
        assert_eq!((&*mount.allowed, mount.shift), (&["ext4".into(), "xfs".into()][..], true));
        assert_eq!(mount.fuse["squashfs"], "squashfuse");
        assert!(devices.contains(&Device(10, 229)) && devices.contains(&Device(1, 3)));
    }

    #[test]
    fn a_switch_that_grants_nothing_is_told() {
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
    fn what_is_wrong_is_said_with_what_is_right() {
        for (list, right) in [
            ("sysinf", "known are: sysinfo"),
            ("mount.alowed=ext4", "known are mknod.bind"),
            ("security.syscalls.intercept.mknod", "is called mknod here"),
            ("mount,mount.shift=yes", "use true or false"),
            ("mount.shift", "mount.shift has no effect without mount: use mount,mount.shift"),
            ("mknod,mount.fuse=ext4=fuse2fs", "use mount,mount.fuse=ext4=fuse2fs"),
            ("sysinfo,bpf.devices", "bpf.devices has no effect without bpf"),
            ("sched.priority=5", "use sched_setscheduler,sched.priority=5"),
            ("nested", "name some as well"),
            ("mount=ext4", "mount alone switches it on"),
            ("mount.allowed", "a list of filesystems"),
            ("mount.fuse", "(here mount.fuse=ext4=fuse2fs)"),
            ("mount.sources", "a list of patterns"),
            ("mount.fuse=ext4", "FILESYSTEM=PROGRAM"),
            ("mount.deadline=soon", "no number"),
            ("mount.deadline=60", "between 1 and 24"),
            ("mknod.devices=8", "MAJOR:MINOR"),
            ("mknod.devices=10:229+1:1", "whole machine"),
            ("mount.allowed=ext4+proc", "proc is never mounted"),
            ("mount.fuse=ext4=", "\"ext4\" needs"),
            ("mount.allowed=ext4,mount.fuse=ext4=fuse2fs", "both"),
            ("limit.acts=0", "a number of calls at a time"),
            ("limit.calls=0", "a number of calls a second"),
            ("limit.mounts=0", "a number of filesystems at a time"),
            ("sched.priority=100", "0 to 99"),
        ] {
            let error = parse(list).unwrap_err();
            assert!(error.contains(right), "{list}: {error}");
        }
    }
}
