//! `ambit stop`: ends the daemon, waits until its processes and mounts are gone, and removes what a
//! dead daemon left.
//!
//! If no service manager holds the daemon's descriptors, its containers lose their files and calls
//! with it. So the command refuses while there are containers, unless `--force` or `--release` is
//! given.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ambit_kernel::output::{complain, print};
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::absence;
use crate::config::Config;
use crate::control::{self, NoDaemon, Parts};
use crate::dead_mounts::{self, State};
use crate::dependents::{self, Table};
use crate::mount_namespaces;

/// How long the daemon's processes may take to end. The keeper kills a server after five seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The sockets of a daemon in its runtime folder, and the names under which they are bound first.
const SOCKETS: [(&str, SocketType); 6] = [
    ("control.sock", SocketType::STREAM),
    ("oci.sock", SocketType::STREAM),
    ("lxc.sock", SocketType::SEQPACKET),
    (".control.sock.new", SocketType::STREAM),
    (".oci.sock.new", SocketType::STREAM),
    (".lxc.sock.new", SocketType::SEQPACKET),
];

/// The arguments of `ambit stop`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct StopArgs {
    /// Unmount the files and let go of all containers; without a daemon, remove what a dead one
    /// left
    #[arg(long)]
    release: bool,
    /// Stop although containers break that use the daemon
    #[arg(long)]
    force: bool,
}

/// Ends the daemon of a configuration. The exit status is 1 if there is none or it was not ended.
pub fn run(args: StopArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let socket = config.socket("control.sock");
    let daemon = match control::ask_parts(&socket) {
        Err(error) if error.is::<NoDaemon>() => return without_daemon(args, config),
        daemon => daemon?,
    };
    if !daemon.is_kept && !args.release && !args.force {
        let server = daemon.processes.last().copied().unwrap_or(0);
        let dependents =
            dependents::find(server, &daemon.mount, &daemon.listeners, &mount_namespaces::all());
        if !dependents.is_empty() {
            print(Table(&dependents))?;
            complain(format_args!(
                "ambit: nothing was changed: no service manager keeps the daemon's descriptors, and \
                 the files and calls of these containers ({}) would fail until they are started \
                 again; stop them first, or use `ambit stop --force`",
                dependents.len()
            ));
            return Ok(ExitCode::FAILURE);
        }
    }
    // Opened before the command is sent, so that the pids are still the daemon's.
    let processes = processes(&daemon)?;
    control::order(&socket, if args.release { "release" } else { "stop" })?;
    if !have_ended(&processes, Instant::now() + PATIENCE) {
        let pids: Vec<_> = daemon.processes.iter().map(ToString::to_string).collect();
        complain(format_args!(
            "ambit: the daemon was told to stop and has not ended after {} s (processes {}); its log \
             tells what it waits for",
            PATIENCE.as_secs(),
            pids.join(" and ")
        ));
        return Ok(ExitCode::FAILURE);
    }
    if daemon.is_kept && !args.release {
        return Ok(ExitCode::SUCCESS);
    }
    // The keeper kills a server that does not end in time, which leaves its mounts.
    remove_leftovers(&daemon.mount, config)?;
    Ok(ExitCode::SUCCESS)
}

/// Handles the case without a daemon: with `--release`, removes what a dead one left.
fn without_daemon(args: StopArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let mount = &config.overlay.mount;
    match dead_mounts::state(mount) {
        State::Waiting if args.release => complain(format_args!(
            "ambit: {}; to let go of them, start it and use `ambit stop --release` again, or \
             `systemctl clean --what=fdstore ambit`",
            absence::stopped(mount)
        )),
        State::Waiting => complain(format_args!("ambit: {}", absence::stopped(mount))),
        State::Served => complain(format_args!(
            "ambit: the files at {} are served, but by no daemon that answers in {}: name its \
             configuration with --config",
            mount.display(),
            config.daemon.runtime_dir.display()
        )),
        State::Dead | State::Absent if args.release => {
            let removed = remove_leftovers(mount, config)?;
            if removed.is_empty() {
                print("no daemon runs, and none has left anything\n")?;
            }
            for what in removed {
                print(format_args!("removed {what}\n"))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        State::Dead => complain(format_args!(
            "ambit: no daemon runs, but the files of a dead one are mounted at {}: remove them with \
             `ambit stop --release`",
            mount.display()
        )),
        State::Absent => complain(format_args!(
            "ambit: nothing to stop: no daemon listens on {}",
            config.socket("control.sock").display()
        )),
    }
    Ok(ExitCode::FAILURE)
}

fn processes(daemon: &Parts) -> anyhow::Result<Vec<OwnedFd>> {
    let mut processes = Vec::new();
    for pid in &daemon.processes {
        let pid = Pid::from_raw(pid.cast_signed()).context("the daemon has no process")?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => processes.push(process),
            Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(errno).context("cannot watch the daemon: pidfd_open"),
        }
    }
    Ok(processes)
}

/// Waits for the end of all processes. False if that takes too long.
fn have_ended(processes: &[OwnedFd], until: Instant) -> bool {
    processes.iter().all(|process| {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut ended = [PollFd::new(process, PollFlags::IN)];
            match poll(&mut ended, Timespec::try_from(left).ok().as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                ended => break ended == Ok(1),
            }
        }
    })
}

/// Removes dead mounts and sockets that no process listens on. Returns a description of each.
fn remove_leftovers(mount: &Path, config: &Config) -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    let mounts = dead_mounts::clear(mount)
        .with_context(|| format!("cannot unmount {}: umount2", mount.display()))?;
    if mounts > 0 {
        removed.push(format!("the dead mount at {}", mount.display()));
    }
    for (name, kind) in SOCKETS {
        let path = config.socket(name);
        if is_stale(&path, kind) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            removed.push(format!("the socket {}", path.display()));
        }
    }
    Ok(removed)
}

/// True for a socket file that no process listens on.
fn is_stale(path: &Path, kind: SocketType) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = || -> io::Result<bool> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
        Ok(connect(socket, &SocketAddrUnix::new(path)?) == Err(rustix::io::Errno::CONNREFUSED))
    };
    is_socket && refused().unwrap_or(false)
}
