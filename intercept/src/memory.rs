//! Reads and writes the memory of a caller as its own system call would.
//!
//! While the caller waits, another thread of its process may execute a program, even a set-user-ID
//! one; the same thread id then has the memory of that program. So the memory must never be
//! accessed by the thread id. A descriptor of `/proc/<tid>/mem` always refers to the address space
//! that it was opened for. If it was opened before the notification was found pending, that is the
//! caller's: execve(2) ends all other threads, and their notifications, before it changes the
//! address space.
//!
//! Start reading at `Memory::prepare`.

use std::cell::OnceCell;
use std::ffi::CStr;
use std::io::{IoSliceMut, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use ambit_kernel::sys::errno::to_errno;
use ambit_kernel::sys::procmap_query::{READABLE, WRITABLE, end_of_mapping};
use ambit_kernel::text::maps::{Access, Coverage};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, pwrite};
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, pread};

use crate::pending::Pending;
use crate::verdict::{CallError, DaemonError};

/// How much of the text of `/proc/<tid>/maps` is read, in bytes, if the kernel has no
/// `PROCMAP_QUERY`: a caller can have a million mappings.
const LONGEST_MAPS: usize = 256 << 10;
/// The kernel returns at most a page of that text at a time.
const PIECE: usize = 4096;

const BAD_ADDRESS: CallError = CallError::Fail(Errno::FAULT);

/// A caller's memory, opened when it is used for the first time.
#[derive(Debug, Default)]
pub(super) struct Memory<'a> {
    /// `/proc/<tid>/mem`, if liblxc sent it. liblxc checked the notification after opening it.
    sent: Option<BorrowedFd<'a>>,
    opened: OnceCell<Opened>,
}

#[derive(Debug)]
struct Opened {
    /// `None` if liblxc sent one.
    mem: Option<OwnedFd>,
    maps: OwnedFd,
}

impl<'a> Memory<'a> {
    /// Returns the memory of a caller, by the descriptor that liblxc sent, if it did.
    pub(super) fn new(sent: Option<BorrowedFd<'a>>) -> Self {
        Self { sent, opened: OnceCell::new() }
    }

    /// Writes all of these bytes.
    ///
    /// # Errors
    /// EFAULT for the caller if it could not write all of them itself; some of them may be written
    /// then, as by the kernel. [`CallError::Gone`] if the caller does not wait any more.
    pub(super) fn write(
        &self,
        tid: u32,
        pending: &Pending<'_>,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), CallError> {
        let (mem, allowed) = self.prepare(tid, pending, address, bytes.len(), Access::Write)?;
        if allowed < bytes.len() {
            return Err(BAD_ADDRESS);
        }
        // By libc: libraries that tests preload delay it, or end this process.
        let offset = offset(address)?.cast_signed();
        let written = transferred(pwrite(mem, bytes, offset).map_err(to_errno))?;
        if written == bytes.len() { Ok(()) } else { Err(BAD_ADDRESS) }
    }

    /// Reads as many bytes as the caller could read itself, up to the length of the buffer.
    ///
    /// # Errors
    /// EFAULT if the caller could read nothing there. [`CallError::Gone`] if it does not wait any more.
    pub(super) fn read(
        &self,
        tid: u32,
        pending: &Pending<'_>,
        address: u64,
        buffer: &mut [u8],
    ) -> Result<usize, CallError> {
        let (mem, allowed) = self.prepare(tid, pending, address, buffer.len(), Access::Read)?;
        if allowed == 0 {
            return Err(BAD_ADDRESS);
        }
        let length = transferred(pread(mem, &mut buffer[..allowed], offset(address)?))?;
        if length == 0 { Err(BAD_ADDRESS) } else { Ok(length) }
    }

    /// Opens the memory unless it is open, determines how many of these bytes the caller itself can
    /// access, and checks that the caller waits. A notification that is not pending never becomes
    /// pending again, so descriptors that were opened for it can be kept.
    fn prepare(
        &self,
        tid: u32,
        pending: &Pending<'_>,
        address: u64,
        length: usize,
        access: Access,
    ) -> Result<(BorrowedFd<'_>, usize), CallError> {
        if self.opened.get().is_none() {
            let _ = self.opened.set(self.open(tid, pending)?);
        }
        let Opened { mem, maps } = self.opened.get().ok_or(CallError::Gone)?;
        let allowed = allowed(maps.as_fd(), untagged(address), length, access)?;
        fault_in(tid, address, allowed);
        // As late as possible: a caller whose call was interrupted uses its memory again.
        pending.check()?;
        let mem = mem.as_ref().map(AsFd::as_fd).or(self.sent).ok_or(CallError::Gone)?;
        Ok((mem, allowed))
    }

