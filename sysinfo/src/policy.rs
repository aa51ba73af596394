//! Where there is more than one honest answer, the administrator chooses one here.
//!
//! A policy says which numbers are shown, never whose. `source` reads what a policy needs,
//! `derive` and `container` apply it; nothing else asks.

use serde::{Deserialize, Serialize};

/// Which processors and memory nodes a container is told that there could be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Possible {
    /// The machine's. A thread can run on every one that its cpuset has, whatever the quota, and
    /// programs with an entry for each processor write behind a table that is smaller.
    #[default]
    Machine,
    /// Those it is shown.
    View,
}

/// Which limit is the container's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryLimit {
    /// The one at which the kernel kills: `memory.max`.
    #[default]
    Max,
    /// The one at which the kernel throttles and reclaims, when it is the tighter one:
    /// `memory.high` of cgroup v2. The soft limit of v1 is a wish for times of need, no limit.
    High,
}

/// How much swap a container is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SwapPolicy {
    /// What it may use.
    #[default]
    Limit,
    /// What the machine has, less what the container uses.
    Host,
    /// None.
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
    /// The start of its first process, so that boot time and uptime make the current time. `ps`
    /// then shows start times that lie in the future.
    Container,
}
