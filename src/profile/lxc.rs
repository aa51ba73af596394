//! Profiles of liblxc, version 2: a line for each rule, under the architectures it is for.
//!
//! liblxc adds a rule under `[all]` for the machine's architecture and those compatible with it.
//! The first rule for a call is used, so lines of the base for calls that ambit handles are
//! removed.

use std::fmt::Write;

use anyhow::bail;

use ambit_intercept::{HANDLERS, Policy};

use super::rules::{self, Condition, Rule};
use super::{Base, Contents, Profile};

/// Writes the profile.
pub(super) fn profile(base: Option<Base<'_>>, contents: &Contents<'_>) -> anyhow::Result<Profile> {
    let mut profile = Profile::default();
    let lets_pass = match base {
        Some(base) => keep(base, contents, &mut profile)?,
        None => {
            profile.text.push_str("2\ndenylist\n");
            profile.warnings.push(
                "without --base nothing is refused; liblxc's own list is \
                 /usr/share/lxc/config/common.seccomp"
                    .to_owned(),
            );
            true
        }
    };
    // A profile of ambit that is merged again ends so already.
    if !profile.text.ends_with("\n[all]\n") {
        profile.text.push_str("[all]\n");
    }
    for rule in contents.rules {
        add(rule, lets_pass, &mut profile);
    }
    Ok(profile)
}

/// Copies the base's rules for other calls. True if the base allows calls that it does not name.
fn keep(base: Base<'_>, contents: &Contents<'_>, profile: &mut Profile) -> anyhow::Result<bool> {
    let at = |line: usize| format!("{}:{line}", base.path.display());
    let mut lines = base.text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let version = lines.next().map_or("", |(_, line)| line.trim());
    if version != "2" {
        bail!(
            "{}: this is no profile of liblxc that can be merged: its first line is the version, 2",
            at(1)
        );
    }
    let policy = lines.next().map_or("", |(_, line)| line);
    let lets_pass = match policy.split_whitespace().next() {
        Some("denylist" | "blacklist") => true,
        Some("allowlist" | "whitelist") => false,
        _ => bail!("{}: the second line of a profile is denylist or allowlist", at(2)),
    };
    writeln!(profile.text, "2\n{policy}")?;
    let own = own_lines(lets_pass);
    let mut others = Vec::new();
    for (number, line) in lines {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let is_own = own.iter().any(|own| own == line);
        if !is_own && line.split('#').next().is_some_and(|rule| rule.contains(" notify")) {
            bail!(
                "{}: the base reports {name} to another listener: a container has one, so its \
                 profile is left as it is, and ambit answers no calls there",
                at(number)
            );
        }
        if is_own && contents.rules.iter().any(|rule| rule.syscall == name) {
            continue;
        }
        if is_own && line.contains(" notify") && !others.contains(&name) {
            others.push(name);
        }
        if !contents.rules.iter().any(|rule| rule.syscall == name) {
            profile.text.push_str(line);
            profile.text.push('\n');
            continue;
        }
        if line.split('#').next().is_some_and(|rule| rule.contains('[')) {
            bail!(
                "{}: a rule for {name} with arguments cannot be merged: take it out, or leave {name} \
                 out of --intercept",
                at(number)
            );
        }
        let action = words.next().unwrap_or(if lets_pass { "refuse" } else { "allow" });
        if !["allow", "notify"].contains(&action) {
            profile.warnings.push(format!(
                "{}: the base refuses {name}; it is reported now, and where ambit does not act, the \
                 kernel judges it",
                at(number)
            ));
        }
    }
    if !others.is_empty() {
        profile.warnings.push(format!(
            "the base is a profile of ambit that reports {} too, which stays so; to leave that out, \
             start with the engine's own profile",
            others.join(", ")
        ));
    }
    Ok(lets_pass)
}

/// Returns the lines that a merge adds for any call. A base that has some is a profile of ambit.
fn own_lines(lets_pass: bool) -> Vec<String> {
    let mut own = Profile::default();
    let all = HANDLERS.iter().map(|handler| handler.describe().name);
    for rule in
        all.filter_map(|name| Policy::from_names([name]).ok()).flat_map(|one| rules::of(&one))
    {
        add(&rule, lets_pass, &mut own);
    }
    own.text.lines().map(str::to_owned).collect()
}

