//! The mounted cgroup hierarchies: v2, v1, or controllers on both (hybrid).
//!
//! The mounts found at start are cloned into detached mounts of this process (`private_mount`), so
//! later mounts over their files have no effect. Start reading at [`Hierarchies::discover`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambit_kernel::text::mountinfo::{self, Mounted};
use ambit_kernel::text::scan;

use crate::Error;
pub use crate::controller::Controller;
use crate::membership::Membership;
use crate::private_mount;

/// The root of one mounted hierarchy.
#[derive(Debug, Clone)]
pub struct Mount(Arc<Root>);

#[derive(Debug)]
struct Root {
    directory: OwnedFd,
    /// The cgroup that the mount point shows; `/` unless a subtree was bind-mounted.
    shows: Box<str>,
    path: PathBuf,
}

impl Mount {
    fn open(path: PathBuf, shows: &str, is_fixture: bool) -> Result<Self, Error> {
        let open = if is_fixture { private_mount::folder } else { private_mount::copy };
        let directory = open(&path)
            .map_err(|source| Error::Read { file: path.display().to_string(), source })?;
        Ok(Self(Arc::new(Root { directory, shows: shows.into(), path })))
    }

    /// The descriptor of its root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.0.directory.as_fd()
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns the cgroup path of a folder below the root of this mount, as `/proc/<pid>/cgroup`
    /// shows it.
    pub fn cgroup(&self, relative: &str) -> String {
        format!("{}/{relative}", self.0.shows.trim_end_matches('/'))
    }

    /// A cgroup path of `/proc/<pid>/cgroup` relative to the root of this mount; `None` when
    /// the mount does not show it.
    pub fn relative<'p>(&self, cgroup: &'p str) -> Option<&'p str> {
        let below = cgroup.strip_prefix(self.0.shows.trim_end_matches('/'))?;
        if !below.is_empty() && !below.starts_with('/') {
            return None;
        }
        let below = below.trim_start_matches('/');
        (!below.split('/').any(|part| part == "..")).then_some(below)
    }
}

/// All mounted hierarchies, by controller.
#[derive(Debug, Clone, Default)]
pub struct Hierarchies {
    /// The unified hierarchy, and which controllers live there.
    pub unified: Option<(Mount, Vec<Controller>)>,
    /// Controllers on cgroup v1.
    pub legacy: Vec<(Controller, Mount)>,
    /// The freezer of cgroup v1, which accounts for nothing.
    pub freezer: Option<Mount>,
}

