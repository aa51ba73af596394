//! The accounts of containers and users, which may make cgroups as often as they like.

use std::time::Instant;

use ambit_sysinfo::engines;

/// How many folders an account may make at once, and each second. A system container makes about
/// 200 when it boots.
pub(super) const BURST: u32 = 1000;
const RATE: u32 = 50;

/// The account of a container or a user.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) watches: usize,
    /// How many folders it may still make.
    left: u32,
    refilled: Instant,
    pub(super) paused_until: Option<Instant>,
    /// That it makes too many was logged.
    pub(super) has_warned: bool,
}

impl Account {
    pub(super) fn new(now: Instant) -> Self {
        Self { watches: 0, left: BURST, refilled: now, paused_until: None, has_warned: false }
    }

    /// Fills the account again when its pause has ended. It has no watches then.
    pub(super) fn resume(&mut self, now: Instant) {
        *self = Self { has_warned: self.has_warned, ..Self::new(now) };
    }

    /// Charges folders that were made. False if the account is used up.
    pub(super) fn charge(&mut self, cost: u32, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.refilled).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(RATE);
            self.left = self.left.saturating_add(more).min(BURST);
            self.refilled = now;
        }
        let left = self.left.checked_sub(cost);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

/// Returns the account that a cgroup belongs to: its outermost container, or the slice of its user.
/// Only the machine's root makes the others.
pub(super) fn account_of(path: &str) -> Option<&str> {
    if let Some(found) = engines::all(path).next() {
        return Some(found.path);
    }
    let start = path.find("/user-")?;
    let end = path[start..].find(".slice")? + start + ".slice".len();
    Some(&path[..end])
}

/// Returns how far a cgroup is below the container of its account. Folders of users count as 0.
pub(super) fn depth_in(path: &str, account: &str) -> usize {
    let is_container = engines::all(account).next().is_some();
    let below = path.strip_prefix(account).filter(|_| is_container);
    below.map_or(0, |below| below.matches('/').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_of_containers_and_users() {
        assert_eq!(account_of("/lxc/web/a/docker/b"), Some("/lxc/web"));
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice";
        assert_eq!(account_of(user), Some("/user.slice/user-1000.slice"));
        assert_eq!(account_of("/system.slice/a.service"), None);
        assert_eq!(depth_in("/lxc/web/a/b", "/lxc/web"), 2);
        assert_eq!(depth_in(user, "/user.slice/user-1000.slice"), 0);
    }
}