fn add(rule: &Rule, lets_pass: bool, profile: &mut Profile) {
    let name = rule.syscall;
    let mut line = |action: &str, condition: Option<&Condition>| {
        let condition = condition.map(text).unwrap_or_default();
        profile.text.push_str(&format!("{name} {action}{condition}\n"));
    };
    if rule.conditions.iter().any(|condition| !is_readable(condition)) {
        line("notify", None);
        let all =
            format!("{name}: liblxc cannot read numbers of 64 bits, so all calls are reported");
        profile.warnings.push(all);
        return;
    }
    match if lets_pass { Some(Vec::new()) } else { rule.otherwise() } {
        Some(others) if !rule.conditions.is_empty() => {
            rule.conditions.iter().for_each(|one| line("notify", Some(one)));
            others.iter().for_each(|other| line("allow", Some(other)));
        }
        _ => line("notify", None),
    }
}

/// liblxc has the value first, and the mask last.
fn text(condition: &Condition) -> String {
    let Condition { argument, mask, value } = condition;
    format!(" [{argument},{value},SCMP_CMP_MASKED_EQ,{mask}]")
}

/// liblxc reads signed numbers.
fn is_readable(condition: &Condition) -> bool {
    i64::try_from(condition.mask).is_ok() && i64::try_from(condition.value).is_ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn made(base: Option<&str>, list: &str) -> anyhow::Result<(String, String)> {
        let rules = rules::of(&Policy::from_names(list.split(',')).unwrap());
        let contents = Contents { rules: &rules, socket: Path::new("/s"), label: None };
        let base = base.map(|text| Base { path: Path::new("base"), text });
        profile(base, &contents).map(|made| (made.text, made.warnings.join("\n")))
    }

    #[test]
    fn rules_have_the_value_before_the_mask() {
        let (text, said) = made(None, "sysinfo,mknod").unwrap();
        assert_eq!(
            text,
            "2\ndenylist\n[all]\nsysinfo notify\nmknod notify [1,8192,SCMP_CMP_MASKED_EQ,61440]\n\
             mknodat notify [2,8192,SCMP_CMP_MASKED_EQ,61440]\n"
        );
        assert!(said.contains("common.seccomp"), "{said}");
    }

    #[test]
    fn rules_of_the_base_for_other_calls_are_kept() {
        let base = "2\ndenylist\nreject_force_umount # not umount -f\n[all]\nkexec_load errno 1\n\
                    sysinfo errno 38\n[x86_64]\nmknod\n";
        let (text, said) = made(Some(base), "sysinfo,mknod").unwrap();
        assert!(text.starts_with(
            "2\ndenylist\nreject_force_umount # not umount -f\n[all]\nkexec_load errno 1\n[x86_64]\n\
             [all]\nsysinfo notify\nmknod notify ["
        ));
        assert!(said.contains("base:6: the base refuses sysinfo"), "{said}");
        assert!(said.contains("base:8: the base refuses mknod"), "{said}");
    }

    #[test]
    fn merging_again_changes_nothing() {
        const ALL: &str = "sysinfo,sched_getaffinity,mknod,setxattr,sched_setscheduler,mount,bpf";
        let bases =
            ["2\ndenylist\n[all]\nkexec_load errno 1\n", "2\nallowlist errno 1\n[all]\nread\n"];
        for base in [None, Some(bases[0]), Some(bases[1])] {
            for list in ["sysinfo,sched_getaffinity", ALL] {
                let (first, _) = made(base, list).unwrap();
                assert_eq!(made(Some(&first), list).unwrap().0, first);
                let (more, _) = made(Some(&first), ALL).unwrap();
                assert_eq!(made(Some(&more), ALL).unwrap().0, more);
                let (_, said) = made(Some(&more), "sysinfo").unwrap();
                assert!(said.contains("reports sched_getaffinity, mknod"), "{said}");
            }
        }
    }

    #[test]
    fn a_profile_with_another_listener_is_left_alone() {
        let error = made(Some("2\ndenylist\n[all]\nmkdir notify\n"), "sysinfo").unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("base:4: the base reports mkdir to another listener"), "{error}");
    }

    #[test]
    fn with_an_allow_list_other_arguments_stay_allowed() {
        let (text, said) =
            made(Some("2\nallowlist errno 1\n[all]\nread\nmknod\n"), "mknod").unwrap();
        assert_eq!(text.matches("mknod allow [1,").count(), 4, "{text}");
        assert!(text.contains("\nread\n") && said.is_empty(), "{said}");
    }

    #[test]
    fn an_invalid_profile_is_an_error_with_its_line() {
        for (base, said) in [
            ("", "base:1:"),
            ("1\nallowlist\n5\n", "base:1: this is no profile"),
            ("2\n[all]\n", "base:2: the second line"),
            ("2\ndenylist\n[all]\nmknod errno 1 [1,1,SCMP_CMP_EQ]\n", "base:4: a rule for mknod"),
        ] {
            let error = made(Some(base), "mknod").unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
