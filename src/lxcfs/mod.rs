//! `ambit lxcfs`, or ambit under the name `lxcfs`: serves the files only, with the command line,
//! the pid file, the signals and the mount of lxcfs, so that units and hooks for lxcfs work.
//!
//! It opens no socket and answers no system call. docs/lxcfs-differences.md has the intended
//! differences. Start reading at [`main`].

pub mod args;
pub mod pid_file;
pub mod switch;
mod upgrade;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use ambit_fuse::{MountOptions, Overlay, Submount};
use ambit_kernel::output;
use ambit_sysinfo::policy::{CpuPolicy, SwapPolicy};
use ambit_sysinfo::{COUNTER_STORE, Options};
use anyhow::Context;
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::LogLevel;
use crate::{logging, process_setup, visitor};
use args::{Request, Serve};
use pid_file::PidFile;
use switch::Switch;
use upgrade::{Left, Program};

/// The name of the program, and the source and type of the mount.
const NAME: &str = "lxcfs";

const USAGE: &str = "Usage: lxcfs <directory>

  -d, --debug             log more
  -f, --foreground        accepted; never leaves the foreground
  -h, --help              this text
  -l, --enable-loadavg    load averages of the container, not the machine's
  -o OPTIONS              accepted and ignored
  -p, --pidfile=FILE      pid file [default: /run/lxcfs.pid]
  -s                      accepted and ignored
  -u, --disable-swap      show no swap
  -v, --version           print the version
      --disable-zswap     show nothing of compressed swap
      --enable-cfs        cap processors by the quota
      --enable-psi-poll   let triggers be set on /proc/pressure
      --runtime-dir=DIR   where the pid file is [default: /run]";

/// True if this path has the name of lxcfs.
pub fn is_its_name(program: Option<&OsString>) -> bool {
    program.and_then(|path| Path::new(path).file_name()).is_some_and(|name| name == NAME)
}

/// Runs `ambit lxcfs` with the arguments after the name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let serve_as = match args::parse(args.clone()) {
        Request::Serve(serve_as) => serve_as,
        Request::Version => {
            output::complain(format_args!("\"{}\"", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        Request::Usage => {
            output::complain(USAGE);
            return ExitCode::FAILURE;
        }
        Request::Wrong(reason) => {
            output::complain(format_args!("lxcfs: {reason}"));
            return ExitCode::FAILURE;
        }
    };
    match serve(&serve_as, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(format_args!("lxcfs: {}", output::one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Serve, args: Vec<OsString>) -> anyhow::Result<()> {
    logging::start(if options.debug { LogLevel::Debug } else { LogLevel::Info });
    for notice in &options.notices {
        tracing::warn!("{notice}");
    }
    let program = Program::this(args).context("cannot find the program file")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(async {
        // Before the pid file is written: a process that reads it may send a signal at once.
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut hung_up = signal(SignalKind::hangup())?;
        let mut reload = signal(SignalKind::user_defined1())?;
        let mut toggle = signal(SignalKind::user_defined2())?;
        let (pid_file, counters, connections) = match Left::take() {
            Some(Left { pid_file, counters, connections }) => {
                (PidFile::from_locked(&options.pid_file, pid_file), counters, connections)
            }
            None => (PidFile::write(&options.pid_file)?, None, Vec::new()),
        };
        upgrade::unblock_signals();
        let counters = match counters {
            Some(counters) => counters,
            None => memfd_create(COUNTER_STORE, MemfdFlags::CLOEXEC).context("memfd_create")?,
        };
        let (overlay, switch) = start(options, counters.try_clone()?, connections)?;
        tracing::info!(mount = %options.mount.display(), "serving in the place of lxcfs");
        loop {
            tokio::select! {
                _ = terminated.recv() => break,
                _ = interrupted.recv() => break,
                _ = hung_up.recv() => break,
                _ = reload.recv() => {
                    let error = program.execute_again(&overlay, pid_file.locked(), counters.as_fd());
                    tracing::error!(%error, "cannot execute the program again; this one goes on");
                }
                _ = toggle.recv() => {
                    let on = switch.toggle();
                    tracing::info!("virtualization is {}", if on { "on" } else { "off" });
                }
            }
        }
        overlay.unmount().context("cannot unmount the overlay")
    })
}

fn start(
    options: &Serve,
    counters: OwnedFd,
    connections: Vec<(OwnedFd, Vec<u8>)>,
) -> anyhow::Result<(Overlay, Arc<Switch>)> {
    process_setup::make_room_for_descriptors();
    let accounting = process_setup::start_accounting(Options {
        cpu_policy: if options.cfs { CpuPolicy::Quota } else { CpuPolicy::Cpuset },
        swap: if options.no_swap { SwapPolicy::None } else { SwapPolicy::Limit },
        zswap: !options.no_zswap,
        ..Options::default()
    })?;
    accounting.remember(counters);
    let switch = Arc::new(Switch::new(accounting));
    let mount = MountOptions {
        name: NAME,
        triggers: options.psi_poll,
        visitor: visitor::in_child,
        passed: if options.loadavg { &[] } else { &["proc/loadavg"] },
        ..MountOptions::new(&options.mount)
    };
    let mut connections = connections.into_iter();
    let Some((device, init)) = connections.next() else {
        return Ok((Overlay::mount(mount, switch.clone())?, switch));
    };
    let overlay = Overlay::takeover(device, &init, mount, switch.clone())?;
    if let Some((device, init)) = connections.next() {
        overlay.takeover_submount(Submount::Pressure, device, &init)?;
    }
    Ok((overlay, switch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_recognised_wherever_it_is_installed() {
        let is = |name: &str| is_its_name(Some(&OsString::from(name)));
        assert!(is("lxcfs") && is("/usr/bin/lxcfs"));
        assert!(!is("/usr/bin/ambit") && !is("/lxcfs/ambit") && !is_its_name(None));
    }
}
