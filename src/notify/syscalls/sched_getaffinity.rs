//! sched_getaffinity(2): as many processors as the container is shown.
//!
//! `nproc` of coreutils, Go's `runtime.NumCPU` and `sched_getaffinity`-based thread pools count
//! the bits of this mask. The kernel's mask knows of cpusets but not of quotas; the answer is a
//! part of the kernel's mask, so a program that pins itself by it is never refused.

use ambit_sysinfo::CpuSet;
use ambit_sysinfo::view::Origin;
use nix::errno::Errno;

use crate::notify::arch::Abi;
use crate::notify::call::Call;
use crate::notify::context::Context;
use crate::notify::cpu_mask::{self, WORDS};
use crate::notify::handler::{Cause, Description, Handler, Refusal, Screen, Verdict};
use crate::notify::thread_id;
use crate::sys::affinity;

/// Answers sched_getaffinity(2).
pub(super) struct SchedGetaffinity;

impl Handler for SchedGetaffinity {
    fn describe(&self) -> Description {
        Description {
            name: "sched_getaffinity",
            syscalls: &["sched_getaffinity"],
            default_on: false,
            privileged: false,
            summary: "Affinity masks have as many processors as the container is shown.",
        }
    }

    fn screen(&self, call: &Call) -> Screen {
        // The kernel's own rules, in its order; it says EINVAL or ESRCH by itself.
        let length = call.uint(1) as usize;
        let long = match call.abi {
            Abi::Bits64 => 8,
            Abi::Bits32 => 4,
        };
        let fits = length.saturating_mul(8) >= cpu_mask::possible() && length.is_multiple_of(long);
        if fits && call.int(0) >= 0 { Screen::Inspect } else { Screen::Continue }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, Refusal> {
        let view = cx.view(call)?;
        if view.origin == Origin::Host {
            return Ok(Verdict::Continue);
        }
        let tid = match call.int(0) {
            0 => call.tid.cast_signed(),
            id => match thread_id::translate(call, cx, id)? {
                Some(tid) => tid,
                None => return Ok(Verdict::Continue),
            },
        };
        let mut mask = [0; WORDS];
        let size = match affinity::sched_getaffinity(tid, &mut mask) {
            Ok(size) => size.min(size_of_val(&mask)),
            // Ours to lose: the kernel looks the thread up again and says so to the target.
            Err(Errno::ESRCH) => return Ok(Verdict::Continue),
            Err(errno) => {
                return Err(Refusal::Continue(Cause::System("sched_getaffinity", errno)));
            }
        };
        reduce(&mut mask, &view.cpu.online);
        let bytes = cpu_mask::encode(&mask, call.abi);
        let length = size.min(call.uint(1) as usize);
        cx.write(call, call.long(2), &bytes[..length])?;
        Ok(Verdict::Return(i64::try_from(length).unwrap_or(0)))
    }
}

/// Leaves as many processors as are shown, at least one: those that are shown first, then the
/// others in ascending order.
fn reduce(mask: &mut [u64; WORDS], shown: &CpuSet) {
    let mut left = shown.len().max(1);
    let mut result = [0; WORDS];
    for wanted in [true, false] {
        for cpu in cpu_mask::cpus(mask).filter(|&cpu| shown.contains(cpu) == wanted) {
            if left == 0 {
                break;
            }
            result[cpu as usize / 64] |= 1 << (cpu % 64);
            left -= 1;
        }
    }
    *mask = result;
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    fn mask(cpus: impl IntoIterator<Item = u32>) -> [u64; WORDS] {
        let mut mask = [0; WORDS];
        cpus.into_iter().for_each(|cpu| mask[cpu as usize / 64] |= 1 << (cpu % 64));
        mask
    }

    fn reduced(allowed: &[u32], shown: &[u32]) -> Vec<u32> {
        let mut mask = mask(allowed.iter().copied());
        reduce(&mut mask, &shown.iter().copied().collect());
        cpu_mask::cpus(&mask).collect()
    }

    #[test]
    fn shown_processors_come_first() {
        assert_eq!(reduced(&[0, 1, 2, 3], &[2, 3]), [2, 3]);
        assert_eq!(reduced(&[0, 1, 2, 3], &[3, 9]), [0, 3], "9 is not allowed: 0 takes its place");
        assert_eq!(reduced(&[5], &[0, 1]), [5], "a thread pinned elsewhere");
        assert_eq!(reduced(&[4, 5], &[]), [4], "never empty");
    }

    proptest! {
        #[test]
        fn a_part_of_what_is_allowed_and_as_many_as_are_shown(
            allowed in btree_set(0u32..300, 1..80),
            shown in btree_set(0u32..300, 0..80),
        ) {
            let mut result = mask(allowed.iter().copied());
            reduce(&mut result, &shown.iter().copied().collect());
            let cpus: Vec<u32> = cpu_mask::cpus(&result).collect();
            prop_assert!(cpus.iter().all(|cpu| allowed.contains(cpu)));
            prop_assert_eq!(cpus.len(), shown.len().max(1).min(allowed.len()));
            let both = allowed.intersection(&shown).count();
            let kept = cpus.iter().filter(|cpu| shown.contains(cpu)).count();
            prop_assert_eq!(kept, both, "no shown processor is passed over");
        }
    }
}
