//! `ambit check`: lists the kernel facilities that ambit uses, whether each is available, and what
//! does not work without it. What can be tried is tried, not inferred from a version number.

mod kernel;

use std::fmt;
use std::fs::OpenOptions;

use ambit_sysinfo::KernelFiles;
use ambit_sysinfo::hierarchy::{Controller, Hierarchies};
use rustix::mount::{FsOpenFlags, OpenTreeFlags};

use ambit_kernel::sys;

/// One facility.
#[derive(Debug)]
pub struct Finding {
    name: &'static str,
    /// `Ok` with a remark, or the kernel's error.
    state: Result<String, String>,
    /// Nothing works without it.
    essential: bool,
    /// What does not work without it.
    without: &'static str,
}

impl Finding {
    /// True if it is missing and nothing works without it.
    pub fn is_fatal(&self) -> bool {
        self.essential && self.state.is_err()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            Ok(remark) if remark.is_empty() => write!(f, "ok       {}", self.name),
            Ok(remark) => write!(f, "ok       {}: {remark}", self.name),
            Err(reason) => {
                let word = if self.essential { "MISSING " } else { "missing " };
                write!(f, "{word} {}: {reason}\n         without it: {}", self.name, self.without)
            }
        }
    }
}

/// Tries all facilities.
pub fn all() -> Vec<Finding> {
    let essential = |name, state, without| Finding { name, state, essential: true, without };
    let useful = |name, state, without| Finding { name, state, essential: false, without };
    let mut findings = vec![
        essential("root", root(), "nothing can be mounted or answered; run ambit as root"),
        essential("/dev/fuse", fuse(), "no virtual files; load the module `fuse` (modprobe fuse)"),
        essential(
            "procfs",
            KernelFiles::procfs().map(|_| String::new()).map_err(|e| e.to_string()),
            "nothing is known of any container; mount /proc",
        ),
    ];
    let hierarchies = Hierarchies::discover();
    findings.push(essential(
        "cgroups",
        hierarchies.as_ref().map(|h| h.layout().to_owned()).map_err(ToString::to_string),
        "no limits are known; mount cgroup2 at /sys/fs/cgroup",
    ));
    if let Ok(hierarchies) = &hierarchies {
        for (name, controller, without) in [
            ("memory controller", Controller::Memory, "containers see the machine's memory"),
            ("cpu controller", Controller::Cpu, "quotas are not seen; containers see their cpuset"),
            ("cpu accounting", Controller::Cpuacct, "processors of containers look idle"),
            (
                "cpuset controller",
                Controller::Cpuset,
                "containers see all processors, unless a quota caps them",
            ),
            ("pids controller", Controller::Pids, "threads are counted one by one"),
            ("io controller", Controller::Io, "containers see no disk, and no input and output"),
        ] {
            findings.push(useful(name, place(hierarchies, controller), without));
        }
    }
    findings.extend([
        essential(
            "seccomp user notification",
            seccomp(),
            "no system call can be answered; Linux 5.0 with CONFIG_SECCOMP_FILTER is needed",
        ),
        essential(
            "new mount API (fsopen, open_tree)",
            mount_api(),
            "no virtual files, no `ambit run`; Linux 5.2 is needed",
        ),
        useful("user namespaces", namespace("user"), "`ambit run` needs --no-userns"),
        useful(
            "time namespaces",
            namespace("time"),
            "start times and CLOCK_BOOTTIME inside `ambit run` are the machine's",
        ),
        useful(
            "CAP_SYS_RESOURCE",
            capability(),
            "the limit of open files cannot be raised above its hard limit; harmless",
        ),
    ]);
    findings.extend(kernel::findings());
    findings
}

fn place(hierarchies: &Hierarchies, controller: Controller) -> Result<String, String> {
    if hierarchies.is_unified(controller) {
        Ok("v2".to_owned())
    } else if let Some(mount) = hierarchies.legacy_mount(controller) {
        Ok(format!("v1 at {}", mount.path().display()))
    } else {
        Err("in no mounted hierarchy".to_owned())
    }
}

fn root() -> Result<String, String> {
    if rustix::process::geteuid().is_root() {
        Ok(String::new())
    } else {
        Err(format!("this is user {}", rustix::process::geteuid().as_raw()))
    }
}

fn fuse() -> Result<String, String> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    device.map(|_| String::new()).map_err(|error| error.to_string())
}

fn seccomp() -> Result<String, String> {
    let sizes = sys::seccomp::notification_sizes().map_err(|errno| errno.to_string())?;
    Ok(format!("{} bytes a notification", sizes.seccomp_notif))
}

fn mount_api() -> Result<String, String> {
    let tried = rustix::mount::open_tree(
        rustix::fs::CWD,
        "/",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    );
    tried.map_err(|errno| format!("open_tree: {errno}"))?;
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC);
    context.map(|_| String::new()).map_err(|errno| format!("fsopen: {errno}"))
}

fn namespace(kind: &str) -> Result<String, String> {
    let file = format!("/proc/self/ns/{kind}");
    std::fs::symlink_metadata(&file).map_err(|error| error.to_string())?;
    let limit = std::fs::read_to_string(format!("/proc/sys/user/max_{kind}_namespaces"));
    match limit.map(|text| text.trim().to_owned()) {
        Ok(limit) if limit == "0" => Err("switched off by sysctl".to_owned()),
        _ => Ok(String::new()),
    }
}

fn capability() -> Result<String, String> {
    let held = rustix::thread::capabilities(None).map_err(|errno| errno.to_string())?;
    if held.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE) {
        Ok(String::new())
    } else {
        Err("not held".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_facility_names_what_does_not_work() {
        let finding = Finding {
            name: "wings",
            state: Err("no such device".to_owned()),
            essential: true,
            without: "no flying",
        };
        assert!(finding.is_fatal());
        let text = finding.to_string();
        assert!(text.contains("wings: no such device") && text.contains("no flying"));
    }
}
