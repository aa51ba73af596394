//! The architectures whose programs run on one kernel: its own and the compatible ones.

use libseccomp::ScmpArch;

/// The architecture and those compatible with it that some kernel of it may have.
pub fn compatible(native: ScmpArch) -> Vec<ScmpArch> {
    use ScmpArch as A;
    match native {
        A::X8664 | A::X32 => vec![A::X8664, A::X86, A::X32],
        A::Aarch64 => vec![A::Aarch64, A::Arm],
        A::Ppc64 => vec![A::Ppc64, A::Ppc],
        A::S390X => vec![A::S390X, A::S390],
        A::Mips64 | A::Mips64N32 => vec![A::Mips64, A::Mips64N32, A::Mips],
        A::Mipsel64 | A::Mipsel64N32 => vec![A::Mipsel64, A::Mipsel64N32, A::Mipsel],
        A::Parisc64 => vec![A::Parisc64, A::Parisc],
        only => vec![only],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compatible_architectures_come_along() {
        use ScmpArch as A;
        assert_eq!(compatible(A::X8664), [A::X8664, A::X86, A::X32]);
        assert_eq!(compatible(A::Aarch64), [A::Aarch64, A::Arm]);
        assert_eq!(compatible(A::Riscv64), [A::Riscv64]);
    }
}
