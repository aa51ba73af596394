//! The settings of mount(2): which filesystems are mounted for containers, and how.
//!
//! They are declared here, outside of `syscalls/mount/`, because the configuration checks them when
//! it is read. A filesystem has one way to be mounted: by the kernel, or by a helper. The docs of
//! the fields are the reference in docs/configuration.md.

use std::collections::BTreeMap;
use std::time::Duration;

use super::settings::{WrongValue, settings};
use super::syscalls::is_never_mounted;

settings! {
    /// mount(2) and fsopen(2): filesystems that a container may not mount by itself are mounted for it.
    /// It grants nothing without `allowed` or `fuse`; a filesystem can be in one of the two. What is
    /// mounted how: docs/mount.md.
    pub struct MountSettings {
        /// True if the calls are answered.
        pub enabled: bool = false, lxd "mount";
        /// Filesystems that the kernel mounts with the host's rights. Its parsers then read what
        /// the container wrote, and a crafted image can take the host over: for containers you
        /// trust.
        pub allowed: Vec<String> = Vec::new(), such as r#"["ext4"]"#, lxd "mount.allowed";
        /// Filesystems that a program serves, run as the caller: the safe way. The program is one
        /// of the container, or of the host with `host:` in front of its path.
        pub fuse: BTreeMap<String, String> = BTreeMap::new(),
            such as r#"{ squashfs = "squashfuse" }"#, lxd "mount.fuse";
        /// Where filesystems of the network are mounted from: patterns, for all types or after
        /// `TYPE=` for one. Nowhere without it.
        pub sources: Vec<String> = Vec::new(), such as r#"["nfs=filer:/export/*"]"#;
        /// True if the owners of what the kernel mounts are the container's users.
        pub shift: bool = false, lxd "mount.shift";
        /// True if device nodes and set-user-ID programs of what is mounted have a meaning:
        /// `nosuid` and `nodev` are not forced.
        pub dev_and_suid: bool = false;
        /// True if user namespaces that the container made itself may mount too.
        pub nested: bool = false;
        /// How many seconds a mount may take. It is below the 30 s after which liblxc stops
        /// waiting.
        pub deadline: u64 = 20, within 1..=24;
        check MountSettings::contradiction;
    }
}

/// The prefix of the path of a helper that is a program of the host.
const HOST: &str = "host:";

/// Returns the path of a helper that is a program of the host. `None` if it is one of the
/// container.
pub fn on_the_host(helper: &str) -> Option<&str> {
    helper.strip_prefix(HOST)
}

impl MountSettings {
    /// Returns the first contradiction between filesystems and helpers, if there is one.
    fn contradiction(&self) -> Option<WrongValue> {
        let wrong = |key: &str, reason: String| Some((key.to_owned(), reason));
        if let Some(never) = self.allowed.iter().find(|name| is_never_mounted(name)) {
            let reason = "is never mounted with the host's rights: leave it out";
            return wrong("allowed", format!("{never} {reason}"));
        }
        if self.allowed.iter().any(String::is_empty) {
            return wrong("allowed", "a filesystem has no name".to_owned());
        }
        if let Some(both) = self.allowed.iter().find(|name| self.fuse.contains_key(*name)) {
            return wrong(
                "fuse",
                format!("{both} is in both mount.allowed and mount.fuse: choose one"),
            );
        }
        let empty = |(name, helper): &(&String, &String)| name.is_empty() || helper.is_empty();
        if let Some((name, _)) = self.fuse.iter().find(empty) {
            let needed = "needs a filesystem and a program, such as ext4 and fuse2fs";
            return wrong("fuse", format!("{name:?} {needed}"));
        }
        for path in self.fuse.values().filter_map(|helper| on_the_host(helper)) {
            if !path.starts_with('/') || !std::path::Path::new(path).is_file() {
                return wrong("fuse", format!("{HOST}{path} is no program of this host"));
            }
        }
        None
    }

    /// Returns how long a mount may take.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Section;
    use super::*;

    #[test]
    fn a_type_in_two_lists_is_an_error() {
        let mut settings = MountSettings { allowed: vec!["ext4".into()], ..Default::default() };
        assert_eq!(settings.wrong_value(), None);
        let wrong = |settings: &MountSettings| {
            settings.wrong_value().map(|(key, reason)| format!("{key}: {reason}")).unwrap()
        };
        settings.fuse.insert("ext4".into(), "fuse2fs".into());
        assert!(wrong(&settings).starts_with("fuse: ext4 is in both"));
        settings.fuse = [("xfs".into(), "host:/no/such".into())].into();
        assert!(wrong(&settings).contains("host:/no/such is no program"));
        settings.fuse = [("xfs".into(), String::new())].into();
        assert!(wrong(&settings).contains("\"xfs\" needs"));
        for never in ["proc", "tmpfs", "fuse.sshfs", "sysfs.image"] {
            settings = MountSettings { allowed: vec![never.into()], ..Default::default() };
            assert!(wrong(&settings).contains("never mounted"), "{never}");
        }
        settings = MountSettings { deadline: 60, ..Default::default() };
        assert_eq!(wrong(&settings), "deadline: 60 is not possible: use 1 to 24");
    }
}
