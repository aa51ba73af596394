//! The architectures whose programs run on one kernel: its native one and the compatible ones.
//!
//! An x86_64 kernel also runs programs of i386 and of the x32 ABI. Their calls are reported with
//! another audit architecture or with other numbers, and their structures differ. No number of a
//! system call is written by hand, except in [`NEWER`] and in the tests.

pub use ambit_sysinfo::sysinfo::Abi;
use libseccomp::{ScmpArch, ScmpSyscall};
use libseccomp_sys as sys;

use ambit_kernel::sys::arches::compatible;
use ambit_kernel::sys::x32;

/// One architecture as seccomp sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arch {
    /// The architecture of libseccomp.
    pub(super) scmp: ScmpArch,
    /// `seccomp_data.arch` of its calls.
    pub(super) audit: u32,
    /// The width of its `long`.
    pub(super) abi: Abi,
    /// The bit that is set in its numbers in `seccomp_data.nr`.
    offset: i32,
}

impl Arch {
    /// Returns the number of a system call. `None` if the architecture lacks it.
    pub(super) fn number(&self, syscall: &str) -> Option<i32> {
        let known = ScmpSyscall::from_name_by_arch(syscall, self.scmp);
        let Ok(known) = known else { return self.newer(syscall).map(|it| it | self.offset) };
        let number = known.as_raw_syscall();
        // libseccomp has negative pseudo numbers for calls that exist on other architectures only.
        (number >= 0).then_some(number | self.offset)
    }

    /// Returns the number of a call that this libseccomp does not know. Since Linux 5.1 new calls
    /// have the same number on all architectures, counted from where the architecture's numbers
    /// begin.
    fn newer(&self, syscall: &str) -> Option<i32> {
        use ScmpArch as A;
        let (_, number) = NEWER.iter().find(|(name, _)| *name == syscall)?;
        Some(
            number
                + match self.scmp {
                    A::Mips | A::Mipsel => 4000,
                    A::Mips64 | A::Mipsel64 => 5000,
                    A::Mips64N32 | A::Mipsel64N32 => 6000,
                    _ => 0,
                },
        )
    }
}

/// Calls that libseccomp 2.5 does not know.
const NEWER: [(&str, i32); 1] = [("setxattrat", 463)];

/// Returns the native architecture and the compatible ones that the kernel supports. The kernel
/// refuses calls of any other one, so they must not be answered.
pub(super) fn of_this_kernel() -> Vec<Arch> {
    let all = family(ScmpArch::native()).into_iter();
    all.filter(|arch| arch.scmp != ScmpArch::X32 || x32::is_there()).collect()
}

/// Returns the number of a call in the native architecture.
pub(super) fn native(syscall: &str) -> Option<i32> {
    arch(ScmpArch::native()).and_then(|arch| arch.number(syscall))
}

/// Returns an architecture and those compatible with it.
pub(super) fn family(native: ScmpArch) -> Vec<Arch> {
    compatible(native).into_iter().filter_map(arch).collect()
}

