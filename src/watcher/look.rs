//! Looks at the cgroup of an engine's container, and decides whether the container runs its
//! program.
//!
//! A container that is being made still has the machine's mounts, then a root of its own without
//! the masks of its engine. It is made when its first process has executed a program of its own
//! root. That is seen without the engine: until then the program of the process lies on a mount of
//! the machine. Everything is read through a descriptor of the process's folder in `/proc`, never
//! through its number, and no file of the container is opened. Start reading at [`look`].

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use ambit_kernel::text::control_groups;
use ambit_kernel::text::status::Status;
use ambit_sysinfo::engines;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

/// The most folders of a container's cgroup that one look reads.
const MOST_FOLDERS: usize = 32;
/// How far below its cgroup the processes of a container are searched: systemd moves itself.
const DEPTH: usize = 3;
/// The most processes of a folder that are looked at.
const MOST_PROCESSES: usize = 64;
/// The most processes whose mounts are read: a container may have 100,000 mounts.
const MOST_READ: usize = 4;
/// The most bytes of a text that are read.
const LONGEST: u64 = 4 << 20;

/// A process, and its folder in `/proc`, which never becomes that of another process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) folder: OwnedFd,
}

/// The state of a container.
#[derive(Debug)]
pub(super) enum Look {
    /// Its cgroup does not exist any more.
    Gone,
    /// It is being made, and has come so far. The process is there once it has a root of its own.
    BeingMade(Progress, Option<Process>),
    /// It runs its program.
    Runs(Process),
    /// It reports the machine and is left alone, for this reason.
    ReportsMachine(&'static str),
}

/// How far an engine has come with a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Progress {
    /// It has no process with namespaces of its own.
    #[default]
    Nothing,
    /// Its process has mounts of its own, and still the machine's root.
    Mounts,
    /// Its process has a root of its own, and runs no program from there.
    Root,
}

/// What containers are compared with.
#[derive(Debug)]
pub(super) struct Machine {
    /// The namespaces of the machine's first process and of this one, by kind.
    pids: [u64; 2],
    mounts: [u64; 2],
    networks: [u64; 2],
    users: u64,
    /// Device and folder of the filesystem that is the machine's root.
    root: Option<Root>,
    /// The capabilities of the machine's first process.
    capabilities: u64,
}

/// Device and folder of a filesystem, as mountinfo has them.
type Root = (Vec<u8>, Vec<u8>);

impl Machine {
    /// Collects the facts. `None` without `/proc`.
    pub(super) fn new() -> Option<Self> {
        let (first, own) = (open(CWD, "/proc/1").ok()?, open(CWD, "/proc/self").ok()?);
        let both = |kind| Some([namespace(&first, kind)?, namespace(&own, kind)?]);
        let mountinfo = read(&first, "mountinfo")?;
        Some(Self {
            pids: both("pid")?,
            mounts: both("mnt")?,
            networks: both("net")?,
            users: namespace(&first, "user")?,
            root: root(&mountinfo),
            capabilities: Status(&read(&first, "status")?).radix("CapBnd:", 16)?,
        })
    }
}

/// A process of the container.
struct Seen {
    process: Process,
    /// In how many pid namespaces it is, if it is the first one of its own.
    depth: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    IsMade(Progress),
    /// It runs a program of its own root.
    Runs,
}

/// Looks at the container of an engine with this cgroup path. `folders` are its cgroup in the
/// hierarchies that are watched.
pub(super) fn look(path: &str, folders: &[PathBuf], machine: &Machine) -> Look {
    let (mut is_there, mut left) = (false, MOST_FOLDERS);
    let mut seen: Vec<Seen> = Vec::new();
    for folder in folders {
        let mut walk = vec![(folder.clone(), 0)];
        while let Some((folder, depth)) = walk.pop() {
            let Some(rest) = left.checked_sub(1) else { break };
            left = rest;
            let Ok(file) = File::open(folder.join("cgroup.procs")) else { continue };
            is_there = true;
            let mut text = String::new();
            // A threaded cgroup has no list of processes.
            let _ = file.take(LONGEST).read_to_string(&mut text);
            let pids = text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid != 0);
            seen.extend(pids.take(MOST_PROCESSES).filter_map(|pid| see(pid, path, machine)));
            if depth < DEPTH && text.is_empty() {
                walk.extend(children(&folder).map(|child| (child, depth + 1)));
            }
        }
        // The other hierarchies have the same processes.
        if !seen.is_empty() {
            break;
        }
    }
    if !is_there {
        return Look::Gone;
    }
    // The first process of the container's pid namespace; a sandbox in it has one too. Without any,
    // the container is in the pid namespace of another one.
    seen.sort_by_key(|one| (one.depth.is_none(), one.depth));
    let depth = seen.first().and_then(|first| first.depth);
    let others = seen.split_off(seen.partition_point(|one| one.depth == depth));
    let first = seen.into_iter().take(MOST_READ);
    let stages = first.filter_map(|one| Some((stage(&one.process, machine)?, one.process)));
    let Some((mut state, process)) = stages.min_by_key(|(stage, _)| *stage != Stage::Runs) else {
        return Look::BeingMade(Progress::Nothing, None);
    };
    // The first process of lxc-execute is a program of the machine, and its child the container's.
    // Before it has left the root of its engine, its children are hooks.
    if state == Stage::IsMade(Progress::Root) && has_left_root(&process.folder) {
        let mounts = namespace(&process.folder, "mnt");
        let is_beside =
            |one: &&Seen| one.depth.is_none() && namespace(&one.process.folder, "mnt") == mounts;
        let mut beside = others.iter().filter(is_beside).take(MOST_READ);
        if beside.any(|one| stage(&one.process, machine) == Some(Stage::Runs)) {
            state = Stage::Runs;
        }
    }
    match state {
        Stage::IsMade(Progress::Root) => Look::BeingMade(Progress::Root, Some(process)),
        Stage::IsMade(progress) => Look::BeingMade(progress, None),
        Stage::Runs => match reports_machine(&process, machine) {
            Some(reason) => Look::ReportsMachine(reason),
            None => Look::Runs(process),
        },
    }
}

