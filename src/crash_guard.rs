//! Refuses requests and calls that kill every server that handles them.
//!
//! A defect may make one of them end the server: abort, a fault, memory. The kernel and the journal
//! give it to the successor, which would end too, and so on, and no container would be answered any
//! more. So each thread notes what it is about to handle, in memory that the keeper holds (a few
//! stores, no system call), and clears its slot afterwards. A server that takes over from a dead
//! one finds what was in hand. After three deaths within a minute with the same operation, file (or
//! call) and container it is refused for a minute: a file is EIO then, and a call is left to the
//! kernel.
//!
//! Several threads have a request in hand when one of them kills all. So what was in hand at a
//! death is a suspect: suspects are handled one at a time, and one that is answered is cleared.
//!
//! A server that the kernel killed for want of memory, or the keeper because it was silent, may
//! have died of none of them: only a request that the same thread still waits for is counted then.
//! A server that was killed otherwise (an administrator, a test) died of none.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambit_fuse::{FileRequest, RequestRecorder};
use ambit_intercept::CallRecorder;
use ambit_keeper::client::{Inherited, KeeperClient};
use ambit_keeper::memory::Memory;
use ambit_sysinfo::{Owner, clock};
use libseccomp_sys::seccomp_data;

/// Its name with the keeper. Another layout gets another name.
const NAME: &str = "in-hand.2";
/// Threads at a time: those that act, and some for files and listeners. More are not noted.
const SLOTS: usize = 1280;
/// Suspects that are remembered at a time.
const RECORDS: usize = 64;
/// A request that was in hand at so many deaths is refused.
const DEATHS: u64 = 3;
/// How long a request is refused, and a suspect remembered, in nanoseconds.
const TERM: u64 = 60_000_000_000;
/// How long a suspect waits for the one that is being handled: that one may hang.
const TURN: Duration = Duration::from_secs(1);
/// A system call, among the numbers of FUSE operations.
const CALL: u32 = 1 << 16;

thread_local! {
    /// The slot that this thread used last.
    static LAST: Cell<usize> = const { Cell::new(0) };
}

/// A cache line of the shared memory: the [header](HEADER), a record or a slot.
type Line = [AtomicU64; 8];

/// The line that is neither a record nor a slot; the records follow, then the slots.
const HEADER: usize = 0;
/// In the header: the last server left in order, so what it had in hand has not killed it.
const LEFT: usize = 0;
/// In the header: how many processes the kernel had killed for want of memory when it started.
const OOM_KILLS: usize = 1;
/// In a record: when the last server died, in nanoseconds.
const AT: usize = 4;
/// In a record: the number of deaths.
const COUNT: usize = 5;
/// In a slot: not 0 while its request is a suspect.
const SUSPECT: usize = 4;

/// A request or a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    /// The number of a FUSE operation, or [`CALL`]. Never 0.
    operation: u32,
    /// The thread that waits, 0 where the kernel does not say.
    thread: u32,
    /// The node of a file; the number of a call, below its architecture.
    number: u64,
    /// The number of the container, 0 if that is not known.
    container: u64,
}

impl Request {
    fn read([operation, thread, number, container, ..]: &Line) -> Option<Self> {
        let small = |word: u64| u32::try_from(word).unwrap_or(0);
        let operation = small(operation.load(Ordering::Acquire));
        (operation != 0).then(|| Self {
            operation,
            thread: small(thread.load(Ordering::Relaxed)),
            number: number.load(Ordering::Relaxed),
            container: container.load(Ordering::Relaxed),
        })
    }

    /// The last of these stores makes it valid.
    fn write(&self, [operation, thread, number, container, ..]: &Line) {
        thread.store(self.thread.into(), Ordering::Relaxed);
        number.store(self.number, Ordering::Relaxed);
        container.store(self.container, Ordering::Relaxed);
        operation.store(self.operation.into(), Ordering::Release);
    }

    /// The same operation and file, or the same call, of whichever container.
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

/// How a server died of one of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Crash,
    /// By the kernel for want of memory, maybe, or by the keeper because it was silent.
    Killed,
}

/// Records what each thread is handling, and what was in hand when servers died.
pub struct CrashGuard {
    memory: Memory<Line>,
    /// The number of a thread's container, 0 if that is not known.
    container_of: Box<dyn Fn(u32) -> u64 + Send + Sync>,
    /// True while there may be a record.
    wary: AtomicBool,
    /// True while a suspect is handled.
    turn: Mutex<bool>,
    turn_ended: Condvar,
    /// The slots that a thread uses.
    taken: Box<[AtomicBool]>,
}

