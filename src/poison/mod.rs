#![allow(unsafe_code, reason = "what is in memory that outlives the process")]
//! Requests and calls that kill whoever handles them.
//!
//! A defect may make one of them end the server: abort, a fault, memory. The kernel and the journal
//! give it to the successor, which would end too, and so on, and no container would be answered any
//! more. So each thread notes what it is about to handle, in memory that the keeper holds (a few
//! stores, no system call), and takes it back when that is done. A server that takes over from a
//! dead one finds what was in hand. After three deaths (`records.rs`) it is not handled any more: a
//! file is EIO then, and a call is left to the kernel.
//!
//! What was in hand when the server was killed for want of memory, or because it was silent, is suspected
//! less: only of the same thread, which is to say that the same request was given to several servers and
//! none of them answered. Who kills servers otherwise, an administrator or a test, makes nobody suspect.
//!
//! Several threads have something in hand when one of them kills all. So suspects are handled one
//! at a time: who is in hand at the next death has done it alone, and the others are cleared.

mod records;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambit_fuse::{Asked, Witness};
use ambit_sysinfo::{Owner, clock};
use libseccomp_sys::seccomp_data;

use ambit_keeper::link::{Held, Link};
use ambit_keeper::memory::{Lasting, Memory};
use records::{CALL, DEATHS, Deed, End, Noted, Records, Standing, TERM};

/// Its name with the keeper. Another layout gets another name.
const NAME: &str = "in-hand.1";
/// Threads at a time: those that act, and some for files and listeners. More are not noted.
const HANDS: usize = 1280;
/// How long a suspect waits for another one: that one may hang.
const TRIAL: Duration = Duration::from_secs(1);
const NOBODY: usize = usize::MAX;

thread_local! {
    /// Where this thread noted its last call.
    static BEFORE: Cell<usize> = const { Cell::new(0) };
}

/// What the keeper holds.
#[repr(C)]
struct Shared {
    /// The last server left in order: what it had in hand has not killed it.
    left: AtomicU32,
    /// How many processes the kernel had killed for want of memory when the last server began; the
    /// number may have gone round.
    oom_kills: AtomicU32,
    records: Records,
    hands: [Hand; HANDS],
}

/// What a thread is at. On a line of the cache of its own.
#[repr(C, align(64))]
#[derive(Debug, Default)]
struct Hand {
    deed: Noted,
    /// It is a suspect.
    on_trial: AtomicU32,
}

// SAFETY: atomic numbers; zeroes are hands that are empty and records of nothing.
unsafe impl Lasting for Shared {}

/// Knows what each thread is at, and what has killed servers.
pub struct Poison {
    memory: Memory<Shared>,
    /// The number of a thread's account, 0 if that is not known.
    whose: Box<dyn Fn(u32) -> u64 + Send + Sync>,
    /// Is there any record?
    wary: AtomicBool,
    /// Held while records are looked at or changed.
    judging: Mutex<()>,
    /// The place of the suspect that is being handled, [`NOBODY`] if none is.
    on_trial: Mutex<usize>,
    tried: Condvar,
    /// The places that a thread has.
    taken: Box<[AtomicBool]>,
}

impl Poison {
    /// Finds out what a predecessor died of. `oom_kills` is how many processes the kernel has killed for
    /// want of memory, if it counts them. `None` without a keeper, or without memory: there is
    /// no successor then, or it knows nothing.
    pub(crate) fn take_over(
        link: &Link,
        held: &mut Held,
        oom_kills: Option<u64>,
        whose: impl Fn(u32) -> u64 + Send + Sync + 'static,
    ) -> Option<Arc<Self>> {
        link.is_kept().then_some(())?;
        let opened = Memory::<Shared>::open(NAME, 1, link, held);
        let (memory, fresh) = opened
            .inspect_err(|error| tracing::warn!("what kills a server is not found out: {error}"))
            .ok()?;
        #[allow(clippy::cast_possible_truncation, reason = "compared with itself")]
        let oom_kills = oom_kills.map(|count| count as u32);
        let before = memory[0].oom_kills.swap(oom_kills.unwrap_or(0), Ordering::Relaxed);
        let end = match oom_kills {
            _ if link.predecessor_crashed() => End::Crash,
            Some(now) if now == before && !link.predecessor_was_silent() => End::Outside,
            _ => End::Killed,
        };
        Some(Arc::new(Self::over(memory, (!fresh).then_some(end), whose)))
    }

    fn over(
        memory: Memory<Shared>,
        predecessor: Option<End>,
        whose: impl Fn(u32) -> u64 + Send + Sync + 'static,
    ) -> Self {
        let this = Self {
            memory,
            whose: Box::new(whose),
            wary: AtomicBool::new(false),
            judging: Mutex::new(()),
            on_trial: Mutex::new(NOBODY),
            tried: Condvar::new(),
            taken: (0..HANDS).map(|_| AtomicBool::new(false)).collect(),
        };
        // Pages of a new one that nobody looks at do not exist.
        if let Some(end) = predecessor {
            this.look_back(end);
        }
        this
    }

