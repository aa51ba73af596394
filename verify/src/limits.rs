//! The limits that a container has, as its control group files say or as options say.
//!
//! Two control groups count: that of this program, and that of the first process of the pid
//! namespace, which is the container where a service of it has a tighter one.

use crate::files::{Mount, Root, is_below};
use crate::text::{self, Cpus};

/// A bound, and the file or option that it comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Limit<T> {
    pub(crate) value: T,
    pub(crate) from: String,
}

impl<T> Limit<T> {
    /// The name alone: the whole path is among the limits above the table.
    pub(crate) fn file(&self) -> &str {
        self.from.rsplit('/').next().unwrap_or(&self.from)
    }
}

/// What one control group and those above it allow. `None` is no limit that is seen here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    /// Bytes.
    pub(crate) memory: Option<Limit<u64>>,
    /// Bytes: above `memory.high` the kernel slows a container down. Some overlays show it as size.
    pub(crate) high: Option<Limit<u64>>,
    /// Bytes of swap, not counting memory.
    pub(crate) swap: Option<Limit<u64>>,
    /// How many processors' time.
    pub(crate) quota: Option<Limit<f64>>,
    pub(crate) cpuset: Option<Limit<Cpus>>,
    /// The file with the bytes that the control group uses.
    pub(crate) usage: Option<String>,
}

impl Limits {
    /// How many processors are to be seen: the cpuset, capped by the quota rounded up.
    pub(crate) fn cpus(&self) -> Option<Limit<u64>> {
        let quota = self.quota.as_ref().map(|quota| Limit {
            value: (quota.value.ceil() as u64).max(1),
            from: quota.from.clone(),
        });
        let cpuset = self
            .cpuset
            .as_ref()
            .map(|cpuset| Limit { value: cpuset.value.len() as u64, from: cpuset.from.clone() });
        least(quota, cpuset)
    }
}

/// What options say in the place of control group files.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Given {
    pub(crate) memory: Option<u64>,
    pub(crate) swap: Option<u64>,
    pub(crate) quota: Option<f64>,
    pub(crate) cpuset: Option<Cpus>,
}

/// All limits that count here.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    /// Of this program's control group, and of the container's where that is another one.
    pub(crate) limits: Vec<Limits>,
    /// The folder with the container's own `cpu.pressure` and so on; the root's on a machine itself.
    pub(crate) pressure: Option<String>,
    /// Whether this is the machine's first pid namespace: no container.
    pub(crate) is_machine: bool,
    /// In which version of cgroup they were found, for people.
    pub(crate) version: &'static str,
}

/// The first pid namespace of a machine (`PROC_PID_INIT_INO`).
pub(crate) const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

impl Bounds {
    pub(crate) fn read(root: &Root, mounts: &[Mount], given: &Given) -> Self {
        let own = root.read("/proc/self/cgroup").unwrap_or_default();
        let mut limits = vec![Group::new(root, mounts, &own).limits()];
        let is_machine = root.link("/proc/self/ns/pid").as_deref() == Some(FIRST_PID_NAMESPACE);
        // On a machine itself, the first process is in no container.
        let first = if is_machine { Some("0::/".into()) } else { first_process(root) };
        if let Some(first) = first.as_ref().filter(|&first| !is_machine && *first != own.trim_end())
        {
            limits.push(Group::new(root, mounts, first).limits());
        }
        let pressure = Group::new(root, mounts, first.as_ref().unwrap_or(&own)).pressure();
        for limits in &mut limits {
            let option = |name: &str| format!("--{name}");
            let Given { memory, swap, quota, cpuset } = given;
            if let Some(value) = *memory {
                limits.memory = Some(Limit { value, from: option("memory") });
                limits.high = None;
            }
            if let Some(value) = *swap {
                limits.swap = Some(Limit { value, from: option("swap") });
            }
            if let Some(value) = *quota {
                limits.quota = Some(Limit { value, from: option("cpus") });
            }
            if let Some(value) = cpuset.clone() {
                limits.cpuset = Some(Limit { value, from: option("cpuset") });
            }
        }
        let kinds = ["cgroup", "cgroup2"].map(|kind| mounts.iter().any(|mount| mount.kind == kind));
        let version = match kinds {
            [true, true] => "cgroup v1 and v2",
            [true, false] => "cgroup v1",
            [false, true] => "cgroup v2",
            [false, false] => "no control group files",
        };
        Self { limits, pressure, is_machine, version }
    }

    /// The container's own control group.
    pub(crate) fn container(&self) -> &Limits {
        &self.limits[self.limits.len() - 1]
    }
}

/// The control group of the container: of its first process, before systemd divided it.
fn first_process(root: &Root) -> Option<String> {
    let text = root.read("/proc/1/cgroup").ok()?;
    let lines: Vec<_> = text.lines().map(|line| line.trim_end_matches("init.scope")).collect();
    Some(lines.join("\n"))
}

/// The visible folders of one control group in the hierarchy of one controller, own folder first.
struct Folders {
    folders: Vec<String>,
    v2: bool,
}

/// A control group as its `/proc/PID/cgroup` names it.
struct Group<'a> {
    root: &'a Root,
    mounts: &'a [Mount],
    text: &'a str,
}

impl<'a> Group<'a> {
    fn new(root: &'a Root, mounts: &'a [Mount], text: &'a str) -> Self {
        Self { root, mounts, text }
    }

