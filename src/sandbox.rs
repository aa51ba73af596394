//! Who serves a sandbox of `ambit run`: the running daemon, or a server in this very process.
//!
//! Both get the listener the same way a container engine would hand it over, so that a sandbox
//! is one more container and nothing special.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use ambit_kernel::output;
use anyhow::Context;

use crate::config::{Config, LogLevel};
use crate::control;
use crate::daemon::{self, Reach, Server};
use crate::intercept;
use crate::logging;
use crate::notify::{Policy, oci};
use crate::run::{self, Intercept, OverlayMounts, RunArgs, Service};

/// Runs a command in a sandbox, to its exit status.
#[must_use]
pub fn run(args: RunArgs, config: &Config) -> ExitCode {
    let files: Vec<_> = ambit_fuse::bind_points().collect();
    let intercept = args.intercept.clone();
    run::run(args, &files, |_| service(config, &intercept))
}

fn service(config: &Config, intercept: &Intercept) -> anyhow::Result<Box<dyn Service>> {
    if let Ok(status) = control::ask_status(&config.socket("control.sock")) {
        if let Some(setting) = &intercept.setting {
            anyhow::bail!(
                "--intercept {setting} is the running daemon's to decide: set it in its configuration, \
                 in [intercept] or in a [[container]] section"
            );
        }
        // Harmless calls are answered because they are asked for.
        let asked = config.policies().ungranted(&intercept.policy.privileged()).join(", ");
        if !asked.is_empty() {
            output::complain(format_args!(
                "ambit: note: the configuration has {asked} for no container: the kernel answers"
            ));
        }
        let socket = config.socket("oci.sock");
        return Ok(Box::new(Daemon { mount: status.mount, socket }));
    }
    Ok(Box::new(Embedded::start(config, intercept)?))
}

/// The daemon that runs already.
struct Daemon {
    mount: PathBuf,
    socket: PathBuf,
}

impl Service for Daemon {
    fn overlay(&self) -> anyhow::Result<OverlayMounts> {
        Ok(OverlayMounts::At(self.mount.clone()))
    }

    fn deliver(
        &self,
        listener: OwnedFd,
        id: &str,
        init_pid: i32,
        intercept: Policy,
    ) -> anyhow::Result<()> {
        let calls = intercept.names().collect::<Vec<_>>().join(",");
        let annotations = [(oci::ANNOTATION, calls.as_str())];
        oci::deliver(&self.socket, listener.as_fd(), id, init_pid, &annotations)
            .with_context(|| format!("cannot hand the listener to {}", self.socket.display()))
    }

    fn stop(self: Box<Self>) {}
}

/// A server in this process. Its overlay is attached nowhere: the builder of the sandbox, which holds no
/// device, attaches and copies it.
struct Embedded {
    server: Server,
    policy: Policy,
}

impl Embedded {
    fn start(config: &Config, intercept: &Intercept) -> anyhow::Result<Self> {
        let policy = intercept.policy.clone();
        let policy = match intercept.setting {
            Some(_) => policy,
            None => policy.with(config.policies().all.settings().clone()),
        };
        for (_, reason) in intercept::grant_nothing(&policy) {
            output::complain(format_args!("ambit: note: {reason}"));
        }
        let acts = policy.acts().then(daemon::start_acts).transpose()?;
        logging::start(LogLevel::Warn);
        let server = Server::start(config, Reach::Process, acts)?;
        Ok(Self { server, policy })
    }
}

impl Service for Embedded {
    fn overlay(&self) -> anyhow::Result<OverlayMounts> {
        let mounts = self.server.overlay().detached().context("the overlay has no mount")?;
        Ok(OverlayMounts::Detached(mounts))
    }

    fn deliver(
        &self,
        listener: OwnedFd,
        id: &str,
        _init_pid: i32,
        _intercept: Policy,
    ) -> anyhow::Result<()> {
        self.server.notifier().adopt(listener, id, self.policy.clone())?;
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
    fn the_configuration_for_lxc_binds_everything() {
        let text = include_str!("../contrib/lxc/ambit.conf");
        let entries = text.lines().filter_map(|line| line.strip_prefix("lxc.mount.entry = "));
        let mut bound: Vec<_> = entries.filter_map(|entry| entry.split(' ').nth(1)).collect();
        let mut points: Vec<_> = ambit_fuse::bind_points().collect();
        bound.sort_unstable();
        points.sort_unstable();
        assert_eq!(bound, points);
    }

    #[test]
    fn the_readme_names_every_file() {
        let text = include_str!("../README.md");
        for point in ambit_fuse::bind_points() {
            let names = point
                .strip_prefix("proc/pressure/")
                .map_or(format!("/{point}"), |_| "/proc/pressure/{cpu,io,memory}".to_owned());
            assert!(text.contains(&format!("`{names}`")), "{names}");
        }
    }
}
