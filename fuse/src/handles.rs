//! Open files. Each has the text that its reader is shown until the next read from the start.
//!
//! Buffers are pooled, in shards so that threads rarely wait for a lock. No lock may be held while
//! numbers are read, except that of the one open file. A handle has a generation that starts at
//! random in every process, so that a handle of a predecessor is not taken for one of this process,
//! and the length of its text, so that a successor knows where that ended. The total of kept text
//! is bounded, and each account pays for its own ([`Budget`]): a container that opens many files
//! must not fill the daemon's memory; texts beyond its share are rendered for each read and not
//! kept. Start reading at [`Handles::open`].

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

use ambit_sysinfo::{Account, Budget, Charge, Resource};

use crate::text::Text;

/// The account that pays for a kept text; `None` without accounts.
pub(crate) type Payer = Option<Arc<Account>>;

/// The handle of a file whose text is not kept: every read renders anew.
pub(crate) const UNKEPT: u64 = 0;

/// Most bytes of text in all open files.
const HELD_AT_MOST: usize = 64 << 20;

/// Bytes charged for an open file besides its text, which is often shorter.
const BESIDE: usize = 256;

/// Larger buffers are freed when a file is closed.
const BUFFER_AT_MOST: usize = 64 << 10;

/// Unused buffers that each shard keeps.
const SPARE_AT_MOST: usize = 32;

const SHARD_BITS: u32 = 4;
const INDEX_BITS: u32 = 20;
const LENGTH_BITS: u32 = 18;
const SHARDS: usize = 1 << SHARD_BITS;
/// Longest length that a handle can encode; longer texts count as this long.
const LONGEST: u64 = (1 << LENGTH_BITS) - 1;

/// All open files.
#[derive(Debug)]
pub(crate) struct Handles {
    shards: [Mutex<Shard>; SHARDS],
    held: Arc<Budget>,
}

#[derive(Debug)]
struct Shard {
    slots: Vec<Arc<OpenFile>>,
    free: Vec<usize>,
    generation: u64,
    adopted: HashMap<u64, Arc<OpenFile>>,
}

/// One open file. Its identity can be read without the lock, which may be held by a thread that
/// hangs.
#[derive(Debug, Default)]
pub(crate) struct OpenFile {
    /// Set from OPEN until the first read.
    unread: AtomicBool,
    handle: AtomicU64,
    node: AtomicU64,
    /// The handle with which it was closed while another thread was using it: a reader that the
    /// watchdog answered closes its file.
    abandoned: AtomicU64,
    kept: RwLock<Content>,
}

/// The text of an open file.
#[derive(Debug, Default)]
struct Content {
    text: Text,
    /// The charge for the text; `None` while none is kept.
    charge: Option<Charge>,
}

impl Content {
    /// Charges for the current text: the account of the opener first, which stays the payer. If
    /// false, the text must be cleared.
    fn pay(&mut self, held: &Arc<Budget>, payer: &Payer) -> bool {
        let cost = self.text.as_bytes().len() + BESIDE;
        match &mut self.charge {
            Some(charge) => charge.resize(cost),
            None => {
                self.charge = held.charge(payer.as_ref(), cost);
                self.charge.is_some()
            }
        }
    }
}

impl Handles {
    pub(crate) fn new() -> Self {
        let start = RandomState::new().hash_one(0u8) >> (SHARD_BITS + INDEX_BITS + LENGTH_BITS);
        let shard = |_| {
            Mutex::new(Shard {
                slots: Vec::new(),
                free: Vec::new(),
                generation: start,
                adopted: HashMap::new(),
            })
        };
        Self {
            shards: std::array::from_fn(shard),
            held: Budget::new(Resource::Texts, HELD_AT_MOST),
        }
    }

