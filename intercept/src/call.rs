//! One trapped system call, as its registers say it.
//!
//! Everything here is under the target's control. Nothing follows a pointer.

use super::arch::Abi;

/// A trapped system call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The thread that made it, in our own pid namespace.
    pub tid: u32,
    /// How its arguments and structures are laid out.
    pub abi: Abi,
    /// Which of its handler's calls it is.
    pub syscall: &'static str,
    pub(super) args: [u64; 6],
}

impl Call {
    /// An argument that is an address or an `unsigned long`.
    #[must_use]
    pub fn long(&self, index: usize) -> u64 {
        let value = self.args.get(index).copied().unwrap_or(0);
        match self.abi {
            Abi::Bits64 => value,
            // The upper half is not the caller's to set.
            Abi::Bits32 => value & u64::from(u32::MAX),
        }
    }

    /// An argument that is an `unsigned int`: the kernel ignores the upper half, so do we.
    #[must_use]
    pub fn uint(&self, index: usize) -> u32 {
        (self.long(index) & u64::from(u32::MAX)) as u32
    }

    /// An argument that is an `int`.
    #[must_use]
    pub fn int(&self, index: usize) -> i32 {
        self.uint(index).cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_have_the_width_that_the_kernel_gives_them() {
        let args = [u64::MAX, 1 << 40 | 5, 0, 0, 0, 0];
        let wide = Call { tid: 1, abi: Abi::Bits64, syscall: "", args };
        assert_eq!((wide.int(0), wide.uint(1), wide.long(1)), (-1, 5, 1 << 40 | 5));
        let narrow = Call { tid: 1, abi: Abi::Bits32, syscall: "", args };
        assert_eq!((narrow.long(0), narrow.long(1)), (u64::from(u32::MAX), 5));
    }
}