impl CrashGuard {
    /// Records what a predecessor died of. `oom_kills` is how many processes the kernel has killed
    /// for want of memory, if it counts them. `None` without a keeper, or without memory: there is
    /// no successor then, or it knows nothing.
    pub(crate) fn take_over(
        link: &KeeperClient,
        held: &mut Inherited,
        oom_kills: Option<u64>,
        container_of: impl Fn(u32) -> u64 + Send + Sync + 'static,
    ) -> Option<Arc<Self>> {
        link.is_kept().then_some(())?;
        let (memory, fresh) = Memory::<Line>::open(NAME, 1 + RECORDS + SLOTS, link, held)
            .inspect_err(|error| tracing::warn!("requests that kill a server go on: {error}"))
            .ok()?;
        let before = memory[HEADER][OOM_KILLS].swap(oom_kills.unwrap_or(0), Ordering::Relaxed);
        let death = match oom_kills {
            _ if link.predecessor_crashed() => Some(Death::Crash),
            Some(now) if now == before && !link.predecessor_was_silent() => None,
            _ => Some(Death::Killed),
        };
        let this = Self::new(memory, container_of);
        // The pages of a fresh one do not exist until they are looked at.
        if !fresh {
            this.record_crash(death);
        }
        Some(Arc::new(this))
    }

    fn new(
        memory: Memory<Line>,
        container_of: impl Fn(u32) -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            memory,
            container_of: Box::new(container_of),
            wary: AtomicBool::new(false),
            turn: Mutex::new(false),
            turn_ended: Condvar::new(),
            taken: (0..SLOTS).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    fn slot(&self, slot: usize) -> Option<&Line> {
        self.memory[1 + RECORDS..].get(slot)
    }

    /// The records that count `now`.
    fn records(&self, now: u64) -> impl Iterator<Item = (&Line, Request)> {
        let recent =
            move |line: &Line| now.saturating_sub(line[AT].load(Ordering::Relaxed)) <= TERM;
        let records = self.memory[1..=RECORDS].iter().filter(move |line| recent(line));
        records.filter_map(|line| Some((line, Request::read(line)?)))
    }

    /// Records what the predecessor had in hand, if it died of that, and clears its slots.
    fn record_crash(&self, death: Option<Death>) {
        let now = clock::awake();
        let left = self.memory[HEADER][LEFT].swap(0, Ordering::Relaxed) != 0;
        let death = death.filter(|_| !left);
        let mut seen: Vec<Request> = Vec::new();
        for slot in &self.memory[1 + RECORDS..] {
            let Some(mut request) = Request::read(slot) else { continue };
            clear(slot);
            slot[SUSPECT].store(0, Ordering::Relaxed);
            let Some(death) = death else { continue };
            if request.container == 0 {
                request.container = (self.container_of)(request.thread);
            }
            if !seen.iter().any(|other| other.is_same(&request)) {
                seen.push(request);
                self.record(&request, death, now);
            }
        }
        self.wary.store(self.records(now).next().is_some(), Ordering::Relaxed);
    }

    fn record(&self, request: &Request, death: Death, now: u64) {
        let of = |request: Request| self.records(now).find(|(_, known)| known.is_same(&request));
        // At the first death the container may not have been known any more.
        let known = of(*request).or_else(|| of(Request { container: 0, ..*request }));
        let before = known.map_or(0, |(line, known)| match death {
            Death::Killed if known.thread != request.thread => 0,
            _ => line[COUNT].load(Ordering::Relaxed),
        });
        let suspicion = |line: &&Line| {
            let [at, count] = [AT, COUNT].map(|word| line[word].load(Ordering::Relaxed));
            let is_free = Request::read(line).is_none() || now.saturating_sub(at) > TERM;
            if is_free { (0, 0) } else { (count, at) }
        };
        let least = || self.memory[1..=RECORDS].iter().min_by_key(suspicion);
        let Some(line) = known.map(|(line, _)| line).or_else(least) else { return };
        clear(line);
        line[AT].store(now, Ordering::Relaxed);
        line[COUNT].store(before + 1, Ordering::Relaxed);
        request.write(line);
        if before + 1 >= DEATHS {
            log(request);
        }
    }

    /// The server leaves in order, whatever its threads are handling.
    pub(crate) fn leave(&self) {
        self.memory[HEADER][LEFT].store(1, Ordering::Relaxed);
    }

    /// A slot for this thread, the one that it used last if that is free. [`SLOTS`] if none is.
    fn take_slot(&self) -> usize {
        let mut slots = (0..SLOTS).map(|step| (LAST.get() + step) % SLOTS);
        let slot = slots.find(|&slot| !self.taken[slot].swap(true, Ordering::Acquire));
        LAST.set(slot.unwrap_or(0));
        slot.unwrap_or(SLOTS)
    }

    /// False if the request is refused.
    fn begin_request(&self, slot: usize, mut request: Request) -> bool {
        let wary = self.wary.load(Ordering::Relaxed);
        let deaths = if wary { self.deaths(&mut request) } else { 0 };
        if deaths >= DEATHS {
            return false;
        }
        let Some(slot) = self.slot(slot) else { return true };
        if deaths > 0 {
            let turn = self.turn_ended.wait_timeout_while(lock(&self.turn), TURN, |taken| *taken);
            *turn.unwrap_or_else(PoisonError::into_inner).0 = true;
            slot[SUSPECT].store(1, Ordering::Relaxed);
        }
        request.write(slot);
        true
    }

    fn end_request(&self, slot: usize) {
        let Some(slot) = self.slot(slot) else { return };
        if slot[SUSPECT].load(Ordering::Relaxed) != 0 {
            slot[SUSPECT].store(0, Ordering::Relaxed);
            // It was answered. The same request of another thread may be the one that kills.
            let answered = Request::read(slot);
            let records = self.records(clock::awake());
            records.filter(|(_, known)| Some(*known) == answered).for_each(|(line, _)| clear(line));
            *lock(&self.turn) = false;
            self.turn_ended.notify_one();
        }
        clear(slot);
    }

    /// The number of deaths at which this request was in hand. The container is only looked up, and
    /// noted, if a request like this one was.
    fn deaths(&self, request: &mut Request) -> u64 {
        let now = clock::awake();
        if self.records(now).next().is_none() {
            self.wary.store(false, Ordering::Relaxed);
        }
        if !self.records(now).any(|(_, known)| known.is_like(request)) {
            return 0;
        }
        request.container = (self.container_of)(request.thread);
        let own = self.records(now).find(|(_, known)| known.is_same(request));
        own.map_or(0, |(line, _)| line[COUNT].load(Ordering::Relaxed))
    }
}

impl CallRecorder for CrashGuard {
    fn begin_call(&self, thread: u32, data: &seccomp_data) -> Option<usize> {
        let number = u64::from(data.arch) << 32 | u64::from(data.nr.cast_unsigned());
        let slot = self.take_slot();
        let request = Request { operation: CALL, number, container: 0, thread };
        if self.begin_request(slot, request) {
            return Some(slot);
        }
        self.end_call(slot);
        None
    }

