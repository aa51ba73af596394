//! Attach in a running container, by a child of the broker.
//!
//! The container is given as a descriptor of a process's folder in `/proc`, which never becomes that
//! of another process. The child opens copies of the overlay's files in the machine's mount
//! namespace, and attaches them in each mount namespace of the container's processes. It ends itself
//! after [`DEADLINE`]: filesystems of the container may not answer. It must not read a path of the
//! container by another way than `lookup.rs`.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_kernel::text;
use ambit_kernel::text::{control_groups, mountinfo};
use nix::sched::{CloneFlags, setns};
use rustix::fs::{CWD, Dir, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use serde::{Deserialize, Serialize};

use super::{Facts, Options, Report, clones, cover, uncover};
use crate::error::{Context, Error};
use crate::lookup::{self, Mounts, find};

/// How long one container may take.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// The most mount namespaces of a container that are looked at.
const MOST: usize = 64;

/// What is done in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// The overlay's files are attached.
    Cover(Options),
    /// What was attached is removed.
    Uncover,
}

/// What is done, and with which files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachOrder {
    /// What is done.
    pub action: Action,
    /// Where the overlay is mounted.
    pub overlay: PathBuf,
    /// The targets below the container's root, which are also the names below the overlay.
    pub targets: Vec<String>,
    /// Targets with the names below the overlay of files that show this container only. They are
    /// attached in the mount namespace of its first process; another one may be in another
    /// container.
    pub leased: Vec<(String, String)>,
}

/// Carries out an order. `process` is the folder of one of the container's processes in `/proc`.
pub(crate) fn run(order: &AttachOrder, process: BorrowedFd<'_>) -> Result<Report, Error> {
    nix::unistd::alarm::set(u32::try_from(DEADLINE.as_secs()).unwrap_or(1));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let overlay = rustix::fs::openat(CWD, &order.overlay, flags, Mode::empty())
        .context(format!("open of the overlay {}", order.overlay.display()))?;
    let Identity { pid_namespace, is_same_user, of_machine } = identify(process)?;
    // The parent is the broker, in the daemon's mount namespace.
    let broker = nix::unistd::getppid().to_string();
    let facts = Facts::collect(&overlay, pid_namespace, vec!["1".to_owned(), broker])?;
    let first = MountNamespace::open(process, false)?;
    let machine =
        rustix::fs::open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .context("open of ns/mnt")?;
    first.enter()?;
    let (namespaces, skipped, init) = match clean_proc(first.root.as_fd(), &facts)? {
        Some(proc) => {
            let (found, skipped) = all_namespaces(&proc, pid_namespace, of_machine)?;
            let init = text::read(proc.as_fd(), "1/cgroup").ok();
            (found, skipped, init.filter(|_| is_same_user))
        }
        None => (Vec::new(), 0, None),
    };
    let namespaces = if namespaces.is_empty() { vec![first] } else { namespaces };
    let mut report = Report { skipped, ..Report::default() };
    for namespace in namespaces {
        namespace.enter()?;
        let root = namespace.root.as_fd();
        report.add(match order.action {
            Action::Uncover => uncover(root, &order.targets, &facts)?,
            Action::Cover(options) => {
                let mut copies = |targets: &[&str]| {
                    setns(&machine, CloneFlags::CLONE_NEWNS).context("setns to the machine")?;
                    let pressure = init.as_deref().and_then(pressure_folder);
                    let leased: &[_] = if namespace.is_first { &order.leased } else { &[] };
                    let made = targets
                        .iter()
                        .map(|target| copy(&overlay, leased, pressure.as_deref(), target));
                    let made = made.collect();
                    namespace.enter()?;
                    Ok(made)
                };
                cover(root, &order.targets, &facts, options, &mut copies)?
            }
        });
    }
    Ok(report)
}

/// The namespaces of a process that is in a container, and of the machine.
struct Identity {
    pid_namespace: u64,
    /// True if its user namespace is the machine's.
    is_same_user: bool,
    /// The mount namespaces of the machine.
    of_machine: HashSet<u64>,
}

/// Identifies the namespaces of a process.
fn identify(process: BorrowedFd<'_>) -> Result<Identity, Error> {
    let gone = |errno: Errno| match errno {
        Errno::SRCH | Errno::NOENT => Error::new(Errno::SRCH, "the process has ended"),
        errno => Error::new(errno, format!("open of ns: {errno}")),
    };
    let folder = |process: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, format!("/proc/{process}/ns"), flags, Mode::empty())
    };
    let theirs = find(process, "ns", Mounts::Refused).map_err(gone)?;
    let mut of_machine = HashSet::new();
    for (kind, what) in [("pid", "pid namespace"), ("mnt", "mount namespace")] {
        let id = lookup::namespace(&theirs, kind).map_err(gone)?;
        for machine in ["self", "1"] {
            let own = folder(machine).and_then(|folder| lookup::namespace(folder, kind));
            let own = own.context("readlink of a namespace")?;
            if kind == "mnt" {
                of_machine.insert(own);
            }
            if own == id {
                let message = format!("it is in the machine's {what}: it is no container");
                return Err(Error::new(Errno::INVAL, message));
            }
        }
    }
    let users = folder("self").and_then(|folder| lookup::namespace(folder, "user"));
    let is_same_user = users.ok() == lookup::namespace(&theirs, "user").ok();
    let pid_namespace = lookup::namespace(&theirs, "pid").map_err(gone)?;
    Ok(Identity { pid_namespace, is_same_user, of_machine })
}

