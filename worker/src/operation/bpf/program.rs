//! Checks the instructions of a program before the kernel's verifier gets them.
//!
//! A device policy computes with the device's numbers and nothing else. An instruction that refers
//! to a map, a variable or a function names it by a descriptor or an id, which would be resolved in
//! the worker when it loads the program. No such instruction may be passed on. A program without
//! calls and references cannot read or change anything outside itself. Start reading at
//! [`is_plain`].

/// The most instructions of a program (`BPF_MAXINSNS`, the limit for unprivileged programs).
pub const LONGEST: usize = 4096;

/// All flags that are allowed: `BPF_F_STRICT_ALIGNMENT` and `BPF_F_ANY_ALIGNMENT`.
pub const ALIGNMENT: u32 = 3;

// include/uapi/linux/bpf.h, bpf_common.h
const LOAD_64: u8 = 0x18;
const CLASS: u8 = 0x07;
const OPERATION: u8 = 0xf0;
const JUMP: u8 = 0x05;
const JUMP_32: u8 = 0x06;
const CALL: u8 = 0x80;
/// `BPF_JCOND`: a loop with a bound so high that it can keep a CPU busy.
const MAY_GOTO: u8 = 0xe0;

/// Returns the opcode and the source register of a `struct bpf_insn`.
fn parts(instruction: u64) -> (u8, u8) {
    let [code, registers, ..] = instruction.to_ne_bytes();
    let source = if cfg!(target_endian = "big") { registers & 0xf } else { registers >> 4 };
    (code, source)
}

/// True if the program has no calls and no references to anything outside itself.
pub fn is_plain(instructions: &[u64]) -> bool {
    let mut rest = instructions.iter();
    while let Some(&instruction) = rest.next() {
        let (code, source) = parts(instruction);
        if code == LOAD_64 {
            // A source register other than 0 marks a reference. The second half must have opcode 0.
            if source != 0 || rest.next().is_none_or(|&second| parts(second) != (0, 0)) {
                return false;
            }
        }
        let jumps = matches!(code & CLASS, JUMP | JUMP_32);
        if jumps && matches!(code & OPERATION, CALL | MAY_GOTO) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, destination: u8, source: u8, immediate: i32) -> u64 {
        let registers = if cfg!(target_endian = "big") {
            destination << 4 | source
        } else {
            source << 4 | destination
        };
        let [a, b, c, d] = immediate.to_ne_bytes();
        u64::from_ne_bytes([code, registers, 0, 0, a, b, c, d])
    }

    const EXIT: u8 = 0x95;

    #[test]
    fn arithmetic_and_jumps_are_plain() {
        // As container engines write them: load, and, compare, return.
        let program = [
            instruction(0x61, 2, 1, 0),
            instruction(0x54, 2, 0, 0xffff),
            instruction(0x55, 2, 0, 2),
            instruction(0xb7, 0, 0, 0),
            instruction(EXIT, 0, 0, 0),
        ];
        assert!(is_plain(&program) && is_plain(&[]));
    }

    #[test]
    fn references_are_not_plain() {
        let exit = instruction(EXIT, 0, 0, 0);
        assert!(is_plain(&[instruction(LOAD_64, 1, 0, 7), 0, exit]), "a number of 64 bits");
        // Maps by descriptor and index, with and without an offset; variables; functions.
        for source in 1..=15 {
            assert!(!is_plain(&[instruction(LOAD_64, 1, source, 3), 0, exit]), "{source}");
        }
        assert!(!is_plain(&[instruction(LOAD_64, 1, 0, 0)]), "cut off");
        assert!(!is_plain(&[instruction(LOAD_64, 1, 0, 0), exit]), "no second half");
        let hidden = instruction(LOAD_64, 1, 1, 3);
        assert!(!is_plain(&[instruction(LOAD_64, 1, 0, 0), hidden, exit]), "in a second half");
    }

    #[test]
    fn calls_are_not_plain() {
        // Helpers, functions of the program, of the kernel; by register; with the other width.
        for (code, source) in [(0x85, 0), (0x85, 1), (0x85, 2), (0x8d, 0), (0x86, 0), (0xe5, 0)] {
            assert!(!is_plain(&[instruction(code, 0, source, 1)]), "{code:#x} {source}");
        }
    }
}
