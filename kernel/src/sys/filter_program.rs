//! What the filters of processes of ambit have in common, and the program that libseccomp builds.

use std::io::{Read, Seek};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpFilterContext, ScmpSyscall};
use rustix::fs::MemfdFlags;

use super::arches::compatible;

/// Returns a filter that allows all but these system calls, which fail with EPERM in every ABI that
/// programs of this machine may have. `other` is the errno for another architecture.
pub fn refusing(names: &[&str], other: i32) -> Result<ScmpFilterContext, SeccompError> {
    let mut context = ScmpFilterContext::new(ScmpAction::Allow)?;
    context.set_act_badarch(ScmpAction::Errno(other))?;
    for arch in compatible(ScmpArch::native()) {
        context.add_arch(arch)?;
    }
    for name in names {
        // An older libseccomp lacks the names of newer system calls.
        if let Ok(syscall) = ScmpSyscall::from_name(name) {
            context.add_rule(ScmpAction::Errno(libc::EPERM), syscall)?;
        }
    }
    Ok(context)
}

/// Returns the program. libseccomp 2.5 can write it to a descriptor only.
pub fn export(context: &ScmpFilterContext) -> std::io::Result<Vec<libc::sock_filter>> {
    let memory = rustix::fs::memfd_create("filter", MemfdFlags::CLOEXEC)?;
    context.export_bpf(&memory).map_err(std::io::Error::other)?;
    let mut file = std::fs::File::from(memory);
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    // struct sock_filter: code, jump offsets jt and jf, constant k.
    let instructions = bytes.chunks_exact(8).map(|one| libc::sock_filter {
        code: u16::from_ne_bytes([one[0], one[1]]),
        jt: one[2],
        jf: one[3],
        k: u32::from_ne_bytes([one[4], one[5], one[6], one[7]]),
    });
    Ok(instructions.collect())
}