/// A mount namespace, and the root of a process in it.
struct MountNamespace {
    namespace: OwnedFd,
    root: OwnedFd,
    /// True for that of the first process of the pid namespace.
    is_first: bool,
}

impl MountNamespace {
    fn open(process: BorrowedFd<'_>, is_first: bool) -> Result<Self, Error> {
        let open = |name: &str, flags: OFlags| {
            rustix::fs::openat(process, name, flags | OFlags::CLOEXEC, Mode::empty())
                .context(format!("open of {name}"))
        };
        let namespace = open("ns/mnt", OFlags::RDONLY)?;
        Ok(Self { namespace, root: open("root", OFlags::PATH)?, is_first })
    }

    fn enter(&self) -> Result<(), Error> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNS).context("setns to a mount namespace")
    }
}

/// Returns a detached copy of the container's procfs, on which the container can mount nothing.
/// `None` if the container has no procfs of its pid namespace, or it cannot be copied.
fn clean_proc(root: BorrowedFd<'_>, facts: &Facts) -> Result<Option<OwnedFd>, Error> {
    let mounts = facts.mounts()?;
    let Ok(Some(tree)) = super::Tree::open(root, "proc", &mounts, facts) else { return Ok(None) };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = rustix::mount::open_tree(&tree.fd, "", flags).ok();
    Ok(copy.filter(|copy| clones::make_private(facts.proc(), copy).is_ok()))
}

/// Returns the distinct mount namespaces of the processes in a pid namespace, that of its first
/// process first, and how many were left out. Those of the machine do not count: a process of the
/// machine may have entered the pid namespace alone (`nsenter --pid`).
fn all_namespaces(
    proc: &OwnedFd,
    pid_namespace: u64,
    of_machine: HashSet<u64>,
) -> Result<(Vec<MountNamespace>, usize), Error> {
    let list = rustix::fs::openat(
        proc,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("open of the container's /proc")?;
    let entries = Dir::new(list).context("getdents of the container's /proc")?;
    let is_process = |name: &str| name.starts_with(|first: char| first.is_ascii_digit());
    // The kernel lists processes in ascending order.
    let processes = entries.flatten().filter_map(|entry| {
        entry.file_name().to_str().ok().filter(|name| is_process(name)).map(str::to_owned)
    });
    let (mut seen, mut found, mut skipped) = (of_machine, Vec::new(), 0);
    for process in processes {
        // Errors mean that the process has ended.
        let Ok(folder) = find(proc, &process, Mounts::Refused) else { continue };
        let Ok(ns) = find(&folder, "ns", Mounts::Refused) else { continue };
        if lookup::namespace(&ns, "pid") != Ok(pid_namespace) {
            continue;
        }
        let Ok(id) = lookup::namespace(&ns, "mnt") else { continue };
        if !seen.insert(id) {
            continue;
        }
        if found.len() == MOST {
            skipped += 1;
        } else if let Ok(namespace) = MountNamespace::open(folder.as_fd(), process == "1") {
            found.push(namespace);
        }
    }
    Ok((found, skipped))
}

/// Returns the folder of the container's control group with pressure files, to be bound over
/// `/proc/pressure`. `None` if triggers could not be set on these files: where the hierarchy is
/// mounted with `nsdelegate` the kernel refuses them at the top of a cgroup namespace, and the root of
/// another user namespace may not write them. The overlay's files take triggers in both cases.
fn pressure_folder(init: &[u8]) -> Option<PathBuf> {
    let mounts = mountinfo::own().ok()?;
    let mut unified = mounts.iter().filter(|mount| mount.kind == "cgroup2");
    if unified.any(|mount| mount.options.split(',').any(|option| option == "nsdelegate")) {
        return None;
    }
    let line = text::scan::lines(init).find(|line| line.starts_with(b"0::/") && line.len() > 4)?;
    let folder = control_groups::folders(&mounts, line).next()?;
    let is_scope = folder.file_name().is_some_and(|name| name == "init.scope");
    let folder = if is_scope { folder.parent()?.to_owned() } else { folder };
    folder.join("memory.pressure").exists().then_some(folder)
}

/// Copies a file of the overlay, or in its place the container's file on lease or the pressure file
/// of its control group.
fn copy(
    overlay: &OwnedFd,
    leased: &[(String, String)],
    pressure: Option<&Path>,
    target: &str,
) -> Result<OwnedFd, Error> {
    if let (Some(folder), Some(name)) = (pressure, target.strip_prefix("proc/pressure/")) {
        let copied = clones::copy(CWD, &folder.join(format!("{name}.pressure")));
        if copied.is_ok() {
            return copied;
        }
    }
    clones::copy_for(overlay, leased, target)
}
