//! What was in hand when servers died: how often, and what follows from that.
//!
//! A request that was in hand at one death is a suspect; it is handled again, and who comes out of
//! that alive is none any more. [`DEATHS`] make it poison: for [`TERM`] it is refused. Then it is
//! handled once more, and one death is enough to refuse it again. A container that has poison
//! already needs a death less for the next, and from [`WHOLE`] on all that it asks is refused: it is
//! the container then, and not the file or the call.
//!
//! A server that was killed because it did not answer any more, or for want of memory, may have died of
//! none of them. What takes long is in hand then again and again, by other threads each time. Only the
//! same thread's is counted, and anybody's that is handled well ends the suspicion.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// So many servers died with a request in hand, and it is poison.
pub(super) const DEATHS: u32 = 3;
/// So many poisons, and everything is refused that their container asks.
const WHOLE: usize = 4;
const SECOND: u64 = 1_000_000_000;
/// How long poison is refused, and suspects are remembered, in nanoseconds.
pub(super) const TERM: u64 = 60 * SECOND;
/// How long is remembered what has been poison.
const MEMORY: u64 = 600 * SECOND;
/// What is remembered at a time.
const RECORDS: usize = 64;

/// A request or a call, as far as it is the same when it is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deed {
    /// What was asked for: the number of a FUSE request, or [`CALL`]. Never 0.
    pub(super) what: u32,
    /// Of which node; or which call, below its architecture.
    pub(super) number: u64,
    /// Whose: the container's number, 0 where that is not known.
    pub(super) who: u64,
    /// By which thread: 0 where the kernel does not say.
    pub(super) thread: u32,
}

/// A system call, among the numbers of FUSE requests.
pub(super) const CALL: u32 = 1 << 16;

impl Deed {
    fn is_like(&self, other: &Self) -> bool {
        (self.what, self.number) == (other.what, other.number)
    }
}

/// A deed in memory that several processes see, one after the other.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Noted {
    what: AtomicU32,
    thread: AtomicU32,
    number: AtomicU64,
    who: AtomicU64,
}

impl Noted {
    /// Notes it: a few stores, the last of which makes it valid.
    pub(super) fn note(&self, deed: &Deed) {
        self.thread.store(deed.thread, Ordering::Relaxed);
        self.number.store(deed.number, Ordering::Relaxed);
        self.who.store(deed.who, Ordering::Relaxed);
        self.what.store(deed.what, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.what.store(0, Ordering::Release);
    }

    pub(super) fn read(&self) -> Option<Deed> {
        let what = self.what.load(Ordering::Acquire);
        (what != 0).then(|| Deed {
            what,
            thread: self.thread.load(Ordering::Relaxed),
            number: self.number.load(Ordering::Relaxed),
            who: self.who.load(Ordering::Relaxed),
        })
    }
}

/// A deed that was in hand when a server died.
#[repr(C)]
#[derive(Debug, Default)]
struct Record {
    deed: Noted,
    /// When the last one died, in nanoseconds of the machine.
    at: AtomicU64,
    deaths: AtomicU32,
    /// Those at which the server was not killed from outside.
    crashes: AtomicU32,
}

impl Record {
    /// What is remembered `now`.
    fn live(&self, now: u64) -> Option<Deed> {
        let memory = if self.is_poison() { MEMORY } else { TERM };
        self.deed.read().filter(|_| now.saturating_sub(self.at()) <= memory)
    }

    fn at(&self) -> u64 {
        self.at.load(Ordering::Relaxed)
    }

    fn deaths(&self) -> u32 {
        self.deaths.load(Ordering::Relaxed)
    }

    fn crashes(&self) -> u32 {
        self.crashes.load(Ordering::Relaxed)
    }

    /// A suspicion begins.
    fn begin(&self, deed: &Deed) {
        self.deed.clear();
        self.deaths.store(0, Ordering::Relaxed);
        self.crashes.store(0, Ordering::Relaxed);
        self.deed.note(deed);
    }

    fn is_poison(&self) -> bool {
        self.deaths() >= DEATHS
    }

    fn is_refused(&self, now: u64) -> bool {
        self.is_poison() && now.saturating_sub(self.at()) <= TERM
    }
}

/// All of them, in memory that outlives the server.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Records([Record; RECORDS]);

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By itself.
    Crash,
    /// The kernel killed it for want of memory, maybe, or the keeper because it was silent.
    Killed,
    /// Somebody killed it, whatever it was at.
    Outside,
}

/// What is known of a deed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Innocent,
    Suspect,
    Poison,
}

