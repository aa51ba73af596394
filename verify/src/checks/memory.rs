//! How much memory and swap there is, how much is free, and what it is used for.

use std::collections::BTreeSet;

use super::{Context, First, Source};
use crate::files::{Cover, Reading, Unread};
use crate::limits::{Limit, Limits};
use crate::look::{Look, Meminfo, NODE};
use crate::text::size;
use crate::verdict::{Mark, Rows};

const FILE: &str = "/proc/meminfo";
const SIZE: &str = "memory size";
const FREE: &str = "memory free";
const SWAP: &str = "swap size";
const PARTS: &str = "memory parts";

/// Sizes that do not fit where they belong: nothing of this is more than all memory.
const AT_MOST_ALL: [&str; 10] = [
    "MemFree",
    "MemAvailable",
    "Buffers",
    "Cached",
    "Active",
    "Inactive",
    "AnonPages",
    "Mapped",
    "Shmem",
    "Slab",
];

/// Keys of vmstat and the lines of meminfo that the kernel prints from the same counters.
const PAIRS: [(&str, &str); 5] = [
    ("nr_anon_pages", "AnonPages"),
    ("nr_mapped", "Mapped"),
    ("nr_shmem", "Shmem"),
    ("nr_slab_reclaimable", "SReclaimable"),
    ("nr_dirty", "Dirty"),
];

fn print(bytes: f64) -> String {
    size(bytes as u64)
}

