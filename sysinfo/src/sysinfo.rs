//! [`View`] as the `struct sysinfo` of sysinfo(2), for 64-bit and 32-bit callers.
//!
//! Every field comes from the same view as the files, so that busybox `free` (sysinfo(2)) and
//! procps `free` (`/proc/meminfo`) print the same. Layouts: `include/uapi/linux/sysinfo.h` and
//! `struct compat_sysinfo` in `kernel/sys.c`. Start reading at [`encode`].

use crate::stats::StatSet;
use crate::view::{Load, View};

/// The groups of numbers in the structure. The uptime is that of the sample.
pub const NEEDS: StatSet = StatSet::MEMORY.and(StatSet::THREADS);

/// The two layouts of the structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abi {
    /// `unsigned long` has 64 bits: 112 bytes.
    Bits64,
    /// `unsigned long` has 32 bits: 64 bytes.
    Bits32,
}

/// Fractional bits of the load averages in the structure (`SI_LOAD_SHIFT`).
const LOAD_SHIFT: u32 = 16;

/// The encoded structure.
#[derive(Debug, Clone, Copy)]
pub struct Encoded {
    bytes: [u8; 112],
    len: usize,
}

impl Encoded {
    /// The bytes that the caller's buffer receives.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Encodes a view in the byte order of this machine.
pub fn encode(view: &View, abi: Abi) -> Encoded {
    let memory = [
        view.memory.total,
        view.memory.free,
        view.memory.shmem,
        0, // bufferram: `Buffers:` of /proc/meminfo, which a cgroup does not account
        view.swap.total,
        view.swap.free,
    ]
    // Rounded to KiB as in /proc/meminfo, so that both agree to the byte.
    .map(|bytes| bytes & !0x3FF);
    let loads = [view.load.one, view.load.five, view.load.fifteen]
        .map(|load| load << (LOAD_SHIFT - Load::SHIFT));
    // The kernel rounds a started second up.
    let uptime = view.clock.uptime.div_ceil(1_000_000_000);
    let procs = u16::try_from(view.tasks.total).unwrap_or(u16::MAX);
    let mut out = Writer { bytes: [0; 112], at: 0 };
    match abi {
        Abi::Bits64 => {
            out.put(&uptime.to_ne_bytes());
            loads.iter().for_each(|load| out.put(&load.to_ne_bytes()));
            memory.iter().for_each(|bytes| out.put(&bytes.to_ne_bytes()));
            out.put(&procs.to_ne_bytes());
            out.at += 6; // padding
            out.at += 16; // totalhigh, freehigh: no high memory on 64 bits
            out.put(&1u32.to_ne_bytes());
            Encoded { bytes: out.bytes, len: 112 }
        }
        Abi::Bits32 => {
            let unit = unit_for(&memory, view.host.page_size);
            out.put(&word(uptime));
            loads.iter().for_each(|load| out.put(&word(*load)));
            memory.iter().for_each(|bytes| out.put(&word(bytes / u64::from(unit))));
            out.put(&procs.to_ne_bytes());
            out.at += 2; // padding
            out.at += 8; // totalhigh, freehigh
            out.put(&unit.to_ne_bytes());
            Encoded { bytes: out.bytes, len: 64 }
        }
    }
}

/// Returns the `mem_unit` with which every number fits 32 bits: 1 if possible, as in the kernel,
/// else the smallest power of two of at least a page.
fn unit_for(memory: &[u64], page: u64) -> u32 {
    let page = u32::try_from(page).unwrap_or(0).max(4096);
    let largest = memory.iter().copied().max().unwrap_or(0);
    let mut unit = 1;
    while largest / u64::from(unit) > u64::from(u32::MAX) {
        unit = if unit == 1 { page } else { unit << 1 };
    }
    unit
}

fn word(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_ne_bytes()
}

struct Writer {
    bytes: [u8; 112],
    at: usize,
}

impl Writer {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::view::{Clock, Cpu, Memory, Origin, Swap, Tasks};

    fn view(total: u64) -> View {
        View {
            origin: Origin::Container,
            host: Arc::default(),
            memory: Memory { total, free: total / 2 + 5, shmem: 4096, ..Memory::default() },
            swap: Swap { total: 2048, free: 1024, ..Swap::default() },
            nodes: None,
            cpu: Cpu::default(),
            tasks: Tasks { total: 70_000, ..Tasks::default() },
            load: Load { one: 1 << Load::SHIFT, five: 0, fifteen: 0 },
            clock: Clock { uptime: 1_500_000_000, ..Clock::default() },
            stats: crate::stats::Stats::default(),
        }
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_64_bit_layout() {
        let encoded = encode(&view(1 << 28), Abi::Bits64);
        let bytes = encoded.bytes();
        assert_eq!(bytes.len(), 112);
        assert_eq!(u64_at(bytes, 0), 2, "a started second counts");
        assert_eq!(u64_at(bytes, 8), 65_536, "a load of 1.00");
        assert_eq!(u64_at(bytes, 32), 1 << 28);
        assert_eq!(u64_at(bytes, 40), 1 << 27, "rounded to KiB like /proc/meminfo");
        assert_eq!(&bytes[80..82], &u16::MAX.to_ne_bytes(), "more tasks than 16 bits count");
        assert_eq!(u32_at(bytes, 104), 1);
    }

    #[test]
    fn a_32_bit_caller_gets_64_bytes_and_a_unit_that_fits() {
        let small = encode(&view(1 << 28), Abi::Bits32);
        assert_eq!(small.bytes().len(), 64);
        assert_eq!(u32_at(small.bytes(), 16), 1 << 28);
        assert_eq!(u32_at(small.bytes(), 52), 1);
        let large = encode(&view(1 << 45), Abi::Bits32);
        let unit = u64::from(u32_at(large.bytes(), 52));
        assert_eq!(u64::from(u32_at(large.bytes(), 16)) * unit, 1 << 45);
    }
}
