//! Which cgroup a process is in, per hierarchy: the text of `/proc/<pid>/cgroup`.

use crate::hash::fnv1a;
use crate::hierarchy::{Controller, Hierarchies};
use crate::scan;

/// systemd puts itself into this child of a container's cgroup; the container is the parent.
const INIT_SCOPE: &str = "/init.scope";

/// The cgroups of one process, as the kernel lists them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Membership {
    text: Box<str>,
}

impl Membership {
    /// Takes the text of `/proc/<pid>/cgroup`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        Self { text: String::from_utf8_lossy(text).into() }
    }

    /// Is this the same text?
    #[must_use]
    pub fn is(&self, text: &[u8]) -> bool {
        self.text.as_bytes() == text
    }

    /// A number for these cgroups, the same in every process and release.
    #[must_use]
    pub fn key(&self) -> u64 {
        fnv1a(self.text.as_bytes())
    }

    /// The cgroup in the unified hierarchy, `/init.scope` cut.
    #[must_use]
    pub fn unified(&self) -> Option<&str> {
        self.lines().find(|(id, names, _)| *id == "0" && names.is_empty()).map(|(_, _, path)| path)
    }

    /// The cgroup in the v1 hierarchy of a controller, `/init.scope` cut.
    #[must_use]
    pub fn legacy(&self, controller: Controller) -> Option<&str> {
        self.lines()
            .find(|(_, names, _)| names.split(',').any(|name| name == controller.legacy_name()))
            .map(|(_, _, path)| path)
    }

    /// Is the process in the root cgroup of every hierarchy that has one of our controllers?
    #[must_use]
    pub fn is_root(&self, hierarchies: &Hierarchies) -> bool {
        Controller::ALL.into_iter().all(|controller| {
            let path = if hierarchies.is_unified(controller) {
                self.unified()
            } else if hierarchies.legacy_mount(controller).is_some() {
                self.legacy(controller)
            } else {
                None
            };
            path.is_none_or(|path| path == "/")
        })
    }

    /// What to call the container: the last component of its longest cgroup path.
    #[must_use]
    pub fn name(&self) -> &str {
        let longest = self.lines().map(|(_, _, path)| path).max_by_key(|path| path.len());
        longest
            .and_then(|path| path.rsplit('/').next())
            .filter(|name| !name.is_empty())
            .unwrap_or("/")
    }

    /// The longest cgroup path, for people.
    #[must_use]
    pub fn path(&self) -> &str {
        self.lines().map(|(_, _, path)| path).max_by_key(|path| path.len()).unwrap_or("/")
    }

    /// `hierarchy-id:controllers:path`; the path may contain colons.
    fn lines(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        scan::lines(self.text.as_bytes()).filter_map(|line| {
            let line = std::str::from_utf8(line).ok()?;
            let mut parts = line.splitn(3, ':');
            let (id, names, path) = (parts.next()?, parts.next()?, parts.next()?);
            // The kernel marks a removed cgroup this way; its numbers are still there.
            let path = path.strip_suffix(" (deleted)").unwrap_or(path);
            let path = path.strip_suffix(INIT_SCOPE).unwrap_or(path);
            Some((id, names, if path.is_empty() { "/" } else { path }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_text_with_colons_and_init_scope() {
        let text = b"4:memory:/lxc/a:b\n2:cpu,cpuacct:/lxc/a:b/init.scope\n0::/init.scope\n";
        let membership = Membership::parse(text);
        assert_eq!(membership.legacy(Controller::Memory), Some("/lxc/a:b"));
        assert_eq!(membership.legacy(Controller::Cpuacct), Some("/lxc/a:b"));
        assert_eq!(membership.legacy(Controller::Pids), None);
        assert_eq!(membership.unified(), Some("/"));
        assert_eq!(membership.name(), "a:b");
    }

    #[test]
    fn the_key_of_a_record_never_changes() {
        let key = Membership::parse(b"0::/system.slice/a.service\n").key();
        assert_eq!(key, 17_227_843_585_455_975_194);
    }
}
