//! `ambit run`: a command in a fresh sandbox that sees its own bounds.
//!
//! [`prepare`] does everything that forks, and must be called before any thread exists; what it
//! returns is a sandbox that waits for its root. [`Prepared::run`] then asks the caller for a
//! [`Service`] (the running daemon or an embedded server, which starts threads), passes the
//! overlay's files to the sandbox and the listener to the service, and relays signals and the
//! terminal until the command ends. Dropping a [`Prepared`] ends the sandbox and removes its control
//! groups.
//!
//! Start reading at `spawn` (which processes, in which order), then `root` (what is mounted
//! where). Nothing here formats or computes a number that the sandbox sees.

mod capabilities;
mod cgroup;
mod cgroupview;
mod channel;
mod command;
mod dev;
mod hostmounts;
mod init;
mod limits;
mod mask;
mod mounts;
mod options;
mod overlay;
mod owners;
mod pressure;
mod relay;
mod root;
mod rootless;
mod scope;
mod scratch;
mod signals;
mod spawn;
mod terminal;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ambit_kernel::output;
use ambit_kernel::sys::named_copy;
use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::mount::MountPropagationFlags;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub use options::{AttachPressure, Bind, Intercept, Options};

use cgroup::Group;
use channel::Message;
use owners::Owners;

/// Exit status of a usage error, the same as clap's.
const USAGE: u8 = 2;
/// Exit status if the sandbox could not be made.
const FAILED: u8 = 125;

/// The mounts that the sandbox gets the overlay's files from.
#[derive(Debug)]
pub enum OverlayMounts {
    /// From a daemon's mount point, as this process sees it.
    At {
        /// The mount point.
        path: PathBuf,
        /// Files with the names below it that are taken in their place, if the daemon has them.
        leased: Vec<(String, String)>,
    },
    /// Detached mounts. This process may serve them itself, so it must not look names up in them.
    Detached {
        /// The overlay.
        overlay: OwnedFd,
        /// The pressure files, which lie upon it, if it has them.
        pressure: Option<OwnedFd>,
    },
}

/// The service that serves the overlay and answers system calls: the running daemon or an embedded
/// server.
pub trait Service {
    /// Returns the overlay for a sandbox with this init.
    fn overlay(&self, init_pid: i32) -> Result<OverlayMounts>;

    /// Takes over the listener of a sandbox. When this returns, notifications are answered.
    fn deliver(&self, listener: OwnedFd, id: &str, init_pid: i32) -> Result<()>;

    /// The sandbox has ended.
    fn stop(self: Box<Self>);
}

/// Runs a sandbox. Returns its exit status. `files` are paths in the overlay, such as `proc/meminfo`;
/// `start` is called after the last fork(2). An error is printed in one line.
pub fn run(
    options: Options,
    files: &[&str],
    start: impl FnOnce(&Prepared) -> Result<Box<dyn Service>>,
) -> ExitCode {
    if rootless::is_wanted()
        && let Err(error) = rootless::check(&options)
    {
        output::complain(format_args!("ambit: {}", output::one_line(&error)));
        return ExitCode::from(USAGE);
    }
    match prepare(options).and_then(|prepared| prepared.run(files, start)) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            output::complain(format_args!("ambit: {}", output::one_line(&error)));
            ExitCode::from(FAILED)
        }
    }
}

/// A sandbox whose processes exist and wait for its root.
pub struct Prepared {
    // Dropped in this order: processes end before their groups are removed.
    processes: spawn::Processes,
    ended: OwnedFd,
    builder_waits: bool,
    init_waits: bool,
    setup: options::Setup,
    pressure: pressure::Pressure,
    group: Group,
}

/// Makes control groups, namespaces and processes of a sandbox.
///
/// # Errors
/// Something the sandbox needs cannot be made, or this process has threads already.
pub fn prepare(options: Options) -> Result<Prepared> {
    let signals = signals::Signals::take()?;
    let is_rootless = rootless::is_wanted();
    if is_rootless {
        rootless::enter()?;
    }
    let group = Group::create(&options, is_rootless)?;
    let owners = match (options.no_userns, is_rootless) {
        (true, _) => Owners::host(),
        (false, true) => Owners::single()?,
        (false, false) => Owners::fresh()?,
    };
    let pressure = pressure::Pressure::of(&group, &owners)?;
    let plan = root::Plan {
        rootfs: options.rootfs,
        binds: options.binds,
        devices: options.devices,
        device_nodes: options.device_nodes,
        attach_pressure: options.attach_pressure,
        memory: options.memory,
        cgroups: group.places().to_vec(),
    };
    let setup = options::Setup {
        hostname: options.hostname.unwrap_or_else(|| group.id().to_owned()),
        folder: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        command: options.command,
        intercept: options.intercept,
        terminal: terminal::is_wanted(),
        own_users: owners.namespace.is_some(),
        signals,
    };
    let processes = spawn::start(&group, &owners, &plan, &setup)?;
    let init = rustix::process::Pid::from_raw(processes.init.as_raw()).context("init is gone")?;
    let ended = pidfd_open(init, PidfdFlags::empty())
        .context("cannot watch the sandbox's init: pidfd_open (Linux 5.3)")?;
    Ok(Prepared { processes, ended, builder_waits: true, init_waits: true, setup, pressure, group })
}

