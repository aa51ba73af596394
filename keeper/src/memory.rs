//! Memory that outlives the server: a mapped memfd, which the keeper holds for the next server.
//!
//! Only processes of this program map it. Its contents were written by them or by the kernel.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};

pub use ambit_kernel::sys::mapping::Lasting;
use ambit_kernel::sys::mapping::Mapping;
use rustix::fs::MemfdFlags;

use super::client::{Inherited, KeeperClient};

/// An array that outlives the process. Without a keeper, it ends with the process.
#[derive(Debug)]
pub struct Memory<T: Lasting>(Mapping<T>);

impl<T: Lasting> Memory<T> {
    /// Takes over what a predecessor left under this name, which ends with the version of the layout,
    /// or begins anew: then it is all zeroes, and the second value is true.
    ///
    /// # Errors
    /// There is no memory.
    pub fn open(
        name: &str,
        count: usize,
        keeper: &KeeperClient,
        inherited: &mut Inherited,
    ) -> io::Result<(Self, bool)> {
        let whole = |fd: &OwnedFd| {
            let size = rustix::fs::fstat(fd).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
            size.is_some_and(|size| Mapping::<T>::length(count) == Some(size))
        };
        let predecessors = inherited.take_version(name, keeper).filter(whole);
        if let Some(memory) = predecessors {
            return Ok((Self(Mapping::new(memory.as_fd(), count)?), false));
        }
        let (own, memory) = Self::new(name, count)?;
        keeper.store(name, &memory);
        Ok((own, true))
    }

    /// A new one, all zeroes, with the descriptor by which another process has it too.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(name: &str, count: usize) -> io::Result<(Self, OwnedFd)> {
        let length = Mapping::<T>::length(count).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, length)?;
        Ok((Self(Mapping::new(memory.as_fd(), count)?), memory))
    }
}

impl<T: Lasting> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}
