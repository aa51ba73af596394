//! `ambit run` by an ordinary user: the whole of it happens in a user namespace in which this user is
//! root, and has the rights of this user outside.
//!
//! The sandbox has one user, in a second namespace inside: so the mounts that are made for it are
//! locked in it, as those of root's sandboxes. Copies of the machine's mounts are locked to each
//! other too (mount_namespaces(7)): they can be copied with all that is mounted below them only.

use std::fs;
use std::path::{Path, PathBuf};

use ambit_kernel::output;
use ambit_kernel::sys::errno::to_errno;
use anyhow::{Context, Result, bail};
use nix::sched::CloneFlags;
use rustix::fs::{Access, AtFlags};
use rustix::io::Errno;

use super::options::Options;

/// True if this process is not root.
pub(super) fn is_wanted() -> bool {
    !nix::unistd::geteuid().is_root()
}

pub(super) fn check(options: &Options) -> Result<()> {
    if options.no_userns {
        bail!(
            "--no-userns needs root: without it you are root in the sandbox, and yourself outside"
        );
    }
    if let Some(device) = options.devices.first() {
        bail!("--device {} needs root: only that makes device nodes", device.display());
    }
    Ok(())
}

/// Enters a user namespace in which this user is root.
pub(super) fn enter() -> Result<()> {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| {
        let hint = match to_errno(error) {
            Errno::NOSPC => "allow more in /proc/sys/user/max_user_namespaces",
            _ => "this machine does not allow it to ordinary users: run it as root",
        };
        anyhow::anyhow!("cannot make a user namespace: unshare: {error}: {hint}")
    })?;
    let write = |file: &str, text: String| {
        let path = format!("/proc/self/{file}");
        fs::write(&path, text).with_context(|| {
            format!("cannot become root of a user namespace: write {path}: run it as root")
        })
    };
    write("uid_map", format!("0 {user} 1\n"))?;
    // Without it no group may be mapped (user_namespaces(7)).
    write("setgroups", "deny".to_owned())?;
    write("gid_map", format!("0 {group} 1\n"))
}

/// True if this process may make control groups in one, and move processes there.
pub(super) fn is_delegated(group: &Path) -> bool {
    let may = |path: &Path| {
        rustix::fs::accessat(rustix::fs::CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
    };
    may(group) && may(&group.join("cgroup.procs"))
}

/// Prints that limits have no effect, if there are any.
pub(super) fn say_without_limits(options: &Options) {
    let given = [
        ("--memory", options.memory.is_some()),
        ("--swap", options.swap.is_some()),
        ("--cpus", options.cpus.is_some()),
        ("--cpuset", options.cpuset.is_some()),
        ("--pids", options.pids.is_some()),
    ];
    let given: Vec<_> = given.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    if !given.is_empty() {
        output::complain(format_args!(
            "ambit: note: no control group was delegated to this user: {} without effect; such a \
             group has: systemd-run --user --scope -p Delegate=yes ambit run …",
            given.join(", ")
        ));
    }
}

/// Moves this process out of its control group of cgroup v2, into one below it, because a group with
/// processes gives its children no controllers. Returns the group, below the mount point.
pub(super) fn make_room(mount: &Path, own: &Path) -> Option<PathBuf> {
    let below = own.strip_prefix("/").ok()?;
    let group = mount.join(below);
    let procs = fs::read_to_string(group.join("cgroup.procs")).ok()?;
    let ours = std::process::id().to_string();
    if !is_delegated(&group) || procs.split_whitespace().any(|pid| pid != ours) {
        return None;
    }
    let room = group.join("supervisor");
    if let Err(error) = fs::create_dir(&room)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return None;
    }
    fs::write(room.join("cgroup.procs"), ours).ok()?;
    Some(below.to_owned())
}