pub(super) fn check(context: &Context<'_>, look: &Look, rows: &mut Rows) {
    let page = rustix::param::page_size() as u64;
    let (before, after) = match (&look.before.meminfo, &look.after.meminfo) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(why), _) | (_, Err(why)) => {
            rows.unread(SIZE, FILE, why, false);
            return calls_alone(context, look, rows);
        }
    };
    let total = before["MemTotal"];
    let verdict = context.judge(total, limits, size, &Source::file(context, FILE, 10));
    let first = First { value: total, name: "MemTotal", is_right: verdict.0 != Mark::Contradicts };
    rows.add(SIZE, "/proc/meminfo MemTotal", size(total), Some(total as f64), verdict);
    let judge = |value: u64, source: &Source<'_>, apart: u64| {
        let verdict = context.judge(value, limits, size, source);
        first.compare(verdict, value.abs_diff(total) > apart, |total| {
            format!("/proc/meminfo shows {}: {}", size(total), source.why)
        })
    };
    let edges = |reader: &str, label: &str| {
        let (one, other) = (*before.get(label)? as f64, *after.get(label)? as f64);
        // meminfo counts in KiB, others in pages.
        let slack = page as f64 + lag(context, look, reader);
        Some((one.min(other) - slack, one.max(other) + slack))
    };
    let mut between = |subject, reader: &str, value: u64, label: &str| {
        if let Some(edges) = edges(reader, label) {
            let other = (&*format!("as {label}"), &*format!("/proc/meminfo {label}"));
            rows.add_between(subject, reader, value as f64, edges, print, other);
        }
    };
    if let Some(calls) = &look.calls {
        let told = &calls.sysinfo;
        between(FREE, "sysinfo(2) freeram", told.free, "MemFree");
        between(FREE, "sysconf(_SC_AVPHYS_PAGES)", told.free / page * page, "MemFree");
        between(PARTS, "sysinfo(2) sharedram", told.shared, "Shmem");
        between(PARTS, "sysinfo(2) bufferram", told.buffers, "Buffers");
    }
    if let Ok(vmstat) = &look.vmstat {
        let pages = |key: &str| vmstat.get(key).map(|pages| pages.saturating_mul(page));
        if let Some(free) = pages("nr_free_pages") {
            between(FREE, "/proc/vmstat nr_free_pages", free, "MemFree");
        }
        for (key, label) in PAIRS {
            if let Some(bytes) = pages(key) {
                between(PARTS, &format!("/proc/vmstat {key}"), bytes, label);
            }
        }
    }
    if let Ok((_, free)) = look.zoneinfo {
        between(FREE, "/proc/zoneinfo free", free.saturating_mul(page), "MemFree");
    }
    let nodes = nodes(look);
    let apart = page * look.nodes.len() as u64;
    // Nodes that are left out have free memory too.
    if let Ok((sum, free)) = nodes
        && sum + apart >= total
    {
        between(FREE, "node*/meminfo MemFree", free, "MemFree");
    }
    if let Err(why) = &look.vmstat {
        rows.unread(FREE, "/proc/vmstat", why, true);
    }
    match &look.zoneinfo {
        Ok((managed, _)) => {
            let managed = managed.saturating_mul(page);
            let verdict = judge(managed, &Source::file(context, "/proc/zoneinfo", 12), page);
            rows.add(SIZE, "/proc/zoneinfo managed", size(managed), Some(managed as f64), verdict);
        }
        Err(why) => rows.unread(SIZE, "/proc/zoneinfo", why, true),
    }
    match nodes {
        Ok((sum, _)) => {
            let source = Source { name: "node*/meminfo", ..Source::file(context, NODE, 12) };
            let verdict = match judge(sum, &source, apart) {
                // A node without a processor of the container may be left out.
                (Mark::Contradicts, _) if sum < total => {
                    (Mark::Untold, "less than MemTotal: other nodes may have the rest".into())
                }
                verdict => verdict,
            };
            rows.add(SIZE, "node*/meminfo MemTotal", size(sum), Some(sum as f64), verdict);
        }
        Err(why) => rows.unread(SIZE, "node*/meminfo", &why, true),
    }
    if let Some(calls) = &look.calls {
        let value = calls.sysinfo.total;
        let verdict = judge(value, &Source::call(context, "sysinfo(2)", 10), 1023);
        rows.add(SIZE, "sysinfo(2) totalram", size(value), Some(value as f64), verdict.clone());
        // glibc from 2.35 on and musl divide what sysinfo(2) says.
        let value = value / page * page;
        rows.add(SIZE, "sysconf(_SC_PHYS_PAGES)", size(value), Some(value as f64), verdict);
    }
    rows.add(PARTS, FILE, "", None, parts(before));
    swap(context, look, before, after, rows);
    if let (Some(one), Some(other)) = (look.before.usage, look.after.usage)
        && let Some(free) = before.get("MemFree").zip(after.get("MemFree"))
        && let Some(file) = &context.bounds.container().usage
    {
        let most = total.saturating_sub(*free.0.min(free.1)) + page;
        let (used, most) = (one.min(other) as f64, most as f64);
        let other = ("fits beside MemFree", "MemTotal less MemFree of /proc/meminfo");
        let name = file.rsplit('/').next().unwrap_or(file);
        rows.add_between("memory used", name, used, (0.0, most), print, other);
    }
}

fn swap_limits(limits: &Limits) -> Vec<Limit<u64>> {
    limits.swap.iter().cloned().collect()
}

