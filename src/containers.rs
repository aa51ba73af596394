//! Finds containers of engines among the processes of the machine, and one by its name.
//!
//! A container is the processes of one cgroup that an engine made ([`ambit_sysinfo::engines`]). An
//! engine that chooses another name (`runc` without a cgroup path) is recognized by a pid namespace
//! whose first process was moved to a cgroup of its own. A process that still has the machine's
//! mounts is in no container yet. Start reading at [`all`] and [`find`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use ambit_kernel::text::control_groups;
use ambit_kernel::text::status::Status;
use ambit_sysinfo::{clock, engines};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A container, pinned by a descriptor of its first process.
#[derive(Debug)]
pub struct Container {
    /// The name or the whole id.
    pub name: String,
    /// Its first process. The number is valid while the descriptor says that it has not ended.
    pub pid: u32,
    /// The descriptor of its first process.
    pub pidfd: OwnedFd,
}

/// Why a name is not that of one container.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("no container has the name, id or process {name}; {}", listed(.known))]
    Unknown { name: String, known: Vec<String> },
    #[error("{name} is not unique: {}; give the process instead", .found.join(", "))]
    Ambiguous { name: String, found: Vec<String> },
    #[error("process {0} is in no container: it has the pid or mount namespace of this program")]
    Outside(u32),
}

fn listed(known: &[String]) -> String {
    match known {
        [] => "there are none".to_owned(),
        known => format!("there are {} (Docker's and Podman's by id)", known.join(", ")),
    }
}

impl Container {
    /// Opens the folder of its first process in `/proc`.
    pub fn folder(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(format!("/proc/{}", self.pid), flags, Mode::empty())?;
        // The number may have been reused before the folder was opened.
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut ended, Some(&Timespec::default()))? {
            0 => Ok(folder),
            _ => Err(Errno::SRCH.into()),
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", short(&self.name).escape_debug(), self.pid)
    }
}

/// Shortens an id to its first twelve digits, as engines do. A name stays.
pub(crate) fn short(name: &str) -> &str {
    let is_id = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { &name[..12] } else { name }
}

/// Finds all containers, ordered by name.
pub fn all() -> Vec<Container> {
    let mut containers: Vec<_> = groups(processes()).into_iter().filter_map(Group::pin).collect();
    containers.sort_by(|a, b| (&a.name, a.pid).cmp(&(&b.name, b.pid)));
    containers
}

/// Finds one container: by its name or id, by any process in it, or by the first characters of its
/// id. The outermost one with a name is meant; if its name is also the number of a process, it is
/// the name.
pub fn find(name: &str) -> Result<Container, FindError> {
    let processes = processes();
    let groups = groups(processes.clone());
    let described = |groups: Vec<Group>| -> Vec<String> {
        groups.into_iter().filter_map(Group::pin).map(|one| one.to_string()).collect()
    };
    let unknown = |groups| FindError::Unknown { name: name.to_owned(), known: described(groups) };
    let process = name.parse::<u32>().ok();
    let process = process.and_then(|pid| processes.iter().find(|one| one.pid == pid));
    let is_exact = groups.iter().any(|group| group.name == name && group.depth() == 0);
    if let Some(process) = process.filter(|_| !is_exact) {
        let group = of_process(process, groups, &processes);
        let group = group.ok_or(FindError::Outside(process.pid))?;
        return group.pin().ok_or(FindError::Outside(process.pid));
    }
    let (mut found, others) = named(name, groups);
    match (found.pop(), found.is_empty()) {
        (Some(group), true) => group.pin().ok_or_else(|| unknown(others)),
        (Some(group), false) => {
            found.push(group);
            Err(FindError::Ambiguous { name: name.to_owned(), found: described(found) })
        }
        (None, _) => Err(unknown(others)),
    }
}

/// Divides containers into those that a name may mean, and the others. A container chooses the names
/// of those in it: none of them hides one that is further out.
fn named(name: &str, groups: Vec<Group>) -> (Vec<Group>, Vec<Group>) {
    let is_named = |group: &Group| group.name == name;
    let starts = |group: &Group| !name.is_empty() && group.name.starts_with(name);
    let outermost = |is_it: &dyn Fn(&Group) -> bool| {
        groups.iter().filter(|group| is_it(group)).map(Group::depth).min()
    };
    let (exact, shortened) = (outermost(&is_named), outermost(&starts));
    groups.into_iter().partition(|group| match exact {
        Some(depth) if is_named(group) => group.depth() == depth,
        Some(depth) => starts(group) && group.depth() < depth,
        None => starts(group) && Some(group.depth()) == shortened,
    })
}

