//! Derives the numbers that are shown from a sample: the only place that applies limits, fallbacks
//! and invariants.
//!
//! Invariants of the result: free ≤ available ≤ total, free + used ≤ total, parts of memory ≤ used
//! memory, swap free ≤ total ≤ the machine's, no subtraction wraps.
//!
//! Total and usage are the container's own. Free and available memory are reduced by what siblings
//! use under a common limit, and by what the machine has left.

use crate::host::Host;
use crate::limit::Limit;
use crate::policy::SwapPolicy;
use crate::sample::{HugeSample, MemorySample, Sample};
use crate::view::{Memory, Swap};

/// Memory of a container.
pub fn memory(sample: &Sample, host: &Host) -> Memory {
    let huge = huge(sample, host);
    let machine = machine_memory(sample, host);
    let left_on_nodes = sample.nodes.as_ref().map_or(Limit::Unlimited, |nodes| nodes.left);
    let Some(sample) = &sample.memory else {
        let Memory { huge_total, huge_free, huge_reserved, huge_bytes, .. } = huge;
        let host = memory_of_host(host, machine);
        return Memory { huge_total, huge_free, huge_reserved, huge_bytes, ..host };
    };
    let total = total_memory(sample, machine);
    let used = sample.usage.min(total);
    let stat = &sample.stat;
    // Pools of huge pages are part of the machine's memory and of use for nothing else.
    let huge_only = total.saturating_sub(host.memory_total.saturating_sub(host.huge_bytes()));
    let unused = (total - huge_only).saturating_sub(used);
    // memory.stat lags behind the usage by the per-CPU charge batch, so a row can exceed it.
    // Programs subtract these numbers from each other: no part may exceed its whole.
    let cached = stat.file.min(used);
    let shmem = stat.shmem.min(cached);
    let slab_reclaimable = stat.slab_reclaimable.min(used - cached);
    let available = unused.saturating_add(stat.reclaimable(used));
    let left = sample.left.min(left_by_host(host, "MemAvailable")).min(left_on_nodes);
    let available = left.capped_at(available);
    let part = |bytes: u64| bytes.min(used);
    Memory {
        total,
        // Total less own usage, or what ancestors and the machine leave, if that is less.
        free: unused.min(available),
        available,
        used,
        huge_only,
        cached,
        active_anon: part(stat.active_anon),
        inactive_anon: part(stat.inactive_anon),
        active_file: part(stat.active_file),
        inactive_file: part(stat.inactive_file),
        unevictable: part(stat.unevictable),
        anon: part(stat.anon),
        mapped: part(stat.file_mapped),
        shmem,
        dirty: part(stat.file_dirty),
        writeback: part(stat.file_writeback),
        slab_reclaimable,
        slab_unreclaimable: stat.slab_unreclaimable.min(used - cached - slab_reclaimable),
        kernel_reclaimable: slab_reclaimable,
        kernel_stack: part(stat.kernel_stack),
        page_tables: part(stat.pagetables),
        secondary_page_tables: part(stat.sec_pagetables),
        percpu: part(stat.percpu),
        anon_huge: part(stat.anon_thp),
        shmem_huge: part(stat.shmem_thp),
        shmem_pmd_mapped: 0,
        file_huge: part(stat.file_thp),
        file_pmd_mapped: 0,
        ..huge
    }
}

/// Derives the huge pages of a container: the machine's pools up to the limit, less the container's
/// usage. None without a hugetlb controller.
fn huge(sample: &Sample, host: &Host) -> Memory {
    let mut memory = Memory::default();
    for HugeSample { size, usage, promised, limit } in &sample.huge {
        let Some(pool) = host.huge_pools.iter().find(|pool| pool.size == *size && *size > 0) else {
            continue;
        };
        let total = limit.capped_at(pool.size.saturating_mul(pool.pages)) / size;
        let free = total.saturating_sub(usage / size);
        memory.huge_bytes = memory.huge_bytes.saturating_add(total.saturating_mul(*size));
        if pool.is_default {
            memory.huge_total = total;
            memory.huge_free = free;
            memory.huge_reserved = (promised.unwrap_or(0).saturating_sub(*usage) / size).min(free);
        }
    }
    memory
}

