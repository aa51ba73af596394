//! The sandbox's control groups: made, limited, joined and removed.
//!
//! With cgroup v1 (and on hybrid hosts, which `cgroups-rs` treats as v1) they lie below our own
//! group of each hierarchy, at `ambit/run-PID`, so that our own limits hold for the sandbox too;
//! a cgroup2 hierarchy beside them gets one as well, for its pressure files. With v2 alone they
//! lie at `ambit/run-PID` in a scope of systemd (`scope`), or at `/ambit/run-PID` where it does not
//! run: below a group that has processes of its own, such as ours, the kernel allows none with
//! controllers. Only this module, `limits` and `scope` use `cgroups-rs`.
//!
//! An ordinary user's sandbox has groups below those that were delegated to its user, or none.
//!
//! Nothing here kills or moves a process of anything but the sandbox.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ambit_kernel::output;
use ambit_kernel::text::mountinfo::Mounted;
use anyhow::{Context, Result};
use cgroups_rs::CgroupPid;
use cgroups_rs::fs::hierarchies::{UNIFIED_MOUNTPOINT, V1, is_cgroup2_unified_mode};
use cgroups_rs::fs::{Cgroup, Hierarchy, Subsystem};

use super::hostmounts;
use super::limits::{self, explain};
use super::options::Options;
use super::{rootless, scope};

/// The folder that all sandboxes of this user share.
const FAMILY: &str = "ambit";

/// How long workers in the sandbox's control groups may outlive the sandbox.
const WORKER_TIMEOUT: Duration = Duration::from_secs(3);

/// The control groups of one sandbox. Dropping it removes them; their processes must have ended.
#[derive(Debug)]
pub(super) struct Group {
    /// None if none was delegated to an ordinary user.
    groups: Option<Cgroup>,
    /// The group in a cgroup2 hierarchy beside v1 ones.
    beside: Option<PathBuf>,
    /// For each group, the name of its mount below `/sys/fs/cgroup`, and its path.
    places: Vec<(String, PathBuf)>,
    id: String,
    owner: u32,
}

impl Group {
    /// Makes the groups with their limits, and removes those of dead sandboxes.
    pub(super) fn create(options: &Options, is_rootless: bool) -> Result<Self> {
        let mounts = hostmounts::all()?;
        if !mounts.iter().any(|mount| mount.kind.starts_with("cgroup")) {
            anyhow::bail!(
                "no control groups are mounted: mount -t cgroup2 cgroup2 {UNIFIED_MOUNTPOINT}"
            );
        }
        let mut own = own_paths()?;
        let owner = std::process::id();
        let scope = match (is_cgroup2_unified_mode(), is_rootless) {
            (true, false) => scope::enter(),
            (true, true) => {
                let room =
                    |path: &PathBuf| rootless::make_room(Path::new(UNIFIED_MOUNTPOINT), path);
                let room = own.unified.as_ref().and_then(room);
                if room.is_none() {
                    return Ok(Self::none(options, owner));
                }
                room
            }
            (false, false) => None,
            (false, true) => {
                own.keep_delegated(&mounts);
                if own.legacy.is_empty() {
                    return Ok(Self::none(options, owner));
                }
                None
            }
        };
        let family = scope.unwrap_or_default().join(FAMILY);
        // A process of another pid namespace may have our pid, and a sandbox.
        for attempt in 0..100 {
            let id = match attempt {
                0 => format!("run-{owner}"),
                _ => format!("run-{owner}-{attempt}"),
            };
            let mut group = Self::describe(id, owner, &family, &own, &mounts);
            if group.places.iter().any(|(_, place)| place.exists() && remove(place).is_err()) {
                continue;
            }
            group.remove_leftovers();
            group.make()?;
            // From here on, dropping it removes the groups.
            if let Some(groups) = &group.groups {
                let whose = "in the control groups that were delegated to this user";
                let applied = limits::apply(groups, options);
                if is_rootless { applied.context(whose)? } else { applied? }
            }
            return Ok(group);
        }
        anyhow::bail!("control groups named run-{owner} are in use: remove them below {FAMILY}")
    }

    /// No groups: those of this process hold for the sandbox.
    fn none(options: &Options, owner: u32) -> Self {
        rootless::say_without_limits(options);
        Self { groups: None, beside: None, places: Vec::new(), id: format!("run-{owner}"), owner }
    }

