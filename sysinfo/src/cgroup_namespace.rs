//! Finds the root of a container's cgroup namespace: the cgroup that its engine created, even if
//! the container's first process has moved to a child of it since (the entrypoint of
//! Docker-in-Docker, systemd).
//!
//! The kernel shows cgroup paths relative to the root of the reader's cgroup namespace, with a
//! `/..` for each level above it. A thread enters the container's namespace and reads the path of
//! the daemon there, which gives the depth of the root. The container cannot influence that path:
//! it can mount any cgroup that it sees, and move its own processes, but not the daemon.
//!
//! A namespace that the first process shares with its parent is not used: an engine inside another
//! container started it with `--cgroupns=host`, and its root is that of the other container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::KernelFiles;
use crate::membership::Membership;
use crate::namespace_init;

/// Returns the cgroups of a container from the text of its first process's `cgroup` file. If its
/// namespace cannot be entered, they are those of the first process.
pub(crate) fn membership(proc: &KernelFiles, init: u32, text: &[u8]) -> Membership {
    let roots = own_namespace(proc, init).and_then(|namespace| {
        let mut outside = Vec::new();
        proc.read_of(std::process::id(), "cgroup", &mut outside).ok()?;
        let (inside, its_init) = read_inside(proc, init, namespace.as_fd())?;
        Some([outside, inside, its_init])
    });
    match &roots {
        Some([outside, inside, its_init]) => Membership::at_root(text, outside, inside, its_init),
        None => Membership::parse(text),
    }
}

/// Opens the cgroup namespace of a first process; `None` if it is that of its parent.
fn own_namespace(proc: &KernelFiles, init: u32) -> Option<OwnedFd> {
    let own = proc.namespace(init, "cgroup").ok()?;
    let parent = namespace_init::parent(proc, init, &mut Vec::new());
    // A parent outside of the daemon's pid namespace is shown as 0.
    let parent = parent.filter(|&parent| parent != 0).unwrap_or(std::process::id());
    if proc.namespace(parent, "cgroup").ok()? == own {
        return None;
    }
    proc.open_namespace(init, "cgroup").ok()
}

/// Reads the `cgroup` files of the daemon and of the first process inside the namespace.
fn read_inside(
    proc: &KernelFiles,
    init: u32,
    namespace: BorrowedFd<'_>,
) -> Option<(Vec<u8>, Vec<u8>)> {
    let read = || {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::ControlGroup)).ok()?;
        let (mut own, mut its_init) = (Vec::new(), Vec::new());
        proc.read_of(std::process::id(), "cgroup", &mut own).ok()?;
        proc.read_of(init, "cgroup", &mut its_init).ok()?;
        Some((own, its_init))
    };
    // setns(2) affects the calling thread only, so a thread is started for it.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cgroupns".to_owned());
        thread.spawn_scoped(scope, read).ok()?.join().ok()?
    })
}
