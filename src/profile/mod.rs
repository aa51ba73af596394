//! `ambit profile`: the seccomp profile with which an engine's containers report calls.
//!
//! The handlers alone decide what is reported (`rules.rs`). `oci.rs` and `lxc.rs` write it in the
//! format of an engine and merge it into an existing profile. The configuration decides which of
//! the reported calls are granted. Start reading at `rules.rs`.

mod advice;
mod lxc;
mod oci;
mod rules;

use std::path::{Path, PathBuf};

use ambit_kernel::output;
use anyhow::{Context, bail};

use crate::config::Config;
use crate::config::words;
use ambit_intercept::Policy;

/// The arguments of `ambit profile`.
#[derive(Debug, clap::Args)]
pub struct ProfileArgs {
    /// Whose profile
    #[arg(long = "for", value_name = "ENGINE")]
    engine: Engine,
    /// Calls that are reported, joined by commas [default: those that the configuration has on]
    #[arg(long, value_name = "LIST")]
    intercept: Option<String>,
    /// The profile that is merged with: of liblxc (version 2), of Docker and Podman, or of the OCI
    /// runtime specification, alone or in a config.json
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// What `[[container]]` sections match by `metadata` (OCI) or `cookie` (LXC)
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Write the profile there, and print how a container gets it
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The format of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    /// liblxc, and what is built on it
    Lxc,
    /// runc, crun and the engines that start them
    Oci,
}

/// A profile, and warnings for its user.
#[derive(Debug, Default)]
struct Profile {
    text: String,
    warnings: Vec<String>,
}

/// A profile that rules are merged into.
#[derive(Debug, Clone, Copy)]
struct Base<'a> {
    path: &'a Path,
    text: &'a str,
}

/// The contents of a profile, apart from its base.
#[derive(Debug)]
struct Contents<'a> {
    rules: &'a [rules::Rule],
    socket: &'a Path,
    label: Option<&'a str>,
}

/// Prints a profile, or writes it and prints how it is used.
pub fn run(args: &ProfileArgs, config: &Config) -> anyhow::Result<()> {
    let policies = &config.policies;
    let policy = match &args.intercept {
        Some(list) => parse(list)?,
        None => policies.all.clone(),
    };
    let rules = rules::of(&policy);
    if rules.is_empty() {
        bail!("no call is reported: name some with --intercept, such as sysinfo,mknod");
    }
    if let Some(label) = args.label.as_deref().filter(|label| label.contains(char::is_control)) {
        bail!("--label {label:?} has control characters");
    }
    let text = args.base.as_deref().map(read).transpose()?;
    let base = args.base.as_deref().zip(text.as_deref()).map(|(path, text)| Base { path, text });
    let socket = config.socket(args.engine.socket());
    let contents = Contents { rules: &rules, socket: &socket, label: args.label.as_deref() };
    let profile = match args.engine {
        Engine::Lxc => lxc::profile(base, &contents)?,
        Engine::Oci => oci::profile(base, &contents)?,
    };
    let general = advice::general(args.engine, &rules, &policy, policies, &socket);
    for warning in profile.warnings.iter().chain(&general) {
        output::complain(format_args!("ambit: note: {warning}"));
    }
    let use_it = |file: &Path| advice::usage(args.engine, file, &contents, &config.overlay.mount);
    match &args.output {
        Some(path) => {
            std::fs::write(path, &profile.text)
                .with_context(|| format!("cannot write {}", path.display()))?;
            output::print(use_it(&path.canonicalize()?))?;
        }
        None => output::print(&profile.text)?,
    }
    Ok(())
}

/// Returns the profile that the containers of liblxc share: this base, with rules for the calls that
/// the configuration has on.
pub fn shared_lxc(config: &Config, base: Option<(&Path, &str)>) -> anyhow::Result<String> {
    let rules = rules::of(&config.policies.all);
    let socket = config.socket(Engine::Lxc.socket());
    let contents = Contents { rules: &rules, socket: &socket, label: None };
    Ok(lxc::profile(base.map(|(path, text)| Base { path, text }), &contents)?.text)
}

/// Returns the profile of an OCI container with rules for the calls that the configuration has on,
/// as it is in a config.json. Without a base all else is allowed. `None` if no call is on.
pub fn shared_oci(
    config: &Config,
    base: Option<&str>,
) -> anyhow::Result<Option<serde_json::Value>> {
    let rules = rules::of(&config.policies.all);
    if rules.is_empty() {
        return Ok(None);
    }
    let socket = config.socket(Engine::Oci.socket());
    let contents = Contents { rules: &rules, socket: &socket, label: None };
    let profile = oci::profile(base.map(of_bundle), &contents)?;
    Ok(Some(serde_json::from_str(&profile.text)?))
}

/// Returns the profile of an OCI container without its reports to ambit: what was reported is up to
/// the kernel. `None` if it has none.
pub fn withdrawn_oci(config: &Config, base: &str) -> anyhow::Result<Option<serde_json::Value>> {
    oci::withdraw(of_bundle(base), &config.socket(Engine::Oci.socket()))
}

fn of_bundle(text: &str) -> Base<'_> {
    Base { path: Path::new("seccomp"), text }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Parses a list of names of calls. A setting in it is an error.
fn parse(list: &str) -> anyhow::Result<Policy> {
    for word in list.split(',').map(str::trim) {
        let name = word.split('=').next().unwrap_or(word);
        if words::is_setting(name) {
            bail!(
                "--intercept {name}: a profile only says which calls are reported; {name} belongs in \
                 [intercept] or a [[container]] section of the configuration"
            );
        }
    }
    Ok(Policy::from_names(list.split(','))?)
}

impl Engine {
    fn socket(self) -> &'static str {
        match self {
            Self::Lxc => "lxc.sock",
            Self::Oci => "oci.sock",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_in_the_list_is_an_error() {
        assert_eq!(
            parse("sysinfo, mknod").unwrap().names().collect::<Vec<_>>(),
            ["sysinfo", "mknod"]
        );
        for (list, said) in [
            ("sysinf", "did you mean sysinfo?"),
            ("mount,mount.allowed=ext4", "mount.allowed belongs in [intercept]"),
            ("nested", "nested belongs in"),
        ] {
            let error = parse(list).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
