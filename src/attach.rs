//! `ambit attach` and `ambit detach`: ask the daemon for each container, and print a line each.

use std::process::ExitCode;

use ambit_kernel::output::{print, stderr};
use ambit_worker::attach::Report;

use crate::config::Config;
use crate::containers::{self, Container};
use crate::{absence, control};

/// The arguments of `ambit attach`.
#[derive(Debug, clap::Args)]
pub struct AttachArgs {
    #[command(flatten)]
    which: Which,
    /// Cover files that lxcfs serves, too
    #[arg(long)]
    replace: bool,
}

/// The arguments of `ambit detach`.
#[derive(Debug, clap::Args)]
pub struct DetachArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Which {
    /// Containers: a name, an id or its beginning, or a process
    #[arg(value_name = "CONTAINER", conflicts_with = "all")]
    containers: Vec<String>,
    /// All containers of engines
    #[arg(long)]
    all: bool,
}

/// Runs `ambit attach`. The exit status is 1 if something failed.
pub fn attach(args: &AttachArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let words = if args.replace { "attach --replace" } else { "attach" };
    run(&args.which, config, words)
}

/// Runs `ambit detach`. The exit status is 1 if something failed.
pub fn detach(args: &DetachArgs, config: &Config) -> anyhow::Result<ExitCode> {
    run(&args.which, config, "detach")
}

fn run(which: &Which, config: &Config, words: &str) -> anyhow::Result<ExitCode> {
    let mut failed = false;
    let mut fail = |text: &str| {
        stderr::line(text);
        failed = true;
    };
    let found: Vec<Container> = if which.all {
        containers::all()
    } else {
        let find = |name: &String| match containers::find(name) {
            Ok(container) => Some(container),
            Err(error) => {
                fail(&error.to_string());
                None
            }
        };
        which.containers.iter().filter_map(find).collect()
    };
    if which.all && found.is_empty() {
        print("there is no container\n")?;
    }
    for container in found {
        let question = format!("{words} {}", container.pid);
        let answer =
            absence::ask_daemon(config, |socket| control::ask_for::<Report>(socket, &question));
        match answer {
            Ok(report) => print(format_args!("{container}: {report}\n"))?,
            Err(error) if error.is::<control::ControlError>() => {
                fail(&format!("{container}: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}
