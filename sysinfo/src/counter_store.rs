//! The counter store: the values that the counters of each container have reached, in a file in
//! memory that outlives the process. A successor continues from them, so that no counter decreases
//! across a restart or crash.
//!
//! Each container has one record of fixed size, written whole before its numbers are shown. The
//! kernel completes a write of up to a page even for a process that is being killed; a longer
//! record that was cut off does not match its checksum and is not used. The record of a container
//! that has ended is released. Must never show a number that is not yet recorded. Start reading at
//! [`CounterStore::claim`].

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, Once};

use crate::hash::fnv1a_words;
use ambit_kernel::lock;

/// The name of the store among what outlives a program. It ends with the version of the layout.
pub const COUNTER_STORE: &str = "baselines.1";

/// Words before the counters: magic number with version, the key (two words), the number of
/// counters.
const HEAD: usize = 4;
/// "ambitBL" and the version of the layout.
const MAGIC: u64 = 0x616d_6269_7442_4c01;
/// Largest number of records; further containers have none.
pub(crate) const MOST: usize = 16 << 10;
/// Records read by one system call.
const READ_AT_ONCE: usize = 64;
const PAGE: usize = 4096;
const WORD: usize = 8;

/// Identifies the container of a record: inode of the pid namespace and start of its first process,
/// or 0 and the hash of the cgroups.
pub(crate) type RecordKey = (u64, u64);

/// All records of the file.
#[derive(Debug)]
pub(crate) struct CounterStore {
    file: OwnedFd,
    size: usize,
    records: Mutex<Records>,
    /// Completed when the containers of a predecessor's records have been looked up.
    pub(crate) adopted: Once,
}

#[derive(Debug, Default)]
struct Records {
    /// A predecessor's records that no container has claimed: slot and counters.
    unclaimed: HashMap<RecordKey, (usize, Vec<u64>)>,
    free: Vec<usize>,
    end: usize,
}

impl CounterStore {
    /// Opens the store and reads the records of a predecessor. Records have room for this many
    /// processors.
    pub(crate) fn open(file: OwnedFd, processors: usize) -> Self {
        let words = HEAD + 24 + 6 * processors.max(64) + 1;
        let size = (words * WORD).next_multiple_of(PAGE);
        let mut records = Records::default();
        // A successor of a server with a thousand containers reads them all before it serves.
        let mut text = vec![0; READ_AT_ONCE * size];
        loop {
            let read = rustix::io::pread(&file, &mut text[..], (records.end * size) as u64);
            let whole = text[..read.unwrap_or(0)].chunks_exact(size);
            if whole.len() == 0 || records.end >= MOST {
                break;
            }
            for record in whole {
                match parse(record) {
                    Some((key, words)) => drop(records.unclaimed.insert(key, (records.end, words))),
                    None => records.free.push(records.end),
                }
                records.end += 1;
            }
        }
        Self { file, size, records: Mutex::new(records), adopted: Once::new() }
    }

    /// Returns the slot of a container's record and the counters a predecessor wrote. No slot when
    /// the store is full.
    pub(crate) fn claim(&self, key: RecordKey) -> (Option<usize>, Option<Vec<u64>>) {
        let mut records = lock(&self.records);
        if let Some((slot, words)) = records.unclaimed.remove(&key) {
            return (Some(slot), Some(words));
        }
        let slot = records.free.pop().or_else(|| {
            let slot = records.end;
            let size = ((slot + 1) * self.size) as u64;
            // Readers expect a whole record, whatever its length.
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
        lock(&self.records).unclaimed.keys().copied().collect()
    }

    /// Frees an unclaimed record whose container is gone.
    pub(crate) fn discard_unclaimed(&self, key: RecordKey) {
        let unclaimed = lock(&self.records).unclaimed.remove(&key);
        if let Some((slot, _)) = unclaimed {
            self.release(slot);
        }
    }

    /// Writes a record, encoded in a buffer that the caller keeps. The last counters are left out
    /// if they do not fit.
    pub(crate) fn write(
        &self,
        slot: usize,
        key: RecordKey,
        words: impl Iterator<Item = u64>,
        record: &mut Vec<u8>,
    ) {
        record.clear();
        let head = [MAGIC, key.0, key.1, 0];
        for word in head.into_iter().chain(words).take(self.size / WORD - 1) {
            record.extend_from_slice(&word.to_ne_bytes());
        }
        let count = (record.len() / WORD - HEAD) as u64;
        record[3 * WORD..HEAD * WORD].copy_from_slice(&count.to_ne_bytes());
        let sum = sum(record);
        record.extend_from_slice(&sum.to_ne_bytes());
        // Fails only when memory is short. The view is shown nevertheless; a successor then
        // continues from older counters.
        let _ = rustix::io::pwrite(&self.file, record, (slot * self.size) as u64);
    }

    /// Frees the record of a container that has ended.
    pub(crate) fn release(&self, slot: usize) {
        let _ = rustix::io::pwrite(&self.file, &[0; WORD], (slot * self.size) as u64);
        lock(&self.records).free.push(slot);
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
    fn a_successor_reads_written_records_and_no_released_ones() {
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
