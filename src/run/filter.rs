//! The seccomp filter of a sandbox: everything is allowed, the named calls ask our listener.
//!
//! Installed in the sandbox's init, so that init and everything it starts have it. Needs
//! CAP_SYS_ADMIN in the sandbox's user namespace; no_new_privs is left alone, because programs
//! such as `su` must work inside.
#![allow(unsafe_code, reason = "libseccomp returns the listener as a bare number")]

use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use libseccomp::{ScmpAction, ScmpArch, ScmpFilterContext, ScmpSyscall};

/// Installs the filter for this process and returns its listener.
pub(super) fn install(names: &[String]) -> Result<OwnedFd> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow).context("seccomp_init")?;
    filter.set_ctl_nnp(false).context("seccomp_attr_set")?;
    // Programs of an ABI that is not listed here are not killed, which is the default.
    filter.set_act_badarch(ScmpAction::Allow).context("seccomp_attr_set")?;
    if cfg!(target_arch = "x86_64") {
        filter.add_arch(ScmpArch::X86).context("seccomp_arch_add")?;
    }
    for name in names {
        let call = ScmpSyscall::from_name(name).with_context(|| format!("system call {name}"))?;
        filter
            .add_rule(ScmpAction::Notify, call)
            .with_context(|| format!("cannot intercept {name}: seccomp_rule_add"))?;
    }
    filter.load().context(
        "cannot install the seccomp filter: seccomp: Linux 5.0 or later, and no other listener \
         above this process, are needed",
    )?;
    let listener = filter.get_notify_fd().context("seccomp_notify_fd")?;
    // SAFETY: the descriptor was made by the call above and libseccomp keeps no use of it: its
    // context is dropped here, and nothing else asks it for notifications.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}
