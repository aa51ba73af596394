//! What containers may mount.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::syscalls::is_never_mounted;

/// `[mount]` of the configuration: what containers may mount whose policy has `mount`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MountSettings {
    /// Filesystems that the kernel mounts for a container with the host's rights. Its parsers then
    /// read what the container wrote: for containers that are trusted.
    pub allowed: Vec<String>,
    /// Filesystems that a program mounts as the caller, and which one: one of the container, or
    /// `host:` and a path.
    pub fuse: BTreeMap<String, String>,
    /// Where filesystems of the network may be mounted from: patterns, for all of them or after
    /// `TYPE=` for one.
    pub sources: Vec<String>,
    /// Are the owners of what is mounted shifted to the container's users?
    pub shift: bool,
    /// May device nodes and set-user-ID programs of what is mounted have a meaning?
    pub dev_and_suid: bool,
    /// May users of namespaces that a container made itself mount too?
    pub nested: bool,
    /// How many seconds a mount may take.
    pub deadline: u64,
}

impl Default for MountSettings {
    fn default() -> Self {
        Self {
            allowed: Vec::new(),
            fuse: BTreeMap::new(),
            sources: Vec::new(),
            shift: false,
            dev_and_suid: false,
            nested: false,
            // Well below the 30 s after which liblxc stops waiting.
            deadline: 20,
        }
    }
}

/// In front of the path of a helper that is a program of the host.
const HOST: &str = "host:";

/// The path of a helper that is a program of the host.
#[must_use]
pub fn on_the_host(helper: &str) -> Option<&str> {
    helper.strip_prefix(HOST)
}

impl MountSettings {
    /// What is wrong with them, if anything.
    #[must_use]
    pub fn mistake(&self) -> Option<String> {
        if let Some(both) = self.allowed.iter().find(|name| self.fuse.contains_key(*name)) {
            return Some(format!("{both} is in both mount.allowed and mount.fuse: choose one"));
        }
        if let Some(never) = self.allowed.iter().find(|name| is_never_mounted(name)) {
            return Some(format!(
                "mount.allowed: {never} is never mounted with the host's rights: leave it out"
            ));
        }
        if self.allowed.iter().any(String::is_empty) {
            return Some("mount.allowed: a filesystem has no name".to_owned());
        }
        if let Some((name, _)) =
            self.fuse.iter().find(|(name, helper)| name.is_empty() || helper.is_empty())
        {
            return Some(format!(
                "mount.fuse: {name:?} needs a filesystem and a program, such as ext4 and fuse2fs"
            ));
        }
        for path in self.fuse.values().filter_map(|helper| on_the_host(helper)) {
            if !path.starts_with('/') || !std::path::Path::new(path).is_file() {
                return Some(format!("mount.fuse: {HOST}{path} is no program of this host"));
            }
        }
        (!(1..=24).contains(&self.deadline))
            .then(|| "mount.deadline must be between 1 and 24 seconds".to_owned())
    }

    /// How long a mount may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_one_way() {
        let mut settings = MountSettings { allowed: vec!["ext4".into()], ..Default::default() };
        assert_eq!(settings.mistake(), None);
        settings.fuse.insert("ext4".into(), "fuse2fs".into());
        assert!(settings.mistake().unwrap().contains("both"));
        settings.fuse = [("xfs".into(), "host:/no/such".into())].into();
        assert!(settings.mistake().unwrap().contains("host:/no/such is no program"));
        settings.fuse = [("xfs".into(), String::new())].into();
        assert!(settings.mistake().unwrap().contains("\"xfs\" needs"));
        for never in ["proc", "tmpfs", "fuse.sshfs", "sysfs.image"] {
            settings = MountSettings { allowed: vec![never.into()], ..Default::default() };
            assert!(settings.mistake().unwrap().contains("never mounted"), "{never}");
        }
        settings = MountSettings { deadline: 60, ..Default::default() };
        assert!(settings.mistake().unwrap().contains("between 1 and 24"));
    }
}