    fn shared(&self) -> &Shared {
        &self.memory[0]
    }

    /// What had the predecessor in hand?
    fn look_back(&self, end: End) {
        let Shared { left, records, hands, .. } = self.shared();
        let died = left.swap(0, Ordering::Relaxed) == 0 && end != End::Outside;
        let now = clock::awake();
        let mut seen: Vec<Deed> = Vec::new();
        for hand in hands {
            hand.on_trial.store(0, Ordering::Relaxed);
            let Some(mut deed) = hand.deed.read() else { continue };
            if deed.who == 0 {
                deed.who = (self.whose)(deed.thread);
            }
            // A crowd of the same is one.
            let same = |other: &Deed| Deed { thread: 0, ..*other } == Deed { thread: 0, ..deed };
            if died && !seen.iter().any(same) {
                seen.push(deed);
                if records.blame(&deed, now, end) {
                    say(&deed);
                }
            }
            hand.deed.clear();
        }
        self.wary.store(!records.is_empty(now), Ordering::Relaxed);
    }

    /// The server leaves in order, whatever its threads are at.
    pub(crate) fn leave(&self) {
        self.shared().left.store(1, Ordering::Relaxed);
    }

    /// A call is about to be handled, as long as what is returned lives. `None`: it must not be.
    pub(crate) fn call(&self, thread: u32, data: &seccomp_data) -> Option<InHand<'_>> {
        let number = u64::from(data.arch) << 32 | u64::from(data.nr.cast_unsigned());
        let place = self.a_place();
        let in_hand = InHand { poison: self, place };
        self.take(place, Deed { what: CALL, number, who: 0, thread }).then_some(in_hand)
    }

    /// A place for this thread: the one that it had before, if nobody took that.
    fn a_place(&self) -> usize {
        let mut places = (0..HANDS).map(|step| (BEFORE.get() + step) % HANDS);
        let free = |place: &usize| !self.taken[*place].swap(true, Ordering::Acquire);
        let place = places.find(free).unwrap_or(NOBODY);
        BEFORE.set(if place == NOBODY { 0 } else { place });
        place
    }

    /// False: it must not be handled.
    fn take(&self, place: usize, mut deed: Deed) -> bool {
        let hand = self.shared().hands.get(place);
        if self.wary.load(Ordering::Relaxed) {
            match self.judge(&mut deed) {
                Standing::Innocent => {}
                Standing::Poison => return false,
                Standing::Suspect => {
                    if let Some(hand) = hand {
                        self.await_trial(place);
                        hand.on_trial.store(1, Ordering::Relaxed);
                    }
                }
            }
        }
        if let Some(hand) = hand {
            hand.deed.note(&deed);
        }
        true
    }

    fn lay_down(&self, place: usize) {
        let Some(hand) = self.shared().hands.get(place) else { return };
        if hand.on_trial.load(Ordering::Relaxed) != 0 {
            hand.on_trial.store(0, Ordering::Relaxed);
            self.survived(place, hand);
        }
        hand.deed.clear();
    }

    fn judge(&self, deed: &mut Deed) -> Standing {
        let (_judging, records, now) =
            (lock(&self.judging), &self.shared().records, clock::awake());
        let standing = records.judge(deed, now, &self.whose);
        if standing == Standing::Innocent && records.is_empty(now) {
            self.wary.store(false, Ordering::Relaxed);
        }
        standing
    }

    /// Waits until no other suspect is handled, though not for long.
    fn await_trial(&self, place: usize) {
        let busy = |other: &mut usize| *other != NOBODY;
        let waited = self.tried.wait_timeout_while(lock(&self.on_trial), TRIAL, busy);
        let (mut on_trial, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *on_trial == NOBODY {
            *on_trial = place;
        }
    }

    /// A suspect was handled, and we live.
    fn survived(&self, place: usize, hand: &Hand) {
        if let Some(deed) = hand.deed.read() {
            let _judging = lock(&self.judging);
            self.shared().records.acquit(&deed);
        }
        let mut on_trial = lock(&self.on_trial);
        if *on_trial == place {
            *on_trial = NOBODY;
            self.tried.notify_one();
        }
    }
}

/// A call that is being handled.
pub(crate) struct InHand<'a> {
    poison: &'a Poison,
    place: usize,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.poison.lay_down(self.place);
        if let Some(taken) = self.poison.taken.get(self.place) {
            taken.store(false, Ordering::Release);
        }
    }
}

impl Witness for Poison {
    fn enlist(&self) -> usize {
        self.a_place()
    }

