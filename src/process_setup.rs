//! What a serving process sets up before it starts threads: the broker, its descriptors, accounting.

use std::sync::Arc;

use ambit_intercept::operations::Operations;
use ambit_kernel::sys::{self, capabilities};
use ambit_sysinfo::{Accounting, NamespaceIoctls, Options};
use ambit_worker::Broker;
use anyhow::Context;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;

use crate::config::Config;

/// Starts the broker, whose workers execute privileged operations. Must be called before any thread
/// is started.
pub(crate) fn start_operations() -> anyhow::Result<Operations> {
    let broker = Broker::start().context("cannot start the broker of acts: fork")?;
    Ok(Operations::new(Arc::new(broker)))
}

/// What the server, which reads what containers write, never does. Its broker is no child of it and
/// keeps them, because a helper that it starts has the rights of its caller.
const UNUSED: CapabilitySet = CapabilitySet::SYS_MODULE
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::WAKE_ALARM)
    .union(CapabilitySet::BLOCK_SUSPEND)
    .union(CapabilitySet::SYS_PACCT)
    .union(CapabilitySet::SYS_TTY_CONFIG)
    .union(CapabilitySet::SYSLOG)
    .union(CapabilitySet::MAC_OVERRIDE)
    .union(CapabilitySet::MAC_ADMIN)
    .union(CapabilitySet::AUDIT_CONTROL)
    .union(CapabilitySet::AUDIT_READ)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::LEASE)
    .union(CapabilitySet::IPC_OWNER)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_BROADCAST)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SETFCAP);

/// Gives up what a server never uses, before it has threads: capabilities belong to a thread.
pub(crate) fn give_up_rights() -> std::io::Result<()> {
    capabilities::keep_only(CapabilitySet::all() - UNUSED)?;
    Ok(())
}

/// Grows the table of descriptors to a size that is enough on most hosts. In a process with
/// threads, each growth blocks threads that open files for about 10 ms (an RCU grace period), so
/// this must be called before any thread is started.
pub(crate) fn make_room_for_descriptors() {
    const ENOUGH: u64 = 8192;
    let limit = getrlimit(Resource::Nofile).current;
    let last = limit.unwrap_or(ENOUGH).min(ENOUGH).saturating_sub(1);
    if let Ok(last) = i32::try_from(last)
        && let Err(errno) = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), last)
    {
        tracing::debug!("the table of descriptors grows later: fcntl(F_DUPFD_CLOEXEC): {errno}");
    }
}

/// Returns the settings of accounting.
pub(crate) fn accounting_options(config: &Config) -> Options {
    Options {
        cpu_policy: config.overlay.cpu_view,
        weight_base: config.overlay.weight_base,
        weight_formula: config.overlay.weight_formula,
        steal: config.overlay.steal,
        possible: config.overlay.possible,
        memory_limit: config.overlay.memory_limit,
        swap: config.overlay.swap,
        boot_time: config.overlay.btime,
        view_of: config.overlay.view_of,
        ..Options::default()
    }
}

/// Starts accounting. Its package does not ask the kernel about namespaces itself, and gets
/// functions for that.
pub(crate) fn start_accounting(options: Options) -> anyhow::Result<Arc<Accounting>> {
    raise_descriptor_limit();
    sys::arenas::limit();
    let ioctls = NamespaceIoctls {
        init: |namespace| {
            let pid = sys::pid_in_namespace::pid_from_namespace(namespace, 1)?;
            u32::try_from(pid).map_err(|_| Errno::SRCH)
        },
        parent: sys::user_namespace::parent,
        users: sys::user_namespace::owner,
        owner: sys::user_namespace::maker,
    };
    Accounting::start(Options { ioctls, ..options })
        .context("cannot account for containers; `ambit check` tells what is missing")
}

/// Each container keeps about a dozen descriptors open; the usual soft limit of 1024 is for
/// programs that use select(2). The hard limit is left alone.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
