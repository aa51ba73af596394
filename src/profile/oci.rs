//! Profiles in JSON: that of the OCI runtime specification, and that of Docker and Podman, which
//! adds conditions (`includes`, `excludes`) and `archMap` to it.
//!
//! A name is removed from the base's rules before ambit's rule for it is added, with the conditions
//! of the base: runtimes differ in which of two rules for one call they use. Unknown fields of the
//! base are kept.

use std::collections::BTreeSet;
use std::path::Path;

use ambit_kernel::sys::arches::compatible;
use anyhow::{anyhow, bail};
use libseccomp::ScmpArch;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::rules::{Condition, Rule};
use super::{Base, Profile, Wish};

const ALLOW: &str = "SCMP_ACT_ALLOW";
const NOTIFY: &str = "SCMP_ACT_NOTIFY";

/// A profile. Fields that ambit does not use are in `rest`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    default_action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    architectures: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listener_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Entry>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One of its rules.
#[derive(Debug, Clone, Deserialize, Serialize)]
struct Entry {
    /// The only name, in older profiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Vec<Arg>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// A whole config.json.
#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    linux: Linux,
}

#[derive(Default, Deserialize)]
struct Linux {
    #[serde(default)]
    seccomp: Option<Seccomp>,
}

/// Writes the profile.
pub(super) fn profile(base: Option<Base<'_>>, wish: &Wish<'_>) -> anyhow::Result<Profile> {
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
    let is_own = seccomp.is_own(wish)?;
    if seccomp.is_dockers() {
        warnings.push(
            "the base has conditions that Docker and Podman work out: give the result to them, and \
             not to a runtime as linux.seccomp"
                .to_owned(),
        );
    }
    for rule in wish.rules {
        merge(&mut seccomp, rule, is_own, &mut warnings)?;
    }
    seccomp.sort_reported();
    let others =
        seccomp.reported().filter(|name| !wish.rules.iter().any(|one| one.syscall == *name));
    let others: BTreeSet<_> = others.collect();
    if !others.is_empty() {
        warnings.push(format!(
            "the base is a profile of ambit that reports {} too, which stays so; to leave that out, \
             start with the engine's own profile",
            others.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    listen(&mut seccomp, wish, &mut warnings);
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

/// Parses a base. `None` if it is a config.json without a profile.
fn parse(base: Base<'_>) -> anyhow::Result<Option<Seccomp>> {
    let Base { path, text } = base;
    let error = |error: serde_json::Error| {
        let (line, column) = (error.line(), error.column());
        let said = error.to_string();
        let said = said.split(" at line ").next().unwrap_or(&said);
        anyhow!("{}:{line}:{column}: this is no seccomp profile: {said}", path.display())
    };
    let value: Value = serde_json::from_str(text).map_err(error)?;
    if value.get("linux").is_some() || value.get("ociVersion").is_some() {
        return Ok(serde_json::from_str::<Bundle>(text).map_err(error)?.linux.seccomp);
    }
    serde_json::from_str(text).map_err(error).map(Some)
}

/// Returns the profile that is used without a base.
fn permissive() -> Seccomp {
    let arches = compatible(ScmpArch::native());
    Seccomp {
        default_action: ALLOW.to_owned(),
        architectures: Some(arches.into_iter().filter_map(name_of).map(str::to_owned).collect()),
        listener_path: None,
        listener_metadata: None,
        syscalls: None,
        rest: Map::new(),
    }
}

impl Seccomp {
    fn is_dockers(&self) -> bool {
        let conditional = |entry: &Entry| {
            ["includes", "excludes"].iter().any(|key| entry.rest.contains_key(*key))
        };
        self.rest.contains_key("archMap") || self.syscalls.iter().flatten().any(conditional)
    }

    /// Iterates over the names of the calls that are reported.
    fn reported(&self) -> impl Iterator<Item = &str> {
        let entries = self.syscalls.iter().flatten();
        entries.filter(|entry| entry.action == NOTIFY).flat_map(Entry::names)
    }

    /// Puts the rules of reported calls at the end, in an order of their own: another merge of the
    /// same calls gives the same text.
    fn sort_reported(&mut self) {
        let names: BTreeSet<String> = self.reported().map(str::to_owned).collect();
        let is_reported = |entry: &Entry| {
            let has_arguments = entry.args.as_ref().is_some_and(|args| !args.is_empty());
            entry.action == NOTIFY
                || has_arguments && entry.names().all(|name| names.contains(name))
        };
        let rules = self.syscalls.take().unwrap_or_default();
        let (mut reported, mut others): (Vec<_>, Vec<_>) = rules.into_iter().partition(is_reported);
        reported.iter_mut().for_each(|entry| entry.names.sort());
        reported.sort_by_cached_key(|entry| serde_json::to_string(entry).unwrap_or_default());
        others.extend(reported);
        self.syscalls = Some(others);
    }

    /// True if it reports calls to ambit already.
    ///
    /// # Errors
    /// It reports calls to another listener.
    fn is_own(&self, wish: &Wish<'_>) -> anyhow::Result<bool> {
        if self.reported().next().is_none() {
            return Ok(false);
        }
        let listener = self.listener_path.as_deref();
        if listener.is_some_and(|path| Path::new(path) == wish.socket) {
            return Ok(true);
        }
        let reported: BTreeSet<_> = self.reported().collect();
        bail!(
            "the base reports {} to {}: a container has one listener, so its profile is left as it \
             is, and ambit answers no calls there",
            reported.into_iter().collect::<Vec<_>>().join(", "),
            listener.map_or("another listener".to_owned(), |path| format!("the listener {path}"))
        )
    }

    /// True if the default action lets calls pass.
    fn lets_pass(&self) -> bool {
        [ALLOW, "SCMP_ACT_LOG"].contains(&self.default_action.as_str())
    }
}

impl Entry {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.name.iter().chain(&self.names).map(String::as_str)
    }

    /// True if it applies to some containers only.
    fn is_conditional(&self) -> bool {
        ["includes", "excludes"].iter().any(|key| match self.rest.get(*key) {
            Some(Value::Object(map)) => !map.is_empty(),
            other => other.is_some_and(|value| !value.is_null()),
        })
    }

    /// Returns a rule of ambit for the containers of this rule.
    fn with(&self, syscall: &str, action: &str, condition: Option<Condition>) -> Self {
        let rest = self.rest.iter().filter(|(key, _)| *key == "includes" || *key == "excludes");
        Self {
            name: None,
            names: vec![syscall.to_owned()],
            action: action.to_owned(),
            args: condition.map(|condition| vec![condition.into()]),
            rest: rest.map(|(key, value)| (key.clone(), value.clone())).collect(),
        }
    }

    /// Returns ambit's rules in its place: the arguments that are reported, and those that pass.
    fn replaced(&self, rule: &Rule, lets_pass: bool) -> Vec<Self> {
        let one = |action, condition| self.with(rule.syscall, action, condition);
        if rule.conditions.is_empty() {
            return vec![one(NOTIFY, None)];
        }
        let others = if lets_pass { Some(Vec::new()) } else { rule.otherwise() };
        // Reporting all calls is correct too, but slower.
        let Some(others) = others else { return vec![one(NOTIFY, None)] };
        let reported = rule.conditions.iter().map(|condition| one(NOTIFY, Some(*condition)));
        reported.chain(others.into_iter().map(|other| one(ALLOW, Some(other)))).collect()
    }
}

impl From<Condition> for Arg {
    /// The specification has the mask first.
    fn from(condition: Condition) -> Self {
        Self {
            index: condition.argument,
            value: condition.mask,
            value_two: condition.value,
            op: "SCMP_CMP_MASKED_EQ".to_owned(),
        }
    }
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

fn listen(seccomp: &mut Seccomp, wish: &Wish<'_>, warnings: &mut Vec<String>) {
    let socket = wish.socket.display().to_string();
    let before = seccomp.listener_path.replace(socket.clone());
    if let Some(before) = before.filter(|before| *before != socket) {
        warnings.push(format!(
            "the base's listener {before}, to which it reports nothing, is replaced"
        ));
    }
    if let Some(label) = wish.label {
        seccomp.listener_metadata = Some(label.to_owned());
    }
}

/// Returns the name of an architecture in profiles.
fn name_of(arch: ScmpArch) -> Option<&'static str> {
    const NAMES: [&str; 20] = [
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32",
        "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_ARM",
        "SCMP_ARCH_RISCV64",
        "SCMP_ARCH_LOONGARCH64",
        "SCMP_ARCH_PPC64LE",
        "SCMP_ARCH_PPC64",
        "SCMP_ARCH_PPC",
        "SCMP_ARCH_S390X",
        "SCMP_ARCH_S390",
        "SCMP_ARCH_MIPS64",
        "SCMP_ARCH_MIPS64N32",
        "SCMP_ARCH_MIPS",
        "SCMP_ARCH_MIPSEL64",
        "SCMP_ARCH_MIPSEL64N32",
        "SCMP_ARCH_MIPSEL",
        "SCMP_ARCH_PARISC64",
        "SCMP_ARCH_PARISC",
    ];
    NAMES.into_iter().find(|name| name.parse::<ScmpArch>().is_ok_and(|one| one == arch))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rules;
    use super::*;
    use ambit_intercept::Policy;

    /// Of the shape that Docker and Podman have.
    const DOCKERS: &str = include_str!("../../tests/profiles/docker.json");

    fn made(base: Option<&str>, list: &str) -> anyhow::Result<(Value, String)> {
        let rules = rules::of(&Policy::from_names(list.split(',')).unwrap());
        let socket = Path::new("/run/ambit/oci.sock");
        let wish = Wish { rules: &rules, socket, label: Some("web") };
        let base = base.map(|text| Base { path: Path::new("base.json"), text });
        let Profile { text, warnings } = profile(base, &wish)?;
        Ok((serde_json::from_str(&text)?, warnings.join("\n")))
    }

    /// The rules for a call.
    fn of(profile: &Value, name: &str) -> Vec<Value> {
        let all = profile["syscalls"].as_array().unwrap().iter();
        let named = |entry: &&Value| entry["names"].as_array().unwrap().contains(&json!(name));
        all.filter(named).cloned().collect()
    }

    #[test]
    fn without_a_base_the_rest_is_allowed() {
        let (profile, said) = made(None, "sysinfo,mknod").unwrap();
        assert_eq!(profile["defaultAction"], ALLOW);
        assert_eq!(profile["listenerPath"], "/run/ambit/oci.sock");
        assert_eq!(profile["listenerMetadata"], "web");
        assert_eq!(of(&profile, "sysinfo"), [json!({ "names": ["sysinfo"], "action": NOTIFY })]);
        let mask = json!([{ "index": 1, "op": "SCMP_CMP_MASKED_EQ",
                            "value": 0o170_000, "valueTwo": 0o020_000 }]);
        assert_eq!(of(&profile, "mknod")[0]["args"], mask);
        assert!(said.contains("everything else is allowed"), "{said}");
        for arch in profile["architectures"].as_array().unwrap() {
            arch.as_str().unwrap().parse::<ScmpArch>().unwrap();
        }
    }

    const ALL: &str = "sysinfo,sched_getaffinity,mknod,setxattr,sched_setscheduler,mount,bpf";

    #[test]
    fn merging_again_changes_nothing() {
        for base in [None, Some(DOCKERS)] {
            for list in ["sysinfo,sched_getaffinity", ALL] {
                let (first, _) = made(base, list).unwrap();
                let (again, said) = made(Some(&first.to_string()), list).unwrap();
                assert_eq!(again, first, "{said}");
                // Other rules of ambit replace the first ones.
                let (more, _) = made(Some(&first.to_string()), ALL).unwrap();
                for name in ["mknod", "mount", "sysinfo"] {
                    assert_eq!(of(&more, name), of(&made(base, ALL).unwrap().0, name), "{name}");
                }
                let (_, said) = made(Some(&more.to_string()), "sysinfo").unwrap();
                assert!(said.contains("reports bpf, fsetxattr"), "{said}");
            }
        }
    }

    #[test]
    fn a_profile_with_another_listener_is_left_alone() {
        for path in [r#""listenerPath":"/run/other.sock","#, ""] {
            let base = format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW",{path}
                    "syscalls":[{{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}}]}}"#
            );
            let error = made(Some(&base), "sysinfo").unwrap_err().to_string();
            assert!(error.contains("the base reports mkdir to"), "{error}");
            assert!(error.contains("one listener"), "{error}");
        }
    }

    #[test]
    fn reported_names_are_removed_from_the_rules_of_dockers_base() {
        let (profile, said) = made(Some(DOCKERS), "sysinfo,mknod,mount").unwrap();
        assert!(said.contains("Docker and Podman work out"), "{said}");
        assert_eq!(profile["archMap"][0]["architecture"], "SCMP_ARCH_X86_64", "kept");
        assert_eq!(of(&profile, "sysinfo").len(), 1);
        assert_eq!(of(&profile, "sysinfo")[0]["action"], NOTIFY);
        assert_eq!(of(&profile, "read")[0]["action"], ALLOW);
        // Arguments that are not reported pass as before.
        let mknod = of(&profile, "mknod");
        let count = |action| mknod.iter().filter(|entry| entry["action"] == action).count();
        assert_eq!((count(NOTIFY), count(ALLOW)), (1, 4));
        // Containers that could not mount before still cannot.
        for entry in of(&profile, "mount") {
            let (which, action) = (&entry["includes"]["caps"], &entry["action"]);
            let refused =
                action == "SCMP_ACT_ERRNO" && entry["excludes"]["caps"] == json!(["CAP_SYS_ADMIN"]);
            assert!(refused || *which == json!(["CAP_SYS_ADMIN"]), "{entry}");
        }
        assert_eq!(of(&profile, "umount")[0]["includes"]["caps"], json!(["CAP_SYS_ADMIN"]));
    }

    #[test]
    fn a_config_json_is_accepted_as_a_base() {
        let seccomp = r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],
            "listenerPath":"/other","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"},
            {"names":["mknod"],"action":"SCMP_ACT_KILL"}]}"#;
        let bundle = format!(r#"{{"ociVersion":"1.0.2","linux":{{"seccomp":{seccomp}}}}}"#);
        let (profile, said) = made(Some(&bundle), "mknod").unwrap();
        assert_eq!(profile["architectures"], json!(["SCMP_ARCH_X86_64"]));
        assert!(of(&profile, "mknod").iter().all(|entry| entry["action"] != "SCMP_ACT_KILL"));
        assert!(
            said.contains("refuses mknod")
                && said.contains("/other, to which it reports nothing, is replaced"),
            "{said}"
        );
        let (profile, said) = made(Some(r#"{"ociVersion":"1.0.2"}"#), "mknod").unwrap();
        assert_eq!(profile["defaultAction"], ALLOW);
        assert!(said.contains("no profile to merge with"), "{said}");
    }

    #[test]
    fn an_invalid_profile_is_an_error_with_its_line() {
        for (base, said) in [
            ("{\n  \"defaultAction\": }", "base.json:2:"),
            ("{\"syscalls\": []}", "missing field `defaultAction`"),
            (
                "{\"defaultAction\": \"SCMP_ACT_ALLOW\",\n\"syscalls\": [\n{\"names\": 3}]}",
                "base.json:3:",
            ),
            ("[]", "no seccomp profile"),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mknod"],
                    "action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
                "rule for mknod with arguments",
            ),
        ] {
            let error = made(Some(base), "mknod").unwrap_err().to_string();
            assert!(error.contains(said), "{base}: {error}");
        }
    }
}