    fn describe(id: String, owner: u32, family: &Path, own: &Own, mounts: &[Mounted]) -> Self {
        let name = format!("{}/{id}", family.display());
        if is_cgroup2_unified_mode() {
            let groups = Cgroup::load(cgroups_rs::fs::hierarchies::auto(), &name);
            let place = Path::new(UNIFIED_MOUNTPOINT).join(&name);
            let places = vec![(String::new(), place)];
            return Self { groups: Some(groups), beside: None, places, id, owner };
        }
        let relative: HashMap<String, String> = own
            .legacy
            .iter()
            .map(|(controller, path)| (controller.clone(), below_mount(path, controller)))
            .collect();
        let hierarchy: Box<dyn Hierarchy> = match own.is_delegated {
            true => Box::new(Delegated { controllers: relative.keys().cloned().collect() }),
            false => Box::new(V1::new()),
        };
        let groups = Cgroup::load_with_relative_paths(hierarchy, &name, relative);
        let mut places = Vec::new();
        for subsystem in groups.subsystems() {
            let place = subsystem.to_controller().path().to_owned();
            // cpu and cpuacct may be one hierarchy, with two names for one place.
            if !places.iter().any(|(_, seen)| *seen == place) {
                places.push((mount_name(&place, mounts), place));
            }
        }
        let beside = own.unified.as_ref().and_then(|path| {
            let mount = mounts.iter().find(|mount| mount.kind == "cgroup2")?;
            Some(mount.path.join(path.strip_prefix(&mount.root).ok()?).join(&name))
        });
        if let Some(place) = &beside {
            places.push((mount_name(place, mounts), place.clone()));
        }
        Self { groups: Some(groups), beside, places, id, owner }
    }

    fn make(&mut self) -> Result<()> {
        // Another sandbox that ends may remove the shared folder between our two mkdir(2) calls.
        let mut tries = 3;
        while let Some(Err(error)) = self.groups.as_ref().map(Cgroup::create) {
            tries -= 1;
            if tries == 0 {
                return Err(explain(&error)).context(
                    "cannot make control groups: mkdir (in a container, /sys/fs/cgroup must be \
                     writable; a sandbox of `ambit run` has a read-only one and cannot run another)",
                );
            }
        }
        // This group only adds pressure files, so a failure is ignored.
        if let Some(place) = self.beside.take_if(|place| std::fs::create_dir_all(place).is_err()) {
            self.places.retain(|(_, other)| *other != place);
        }
        Ok(())
    }

