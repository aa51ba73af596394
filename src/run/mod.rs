//! `ambit run`: its arguments, and the service of its sandbox: the running daemon, or a server in
//! this process. The sandbox itself is the package `ambit-sandbox`.
//!
//! Both services get the listener in the same way as from a container engine, so that a sandbox is
//! served like any other container.

mod args;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use ambit_fuse::{Detached, Submount, Visit, lease_nodes};
use ambit_kernel::output::{self, complain};
use ambit_sandbox::{Options, OverlayMounts, Service};
use ambit_sysinfo::FirstProcess;
use anyhow::Context;

use crate::config::words;
use crate::config::{Config, LogLevel};
use crate::control;
use crate::daemon::{Reach, Server};
use crate::{logging, process_setup};
use ambit_intercept::{Policy, filter, oci};

pub use args::{Intercept, RunArgs};

/// Runs a command in a sandbox, to its exit status.
pub fn run(args: RunArgs, config: &Config) -> ExitCode {
    let files: Vec<_> = ambit_fuse::bind_points().collect();
    let is_root = rustix::process::geteuid().is_root();
    let intercept = args.intercept.clone().unwrap_or_else(|| args::default_intercept(is_root));
    if !is_root {
        let privileged = intercept.policy.privileged();
        if let Some(call) = privileged.names().next() {
            complain(format_args!(
                "ambit: --intercept {call} needs root: what is done for the sandbox are rights that \
                 this user does not have"
            ));
            return ExitCode::from(2);
        }
    }
    // Only what the user asked for by name is worth a note.
    let is_asked = args.intercept.is_some();
    let options = options(args, &intercept, config);
    ambit_sandbox::run(options, &files, |_| service(config, &intercept, is_asked))
}

/// True if nodes can be made: mknod is asked for, and a running daemon grants it.
fn grants_nodes(policy: &Policy, config: &Config) -> bool {
    let daemon_grants = || {
        let is_running = control::ask_status(&config.socket("control.sock")).is_ok();
        !is_running || !config.policies.ungranted(&policy.privileged()).contains(&"mknod")
    };
    policy.names().any(|name| name == "mknod") && daemon_grants()
}

/// The device that helpers of `mount.fuse` need, if there are any.
fn fuse_device(intercept: &Intercept, config: &Config) -> Option<PathBuf> {
    let settings = match intercept.setting {
        Some(_) => intercept.policy.settings(),
        None => config.policies.all.settings(),
    };
    let mounts = intercept.policy.names().any(|name| name == "mount");
    let device = PathBuf::from("/dev/fuse");
    (mounts && !settings.mount.fuse.is_empty() && device.exists()).then_some(device)
}

fn options(args: RunArgs, intercept: &Intercept, config: &Config) -> Options {
    let device_nodes = grants_nodes(&intercept.policy, config);
    let mut devices = args.device;
    if let Some(fuse) = fuse_device(intercept, config)
        && !devices.contains(&fuse)
    {
        devices.push(fuse);
    }
    let policy = intercept.policy.clone();
    let is_wanted = policy != Policy::none();
    let install = move || Ok(filter::install(&policy)?);
    Options {
        memory: args.memory,
        swap: args.swap,
        cpus: args.cpus,
        cpuset: args.cpuset.map(|set| set.to_string()),
        pids: args.pids,
        rootfs: args.rootfs,
        binds: args.bind,
        devices,
        device_nodes,
        hostname: args.hostname,
        no_userns: args.no_userns,
        command: args.command,
        intercept: is_wanted.then(|| ambit_sandbox::Intercept(Box::new(install))),
        attach_pressure: |overlay, pressure| {
            let attach =
                |mount| Visit::Attach { overlay, submount: Submount::Pressure, mount }.run();
            let attached = pressure.map_or(Ok(()), attach);
            Visit::Names { overlay }.run().and(attached)
        },
    }
}

fn service(
    config: &Config,
    intercept: &Intercept,
    is_asked: bool,
) -> anyhow::Result<Box<dyn Service>> {
    if let Ok(status) = control::ask_status(&config.socket("control.sock")) {
        if let Some(setting) = &intercept.setting {
            anyhow::bail!(
                "--intercept {setting} has no effect with a running daemon: set it in its configuration, \
                 in [intercept] or in a [[container]] section"
            );
        }
        // Calls that grant no rights are answered if they are asked for.
        let asked = config.policies.ungranted(&intercept.policy.privileged()).join(", ");
        if is_asked && !asked.is_empty() {
            output::complain(format_args!(
                "ambit: note: the configuration grants {asked} to no container: the kernel answers"
            ));
        }
        let socket = config.socket("oci.sock");
        let calls = intercept.policy.names().collect::<Vec<_>>().join(",");
        return Ok(Box::new(Daemon { mount: status.mount, socket, calls }));
    }
    Ok(Box::new(Embedded::start(config, intercept)?))
}

/// The running daemon, as the service of a sandbox.
struct Daemon {
    mount: PathBuf,
    socket: PathBuf,
    calls: String,
}

impl Service for Daemon {
    fn overlay(&self, init_pid: i32) -> anyhow::Result<OverlayMounts> {
        let first = u32::try_from(init_pid).ok().and_then(FirstProcess::read);
        let leased = first.map(lease_nodes::names).unwrap_or_default();
        Ok(OverlayMounts::At { path: self.mount.clone(), leased })
    }

    fn deliver(&self, listener: OwnedFd, id: &str, init_pid: i32) -> anyhow::Result<()> {
        let annotations = [(oci::ANNOTATION, self.calls.as_str())];
        oci::deliver(&self.socket, listener.as_fd(), id, init_pid, &annotations)
            .with_context(|| format!("cannot hand the listener to {}", self.socket.display()))
    }

    fn stop(self: Box<Self>) {}
}

/// A server in this process, as the service of a sandbox. Its overlay is detached: the builder of
/// the sandbox, which does not hold the FUSE device, attaches and copies it.
struct Embedded {
    server: Server,
    policy: Policy,
}

impl Embedded {
    fn start(config: &Config, intercept: &Intercept) -> anyhow::Result<Self> {
        let policy = intercept.policy.clone();
        let policy = match intercept.setting {
            Some(_) => policy,
            None => policy.with(config.policies.all.settings().clone()),
        };
        for reason in words::grant_nothing(&policy) {
            output::complain(format_args!("ambit: note: {reason}"));
        }
        let operations =
            policy.needs_operations().then(process_setup::start_operations).transpose()?;
        logging::start(LogLevel::Warn);
        let server = Server::start(config, Reach::Process, operations)?;
        Ok(Self { server, policy })
    }
}

impl Service for Embedded {
    fn overlay(&self, _init_pid: i32) -> anyhow::Result<OverlayMounts> {
        let mounts = self.server.overlay.detached().context("the overlay has no mount")?;
        let Detached { overlay, pressure } = mounts;
        Ok(OverlayMounts::Detached { overlay, pressure })
    }

    fn deliver(&self, listener: OwnedFd, id: &str, _init_pid: i32) -> anyhow::Result<()> {
        self.server.notifier.adopt(listener, id, self.policy.clone())?;
        Ok(())
    }

    fn stop(self: Box<Self>) {
        if let Err(error) = self.server.stop() {
            tracing::warn!("{}", output::one_line(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_names_every_file() {
        let text = include_str!("../../README.md");
        for point in ambit_fuse::bind_points() {
            let names = point
                .strip_prefix("proc/pressure/")
                .map_or(format!("/{point}"), |_| "/proc/pressure/{cpu,io,memory}".to_owned());
            assert!(text.contains(&format!("`{names}`")), "{names}");
        }
    }
}