    fn open(&self, tid: u32, pending: &Pending<'_>) -> Result<Opened, CallError> {
        let mem = match self.sent {
            Some(_) => None,
            None => Some(open(tid, pending, c"mem", OFlags::RDWR)?),
        };
        Ok(Opened { mem, maps: open(tid, pending, c"maps", OFlags::RDONLY)? })
    }
}

/// Opens a file in `/proc/<tid>`.
fn open(
    tid: u32,
    pending: &Pending<'_>,
    file: &'static CStr,
    flags: OFlags,
) -> Result<OwnedFd, CallError> {
    let flags = flags | OFlags::CLOEXEC;
    let opened = match pending {
        Pending::Directory(proc) => openat(proc, file, flags, Mode::empty()),
        // The kernel reports thread id 0 for a thread outside of the daemon's pid namespace.
        Pending::Listener(..) if tid == 0 => {
            return Err(CallError::Continue(DaemonError::View(ambit_sysinfo::Error::Gone(tid))));
        }
        Pending::Listener(..) => {
            // Without an allocation, because every sysinfo(2) opens these files.
            let mut path = [0; 32];
            let _ = write!(&mut path[..], "/proc/{tid}/{}\0", file.to_str().unwrap_or_default());
            let path = CStr::from_bytes_until_nul(&path).unwrap_or_default();
            openat(CWD, path, flags, Mode::empty())
        }
    };
    opened.map_err(|errno| match errno {
        Errno::SRCH | Errno::NOENT => CallError::Gone,
        errno => CallError::Continue(DaemonError::System(
            "open of the caller's /proc/<tid>/mem and maps (needs CAP_SYS_PTRACE)",
            errno,
        )),
    })
}

/// Returns how many bytes from this address on the caller can access itself.
///
/// `/proc/<tid>/mem` also reads and writes pages that the caller itself cannot access
/// (`FOLL_FORCE`). So the mappings are checked first, through a descriptor of `/proc/<tid>/maps`
/// that was also opened before the notification was found pending. If another thread of the caller
/// changes them between the check and the access, the access still goes to the caller's own memory.
/// The kernel does not force a write to a shared mapping: only a private copy of the page changes.
/// A shadow stack is treated as writable memory, because the kernel lists it as such.
fn allowed(
    maps: BorrowedFd<'_>,
    address: u64,
    length: usize,
    access: Access,
) -> Result<usize, CallError> {
    /// Set if the kernel lacks `PROCMAP_QUERY` (Linux 6.11).
    static NO_QUERY: AtomicBool = AtomicBool::new(false);
    let end = address.saturating_add(length as u64);
    let covered = if NO_QUERY.load(Ordering::Relaxed) {
        by_text(maps, address, end, access)
    } else {
        match by_query(maps, address, end, access) {
            Err(Errno::NOTTY | Errno::INVAL) => {
                NO_QUERY.store(true, Ordering::Relaxed);
                by_text(maps, address, end, access)
            }
            covered => covered,
        }
    };
    match covered {
        Ok(covered) => Ok(usize::try_from(covered.min(end) - address).unwrap_or(length)),
        Err(Errno::SRCH) => Err(CallError::Gone),
        Err(errno) => {
            Err(CallError::Continue(DaemonError::System("looking at the caller's mappings", errno)))
        }
    }
}

/// Returns the first address of a range that the caller cannot access, or an address that is not
/// below the end of the range. Asks the kernel with `PROCMAP_QUERY`.
fn by_query(maps: BorrowedFd<'_>, start: u64, end: u64, access: Access) -> Result<u64, Errno> {
    let flags = match access {
        Access::Read => READABLE,
        Access::Write => WRITABLE,
    };
    let mut covered = start;
    while covered < end {
        match end_of_mapping(maps, covered, flags)?.filter(|end| *end > covered) {
            Some(end) => covered = end,
            None => break,
        }
    }
    Ok(covered)
}

/// Returns the same address as [`by_query`], from the text of `/proc/<tid>/maps`.
fn by_text(maps: BorrowedFd<'_>, start: u64, end: u64, access: Access) -> Result<u64, Errno> {
    let mut coverage = Coverage::new(start, end, access);
    let (mut piece, mut read) = ([0; PIECE], 0);
    while read < LONGEST_MAPS {
        let length = pread(maps, &mut piece, read as u64)?;
        if length == 0 || !coverage.feed(&piece[..length]) {
            return Ok(coverage.covered());
        }
        read += length;
    }
    // Leave the call to the kernel: EFAULT could be wrong, and break a program with many mappings.
    Err(Errno::TOOBIG)
}

