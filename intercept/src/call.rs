//! One trapped system call, as the registers of the caller have it.
//!
//! All arguments are under the caller's control. Nothing here follows a pointer: `memory.rs` does.

use super::arch::Abi;

/// A trapped system call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The id of the calling thread in the daemon's pid namespace.
    pub tid: u32,
    /// How its arguments and structures are laid out.
    pub abi: Abi,
    /// The kernel's name of the call.
    pub syscall: &'static str,
    pub(crate) args: [u64; 6],
}

impl Call {
    /// Returns an argument that is an address or an `unsigned long`.
    pub fn long(&self, index: usize) -> u64 {
        let value = self.args.get(index).copied().unwrap_or(0);
        match self.abi {
            Abi::Bits64 => value,
            // The upper half does not belong to the argument of a 32-bit program.
            Abi::Bits32 => value & u64::from(u32::MAX),
        }
    }

    /// Returns an argument that is an `unsigned int`. As in the kernel, the upper half is ignored.
    pub fn uint(&self, index: usize) -> u32 {
        (self.long(index) & u64::from(u32::MAX)) as u32
    }

    /// Returns an argument that is an `int`.
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