impl Prepared {
    /// The sandbox's name, which is also the last part of its control groups' paths.
    pub fn id(&self) -> &str {
        self.group.id()
    }

    /// The number of its init in our pid namespace.
    pub fn init_pid(&self) -> i32 {
        self.processes.init.as_raw()
    }

    /// Runs the command to its end. Returns the exit status.
    pub fn run(
        mut self,
        files: &[&str],
        start: impl FnOnce(&Self) -> Result<Box<dyn Service>>,
    ) -> Result<u8> {
        // Mounts are copied here, and must not propagate to other namespaces.
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)
            .context("cannot make a mount namespace: unshare")?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).context("cannot make mounts private: mount")?;

        let service = start(&self)?;
        let status = self.complete(files, service.as_ref()).and_then(|master| self.relay(master));
        service.stop();
        status
    }

    /// Has the root built, passes the listener to the service, and has the command started. Returns
    /// the master side of the sandbox's terminal.
    fn complete(&mut self, files: &[&str], service: &dyn Service) -> Result<Option<OwnedFd>> {
        let processes = &self.processes;
        let mut others = Vec::new();
        for file in files {
            match self.pressure.file(file) {
                Some(own) => self.send_file(file, &mounts::Detached::copy_of(&own)?)?,
                None => others.push((*file).to_owned()),
            }
        }
        match service.overlay(processes.init.as_raw())? {
            OverlayMounts::At { path, leased } => {
                let copy = |name: &Path| mounts::Detached::copy_of_file(&path.join(name));
                for file in others {
                    let copy = named_copy::leased_or_shared(&leased, &file, copy)?;
                    self.send_file(&file, &copy)?;
                }
            }
            OverlayMounts::Detached { overlay, pressure } => {
                let mut fds = vec![overlay.as_fd()];
                fds.extend(pressure.as_ref().map(AsFd::as_fd));
                processes.to_builder.send(&Message::Overlay(others), &fds)?;
            }
        }
        processes.to_builder.send(&Message::Build(processes.init.as_raw()), &[])?;
        processes.to_builder.expect(&Message::Built)?;
        waitpid(processes.builder, None).context("cannot wait for the builder: waitpid")?;
        self.builder_waits = false;

        processes.to_init.send(&Message::Enter, &[])?;
        let (Message::Ready { listener, terminal }, fds) = processes.to_init.receive()? else {
            anyhow::bail!("the sandbox's init is not ready");
        };
        let mut fds = fds.into_iter();
        let listener = if listener { fds.next() } else { None };
        let master = if terminal { fds.next() } else { None };
        if let Some(listener) = listener {
            let (id, init) = (self.group.id(), processes.init.as_raw());
            service.deliver(listener, id, init)?;
        }
        processes.to_init.send(&Message::Go, &[])?;
        Ok(master)
    }

    fn send_file(&self, target: &str, mount: &mounts::Detached) -> Result<()> {
        self.processes.to_builder.send(&Message::File(target.to_owned()), &[mount.0.as_fd()])
    }

    fn relay(&mut self, master: Option<OwnedFd>) -> Result<u8> {
        let Processes { init, to_init, .. } = &self.processes;
        relay::until_end(*init, &self.ended, to_init, &self.setup.signals, master)?;
        let status = wait(*init)?;
        self.init_waits = false;
        Ok(status)
    }
}

use spawn::Processes;

fn wait(init: Pid) -> Result<u8> {
    let status = match waitpid(init, None).context("cannot wait for the sandbox: waitpid")? {
        WaitStatus::Exited(_, status) => status,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other => anyhow::bail!("the sandbox ended with an unknown status: {other:?}"),
    };
    Ok(u8::try_from(status).unwrap_or(u8::MAX))
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if self.init_waits {
            let _ = pidfd_send_signal(&self.ended, Signal::KILL);
            let _ = waitpid(self.processes.init, None);
        }
        if self.builder_waits {
            let _ = nix::sys::signal::kill(self.processes.builder, nix::sys::signal::SIGKILL);
            let _ = waitpid(self.processes.builder, None);
        }
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("id", &self.id())
            .field("init_pid", &self.init_pid())
            .finish_non_exhaustive()
    }
}
