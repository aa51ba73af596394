//! A scope of systemd for the sandbox's control groups: where systemd runs, it is the only one that
//! writes to the cgroup v2 tree, and delegates what is below the scope to us.
//!
//! Where it does not run or does not answer, the groups are made without it. With cgroup v1, systemd
//! delegates nothing that the controllers need.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ambit_kernel::output;
use ambit_kernel::sys::fork::{Fork, fork};
use anyhow::{Context, Result, bail};
use cgroups_rs::fs::hierarchies::UNIFIED_MOUNTPOINT;
use cgroups_rs::systemd::props::PropertiesBuilder;
use cgroups_rs::systemd::{DEFAULT_SLICE, SLICE_SUFFIX, SystemdClient};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::channel::{Channel, Message};

/// How long systemd may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The group in the scope that `ambit run` itself is in: a group with processes gives its children
/// no controllers.
const OURS: &str = "supervisor";

/// Moves this process into a scope of its own. Returns the scope's path below the mount point, or
/// `None` if systemd does not run here or refuses.
pub(super) fn enter() -> Option<PathBuf> {
    if !is_systemd_here() {
        return None;
    }
    match create() {
        Ok(scope) => Some(scope),
        Err(error) => {
            let error = output::one_line(&error);
            output::complain(format_args!("ambit: the sandbox is in no scope of systemd: {error}"));
            None
        }
    }
}

/// As sd_booted(3), and it can be asked. Process 1 must be systemd, because numbers of processes are
/// sent to it.
fn is_systemd_here() -> bool {
    Path::new("/run/systemd/system").is_dir()
        && Path::new("/run/dbus/system_bus_socket").exists()
        && std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim_end() == "systemd")
}

fn create() -> Result<PathBuf> {
    let unit = format!("ambit-{}.scope", std::process::id());
    let slice = slice_of(&own_group()?);
    let ours = Pid::this();
    let (channel, childs) = Channel::pair()?;
    // The client starts threads, and this process must have none.
    match fork().context("cannot fork")? {
        Fork::Child => {
            let asked = std::panic::catch_unwind(|| ask(&unit, &slice, ours));
            match asked {
                Ok(Ok(())) => drop(childs.send(&Message::Built, &[])),
                Ok(Err(error)) => childs.fail(&error),
                Err(_) => {}
            }
            std::process::exit(0);
        }
        Fork::Parent(child) => wait(child)?,
    }
    drop(childs);
    channel.expect(&Message::Built)?;
    // systemd moves us some time after its answer.
    let until = Instant::now() + TIMEOUT;
    let scope = loop {
        let group = own_group()?;
        if group.ends_with(&unit) {
            break group
                .strip_prefix("/")
                .map(Path::to_owned)
                .context("a relative control group")?;
        }
        if Instant::now() > until {
            bail!("systemd has not moved us into {unit} after {} s", TIMEOUT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let group = Path::new(UNIFIED_MOUNTPOINT).join(&scope).join(OURS);
    enter_group(&group).with_context(|| format!("cannot enter {}", group.display()))?;
    Ok(scope)
}

/// Has systemd start the scope with this process in it.
fn ask(unit: &str, slice: &str, process: Pid) -> Result<()> {
    let properties = PropertiesBuilder::default_cgroup(slice, unit)
        .description("A sandbox of ambit run".to_owned())
        .pids(vec![process.as_raw().cast_unsigned()])
        .build();
    let client = SystemdClient::new(unit, properties).context("systemd")?;
    client.start().with_context(|| format!("systemd does not start {unit}"))
}

/// Waits for the end of the child, and kills it if it takes too long.
fn wait(child: Pid) -> Result<()> {
    let until = Instant::now() + TIMEOUT;
    while waitpid(child, Some(WaitPidFlag::WNOHANG)).context("waitpid")? == WaitStatus::StillAlive {
        if Instant::now() > until {
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            bail!("systemd does not answer within {} s", TIMEOUT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn enter_group(group: &Path) -> io::Result<()> {
    std::fs::create_dir(group)?;
    std::fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}

/// Returns our control group of cgroup v2.
fn own_group() -> Result<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::"));
    group.map(PathBuf::from).context("/proc/self/cgroup has no line of cgroup v2")
}

/// Returns the innermost slice that a control group is in, so that the slice's limits hold for the
/// scope too.
fn slice_of(group: &Path) -> String {
    let mut names = group.iter().filter_map(|name| name.to_str());
    names.rfind(|name| name.ends_with(SLICE_SUFFIX)).unwrap_or(DEFAULT_SLICE).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slice_is_the_innermost_one() {
        for (group, slice) in [
            ("/user.slice/user-0.slice/session-1.scope", "user-0.slice"),
            ("/system.slice/cron.service", "system.slice"),
            ("/init.scope", "system.slice"),
            ("/", "system.slice"),
        ] {
            assert_eq!(slice_of(Path::new(group)), slice, "{group}");
        }
    }
}
