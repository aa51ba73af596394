//! The command line: the subcommands, and the modules that implement them.
//!
//! Exit status: 0 for success, 1 when `check` finds something essential missing, when `stop` has
//! stopped nothing, or when standard output cannot be written, 2 for bad input (unknown flags,
//! unusable configuration, a busy mount point, not being root), and 78 when `serve` has an invalid
//! configuration, so that systemd does not restart it. `run` has its own statuses, because it
//! returns the command's. `execute.rs` has what each subcommand does.

mod execute;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use ambit_kernel::output::{self, Unwritable, complain, stderr};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::attach::{AttachArgs, DetachArgs};
use crate::config::{Config, ConfigError};
use crate::stop::StopArgs;
use crate::verify::VerifyArgs;
use crate::{drop_in, hook, lxcfs, oci_runtime, profile, run, setup, visitor};

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
