//! The containers that are waited for, and when each is looked at again.
//!
//! A container is looked at every 2 ms at first, then each time after an eighth of the time since
//! its engine has last come further, for at most [`PATIENCE`]. All of it is bounded: how many
//! containers wait, how many of them are in one container, how many are attached at once and how
//! often. Start reading at [`Pending::add`].

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ambit_sysinfo::engines;

use super::look::Progress;

/// How long a container may take from its cgroup to its program.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The shortest time between two looks at a container.
const SHORTEST: Duration = Duration::from_millis(2);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(1);
/// The most containers that wait at once. The next scan finds what was left out.
const MOST: usize = 4096;
/// The most containers in one container that wait at once.
const MOST_NESTED: usize = 512;
/// The most containers that are attached at once.
const MOST_ATTACHED: usize = 4;
/// The shortest time between two of those in one container, which may make them as it likes.
const PACE: Duration = Duration::from_millis(50);

/// The containers that are waited for, by cgroup path.
#[derive(Debug, Default)]
pub(super) struct Pending {
    all: BTreeMap<String, Waiting>,
    /// When the next container in one of these containers may be attached.
    paced: HashMap<String, Instant>,
}

/// A container that is waited for.
#[derive(Debug)]
struct Waiting {
    /// Its cgroup in the hierarchies that are watched.
    folders: Vec<PathBuf>,
    /// The outermost container around it.
    outer: Option<String>,
    since: Instant,
    progress: Progress,
    /// When its engine came so far.
    changed: Instant,
    due: Instant,
    is_attached: bool,
    /// It was found again while it was attached.
    again: bool,
}

impl Pending {
    /// Adds a container that was found. False if it is left out, because there are too many.
    pub(super) fn add(&mut self, path: String, folder: PathBuf, now: Instant) -> bool {
        if let Some(known) = self.all.get_mut(&path) {
            known.again |= known.is_attached;
            if !known.folders.contains(&folder) {
                known.folders.push(folder);
            }
            return true;
        }
        let outer = outer(&path);
        let is_beside = |one: &&Waiting| outer.is_some() && one.outer.as_deref() == outer;
        if self.all.len() >= MOST || self.all.values().filter(is_beside).count() >= MOST_NESTED {
            return false;
        }
        let waiting = Waiting {
            folders: vec![folder],
            outer: outer.map(str::to_owned),
            since: now,
            progress: Progress::default(),
            changed: now,
            due: now,
            is_attached: false,
            again: false,
        };
        self.all.insert(path, waiting);
        true
    }

    /// Returns when the next look is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.all.values().filter(|one| !one.is_attached).map(|one| one.due).min()
    }

    /// Returns the containers whose look is due.
    pub(super) fn due(&self, now: Instant) -> Vec<(String, Vec<PathBuf>)> {
        let due = self.all.iter().filter(|(_, one)| !one.is_attached && one.due <= now);
        due.map(|(path, one)| (path.clone(), one.folders.clone())).collect()
    }

    /// Plans the next look at a container. False if it has taken too long.
    pub(super) fn look_again(&mut self, path: &str, progress: Progress, now: Instant) -> bool {
        let Some(one) = self.all.get_mut(path) else { return false };
        if one.progress != progress {
            (one.progress, one.changed) = (progress, now);
        }
        one.delay(now);
        now.saturating_duration_since(one.since) < PATIENCE
    }

    /// Notes that a container is attached now. False if that has to wait, because others are.
    pub(super) fn begin(&mut self, path: &str, now: Instant) -> bool {
        let is_beside = |one: &&Waiting, outer: &str| one.outer.as_deref() == Some(outer);
        let mut attached = self.all.values().filter(|one| one.is_attached);
        let mut may_begin = attached.clone().count() < MOST_ATTACHED;
        if let Some(outer) = outer(path) {
            self.paced.retain(|_, next| *next > now);
            may_begin &= !self.paced.contains_key(outer);
            may_begin &= !attached.any(|one| is_beside(&one, outer));
            if may_begin {
                self.paced.insert(outer.to_owned(), now + PACE);
            }
        }
        let Some(one) = self.all.get_mut(path) else { return false };
        one.is_attached = may_begin;
        if !may_begin {
            one.delay(now);
        }
        may_begin
    }

    /// Notes that attaching to a container has ended.
    pub(super) fn end(&mut self, path: &str, now: Instant) {
        match self.all.get_mut(path) {
            Some(one) if one.again => {
                (one.is_attached, one.again) = (false, false);
                (one.since, one.changed, one.due) = (now, now, now);
            }
            _ => self.remove(path),
        }
    }

    /// Forgets a container.
    pub(super) fn remove(&mut self, path: &str) {
        self.all.remove(path);
    }

    /// Forgets all containers but those that are attached now.
    pub(super) fn clear(&mut self) {
        self.all.retain(|_, one| one.is_attached);
    }
}