    fn begin(&self, place: usize, asked: Asked) -> bool {
        let Asked { operation, node, thread } = asked;
        self.take(place, Deed { what: operation as u32, number: node, who: 0, thread })
    }

    fn end(&self, place: usize) {
        self.lay_down(place);
    }
}

impl std::fmt::Debug for Poison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poison").field("wary", &self.wary).finish_non_exhaustive()
    }
}

/// The one line that is logged of it.
fn say(deed: &Deed) {
    let Deed { what, number, who, thread } = *deed;
    let (term, is_call) = (TERM / 1_000_000_000, what == CALL);
    let account = Owner::describe_number(who);
    let asked = match is_call {
        true => format!("system call {}", number & 0xFFFF_FFFF),
        false => ambit_fuse::describe(what, number),
    };
    let answer = if is_call { "the kernel answers it" } else { "it is answered with EIO" };
    tracing::error!(
        account = %account,
        thread,
        "a defect: {DEATHS} servers died at the same request, {asked}; {answer} for {term} s"
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use ambit_fuse::Operation;

    use super::*;

    /// The container of each thread is its hundred.
    fn whose(thread: u32) -> u64 {
        u64::from(thread / 100)
    }

    fn first() -> Poison {
        let opened = Memory::open(NAME, 1, &Link::default(), &mut Held::default()).unwrap();
        assert!(opened.1);
        Poison::over(opened.0, None, whose)
    }

    /// Whoever takes over from this one.
    fn next(poison: Poison) -> Poison {
        Poison::over(poison.memory, Some(End::Crash), whose)
    }

    fn open(node: u64, thread: u32) -> Asked {
        Asked { operation: Operation::Open, node, thread }
    }

    fn sysinfo() -> seccomp_data {
        seccomp_data { nr: 99, arch: 7, instruction_pointer: 0, args: [0; 6] }
    }

    #[test]
    fn who_was_beside_the_poison_is_cleared() {
        let mut poison = first();
        for death in 0..3 {
            let places = [poison.enlist(), poison.enlist()];
            assert!(poison.begin(places[0], open(7, 101)));
            // From then on it would wait for the other's end.
            assert!(death > 0 || poison.begin(places[1], open(7, 201)));
            poison = next(poison);
        }
        let place = poison.enlist();
        assert!(!poison.begin(place, open(7, 101)), "three servers died of it");
        poison.end(place);
        assert!(poison.begin(place, open(7, 201)) && poison.wary.load(Ordering::Relaxed));
        poison.end(place);
        let mut asked = Deed { what: 14, number: 7, who: 0, thread: 201 };
        assert_eq!(poison.judge(&mut asked), Standing::Innocent);
        assert_eq!(*lock(&poison.on_trial), NOBODY);
    }

    #[test]
    fn suspects_are_handled_one_at_a_time() {
        let poison = first();
        let places = [poison.enlist(), poison.enlist()];
        assert!(poison.begin(places[0], open(7, 101)) && poison.begin(places[1], open(8, 201)));
        let poison = next(poison);
        let places = [poison.enlist(), poison.enlist()];
        assert!(poison.begin(places[0], open(7, 101)));
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                assert!(poison.begin(places[1], open(8, 201)));
                assert!(ended.load(Ordering::Relaxed), "the first one first");
                poison.end(places[1]);
            });
            ended.store(true, Ordering::Relaxed);
            poison.end(places[0]);
            assert!(other.join().is_ok());
        });
        assert!(poison.shared().records.is_empty(clock::awake()));
    }

    #[test]
    fn who_left_in_order_died_of_nothing() {
        let mut poison = first();
        for _ in 0..3 {
            let place = poison.enlist();
            assert!(poison.begin(place, open(7, 101)));
            poison.leave();
            poison = next(poison);
        }
        assert!(!poison.wary.load(Ordering::Relaxed));
    }

    #[test]
    fn who_kills_servers_makes_nobody_suspect() {
        let mut poison = first();
        for _ in 0..3 {
            let place = poison.enlist();
            assert!(poison.begin(place, open(7, 101)));
            poison = Poison::over(poison.memory, Some(End::Outside), whose);
        }
        assert!(!poison.wary.load(Ordering::Relaxed));
        assert!(poison.shared().hands[0].deed.read().is_none());
    }

    #[test]
    fn a_call_is_in_hand_while_it_is_handled() {
        let mut poison = first();
        for _ in 0..3 {
            let in_hand = poison.call(101, &sysinfo());
            std::mem::forget(in_hand.unwrap());
            drop(poison.call(301, &sysinfo()).unwrap());
            poison = next(poison);
        }
        assert!(poison.call(102, &sysinfo()).is_none());
        assert!(poison.call(301, &sysinfo()).is_some());
        let taken = poison.taken.iter().filter(|place| place.load(Ordering::Relaxed)).count();
        assert_eq!(taken, 0, "all places were given back");
    }
}
