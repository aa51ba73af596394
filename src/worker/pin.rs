//! What the caller is, taken from its `/proc/<tid>` while it waits in its system call.
//!
//! Whoever calls this makes sure afterwards that the caller still waits: only then what was found
//! under a number is the caller's. `/proc/self/cgroup` paths are looked up below the hierarchies'
//! mount points of the host.

use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags};

use super::caller::{Caller, Facts};
use super::failure::{Failure, OrFail};

/// Namespaces besides users and mounts, in an order in which they can be entered. A kernel may
/// lack some.
const OTHERS: [(&str, i32); 6] = [
    ("ns/pid", CloneFlags::CLONE_NEWPID.bits()),
    ("ns/net", CloneFlags::CLONE_NEWNET.bits()),
    ("ns/ipc", CloneFlags::CLONE_NEWIPC.bits()),
    ("ns/uts", CloneFlags::CLONE_NEWUTS.bits()),
    ("ns/cgroup", CloneFlags::CLONE_NEWCGROUP.bits()),
    ("ns/time", 0x80),
];

impl Caller {
    /// Reads everything. `proc` is the caller's `/proc/<tid>`.
    ///
    /// # Errors
    /// The caller is gone, or it has something that cannot be entered.
    pub fn pin(proc: BorrowedFd<'_>) -> Result<Self, Failure> {
        let open = |name: &str, flags: OFlags| {
            rustix::fs::openat(proc, name, flags | OFlags::CLOEXEC, Mode::empty())
        };
        let text = |name: &str| -> Result<String, Failure> {
            let mut text = String::new();
            let file = open(name, OFlags::RDONLY).or_fail(format!("open of {name}"))?;
            File::from(file).take(1 << 16).read_to_string(&mut text).or_fail(name)?;
            Ok(text)
        };
        let status = text("status")?;
        let (users, groups) = (text("uid_map")?, text("gid_map")?);
        let unmapped = || Failure::new(Errno::EPERM, "the caller has ids that it does not have");
        let inside = |map: &str, id: u32| Map(map).inside(id).ok_or_else(unmapped);
        let [uid, gid] = ["Uid:", "Gid:"].map(|label| effective(&status, label));
        let supplementary = numbers(&status, "Groups:").filter_map(|id| Map(&groups).inside(id));
        let mut others = Vec::new();
        for (name, kind) in OTHERS {
            match open(name, OFlags::RDONLY) {
                Ok(namespace) => others.push((kind, namespace)),
                Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(errno).or_fail(format!("open of {name}")),
            }
        }
        Ok(Self {
            users: open("ns/user", OFlags::RDONLY).or_fail("open of ns/user")?,
            mounts: open("ns/mnt", OFlags::RDONLY).or_fail("open of ns/mnt")?,
            others,
            root: open("root", OFlags::PATH).or_fail("open of root")?,
            folder: open("cwd", OFlags::PATH).or_fail("open of cwd")?,
            groups: control_groups(&text("cgroup")?)?,
            facts: Facts {
                ids: (inside(&users, uid)?, inside(&groups, gid)?),
                supplementary: supplementary.collect(),
                effective: hexadecimal(&status, "CapEff:"),
                bounding: hexadecimal(&status, "CapBnd:"),
                no_new_privs: numbers(&status, "NoNewPrivs:").next() == Some(1),
                umask: octal(&status, "Umask:"),
                label: text("attr/apparmor/current").ok().and_then(|text| profile(&text)),
                limits: limits(&text("limits")?),
                oom_score: text("oom_score_adj")?.trim().parse().unwrap_or(0),
            },
        })
    }

    /// An owner of the container, as the host numbers it.
    #[must_use]
    pub fn host_id(map: &str, id: u32) -> Option<u32> {
        Map(map).outside(id)
    }
}

/// The text of `/proc/<tid>/uid_map`, read by the host: inside, outside, count.
struct Map<'a>(&'a str);

impl Map<'_> {
    fn ranges(&self) -> impl Iterator<Item = [u32; 3]> {
        self.0.lines().filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?])
        })
    }

    fn inside(&self, id: u32) -> Option<u32> {
        self.ranges().find_map(|[inside, outside, count]| {
            id.checked_sub(outside).filter(|&at| at < count).and_then(|at| inside.checked_add(at))
        })
    }

    fn outside(&self, id: u32) -> Option<u32> {
        self.ranges().find_map(|[inside, outside, count]| {
            id.checked_sub(inside).filter(|&at| at < count).and_then(|at| outside.checked_add(at))
        })
    }
}

fn value<'a>(status: &'a str, label: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(label)).unwrap_or_default().trim()
}

fn numbers<'a>(status: &'a str, label: &str) -> impl Iterator<Item = u32> + 'a {
    value(status, label).split_whitespace().filter_map(|number| number.parse().ok())
}