/// What is known of a process.
#[derive(Debug, Clone)]
struct Process {
    pid: u32,
    parent: u32,
    /// Nanoseconds after boot.
    start: u64,
    /// True for the first process of its pid namespace.
    is_init: bool,
    /// Inode of its pid namespace; `None` for that of this program.
    namespace: Option<u64>,
    /// True if it has the mount namespace of this program.
    has_our_mounts: bool,
    /// The text of its `cgroup`.
    cgroups: Vec<u8>,
}

/// The processes of one container.
#[derive(Debug)]
struct Group {
    name: String,
    cgroup: String,
    first: Process,
}

impl Group {
    /// In how many other containers it is. The slice of a user counts as one.
    fn depth(&self) -> usize {
        let around = engines::all(&self.cgroup).count().saturating_sub(1);
        around + usize::from(self.cgroup.contains("/user-"))
    }

    /// Pins the first process. `None` if it has ended.
    fn pin(self) -> Option<Container> {
        let pid = i32::try_from(self.first.pid).ok().and_then(Pid::from_raw)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The number may have been reused before it was pinned.
        let stat = fs::read(format!("/proc/{}/stat", self.first.pid)).ok()?;
        if clock::start_of(&stat) != Some(self.first.start) {
            return None;
        }
        Some(Container { name: self.name, pid: self.first.pid, pidfd })
    }
}

impl Process {
    fn read(pid: u32, own: &Own) -> Option<Self> {
        let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
        let namespace =
            |kind: &str| fs::metadata(format!("/proc/{pid}/ns/{kind}")).map(|file| file.ino()).ok();
        // Threads of the kernel have no mounts that can be opened, and are in no container.
        let (mounts, status) = (namespace("mnt")?, file("status")?);
        Some(Self {
            pid,
            parent: Status(&status).numbers("PPid:").next()?,
            start: clock::start_of(&file("stat")?)?,
            is_init: Status(&status).numbers("NSpid:").last() == Some(1),
            namespace: namespace("pid").filter(|&pid| pid != own.pids),
            has_our_mounts: mounts == own.mounts,
            cgroups: file("cgroup")?,
        })
    }
}

/// The namespaces of this program.
struct Own {
    pids: u64,
    mounts: u64,
}

fn processes() -> Vec<Process> {
    let own = |kind| fs::metadata(format!("/proc/self/ns/{kind}")).map(|file| file.ino());
    let (Ok(pids), Ok(mounts)) = (own("pid"), own("mnt")) else { return Vec::new() };
    let own = Own { pids, mounts };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Process::read(pid, &own)).collect()
}

/// Sorts processes into containers.
fn groups(processes: Vec<Process>) -> Vec<Group> {
    let cgroups_of: BTreeMap<u32, Vec<u8>> =
        processes.iter().map(|one| (one.pid, one.cgroups.clone())).collect();
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for process in processes {
        if process.has_our_mounts {
            continue;
        }
        let Some(group) = group_of(process, &cgroups_of) else { continue };
        match groups.get_mut(&group.cgroup) {
            Some(known) if known.first.rank() <= group.first.rank() => {}
            Some(known) => *known = group,
            None => drop(groups.insert(group.cgroup.clone(), group)),
        }
    }
    groups.into_values().collect()
}

impl Process {
    /// The first process of a container is the oldest one. A helper of the engine in the same
    /// cgroup has the pid namespace of the machine.
    fn rank(&self) -> (bool, u64, u32) {
        (self.namespace.is_none(), self.start, self.pid)
    }
}

/// Returns the container that a process alone shows.
fn group_of(process: Process, cgroups_of: &BTreeMap<u32, Vec<u8>>) -> Option<Group> {
    if let Some((_, found)) = engines::find_in(&process.cgroups) {
        let (name, cgroup) = (found.name(), found.path.to_owned());
        return Some(Group { name, cgroup, first: process });
    }
    let is_moved = cgroups_of.get(&process.parent).is_some_and(|of| *of != process.cgroups);
    if process.namespace.is_none() || !process.is_init || !is_moved {
        return None;
    }
    let cgroup = control_groups::path(&process.cgroups);
    let name = cgroup.rsplit('/').next().filter(|name| !name.is_empty() && !is_unit(name))?;
    Some(Group { name: name.to_owned(), cgroup, first: process })
}

/// True for a unit of systemd. A sandbox in a session or a service is not a container of an engine.
fn is_unit(name: &str) -> bool {
    [".scope", ".service", ".slice"].iter().any(|suffix| name.ends_with(suffix))
}

