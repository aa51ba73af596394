//! The seccomp filter that makes the kernel report the calls of a policy.
//!
//! Calls that are not in the policy pass, in every ABI: the filter must never refuse one.
//! [`Filter::new`] allocates, so a program that forks calls it before. [`Filter::install`] makes
//! up to three system calls and does not allocate, so it may be called between fork and exec.

use std::os::fd::OwnedFd;

use ambit_kernel::sys::seccomp;
use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::io::Errno;

use super::arch;
use super::policy::Policy;
use super::syscalls::HANDLERS;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A policy without calls needs no filter, and a filter without notifications gets no
    /// listener.
    #[error("no call is to be intercepted: leave the filter out")]
    Empty,
    /// libseccomp cannot build the filter.
    #[error("libseccomp cannot build the filter: {0}")]
    Build(#[from] SeccompError),
    /// The program could not be read back from libseccomp.
    #[error("cannot export the filter: {0}")]
    Export(#[from] std::io::Error),
    /// The kernel refused the filter.
    #[error("seccomp(SECCOMP_SET_MODE_FILTER): {errno}{}", hint(*.errno))]
    Install {
        /// The errno of the kernel.
        errno: Errno,
    },
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::BUSY => ": another supervisor has a listener on this process already",
        Errno::INVAL | Errno::NOSYS => ": Linux 5.0 or later with CONFIG_SECCOMP_FILTER is needed",
        _ => "",
    }
}

/// A seccomp filter: a program of classic BPF.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// Builds the filter for the native architecture and those compatible with it.
    pub fn new(policy: &Policy) -> Result<Self, Error> {
        let mut context = ScmpFilterContext::new(ScmpAction::Allow)?;
        // Let calls of other ABIs pass: by default libseccomp kills the process.
        context.set_act_badarch(ScmpAction::Allow)?;
        let arches = arch::of_this_kernel();
        for arch in &arches {
            context.add_arch(arch.scmp)?;
        }
        let (mut rules, mut raw) = (0, Vec::new());
        // Handlers of one call have the same conditions.
        let mut seen = Vec::new();
        for (_, handler) in HANDLERS.iter().enumerate().filter(|(index, _)| policy.has(*index)) {
            for name in handler.describe().syscalls {
                if seen.contains(name) {
                    continue;
                }
                seen.push(*name);
                // libseccomp skips calls in architectures that lack them.
                let conditions = handler.reported(name);
                if let Ok(syscall) = ScmpSyscall::from_name(name)
                    && arches.iter().any(|arch| arch.number(name).is_some())
                {
                    for &(argument, mask, value) in conditions {
                        let masked = ScmpCompareOp::MaskedEqual(mask);
                        let condition = ScmpArgCompare::new(argument, masked, value);
                        context.add_rule_conditional(ScmpAction::Notify, syscall, &[condition])?;
                    }
                    if conditions.is_empty() {
                        context.add_rule(ScmpAction::Notify, syscall)?;
                    }
                    rules += 1;
                } else {
                    for arch in &arches {
                        let number = arch.number(name);
                        raw.extend(number.map(|number| by_number(arch.audit, number, conditions)));
                    }
                }
            }
        }
        if rules == 0 {
            return Err(Error::Empty);
        }
        // Jumps are relative, so instructions can be put in front of the program.
        Ok(Self { program: [raw.concat(), seccomp::export(&context)?].concat() })
    }

    /// Installs the filter in the calling thread, which cannot be undone, and returns its listener.
    /// Without CAP_SYS_ADMIN in its user namespace, the thread gets no_new_privs.
    pub fn install(&self) -> Result<OwnedFd, Error> {
        let installed = match seccomp::install_with_listener(&self.program) {
            Err(Errno::ACCESS) => rustix::thread::set_no_new_privs(true)
                .and_then(|()| seccomp::install_with_listener(&self.program)),
            result => result,
        };
        installed.map_err(|errno| Error::Install { errno })
    }
}

/// Builds the filter of a policy and installs it in the calling thread.
pub fn install(policy: &Policy) -> Result<OwnedFd, Error> {
    Filter::new(policy)?.install()
}

/// Returns instructions that report a call whose name libseccomp does not know, for one
/// architecture and on these conditions. All other calls go on with the instructions that follow.
fn by_number(audit: u32, number: i32, conditions: &[(u32, u64, u64)]) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, k: u32, jf: usize| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: u8::try_from(jf).unwrap_or(u8::MAX),
        k,
    };
    let report = step(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0);
    let mut body = Vec::new();
    for &(argument, mask, value) in conditions {
        let mut one = vec![report];
        // struct seccomp_data: nr, arch, instruction_pointer, and six arguments from offset 16 on.
        for (high, shift) in [(true, 32), (false, 0)] {
            let at = 16 + 8 * argument + if high == cfg!(target_endian = "little") { 4 } else { 0 };
            let (mask, value) = ((mask >> shift) as u32, (value >> shift) as u32);
            if mask != 0 {
                let skip = one.len();
                one.splice(0..0, [step(LOAD, at, 0), step(AND, mask, 0), step(EQUAL, value, skip)]);
            }
        }
        body.extend(one);
    }
    if conditions.is_empty() {
        body.push(report);
    }
    let skip = body.len();
    let mut all = vec![step(LOAD, 4, 0), step(EQUAL, audit, skip + 2)];
    all.extend([step(LOAD, 0, 0), step(EQUAL, number.cast_unsigned(), skip)]);
    all.extend(body);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_with_more_calls_has_a_longer_program() {
        let one = Filter::new(&Policy::default()).unwrap();
        let all = HANDLERS.iter().map(|handler| handler.describe().name);
        let all = Filter::new(&Policy::from_names(all).unwrap()).unwrap();
        assert!(!one.program.is_empty() && one.program.len() < all.program.len());
    }

    #[test]
    fn a_call_without_a_name_is_reported_by_its_number() {
        const REPORT: i64 = libc::SECCOMP_RET_USER_NOTIF as i64;
        let program = by_number(7, 463, &[(5, u32::MAX.into(), 16), (0, 1 << 40 | 1, 1 << 40)]);
        let end = i64::try_from(program.len()).unwrap();
        let low = |argument: u32| 16 + 8 * argument + u32::from(cfg!(target_endian = "big")) * 4;
        // The value that the program returns, or where it ends without one.
        let run = |arch: u32, number: u32, first: u64, last: u64| {
            let (mut at, mut value) = (0usize, 0u32);
            while let Some(step) = program.get(at) {
                let code = u32::from(step.code);
                if code & 7 == libc::BPF_RET {
                    return i64::from(step.k);
                }
                match code & 7 {
                    libc::BPF_LD => {
                        value = match step.k {
                            0 => number,
                            4 => arch,
                            k if k == low(5) => last as u32,
                            k if k == low(0) => first as u32,
                            _ => (first >> 32) as u32,
                        }
                    }
                    libc::BPF_ALU => value &= step.k,
                    _ if value != step.k => at += usize::from(step.jf),
                    _ => {}
                }
                at += 1;
            }
            i64::try_from(at).unwrap()
        };
        assert_eq!(run(7, 463, 0, 1 << 32 | 16), REPORT);
        assert_eq!(run(7, 463, 1 << 40, 24), REPORT);
        assert_eq!(run(7, 463, 1 << 40 | 1, 24), end);
        assert_eq!((run(8, 463, 0, 16), run(7, 462, 0, 16)), (end, end));
    }

    #[test]
    fn an_empty_policy_is_an_error() {
        assert!(matches!(Filter::new(&Policy::none()), Err(Error::Empty)));
    }
}
