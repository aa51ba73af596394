//! The processes that make a sandbox, and the order in which they do it.
//!
//! ```text
//! ambit run ── makes control groups and the user namespace
//!  ├─ builder   host privileges, private mount namespace: builds the root, then ends
//!  ├─ stage     enters control groups and user namespace, makes the other namespaces, ends
//!  └─ init      process 1 of the sandbox; gets its own copy of the builder's mounts
//! ```
//!
//! The builder starts the stage, the stage starts init, each as a child of `ambit run` itself, so
//! that it can wait for all of them and that they die with it. None of them has threads; none
//! ever returns into the code of the process it was copied from.

use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;

use ambit_kernel::sys::fork::{Fork, fork, fork_for_parent};
use ambit_kernel::sys::release;
use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;

use super::cgroup::Group;
use super::channel::{Channel, Message};
use super::mounts::Detached;
use super::options::Setup;
use super::overlay;
use super::owners::{Owners, become_root_in};
use super::root::{self, Plan};
use super::{FAILED, init};

/// `CLONE_NEWTIME` (Linux 5.6), which nix does not list.
const NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

/// The processes of a sandbox that is being made, and how to talk to them.
#[derive(Debug)]
pub(super) struct Processes {
    pub(super) builder: Pid,
    pub(super) init: Pid,
    pub(super) to_builder: Channel,
    pub(super) to_init: Channel,
}

/// Starts them, up to the point where the builder waits for the overlay's files and init for the
/// root.
pub(super) fn start(
    group: &Group,
    owners: &Owners,
    plan: &Plan,
    setup: &Setup,
) -> Result<Processes> {
    let (to_builder, builders) = Channel::pair()?;
    let (to_init, inits) = Channel::pair()?;
    let builder = match fork().context("cannot fork")? {
        Fork::Parent(builder) => builder,
        Fork::Child => {
            drop((to_builder, to_init));
            become_process(|| builder_main(&builders, inits, group, owners, plan, setup))
        }
    };
    drop((builders, inits));
    let started = || -> Result<Pid> {
        let stage = to_builder.started()?;
        // Init's number; a failure of the stage arrives here too.
        let init = to_init.started();
        waitpid(stage, None).context("cannot wait for the sandbox: waitpid")?;
        init
    };
    match started() {
        Ok(init) => Ok(Processes { builder, init, to_builder, to_init }),
        Err(error) => {
            drop((to_builder, to_init));
            let _ = waitpid(builder, None);
            Err(error)
        }
    }
}

/// Runs the main function of a child process, and exits even if it panics.
fn become_process(main: impl FnOnce() -> i32) -> ! {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let status = std::panic::catch_unwind(AssertUnwindSafe(main)).unwrap_or(FAILED.into());
    std::process::exit(status);
}

/// Reports a failure over the channel and turns it into an exit status.
fn finish(channel: &Channel, result: Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            channel.fail(&error);
            FAILED.into()
        }
    }
}

fn builder_main(
    channel: &Channel,
    inits: Channel,
    group: &Group,
    owners: &Owners,
    plan: &Plan,
    setup: &Setup,
) -> i32 {
    let build = || -> Result<()> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)
            .context("cannot make a mount namespace: unshare")?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).context("cannot make mounts private: mount")?;
        match fork_for_parent().context("cannot fork: clone")? {
            Fork::Child => become_process(|| stage_main(&inits, group, owners, setup)),
            Fork::Parent(stage) => channel.send(&Message::Started(stage.as_raw()), &[])?,
        }
        drop(inits);
        let mut files = Vec::new();
        let init = loop {
            match channel.receive()? {
                (Message::File(target), mut fds) => {
                    let mount = fds.pop().context("a file came without its mount")?;
                    files.push((target, Detached(mount)));
                }
                (Message::Overlay(targets), fds) => {
                    files.extend(overlay::copy_files(&targets, fds, plan.attach_pressure)?);
                }
                (Message::Build(init), _) => break Pid::from_raw(init),
                (other, _) => anyhow::bail!("the builder does not expect {other:?}"),
            }
        };
        in_namespaces_of(init, || root::build(plan, owners, &files))?;
        channel.send(&Message::Built, &[])
    };
    finish(channel, build())
}

/// Runs something in the pid and ipc namespaces of a process: a new procfs and a new message
/// queue filesystem are always those of the process that makes them. One enters a pid namespace
/// by a child.
fn in_namespaces_of(init: Pid, act: impl FnOnce() -> Result<()>) -> Result<()> {
    for (file, kind) in [("pid", CloneFlags::CLONE_NEWPID), ("ipc", CloneFlags::CLONE_NEWIPC)] {
        let path = format!("/proc/{init}/ns/{file}");
        let namespace =
            std::fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
        nix::sched::setns(namespace.as_fd(), kind)
            .with_context(|| format!("cannot enter {path}: setns"))?;
    }
    let (ours, theirs) = Channel::pair()?;
    match fork().context("cannot fork")? {
        Fork::Child => become_process(|| {
            let result = act().and_then(|()| theirs.send(&Message::Built, &[]));
            finish(&theirs, result)
        }),
        Fork::Parent(child) => {
            drop(theirs);
            let built = ours.expect(&Message::Built);
            match waitpid(child, None).context("cannot wait for the builder: waitpid")? {
                WaitStatus::Exited(_, 0) => built,
                status => Err(built.err().unwrap_or_else(|| anyhow::anyhow!("{status:?}"))),
            }
        }
    }
}

fn stage_main(channel: &Channel, group: &Group, owners: &Owners, setup: &Setup) -> i32 {
    let stage = || -> Result<()> {
        // Before unshare(CLONE_NEWCGROUP): the current cgroup becomes the root of the namespace.
        group.join()?;
        if let Some(namespace) = &owners.namespace {
            become_root_in(namespace, owners.is_rootless)?;
        }
        nix::sched::unshare(
            CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWCGROUP,
        )
        .context("cannot make namespaces: unshare")?;
        restart_clocks()?;
        match fork_for_parent().context("cannot fork: clone")? {
            Fork::Child => become_process(|| init::main(channel, setup)),
            Fork::Parent(init) => channel.send(&Message::Started(init.as_raw()), &[]),
        }
    };
    finish(channel, stage())
}

/// A time namespace whose clocks since boot start near 0. Kernels before 5.11 do not shift the start
/// times of processes, which would lie in the future. There, and on a kernel that was built without
/// time namespaces, the clocks are the host's.
fn restart_clocks() -> Result<()> {
    use rustix::time::{ClockId, clock_gettime};

    if !release::is_at_least((5, 11)) || nix::sched::unshare(NEWTIME).is_err() {
        return Ok(());
    }
    // Whole seconds only: no clock may be negative, not even for a moment. CLOCK_MONOTONIC_RAW gets
    // the offset of CLOCK_MONOTONIC, and runs behind or ahead of it.
    let seconds = |clock| clock_gettime(clock).tv_sec.max(0);
    let monotonic = seconds(ClockId::Monotonic).min(seconds(ClockId::MonotonicRaw));
    let offsets = format!("monotonic -{monotonic} 0\nboottime -{} 0\n", seconds(ClockId::Boottime));
    let file = "/proc/self/timens_offsets";
    std::fs::write(file, offsets).with_context(|| format!("cannot restart clocks: write {file}"))
}
