//! The containers that are waited for, and when each is looked at again.
//!
//! A container is looked at every 2 ms at first, then each time after an eighth of the time since
//! its engine has last come further, for at most [`PATIENCE`] after that, and [`LONG_PATIENCE`] in
//! all. All of it is bounded: how many containers wait, how many of them are in one container, how
//! much time looks at them take, how many are attached at once and how often. Start reading at
//! [`Pending::add`].

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ambit_sysinfo::engines;

use super::look::Progress;

/// How long a container may come no further on the way from its cgroup to its program.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take in all. Engines run hooks while its process has namespaces and still the
/// machine's root, which may wait for a network.
const LONG_PATIENCE: Duration = Duration::from_secs(120);
/// The shortest time between two looks at a container.
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_secs(1);
/// The most containers that wait at once. The next scan finds what was left out.
const MOST: usize = 4096;
/// The most containers in one container that wait at once.
const MOST_NESTED: usize = 512;
/// The most containers that are attached at once, and how many of them may be in another one.
const MOST_ATTACHED: usize = 4;
const MOST_NESTED_ATTACHED: usize = 2;
/// The shortest time between two of those in one container, which may make them as it likes.
const PACE: Duration = Duration::from_millis(50);
/// After a look at a container in another one, or one that takes longer than this, the outermost
/// container is not looked at for [`REST`] times as long.
const DEAR: Duration = Duration::from_millis(1);
const REST: u32 = 8;

/// The containers that are waited for, by cgroup path.
#[derive(Debug, Default)]
pub(super) struct Pending {
    all: BTreeMap<String, Waiting>,
    /// When the next container in one of these containers may be attached.
    paced: HashMap<String, Instant>,
    /// Until when these outermost containers are not looked at.
    resting: HashMap<String, Instant>,
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
        let waiting = self.all.iter().filter(|(_, one)| !one.is_attached);
        waiting.map(|(path, one)| self.after_rest(path, one.due)).min()
    }

    /// Returns the containers whose look is due.
    pub(super) fn due(&self, now: Instant) -> Vec<(String, Vec<PathBuf>)> {
        let waiting = self.all.iter().filter(|(_, one)| !one.is_attached);
        let due = waiting.filter(|(path, one)| self.after_rest(path, one.due) <= now);
        due.map(|(path, one)| (path.clone(), one.folders.clone())).collect()
    }

    /// True if a container that was due is not to be looked at now.
    pub(super) fn is_resting(&self, path: &str, now: Instant) -> bool {
        self.after_rest(path, now) > now
    }

    /// Charges the processor time of a look to the outermost container.
    pub(super) fn charge(&mut self, path: &str, took: Duration, now: Instant) {
        self.resting.retain(|_, until| *until > now);
        if took > DEAR || outer(path).is_some() {
            let outermost = outer(path).unwrap_or(path).to_owned();
            self.resting.insert(outermost, now + took * REST);
        }
    }

    fn after_rest(&self, path: &str, due: Instant) -> Instant {
        // Few containers rest, and mostly none.
        let until = (!self.resting.is_empty())
            .then(|| self.resting.get(outer(path).unwrap_or(path)))
            .flatten();
        until.map_or(due, |until| due.max(*until))
    }

    /// Plans the next look at a container. False if it has taken too long.
    pub(super) fn look_again(&mut self, path: &str, progress: Progress, now: Instant) -> bool {
        let Some(one) = self.all.get_mut(path) else { return false };
        if one.progress != progress {
            (one.progress, one.changed) = (progress, now);
        }
        one.delay(now);
        let [age, still] = [one.since, one.changed].map(|then| now.saturating_duration_since(then));
        let is_late = progress == Progress::Mounts || still < PATIENCE;
        age < PATIENCE || age < LONG_PATIENCE && is_late
    }

    /// Notes that a container is attached now. False if that has to wait, because others are.
    pub(super) fn begin(&mut self, path: &str, now: Instant) -> bool {
        let is_beside = |one: &&Waiting, outer: &str| one.outer.as_deref() == Some(outer);
        let mut attached = self.all.values().filter(|one| one.is_attached);
        let mut may_begin = attached.clone().count() < MOST_ATTACHED;
        if let Some(outer) = outer(path) {
            self.paced.retain(|_, next| *next > now);
            may_begin &= !self.paced.contains_key(outer);
            let nested = attached.clone().filter(|one| one.outer.is_some()).count();
            may_begin &= nested < MOST_NESTED_ATTACHED;
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
        assert!(pending.look_again("/docker/a", Progress::Mounts, now), "a hook may run");
        assert!(!pending.look_again("/docker/a", Progress::Mounts, begin + LONG_PATIENCE));
        assert!(pending.look_again("/docker/a", Progress::Root, now));
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

    /// Each may have a container in it that does not answer.
    #[test]
    fn containers_in_many_containers_do_not_take_all_places() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        let nested: Vec<String> = (0..4).map(|one| format!("/lxc/{one}/docker/a")).collect();
        for path in nested.iter().map(String::as_str).chain(["/lxc/web", "/lxc/db"]) {
            assert!(pending.add(path.to_owned(), PathBuf::from("/x"), now));
        }
        let begun = nested.iter().filter(|path| pending.begin(path, now)).count();
        assert_eq!(begun, MOST_NESTED_ATTACHED);
        assert!(pending.begin("/lxc/web", now) && pending.begin("/lxc/db", now));
    }

    #[test]
    fn a_container_that_is_dear_to_look_at_rests_with_those_in_it() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for path in ["/lxc/dear/docker/a", "/lxc/dear/docker/b", "/lxc/web"] {
            assert!(pending.add(path.to_owned(), PathBuf::from("/x"), now));
        }
        pending.charge("/lxc/web", DEAR, now);
        pending.charge("/lxc/dear/docker/a", Duration::from_millis(80), now);
        let due = |pending: &Pending, now| -> Vec<String> {
            pending.due(now).into_iter().map(|(path, _)| path).collect()
        };
        assert_eq!(due(&pending, now), ["/lxc/web"]);
        assert!(pending.is_resting("/lxc/dear/docker/b", now));
        pending.remove("/lxc/web");
        let later = now + Duration::from_millis(640);
        assert_eq!(pending.next_due(), Some(later));
        assert_eq!(due(&pending, later).len(), 2);
    }
}
