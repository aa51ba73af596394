//! Refuses requests and calls that kill every server that handles them.
//!
//! A defect may make one of them end the server: abort, a fault, memory. The kernel and the journal
//! give it to the successor, which would end too, and so on, and no container would be answered any
//! more. So each thread records what it is about to handle, in memory that the keeper holds (a few
//! stores, no system call), and clears the record afterwards. After three deaths within a minute
//! with the same operation, file (or call) and container it is refused for a minute: a file is EIO
//! then, and a call is left to the kernel.
//!
//! Several threads have a request in hand when one of them kills all. So what was in hand at a
//! death is a suspect: suspects are handled one at a time, and one that is answered is cleared.
//!
//! A server that an administrator or a test killed has died of no request: what it had in hand is no
//! suspect. That the kernel killed it shows in the count of such kills.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use ambit_keeper::client::{Inherited, KeeperClient};
use ambit_keeper::memory::Memory;
use ambit_kernel::lock;
use ambit_kernel::recorder::{self, CALL, Recorder};
use ambit_sysinfo::{Owner, clock};

/// Its name with the keeper. Another layout gets another name.
const NAME: &str = "in-hand.2";
/// Requests that are recorded at a time; further ones are handled without a record.
const SLOTS: usize = 1280;
/// Suspects that are remembered at a time.
const SUSPECTS: usize = 64;
/// A request that was in hand at so many deaths is refused.
const DEATHS: u64 = 3;
/// How long a request is refused, and a suspect remembered, in nanoseconds.
const TERM: u64 = 60_000_000_000;
/// How long a suspect waits for the one that is being handled: that one may hang.
const TURN: Duration = Duration::from_secs(1);

/// A cache line of the shared memory: the header, then the suspects, then the slots.
type Line = [AtomicU64; 8];

/// In the header: how many processes the kernel had killed for lack of memory when it started.
const OOM_KILLS: usize = 1;
/// In a suspect: when the last server died, in nanoseconds.
const AT: usize = 4;
/// In a suspect: the number of deaths.
const COUNT: usize = 5;
/// In a slot: not 0 while its request is a suspect.
const IS_SUSPECT: usize = 4;

/// A request or a call, and its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    /// The number of a FUSE operation, or [`CALL`]. Never 0.
    operation: u64,
    /// The thread that waits.
    thread: u64,
    /// The node of a file; the number of a call, below its architecture.
    number: u64,
    /// The number of the container, 0 if that is not known.
    container: u64,
}

impl Request {
    fn read([operation, thread, number, container, ..]: &Line) -> Option<Self> {
        let operation = operation.load(Ordering::Acquire);
        let [thread, number, container] =
            [thread, number, container].map(|word| word.load(Ordering::Relaxed));
        (operation != 0).then_some(Self { operation, thread, number, container })
    }

    /// The last of these stores makes it valid.
    fn write(&self, [operation, thread, number, container, ..]: &Line) {
        thread.store(self.thread, Ordering::Relaxed);
        number.store(self.number, Ordering::Relaxed);
        container.store(self.container, Ordering::Relaxed);
        operation.store(self.operation, Ordering::Release);
    }

    /// The same operation and file, or the same call, of any container.
    fn is_like(&self, other: &Self) -> bool {
        (self.operation, self.number) == (other.operation, other.number)
    }

    /// The same of the same container.
    fn is_same(&self, other: &Self) -> bool {
        self.is_like(other) && self.container == other.container
    }
}

fn clear(line: &Line) {
    line[0].store(0, Ordering::Release);
}

/// Records what each thread is handling, and what was in hand when servers died.
pub struct CrashGuard {
    memory: Memory<Line>,
    /// The number of a thread's container, 0 if that is not known.
    container_of: Box<dyn Fn(u32) -> u64 + Send + Sync>,
    /// True while there may be a suspect.
    is_wary: AtomicBool,
    /// True while a suspect is handled.
    turn: Mutex<bool>,
    turn_ended: Condvar,
    /// The slots without a request.
    free: Mutex<Vec<usize>>,
}

impl CrashGuard {
    /// Records what a predecessor died of. `oom_kills` is how many processes the kernel has killed
    /// for lack of memory, if it counts them. `None` without a keeper, or without memory: there is
    /// no successor then, or it knows nothing.
    pub(crate) fn take_over(
        keeper: &KeeperClient,
        inherited: &mut Inherited,
        oom_kills: Option<u64>,
        container_of: impl Fn(u32) -> u64 + Send + Sync + 'static,
    ) -> Option<Self> {
        keeper.is_kept().then_some(())?;
        let (memory, fresh) = Memory::<Line>::open(NAME, 1 + SUSPECTS + SLOTS, keeper, inherited)
            .inspect_err(|error| tracing::warn!("requests that kill a server go on: {error}"))
            .ok()?;
        let before = memory[0][OOM_KILLS].swap(oom_kills.unwrap_or(0), Ordering::Relaxed);
        let died_of_it = keeper.predecessor_crashed()
            || keeper.predecessor_was_silent()
            || oom_kills.is_none_or(|now| now != before);
        let this = Self::new(memory, container_of);
        // The pages of a fresh one do not exist until they are looked at.
        if !fresh {
            this.record_death(died_of_it);
        }
        Some(this)
    }

