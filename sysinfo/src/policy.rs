//! Policies: choices of the administrator where more than one number is correct.
//!
//! A policy selects which numbers of the container are shown; it must never make numbers of another
//! container visible. `source` reads the files that a policy needs, `derive` and `container` apply
//! it.

use serde::{Deserialize, Serialize};

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