impl Waiting {
    /// Plans the next look.
    fn delay(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.changed);
        self.due = now + (age / 8).clamp(SHORTEST, LONGEST);
    }
}

/// Returns the outermost container around this one.
fn outer(path: &str) -> Option<&str> {
    engines::all(path).next().map(|found| found.path).filter(|outer| *outer != path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_frequent_at_first_and_end() {
        let (mut pending, begin) = (Pending::default(), Instant::now());
        assert!(pending.add("/docker/a".to_owned(), PathBuf::from("/x"), begin));
        let (mut now, mut looks, mut longest) = (begin, 0, Duration::ZERO);
        while pending.look_again("/docker/a", Progress::Nothing, now) {
            let due = pending.next_due().unwrap();
            longest = longest.max(due - now);
            (now, looks) = (due, looks + 1);
        }
        assert!(now - begin >= PATIENCE && now - begin < PATIENCE + LONGEST);
        assert!((40..100).contains(&looks), "{looks}");
        assert_eq!(longest, LONGEST);
        pending.look_again("/docker/a", Progress::Root, now);
        assert_eq!(pending.next_due(), Some(now + SHORTEST), "its program follows soon");
    }

    #[test]
    fn a_container_is_attached_once_however_often_it_is_found() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for folder in ["/v2/docker/a", "/v1/docker/a", "/v2/docker/a"] {
            assert!(pending.add("/docker/a".to_owned(), PathBuf::from(folder), now));
        }
        assert_eq!(pending.due(now)[0].1.len(), 2);
        assert!(pending.begin("/docker/a", now));
        assert_eq!((pending.due(now).len(), pending.next_due()), (0, None));
        pending.end("/docker/a", now);
        assert!(pending.all.is_empty());
        // Files were put back meanwhile.
        pending.add("/docker/a".to_owned(), PathBuf::from("/x"), now);
        assert!(pending.begin("/docker/a", now));
        pending.add("/docker/a".to_owned(), PathBuf::from("/x"), now);
        pending.end("/docker/a", now);
        assert_eq!(pending.due(now).len(), 1);
    }

    #[test]
    fn containers_in_a_container_do_not_delay_others() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        let nested = |number: usize| format!("/lxc/web/docker/{number}");
        let mut add = |path: String| pending.add(path, PathBuf::from("/x"), now);
        assert!((0..MOST_NESTED).all(|number| add(nested(number))));
        assert!(!add(nested(MOST_NESTED)));
        assert!(add("/lxc/web".to_owned()) && add("/lxc/db".to_owned()));
        assert!(pending.begin(&nested(0), now));
        assert!(!pending.begin(&nested(1), now));
        pending.end(&nested(0), now);
        assert!(!pending.begin(&nested(1), now + PACE / 2));
        assert!(pending.begin(&nested(1), now + PACE));
        assert!(pending.begin("/lxc/web", now) && pending.begin("/lxc/db", now));
    }
}
