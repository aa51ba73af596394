//! The format of a profile in JSON, and what a base says in it.

use std::collections::BTreeSet;
use std::path::Path;

use ambit_kernel::sys::arches::compatible;
use anyhow::{anyhow, bail};
use libseccomp::ScmpArch;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::profile::rules::{Condition, Rule};
use crate::profile::{Base, Contents};

pub(super) const ALLOW: &str = "SCMP_ACT_ALLOW";
pub(super) const NOTIFY: &str = "SCMP_ACT_NOTIFY";

/// A profile. Fields that ambit does not use are in `rest`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Seccomp {
    pub(super) default_action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) architectures: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) listener_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) listener_metadata: Option<String>,
    #[serde(default)]
    pub(super) syscalls: Option<Vec<Entry>>,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// One of its rules.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct Entry {
    /// The only name, in older profiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) names: Vec<String>,
    pub(super) action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) args: Option<Vec<Arg>>,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Arg {
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

/// Parses a base. `None` if it is a config.json without a profile.
pub(super) fn parse(base: Base<'_>) -> anyhow::Result<Option<Seccomp>> {
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
pub(super) fn permissive() -> Seccomp {
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
    pub(super) fn is_dockers(&self) -> bool {
        let conditional = |entry: &Entry| {
            ["includes", "excludes"].iter().any(|key| entry.rest.contains_key(*key))
        };
        self.rest.contains_key("archMap") || self.syscalls.iter().flatten().any(conditional)
    }

    /// Iterates over the names of the calls that are reported.
    pub(super) fn reported(&self) -> impl Iterator<Item = &str> {
        let entries = self.syscalls.iter().flatten();
        entries.filter(|entry| entry.action == NOTIFY).flat_map(Entry::names)
    }

    /// Puts the rules of reported calls at the end, in an order of their own: another merge of the
    /// same calls gives the same text.
    pub(super) fn sort_reported(&mut self) {
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
    pub(super) fn is_own(&self, contents: &Contents<'_>) -> anyhow::Result<bool> {
        if self.reported().next().is_none() {
            return Ok(false);
        }
        let listener = self.listener_path.as_deref();
        if listener.is_some_and(|path| Path::new(path) == contents.socket) {
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
    pub(super) fn lets_pass(&self) -> bool {
        [ALLOW, "SCMP_ACT_LOG"].contains(&self.default_action.as_str())
    }
}

impl Entry {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.name.iter().chain(&self.names).map(String::as_str)
    }

    /// True if it applies to some containers only.
    pub(super) fn is_conditional(&self) -> bool {
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
    pub(super) fn replaced(&self, rule: &Rule, lets_pass: bool) -> Vec<Self> {
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
