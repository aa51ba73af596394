//! What the counters of each container have reached, in a file in memory that outlives the process:
//! its successor counts on from there, so that no counter ever goes back.
//!
//! One record of fixed size for a container, written whole before its numbers are shown. A record
//! up to a page long is written in one step even by a process that is being killed; a longer one
//! that was cut off does not match its sum and is not used. Containers that are gone give their
//! records back.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::hash::fnv1a_words;

/// The first words of a record: what it is, of which layout; whose (two words); how many follow.
const HEAD: usize = 4;
/// "ambitBL" and the version of the layout.
const MAGIC: u64 = 0x616d_6269_7442_4c01;
/// Containers at most; one more is not remembered.
pub(crate) const MOST: usize = 16 << 10;
const PAGE: usize = 4096;
const WORD: usize = 8;

/// Who a record is of: the pid namespace's inode and the start of its first process.
pub(crate) type RecordKey = (u64, u64);

/// All records.
#[derive(Debug)]
pub(crate) struct CounterStore {
    file: OwnedFd,
    size: usize,
    records: Mutex<Records>,
    /// Done when the containers that a predecessor recorded have been searched for.
    pub(crate) adopted: Once,
}

#[derive(Debug, Default)]
struct Records {
    /// Of a predecessor's, not yet asked for.
    unclaimed: HashMap<RecordKey, (usize, Vec<u64>)>,
    free: Vec<usize>,
    end: usize,
}

impl CounterStore {
    /// Reads what a predecessor wrote. Records have room for this many processors.
    pub(crate) fn open(file: OwnedFd, processors: usize) -> Self {
        let words = HEAD + 24 + 6 * processors.max(64) + 1;
        let size = (words * WORD).next_multiple_of(PAGE);
        let mut records = Records::default();
        let mut record = vec![0; size];
        while records.end < MOST
            && rustix::io::pread(&file, &mut record[..], (records.end * size) as u64) == Ok(size)
        {
            match parse(&record) {
                Some((key, words)) => drop(records.unclaimed.insert(key, (records.end, words))),
                None => records.free.push(records.end),
            }
            records.end += 1;
        }
        Self { file, size, records: Mutex::new(records), adopted: Once::new() }
    }

    /// A place for a container, and what a predecessor wrote of it.
    pub(crate) fn claim(&self, key: RecordKey) -> (Option<usize>, Option<Vec<u64>>) {
        let mut records = self.lock();
        if let Some((slot, words)) = records.unclaimed.remove(&key) {
            return (Some(slot), Some(words));
        }
        let slot = records.free.pop().or_else(|| {
            let slot = records.end;
            let size = ((slot + 1) * self.size) as u64;
            // A record is read whole, however much of it was written.
            let room = slot < MOST && rustix::fs::ftruncate(&self.file, size).is_ok();
            room.then(|| {
                records.end += 1;
                slot
            })
        });
        (slot, None)
    }

    /// Returns the keys of the records of a predecessor that no container has claimed.
    pub(crate) fn unclaimed(&self) -> Vec<RecordKey> {
        self.lock().unclaimed.keys().copied().collect()
    }

    /// Frees an unclaimed record whose container is gone.
    pub(crate) fn discard_unclaimed(&self, key: RecordKey) {
        let unclaimed = self.lock().unclaimed.remove(&key);
        if let Some((slot, _)) = unclaimed {
            self.release(slot);
        }
    }

    /// Writes a record, by way of a buffer that the caller keeps. What does not fit is not written.
    pub(crate) fn write(
        &self,
        slot: usize,
        key: RecordKey,
        words: impl Iterator<Item = u64>,
        record: &mut Vec<u8>,
    ) {
        record.clear();
        let head = [MAGIC, key.0, key.1, 0];
        for word in head.into_iter().chain(words) {
            record.extend_from_slice(&word.to_ne_bytes());
        }
        if record.len() + WORD > self.size {
            return;
        }
        let count = (record.len() / WORD - HEAD) as u64;
        record[3 * WORD..HEAD * WORD].copy_from_slice(&count.to_ne_bytes());
        let sum = sum(record);
        record.extend_from_slice(&sum.to_ne_bytes());
        // Memory is all that can be missing, and then the numbers of now are worth more.
        let _ = rustix::io::pwrite(&self.file, record, (slot * self.size) as u64);
    }

    /// The container is gone.
    pub(crate) fn release(&self, slot: usize) {
        let _ = rustix::io::pwrite(&self.file, &[0; WORD], (slot * self.size) as u64);
        self.lock().free.push(slot);
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(record: &[u8]) -> Option<(RecordKey, Vec<u64>)> {
    let word = |index: usize| {
        let bytes = record.get(index * WORD..(index + 1) * WORD)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let count = usize::try_from(word(3)?).ok().filter(|count| *count < record.len() / WORD)?;
    let text = record.get(..(HEAD + count) * WORD)?;
    if word(0)? != MAGIC || word(HEAD + count)? != sum(text) {
        return None;
    }
    let words = (HEAD..HEAD + count).map(word).collect::<Option<_>>()?;
    Some(((word(1)?, word(2)?), words))
}

fn sum(text: &[u8]) -> u64 {
    let words = text.chunks_exact(WORD);
    fnv1a_words(words.map(|word| word.try_into().map_or(0, u64::from_ne_bytes)))
}

#[cfg(test)]
mod tests {
    use rustix::fs::MemfdFlags;

    use super::*;

    #[test]
    fn a_successor_finds_what_was_written_and_nothing_of_who_is_gone() {
        let file = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        let store = CounterStore::open(file.try_clone().unwrap(), 4);
        let (first, second) = (store.claim((1, 2)).0.unwrap(), store.claim((3, 4)).0.unwrap());
        let mut buffer = Vec::new();
        store.write(first, (1, 2), [7, 8, 9].into_iter(), &mut buffer);
        store.write(second, (3, 4), [10].into_iter(), &mut buffer);
        store.release(second);
        let successor = CounterStore::open(file, 4);
        assert_eq!(successor.claim((3, 4)), (Some(second), None));
        assert_eq!(successor.unclaimed(), [(1, 2)]);
        assert_eq!(successor.claim((1, 2)), (Some(first), Some(vec![7, 8, 9])));
        assert_eq!(successor.unclaimed(), []);
    }

    #[test]
    fn a_record_whose_container_is_gone_is_free_again() {
        let file = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        let store = CounterStore::open(file.try_clone().unwrap(), 4);
        let slot = store.claim((1, 2)).0.unwrap();
        store.write(slot, (1, 2), [7].into_iter(), &mut Vec::new());
        let successor = CounterStore::open(file.try_clone().unwrap(), 4);
        successor.discard_unclaimed((1, 2));
        assert_eq!(successor.claim((5, 6)), (Some(slot), None));
        assert_eq!(CounterStore::open(file, 4).unclaimed(), []);
    }

    #[test]
    fn a_record_that_was_cut_off_is_not_used() {
        let file = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        let store = CounterStore::open(file.try_clone().unwrap(), 4);
        let slot = store.claim((1, 2)).0.unwrap();
        store.write(slot, (1, 2), 0..100, &mut Vec::new());
        rustix::io::pwrite(&file, &[1; 8], 400).unwrap();
        assert_eq!(CounterStore::open(file, 4).claim((1, 2)).1, None);
    }
}
