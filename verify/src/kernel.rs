//! What the kernel answers without a file: sysinfo(2), affinity, the number of the current
//! processor by getcpu(2) and rseq(2), the clocks.
#![allow(unsafe_code, reason = "affinity of any length and rseq(2) have no safe form")]

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::time::{ClockId, clock_gettime};

use crate::text::Cpus;

/// The answer of sysinfo(2), sizes in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sysinfo {
    pub(crate) uptime: u64,
    /// As `/proc/loadavg` prints them.
    pub(crate) loads: [f64; 3],
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) shared: u64,
    pub(crate) buffers: u64,
    pub(crate) swap_total: u64,
    pub(crate) swap_free: u64,
    /// The kernel counts with 16 bits.
    pub(crate) tasks: u64,
}

/// Asks sysinfo(2).
#[allow(clippy::useless_conversion, reason = "the widths of its fields differ by architecture")]
pub(crate) fn sysinfo() -> Sysinfo {
    let told = rustix::system::sysinfo();
    let unit = u64::from(told.mem_unit.max(1));
    let bytes = |units| u64::from(units).saturating_mul(unit);
    Sysinfo {
        uptime: u64::try_from(told.uptime).unwrap_or(0),
        loads: told.loads.map(|load| u64::from(load) as f64 / 65536.0),
        total: bytes(told.totalram),
        free: bytes(told.freeram),
        shared: bytes(told.sharedram),
        buffers: bytes(told.bufferram),
        swap_total: bytes(told.totalswap),
        swap_free: bytes(told.freeswap),
        tasks: told.procs.into(),
    }
}

/// CLOCK_BOOTTIME and CLOCK_REALTIME, in seconds.
pub(crate) fn clocks() -> (f64, f64) {
    let seconds = |clock| {
        let now = clock_gettime(clock);
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
    };
    (seconds(ClockId::Boottime), seconds(ClockId::Realtime))
}

/// Room for 8192 processors, the most that Linux can be built for.
const WORDS: usize = 128;

/// The processors that the calling thread may run on, by sched_getaffinity(2).
pub(crate) fn affinity() -> io::Result<Cpus> {
    let mut mask = [0u64; WORDS];
    // SAFETY: the kernel writes at most as many bytes as the mask has, and any bytes are valid.
    let written = unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&mask), mask.as_mut_ptr())
    };
    if written < 0 {
        return Err(io::Error::last_os_error());
    }
    let set = |cpu: &u32| mask[*cpu as usize / 64] >> (cpu % 64) & 1 == 1;
    Ok((0..64 * WORDS as u32).filter(set).collect())
}

fn set_affinity(cpus: &Cpus) -> io::Result<()> {
    let mut mask = [0u64; WORDS];
    for &cpu in cpus {
        if let Some(word) = mask.get_mut(cpu as usize / 64) {
            *word |= 1 << (cpu % 64);
        }
    }
    // SAFETY: the kernel reads as many bytes as the mask has.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask), mask.as_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The numbers of the processors that the calling thread ran on.
#[derive(Debug, Default)]
pub(crate) struct Visited {
    pub(crate) getcpu: Cpus,
    /// Empty where rseq(2) cannot be used.
    pub(crate) rseq: Cpus,
}

/// Runs on each of these processors in turn, on the current one where that is refused. The
/// thread may run on all of them afterwards.
pub(crate) fn visit(cpus: &Cpus) -> Visited {
    let (mut visited, area) = (Visited::default(), Rseq::register());
    let mut look = || {
        visited.getcpu.insert(u32::try_from(rustix::thread::sched_getcpu()).unwrap_or(u32::MAX));
        if let Some(area) = &area {
            visited.rseq.insert(area.cpu_id());
        }
    };
    look();
    for &cpu in cpus {
        if set_affinity(&Cpus::from([cpu])).is_ok() {
            look();
        }
    }
    // An error leaves the thread on one processor; nothing after this depends on it.
    let _ = set_affinity(cpus);
    visited
}

/// `struct rseq` of 32 bytes (`include/uapi/linux/rseq.h`), `cpu_id` the second word. The kernel
/// writes it whenever the thread goes on after it was interrupted.
#[repr(C, align(32))]
#[derive(Debug, Default)]
struct Area([AtomicU32; 8]);

/// An area that is registered while this value lives.
#[derive(Debug)]
struct Rseq(Box<Area>);

const UNREGISTER: libc::c_int = 1;
/// Any number that is the same in both calls.
const SIGNATURE: u32 = 0x5305_3053;

impl Rseq {
    /// `None` where the kernel lacks rseq(2), a filter refuses it, or the C library has registered
    /// an area already (glibc 2.35 and later; musl has none).
    fn register() -> Option<Self> {
        let area = Box::<Area>::default();
        // SAFETY: the area is on the heap, and `drop` unregisters it or leaves it allocated.
        unsafe { rseq(&area, 0) }.then_some(Self(area))
    }

    fn cpu_id(&self) -> u32 {
        self.0.0[1].load(Ordering::Relaxed)
    }
}

/// # Safety
/// An area that this registers stays where it is until it is unregistered.
unsafe fn rseq(area: &Area, flags: libc::c_int) -> bool {
    // SAFETY: the kernel writes into the area, which is made of atomics and has the size that is
    // passed. The caller promises that the area stays.
    unsafe {
        libc::syscall(libc::SYS_rseq, &raw const *area, size_of::<Area>(), flags, SIGNATURE) == 0
    }
}

impl Drop for Rseq {
    fn drop(&mut self) {
        // SAFETY: nothing is registered by this.
        if !unsafe { rseq(&self.0, UNREGISTER) } {
            // The kernel goes on writing: the memory must stay.
            std::mem::forget(std::mem::take(&mut self.0));
        }
    }
}