impl Hierarchies {
    /// Finds the hierarchies mounted in the daemon's mount namespace.
    pub fn discover() -> Result<Self, Error> {
        let file = "/proc/self/mountinfo";
        let text =
            std::fs::read(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
        Self::from_mountinfo(&text, Path::new("/"))
    }

    /// Takes the hierarchies from the text of a `mountinfo`, with all mount points below
    /// `root` (`/`, or the folder of a fixture).
    pub fn from_mountinfo(text: &[u8], root: &Path) -> Result<Self, Error> {
        let mut mounts: Vec<Mounted> = Vec::new();
        for mount in mountinfo::all(text) {
            // A later mount on the same mount point hides the earlier one.
            match mounts.iter_mut().find(|other| other.path == mount.path) {
                Some(covered) => *covered = mount,
                None => mounts.push(mount),
            }
        }
        // A hierarchy may be mounted more than once; a mount of its root is preferred. A mount from
        // outside of this cgroup namespace (`/..`) does not match the paths in
        // `/proc/<pid>/cgroup`.
        mounts.sort_by_key(|mount| (mount.root != Path::new("/"), mount.root.starts_with("/..")));
        let is_fixture = root != Path::new("/");
        let mut found = Self::default();
        for mount in mounts {
            let path = root.join(mount.path.strip_prefix("/").unwrap_or(&mount.path));
            let shows = mount.root.to_string_lossy();
            match mount.kind.as_str() {
                "cgroup2" if found.unified.is_none() => {
                    let mount = Mount::open(path, &shows, is_fixture)?;
                    let controllers = unified_controllers(&mount)?;
                    found.unified = Some((mount, controllers));
                }
                "cgroup" => {
                    let has = |name| mount.options.split(',').any(|option| option == name);
                    let named = Controller::ALL.into_iter().filter(|c| has(c.legacy_name()));
                    let new: Vec<_> = named.filter(|&c| found.legacy_mount(c).is_none()).collect();
                    let is_freezer = has("freezer") && found.freezer.is_none();
                    if !new.is_empty() {
                        let mount = Mount::open(path, &shows, is_fixture)?;
                        found.freezer = found.freezer.or_else(|| is_freezer.then(|| mount.clone()));
                        found.legacy.extend(new.into_iter().map(|c| (c, mount.clone())));
                    } else if is_freezer {
                        // The freezer accounts for nothing, so a failure is not an error.
                        found.freezer = Mount::open(path, &shows, is_fixture).ok();
                    }
                }
                _ => {}
            }
        }
        if found.unified.is_none() && found.legacy.is_empty() {
            return Err(Error::Parse {
                file: "/proc/self/mountinfo".to_owned(),
                wanted: "a mounted cgroup file system (usually at /sys/fs/cgroup)",
            });
        }
        Ok(found)
    }

    /// The v1 mount of a controller.
    pub fn legacy_mount(&self, controller: Controller) -> Option<&Mount> {
        self.legacy.iter().find(|(name, _)| *name == controller).map(|(_, mount)| mount)
    }

    /// The mount of the unified hierarchy and the cgroup below it.
    pub(crate) fn unified_cgroup<'a>(
        &'a self,
        membership: &'a Membership,
    ) -> Option<(&'a Mount, &'a str)> {
        let (mount, _) = self.unified.as_ref()?;
        Some((mount, mount.relative(membership.unified()?)?))
    }

    /// The v1 mount of a controller and the cgroup below it.
    pub(crate) fn legacy_cgroup<'a>(
        &'a self,
        controller: Controller,
        membership: &'a Membership,
    ) -> Option<(&'a Mount, &'a str)> {
        let mount = self.legacy_mount(controller)?;
        Some((mount, mount.relative(membership.legacy(controller)?)?))
    }

    /// The mount of the hierarchy that has a controller, the cgroup below it, and whether that is
    /// the unified hierarchy.
    pub(crate) fn cgroup_with<'a>(
        &'a self,
        controller: Controller,
        membership: &'a Membership,
    ) -> Option<(&'a Mount, &'a str, bool)> {
        let is_unified = self.is_unified(controller);
        let (mount, cgroup) = if is_unified {
            self.unified_cgroup(membership)?
        } else {
            self.legacy_cgroup(controller, membership)?
        };
        Some((mount, cgroup, is_unified))
    }

    /// True if the unified hierarchy has this controller.
    pub fn is_unified(&self, controller: Controller) -> bool {
        self.unified.as_ref().is_some_and(|(_, controllers)| controllers.contains(&controller))
    }

    /// The cgroup in the hierarchy that has a controller, `/init.scope` cut.
    pub fn path_of<'m>(
        &self,
        controller: Controller,
        membership: &'m Membership,
    ) -> Option<&'m str> {
        if self.is_unified(controller) {
            return membership.unified();
        }
        self.legacy_mount(controller).and_then(|_| membership.legacy(controller))
    }

    /// True if the process is in the root cgroup of every hierarchy with a [`Controller`].
    pub fn has_at_root(&self, membership: &Membership) -> bool {
        Controller::ALL
            .into_iter()
            .all(|controller| self.path_of(controller, membership).is_none_or(|path| path == "/"))
    }

    /// Returns `v1`, `v2` or `hybrid`.
    pub fn layout(&self) -> &'static str {
        match (&self.unified, self.legacy.is_empty()) {
            (Some(_), true) => "v2",
            (Some(_), false) => "hybrid",
            (None, _) => "v1",
        }
    }
}

/// Returns the controllers of the unified hierarchy. Its `cpu.stat` has the processor usage, so
/// `cpuacct` counts as present unless a v1 hierarchy has it.
fn unified_controllers(mount: &Mount) -> Result<Vec<Controller>, Error> {
    let mut text = Vec::new();
    match crate::kernel_file::read_to_end(mount.root(), "cgroup.controllers", &mut text) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            let file = mount.path().join("cgroup.controllers").display().to_string();
            return Err(Error::Read { file, source });
        }
    }
    Ok(listed(&text))
}