/// The second of four.
fn effective(status: &str, label: &str) -> u32 {
    numbers(status, label).nth(1).unwrap_or(u32::MAX)
}

fn hexadecimal(status: &str, label: &str) -> u64 {
    u64::from_str_radix(value(status, label), 16).unwrap_or(0)
}

fn octal(status: &str, label: &str) -> u32 {
    u32::from_str_radix(value(status, label), 8).unwrap_or(0o022)
}

/// `/proc/<tid>/limits`, in the order of the kernel's numbers.
fn limits(text: &str) -> Vec<(i32, u64, u64)> {
    let number = |word: &str| match word {
        "unlimited" => Some(u64::MAX),
        word => word.parse().ok(),
    };
    let lines = text.lines().skip(1).enumerate();
    lines
        .filter_map(|(index, line)| {
            // A name of 25 columns, then soft and hard.
            let mut words = line.get(25..)?.split_whitespace();
            let (soft, hard) = (number(words.next()?)?, number(words.next()?)?);
            Some((i32::try_from(index).ok()?, soft, hard))
        })
        .collect()
}

/// The profile of `attr/apparmor/current`, such as `lxc-container-default-cgns (enforce)`.
fn profile(text: &str) -> Option<String> {
    let text = text.trim_end_matches(['\n', '\0']);
    let name = text.rsplit_once(" (").map_or(text, |(name, _)| name);
    (!name.is_empty() && name != "unconfined").then(|| name.to_owned())
}

/// `cgroup.procs` of each of its control groups, open for writing.
pub(super) fn control_groups(text: &str) -> Result<Vec<OwnedFd>, Failure> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").or_fail("mountinfo")?;
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Some(folder) = folder(&mounts, controllers, path) else { continue };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = folder.join("cgroup.procs");
        let opened = rustix::fs::openat(CWD, &file, flags, Mode::empty());
        found.push(opened.or_fail(format!("open of {}", file.display()))?);
    }
    Ok(found)
}

/// Where cgroup v2 is mounted, from its top on.
pub(super) fn top_of_cgroup2() -> Option<PathBuf> {
    folder(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, "", "/")
}

/// Where a control group is in the host's files. A hierarchy that is not mounted has no limits
/// that anybody could have set.
fn folder(mounts: &str, controllers: &str, path: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let (root, point) = {
            let mut fields = mount.split(' ').skip(3);
            (fields.next()?, fields.next()?)
        };
        let mut fields = filesystem.split(' ');
        let (kind, _, options) = (fields.next()?, fields.next()?, fields.next()?);
        let fits = match (kind, controllers) {
            ("cgroup2", "") => true,
            ("cgroup", controllers) if !controllers.is_empty() => {
                controllers.split(',').all(|one| options.split(',').any(|option| option == one))
            }
            _ => false,
        };
        let below = if root == "/" { Some(path) } else { path.strip_prefix(root) };
        below.filter(|_| fits).map(|below| PathBuf::from(format!("{point}{below}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_both_ways() {
        let map = Map("         0     100000      65536\n 70000 5 1\n");
        assert_eq!(
            (map.inside(100_000), map.inside(165_536), map.inside(5)),
            (Some(0), None, Some(70_000))
        );
        assert_eq!((map.outside(65_535), map.outside(65_536)), (Some(165_535), None));
    }

    #[test]
    fn limits_are_numbered_as_the_kernel_does() {
        let all = limits(&std::fs::read_to_string("/proc/self/limits").unwrap());
        assert_eq!(all.len(), 16);
        let (soft, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(all[libc::RLIMIT_NOFILE as usize], (7, soft, hard));
    }

    #[test]
    fn profiles_are_named_without_their_mode() {
        assert_eq!(profile("lxc-default (enforce)\n"), Some("lxc-default".into()));
        assert_eq!(profile("a//&:b:c (mixed)"), Some("a//&:b:c".into()));
        assert_eq!((profile("unconfined\n"), profile("")), (None, None));
    }

    #[test]
    fn control_groups_are_found_below_their_mounts() {
        let mounts = "1 2 0:3 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      4 2 0:5 /a /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      6 2 0:7 / /sys/fs/cgroup/systemd rw - cgroup none rw,xattr,name=systemd\n";
        let place = |controllers, path| folder(mounts, controllers, path);
        assert_eq!(place("cpu,cpuacct", "/x"), Some("/sys/fs/cgroup/cpu,cpuacct/x".into()));
        assert_eq!(place("", "/a/b"), Some("/sys/fs/cgroup/unified/b".into()));
        assert_eq!(place("", "/c"), None, "outside of what is mounted");
        assert_eq!(place("name=systemd", "/"), Some("/sys/fs/cgroup/systemd/".into()));
        assert_eq!(place("memory", "/"), None);
    }
}
