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

use ambit_kernel::lock;
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
        lock(&self.shards[number % SHARDS])
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
mod tests;
