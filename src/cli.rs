//! The command line: the subcommands, and the modules that implement them.
//!
//! Exit status: 0 for success, 1 when `check` finds something essential missing, when `stop` has
//! stopped nothing, or when standard output cannot be written, 2 for bad input (unknown flags,
//! unusable configuration, a busy mount point, not being root), and 78 when `serve` has an invalid
//! configuration, so that systemd does not restart it. `run` has its own statuses, because it
//! returns the command's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ambit_keeper::process::{self, Contract};
use ambit_kernel::output::{self, Unwritable, complain, print, stderr};
use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::attach::{self, AttachArgs, DetachArgs};
use crate::config::{self, Config, ConfigError, DEFAULT_PATH};
use crate::dependents::{self, Dependent};
use crate::stop::{self, StopArgs};
use crate::verify::VerifyArgs;
use crate::{
    absence, check, check_process, containers, control, dead_mounts, drop_in, hook, lxcfs,
    mount_namespaces, oci_runtime, profile, run, serve, setup, verify, visitor,
};
use ambit_intercept::Policy;
use ambit_worker::Broker;

/// Makes every container see its own bounds.
///
/// One daemon serves /proc and /sys files that show a container's own limits and usage, and
/// answers system calls such as sysinfo(2) with the same numbers.
#[derive(Debug, Parser)]
#[command(name = "ambit", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground until it gets SIGTERM
    Serve {
        #[command(flatten)]
        config: ConfigFile,
        /// Be the server that a keeper started
        #[arg(long, hide = true)]
        kept: bool,
        /// Be the broker that a keeper started
        #[arg(long, hide = true)]
        broker: bool,
    },
    /// Run a command in a fresh sandbox that sees its own bounds
    Run {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        run: Box<run::RunArgs>,
    },
    /// Print the seccomp profile with which an engine's containers report system calls
    Profile {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        profile: profile::ProfileArgs,
    },
    /// Have the container engines of this machine equip their containers, or no longer
    ///
    /// Finds the engines, says what it does, and writes their drop-ins. Running it again changes
    /// nothing. --undo takes away what is ambit's, and leaves all else as it is.
    Setup {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        setup: setup::SetupArgs,
    },
    /// Print a file with which an engine equips its containers by itself
    #[command(name = "drop-in")]
    DropIn {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        drop_in: drop_in::DropInArgs,
    },
    /// Be the hook of an engine: cover the files of a container that is about to start
    ///
    /// OCI runtimes run it as createContainer hook, liblxc as lxc.hook.pre-start and
    /// lxc.hook.start-host. Exit status: 0, also if it fails, so that the container starts; with
    /// --required 1.
    Hook {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        hook: hook::HookArgs,
    },
    /// Equip a container that is about to be created, and be its OCI runtime
    ///
    /// Also under the names ambit-runtime, runc and crun. For `create` and `run` it merges the hook
    /// and the seccomp profile into the bundle's config.json. All else is up to the runtime. Exit
    /// status: the runtime's; 127 if there is none, 126 if it cannot be run.
    #[command(name = "oci-runtime", disable_help_flag = true, disable_version_flag = true)]
    OciRuntime {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        runtime: oci_runtime::RuntimeArgs,
    },
    /// Show what the daemon serves, for which containers, with their numbers
    Status {
        /// Print JSON: memory in bytes, times in seconds
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Stop the daemon; mounts and listeners stay when systemd holds them for the next start
    ///
    /// Returns when the daemon has ended. Where nothing holds mounts and listeners, a daemon that
    /// containers use is not stopped without --force or --release; the containers are listed. Exit
    /// status: 0 if it has ended, 1 if it was not stopped or there was none.
    Stop {
        #[command(flatten)]
        stop: StopArgs,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Show the overlay's files in containers that run already
    ///
    /// Prints a line for each container. Exit status: 0, or 1 if something failed.
    Attach {
        #[command(flatten)]
        attach: AttachArgs,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Remove what attach has mounted in containers
    Detach {
        #[command(flatten)]
        detach: DetachArgs,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Have the daemon read its configuration again, or go on with another program
    Reload {
        /// The program to go on with; if it fails its check, the old one stays
        #[arg(long, value_name = "PROGRAM")]
        exec: Option<PathBuf>,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Serve the files in the place of lxcfs, with its command line (also under that name)
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Lxcfs {
        /// What lxcfs accepts; `ambit lxcfs -h` lists it
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        args: Vec<OsString>,
    },
    /// Check the configuration, and print which calls it grants
    Config {
        #[command(flatten)]
        config: ConfigFile,
        /// Print a file with all keys and their defaults as comments
        #[arg(long, conflicts_with = "path")]
        default: bool,
        /// Print docs/configuration.md
        #[arg(long, conflicts_with_all = ["path", "default"])]
        reference: bool,
    },
    /// Say whether what programs read in a container agrees with itself and with its limits
    ///
    /// Runs the program ambit-verify inside the container, as its root. Exit status: 0 if nothing
    /// contradicts, 1 if something does, 2 for bad input, 126 if the program cannot be run there.
    Verify(VerifyArgs),
    /// Check which kernel facilities are available, or whether a process sees its own bounds
    ///
    /// Without a process: tries each facility of the kernel, and says what does not work without
    /// it. With a process: says which container's numbers it gets, and why it does not see them.
    /// Exit status: 1 if something essential is missing or wrong.
    Check {
        /// A process, or a container: say whether it sees its own bounds
        #[arg(value_name = "PID|CONTAINER")]
        process: Option<String>,
        #[command(flatten)]
        config: ConfigFile,
        /// Only write to standard error which containers have dead files
        #[arg(long, hide = true)]
        dead_files: bool,
    },
}

/// The exit status of `serve` for an invalid configuration: `EX_CONFIG` of sysexits.h, for
/// `RestartPreventExitStatus=`.
pub(crate) const MISTAKEN: u8 = 78;

/// The option that names the configuration.
#[derive(Debug, clap::Args)]
pub struct ConfigFile {
    /// Configuration file [default: /etc/ambit/ambit.toml, if it exists]
    #[arg(long = "config", value_name = "FILE")]
    path: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> anyhow::Result<Config> {
        Ok(Config::load(self.path.as_deref())?)
    }

    /// Returns the paths of the daemon's sockets and mounts, even if the rest of the file is
    /// invalid.
    fn places(&self) -> anyhow::Result<Config> {
        let (places, error) = Config::places(self.path.as_deref())?;
        if let Some(error) = error {
            let socket = places.socket("control.sock");
            stderr::line(&format!("{error}; trying {}", socket.display()));
        }
        Ok(places)
    }

    /// Like [`Self::places`], for a command that changes something. If the file was named and has
    /// no valid `runtime_dir`, this is an error, so that the default daemon is not changed instead.
    fn places_named(&self) -> anyhow::Result<Config> {
        match Config::places(self.path.as_deref())? {
            (_, Some(error)) if self.path.is_some() => Err(error.into()),
            (places, _) => Ok(places),
        }
    }
}

/// Parses the command line and runs the subcommand.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if visitor::is_its_name(args.first()) {
        return visitor::main(args.get(1));
    }
    if lxcfs::is_its_name(args.first()) {
        return lxcfs::main(args.split_off(1));
    }
    if let Some(runtime) = oci_runtime::by_its_name(&args) {
        return oci_runtime::run(&runtime, None);
    }
    match Cli::try_parse_from(args) {
        Ok(cli) => cli.execute(),
        Err(error)
            if error.use_stderr()
                && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            complain(format_args!("ambit: {}", one_line(&error.to_string())));
            ExitCode::from(2)
        }
        Err(help) => match output::unless_closed(help.print()) {
            Err(error) if !help.use_stderr() => fail(&error.into(), 2),
            _ => ExitCode::from(u8::from(help.use_stderr()) * 2),
        },
    }
}

/// Returns clap's message in one line, without the usage, which `--help` has.
fn one_line(error: &str) -> String {
    let said = error.split("\n\nUsage:").next().unwrap_or(error);
    let said = said.split("\n\nFor more").next().unwrap_or(said);
    let said: Vec<_> = said.split_whitespace().collect();
    format!("{} (try --help)", said.join(" ").trim_start_matches("error: "))
}

impl Cli {
    fn execute(self) -> ExitCode {
        let is_server = matches!(self.command, Command::Serve { kept: true, broker: false, .. });
        self.command.execute().unwrap_or_else(|error| {
            let is_mistaken = is_server && error.is::<ConfigError>();
            fail(&error, if is_mistaken { MISTAKEN } else { 2 })
        })
    }
}

impl Command {
    fn execute(self) -> anyhow::Result<ExitCode> {
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
    let mut status = absence::ask_daemon(&config.places()?, control::ask_status)?;
    let calls: Vec<_> = status.intercepted.iter().map(|one| one.container.clone()).collect();
    let namespaces = mount_namespaces::all();
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

fn fail(error: &anyhow::Error, status: u8) -> ExitCode {
    // This process may be the server, which must not block on standard error.
    stderr::line(&output::one_line(error));
    ExitCode::from(if error.is::<Unwritable>() { 1 } else { status })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn usage_errors_are_one_line() {
        let error = Cli::try_parse_from(["ambit", "serve", "--colour"]).unwrap_err().to_string();
        let line = one_line(&error);
        assert!(line.starts_with("unexpected argument '--colour' found"), "{line}");
        assert!(!line.contains('\n') && !line.contains("Usage"), "{line}");
    }

    #[test]
    fn the_definition_of_the_command_line_is_valid() {
        Cli::command().debug_assert();
    }
}
