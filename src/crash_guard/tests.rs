//! Deaths of servers, one after the other, over the same memory.

use ambit_fuse::Operation;
use ambit_kernel::recorder::RequestRecord;

use super::*;

fn over(memory: Memory<Line>) -> CrashGuard {
    // The container of a thread is its hundred.
    CrashGuard::new(memory, |thread| u64::from(thread / 100))
}

fn first() -> CrashGuard {
    over(Memory::new(NAME, 1 + SUSPECTS + SLOTS).unwrap().0)
}

fn after(guard: CrashGuard, died_of_it: bool) -> CrashGuard {
    let next = over(guard.memory);
    next.record_death(died_of_it);
    next
}

fn open(number: u64, thread: u32) -> recorder::Request {
    recorder::Request { operation: Operation::Open as u32, number, thread }
}

fn sysinfo(thread: u32) -> recorder::Request {
    recorder::Request { operation: CALL, number: 7 << 32 | 99, thread }
}

/// A thread handles this and never ends.
fn begin(guard: &CrashGuard, request: recorder::Request) -> bool {
    guard.begin(request).is_some()
}

fn is_answered(guard: &CrashGuard, request: recorder::Request) -> bool {
    RequestRecord::begin(Some(guard), request).is_some()
}

#[test]
fn a_request_is_refused_after_three_deaths_to_its_container_alone() {
    let mut guard = first();
    for thread in 101..104 {
        assert!(begin(&guard, open(7, thread)));
        guard = after(guard, true);
    }
    assert!(!is_answered(&guard, open(7, 105)));
    let read = recorder::Request { operation: Operation::Read as u32, ..open(7, 101) };
    assert!([open(7, 201), open(8, 101), read].map(|one| is_answered(&guard, one)) == [true; 3]);
    // A minute later.
    guard.memory[1][AT].store(clock::awake().wrapping_sub(TERM + 1), Ordering::Relaxed);
    assert!(is_answered(&guard, open(7, 105)) && !guard.is_wary.load(Ordering::Relaxed));
}

#[test]
fn a_request_in_hand_beside_it_is_cleared_by_its_answer() {
    let mut guard = first();
    assert!(begin(&guard, open(8, 201)));
    for _ in 0..3 {
        assert!(begin(&guard, open(7, 101)));
        guard = after(guard, true);
        assert!(is_answered(&guard, open(8, 201)));
    }
    assert!(!is_answered(&guard, open(7, 101)));
    assert_eq!(guard.suspects(clock::awake()).count(), 1);
}

#[test]
fn suspects_are_handled_one_at_a_time() {
    let guard = first();
    assert!(begin(&guard, open(7, 101)) && begin(&guard, open(8, 201)));
    let guard = after(guard, true);
    let first = RequestRecord::begin(Some(&guard), open(7, 101)).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            assert!(begin(&guard, open(8, 201)));
            assert!(ended.load(Ordering::Relaxed), "the first one first");
        });
        ended.store(true, Ordering::Relaxed);
        drop(first);
        assert!(other.join().is_ok());
    });
}

#[test]
fn a_server_that_was_killed_from_outside_makes_no_suspect() {
    let mut guard = first();
    for _ in 0..3 {
        assert!(begin(&guard, open(7, 101)));
        guard = after(guard, false);
        assert_eq!(guard.suspects(clock::awake()).count(), 0);
    }
    assert!(guard.slots().iter().all(|slot| Request::read(slot).is_none()));
}

#[test]
fn a_container_that_was_unknown_at_first_is_known_later() {
    let mut guard = first();
    for thread in [1, 101, 102] {
        assert!(begin(&guard, open(7, thread)));
        guard = after(guard, true);
    }
    assert!(!is_answered(&guard, open(7, 103)) && is_answered(&guard, open(7, 201)));
}

#[test]
fn a_call_is_in_hand_while_it_is_handled() {
    let mut guard = first();
    for _ in 0..3 {
        assert!(begin(&guard, sysinfo(101)) && is_answered(&guard, sysinfo(301)));
        guard = after(guard, true);
    }
    assert!(!is_answered(&guard, sysinfo(102)) && is_answered(&guard, sysinfo(301)));
    assert!(is_answered(&guard, recorder::Request { number: 7 << 32 | 98, ..sysinfo(102) }));
}

#[test]
fn more_suspects_than_records_replace_those_with_the_fewest_deaths() {
    let mut guard = first();
    for _ in 0..3 {
        assert!(begin(&guard, open(7, 101)));
        guard = after(guard, true);
    }
    (0..2 * SUSPECTS as u64).for_each(|node| assert!(begin(&guard, open(100 + node, 201))));
    let guard = after(guard, true);
    assert!(!is_answered(&guard, open(7, 101)));
}
