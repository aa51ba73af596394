#![allow(unsafe_code, reason = "memory that outlives the process: one mmap")]
//! Memory that the keeper has too: what a server wrote there, up to the moment of its death, its successor
//! finds.
//!
//! Nobody but us maps it; what is in it was written by us or by the kernel.

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::AtomicU64;

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::link::{Held, Link};

/// What can lie in such memory.
///
/// # Safety
/// Every bit pattern is a valid value, all zeroes being that of a place that nobody has used. It is
/// no larger in alignment than a page.
pub unsafe trait Lasting: Sync {}

// SAFETY: any bits are numbers; zeroes are what its users take for unused.
unsafe impl<const N: usize> Lasting for [AtomicU64; N] {}

/// An array that outlives the process. Where there is no keeper, it ends with it.
#[derive(Debug)]
pub struct Memory<T: Lasting> {
    start: NonNull<T>,
    count: usize,
}

// SAFETY: it is the only owner of the mapping, whose elements are shared by reference alone.
unsafe impl<T: Lasting + Send> Send for Memory<T> {}
// SAFETY: as above; the elements are `Sync`.
unsafe impl<T: Lasting> Sync for Memory<T> {}

impl<T: Lasting> Memory<T> {
    /// Takes over what a predecessor left under this name, which ends with the version of the layout,
    /// or begins anew: then it is all zeroes, and the second value is true.
    pub fn open(
        name: &str,
        count: usize,
        link: &Link,
        held: &mut Held,
    ) -> io::Result<(Self, bool)> {
        let length = count * size_of::<T>();
        let whole = |fd: &OwnedFd| {
            rustix::fs::fstat(fd).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(length as u64))
        };
        let predecessors = held.take_version(name, link).filter(whole);
        if let Some(memory) = predecessors {
            return Ok((Self::of(&memory, count)?, false));
        }
        let (own, memory) = Self::new(name, count)?;
        link.store(name, &memory);
        Ok((own, true))
    }

    /// A new one, all zeroes, with the descriptor by which another process has it too.
    ///
    /// # Errors
    /// No memory can be had.
    pub fn new(name: &str, count: usize) -> io::Result<(Self, OwnedFd)> {
        let memory = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, (count * size_of::<T>()) as u64)?;
        Ok((Self::of(&memory, count)?, memory))
    }

    /// That of another process, which has made it for so many.
    fn of(memory: &OwnedFd, count: usize) -> io::Result<Self> {
        let length = count * size_of::<T>();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, wherever the kernel likes. The file has this length, is handed to
        // nobody who would change that, and stays mapped while `Self` lives.
        let mapped =
            unsafe { mmap(null_mut(), length, protection, MapFlags::SHARED, memory.as_fd(), 0) }?;
        let start = NonNull::new(mapped.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, count })
    }
}

impl<T: Lasting> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has room for so many, is aligned to pages, and lives as long as `self`;
        // every bit pattern is a value, and whoever changes one does so through `&T`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Lasting> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and nobody borrows from it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), size_of_val(&**self)) };
    }
}
