//! Limited cgroups made by hand, on v1, v2 and hybrid hosts: plain folders and writes, so that
//! the tests do not lean on code that the product uses too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::command;

/// One mounted hierarchy.
#[derive(Debug, Clone)]
pub(crate) struct Hierarchy {
    root: PathBuf,
    v2: bool,
    controllers: Vec<String>,
}

impl Hierarchy {
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn is_v2(&self) -> bool {
        self.v2
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// All of them, as /proc/self/mountinfo lists them.
pub(crate) fn hierarchies() -> Vec<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut all = Vec::new();
    for line in mounts.lines() {
        let (Some((before, after)), words) = (line.split_once(" - "), line.split(' ')) else {
            continue;
        };
        let root = PathBuf::from(words.clone().nth(4).unwrap());
        let options = after.rsplit(' ').next().unwrap();
        match after.split(' ').next() {
            Some("cgroup2") => all.push(Hierarchy {
                controllers: fs::read_to_string(root.join("cgroup.controllers"))
                    .unwrap_or_default()
                    .split_whitespace()
                    .map(|name| if name == "io" { "blkio" } else { name }.to_owned())
                    .collect(),
                root,
                v2: true,
            }),
            Some("cgroup") if !before.is_empty() => all.push(Hierarchy {
                root,
                v2: false,
                controllers: options.split(',').map(str::to_owned).collect(),
            }),
            _ => {}
        }
    }
    assert!(!all.is_empty(), "no cgroup hierarchy is mounted");
    all
}

/// Whether memory is limited by cgroup v2 here.
pub(crate) fn memory_is_v2() -> bool {
    hierarchies().iter().any(|h| h.v2 && h.has("memory"))
}

/// What a cgroup may have; nothing is limited by default.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits<'a> {
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Bytes beyond memory.
    pub(crate) swap: Option<u64>,
    /// Microseconds in each 100 ms.
    pub(crate) quota: Option<u64>,
    /// A list of processors.
    pub(crate) cpuset: Option<&'a str>,
}

/// A cgroup of the same name in every hierarchy; removed in the end.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: String,
    places: Vec<(Hierarchy, PathBuf)>,
}

/// Below which cgroup the tests may make theirs: `nsrun` says so; guests are all ours.
pub(crate) fn base() -> String {
    std::env::var("AMBIT_TEST_CGROUP").unwrap_or_default()
}

impl Cgroup {
    /// Makes a cgroup.
    #[track_caller]
    pub(crate) fn new(name: &str, limits: Limits<'_>) -> Self {
        Self::make(format!("{}/{name}", base()), limits)
    }

    /// Makes one below this one, which then can hold no process on v2.
    #[track_caller]
    pub(crate) fn child(&self, name: &str, limits: Limits<'_>) -> Self {
        for (_, dir) in self.places.iter().filter(|(hierarchy, _)| hierarchy.v2) {
            let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap();
            for controller in controllers.split_whitespace() {
                write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
            }
        }
        Self::make(format!("{}/{name}", self.path), limits)
    }

    /// Moves its processes into a new child, as a container does that divides itself. The child
    /// has no controllers on v2 until another one is made.
    #[track_caller]
    pub(crate) fn divide(&self, name: &str) -> Self {
        let child = Self::make(format!("{}/{name}", self.path), Limits::default());
        for ((_, from), (_, to)) in self.places.iter().zip(&child.places) {
            for pid in fs::read_to_string(from.join("cgroup.procs")).unwrap().lines() {
                write(&to.join("cgroup.procs"), pid);
            }
        }
        child
    }

    #[track_caller]
    fn make(path: String, limits: Limits<'_>) -> Self {
        let mut cgroup = Self { places: Vec::new(), path };
        for hierarchy in hierarchies() {
            let dir = hierarchy.root.join(&cgroup.path[1..]);
            fs::create_dir(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
            cgroup.places.push((hierarchy.clone(), dir.clone()));
            if !hierarchy.v2 && hierarchy.has("cpuset") {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let parent = fs::read_to_string(dir.parent().unwrap().join(file)).unwrap();
                    write(&dir.join(file), parent.trim());
                }
            }
            hierarchy.limit(&dir, limits);
        }
        cgroup
    }