/// Returns the child folders of a cgroup.
fn children(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).take(MOST_FOLDERS)
}

/// Looks at a process. `None` if it has ended, is in another container, or has the pid or mount
/// namespace of the machine.
fn see(pid: u32, path: &str, machine: &Machine) -> Option<Seen> {
    let folder = open(CWD, &format!("/proc/{pid}")).ok()?;
    let is_own = |kind, machine: &[u64]| Some(!machine.contains(&namespace(&folder, kind)?));
    if !is_own("pid", &machine.pids)? || !is_own("mnt", &machine.mounts)? {
        return None;
    }
    if !is_member(&read(&folder, "cgroup")?, path) {
        return None;
    }
    let status = read(&folder, "status")?;
    let depth = Status(&status).numbers("NSpid:").count();
    let depth = (Status(&status).numbers("NSpid:").last() == Some(1)).then_some(depth);
    Some(Seen { process: Process { pid, folder }, depth })
}

/// Returns how far a process has come. `None` if it has ended.
fn stage(Process { folder, .. }: &Process, machine: &Machine) -> Option<Stage> {
    let mountinfo = read(folder, "mountinfo")?;
    Some(if machine.root.is_some() && root(&mountinfo) == machine.root {
        Stage::IsMade(Progress::Mounts)
    } else if runs_own_program(folder, &mountinfo) {
        Stage::Runs
    } else {
        Stage::IsMade(Progress::Root)
    })
}

/// True if the text of a `cgroup` has a process of this container, and not of one in it.
fn is_member(cgroups: &[u8], path: &str) -> bool {
    control_groups::lines(cgroups).any(|(_, _, cgroup)| {
        let cgroup = std::str::from_utf8(cgroup).unwrap_or_default();
        engines::find(cgroup).is_some_and(|found| found.path == path)
    })
}

/// True if the program of a process lies on one of its own mounts.
fn runs_own_program(folder: &OwnedFd, mountinfo: &[u8]) -> bool {
    let mount = || {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let program = rustix::fs::openat(folder, "exe", flags, Mode::empty())?;
        // No filesystem is asked for this.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let stat = rustix::fs::statx(&program, "", flags, StatxFlags::MNT_ID)?;
        Ok::<_, Errno>(stat.stx_mnt_id.to_string())
    };
    let Ok(mount) = mount() else { return false };
    mounts(mountinfo).any(|(id, ..)| id == mount.as_bytes())
}

/// True if a process has another root than its parent, whose mounts it had at first.
fn has_left_root(folder: &OwnedFd) -> bool {
    let parent = || {
        let parent = Status(&read(folder, "status")?).numbers("PPid:").next()?;
        open(CWD, &format!("/proc/{parent}")).ok()
    };
    let mountinfo = |folder: &OwnedFd| read(folder, "mountinfo").unwrap_or_default();
    parent().is_some_and(|parent| have_different_roots(&mountinfo(folder), &mountinfo(&parent)))
}

/// True if these processes have different roots. False if the root of one is not known.
fn have_different_roots(one: &[u8], other: &[u8]) -> bool {
    root(one).zip(root(other)).is_some_and(|(one, other)| one != other)
}

