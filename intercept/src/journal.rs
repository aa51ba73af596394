//! The journal: the calls that were received and not answered yet, in memory that the keeper holds
//! too.
//!
//! The kernel delivers a notification once. It is received directly into this memory, so a
//! successor knows every call of a server that was killed at any moment. The journal records that
//! an operation begins before it begins, and its answer before that is sent. A successor sends a
//! recorded answer, runs a call again that had not begun or may be repeated
//! ([`Repeat`](crate::Repeat)), and answers EINTR to the others. A slot must never be read or
//! written by a thread that has not taken it.
#![allow(unsafe_code, reason = "the kernel writes into memory that outlives the process")]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ambit_keeper::client::{Inherited, KeeperClient};
use ambit_keeper::memory::{Lasting, Memory};
use ambit_sysinfo::{Account, Budget, Charge, Resource};
use libseccomp_sys::{seccomp_notif, seccomp_notif_resp};
use rustix::io::Errno;

use super::Error;
use super::listener::{EMPTY_NOTIFICATION, Listener};

/// The name of the memory with the keeper. Another layout needs another name.
const NAME: &str = "journal-of-calls.1";
/// Calls that are recorded at a time. Calls beyond that are answered too, but not after a crash.
const SLOTS: usize = 1024;

const EMPTY: u32 = 0;
const RECEIVED: u32 = 1;
const BEGUN: u32 = 2;
const DONE: u32 = 3;

#[repr(C)]
struct Slot {
    state: AtomicU32,
    flags: AtomicU32,
    /// The number of the listener with the keeper, or that of a connection of liblxc.
    listener: AtomicU64,
    value: AtomicI64,
    error: AtomicI32,
    spare: AtomicU32,
    notification: UnsafeCell<seccomp_notif>,
}

// SAFETY: `notification` is accessed only by the one entry that has taken the slot's index from
// `free`; the other fields are atomic.
unsafe impl Sync for Slot {}
// SAFETY: the fields are integers, for which every bit pattern is valid; zeroes are an empty slot.
unsafe impl Lasting for Slot {}

/// All slots.
pub(super) struct Journal {
    slots: Memory<Slot>,
    free: Mutex<Vec<usize>>,
    /// The calls of a predecessor that were not taken over yet.
    left: Mutex<Vec<LeftCall>>,
    /// The budget of slots, so that one container cannot have all.
    budget: Arc<Budget>,
}

/// How far the handling of a call had come when a predecessor died.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    Received,
    Begun,
    Done(seccomp_notif_resp),
}

/// A call that a predecessor left.
#[derive(Debug)]
pub(super) struct LeftCall {
    pub(super) listener: u64,
    pub(super) phase: Phase,
    pub(super) notification: seccomp_notif,
    index: usize,
}

impl Journal {
    /// Takes over the journal of a predecessor, or makes one.
    pub(super) fn open(link: &KeeperClient, held: &mut Inherited) -> Result<Arc<Self>, Error> {
        let (slots, fresh) = Memory::open(NAME, SLOTS, link, held)
            .map_err(|source| Error::System { what: "no memory for the journal", source })?;
        let budget = Budget::new(Resource::Calls, SLOTS);
        let mut journal = Self { slots, free: Mutex::default(), left: Mutex::default(), budget };
        let (mut free, mut left) = (Vec::new(), Vec::new());
        // A new journal is not read, so that its pages are not allocated.
        for index in (0..SLOTS).rev() {
            match if fresh { None } else { journal.read(index) } {
                None if fresh => free.push(index),
                Some(call) => left.push(call),
                None => {
                    journal.clear(index);
                    free.push(index);
                }
            }
        }
        (journal.free, journal.left) = (Mutex::new(free), Mutex::new(left));
        Ok(Arc::new(journal))
    }

    /// Returns the call that a predecessor left in a slot.
    fn read(&self, index: usize) -> Option<LeftCall> {
        let slot = &self.slots[index];
        // SAFETY: every bit pattern is a valid `seccomp_notif`. No entry has the slot yet, and the
        // predecessor has ended.
        let notification = unsafe { *slot.notification.get() };
        let phase = match slot.state.load(Ordering::Acquire) {
            // The kernel may have written this after the server was killed inside of RECV.
            RECEIVED if notification.id != 0 => Phase::Received,
            BEGUN => Phase::Begun,
            DONE => Phase::Done(seccomp_notif_resp {
                id: notification.id,
                val: slot.value.load(Ordering::Relaxed),
                error: slot.error.load(Ordering::Relaxed),
                flags: slot.flags.load(Ordering::Relaxed),
            }),
            _ => return None,
        };
        let listener = slot.listener.load(Ordering::Relaxed);
        Some(LeftCall { listener, phase, notification, index })
    }

    fn clear(&self, index: usize) {
        let slot = &self.slots[index];
        slot.state.store(EMPTY, Ordering::Release);
        // SAFETY: the slot belongs to the entry that is dropped, or to no entry while the journal
        // is opened.
        unsafe { *slot.notification.get() = EMPTY_NOTIFICATION };
    }

