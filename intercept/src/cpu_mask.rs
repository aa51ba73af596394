//! CPU masks as sched_getaffinity(2) returns them.
//!
//! They are decoded and encoded here in the layout of the caller's ABI; which CPUs a container is
//! shown is decided in `syscalls/sched_getaffinity.rs`.

use std::sync::OnceLock;

use ambit_kernel::sys::affinity;
use ambit_sysinfo::CpuSet;
use ambit_sysinfo::KernelFiles;

use super::arch::Abi;

/// The 64-bit words of a mask of 8192 CPUs, the kernel's highest `NR_CPUS`.
pub(super) const WORDS: usize = 128;

/// Returns the CPUs of a mask in ascending order.
pub(super) fn cpus(mask: &[u64; WORDS]) -> impl Iterator<Item = u32> + '_ {
    mask.iter().zip(0u32..).filter(|(word, _)| **word != 0).flat_map(|(&word, index)| {
        (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
    })
}

/// Returns the mask of these CPUs. Those beyond [`WORDS`] are left out.
pub(super) fn mask_of(cpus: &CpuSet) -> [u64; WORDS] {
    let mut mask = [0; WORDS];
    for cpu in cpus.iter() {
        if let Some(word) = mask.get_mut(cpu as usize / 64) {
            *word |= 1 << (cpu % 64);
        }
    }
    mask
}

/// Returns the bytes that are written to the caller's buffer.
pub(super) fn encode(mask: &[u64; WORDS], abi: Abi) -> [u8; WORDS * 8] {
    let mut bytes = [0; WORDS * 8];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(mask) {
        let low = (word & u64::from(u32::MAX)) as u32;
        let high = (word >> 32) as u32;
        match abi {
            Abi::Bits64 => chunk.copy_from_slice(&word.to_ne_bytes()),
            // The lower half first, whatever the byte order: compat_put_bitmap().
            Abi::Bits32 => {
                chunk[..4].copy_from_slice(&low.to_ne_bytes());
                chunk[4..].copy_from_slice(&high.to_ne_bytes());
            }
        }
    }
    bytes
}

/// Returns `nr_cpu_ids`. The kernel refuses masks with fewer bits.
pub(super) fn possible() -> usize {
    static POSSIBLE: OnceLock<usize> = OnceLock::new();
    *POSSIBLE.get_or_init(|| {
        let mut list = Vec::new();
        // Not by its path: the overlay may be mounted over it.
        let read = |sys: KernelFiles| sys.read("devices/system/cpu/possible", &mut list);
        drop(KernelFiles::sysfs().and_then(read));
        let last = CpuSet::parse(&list).and_then(|set| set.iter().last());
        last.map_or_else(probe, |last| last as usize + 1)
    })
}

/// Used where /sys is not mounted: finds the shortest mask that the kernel accepts, in words.
fn probe() -> usize {
    let mut mask = [0; WORDS];
    let shortest =
        (1..=WORDS).find(|&words| affinity::sched_getaffinity(0, &mut mask[..words]).is_ok());
    // The exact number is not known: return the lowest one that needs so many words.
    shortest.map_or(WORDS * 64, |words| (words - 1) * 64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_mask_are_cpu_numbers() {
        let mut mask = [0; WORDS];
        mask[0] = 0b101;
        mask[2] = 1 << 63;
        assert_eq!(cpus(&mask).collect::<Vec<_>>(), [0, 2, 191]);
        assert_eq!(mask_of(&cpus(&mask).collect()), mask);
        assert_eq!(mask_of(&[WORDS as u32 * 64].into_iter().collect()), [0; WORDS]);
    }

    #[test]
    fn a_32_bit_program_sees_the_same_cpus() {
        let mut mask = [0; WORDS];
        mask[0] = 1 << 33 | 2;
        let bytes = encode(&mask, Abi::Bits32);
        assert_eq!(bytes[..4], 2u32.to_ne_bytes());
        assert_eq!(bytes[4..8], 2u32.to_ne_bytes());
        assert_eq!(encode(&mask, Abi::Bits64)[..8], mask[0].to_ne_bytes());
    }

    #[test]
    fn probing_agrees_with_sysfs() {
        assert_eq!(probe().div_ceil(64), possible().div_ceil(64));
    }
}