/// Swap of a container.
pub fn swap(sample: &Sample, host: &Host, policy: SwapPolicy) -> Swap {
    if policy == SwapPolicy::None {
        return Swap::default();
    }
    let Some(memory) = &sample.memory else {
        let (total, free) = (host.swap_total, host.meminfo_bytes("SwapFree").unwrap_or(0));
        let free = free.min(total);
        return Swap { total, free, used: total - free, ..Swap::default() };
    };
    let (total, used) = match (policy, &memory.swap) {
        (SwapPolicy::Host, swap) => (host.swap_total, swap.map_or(0, |swap| swap.usage)),
        (_, Some(swap)) => (swap.limit.capped_at(host.swap_total), swap.usage),
        (_, None) => return Swap::default(),
    };
    // The limit can be set below the usage. Programs subtract cached from used swap, so it may not
    // be larger.
    let used = used.min(total);
    let left = memory.swap.map_or(Limit::Unlimited, |swap| swap.left);
    Swap {
        total,
        // Total less own usage, or what ancestors and the machine leave, if that is less.
        free: left.min(left_by_host(host, "SwapFree")).capped_at(total - used),
        used,
        cached: memory.stat.swapcached.min(memory.usage).min(used),
        // zswap is charged as memory; its pages keep their swap slots.
        zswap: memory
            .stat
            .zswap
            .min(memory.usage)
            .min(total_memory(memory, machine_memory(sample, host))),
        zswapped: memory.stat.zswapped.min(used),
    }
}

/// Memory of a container without a limit, in bytes: that of the machine, or of the nodes of its
/// cpuset.
fn machine_memory(sample: &Sample, host: &Host) -> u64 {
    let Some(nodes) = &sample.nodes else { return host.memory_total };
    let allowed = host.topology.nodes.iter().filter(|node| nodes.allowed.contains(node.number));
    let kib: u64 = allowed.map(|node| node.memory).fold(0, u64::saturating_add);
    kib.saturating_mul(1024).min(host.memory_total)
}

/// The memory a container is shown to have, in bytes.
fn total_memory(memory: &MemorySample, machine: u64) -> u64 {
    match memory.limit.capped_at(machine) {
        // A limit of 0 admits no process: the container is still being set up.
        0 => machine,
        total => total,
    }
}

/// The machine's own numbers, for a container that no memory controller accounts for.
fn memory_of_host(host: &Host, total: u64) -> Memory {
    let bytes = |label| host.meminfo_bytes(label).unwrap_or(0);
    let free = bytes("MemFree").min(total);
    Memory {
        total,
        free,
        available: bytes("MemAvailable").clamp(free, total),
        used: total - free,
        huge_only: host.huge_bytes().min(total - free),
        cached: bytes("Cached").min(total - free),
        active_anon: bytes("Active(anon)"),
        inactive_anon: bytes("Inactive(anon)"),
        active_file: bytes("Active(file)"),
        inactive_file: bytes("Inactive(file)"),
        unevictable: bytes("Unevictable"),
        anon: bytes("AnonPages"),
        mapped: bytes("Mapped"),
        shmem: bytes("Shmem"),
        dirty: bytes("Dirty"),
        writeback: bytes("Writeback"),
        slab_reclaimable: bytes("SReclaimable"),
        slab_unreclaimable: bytes("SUnreclaim"),
        kernel_reclaimable: bytes("KReclaimable"),
        kernel_stack: bytes("KernelStack"),
        page_tables: bytes("PageTables"),
        secondary_page_tables: bytes("SecPageTables"),
        percpu: bytes("Percpu"),
        anon_huge: bytes("AnonHugePages"),
        shmem_huge: bytes("ShmemHugePages"),
        shmem_pmd_mapped: bytes("ShmemPmdMapped"),
        file_huge: bytes("FileHugePages"),
        file_pmd_mapped: bytes("FilePmdMapped"),
        ..Memory::default()
    }
}

/// Free memory or swap of the machine; unlimited if the kernel has no such line.
fn left_by_host(host: &Host, label: &str) -> Limit {
    host.meminfo_bytes(label).map_or(Limit::Unlimited, Limit::At)
}

#[cfg(test)]
mod tests;