/// Returns the number of bytes that were read or written.
fn transferred(result: Result<usize, Errno>) -> Result<usize, CallError> {
    match result {
        // No process uses the address space any more.
        Ok(0) => Err(CallError::Gone),
        Ok(length) => Ok(length),
        // A page that cannot be read in, or one that only FOLL_FORCE could write, on a kernel that
        // does not use it here (`CONFIG_PROC_MEM_NO_FORCE`, `proc_mem.force_override`).
        Err(Errno::IO | Errno::FAULT) => Ok(0),
        Err(errno) => {
            Err(CallError::Continue(DaemonError::System("the caller's /proc/<tid>/mem", errno)))
        }
    }
}

/// Faults in the pages of a range, as a system call of the caller would. `/proc/<tid>/mem` fails at
/// a page that userfaultfd(2) provides. While it waits for a page of a file, it holds the mmap
/// lock, and other threads of the caller would wait for that. This reads the memory that the thread
/// id has now, even if that is another program's, and discards what it read.
fn fault_in(tid: u32, address: u64, length: usize) {
    let (Ok(base), Ok(tid)) = (usize::try_from(address), i32::try_from(tid)) else { return };
    let remote = [RemoteIoVec { base, len: length }];
    let (mut few, mut many) = ([0; 256], Vec::new());
    let discarded = if length > few.len() {
        many.resize(length, 0);
        &mut many[..]
    } else {
        &mut few[..length]
    };
    let _ = process_vm_readv(Pid::from_raw(tid), &mut [IoSliceMut::new(discarded)], &remote);
}

/// Returns an address as an offset in `/proc/<tid>/mem`. The upper half belongs to the kernel.
fn offset(address: u64) -> Result<u64, CallError> {
    let offset = untagged(address);
    if offset >> 63 == 0 { Ok(offset) } else { Err(BAD_ADDRESS) }
}

/// Returns an address without the tag that a 64-bit ARM program may put in its top byte.
fn untagged(address: u64) -> u64 {
    let is_users = address & 1 << 55 == 0;
    if cfg!(target_arch = "aarch64") && is_users { address & (u64::MAX >> 8) } else { address }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const CONSTANT: [u8; 16] = *b"a constant text.";

    /// Runs a test with the memory of this process.
    fn own(test: impl FnOnce(u32, &Pending<'_>, &Memory<'_>)) {
        let proc = File::open("/proc/self").unwrap();
        test(std::process::id(), &Pending::Directory(proc.as_fd()), &Memory::default());
    }

    fn is_bad_address<T>(result: &Result<T, CallError>) -> bool {
        matches!(result, Err(CallError::Fail(Errno::FAULT)))
    }

    #[test]
    fn memory_is_read_and_written_where_the_caller_can() {
        static FIXED: [u8; 16] = CONSTANT;
        own(|tid, pending, memory| {
            let variable = Box::new(CONSTANT);
            let (at, mut text) = (variable.as_ptr() as u64, [0; 16]);
            memory.write(tid, pending, at, b"another").unwrap();
            assert_eq!(memory.read(tid, pending, at, &mut text).unwrap(), 16);
            assert_eq!(&text, b"anotherant text.");
            let fixed = FIXED.as_ptr() as u64;
            assert!(is_bad_address(&memory.write(tid, pending, fixed, b"another")));
            assert_eq!(memory.read(tid, pending, fixed, &mut text).unwrap(), 16);
            assert_eq!(text, CONSTANT, "it was not changed");
        });
    }

    #[test]
    fn an_address_without_memory_is_efault() {
        own(|tid, pending, memory| {
            for address in [0, 8, 1 << 63, u64::MAX - 4, u64::MAX] {
                let read = memory.read(tid, pending, address, &mut [0; 16]);
                assert!(is_bad_address(&read), "{address:x}");
                let written = memory.write(tid, pending, address, &[0; 16]);
                assert!(is_bad_address(&written), "{address:x}");
            }
        });
    }

    #[test]
    fn query_and_text_of_mappings_agree() {
        let maps = File::open("/proc/self/maps").unwrap();
        let variable = Box::new([0u8; 64]);
        let stack = [0u8; 64];
        for at in [variable.as_ptr() as u64, stack.as_ptr() as u64, CONSTANT.as_ptr() as u64, 0] {
            for access in [Access::Read, Access::Write] {
                let by_text = by_text(maps.as_fd(), at, at + 64, access).unwrap();
                match by_query(maps.as_fd(), at, at + 64, access) {
                    Ok(covered) => assert_eq!(covered.min(at + 64), by_text, "{at:x} {access:?}"),
                    Err(errno) => assert_eq!(errno, Errno::NOTTY, "before Linux 6.11"),
                }
            }
        }
    }

    #[test]
    fn a_thread_that_has_ended_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let proc = File::open(format!("/proc/{}", child.id())).unwrap();
        child.wait().unwrap();
        let pending = Pending::Directory(proc.as_fd());
        let read = Memory::default().read(child.id(), &pending, 4096, &mut [0; 8]);
        assert!(matches!(read, Err(CallError::Gone)), "{read:?}");
    }
}
