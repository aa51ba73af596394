//! What a server inherits: the descriptors that the server before it stored with the keeper.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::KeeperClient;
use super::orders::read;
use crate::wire;

/// The descriptors that the previous server stored with the keeper, by name.
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<String, OwnedFd>);

impl Inherited {
    /// True if there was a previous server. The sockets of a socket unit do not tell.
    #[must_use]
    pub fn has_predecessor(&self) -> bool {
        self.0.keys().any(|name| !name.starts_with(wire::ACTIVATED))
    }

    /// Takes the socket of this name that a socket unit holds.
    pub fn take_activated(&mut self, name: &str) -> Option<OwnedFd> {
        self.take(&format!("{}{name}", wire::ACTIVATED))
    }

    /// Takes the sockets of this name: a previous server's and a socket unit's.
    #[must_use]
    pub fn take_sockets(&mut self, name: &str) -> Self {
        let names = [name.to_owned(), format!("{}{name}", wire::ACTIVATED)];
        Self(names.into_iter().filter_map(|name| self.0.remove_entry(&name)).collect())
    }

    /// True if there is no descriptor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn insert(&mut self, name: &str, fd: OwnedFd) {
        self.0.insert(name.to_owned(), fd);
    }

    /// Returns the largest number that ends a name.
    pub(super) fn last_number(&self) -> u64 {
        let number = |name: &String| name.rsplit_once('-')?.1.parse::<u64>().ok();
        self.0.keys().filter_map(number).max().unwrap_or(0)
    }

    /// Takes the descriptor of this name.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// Takes the descriptor of this name, which ends with the version of its layout. Removes those
    /// of other versions: they would be out of date when such a program is started again.
    pub fn take_version(&mut self, name: &str, keeper: &KeeperClient) -> Option<OwnedFd> {
        let kind = name.rsplit_once('.').map_or(name, |(kind, _)| kind);
        let other = |held: &str| {
            let version = held.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.'));
            held != name && version.is_some_and(|version| version.parse::<u32>().is_ok())
        };
        let others: Vec<_> = self.0.keys().filter(|held| other(held)).cloned().collect();
        for other in others {
            tracing::info!(kept = other, wanted = name, "another version's is not used");
            self.0.remove(&other);
            keeper.remove(&other);
        }
        self.take(name)
    }

    /// Takes the bytes that were stored under this name.
    pub fn take_bytes(&mut self, name: &str) -> Option<Vec<u8>> {
        read(&self.take(name)?).ok()
    }

    /// Takes all descriptors whose name is this prefix and a number.
    pub fn take_numbered(&mut self, prefix: &str) -> Vec<(u64, OwnedFd)> {
        let number = |name: &String| name.strip_prefix(prefix)?.parse::<u64>().ok();
        let names: Vec<_> =
            self.0.keys().filter_map(|name| Some((name.clone(), number(name)?))).collect();
        let taken =
            names.into_iter().filter_map(|(name, number)| Some((number, self.take(&name)?)));
        taken.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory;
    use super::*;

    #[test]
    fn inherited_descriptors_are_found_by_name_and_number() {
        let mut inherited = Inherited::default();
        for name in ["listener-7", "listener-12", "about-7"] {
            inherited.insert(name, memory(name, name.as_bytes()).unwrap());
        }
        assert_eq!(inherited.take_bytes("about-7").as_deref(), Some(&b"about-7"[..]));
        let numbers: Vec<_> =
            inherited.take_numbered("listener-").iter().map(|(n, _)| *n).collect();
        assert_eq!(numbers, [12, 7]);
        assert!(inherited.take("listener-7").is_none());
    }

    #[test]
    fn memory_of_another_layout_version_is_not_used() {
        let mut inherited = Inherited::default();
        for name in ["journal.1", "journal.2", "journal.x", "journals.1"] {
            inherited.insert(name, memory(name, name.as_bytes()).unwrap());
        }
        assert!(inherited.take_version("journal.3", &KeeperClient::default()).is_none());
        let left: Vec<_> = inherited.0.keys().map(String::as_str).collect();
        assert_eq!(left, ["journal.x", "journals.1"]);
        assert!(inherited.take_version("journals.1", &KeeperClient::default()).is_some());
    }
}