impl Records {
    /// What is known of this, which is about to be handled. Whose it is, is only asked when that
    /// matters, and noted then. Nobody else may change records meanwhile.
    pub(super) fn judge(
        &self,
        deed: &mut Deed,
        now: u64,
        who: impl FnOnce(u32) -> u64,
    ) -> Standing {
        let live = || self.0.iter().filter_map(|one| Some((one, one.live(now)?)));
        let refused = |one: &Record| one.is_refused(now);
        let is_named = live().any(|(_, other)| other.is_like(deed));
        if !is_named && live().filter(|(one, _)| refused(one)).count() < WHOLE {
            return Standing::Innocent;
        }
        deed.who = who(deed.thread);
        let own = || live().filter(|(one, other)| refused(one) && other.who == deed.who);
        if own().any(|(_, other)| other.is_like(deed)) || (deed.who != 0 && own().count() >= WHOLE)
        {
            return Standing::Poison;
        }
        let mut like = live().filter(|(_, other)| other.is_like(deed));
        if like.any(|(_, other)| other.who == deed.who || other.who == 0) {
            Standing::Suspect
        } else {
            Standing::Innocent
        }
    }

    /// A server died with this in hand. Is it poison from now on?
    pub(super) fn blame(&self, deed: &Deed, now: u64, end: End) -> bool {
        let whose = |who: u64| {
            let like = move |other: Deed| other.is_like(deed) && other.who == who;
            self.0.iter().find(|one| one.live(now).is_some_and(like))
        };
        let own =
            |one: &&Record| one.is_poison() && one.live(now).is_some_and(|o| o.who == deed.who);
        let needed = match self.0.iter().any(|one| deed.who != 0 && own(&one)) {
            true => DEATHS - 1,
            false => DEATHS,
        };
        // At the first death whose it was may not have been known any more.
        let record = whose(deed.who).or_else(|| whose(0)).unwrap_or_else(|| {
            let free = self.place(now);
            free.begin(deed);
            free
        });
        if end == End::Killed && record.deed.read().is_some_and(|old| old.thread != deed.thread) {
            if record.crashes() > 0 {
                return false;
            }
            record.begin(deed);
        }
        record.crashes.fetch_add(u32::from(end == End::Crash), Ordering::Relaxed);
        let mut deaths = record.deaths().saturating_add(1);
        if deaths >= needed {
            deaths = deaths.max(DEATHS);
        }
        record.deed.clear();
        record.deaths.store(deaths, Ordering::Relaxed);
        record.at.store(now, Ordering::Relaxed);
        record.deed.note(deed);
        deaths >= DEATHS
    }

    /// This was handled, and the server lives. Another thread's may be poison although this is none,
    /// where servers have crashed; what has served its term is tried by anybody.
    pub(super) fn acquit(&self, deed: &Deed) {
        for one in &self.0 {
            let is_it = |other: Deed| {
                other.is_like(deed)
                    && other.who == deed.who
                    && (other.thread == deed.thread || one.crashes() == 0 || one.is_poison())
            };
            if one.deed.read().is_some_and(is_it) {
                one.deed.clear();
            }
        }
    }

    /// Is anything remembered?
    pub(super) fn is_empty(&self, now: u64) -> bool {
        self.0.iter().all(|one| one.live(now).is_none())
    }