/// Returns why a container is left alone: one with all rights that also shares the network or the
/// root of the machine is an agent that reports the machine.
pub(super) fn reports_machine(process: &Process, machine: &Machine) -> Option<&'static str> {
    let status = read(&process.folder, "status")?;
    let rights = Status(&status).radix("CapBnd:", 16)?;
    let has_all = rights & machine.capabilities == machine.capabilities;
    if !has_all || namespace(&process.folder, "user") != Some(machine.users) {
        return None;
    }
    if machine.networks.contains(&namespace(&process.folder, "net")?) {
        return Some("it is privileged and shares the network of the machine");
    }
    let mountinfo = read(&process.folder, "mountinfo")?;
    has_root(&mountinfo, machine.root.as_ref()?)
        .then_some("it is privileged and mounts the root of the machine")
}

/// Returns id, device, root and path of each mount.
fn mounts(mountinfo: &[u8]) -> impl Iterator<Item = (&[u8], &[u8], &[u8], &[u8])> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let (id, _parent) = (fields.next()?, fields.next()?);
        Some((id, fields.next()?, fields.next()?, fields.next()?))
    })
}

/// Returns the filesystem that is mounted on top at `/`.
fn root(mountinfo: &[u8]) -> Option<Root> {
    let (_, device, root, _) = mounts(mountinfo).filter(|&(_, _, _, path)| path == b"/").last()?;
    Some((device.to_vec(), root.to_vec()))
}

/// True if this filesystem is mounted anywhere.
fn has_root(mountinfo: &[u8], (device, root): &Root) -> bool {
    mounts(mountinfo).any(|(_, on, folder, _)| on == device && folder == root)
}

fn open(base: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(base, path, flags, Mode::empty())
}

fn namespace(process: &OwnedFd, kind: &str) -> Option<u64> {
    let stat = rustix::fs::statat(process, format!("ns/{kind}"), AtFlags::empty()).ok()?;
    Some(stat.st_ino)
}

/// Reads a text of a process. `None` if the process has ended.
fn read(process: &OwnedFd, name: &str) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(process, name, flags, Mode::empty()).ok()?;
    let mut text = Vec::new();
    File::from(file).take(LONGEST).read_to_end(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_in_its_innermost_container() {
        let cgroups = b"4:memory:/lxc.payload.web/docker/a/init.scope\n0::/\n";
        assert!(is_member(cgroups, "/lxc.payload.web/docker/a"));
        assert!(!is_member(cgroups, "/lxc.payload.web"));
        assert!(!is_member(b"0::/user.slice\n", "/user.slice"));
    }

    #[test]
    fn the_root_is_the_topmost_mount_there() {
        let mountinfo = b"1 0 0:2 / / rw - rootfs rootfs rw\n20 1 254:1 / / rw - ext4 /dev/a rw\n\
                          21 20 254:1 /srv /mnt rw - ext4 /dev/a rw\n";
        let machine = root(mountinfo).unwrap();
        assert_eq!(machine, (b"254:1".to_vec(), b"/".to_vec()));
        assert!(has_root(b"7 6 254:1 / /host ro - ext4 /dev/a rw\n", &machine));
        assert!(!has_root(b"7 6 254:1 /srv / rw - ext4 /dev/a rw\n", &machine));
        assert_eq!(root(b""), None);
    }

    #[test]
    fn a_process_that_stays_in_the_root_of_its_parent_has_not_left_it() {
        let engine = b"20 1 254:1 / / rw - ext4 /dev/a rw\n";
        let copied = b"90 80 254:1 / / rw - ext4 /dev/a rw\n91 90 0:5 / /srv rw - tmpfs t rw\n";
        let over = b"90 80 254:1 / / rw - ext4 /dev/a rw\n91 90 0:5 / / rw - tmpfs t rw\n";
        let folder = b"90 80 254:1 /srv / rw - ext4 /dev/a rw\n";
        assert!(!have_different_roots(engine, engine) && !have_different_roots(copied, engine));
        assert!(have_different_roots(over, engine) && have_different_roots(folder, engine));
        assert!(!have_different_roots(b"", engine) && !have_different_roots(over, b""));
        assert!(!has_left_root(&open(CWD, "/proc/self").unwrap()));
    }

    #[test]
    fn this_process_runs_a_program_of_its_mounts_in_the_namespaces_of_the_machine() {
        let own = open(CWD, "/proc/self").unwrap();
        let mountinfo = read(&own, "mountinfo").unwrap();
        assert!(runs_own_program(&own, &mountinfo));
        assert!(!runs_own_program(&own, b""));
        let Some(machine) = Machine::new() else { return };
        assert!(see(std::process::id(), "", &machine).is_none());
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_container() {
        let Some(machine) = Machine::new() else { return };
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().join("docker/a")];
        assert!(matches!(look("/docker/a", &folders, &machine), Look::Gone));
        fs::create_dir_all(&folders[0]).unwrap();
        fs::write(folders[0].join("cgroup.procs"), "").unwrap();
        assert!(matches!(
            look("/docker/a", &folders, &machine),
            Look::BeingMade(Progress::Nothing, None)
        ));
    }
}
