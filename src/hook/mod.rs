//! `ambit hook`: covers the files of a container that an engine is making, before its first
//! instruction.
//!
//! OCI runtimes start it as a createContainer hook (`oci.rs`), liblxc as a hook of the host
//! (`lxc.rs`). It never breaks a start: whatever fails is logged, and the exit status is 0, unless
//! `--required` is given. The work is done by a child process that is killed at a deadline, because
//! files of a daemon that is stopped do not answer.

pub(crate) mod log;
mod lxc;
mod oci;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ambit_kernel::output::one_line;
use ambit_kernel::sys::fork::{Fork, fork};
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use crate::config::Config;
use log::log;
pub use lxc::{leave_shared_profile, profile_path as shared_profile};
pub(crate) use oci::{ANNOTATION, is_no};

/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// The arguments of `ambit hook`.
#[derive(Debug, clap::Args)]
pub struct HookArgs {
    /// Have the engine give up the container if its files cannot be covered
    #[arg(long)]
    required: bool,
    /// Be a hook of liblxc (pre-start and start-host), and not of an OCI runtime (createContainer)
    #[arg(long)]
    lxc: bool,
    /// What liblxc adds: name, section and kind of the hook
    #[arg(requires = "lxc", trailing_var_arg = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

/// What a hook has done.
enum Done {
    /// The container and what was done for it.
    Equipped(String),
    /// There is nothing to say.
    Silent,
}

/// Runs the hook. The exit status is 1 if it failed and is required, 2 on a terminal.
pub fn run(args: &HookArgs, config: anyhow::Result<Config>) -> ExitCode {
    if !args.lxc && std::io::stdin().is_terminal() {
        log::complain(
            "this is for engines, which write the state of a container to its input: ambit drop-in",
        );
        return ExitCode::from(2);
    }
    let failed = match in_child(args, config) {
        Ok(true) => false,
        Ok(false) => true,
        Err(error) => {
            complain(args, &one_line(&error));
            true
        }
    };
    ExitCode::from(u8::from(failed && args.required))
}

/// Does the work in a child process. True if that succeeded; a child that fails tells why itself.
fn in_child(args: &HookArgs, config: anyhow::Result<Config>) -> anyhow::Result<bool> {
    let child = match fork().context("fork")? {
        Fork::Child => {
            let parent_ends = rustix::process::set_parent_process_death_signal;
            let _ = parent_ends(Some(Signal::KILL));
            #[allow(clippy::exit, reason = "the child has nothing to return to")]
            std::process::exit(i32::from(!work(args, config)));
        }
        Fork::Parent(pid) => Pid::from_raw(pid.as_raw()).context("fork")?,
    };
    // Its end is a readable pidfd, so that waiting for it has a deadline.
    let ended = pidfd_open(child, PidfdFlags::empty()).context("pidfd_open");
    let timeout = Timespec::try_from(DEADLINE)?;
    let in_time = ended.and_then(|pidfd| {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, Some(&timeout))).context("poll")
    });
    if matches!(in_time, Ok(0) | Err(_)) {
        let _ = kill_process(child, Signal::KILL);
        in_time?;
        anyhow::bail!("ambit does not answer: no result within {} s", DEADLINE.as_secs());
    }
    let status = retry_on_intr(|| waitpid(Some(child), WaitOptions::empty())).context("waitpid")?;
    let status = status.and_then(|(_, status)| status.exit_status());
    match status {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => anyhow::bail!("the process that does the work has ended early"),
    }
}

/// Does the work. True if it succeeded.
fn work(args: &HookArgs, config: anyhow::Result<Config>) -> bool {
    let start = Instant::now();
    let done = config.and_then(|config| match args.lxc {
        true => lxc::run(&args.arguments, &config),
        false => oci::run(&config),
    });
    match done {
        Ok(Done::Equipped(text)) => {
            log(log::INFO, &format!("{text}, {:.1} ms", start.elapsed().as_secs_f64() * 1e3));
        }
        Ok(Done::Silent) => {}
        Err(error) => {
            complain(args, &one_line(&error));
            return false;
        }
    }
    true
}

fn complain(args: &HookArgs, reason: &str) {
    let follows = if args.required {
        "it is required (--required), so the container does not start"
    } else {
        "the container shows the machine's numbers until `ambit attach --all`"
    };
    log::complain(&format!("{reason}; {follows}"));
}
