//! The limits of a sandbox's control groups.
//!
//! Each is set by its own call, because `Cgroup::apply` of `cgroups-rs` ignores failures. A limit
//! that cannot be set is an error.

use anyhow::{Context, Result, bail};
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, Controller, MaxValue, Subsystem};

use super::options::Options;

/// The scheduling period, the same as in container engines.
const PERIOD_US: u64 = 100_000;

/// Sets the limits of the command line.
pub(super) fn apply(group: &Cgroup, options: &Options) -> Result<()> {
    if let Some(bytes) = options.memory {
        memory(group, bytes, options.swap)?;
    }
    if let Some(number) = options.cpus {
        let cpu = find(group, "--cpus", "cpu", |subsystem| match subsystem {
            Subsystem::Cpu(cpu) => Some(cpu),
            _ => None,
        })?;
        cpus(cpu, number)?;
    }
    if let Some(list) = &options.cpuset {
        let cpuset = find(group, "--cpuset", "cpuset", |subsystem| match subsystem {
            Subsystem::CpuSet(cpuset) => Some(cpuset),
            _ => None,
        })?;
        available(cpuset, "cpuset.cpus", "--cpuset")?;
        CpuSetController::set_cpus(cpuset, list)
            .map_err(|error| explain(&error))
            .with_context(|| format!("cannot limit {} to --cpuset {list}", shown(cpuset)))?;
    }
    if let Some(number) = options.pids {
        let pids = find(group, "--pids", "pids", |subsystem| match subsystem {
            Subsystem::Pid(pids) => Some(pids),
            _ => None,
        })?;
        available(pids, "pids.max", "--pids")?;
        PidController::set_pid_max(pids, MaxValue::Value(number.into()))
            .map_err(|error| explain(&error))
            .with_context(|| format!("cannot limit {} to --pids {number}", shown(pids)))?;
    }
    Ok(())
}

fn memory(group: &Cgroup, bytes: u64, swap: Option<u64>) -> Result<()> {
    let memory = find(group, "--memory", "memory", |subsystem| match subsystem {
        Subsystem::Mem(memory) => Some(memory),
        _ => None,
    })?;
    let (limit, swap_limit) = match group.v2() {
        true => ("memory.max", "memory.swap.max"),
        false => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    };
    available(memory, limit, "--memory")?;
    MemController::set_limit(memory, signed(bytes))
        .map_err(|error| explain(&error))
        .with_context(|| format!("cannot limit {} to --memory {bytes}", shown(memory)))?;

    if !memory.path().join(swap_limit).exists() {
        if swap.is_some() {
            bail!(
                "--swap cannot be set: {} has no {swap_limit}: boot with swapaccount=1, or leave \
                 --swap out",
                shown(memory)
            );
        }
        return Ok(());
    }
    // Without `--swap`, as much swap as memory, as in container engines.
    let swap = swap.unwrap_or(bytes);
    // v1 counts memory and swap together.
    let value = if group.v2() { swap } else { bytes.saturating_add(swap) };
    MemController::set_memswap_limit(memory, signed(value))
        .and_then(|()| match swap {
            // If a group above has a tighter memory limit, the rest of the sum would be swap.
            0 if !group.v2() => memory.set_swappiness(0),
            _ => Ok(()),
        })
        .map_err(|error| explain(&error))
        .with_context(|| format!("cannot limit {} to --swap {swap}", shown(memory)))
}

fn cpus(cpu: &CpuController, number: f64) -> Result<()> {
    let quota = (number * PERIOD_US as f64).round() as i64;
    available(cpu, if cpu.v2() { "cpu.max" } else { "cpu.cfs_quota_us" }, "--cpus")?;
    let set = if cpu.v2() {
        cpu.set_cfs_quota_and_period(Some(quota), Some(PERIOD_US))
    } else {
        cpu.set_cfs_period(PERIOD_US).and_then(|()| cpu.set_cfs_quota(quota))
    };
    set.map_err(|error| explain(&error))
        .with_context(|| format!("cannot limit {} to --cpus {number}", shown(cpu)))
}

fn find<'a, T>(
    group: &'a Cgroup,
    option: &str,
    controller: &str,
    pick: impl Fn(&'a Subsystem) -> Option<&'a T>,
) -> Result<&'a T> {
    group.subsystems().iter().find_map(pick).with_context(|| {
        format!(
            "{option} cannot be set: this system has no {controller} controller in its control \
             groups: enable it in the kernel, or leave {option} out"
        )
    })
}

/// A controller may exist without being enabled for our part of the hierarchy.
fn available(controller: &impl Controller, file: &str, option: &str) -> Result<()> {
    if controller.path().join(file).exists() {
        return Ok(());
    }
    bail!(
        "{option} cannot be set: {} has no {file}: enable its controller in cgroup.subtree_control \
         of the groups above it, or leave {option} out",
        shown(controller)
    )
}

fn shown(controller: &impl Controller) -> String {
    controller.path().display().to_string()
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Returns an error of `cgroups-rs` and its cause in one line.
pub(super) fn explain(error: &cgroups_rs::fs::error::Error) -> anyhow::Error {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    anyhow::anyhow!("{}{}", error.kind(), cause.unwrap_or_default())
}
