//! The containers that a daemon serves: those that have its files bound, and those whose calls are
//! reported to it.
//!
//! The command that asks finds the first in the mount namespaces of all processes, by the numbers
//! of the daemon's connections, and never looks into a mount. The daemon names the others.

use std::fmt;
use std::fs;
use std::path::Path;

use ambit_kernel::text::control_groups;
use ambit_kernel::text::mountinfo::{self, Mounted};
use ambit_sysinfo::engines;

use ambit_worker::attach;
use serde::{Deserialize, Serialize};

use crate::containers::short;
use crate::dead_mounts::is_ours;
use crate::mount_namespaces::{self, Namespace};

/// A container of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependent {
    /// Its name, the beginning of its id, or the last part of its cgroup.
    name: String,
    /// A process in it.
    pid: Option<u32>,
    /// How many files and folders are bound in it.
    files: usize,
    /// How many of them attach has mounted.
    attached: usize,
    /// True if its calls are reported to the daemon.
    calls: bool,
}

impl Dependent {
    /// True if files are bound in it.
    pub fn has_files(&self) -> bool {
        self.files > 0
    }
}

/// Finds all containers of a daemon: those with files of the overlay that its server has mounted
/// here, in one of these mount namespaces, and those with these ids, whose calls are reported to it.
pub fn find(
    server: u32,
    overlay: &Path,
    listeners: &[String],
    namespaces: &[Namespace],
) -> Vec<Dependent> {
    let own = mount_namespaces::of(&server.to_string());
    let text = fs::read(format!("/proc/{server}/mountinfo")).unwrap_or_default();
    let whole = |mount: &Mounted| is_ours(mount) && mount.path.starts_with(overlay);
    let connections: Vec<u32> =
        mountinfo::all(&text).filter(whole).map(|mount| mount.minor).collect();
    let mut dependents = Vec::new();
    for namespace in namespaces {
        let is_own = own == Some(namespace.id);
        let ours = |mount: &&Mounted| {
            is_ours(mount) && connections.contains(&mount.minor) && is_bound(mount, is_own)
        };
        // The pressure files of its own cgroup.
        let is_attached = |mount: &&Mounted| attach::is_marked(mount) && !is_own;
        let attached = namespace.mounts.iter().filter(is_attached).count();
        let bound =
            |mount: &&Mounted| ours(mount) || (is_attached(mount) && mount.kind == "cgroup2");
        let files = namespace.mounts.iter().filter(bound).count();
        if files > 0 {
            let (name, cgroup) = match is_own {
                true => ("files bound on this machine".to_owned(), String::new()),
                false => cgroup_of(&namespace.process),
            };
            let pid = (!is_own).then_some(namespace.pid);
            dependents.push((cgroup, Dependent { name, pid, files, attached, calls: false }));
        }
    }
    for id in listeners {
        match dependents.iter_mut().find(|(cgroup, _)| is_of(cgroup, id)) {
            Some((_, dependent)) => dependent.calls = true,
            None => {
                let name = short(id).escape_debug().to_string();
                let dependent = Dependent { name, pid: None, files: 0, attached: 0, calls: true };
                dependents.push((String::new(), dependent));
            }
        }
    }
    let mut dependents: Vec<_> = dependents.into_iter().map(|(_, one)| one).collect();
    dependents.sort_by(|a, b| (&a.name, a.pid).cmp(&(&b.name, b.pid)));
    dependents
}

/// True for a bind mount of a part of the overlay. Programs with a copy of the machine's mounts
/// have the whole overlay at its mount point, and do not use it.
fn is_bound(mount: &Mounted, is_machine: bool) -> bool {
    let is_over_own = mount.path.starts_with("/proc") || mount.path.starts_with("/sys");
    mount.root != Path::new("/") || (!is_machine && is_over_own)
}

/// Returns the name of the container that a process's cgroup is of, or of the cgroup, and its path.
fn cgroup_of(process: &Path) -> (String, String) {
    let path = control_groups::path(&fs::read(process.join("cgroup")).unwrap_or_default());
    if let Some(container) = engines::find(&path) {
        let name = short(&container.name()).escape_debug().to_string();
        return (name, path);
    }
    let group = path.strip_suffix("/init.scope").unwrap_or(&path);
    let name = group.rsplit('/').next().filter(|name| !name.is_empty());
    (name.unwrap_or("without a cgroup").escape_debug().to_string(), path)
}

/// True if this is the cgroup of the container with this id, or one below it. An engine may name the
/// cgroup by the id alone.
pub(crate) fn is_of(cgroup: &str, id: &str) -> bool {
    engines::all(cgroup).any(|container| container.id == id || container.name() == id)
        || cgroup.split('/').any(|part| !part.is_empty() && part == id)
}

/// A table with one line for each.
#[derive(Debug)]
pub struct Table<'a>(pub &'a [Dependent]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 42;
        let heads = ["PROCESS", "FILES", "ATTACHED"];
        let [process, files, attached] = heads;
        writeln!(f, "{:<LONGEST$} {process:>10} {files:>6} {attached:>9}  CALLS", "CONTAINER")?;
        for Dependent { name, pid, files, attached, calls } in self.0 {
            let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let calls = if *calls { "yes" } else { "-" };
            writeln!(f, "{name:<LONGEST$.LONGEST$} {pid:>10} {files:>6} {attached:>9}  {calls}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_matched_to_the_id_of_its_container() {
        for cgroup in
            ["/web", "/a/docker-web.scope", "/lxc.payload.web/init.scope", "/k/cri-containerd:web"]
        {
            assert!(is_of(cgroup, "web"), "{cgroup}");
        }
        assert!(!is_of("/myweb", "web") && !is_of("/web1", "web") && !is_of("", "web"));
        assert!(!is_of("/web", ""));
    }

    #[test]
    fn the_table_fits_a_terminal() {
        let name = format!("docker-{}.scope", "f".repeat(64));
        let one = |name: &str, pid| Dependent {
            name: name.into(),
            pid,
            files: 14,
            attached: 2,
            calls: true,
        };
        let all = [one(&name, Some(4_194_304)), one("web", None)];
        let text = Table(&all).to_string();
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with("          -     14         2  yes\n"), "{text}");
    }
}