    /// A record that is free, or that of the least suspicion.
    fn place(&self, now: u64) -> &Record {
        let suspicion =
            |one: &&Record| one.live(now).map_or((0, 0), |_| (one.deaths().max(1), one.at()));
        // There is at least one.
        self.0.iter().min_by_key(suspicion).unwrap_or(&self.0[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Deed = Deed { what: 14, number: 7, who: 100, thread: 1 };

    fn empty() -> Records {
        Records(std::array::from_fn(|_| Record::default()))
    }

    fn judge(records: &Records, deed: Deed, now: u64) -> Standing {
        let mut asked = Deed { who: 0, ..deed };
        records.judge(&mut asked, now, |_| deed.who)
    }

    #[test]
    fn three_deaths_make_poison_for_its_container_alone() {
        let records = empty();
        assert_eq!(judge(&records, OPEN, 1), Standing::Innocent);
        assert!(!records.blame(&OPEN, 1, End::Crash));
        assert_eq!(judge(&records, OPEN, 2), Standing::Suspect);
        assert!(!records.blame(&OPEN, 2, End::Crash) && records.blame(&OPEN, 3, End::Crash));
        assert_eq!(judge(&records, OPEN, 4), Standing::Poison);
        let others = [
            Deed { who: 101, ..OPEN },
            Deed { who: 0, ..OPEN },
            Deed { number: 8, ..OPEN },
            Deed { what: 15, ..OPEN },
            Deed { what: CALL, ..OPEN },
        ];
        for other in others {
            assert_eq!(judge(&records, other, 4), Standing::Innocent, "{other:?}");
        }
        assert_eq!(judge(&records, Deed { thread: 9, ..OPEN }, 4), Standing::Poison);
    }

    #[test]
    fn who_is_handled_and_does_no_harm_is_innocent() {
        let records = empty();
        for now in 1..100 {
            assert!(!records.blame(&OPEN, now, End::Crash));
            records.acquit(&Deed { thread: 2, ..OPEN });
            assert_eq!(judge(&records, OPEN, now), Standing::Suspect, "another thread's");
            records.acquit(&OPEN);
            assert_eq!(judge(&records, OPEN, now), Standing::Innocent);
        }
        assert!(records.is_empty(100));
    }

    #[test]
    fn poison_is_tried_again_after_its_term() {
        let records = empty();
        (1..=3).for_each(|now| assert_eq!(records.blame(&OPEN, now, End::Crash), now == 3));
        assert_eq!(judge(&records, OPEN, 3 + TERM), Standing::Poison);
        assert_eq!(judge(&records, OPEN, 4 + TERM), Standing::Suspect);
        assert!(records.blame(&OPEN, 5 + TERM, End::Crash), "one more is enough");
        assert_eq!(judge(&records, OPEN, 6 + TERM), Standing::Poison);
        records.acquit(&Deed { thread: 5, ..OPEN });
        assert_eq!(judge(&records, OPEN, 6 + TERM), Standing::Innocent);
    }

    #[test]
    fn suspicion_is_forgotten() {
        let records = empty();
        assert!(!records.blame(&OPEN, 1, End::Crash) && !records.blame(&OPEN, 2, End::Crash));
        assert!(!records.blame(&OPEN, 3 + TERM, End::Crash), "long after");
        assert_eq!(judge(&records, OPEN, 4 + 2 * TERM), Standing::Innocent);
        assert!(records.is_empty(4 + 2 * TERM));
    }

    #[test]
    fn whose_it_was_is_known_from_the_second_death_on() {
        let records = empty();
        assert!(!records.blame(&Deed { who: 0, ..OPEN }, 1, End::Crash));
        assert_eq!(judge(&records, OPEN, 2), Standing::Suspect);
        assert!(!records.blame(&Deed { thread: 2, ..OPEN }, 2, End::Crash));
        assert_eq!(judge(&records, Deed { who: 101, ..OPEN }, 3), Standing::Innocent);
        assert!(records.blame(&Deed { thread: 3, ..OPEN }, 3, End::Crash));
    }

    #[test]
    fn a_container_whose_every_file_is_poison_is_refused_as_a_whole() {
        let records = empty();
        let mut now = 0;
        let mut deaths = 0;
        let file = |number| Deed { number, ..OPEN };
        for number in 0..WHOLE as u64 {
            loop {
                (now, deaths) = (now + 1, deaths + 1);
                if records.blame(&file(number), now, End::Crash) {
                    break;
                }
            }
        }
        assert_eq!(deaths, 3 + 2 + 2 + 2);
        assert_eq!(judge(&records, file(99), now), Standing::Poison);
        assert_eq!(judge(&records, Deed { what: CALL, ..OPEN }, now), Standing::Poison);
        assert_eq!(judge(&records, Deed { who: 5, number: 99, ..OPEN }, now), Standing::Innocent);
        assert_eq!(judge(&records, Deed { who: 5, ..OPEN }, now), Standing::Innocent);
    }

    #[test]
    fn servers_that_are_killed_make_guilty_who_stops_each_of_them() {
        let records = empty();
        for now in 1..100 {
            let another = Deed { thread: u32::try_from(now).unwrap(), ..OPEN };
            assert!(!records.blame(&another, now, End::Killed));
        }
        records.acquit(&OPEN);
        assert_eq!(judge(&records, OPEN, 100), Standing::Innocent, "anybody's counts");
        let killed = |now| records.blame(&OPEN, now, End::Killed);
        assert!(!killed(101) && !killed(102) && killed(103), "the same again and again");
        assert_eq!(judge(&records, OPEN, 103), Standing::Poison);
    }

    #[test]
    fn a_server_that_is_killed_tells_nothing_of_who_has_crashed_others() {
        let records = empty();
        let crashed = |now, thread| records.blame(&Deed { thread, ..OPEN }, now, End::Crash);
        assert!(!crashed(1, 1) && !crashed(2, 2));
        assert!(!records.blame(&Deed { thread: 3, ..OPEN }, 3, End::Killed));
        assert!(crashed(4, 4));
    }

    #[test]
    fn more_suspects_than_records_push_out_the_least_suspicious() {
        let records = empty();
        (1..=3).for_each(|now| assert_eq!(records.blame(&OPEN, now, End::Crash), now == 3));
        for number in 100..100 + 2 * RECORDS as u64 {
            records.blame(&Deed { number, who: number, ..OPEN }, number, End::Crash);
        }
        assert_eq!(judge(&records, OPEN, 300), Standing::Poison);
        let last = 99 + 2 * RECORDS as u64;
        assert_eq!(
            judge(&records, Deed { number: last, who: last, ..OPEN }, 300),
            Standing::Suspect
        );
    }
}
