//! The architectures whose programs run on one kernel: its own and its compatible ones.
//!
//! A kernel of x86_64 also runs programs of i386 and of the x32 ABI; what they call arrives
//! with another audit architecture or other numbers, and their structures differ.

pub use ambit_sysinfo::sysinfo::Abi;
use libseccomp::{ScmpArch, ScmpSyscall};
use libseccomp_sys as sys;

/// One architecture as seccomp sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arch {
    /// As libseccomp calls it.
    pub(super) scmp: ScmpArch,
    /// `seccomp_data.arch` of its calls.
    pub(super) audit: u32,
    /// Width of its `long`.
    pub(super) abi: Abi,
    /// Added to its numbers in `seccomp_data.nr`.
    offset: i32,
}

impl Arch {
    /// The number of a system call, where the architecture has it.
    pub(super) fn number(&self, syscall: &str) -> Option<i32> {
        let number = ScmpSyscall::from_name_by_arch(syscall, self.scmp).ok()?.as_raw_syscall();
        // libseccomp gives negative pseudo numbers to calls that exist elsewhere only.
        (number >= 0).then_some(number | self.offset)
    }
}

/// The native architecture and those compatible with it.
pub(super) fn of_this_kernel() -> Vec<Arch> {
    family(ScmpArch::native())
}

fn family(native: ScmpArch) -> Vec<Arch> {
    use ScmpArch as A;
    let members: &[A] = match native {
        A::X8664 | A::X32 => &[A::X8664, A::X86, A::X32],
        A::Aarch64 => &[A::Aarch64, A::Arm],
        A::Ppc64 => &[A::Ppc64, A::Ppc],
        A::S390X => &[A::S390X, A::S390],
        A::Mips64 | A::Mips64N32 => &[A::Mips64, A::Mips64N32, A::Mips],
        A::Mipsel64 | A::Mipsel64N32 => &[A::Mipsel64, A::Mipsel64N32, A::Mipsel],
        A::Parisc64 => &[A::Parisc64, A::Parisc],
        only => &[only],
    };
    members.iter().filter_map(|&member| arch(member)).collect()
}

fn arch(scmp: ScmpArch) -> Option<Arch> {
    use Abi::{Bits32, Bits64};
    use ScmpArch as A;
    let (audit, abi) = match scmp {
        A::X86 => (sys::SCMP_ARCH_X86, Bits32),
        A::X8664 => (sys::SCMP_ARCH_X86_64, Bits64),
        // x32 shares the audit architecture of x86_64 and, in the calls answered here, its
        // structures: `struct sysinfo` and processor masks have 64-bit longs
        // (arch/x86/entry/syscalls/syscall_64.tbl marks them "common").
        A::X32 => (sys::SCMP_ARCH_X86_64, Bits64),
        A::Arm => (sys::SCMP_ARCH_ARM, Bits32),
        A::Aarch64 => (sys::SCMP_ARCH_AARCH64, Bits64),
        A::Loongarch64 => (sys::SCMP_ARCH_LOONGARCH64, Bits64),
        A::M68k => (sys::SCMP_ARCH_M68K, Bits32),
        A::Mips => (sys::SCMP_ARCH_MIPS, Bits32),
        A::Mips64 => (sys::SCMP_ARCH_MIPS64, Bits64),
        A::Mips64N32 => (sys::SCMP_ARCH_MIPS64N32, Bits32),
        A::Mipsel => (sys::SCMP_ARCH_MIPSEL, Bits32),
        A::Mipsel64 => (sys::SCMP_ARCH_MIPSEL64, Bits64),
        A::Mipsel64N32 => (sys::SCMP_ARCH_MIPSEL64N32, Bits32),
        A::Ppc => (sys::SCMP_ARCH_PPC, Bits32),
        A::Ppc64 => (sys::SCMP_ARCH_PPC64, Bits64),
        A::Ppc64Le => (sys::SCMP_ARCH_PPC64LE, Bits64),
        A::S390 => (sys::SCMP_ARCH_S390, Bits32),
        A::S390X => (sys::SCMP_ARCH_S390X, Bits64),
        A::Parisc => (sys::SCMP_ARCH_PARISC, Bits32),
        A::Parisc64 => (sys::SCMP_ARCH_PARISC64, Bits64),
        A::Riscv64 => (sys::SCMP_ARCH_RISCV64, Bits64),
        A::Sheb => (sys::SCMP_ARCH_SHEB, Bits32),
        A::Sh => (sys::SCMP_ARCH_SH, Bits32),
        _ => return None,
    };
    let offset = if scmp == A::X32 { X32_SYSCALL_BIT } else { 0 };
    Some(Arch { scmp, audit, abi, offset })
}

