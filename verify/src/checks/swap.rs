//! How much swap there is, and how much of it is free.

use super::{Context, Source, as_first};
use crate::files::Unread;
use crate::limits::{Limit, Limits};
use crate::look::Look;
use crate::text::size;
use crate::verdict::{Mark, Rows};

const SIZE: &str = "swap size";
const FREE: &str = "swap free";

fn limits(limits: &Limits) -> Vec<Limit<u64>> {
    limits.swap.iter().cloned().collect()
}

pub(super) fn check(context: &Context<'_>, look: &Look, rows: &mut Rows) {
    // Where meminfo cannot be read, the rows of memory say so.
    let (Ok(before), Ok(after)) = (&look.before.meminfo, &look.after.meminfo) else { return };
    let get = |label: &str| Some((*before.get(label)?, *after.get(label)?));
    let (Some((total, _)), Some((one, other))) = (get("SwapTotal"), get("SwapFree")) else {
        return rows.unread(SIZE, "/proc/meminfo SwapTotal", &Unread::Garbled, false);
    };
    let verdict = if one > total {
        (Mark::Contradicts, format!("SwapFree is more, {}", size(one)))
    } else {
        context.judge(total, limits, size, &Source::file(context, "/proc/meminfo", 10))
    };
    let is_right = verdict.0 != Mark::Contradicts;
    rows.add(SIZE, "/proc/meminfo SwapTotal", size(total), Some(total as f64), verdict);
    let mut both = |name: &str, all: u64, free: u64, source: &Source<'_>| {
        let mut verdict = context.judge(all, limits, size, source);
        if verdict.0 != Mark::Contradicts && is_right && all.abs_diff(total) > 1023 {
            let (meminfo, why) = (size(total), &source.why);
            verdict = (Mark::Contradicts, format!("/proc/meminfo shows {meminfo}: {why}"));
        }
        if is_right {
            verdict = as_first(verdict, "SwapTotal");
        }
        rows.add(SIZE, name, size(all), Some(all as f64), verdict);
        let between = (one.min(other) as f64 - 1024.0, one.max(other) as f64 + 1024.0);
        let print = |bytes: f64| size(bytes as u64);
        let other = ("as SwapFree", "/proc/meminfo SwapFree");
        rows.add_between(FREE, name, free as f64, between, print, other);
    };
    if let Some(calls) = &look.calls {
        let source = Source::call(context, "sysinfo(2)", 10);
        both("sysinfo(2)", calls.sysinfo.swap_total, calls.sysinfo.swap_free, &source);
    }
    match look.swaps.as_ref().map(|text| areas(text)) {
        Ok(Some((all, used))) => {
            let source = Source::file(context, "/proc/swaps", 10);
            both("/proc/swaps", all, all.saturating_sub(used), &source);
        }
        Ok(None) => rows.unread(SIZE, "/proc/swaps", &Unread::Garbled, true),
        Err(why) => rows.unread(SIZE, "/proc/swaps", why, true),
    }
}

/// Size and used bytes of all areas.
fn areas(text: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines();
    lines.next().filter(|line| line.starts_with("Filename"))?;
    lines.try_fold((0u64, 0u64), |(all, used), line| {
        // The name may have blanks, which are escaped, and a mark ` (deleted)`.
        let mut words = line.split_whitespace().rev().skip(1);
        let mut number = || words.next()?.parse::<u64>().ok()?.checked_mul(1024);
        let (more_used, more) = (number()?, number()?);
        Some((all.checked_add(more)?, used.checked_add(more_used)?))
    })
}
