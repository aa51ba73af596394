//! The table from the number of a trapped call to its handler.
//!
//! It is built once at start from the names that handlers give, for every architecture whose
//! programs run on this kernel. Numbers of system calls are never written by hand: they differ
//! between architectures, and a wrong one would answer another call.

use super::arch::{self, Abi, Arch};
use super::policy::Policy;
use super::syscalls::HANDLERS;

/// The handler and the layout for one (architecture, number).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Index in [`HANDLERS`].
    pub(super) handler: usize,
    pub(super) abi: Abi,
    /// The kernel's name of the call.
    pub(super) syscall: &'static str,
}

#[derive(Debug)]
pub(super) struct Dispatch {
    /// Sorted by key.
    entries: Vec<((u32, i32), Entry)>,
}

impl Dispatch {
    /// Returns the table of this kernel.
    pub(super) fn new() -> Self {
        Self::build(&arch::of_this_kernel())
    }

    fn build(arches: &[Arch]) -> Self {
        let mut entries = Vec::new();
        for arch in arches {
            for (handler, code) in HANDLERS.iter().enumerate() {
                for syscall in code.describe().syscalls {
                    if let Some(number) = arch.number(syscall) {
                        entries.push((
                            (arch.audit, number),
                            Entry { handler, abi: arch.abi, syscall },
                        ));
                    }
                }
            }
        }
        entries.sort_by_key(|(key, _)| *key);
        Self { entries }
    }

    /// Returns the handler of this call: of several the first one that the policy has. `None` if
    /// no handler answers it.
    pub(super) fn find(&self, arch: u32, nr: i32, policy: &Policy) -> Option<Entry> {
        let at = self.entries.partition_point(|(key, _)| *key < (arch, nr));
        let rest = self.entries[at..].iter();
        let mut all = rest.take_while(|(key, _)| *key == (arch, nr)).map(|(_, entry)| *entry);
        let first = all.next()?;
        if policy.has(first.handler) {
            return Some(first);
        }
        Some(all.find(|entry| policy.has(entry.handler)).unwrap_or(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(entry: Option<Entry>) -> Option<(&'static str, Abi)> {
        entry.map(|entry| (HANDLERS[entry.handler].describe().name, entry.abi))
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn programs_of_all_three_abis_are_understood() {
        const X86_64: u32 = 0xc000_003e;
        const I386: u32 = 0x4000_0003;
        let dispatch = Dispatch::build(&arch::family(libseccomp::ScmpArch::native()));
        assert_eq!(
            name(dispatch.find(X86_64, 99, &Policy::none())),
            Some(("sysinfo", Abi::Bits64))
        );
        assert_eq!(
            name(dispatch.find(X86_64, 0x4000_0000 | 99, &Policy::none())),
            Some(("sysinfo", Abi::Bits64))
        );
        assert_eq!(name(dispatch.find(I386, 116, &Policy::none())), Some(("sysinfo", Abi::Bits32)));
        assert_eq!(
            name(dispatch.find(X86_64, 204, &Policy::none())),
            Some(("sched_getaffinity", Abi::Bits64))
        );
        assert_eq!(
            name(dispatch.find(I386, 242, &Policy::none())),
            Some(("sched_getaffinity", Abi::Bits32))
        );
        assert_eq!(name(dispatch.find(X86_64, 116, &Policy::none())), None, "syslog(2)");
        assert_eq!(name(dispatch.find(I386, 99, &Policy::none())), None, "statfs(2)");
        assert_eq!(
            name(dispatch.find(0xc000_00b7, 179, &Policy::none())),
            None,
            "an arm64 call on x86_64"
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn numbers_that_this_kernel_lacks_are_not_answered() {
        let entry = Dispatch::new().find(0xc000_003e, 0x4000_0000 | 99, &Policy::none());
        assert_eq!(entry.is_some(), ambit_kernel::sys::x32::is_there());
    }

    #[test]
    fn every_handler_has_a_number_on_this_machine() {
        let dispatch = Dispatch::new();
        for (index, handler) in HANDLERS.iter().enumerate() {
            let description = handler.describe();
            assert!(
                dispatch.entries.iter().any(|(_, entry)| entry.handler == index),
                "{} names no system call of this architecture",
                description.name
            );
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn of_two_handlers_of_a_call_the_policy_chooses() {
        let dispatch = Dispatch::build(&arch::family(libseccomp::ScmpArch::native()));
        for (names, expected) in
            [(&["proc"][..], "proc"), (&["mount", "proc"], "mount"), (&["mount"], "mount")]
        {
            let policy = Policy::from_names(names).unwrap();
            let entry = dispatch.find(0xc000_003e, 165, &policy);
            assert_eq!(name(entry).unwrap().0, expected);
        }
    }
}