/// Returns the container of a process: the innermost one whose cgroup is that of the process or
/// above it, or the pid namespace of the process.
fn of_process(process: &Process, groups: Vec<Group>, processes: &[Process]) -> Option<Group> {
    if process.has_our_mounts {
        return None;
    }
    let is_in = |group: &Group| {
        control_groups::lines(&process.cgroups).any(|(_, _, path)| {
            let below = path.strip_prefix(group.cgroup.as_bytes());
            below.is_some_and(|below| below.is_empty() || below.starts_with(b"/"))
        })
    };
    let innermost = groups.into_iter().filter(is_in).max_by_key(|group| group.cgroup.len());
    innermost.or_else(|| {
        let namespace = process.namespace?;
        let first = |one: &&Process| one.namespace == Some(namespace) && one.is_init;
        let first = processes.iter().find(first)?.clone();
        let cgroup = control_groups::path(&first.cgroups);
        let name = control_groups::name(&first.cgroups);
        let name = name.unwrap_or_else(|| first.pid.to_string());
        Some(Group { name, cgroup, first })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, namespace: Option<u64>, cgroup: &str) -> Process {
        Process {
            pid,
            parent: 1,
            start: u64::from(pid),
            is_init: false,
            namespace,
            has_our_mounts: namespace.is_none(),
            cgroups: format!("4:memory:{cgroup}\n0::/\n").into_bytes(),
        }
    }

    fn init(pid: u32, namespace: u64, cgroup: &str) -> Process {
        Process { is_init: true, ..process(pid, Some(namespace), cgroup) }
    }

    fn names(groups: &[Group]) -> Vec<(&str, u32)> {
        groups.iter().map(|group| (&*group.name, group.first.pid)).collect()
    }

    #[test]
    fn the_first_process_of_a_container_is_the_oldest_with_its_namespaces() {
        let supervisor = Process {
            has_our_mounts: false,
            ..process(20, None, "/machine.slice/machine-a.scope/supervisor")
        };
        let groups = groups(vec![
            process(1, None, "/"),
            // It still has the machine's mounts: the engine is making the container.
            process(10, None, "/lxc/web"),
            process(12, Some(7), "/lxc/web/system.slice/a.service"),
            init(11, 7, "/lxc/web/init.scope"),
            supervisor,
            init(21, 8, "/machine.slice/machine-a.scope/payload"),
            // A container in the pid namespace of another one.
            process(30, Some(7), "/docker/sidecar"),
        ]);
        assert_eq!(names(&groups), [("sidecar", 30), ("web", 11), ("a", 21)]);
    }

    #[test]
    fn an_unknown_engine_moves_the_first_process_of_a_pid_namespace() {
        let groups = groups(vec![
            process(1, None, "/"),
            init(5, 7, "/web"),
            // `unshare --pid` of a program in the same cgroup, of a session, and of a service.
            init(6, 8, "/"),
            init(7, 9, "/user.slice/session-1.scope"),
            init(8, 10, "/system.slice/a.service"),
        ]);
        assert_eq!(names(&groups), [("web", 5)]);
    }

    #[test]
    fn a_process_leads_to_its_innermost_container() {
        let all = vec![
            process(1, None, "/"),
            init(5, 7, "/lxc/web"),
            init(6, 8, "/lxc/web/docker/inner"),
            process(9, Some(8), "/lxc/web/docker/inner/child"),
            init(10, 9, "/"),
            process(11, Some(9), "/"),
        ];
        let group = |pid| {
            let process = all.iter().find(|one| one.pid == pid).unwrap();
            of_process(process, groups(all.clone()), &all).map(|group| group.first.pid)
        };
        assert_eq!((group(9), group(5), group(1)), (Some(6), Some(5), None));
        assert_eq!(group(11), Some(10), "the pid namespace, which no engine made");
    }

    #[test]
    fn a_name_inside_hides_no_container_further_out() {
        let hash = "0f".repeat(32);
        let all = vec![
            init(5, 7, "/lxc/web"),
            init(6, 8, "/lxc/ci"),
            init(7, 9, "/lxc/ci/lxc.payload.web"),
            init(8, 10, "/lxc/ci/lxc.payload.db"),
            init(9, 11, &format!("/docker/{hash}")),
            init(10, 12, "/lxc/ci/lxc/0f0f"),
            init(11, 13, "/user.slice/user-1000.slice/a.scope/lxc/web"),
        ];
        let found = |name: &str| {
            let (found, _) = named(name, groups(all.clone()));
            found.iter().map(|group| group.first.pid).collect::<Vec<_>>()
        };
        assert_eq!(found("web"), [5]);
        assert_eq!(found("we"), [5]);
        assert_eq!(found("db"), [8], "the only one");
        assert_eq!(found("0f0f").len(), 2, "the start of an id, and a name that a container chose");
        assert_eq!(found("0f0"), [9]);
    }

    #[test]
    fn a_name_that_does_not_exist_is_told_with_those_that_do() {
        let error = find("no such container").unwrap_err().to_string();
        assert!(error.contains("no container has the name, id or process no such"), "{error}");
        let error = find(&std::process::id().to_string()).unwrap_err().to_string();
        assert!(error.contains("is in no container"), "{error}");
        assert!(matches!(find(""), Err(FindError::Unknown { .. })));
    }
}