    fn end_call(&self, slot: usize) {
        self.end_request(slot);
        if let Some(taken) = self.taken.get(slot) {
            taken.store(false, Ordering::Release);
        }
    }
}

impl RequestRecorder for CrashGuard {
    fn register_thread(&self) -> usize {
        self.take_slot()
    }

    fn begin(&self, slot: usize, request: FileRequest) -> bool {
        let FileRequest { operation, node: number, thread } = request;
        let operation = operation as u32;
        self.begin_request(slot, Request { operation, number, container: 0, thread })
    }

    fn end(&self, slot: usize) {
        self.end_request(slot);
    }
}

impl std::fmt::Debug for CrashGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CrashGuard").field("wary", &self.wary).finish_non_exhaustive()
    }
}

fn log(request: &Request) {
    let Request { operation, thread, number, container } = *request;
    let account = Owner::describe_number(container);
    let (request, answer) = match operation {
        CALL => (format!("system call {}", number & 0xFFFF_FFFF), "the kernel answers it"),
        _ => (ambit_fuse::describe(operation, number), "it is answered with EIO"),
    };
    tracing::error!(
        account = %account,
        thread,
        "a defect: {DEATHS} servers died at the same request, {request}; {answer} for {} s",
        TERM / 1_000_000_000
    );
}

