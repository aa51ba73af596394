//! Policies: choices of the administrator where more than one number is correct.
//!
//! A policy selects which numbers of the container are shown; it must never make numbers of another
//! container visible. `source` reads the files that a policy needs, `derive` and `container` apply
//! it.

use serde::{Deserialize, Serialize};

/// How many processors a container is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuPolicy {
    /// The processors of its cpuset, as many as its quota can keep busy.
    #[default]
    Quota,
    /// The processors of its cpuset.
    Cpuset,
    /// As `Quota`, and no more than its CPU weight stands for.
    Weight,
}

/// How a container engine computes `cpu.weight` of cgroup v2 from CPU shares, 2 to 262144.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormula {
    /// Through 2 = 1, 1024 = 100 and 262144 = 10000: runc since 1.3.2, crun since 1.23.
    #[default]
    Quadratic,
    /// Through 2 = 1 and 262144 = 10000: earlier runc and crun.
    Linear,
    /// In proportion, 1024 = 100: systemd, LXD and Incus.
    Systemd,
}

impl WeightFormula {
    /// Returns the weight of these shares. It never decreases when the shares grow.
    pub fn weight(self, shares: u64) -> u64 {
        let shares = shares.clamp(2, 262_144);
        match self {
            // `ConvertCPUSharesToCgroupV2Value` of github.com/opencontainers/cgroups.
            Self::Quadratic => {
                #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
                let log = (shares as f64).log2();
                let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "1..=10000"
                )]
                let weight = 10_f64.powf(exponent).ceil() as u64;
                weight
            }
            Self::Linear => 1 + (shares - 2) * 9999 / 262_142,
            // `cgroup_cpu_shares_to_weight`.
            Self::Systemd => (shares * 100 / 1024).clamp(1, 10_000),
        }
    }
}

/// What is shown as stolen time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StealPolicy {
    /// Nothing: time for which a quota kept the container from running is idle time.
    #[default]
    None,
    /// The time for which a quota kept it from running.
    Throttled,
}

/// Whose numbers a process in a container's pid namespace is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ViewOf {
    /// Those of its container.
    #[default]
    Container,
    /// Those of its own cgroup in the container: a service with limits of its own sees them.
    Caller,
}

/// Which processors and memory nodes are shown as possible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PossibleCpus {
    /// Those of the machine. A thread can run on each processor of its cpuset, whatever the quota,
    /// and programs with a table entry for each possible processor would write beyond the end of a
    /// smaller table.
    #[default]
    Machine,
    /// Those that the container is shown as online.
    View,
}

/// Which limit is shown as the container's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryLimit {
    /// The limit at which the kernel kills: `memory.max`.
    #[default]
    Max,
    /// The limit at which the kernel throttles and reclaims, if it is lower: `memory.high` of
    /// cgroup v2. The soft limit of v1 is not enforced unless memory is short, so it does not
    /// count.
    High,
}

/// How much swap a container is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SwapPolicy {
    /// The container's limit of swap.
    #[default]
    Limit,
    /// All swap of the machine, less what the container uses.
    Host,
    /// No swap.
    None,
}

/// Which boot time a container without a time namespace is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BootTime {
    /// The machine's. Start times in `/proc/<pid>/stat` count from it, so this is what `ps`
    /// needs.
    #[default]
    Host,
    /// The start of its first process, so that boot time plus uptime is the current time. `ps` then
    /// shows start times in the future.
    Container,
}