    /// Changes its limits.
    #[track_caller]
    pub(crate) fn set(&self, limits: Limits<'_>) {
        for (hierarchy, dir) in &self.places {
            hierarchy.limit(dir, limits);
        }
    }

    /// Its folders.
    pub(crate) fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.places.iter().map(|(_, dir)| dir.as_path())
    }

    /// The first process of the pid namespace that was started in it.
    #[track_caller]
    pub(crate) fn init(&self) -> i32 {
        let text = fs::read_to_string(self.dirs().next().unwrap().join("cgroup.procs")).unwrap();
        let is_init = |pid: &&str| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let own = status.lines().find(|line| line.starts_with("NSpid:"));
            own.is_some_and(|line| line.ends_with("\t1"))
        };
        text.lines().find(is_init).unwrap_or_else(|| panic!("no init in {text:?}")).parse().unwrap()
    }

    /// A shell script that runs in this cgroup, in the pid namespace of the test.
    pub(crate) fn run(&self, script: &str) -> Command {
        let mut shell = command::quiet("sh");
        let dirs: Vec<_> = self.dirs().map(|dir| dir.to_str().unwrap()).collect();
        let script =
            format!("for d in $DIRS; do echo 0 >$d/cgroup.procs || exit 99; done; {script}");
        shell.env("DIRS", dirs.join(" ")).args(["-c", &script]);
        shell
    }

    /// A shell script that runs in this cgroup, as the first process of a pid namespace.
    pub(crate) fn script(&self, script: &str) -> Command {
        self.joined(script, "unshare --pid --fork --kill-child")
    }

    /// One that runs in this cgroup and the pid namespace of the tests.
    pub(crate) fn script_of_host(&self, script: &str) -> Command {
        self.joined(script, "")
    }

    fn joined(&self, script: &str, by: &str) -> Command {
        let mut shell = command::quiet("sh");
        let dirs: Vec<_> = self.dirs().map(|dir| dir.to_str().unwrap()).collect();
        shell.env("DIRS", dirs.join(" ")).env("SCRIPT", script).env("BY", by).args([
            "-c",
            "for d in $DIRS; do echo 0 >$d/cgroup.procs || exit 99; done
             exec $BY sh -c \"$SCRIPT\"",
        ]);
        shell
    }
}

impl Hierarchy {
    fn limit(&self, dir: &Path, limits: Limits<'_>) {
        let set = |controller: &str, file: &str, value: Option<String>| {
            if let (true, Some(value)) = (self.has(controller), value) {
                write(&dir.join(file), &value);
            }
        };
        let text = |n: Option<u64>| n.map(|n| n.to_string());
        if self.v2 {
            set("memory", "memory.max", text(limits.memory));
            set("memory", "memory.swap.max", text(limits.swap));
            set("cpu", "cpu.max", limits.quota.map(|quota| format!("{quota} 100000")));
        } else {
            set("memory", "memory.limit_in_bytes", text(limits.memory));
            // v1 limits the sum of both.
            let sum = limits.swap.and_then(|swap| Some(limits.memory? + swap));
            set("memory", "memory.memsw.limit_in_bytes", text(sum));
            set("cpu", "cpu.cfs_quota_us", text(limits.quota));
        }
        set("cpuset", "cpuset.cpus", limits.cpuset.map(str::to_owned));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for (_, dir) in &self.places {
            // The kernel needs a moment to forget the last process.
            for _ in 0..200 {
                if remove(dir) || !dir.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Removes a cgroup, with those that an engine left in it.
fn remove(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for entry in below {
        remove(&entry.path());
    }
    fs::remove_dir(dir).is_ok()
}

#[track_caller]
fn write(file: &Path, value: &str) {
    fs::write(file, value)
        .unwrap_or_else(|e| panic!("cannot write {value:?} to {}: {e}", file.display()));
}

/// The cgroup of this name below another one.
#[track_caller]
pub(crate) fn find(top: &Path, name: &str) -> PathBuf {
    let below = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
        entries.filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        if folder.file_name().is_some_and(|this| this == name) {
            return folder;
        }
        folders.extend(below(&folder));
    }
    panic!("no cgroup {name} below {}", top.display());
}
