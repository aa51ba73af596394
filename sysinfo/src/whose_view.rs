//! Decides whose numbers a thread in the pid namespace of a container is shown.
//!
//! They are those of the container of the namespace's first process. There are two exceptions. A
//! thread in the cgroup of another engine's container has joined the pid namespace
//! (`--pid=container:`, `shareProcessNamespace`), and is shown its own container. With
//! [`ViewOf::Caller`], a thread in a cgroup inside of its container is shown that cgroup.
//!
//! The numbers are always those of a cgroup that the thread is in, or of the pid namespace. Threads
//! with the mounts of the first process are recognized by one system call: engines give each
//! container a mount namespace. Start reading at [`choose`].

use std::io;

use crate::container::Container;
use crate::context::Context;
use crate::engines;
use crate::hierarchy::Controller;
use crate::membership::Membership;
use crate::policy::ViewOf;
use crate::tasks;

/// What is decided for a thread.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    /// The cgroup of the container that has joined the pid namespace, if the thread is in one.
    pub(crate) joined: Option<Box<str>>,
    /// The cgroups of the thread, if it is to be shown those.
    pub(crate) own: Option<Membership>,
    /// False while an engine may still move the thread to a container.
    pub(crate) is_certain: bool,
}

/// Decides for a thread, given the container of its pid namespace.
pub(crate) fn choose(tid: u32, of_namespace: &Container, context: &Context) -> Choice {
    let init = of_namespace.init();
    let of_container = context.options.view_of == ViewOf::Container;
    let settled = Choice { is_certain: true, ..Choice::default() };
    if of_container
        && init.is_some_and(|init| init.pid == tid || has_mounts(tid, init.mounts, context))
    {
        return settled;
    }
    let mut text = Vec::new();
    let Ok(text) = context.proc.read_of(tid, "cgroup", &mut text) else {
        return Choice::default();
    };
    let membership = of_namespace.membership();
    if membership.has_text(text) {
        return settled;
    }
    let own = (!of_container).then(|| Membership::parse(text));
    let Some((hierarchy, found)) = engines::find_in(text) else {
        return Choice { own, ..Choice::default() };
    };
    let first = membership.whole_path(hierarchy).unwrap_or("/");
    let joined = (!contains(found.path, first)).then(|| found.path.into());
    Choice { joined, own, ..settled }
}

fn has_mounts(tid: u32, mounts: u64, context: &Context) -> bool {
    context.proc.namespace(tid, "mnt").is_ok_and(|found| found == mounts)
}

/// True if a container's cgroup is the innermost one of an engine around a path, or is above that.
/// A process of the outer container that entered a nested one is shown the nested one.
fn contains(container: &str, path: &str) -> bool {
    let innermost = engines::find(path).map_or(path, |found| found.path);
    is_at_or_below(innermost, container)
}

fn is_at_or_below(path: &str, above: &str) -> bool {
    let rest = path.strip_prefix(above.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// True if these cgroups are inside of those of a container: none is outside, and one is below.
pub(crate) fn is_inside(own: &Membership, container: &Container, context: &Context) -> bool {
    let of_container = container.membership();
    let mut is_below = false;
    for controller in Controller::ALL {
        let path = |of| context.hierarchies.path_of(controller, of);
        let (Some(own), Some(outer)) = (path(own), path(&of_container)) else { continue };
        if !is_at_or_below(own, outer) {
            return false;
        }
        is_below |= own != outer;
    }
    is_below
}

/// Finds the first process of the container that a thread is in: the oldest process of the
/// container's cgroup and of the thread's own that is in this pid namespace.
pub(crate) fn first_process(
    tid: u32,
    namespace: u64,
    cgroup: &str,
    context: &Context,
) -> io::Result<u32> {
    let (proc, mut text) = (&context.proc, Vec::new());
    let own = Membership::parse(proc.read_of(tid, "cgroup", &mut text)?);
    let mut pids = tasks::processes_of(&context.hierarchies, &own);
    pids.extend(tasks::processes_of(&context.hierarchies, &own.cut(cgroup)));
    let status = proc.read_of(tid, "status", &mut text)?;
    pids.extend(ambit_kernel::text::status::Status(status).numbers("Tgid:").next());
    let start = |pid: u32, text: &mut Vec<u8>| {
        let stat = proc.read_of(pid, "stat", text).ok()?;
        crate::clock::start_of(stat)
    };
    let here =
        pids.into_iter().filter(|&pid| proc.pid_namespace(pid).is_ok_and(|of| of == namespace));
    let oldest = here.filter_map(|pid| Some((start(pid, &mut text)?, pid))).min();
    oldest.map(|(_, pid)| pid).ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_container_is_one_that_does_not_contain_the_first_process() {
        for (own, first, is_another) in [
            ("/docker/a", "/docker/a", false),
            ("/docker/a", "/docker/a/init", false),
            ("/docker/b", "/docker/a", true),
            ("/kubepods/pod1/app", "/kubepods/pod1/pause", true),
            ("/docker/b", "/web", true),
            ("/docker/b", "/", true),
            // A container that runs an engine: a nested container with its pid namespace, and a
            // process that entered a nested one.
            ("/lxc/a/docker/b", "/lxc/a", true),
            ("/lxc/a", "/lxc/a/docker/b", false),
        ] {
            assert_eq!(!contains(own, first), is_another, "{own} {first}");
        }
    }
}