fn swap(context: &Context<'_>, look: &Look, before: &Meminfo, after: &Meminfo, rows: &mut Rows) {
    let get = |label: &str| Some((*before.get(label)?, *after.get(label)?));
    let (Some((total, _)), Some((one, other))) = (get("SwapTotal"), get("SwapFree")) else {
        return rows.unread(SWAP, "/proc/meminfo SwapTotal", &Unread::Garbled, false);
    };
    let verdict = if one > total {
        (Mark::Contradicts, format!("SwapFree is more, {}", size(one)))
    } else {
        context.judge(total, swap_limits, size, &Source::file(context, "/proc/meminfo", 10))
    };
    let first = First { value: total, name: "SwapTotal", is_right: verdict.0 != Mark::Contradicts };
    rows.add(SWAP, "/proc/meminfo SwapTotal", size(total), Some(total as f64), verdict);
    let mut both = |name: &str, all: u64, free: u64, source: &Source<'_>| {
        let verdict = context.judge(all, swap_limits, size, source);
        let verdict = first.compare(verdict, all.abs_diff(total) > 1023, |total| {
            format!("/proc/meminfo shows {}: {}", size(total), source.why)
        });
        rows.add(SWAP, name, size(all), Some(all as f64), verdict);
        let between = (one.min(other) as f64 - 1024.0, one.max(other) as f64 + 1024.0);
        let other = ("as SwapFree", "/proc/meminfo SwapFree");
        rows.add_between("swap free", name, free as f64, between, print, other);
    };
    if let Some(calls) = &look.calls {
        let source = Source::call(context, "sysinfo(2)", 10);
        both("sysinfo(2)", calls.sysinfo.swap_total, calls.sysinfo.swap_free, &source);
    }
    match &look.swaps {
        Ok((all, used)) => {
            let source = Source::file(context, "/proc/swaps", 10);
            both("/proc/swaps", *all, all.saturating_sub(*used), &source);
        }
        Err(why) => rows.unread(SWAP, "/proc/swaps", why, true),
    }
}

/// How far the kernel's own files may be apart: each processor keeps up to 125 pages of each zone
/// (`calculate_normal_threshold` in `mm/vmstat.c`) that the sums of the zones do not have yet.
fn lag(context: &Context<'_>, look: &Look, reader: &str) -> f64 {
    const PAGES: f64 = 125.0;
    const ZONES: f64 = 4.0;
    let file = reader.split(' ').next().unwrap_or(reader);
    let file = if file.starts_with("node") { NODE } else { file };
    let are_kernels = [FILE, file].iter().all(|file| context.cover(file) == Cover::Nothing);
    let cpus = look.cpu.possible.as_ref().map_or(1, BTreeSet::len) as f64;
    if are_kernels { PAGES * ZONES * cpus * rustix::param::page_size() as f64 } else { 0.0 }
}

/// The sizes that count: `memory.high` is shown as the size by some.
fn limits(limits: &Limits) -> Vec<Limit<u64>> {
    let high = limits
        .high
        .iter()
        .filter(|high| limits.memory.as_ref().is_some_and(|memory| high.value < memory.value));
    limits.memory.iter().chain(high).cloned().collect()
}

/// Without meminfo there are still the limits.
fn calls_alone(context: &Context<'_>, look: &Look, rows: &mut Rows) {
    if let Some(calls) = &look.calls {
        let value = calls.sysinfo.total;
        let source = Source::call(context, "sysinfo(2)", 10);
        let verdict = context.judge(value, limits, size, &source);
        rows.add(SIZE, "sysinfo(2) totalram", size(value), Some(value as f64), verdict);
    }
}

/// Lines of meminfo that cannot be.
fn parts(meminfo: &Meminfo) -> (Mark, String) {
    let total = meminfo["MemTotal"];
    let get = |label: &str| meminfo.get(label).copied().unwrap_or(0);
    let too_large = AT_MOST_ALL.into_iter().find(|label| get(label) > total);
    match too_large {
        _ if total == 0 => (Mark::Contradicts, "MemTotal is 0".into()),
        Some(label) => (
            Mark::Contradicts,
            format!("{label} {} is more than MemTotal {}", size(get(label)), size(total)),
        ),
        None => (Mark::Agrees, "no part is more than MemTotal".into()),
    }
}

/// Size and free bytes of all nodes.
fn nodes(look: &Look) -> Reading<(u64, u64)> {
    let sum = look.nodes.iter().try_fold((0u64, 0u64), |(total, free), node| {
        let meminfo = node.meminfo.as_ref().map_err(Clone::clone)?;
        let get = |label: &str| meminfo.get(label).copied().unwrap_or(0);
        Ok((total.saturating_add(get("MemTotal")), free.saturating_add(get("MemFree"))))
    });
    if look.nodes.is_empty() { Err(Unread::Missing) } else { sum }
}