    /// Takes the calls of one listener that a predecessor left, each with its slot.
    pub(super) fn take_left(self: &Arc<Self>, listener: u64) -> Vec<(LeftCall, Entry)> {
        let mut all = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = all.extract_if(.., |left| left.listener == listener);
        let entry = |index| {
            let _charge = self.budget.try_charge(None, 1);
            Entry { journal: Arc::clone(self), index: Some(index), _charge }
        };
        of_it.map(|left| (entry(left.index), left)).map(|(entry, left)| (left, entry)).collect()
    }

    /// True if no call is under way.
    pub(super) fn is_idle(&self) -> bool {
        let waiting = self.left.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len() + waiting == SLOTS
    }

    /// Takes a slot for the next call of a container. The entry has no slot if the container has
    /// used up its share, or if all slots are taken.
    pub(super) fn new_entry(self: &Arc<Self>, payer: &Arc<Account>) -> Entry {
        let charge = self.budget.try_charge(Some(payer), 1);
        let take = || self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let index = charge.as_ref().and_then(|_| take());
        Entry { journal: Arc::clone(self), index, _charge: charge }
    }
}

/// The entry of a call in the journal, from its receipt until it was answered.
pub(super) struct Entry {
    journal: Arc<Journal>,
    index: Option<usize>,
    _charge: Option<Charge>,
}

impl Entry {
    /// Receives one notification into the slot, as [`Listener::receive`] does.
    pub(super) fn receive(&mut self, listener: &Listener) -> Result<seccomp_notif, Errno> {
        let Some(index) = self.index else { return listener.receive() };
        let slot = &self.journal.slots[index];
        slot.listener.store(listener.number(), Ordering::Relaxed);
        slot.state.store(RECEIVED, Ordering::Release);
        // SAFETY: this entry alone has the slot, and no other reference to it exists.
        let received = listener.receive_into(unsafe { &mut *slot.notification.get() });
        // SAFETY: this entry alone has the slot, and the reference of the line above has ended.
        received.map(|()| unsafe { *slot.notification.get() })
    }

    /// Records a call that arrived by the liblxc connection with this number. Its packet stays in
    /// that connection until it was answered.
    pub(super) fn record_call(&self, connection: u64, notification: seccomp_notif) {
        let Some(index) = self.index else { return };
        let slot = &self.journal.slots[index];
        slot.listener.store(connection, Ordering::Relaxed);
        // SAFETY: this entry alone has the slot, and `&self` gives out no reference to it.
        unsafe { *slot.notification.get() = notification };
        slot.state.store(RECEIVED, Ordering::Release);
    }

    /// Records that an operation begins.
    pub(super) fn begin(&self) {
        if let Some(index) = self.index {
            self.journal.slots[index].state.store(BEGUN, Ordering::Release);
        }
    }

    /// Records the answer that is sent next.
    pub(super) fn record_answer(&self, answer: &seccomp_notif_resp) {
        let Some(index) = self.index else { return };
        let slot = &self.journal.slots[index];
        slot.value.store(answer.val, Ordering::Relaxed);
        slot.error.store(answer.error, Ordering::Relaxed);
        slot.flags.store(answer.flags, Ordering::Relaxed);
        slot.state.store(DONE, Ordering::Release);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            self.journal.clear(index);
            self.journal.free.lock().unwrap_or_else(PoisonError::into_inner).push(index);
        }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("index", &self.index).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use ambit_sysinfo::Owner;

    use super::*;

    fn payer(name: &str) -> Arc<Account> {
        Account::new(Owner::Named(name.into()))
    }

    #[test]
    fn a_slot_records_a_call_until_its_entry_is_dropped() {
        let journal = Journal::open(&KeeperClient::default(), &mut Inherited::default()).unwrap();
        let payer = payer("a");
        let (first, second) = (journal.new_entry(&payer), journal.new_entry(&payer));
        assert_ne!(first.index, second.index);
        first.begin();
        let index = first.index.unwrap();
        assert!(matches!(journal.read(index).unwrap().phase, Phase::Begun));
        second.record_answer(&seccomp_notif_resp { id: 7, val: 8, error: 0, flags: 0 });
        let left = journal.read(second.index.unwrap()).unwrap();
        assert!(matches!(left.phase, Phase::Done(answer) if answer.val == 8), "{left:?}");
        drop(first);
        assert!(journal.read(index).is_none());
        assert_eq!(journal.new_entry(&payer).index, Some(index));
    }

    #[test]
    fn a_call_without_a_slot_has_an_entry_too() {
        let journal = Journal::open(&KeeperClient::default(), &mut Inherited::default()).unwrap();
        let payer = payer("a");
        let entries: Vec<_> = (0..SLOTS + 2).map(|_| journal.new_entry(&payer)).collect();
        assert!(entries[SLOTS].index.is_none());
        entries[SLOTS].begin();
    }

    #[test]
    fn a_container_with_many_calls_leaves_slots_for_others() {
        let journal = Journal::open(&KeeperClient::default(), &mut Inherited::default()).unwrap();
        let (one, other) = (payer("a"), payer("b"));
        let entries: Vec<_> = (0..SLOTS).map(|_| journal.new_entry(&one)).collect();
        let has_slot = |entry: &&Entry| entry.index.is_some();
        assert_eq!(entries.iter().filter(has_slot).count(), SLOTS / 2);
        assert!(journal.new_entry(&other).index.is_some());
        drop(entries);
        assert!(journal.is_idle());
        assert_eq!(journal.budget.taken(), 0);
    }
}