fn lock(mutex: &Mutex<bool>) -> MutexGuard<'_, bool> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use ambit_fuse::Operation;
    use ambit_intercept::InHand;

    use super::*;

    fn over(memory: Memory<Line>) -> CrashGuard {
        // The container of a thread is its hundred.
        CrashGuard::new(memory, |thread| u64::from(thread / 100))
    }

    fn first() -> CrashGuard {
        over(Memory::new(NAME, 1 + RECORDS + SLOTS).unwrap().0)
    }

    fn after(guard: CrashGuard, death: Option<Death>) -> CrashGuard {
        let next = over(guard.memory);
        next.record_crash(death);
        next
    }

    fn open(node: u64, thread: u32) -> FileRequest {
        FileRequest { operation: Operation::Open, node, thread }
    }

    /// A thread handles this and never ends.
    fn begin(guard: &CrashGuard, request: FileRequest) -> bool {
        guard.begin(guard.register_thread(), request)
    }

    fn is_answered(guard: &CrashGuard, request: FileRequest) -> bool {
        let slot = guard.register_thread();
        let begun = guard.begin(slot, request);
        guard.end(slot);
        begun
    }

    fn call<'a>(guard: &'a CrashGuard, thread: u32, data: &seccomp_data) -> Option<InHand<'a>> {
        InHand::begin(guard, thread, data)
    }

    fn sysinfo() -> seccomp_data {
        seccomp_data { nr: 99, arch: 7, instruction_pointer: 0, args: [0; 6] }
    }

    #[test]
    fn a_request_is_refused_after_three_deaths_to_its_container_alone() {
        let mut guard = first();
        for thread in 101..104 {
            assert!(begin(&guard, open(7, thread)));
            guard = after(guard, Some(Death::Crash));
        }
        assert!(!is_answered(&guard, open(7, 105)));
        let read = FileRequest { operation: Operation::Read, ..open(7, 101) };
        assert!(
            [open(7, 201), open(8, 101), read].map(|one| is_answered(&guard, one)) == [true; 3]
        );
        // A minute later.
        guard.memory[1][AT].store(clock::awake().wrapping_sub(TERM + 1), Ordering::Relaxed);
        assert!(is_answered(&guard, open(7, 105)) && !guard.wary.load(Ordering::Relaxed));
    }

    #[test]
    fn a_request_in_hand_beside_it_is_cleared_by_its_answer() {
        let mut guard = first();
        assert!(begin(&guard, open(8, 201)));
        for _ in 0..3 {
            assert!(begin(&guard, open(7, 101)));
            guard = after(guard, Some(Death::Crash));
            assert!(is_answered(&guard, open(8, 201)));
        }
        assert!(!is_answered(&guard, open(7, 101)));
        assert_eq!(guard.records(clock::awake()).count(), 1);
    }

    #[test]
    fn suspects_are_handled_one_at_a_time() {
        let guard = first();
        assert!(begin(&guard, open(7, 101)) && begin(&guard, open(8, 201)));
        let guard = after(guard, Some(Death::Crash));
        let slot = guard.register_thread();
        assert!(guard.begin(slot, open(7, 101)));
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                assert!(begin(&guard, open(8, 201)));
                assert!(ended.load(Ordering::Relaxed), "the first one first");
            });
            ended.store(true, Ordering::Relaxed);
            guard.end(slot);
            assert!(other.join().is_ok());
        });
    }

    #[test]
    fn a_server_that_left_or_was_killed_from_outside_makes_no_suspect() {
        let mut guard = first();
        for leaves in [true, false, false, false] {
            assert!(begin(&guard, open(7, 101)));
            if leaves {
                guard.leave();
            }
            guard = after(guard, leaves.then_some(Death::Crash));
            assert_eq!(guard.records(clock::awake()).count(), 0);
        }
        assert!(guard.memory[1 + RECORDS..].iter().all(|slot| Request::read(slot).is_none()));
    }

    #[test]
    fn a_server_killed_for_want_of_memory_accuses_only_who_still_waits() {
        let mut guard = first();
        for thread in [101, 102, 103, 103, 103] {
            assert!(begin(&guard, open(7, thread)));
            guard = after(guard, Some(Death::Killed));
        }
        assert!(!is_answered(&guard, open(7, 104)));
    }

    #[test]
    fn a_container_that_was_unknown_at_first_is_known_later() {
        let mut guard = first();
        for thread in [1, 101, 102] {
            assert!(begin(&guard, open(7, thread)));
            guard = after(guard, Some(Death::Crash));
        }
        assert!(!is_answered(&guard, open(7, 103)) && is_answered(&guard, open(7, 201)));
    }

    #[test]
    fn a_call_is_in_hand_while_it_is_handled() {
        let mut guard = first();
        for _ in 0..3 {
            std::mem::forget(call(&guard, 101, &sysinfo()).unwrap());
            drop(call(&guard, 301, &sysinfo()).unwrap());
            guard = after(guard, Some(Death::Crash));
        }
        assert!(call(&guard, 102, &sysinfo()).is_none() && call(&guard, 301, &sysinfo()).is_some());
        assert!(call(&guard, 102, &seccomp_data { nr: 98, ..sysinfo() }).is_some());
    }

    #[test]
    fn more_suspects_than_records_replace_those_with_the_fewest_deaths() {
        let mut guard = first();
        for _ in 0..3 {
            assert!(begin(&guard, open(7, 101)));
            guard = after(guard, Some(Death::Crash));
        }
        (0..2 * RECORDS as u64).for_each(|node| assert!(begin(&guard, open(100 + node, 201))));
        let guard = after(guard, Some(Death::Crash));
        assert!(!is_answered(&guard, open(7, 101)));
    }
}
