//! Profiles in JSON: that of the OCI runtime specification, and that of Docker and Podman, which
//! adds conditions (`includes`, `excludes`) and `archMap` to it.
//!
//! A name is removed from the base's rules before ambit's rule for it is added, with the conditions
//! of the base: runtimes differ in which of two rules for one call they use. Unknown fields of the
//! base are kept.

mod format;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;
use serde_json::{Map, Value};

use self::format::{ALLOW, Entry, NOTIFY, Seccomp, parse, permissive};
use super::rules::Rule;
use super::{Base, Contents, Profile};

/// Writes the profile.
pub(super) fn profile(base: Option<Base<'_>>, contents: &Contents<'_>) -> anyhow::Result<Profile> {
    let mut warnings = Vec::new();
    let own = base.map(parse).transpose()?.flatten();
    if own.is_none() {
        warnings.push(
            "there is no profile to merge with, so everything else is allowed; to keep what your \
             engine refuses, give its profile as --base"
                .to_owned(),
        );
    }
    let mut seccomp = own.unwrap_or_else(permissive);
    let is_own = seccomp.is_own(contents)?;
    if seccomp.is_dockers() {
        warnings.push(
            "the base has conditions that Docker and Podman work out: give the result to them, and \
             not to a runtime as linux.seccomp"
                .to_owned(),
        );
    }
    for rule in contents.rules {
        merge(&mut seccomp, rule, is_own, &mut warnings)?;
    }
    seccomp.sort_reported();
    let others =
        seccomp.reported().filter(|name| !contents.rules.iter().any(|one| one.syscall == *name));
    let others: BTreeSet<_> = others.collect();
    if !others.is_empty() {
        warnings.push(format!(
            "the base is a profile of ambit that reports {} too, which stays so; to leave that out, \
             start with the engine's own profile",
            others.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    listen(&mut seccomp, contents, &mut warnings);
    let text = serde_json::to_string_pretty(&seccomp)? + "\n";
    Ok(Profile { text, warnings })
}

/// Returns a base without its reports to this socket. `None` if it has none.
pub(super) fn withdraw(base: Base<'_>, socket: &Path) -> anyhow::Result<Option<Value>> {
    let Some(mut seccomp) = parse(base)? else { return Ok(None) };
    if seccomp.listener_path.as_deref().map(Path::new) != Some(socket) {
        return Ok(None);
    }
    (seccomp.listener_path, seccomp.listener_metadata) = (None, None);
    let lets_pass = seccomp.lets_pass();
    let mut rules = seccomp.syscalls.take().unwrap_or_default();
    // Runtimes refuse a rule that says the same as the default.
    rules.retain(|entry| !lets_pass || entry.action != NOTIFY);
    for entry in rules.iter_mut().filter(|entry| entry.action == NOTIFY) {
        ALLOW.clone_into(&mut entry.action);
    }
    seccomp.syscalls = Some(rules);
    Ok(Some(serde_json::to_value(&seccomp)?))
}

/// Merges a rule. With `is_own`, rules with arguments are those of an earlier merge: they are
/// replaced.
fn merge(
    seccomp: &mut Seccomp,
    rule: &Rule,
    is_own: bool,
    warnings: &mut Vec<String>,
) -> anyhow::Result<()> {
    let (name, lets_pass) = (rule.syscall, seccomp.lets_pass());
    let mut entries = Vec::new();
    let (mut allowed, mut refused) = (false, false);
    let mut replaced = Vec::new();
    for entry in seccomp.syscalls.take().unwrap_or_default() {
        if !entry.names().any(|one| one == name) {
            entries.push(entry);
            continue;
        }
        let has_arguments = entry.args.as_ref().is_some_and(|args| !args.is_empty());
        if has_arguments && !is_own {
            bail!(
                "the base has a rule for {name} with arguments ({}), which cannot be merged: take it \
                 out, or leave {name} out of --intercept",
                entry.action
            );
        }
        let passes = [ALLOW, "SCMP_ACT_LOG", NOTIFY].contains(&entry.action.as_str());
        // A call that is refused if another rule does not apply stays refused there.
        if !passes && entry.is_conditional() {
            entries.push(entry);
            continue;
        }
        let mut less = entry.clone();
        less.names.retain(|one| one != name);
        less.name = less.name.filter(|one| one != name);
        if less.names().next().is_some() {
            entries.push(less);
        }
        if passes && has_arguments && replaced.contains(&entry.rest) {
            // An earlier merge has made several rules of one.
        } else if passes {
            allowed = true;
            replaced.push(entry.rest.clone());
            entries.extend(entry.replaced(rule, lets_pass));
        } else {
            refused = true;
        }
    }
    if !allowed {
        if refused || !lets_pass {
            warnings.push(format!(
                "the base refuses {name}; it is reported now, and where ambit does not act, the \
                 kernel judges it"
            ));
        }
        let everywhere = Entry {
            name: None,
            names: Vec::new(),
            action: NOTIFY.to_owned(),
            args: None,
            rest: Map::new(),
        };
        entries.extend(everywhere.replaced(rule, lets_pass));
    }
    seccomp.syscalls = Some(join(entries));
    Ok(())
}

/// Groups names that have the same rule.
fn join(entries: Vec<Entry>) -> Vec<Entry> {
    let mut joined: Vec<Entry> = Vec::new();
    for entry in entries {
        let same = |other: &&mut Entry| {
            entry.action == NOTIFY
                && other.action == NOTIFY
                && (&entry.args, &entry.rest) == (&other.args, &other.rest)
        };
        match joined.iter_mut().find(same) {
            Some(other) => other.names.extend(entry.names),
            None => joined.push(entry),
        }
    }
    joined
}

fn listen(seccomp: &mut Seccomp, contents: &Contents<'_>, warnings: &mut Vec<String>) {
    let socket = contents.socket.display().to_string();
    let before = seccomp.listener_path.replace(socket.clone());
    if let Some(before) = before.filter(|before| *before != socket) {
        warnings.push(format!(
            "the base's listener {before}, to which it reports nothing, is replaced"
        ));
    }
    if let Some(label) = contents.label {
        seccomp.listener_metadata = Some(label.to_owned());
    }
}

#[cfg(test)]
mod tests;