    /// Opens a file: renders its text into a pooled buffer and returns the handle. A thread always
    /// uses the same shard, so that it gets a buffer that it used before.
    pub(crate) fn open<E>(
        &self,
        thread: u32,
        node: u64,
        render: impl FnOnce(&mut Text) -> Result<Payer, E>,
    ) -> Result<u64, E> {
        let shard = thread as usize % SHARDS;
        let Some(mut vacant) = self.vacant(shard) else { return Ok(UNKEPT) };
        {
            let mut kept = write(&vacant.file);
            kept.text.clear();
            let payer = render(&mut kept.text)?;
            if !kept.pay(&self.held, &payer) {
                return Ok(UNKEPT);
            }
            let length = (kept.text.as_bytes().len() as u64).min(LONGEST);
            vacant.handle |= length << (SHARD_BITS + INDEX_BITS);
        }
        vacant.file.name(vacant.handle, node);
        vacant.file.unread.store(true, Ordering::Relaxed);
        vacant.taken = true;
        Ok(vacant.handle)
    }

    /// Returns a free slot; `None` if there is none.
    fn vacant(&self, number: usize) -> Option<Vacant<'_>> {
        let mut shard = self.shard(number);
        let index = match shard.free.pop() {
            Some(index) => index,
            None if shard.slots.len() < 1 << INDEX_BITS => {
                shard.slots.push(Arc::default());
                shard.slots.len() - 1
            }
            None => return None,
        };
        // 22 bits, and never 0, which would be UNKEPT.
        let bits = 64 - SHARD_BITS - INDEX_BITS - LENGTH_BITS;
        shard.generation = (shard.generation + 1) & ((1 << bits) - 1);
        shard.generation = shard.generation.max(1);
        let handle = shard.generation << (SHARD_BITS + INDEX_BITS + LENGTH_BITS)
            | (index as u64) << SHARD_BITS
            | number as u64;
        let file = Arc::clone(&shard.slots[index]);
        Some(Vacant { handles: self, number, index, handle, file, taken: false })
    }

    /// Returns the open file of a handle; `None` for a handle of another process or file.
    pub(crate) fn find(&self, handle: u64, node: u64) -> Option<Arc<OpenFile>> {
        let (number, index) = place(handle);
        let shard = self.shard(number);
        let of_slot = shard.slots.get(index).filter(|file| file.is(handle, node));
        of_slot.or_else(|| shard.adopted.get(&handle).filter(|file| file.is(handle, node))).cloned()
    }

    /// Takes over a handle of a predecessor as a file without text. `None` if open files hold too
    /// much text.
    pub(crate) fn adopt(&self, handle: u64, node: u64) -> Option<Arc<OpenFile>> {
        if handle == UNKEPT || self.held.taken() >= HELD_AT_MOST {
            return None;
        }
        let file = Arc::new(OpenFile::default());
        file.name(handle, node);
        self.shard(place(handle).0).adopted.insert(handle, Arc::clone(&file));
        Some(file)
    }

    /// Closes a file. Unknown handles are ignored.
    pub(crate) fn release(&self, handle: u64) {
        let (number, index) = place(handle);
        let mut shard = self.shard(number);
        let slot = shard.slots.get(index).cloned();
        if let Some(file) = slot
            && let Some(spare) = Self::close(&file, handle)
        {
            if shard.free.len() >= SPARE_AT_MOST || spare > BUFFER_AT_MOST {
                write(&file).text = Text::new();
            }
            shard.free.push(index);
        } else if let Some(file) = shard.adopted.remove(&handle) {
            Self::close(&file, handle);
        }
    }

    /// Closes the file if it has this handle; returns the size of its buffer.
    fn close(file: &OpenFile, handle: u64) -> Option<usize> {
        if handle == UNKEPT || file.handle.load(Ordering::Acquire) != handle {
            return None;
        }
        file.handle.store(UNKEPT, Ordering::Release);
        if let Some(mut kept) = unless_busy(file.kept.try_write()) {
            return Some(forget(&mut kept));
        }
        file.abandoned.store(handle, Ordering::SeqCst);
        // The thread that was using it may have finished before it could see `abandoned`.
        let mut kept = unless_busy(file.kept.try_write())?;
        (file.abandoned.swap(UNKEPT, Ordering::SeqCst) == handle).then(|| forget(&mut kept))
    }

    /// Closes a file that was released while this thread was using it. The last such thread does.
    fn settle(&self, file: &OpenFile) {
        if file.abandoned.load(Ordering::SeqCst) == UNKEPT {
            return;
        }
        let Some(mut kept) = unless_busy(file.kept.try_write()) else { return };
        let handle = file.abandoned.swap(UNKEPT, Ordering::SeqCst);
        if handle == UNKEPT {
            return;
        }
        *kept = Content::default();
        drop(kept);
        let (number, index) = place(handle);
        let mut shard = self.shard(number);
        if shard.slots.get(index).is_some_and(|slot| std::ptr::eq(&raw const **slot, file)) {
            shard.free.push(index);
        }
    }

    /// Answers a read. A read from the start renders the file anew, as procfs does for programs
    /// that seek to the start, except for the first read after OPEN. A reader never waits for
    /// another reader of the same file, whose numbers may take long: it gets a text of its own.
    pub(crate) fn read<E>(
        &self,
        file: &OpenFile,
        offset: u64,
        size: u32,
        render: impl FnOnce(&mut Text) -> Result<Payer, E>,
        answer: impl FnOnce(&[u8]),
    ) -> Result<(), E> {
        let read = self.read_unsettled(file, (offset, size), render, answer);
        self.settle(file);
        read
    }

    fn read_unsettled<E>(
        &self,
        file: &OpenFile,
        (offset, size): (u64, u32),
        render: impl FnOnce(&mut Text) -> Result<Payer, E>,
        answer: impl FnOnce(&[u8]),
    ) -> Result<(), E> {
        let first = file.unread.swap(false, Ordering::Relaxed);
        if let Some(kept) = unless_busy(file.kept.try_read())
            && (first || (offset > 0 && !kept.text.as_bytes().is_empty()))
        {
            answer(window(kept.text.as_bytes(), offset, size));
            return Ok(());
        }
        let Some(mut kept) = unless_busy(file.kept.try_write()) else {
            let mut own = Text::new();
            let _ = render(&mut own)?;
            answer(window(own.as_bytes(), offset, size));
            return Ok(());
        };
        kept.text.clear();
        let rendered = render(&mut kept.text);
        if rendered.is_err() {
            kept.text.clear();
        }
        let payer = rendered?;
        let paid = kept.pay(&self.held, &payer);
        answer(window(kept.text.as_bytes(), offset, size));
        if !paid {
            kept.text.clear();
        }
        Ok(())
    }

    fn shard(&self, number: usize) -> MutexGuard<'_, Shard> {
        self.shards[number % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clears the text; returns the size of the buffer.
fn forget(kept: &mut Content) -> usize {
    kept.charge = None;
    kept.text.capacity()
}

/// Returns the part of a text that a read requests; empty beyond its end.
pub(crate) fn window(text: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset).map_or(text.len(), |offset| offset.min(text.len()));
    let end = start.saturating_add(size as usize).min(text.len());
    &text[start..end]
}

