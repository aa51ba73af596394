//! What each subcommand does. Start reading at `Command::execute`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use ambit_intercept::Policy;
use ambit_keeper::process::{self, Contract};
use ambit_kernel::output::{Unwritable, print, stderr};
use ambit_worker::Broker;
use anyhow::Context;

use super::{Command, ConfigFile, MISTAKEN};
use crate::config::{self, DEFAULT_PATH};
use crate::dependents::{self, Dependent};
use crate::{
    absence, attach, check, check_process, containers, control, dead_mounts, drop_in, hook, lxcfs,
    mount_namespaces, oci_runtime, profile, run, serve, setup, stop, verify,
};

impl Command {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Serve { broker: true, .. } => Broker::serve_keeper()?,
            Self::Serve { config, kept: true, .. } => serve::serve_kept(config.path.as_deref())?,
            Self::Serve { config, .. } => return keep(&config),
            Self::Run { config, run } => return Ok(run::run(*run, &config.load()?)),
            Self::Profile { config, profile } => profile::run(&profile, &config.load()?)?,
            Self::DropIn { config, drop_in } => {
                drop_in::run(&drop_in, &config.load()?, config.path.as_deref())?;
            }
            Self::Hook { config, hook } => return Ok(hook::run(&hook, config.load())),
            Self::OciRuntime { config, runtime } => {
                return Ok(oci_runtime::run(&runtime, config.path.as_deref()));
            }
            Self::Setup { config, setup: args } => {
                return setup::run(&args, config.path.as_deref());
            }
            Self::Status { json, config } => show_status(json, &config)?,
            Self::Stop { stop, config } => return stop::run(stop, &config.places_named()?),
            Self::Attach { attach: args, config } => {
                return attach::attach(&args, &config.places_named()?);
            }
            Self::Detach { detach, config } => {
                return attach::detach(&detach, &config.places_named()?);
            }
            Self::Reload { exec: None, config } => order(&config, "reload")?,
            Self::Reload { exec: Some(program), config } => exec(&config, &program)?,
            Self::Lxcfs { args } => return Ok(lxcfs::main(args)),
            Self::Config { default: true, .. } => print(config::print::default_file())?,
            Self::Config { reference: true, .. } => print(config::print::reference())?,
            Self::Config { config, .. } => show_config(&config)?,
            Self::Verify(args) => return Ok(ExitCode::from(verify::run(&args)?)),
            Self::Check { process: Some(process), config, .. } => {
                return show_process(&process, &config);
            }
            Self::Check { dead_files: false, .. } => return Ok(show_check()?),
            Self::Check { dead_files: true, .. } => {
                dead_mounts::find(&mount_namespaces::all())
                    .iter()
                    .for_each(|dead| stderr::line(&format!("dead: {dead}")));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn order(config: &ConfigFile, text: &str) -> anyhow::Result<()> {
    absence::ask_daemon(&config.places_named()?, |socket| control::order(socket, text))
}

fn exec(config: &ConfigFile, program: &Path) -> anyhow::Result<()> {
    let program = program.canonicalize().with_context(|| program.display().to_string())?;
    order(config, &format!("exec {}", program.display()))
}

/// Runs the keeper of a server with this configuration.
fn keep(config: &ConfigFile) -> anyhow::Result<ExitCode> {
    let mut arguments: Vec<OsString> = vec!["serve".into()];
    if let Some(path) = &config.path {
        arguments.extend(["--config".into(), path.into()]);
    }
    process::keep(Contract { arguments, misconfigured: MISTAKEN, control_socket: control::SOCKET })
}

fn show_status(json: bool, config: &ConfigFile) -> anyhow::Result<()> {
    // With thousands of containers the answer takes as long as the mounts of all processes. One
    // thread is left when this returns: only then may dead mounts be looked for.
    let both = |socket: &Path| {
        std::thread::scope(|scope| {
            let namespaces = scope.spawn(mount_namespaces::all);
            let status = control::ask_status(socket);
            let namespaces = namespaces.join().unwrap_or_default();
            status.map(|status| (status, namespaces))
        })
    };
    let (mut status, namespaces) = absence::ask_daemon(&config.places()?, both)?;
    let calls: Vec<_> = status.intercepted.iter().map(|one| one.container.clone()).collect();
    status.equipped = dependents::find(status.server_pid, &status.mount, &calls, &namespaces);
    status.equipped.retain(Dependent::has_files);
    status.dead = dead_mounts::find(&namespaces);
    if json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&status)?))?;
    } else {
        print(status)?;
    }
    Ok(())
}

/// Reads the configuration and prints the policies that result.
fn show_config(file: &ConfigFile) -> anyhow::Result<()> {
    let config = file.load()?;
    let path = file.path.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    match path.exists() {
        true => print(format_args!("{} has no mistakes\n", path.display()))?,
        false => print(format_args!("{} does not exist: the defaults hold\n", path.display()))?,
    }
    let calls = |policy: &Policy| match policy.names().collect::<Vec<_>>() {
        none if none.is_empty() => "no calls".to_owned(),
        calls => calls.join(", "),
    };
    print(format_args!("[intercept] answers {}\n", calls(&config.policies.all)))?;
    for (at, (_, policy)) in config.policies.sections.iter().enumerate() {
        print(format_args!("[[container]] {} answers {}\n", at + 1, calls(policy)))?;
    }
    config.notes().iter().try_for_each(|note| print(format_args!("note: {note}\n")))?;
    Ok(())
}

fn show_check() -> Result<ExitCode, Unwritable> {
    let findings = check::all();
    findings.iter().try_for_each(|finding| print(format_args!("{finding}\n")))?;
    dead_mounts::find(&mount_namespaces::all())
        .iter()
        .try_for_each(|dead| print(format_args!("dead     {dead}\n")))?;
    let fatal = findings.iter().filter(|finding| finding.is_fatal()).count();
    if fatal == 0 {
        print("\nambit can run here\n")?;
        Ok(ExitCode::SUCCESS)
    } else {
        print(format_args!("\nambit cannot run here: {fatal} essential facilities are missing\n"))?;
        Ok(ExitCode::FAILURE)
    }
}

fn show_process(process: &str, config: &ConfigFile) -> anyhow::Result<ExitCode> {
    let pid = match process.parse() {
        Ok(pid) => pid,
        Err(_) => containers::find(process)?.pid,
    };
    let findings = check_process::all(pid, &config.places()?)?;
    findings.iter().try_for_each(|finding| print(format_args!("{finding}\n")))?;
    let is_wrong = findings.iter().any(check_process::Finding::is_wrong);
    Ok(ExitCode::from(u8::from(is_wrong)))
}
