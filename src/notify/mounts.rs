//! What containers may mount.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

/// `[mount]` of the configuration: what containers may mount whose policy has `mount`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MountSettings {
    /// Filesystems that the kernel mounts for a container with the host's rights. Its parsers then
    /// read what the container wrote: for containers that are trusted.
    pub allowed: Vec<String>,
    /// Filesystems that a program mounts as the caller, and which one.
    pub fuse: BTreeMap<String, String>,
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
            shift: false,
            dev_and_suid: false,
            nested: false,
            // Well below the 30 s after which liblxc stops waiting.
            deadline: 20,
        }
    }
}

impl MountSettings {
    /// What is wrong with them, if anything.
    #[must_use]
    pub fn mistake(&self) -> Option<String> {
        if let Some(both) = self.allowed.iter().find(|name| self.fuse.contains_key(*name)) {
            return Some(format!("{both} is in both mount.allowed and mount.fuse: choose one"));
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
        settings = MountSettings { deadline: 60, ..Default::default() };
        assert!(settings.mistake().unwrap().contains("between 1 and 24"));
    }
}