impl OpenFile {
    fn is(&self, handle: u64, node: u64) -> bool {
        handle != UNKEPT
            && self.handle.load(Ordering::Acquire) == handle
            && self.node.load(Ordering::Relaxed) == node
    }

    fn name(&self, handle: u64, node: u64) {
        self.node.store(node, Ordering::Relaxed);
        self.handle.store(handle, Ordering::Release);
    }
}

/// A slot taken from the pool. It goes back unless a file was opened in it, also if the renderer
/// fails or panics.
struct Vacant<'a> {
    handles: &'a Handles,
    number: usize,
    index: usize,
    handle: u64,
    file: Arc<OpenFile>,
    taken: bool,
}

impl Drop for Vacant<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.handles.shard(self.number).free.push(self.index);
        }
    }
}

/// Locks the text. A panic of a renderer leaves half a text, which is cleared before it is used
/// again.
fn write(file: &OpenFile) -> std::sync::RwLockWriteGuard<'_, Content> {
    file.kept.write().unwrap_or_else(PoisonError::into_inner)
}

fn unless_busy<G>(tried: Result<G, TryLockError<G>>) -> Option<G> {
    match tried {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// True if a reader with this handle of a predecessor has read its whole text and now reads at this
/// offset. The successor's text may be longer, but its end belongs to another text.
pub(crate) fn was_read(handle: u64, offset: u64) -> bool {
    let length = handle >> (SHARD_BITS + INDEX_BITS) & LONGEST;
    handle != UNKEPT && offset > 0 && length < LONGEST && offset >= length
}

/// Returns shard and slot of a handle.
fn place(handle: u64) -> (usize, usize) {
    let number = handle & ((1 << SHARD_BITS) - 1);
    let index = handle >> SHARD_BITS & ((1 << INDEX_BITS) - 1);
    (number as usize, index as usize)
}

#[cfg(test)]
mod tests {
    use ambit_sysinfo::Owner;
    use proptest::prelude::*;

    use super::*;

    fn say(words: &str) -> impl FnOnce(&mut Text) -> Result<Payer, ()> + '_ {
        move |text| {
            text.put(words);
            Ok(None)
        }
    }

    fn read(handles: &Handles, handle: u64, offset: u64, anew: &str) -> Option<String> {
        let file = handles.find(handle, 7)?;
        let mut seen = String::new();
        let take = |part: &[u8]| seen = String::from_utf8_lossy(part).into_owned();
        handles.read(&file, offset, 100, say(anew), take).unwrap();
        Some(seen)
    }

    #[test]
    fn a_successor_knows_where_a_text_ended() {
        let handles = Handles::new();
        let render = |text: &mut Text| -> Result<Payer, ()> {
            text.buffer().extend_from_slice(&[b'x'; 700]);
            Ok(None)
        };
        let handle = handles.open(1, 9, render).unwrap();
        assert!(was_read(handle, 700) && was_read(handle, 701));
        assert!(!was_read(handle, 699) && !was_read(handle, 0) && !was_read(UNKEPT, 5));
        let long = |text: &mut Text| -> Result<Payer, ()> {
            text.buffer().resize(1 << 19, b'x');
            Ok(None)
        };
        let handle = handles.open(1, 9, long).unwrap();
        assert!(handles.find(handle, 9).is_some() && !was_read(handle, 1 << 20));
    }

    #[test]
    fn one_pass_reads_one_text_and_going_back_reads_a_new_one() {
        let handles = Handles::new();
        let handle = handles.open(1, 7, say("first")).unwrap();
        assert_eq!(read(&handles, handle, 0, "second").as_deref(), Some("first"));
        assert_eq!(read(&handles, handle, 2, "second").as_deref(), Some("rst"));
        assert_eq!(read(&handles, handle, 5, "second").as_deref(), Some(""));
        assert_eq!(read(&handles, handle, 0, "second").as_deref(), Some("second"));
        assert_eq!(read(&handles, handle, u64::MAX, "third").as_deref(), Some(""));
        handles.release(handle);
        assert_eq!(read(&handles, handle, 0, "x"), None);
        assert_eq!(handles.held.taken(), 0);
    }

    #[test]
    fn a_slot_is_used_again_under_another_handle() {
        let handles = Handles::new();
        let first = handles.open(1, 7, say("first")).unwrap();
        handles.release(first);
        let second = handles.open(1, 7, say("second")).unwrap();
        assert_eq!(place(first), place(second));
        assert_ne!(first, second);
        assert_eq!(read(&handles, first, 0, "x"), None);
        handles.release(first);
        assert_eq!(read(&handles, second, 0, "x").as_deref(), Some("second"));
    }

    #[test]
    fn handles_of_another_process_or_file_are_not_found() {
        let (ours, theirs) = (Handles::new(), Handles::new());
        let handle = theirs.open(1, 7, say("theirs")).unwrap();
        ours.open(1, 7, say("ours")).unwrap();
        assert!(ours.find(handle, 7).is_none());
        assert!(theirs.find(handle, 8).is_none());
        ours.adopt(handle, 7).unwrap();
        assert_eq!(read(&ours, handle, 2, "anew").as_deref(), Some("ew"));
        ours.release(handle);
        assert!(ours.find(handle, 7).is_none());
    }

    #[test]
    fn a_reader_that_hangs_does_not_delay_others() {
        let handles = Handles::new();
        let [held, other] = [1, 1].map(|thread| handles.open(thread, 7, say("first")).unwrap());
        assert_eq!(place(held).0, place(other).0);
        read(&handles, held, 0, "");
        let file = handles.find(held, 7).unwrap();
        let hangs = |text: &mut Text| -> Result<Payer, ()> {
            assert_eq!(read(&handles, other, 0, "").as_deref(), Some("first"));
            assert_eq!(read(&handles, held, 0, "own").as_deref(), Some("own"));
            assert_eq!(read(&handles, held, 1, "own").as_deref(), Some("wn"));
            handles.release(other);
            text.put("late");
            Ok(None)
        };
        handles.read(&file, 0, 100, hangs, |text| assert_eq!(text, b"late")).unwrap();
        assert_eq!(read(&handles, held, 1, "").as_deref(), Some("ate"));
        // A file that is released meanwhile is closed by the last thread that uses it.
        let file = handles.find(held, 7).unwrap();
        let closed = |text: &mut Text| -> Result<Payer, ()> {
            handles.release(held);
            assert_eq!(read(&handles, held, 0, ""), None);
            assert_ne!(place(handles.open(1, 7, say("other")).unwrap()), place(held));
            text.put("late");
            Ok(None)
        };
        handles.read(&file, 0, 100, closed, |_| {}).unwrap();
        let again = handles.open(1, 7, say("again")).unwrap();
        assert_eq!(place(again), place(held));
        assert_eq!(handles.held.taken(), "otheragain".len() + 2 * BESIDE);
    }

    #[test]
    fn a_failure_or_a_panic_gives_the_slot_back() {
        let handles = Handles::new();
        assert_eq!(handles.open(1, 7, |_| Err("no")), Err("no"));
        let broken = |text: &mut Text| -> Result<Payer, ()> {
            text.put("half");
            panic!("expected by the test")
        };
        let panics = || handles.open(1, 7, broken);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
        let handle = handles.open(1, 7, say("whole")).unwrap();
        assert_eq!(place(handle).1, 0, "the only slot is used again");
        assert_eq!(read(&handles, handle, 0, "x").as_deref(), Some("whole"));
    }

    #[test]
    fn what_open_files_hold_is_bounded() {
        let handles = Handles::new();
        let large = "x".repeat(HELD_AT_MOST / 4);
        let open: Vec<_> = (0..6).map(|n| handles.open(n, 7, say(&large)).unwrap()).collect();
        assert_eq!(open.iter().filter(|&&handle| handle == UNKEPT).count(), 3);
        open.iter().for_each(|&handle| handles.release(handle));
        assert_eq!(handles.held.taken(), 0);
        assert_ne!(handles.open(1, 7, say("small")).unwrap(), UNKEPT);
    }

    #[test]
    fn an_account_with_many_open_files_leaves_room_for_others() {
        let handles = Handles::new();
        let [one, other] = [1, 2].map(|user| Account::new(Owner::User(user)));
        let large = "x".repeat(HELD_AT_MOST / 100);
        let open = |account: &Arc<Account>| {
            let render = |text: &mut Text| -> Result<Payer, ()> {
                text.put(&large);
                Ok(Some(account.clone()))
            };
            handles.open(1, 7, render).unwrap()
        };
        let mut kept: Vec<_> = (0..200).map(|_| open(&one)).filter(|&one| one != UNKEPT).collect();
        assert!((45..=50).contains(&kept.len()), "{}", kept.len());
        kept.extend((0..10).map(|_| open(&other)));
        assert!(!kept.contains(&UNKEPT), "the other account's are kept");
        // A text that grows when it is rendered again is charged to the account, or not kept.
        let file = handles.find(kept[0], 7).unwrap();
        for length in [HELD_AT_MOST, 5] {
            let grown = |text: &mut Text| -> Result<Payer, ()> {
                text.buffer().resize(length, b'y');
                Ok(None)
            };
            let mut seen = 0;
            handles.read(&file, 1, 100, grown, |part| seen = part.len()).unwrap();
            handles.read(&file, 0, 9, grown, |part| seen = part.len()).unwrap();
            assert_eq!(seen, length.min(9));
        }
        kept.into_iter().for_each(|handle| handles.release(handle));
        assert_eq!(handles.held.taken(), 0);
    }

    proptest! {
        #[test]
        fn a_window_never_leaves_the_text(text: Vec<u8>, offset: u64, size: u32) {
            let part = window(&text, offset, size);
            prop_assert!(part.len() <= size as usize && part.len() <= text.len());
            let offset = offset % (text.len() as u64 + 1);
            let part = window(&text, offset, size);
            prop_assert!(text[offset as usize..].starts_with(part));
        }
    }
}