    fn folders(&self, controller: &str) -> Option<Folders> {
        let named = |name: &str| {
            let mut lines = self.text.lines().map(|line| line.splitn(3, ':').skip(1));
            lines.find_map(|mut words| {
                let controllers = words.next()?;
                controllers.split(',').any(|one| one == name).then(|| words.next()).flatten()
            })
        };
        let v1 = named(controller).and_then(|path| {
            let is = |mount: &&Mount| {
                mount.kind == "cgroup" && mount.options.split(',').any(|one| one == controller)
            };
            Some(Folders { folders: self.chain(path, is)?, v2: false })
        });
        v1.or_else(|| {
            let folders = self.chain(named("")?, |mount| mount.kind == "cgroup2")?;
            Some(Folders { folders, v2: true })
        })
    }

    /// From the folder of a control group up to the mount. Where the group is outside of what is
    /// mounted, which is so for a process that entered the container from outside, that is the mount
    /// alone: the container's own control group.
    fn chain(&self, path: &str, is: impl Fn(&&Mount) -> bool) -> Option<Vec<String>> {
        let candidates: Vec<_> = self.mounts.iter().filter(is).collect();
        let inside = candidates.iter().find(|mount| is_below(path, &mount.root));
        let mount = inside.or(candidates.first())?;
        let below = match inside {
            Some(mount) if !path.contains("/..") => &path[mount.root.trim_end_matches('/').len()..],
            _ => "",
        };
        let mut folder = format!("{}{}", mount.point, below).trim_end_matches('/').to_owned();
        let mut folders = Vec::new();
        loop {
            folders.push(folder.clone());
            if folder.len() <= mount.point.trim_end_matches('/').len() {
                break;
            }
            folder.truncate(folder.rfind('/').unwrap_or(0));
        }
        Some(folders)
    }

    fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        if let Some(Folders { folders, v2 }) = self.folders("memory") {
            let least_of =
                |file: &str| folders.iter().fold(None, |l, f| least(l, self.bytes(f, file)));
            if v2 {
                limits.memory = least_of("memory.max");
                limits.high = least_of("memory.high");
                limits.swap = least_of("memory.swap.max");
                limits.usage = self.first(&folders, "memory.current");
            } else {
                let above = |key| self.hierarchical(&folders[0], key);
                limits.memory =
                    least(least_of("memory.limit_in_bytes"), above("hierarchical_memory_limit"));
                let both = least(
                    least_of("memory.memsw.limit_in_bytes"),
                    above("hierarchical_memsw_limit"),
                );
                limits.swap = limits.memory.as_ref().zip(both).map(|(memory, both)| Limit {
                    value: both.value.saturating_sub(memory.value),
                    from: format!("{} less the memory", both.from),
                });
                limits.usage = self.first(&folders, "memory.usage_in_bytes");
            }
        }
        if let Some(Folders { folders, v2 }) = self.folders("cpu") {
            let quota =
                |folder: &String| if v2 { self.quota_v2(folder) } else { self.quota_v1(folder) };
            limits.quota = folders.iter().fold(None, |limit, folder| least(limit, quota(folder)));
        }
        if let Some(Folders { folders, v2 }) = self.folders("cpuset") {
            let names: &[&str] = if v2 {
                &["cpuset.cpus.effective"]
            } else {
                &["cpuset.effective_cpus", "cpuset.cpus"]
            };
            let files =
                names.iter().flat_map(|name| folders.iter().map(move |f| format!("{f}/{name}")));
            limits.cpuset = files.into_iter().find_map(|file| {
                let value =
                    self.root.parse(&file, text::list).ok().filter(|set| !set.is_empty())?;
                Some(Limit { value, from: file })
            });
        }
        limits
    }

    fn pressure(&self) -> Option<String> {
        let Folders { folders, v2: true } = self.folders("")? else { return None };
        self.first(&folders, "cpu.pressure").map(|_| folders[0].clone())
    }

    fn first(&self, folders: &[String], file: &str) -> Option<String> {
        let path = format!("{}/{file}", folders.first()?);
        self.root.read(&path).is_ok().then_some(path)
    }

    /// A number of bytes; `max` and the largest numbers of v1 are no limit.
    fn bytes(&self, folder: &str, file: &str) -> Option<Limit<u64>> {
        let from = format!("{folder}/{file}");
        let value = self.root.read(&from).ok()?.trim().parse().ok()?;
        (value < UNLIMITED).then_some(Limit { value, from })
    }

    /// v1 tells of limits above what is mounted.
    fn hierarchical(&self, folder: &str, key: &str) -> Option<Limit<u64>> {
        let from = format!("{folder}/memory.stat");
        let text = self.root.read(&from).ok()?;
        let value = *text::pairs(&text)?.get(key)?;
        (value < UNLIMITED).then(|| Limit { value, from: format!("{key} in {from}") })
    }

    fn quota_v2(&self, folder: &str) -> Option<Limit<f64>> {
        let from = format!("{folder}/cpu.max");
        let text = self.root.read(&from).ok()?;
        let mut words = text.split_whitespace();
        let (quota, period) = (text::number(words.next())?, text::number(words.next())?);
        (period > 0.0).then(|| Limit { value: quota / period, from })
    }

    fn quota_v1(&self, folder: &str) -> Option<Limit<f64>> {
        // -1 is no limit, and no number to this.
        let number = |file| {
            self.root.parse(&format!("{folder}/{file}"), |text| text::number(Some(text.trim())))
        };
        let (quota, period) = (number("cpu.cfs_quota_us").ok()?, number("cpu.cfs_period_us").ok()?);
        let from = format!("{folder}/cpu.cfs_quota_us");
        (quota > 0.0 && period > 0.0).then(|| Limit { value: quota / period, from })
    }
}

/// `PAGE_COUNTER_MAX` is a little below 2^63.
const UNLIMITED: u64 = 1 << 62;

/// The tighter one; the first where both are the same.
fn least<T: PartialOrd>(one: Option<Limit<T>>, other: Option<Limit<T>>) -> Option<Limit<T>> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.value < one.value { other } else { one }),
        (one, other) => one.or(other),
    }
}