fn listed(text: &[u8]) -> Vec<Controller> {
    let mut controllers: Vec<_> = Controller::ALL
        .into_iter()
        .filter(|controller| scan::words(text).any(|word| word == controller.name().as_bytes()))
        .collect();
    if controllers.contains(&Controller::Cpu) {
        controllers.push(Controller::Cpuacct);
    }
    controllers
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(text: &[u8]) {
    assert!(listed(text).len() <= Controller::ALL.len() + 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn found(folders: &[(&str, &'static str)], mounts: &str) -> Hierarchies {
        let files = folders.iter().map(|(at, text)| (format!("{at}/cgroup.controllers"), *text));
        let files: Vec<_> = files.collect();
        fixture::hierarchies(mounts.as_bytes(), &files).1
    }

    #[test]
    fn a_mount_point_may_have_a_blank_in_its_name() {
        let found = found(
            &[("c d/unified", "memory\n")],
            "33 1 0:3 / /c\\040d/unified rw - cgroup2 cgroup2 rw\n",
        );
        assert!(found.is_unified(Controller::Memory));
    }

    #[test]
    fn hybrid_with_cpu_and_cpuacct_apart() {
        let found = found(
            &[("c/cpu", ""), ("c/cpuacct", ""), ("c/unified", "hugetlb\n")],
            "31 1 0:1 / /c/cpu rw - cgroup cgroup rw,cpu\n\
                     32 1 0:2 / /c/cpuacct rw - cgroup cgroup rw,cpuacct\n\
                     33 1 0:3 / /c/unified rw - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(found.layout(), "hybrid");
        assert!(found.legacy_mount(Controller::Cpu).unwrap().path().ends_with("c/cpu"));
        assert!(found.legacy_mount(Controller::Cpuacct).unwrap().path().ends_with("c/cpuacct"));
        assert!(found.legacy_mount(Controller::Memory).is_none());
        assert!(!found.is_unified(Controller::Cpu));
    }

    #[test]
    fn unified_only() {
        let found = found(
            &[("sys/fs/cgroup", "cpuset cpu io memory hugetlb pids\n")],
            "30 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert_eq!(found.layout(), "v2");
        assert!(Controller::ALL.into_iter().all(|controller| found.is_unified(controller)));
    }

    #[test]
    fn a_bind_mounted_subtree_shows_only_its_own_cgroups() {
        let found = found(&[("c", "memory\n")], "30 1 0:1 /docker/ab /c rw - cgroup2 cgroup2 rw\n");
        let (mount, _) = found.unified.unwrap();
        assert_eq!(mount.relative("/docker/ab/x"), Some("x"));
        assert_eq!(mount.relative("/docker/abc"), None);
        assert_eq!(mount.relative("/elsewhere"), None);
        assert_eq!(mount.relative("/docker/ab/../x"), None);
    }

    #[test]
    fn a_mount_of_the_root_is_preferred() {
        let folders = [("pod", "memory\n"), ("outer", "memory\n"), ("c", "memory\n")];
        let lines = [
            "28 1 0:1 / /covered rw - cgroup2 cgroup2 rw",
            "29 1 0:5 / /covered rw - tmpfs tmpfs rw",
            "30 1 0:1 /../.. /outer rw - cgroup2 cgroup2 rw",
            "31 1 0:1 /pod /pod rw - cgroup2 cgroup2 rw",
            "32 1 0:1 / /c rw - cgroup2 cgroup2 rw",
        ];
        for (shown, wanted) in [(5, "c"), (4, "pod"), (3, "outer")] {
            let text = lines[..shown].join("\n");
            let found = found(&folders, &text);
            assert!(found.unified.unwrap().0.path().ends_with(wanted), "{text}");
        }
    }

    #[test]
    fn a_host_without_cgroups_is_an_error() {
        let error = Hierarchies::from_mountinfo(b"", Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("mounted cgroup file system"));
    }
}