fn arch(scmp: ScmpArch) -> Option<Arch> {
    use Abi::{Bits32, Bits64};
    use ScmpArch as A;
    let (audit, abi) = match scmp {
        A::X86 => (sys::SCMP_ARCH_X86, Bits32),
        A::X8664 => (sys::SCMP_ARCH_X86_64, Bits64),
        // x32 shares the audit architecture of x86_64 and, in the calls answered here, its
        // structures: `struct sysinfo` and CPU masks have 64-bit longs
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

    const NAMES: [&str; 13] = [
        "mknod",
        "mknodat",
        "setxattr",
        "lsetxattr",
        "fsetxattr",
        "mount",
        "fsopen",
        "bpf",
        "sched_setscheduler",
        "sched_setattr",
        "setpriority",
        "sched_getaffinity",
        "sysinfo",
    ];

    /// From the kernel's tables. -1 if the architecture lacks the call.
    const TABLE: [(ScmpArch, [i32; 13]); 17] = [
        (ScmpArch::X8664, [133, 259, 188, 189, 190, 165, 430, 321, 144, 314, 141, 204, 99]),
        (ScmpArch::X32, [133, 259, 188, 189, 190, 165, 430, 321, 144, 314, 141, 204, 99]),
        (ScmpArch::X86, [14, 297, 226, 227, 228, 21, 430, 357, 156, 351, 97, 242, 116]),
        (ScmpArch::Aarch64, [-1, 33, 5, 6, 7, 40, 430, 280, 119, 274, 140, 123, 179]),
        (ScmpArch::Riscv64, [-1, 33, 5, 6, 7, 40, 430, 280, 119, 274, 140, 123, 179]),
        (ScmpArch::Arm, [14, 324, 226, 227, 228, 21, 430, 386, 156, 380, 97, 242, 116]),
        (ScmpArch::S390, [14, 290, 224, 225, 226, 21, 430, 351, 156, 345, 97, 240, 116]),
        (ScmpArch::S390X, [14, 290, 224, 225, 226, 21, 430, 351, 156, 345, 97, 240, 116]),
        (ScmpArch::Ppc, [14, 288, 209, 210, 211, 21, 430, 361, 156, 355, 97, 223, 116]),
        (ScmpArch::Ppc64, [14, 288, 209, 210, 211, 21, 430, 361, 156, 355, 97, 223, 116]),
        (ScmpArch::Ppc64Le, [14, 288, 209, 210, 211, 21, 430, 361, 156, 355, 97, 223, 116]),
        (
            ScmpArch::Mips,
            [4014, 4290, 4224, 4225, 4226, 4021, 4430, 4355, 4160, 4349, 4097, 4240, 4116],
        ),
        (
            ScmpArch::Mipsel,
            [4014, 4290, 4224, 4225, 4226, 4021, 4430, 4355, 4160, 4349, 4097, 4240, 4116],
        ),
        (
            ScmpArch::Mips64,
            [5131, 5249, 5180, 5181, 5182, 5160, 5430, 5315, 5141, 5309, 5138, 5196, 5097],
        ),
        (
            ScmpArch::Mipsel64,
            [5131, 5249, 5180, 5181, 5182, 5160, 5430, 5315, 5141, 5309, 5138, 5196, 5097],
        ),
        (
            ScmpArch::Mips64N32,
            [6131, 6253, 6180, 6181, 6182, 6160, 6430, 6319, 6141, 6313, 6138, 6196, 6097],
        ),
        (
            ScmpArch::Mipsel64N32,
            [6131, 6253, 6180, 6181, 6182, 6160, 6430, 6319, 6141, 6313, 6138, 6196, 6097],
        ),
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

    /// For all calls of all handlers on all architectures of libseccomp: the number is
    /// libseccomp's. If libseccomp is too old for a call, the number is the same on all
    /// architectures.
    #[test]
    fn numbers_of_handlers_are_those_of_libseccomp() {
        use crate::HANDLERS;
        let names = HANDLERS.iter().flat_map(|handler| handler.describe().syscalls);
        for name in names {
            let mut newest = None;
            // Only architectures that this libseccomp has tables for.
            let tabled = |arch: &Arch| arch.number("read").is_some();
            for arch in ALL.into_iter().filter_map(arch).filter(tabled) {
                let number = arch.number(name);
                let text = std::ffi::CString::new(*name).unwrap();
                let token =
                    if arch.scmp == ScmpArch::X32 { sys::SCMP_ARCH_X32 } else { arch.audit };
                // SAFETY: `text` is a NUL-terminated string that lives until the call returns.
                #[allow(unsafe_code, reason = "the function itself is what is compared with")]
                let known = unsafe { sys::seccomp_syscall_resolve_name_arch(token, text.as_ptr()) };
                if known == sys::__NR_SCMP_ERROR {
                    // Without the number from which the ABI counts.
                    let plain = (number.unwrap() & !X32_SYSCALL_BIT) % 1000;
                    assert_eq!(*newest.get_or_insert(plain), plain, "{name} on {:?}", arch.scmp);
                } else {
                    let known = (known >= 0).then_some(known | arch.offset);
                    assert_eq!(number, known, "{name} on {:?}", arch.scmp);
                }
            }
        }
    }

    const ALL: [ScmpArch; 23] = [
        ScmpArch::X86,
        ScmpArch::X8664,
        ScmpArch::X32,
        ScmpArch::Arm,
        ScmpArch::Aarch64,
        ScmpArch::Loongarch64,
        ScmpArch::M68k,
        ScmpArch::Mips,
        ScmpArch::Mips64,
        ScmpArch::Mips64N32,
        ScmpArch::Mipsel,
        ScmpArch::Mipsel64,
        ScmpArch::Mipsel64N32,
        ScmpArch::Ppc,
        ScmpArch::Ppc64,
        ScmpArch::Ppc64Le,
        ScmpArch::S390,
        ScmpArch::S390X,
        ScmpArch::Parisc,
        ScmpArch::Parisc64,
        ScmpArch::Riscv64,
        ScmpArch::Sheb,
        ScmpArch::Sh,
    ];

    #[test]
    fn newer_calls_have_the_same_number_on_all_architectures() {
        let number = |scmp| arch(scmp).unwrap().number("setxattrat");
        for scmp in [ScmpArch::X8664, ScmpArch::X86, ScmpArch::Aarch64, ScmpArch::S390] {
            assert_eq!(number(scmp), Some(463), "{scmp:?}");
        }
        assert_eq!(number(ScmpArch::X32), Some(X32_SYSCALL_BIT | 463));
        assert_eq!(number(ScmpArch::Mips64), Some(5463));
        assert_eq!(arch(ScmpArch::X8664).unwrap().number("no_such_call"), None);
    }

    #[test]
    fn this_kernel_has_an_architecture() {
        assert!(!of_this_kernel().is_empty());
    }
}