/// `__X32_SYSCALL_BIT` of `arch/x86/include/uapi/asm/unistd.h`.
const X32_SYSCALL_BIT: i32 = 0x4000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 9] = [
        "mknod",
        "mknodat",
        "setxattr",
        "mount",
        "bpf",
        "sched_setscheduler",
        "sysinfo",
        "finit_module",
        "quotactl",
    ];

    /// -1: the architecture lacks it.
    const TABLE: [(ScmpArch, [i32; 9]); 18] = [
        (ScmpArch::X8664, [133, 259, 188, 165, 321, 144, 99, 313, 179]),
        (ScmpArch::X86, [14, 297, 226, 21, 357, 156, 116, 350, 131]),
        (ScmpArch::Aarch64, [-1, 33, 5, 40, 280, 119, 179, 273, 60]),
        (ScmpArch::Riscv64, [-1, 33, 5, 40, 280, 119, 179, 273, 60]),
        (ScmpArch::Arm, [14, 324, 226, 21, 386, 156, 116, 379, 131]),
        (ScmpArch::S390, [14, 290, 224, 21, 351, 156, 116, 344, 131]),
        (ScmpArch::S390X, [14, 290, 224, 21, 351, 156, 116, 344, 131]),
        (ScmpArch::Ppc, [14, 288, 209, 21, 361, 156, 116, 353, 131]),
        (ScmpArch::Ppc64, [14, 288, 209, 21, 361, 156, 116, 353, 131]),
        (ScmpArch::Ppc64Le, [14, 288, 209, 21, 361, 156, 116, 353, 131]),
        (ScmpArch::Mips, [4014, 4290, 4224, 4021, 4355, 4160, 4116, 4348, 4131]),
        (ScmpArch::Mipsel, [4014, 4290, 4224, 4021, 4355, 4160, 4116, 4348, 4131]),
        (ScmpArch::Mips64, [5131, 5249, 5180, 5160, 5315, 5141, 5097, 5307, 5172]),
        (ScmpArch::Mipsel64, [5131, 5249, 5180, 5160, 5315, 5141, 5097, 5307, 5172]),
        (ScmpArch::Mips64N32, [6131, 6253, 6180, 6160, 6319, 6141, 6097, 6312, 6172]),
        (ScmpArch::Mipsel64N32, [6131, 6253, 6180, 6160, 6319, 6141, 6097, 6312, 6172]),
        (ScmpArch::X32, [133, 259, 188, 165, 321, 144, 99, 313, 179]),
        (ScmpArch::X8664, [133, 259, 188, 165, 321, 144, 99, 313, 179]),
    ];

    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (scmp, numbers) in TABLE {
            let arch = arch(scmp).unwrap();
            let offset = if scmp == ScmpArch::X32 { 0x4000_0000 } else { 0 };
            for (name, wanted) in NAMES.iter().zip(numbers) {
                let wanted = (wanted >= 0).then_some(wanted | offset);
                assert_eq!(arch.number(name), wanted, "{name} on {scmp:?}");
            }
        }
    }

    #[test]
    fn compatible_architectures_come_along() {
        let of = |native| family(native).iter().map(|arch| arch.scmp).collect::<Vec<_>>();
        assert_eq!(of(ScmpArch::X8664), [ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32]);
        assert_eq!(of(ScmpArch::Aarch64), [ScmpArch::Aarch64, ScmpArch::Arm]);
        assert_eq!(of(ScmpArch::Riscv64), [ScmpArch::Riscv64]);
        assert!(!of_this_kernel().is_empty());
    }
}