    fn new(
        memory: Memory<Line>,
        container_of: impl Fn(u32) -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            memory,
            container_of: Box::new(container_of),
            is_wary: AtomicBool::new(false),
            turn: Mutex::default(),
            turn_ended: Condvar::new(),
            free: Mutex::new((0..SLOTS).rev().collect()),
        }
    }

    fn slots(&self) -> &[Line] {
        &self.memory[1 + SUSPECTS..]
    }

    /// The suspects that count `now`.
    fn suspects(&self, now: u64) -> impl Iterator<Item = (&Line, Request)> {
        let recent =
            move |line: &&Line| now.saturating_sub(line[AT].load(Ordering::Relaxed)) <= TERM;
        let suspects = self.memory[1..=SUSPECTS].iter().filter(recent);
        suspects.filter_map(|line| Some((line, Request::read(line)?)))
    }

    /// Clears the slots of the predecessor, and records what was in them if it died of that.
    fn record_death(&self, died_of_it: bool) {
        let now = clock::awake();
        let mut seen: Vec<Request> = Vec::new();
        for slot in self.slots() {
            let Some(mut request) = Request::read(slot) else { continue };
            clear(slot);
            slot[IS_SUSPECT].store(0, Ordering::Relaxed);
            if request.container == 0 && died_of_it {
                request.container = self.container_of(&request);
            }
            if died_of_it && !seen.iter().any(|other| other.is_same(&request)) {
                seen.push(request);
                self.suspect(&request, now);
            }
        }
        self.is_wary.store(self.suspects(now).next().is_some(), Ordering::Relaxed);
    }

    fn suspect(&self, request: &Request, now: u64) {
        let of = |request: Request| self.suspects(now).find(|(_, known)| known.is_same(&request));
        // At the first death the container may not have been known any more.
        let known = of(*request).or_else(|| of(Request { container: 0, ..*request }));
        let count = known.map_or(0, |(line, _)| line[COUNT].load(Ordering::Relaxed)) + 1;
        let suspicion = |line: &&Line| {
            let [at, count] = [AT, COUNT].map(|word| line[word].load(Ordering::Relaxed));
            let is_free = Request::read(line).is_none() || now.saturating_sub(at) > TERM;
            if is_free { (0, 0) } else { (count, at) }
        };
        let least = || self.memory[1..=SUSPECTS].iter().min_by_key(suspicion);
        let Some(line) = known.map(|(line, _)| line).or_else(least) else { return };
        clear(line);
        line[AT].store(now, Ordering::Relaxed);
        line[COUNT].store(count, Ordering::Relaxed);
        request.write(line);
        if count >= DEATHS {
            log(request);
        }
    }

    fn container_of(&self, request: &Request) -> u64 {
        (self.container_of)(u32::try_from(request.thread).unwrap_or(0))
    }

    /// The number of deaths at which this request was in hand. The container is only looked up, and
    /// noted, if a request like this one was.
    fn deaths(&self, request: &mut Request) -> u64 {
        let now = clock::awake();
        if self.suspects(now).next().is_none() {
            self.is_wary.store(false, Ordering::Relaxed);
        }
        if !self.suspects(now).any(|(_, known)| known.is_like(request)) {
            return 0;
        }
        request.container = self.container_of(request);
        let own = self.suspects(now).find(|(_, known)| known.is_same(request));
        own.map_or(0, |(line, _)| line[COUNT].load(Ordering::Relaxed))
    }
}

impl Recorder for CrashGuard {
    fn begin(&self, request: recorder::Request) -> Option<usize> {
        let recorder::Request { operation, number, thread } = request;
        let (operation, thread) = (operation.into(), thread.into());
        let mut request = Request { operation, thread, number, container: 0 };
        let is_wary = self.is_wary.load(Ordering::Relaxed);
        let deaths = if is_wary { self.deaths(&mut request) } else { 0 };
        if deaths >= DEATHS {
            return None;
        }
        let Some(place) = lock(&self.free).pop() else { return Some(SLOTS) };
        let slot = &self.slots()[place];
        if deaths > 0 {
            let turn = self.turn_ended.wait_timeout_while(lock(&self.turn), TURN, |taken| *taken);
            *turn.unwrap_or_else(PoisonError::into_inner).0 = true;
            slot[IS_SUSPECT].store(1, Ordering::Relaxed);
        }
        request.write(slot);
        Some(place)
    }

    fn end(&self, place: usize) {
        let Some(slot) = self.slots().get(place) else { return };
        if slot[IS_SUSPECT].swap(0, Ordering::Relaxed) != 0 {
            // It was answered. The same request of another thread may be the one that kills.
            let answered = Request::read(slot);
            let suspects = self.suspects(clock::awake());
            suspects.filter(|(_, one)| Some(*one) == answered).for_each(|(line, _)| clear(line));
            *lock(&self.turn) = false;
            self.turn_ended.notify_one();
        }
        clear(slot);
        lock(&self.free).push(place);
    }
}

impl std::fmt::Debug for CrashGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CrashGuard").field("is_wary", &self.is_wary).finish_non_exhaustive()
    }
}

fn log(request: &Request) {
    let Request { operation, thread, number, container } = *request;
    let (request, answer) = match u32::try_from(operation).unwrap_or(0) {
        CALL => (format!("system call {}", number & 0xFFFF_FFFF), "the kernel answers it"),
        operation => (ambit_fuse::describe(operation, number), "it is answered with EIO"),
    };
    tracing::error!(
        account = %Owner::describe_number(container),
        thread,
        "a defect: {DEATHS} servers died at the same request, {request}; {answer} for {} s",
        TERM / 1_000_000_000
    );
}

#[cfg(test)]
mod tests;