    /// Puts the calling process into the groups.
    pub(super) fn join(&self) -> Result<()> {
        let pid = u64::from(std::process::id());
        if let Some(groups) = &self.groups {
            groups
                .add_task_by_tgid(CgroupPid::from(pid))
                .map_err(|error| explain(&error))
                .context("cannot enter the sandbox's control groups")?;
        }
        if let Some(place) = &self.beside {
            let file = place.join("cgroup.procs");
            std::fs::write(&file, pid.to_string())
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// The sandbox's name, which is the last part of the groups' paths.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// For each group, the name of its mount below `/sys/fs/cgroup`, and its path.
    pub(super) fn places(&self) -> &[(String, PathBuf)] {
        &self.places
    }

    /// Removes groups of sandboxes whose `ambit run` was killed. A group with processes in it
    /// cannot be removed, so a wrong guess does no harm.
    fn remove_leftovers(&self) {
        for family in self.places.iter().filter_map(|(_, place)| place.parent()) {
            let Ok(entries) = std::fs::read_dir(family) else { continue };
            for entry in entries.flatten() {
                let alive = entry
                    .file_name()
                    .to_str()
                    .and_then(parse_owner)
                    .is_none_or(|pid| Path::new(&format!("/proc/{pid}")).exists());
                if !alive {
                    let _ = remove(&entry.path());
                }
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Children of the process that made it have a copy of this value.
        if std::process::id() != self.owner {
            return;
        }
        // Workers in these groups end soon after the sandbox.
        let until = Instant::now() + WORKER_TIMEOUT;
        for (_, place) in &self.places {
            while place.exists() && !empty(place) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            if let Err(error) = remove(place) {
                let place = place.display();
                output::complain(format_args!("ambit: cannot remove {place}: {error}"));
            }
            // Succeeds for the last sandbox only: the folder is not empty before.
            if let Some(family) = place.parent() {
                let _ = std::fs::remove_dir(family);
            }
        }
    }
}

/// Our own groups.
struct Own {
    /// By controller.
    legacy: HashMap<String, String>,
    unified: Option<PathBuf>,
    /// True if only those of v1 are here that an ordinary user may make groups in.
    is_delegated: bool,
}

/// The v1 hierarchies of these controllers.
#[derive(Debug)]
struct Delegated {
    controllers: Vec<String>,
}

impl Hierarchy for Delegated {
    fn subsystems(&self) -> Vec<Subsystem> {
        let mut all = V1::new().subsystems();
        all.retain(|subsystem| self.controllers.contains(&subsystem.controller_name()));
        all
    }

    fn root(&self) -> PathBuf {
        V1::new().root()
    }

    fn root_control_group(&self) -> Cgroup {
        V1::new().root_control_group()
    }

    fn parent_control_group(&self, path: &str) -> Cgroup {
        V1::new().parent_control_group(path)
    }

    fn v2(&self) -> bool {
        false
    }
}

impl Own {
    /// Leaves those that this user may make groups in.
    fn keep_delegated(&mut self, mounts: &[Mounted]) {
        self.is_delegated = true;
        let places = V1::new().subsystems();
        self.legacy.retain(|controller, path| {
            places.iter().filter(|subsystem| subsystem.controller_name() == *controller).any(
                |subsystem| {
                    let below = below_mount(path, controller);
                    let below = below.trim_start_matches('/');
                    rootless::is_delegated(&subsystem.to_controller().path().join(below))
                },
            )
        });
        self.unified = self.unified.take().filter(|path| {
            let mount = mounts.iter().find(|mount| mount.kind == "cgroup2");
            let below =
                |mount: &Mounted| Some(mount.path.join(path.strip_prefix(&mount.root).ok()?));
            mount.and_then(below).is_some_and(|group| rootless::is_delegated(&group))
        });
    }
}

fn own_paths() -> Result<Own> {
    let mut legacy = cgroups_rs::fs::cgroup::get_cgroups_relative_paths()
        .map_err(|error| explain(&error))
        .context("cannot read our own control groups")?;
    let unified = legacy.remove("").map(PathBuf::from);
    Ok(Own { legacy, unified, is_delegated: false })
}

/// Returns a group's path below its hierarchy's mount point, which in a container may not be the
/// root of the hierarchy.
fn below_mount(path: &str, controller: &str) -> String {
    let mount = V1::new();
    let top = cgroups_rs::fs::Hierarchy::subsystems(&mount)
        .into_iter()
        .find(|subsystem| subsystem.controller_name() == controller)
        .map(|subsystem| subsystem.to_controller().base().to_owned());
    let path = Path::new(path);
    let below = top.as_deref().and_then(|top| path.strip_prefix(top).ok());
    below.unwrap_or(path).to_string_lossy().into_owned()
}

/// Returns the name of the mount below `/sys/fs/cgroup` that a group is on.
fn mount_name(place: &Path, mounts: &[Mounted]) -> String {
    mounts
        .iter()
        .filter(|mount| mount.kind.starts_with("cgroup") && place.starts_with(&mount.path))
        .filter_map(|mount| mount.path.file_name())
        .next_back()
        .map_or_else(|| "cgroup".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn parse_owner(name: &str) -> Option<u32> {
    name.strip_prefix("run-")?.split('-').next()?.parse().ok()
}

/// Removes a group and the groups below it. A group that does not exist is no error.
fn remove(place: &Path) -> io::Result<()> {
    match std::fs::read_dir(place) {
        Ok(entries) => {
            for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
                remove(&entry.path())?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    // The kernel empties a group some time after its last process was reaped.
    let mut tries = 50;
    loop {
        match std::fs::remove_dir(place) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && tries > 0 && empty(place) =>
            {
                tries -= 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

fn empty(place: &Path) -> bool {
    std::fs::read_to_string(place.join("cgroup.procs")).is_ok_and(|text| text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_in_the_name() {
        assert_eq!(parse_owner("run-42"), Some(42));
        assert_eq!(parse_owner("run-42-1"), Some(42));
        for other in ["run-", "run-x", "lxc.pivot", "42"] {
            assert_eq!(parse_owner(other), None, "{other}");
        }
    }

    #[test]
    fn removing_a_group_that_does_not_exist_is_no_error() {
        remove(Path::new("/nonexistent/group")).unwrap();
    }

    #[test]
    fn a_group_has_the_name_of_its_hierarchys_mount() {
        let mount = |path: &str, kind: &str| Mounted {
            root: "/".into(),
            path: path.into(),
            kind: kind.into(),
            ..Mounted::default()
        };
        let mounts = [
            mount("/sys/fs/cgroup", "tmpfs"),
            mount("/sys/fs/cgroup/cpu,cpuacct", "cgroup"),
            mount("/sys/fs/cgroup/unified", "cgroup2"),
        ];
        let name = |place: &str| mount_name(Path::new(place), &mounts);
        assert_eq!(name("/sys/fs/cgroup/cpu,cpuacct/ambit/run-1"), "cpu,cpuacct");
        assert_eq!(name("/sys/fs/cgroup/unified/ambit/run-1"), "unified");
    }
}
