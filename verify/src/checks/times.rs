//! Uptime, boot time, load averages and the number of tasks.

use super::Context;
use crate::files::Cover;
use crate::look::Look;
use crate::verdict::{Mark, Rows};

const UPTIME: &str = "uptime";
const LOAD: &str = "load average";

/// A machine's first process starts within so many seconds of its boot.
const FIRST_SECONDS: f64 = 10.0;
/// Load averages are printed with two digits, rounded.
const LOAD_UNIT: f64 = 0.011;

const AS_UPTIME: (&str, &str) = ("as /proc/uptime", "/proc/uptime");
const AS_LOADAVG: (&str, &str) = ("as /proc/loadavg", "/proc/loadavg");

fn seconds(seconds: f64) -> String {
    format!("{seconds:.2} s")
}

pub(super) fn check(context: &Context<'_>, look: &Look, rows: &mut Rows) {
    match (&look.before.uptime, &look.after.uptime) {
        (Ok(before), Ok(after)) => {
            if let (Some(one), Some(other)) = (look.before.clocks, look.after.clocks) {
                uptime(context, rows, *before, *after, one.0);
                boot_time(look, rows, (one.1 - before, other.1 - after), one.1 - one.0);
            }
            if let Some(calls) = &look.calls {
                // The kernel rounds a started second up.
                let between = (before.floor(), after.floor() + 1.0);
                let value = calls.sysinfo.uptime as f64;
                rows.add_between(UPTIME, "sysinfo(2)", value, between, seconds, AS_UPTIME);
            }
        }
        (Err(why), _) | (_, Err(why)) => rows.unread(UPTIME, "/proc/uptime", why, false),
    }
    match (&look.before.loadavg, &look.after.loadavg) {
        (Ok(before), Ok(after)) => {
            let Some(calls) = &look.calls else { return };
            for (at, reader) in ["sysinfo(2) 1 min", "sysinfo(2) 5 min", "sysinfo(2) 15 min"]
                .into_iter()
                .enumerate()
            {
                let (one, other) = (before.loads[at], after.loads[at]);
                let between = (one.min(other) - LOAD_UNIT, one.max(other) + LOAD_UNIT);
                let print = |load: f64| format!("{:.2}", load.max(0.0));
                let value = calls.sysinfo.loads[at];
                rows.add_between(LOAD, reader, value, between, print, AS_LOADAVG);
            }
            let (one, other) = (before.tasks as f64, after.tasks as f64);
            // The kernel cuts it to 16 bits.
            if one.max(other) < f64::from(u16::MAX) {
                let value = calls.sysinfo.tasks as f64;
                let between = (one.min(other), one.max(other));
                let print = |tasks: f64| tasks.to_string();
                rows.add_between("tasks", "sysinfo(2)", value, between, print, AS_LOADAVG);
            }
        }
        (Err(why), _) | (_, Err(why)) => rows.unread(LOAD, "/proc/loadavg", why, false),
    }
}

/// CLOCK_BOOTTIME was read between the two.
fn uptime(context: &Context<'_>, rows: &mut Rows, before: f64, after: f64, clock: f64) {
    // The file is cut to hundredths.
    let same = (before..=after + 0.01).contains(&clock);
    let late = context.first_process.filter(|started| *started > FIRST_SECONDS);
    let verdict = match late {
        _ if !same && before > clock => {
            let clock = seconds(clock);
            (Mark::Contradicts, format!("more than CLOCK_BOOTTIME, {clock}"))
        }
        _ if !same => (Mark::Agrees, "since this container started".into()),
        Some(started) if context.clocks_of_machine && !context.bounds.is_machine => {
            let age = seconds(clock - started);
            let cover = context.cover("/proc/uptime");
            let whose = if cover == Cover::Nothing { "the machine's, " } else { "" };
            (Mark::Contradicts, format!("{whose}the first process here is {age} old: {cover}"))
        }
        _ => (Mark::Agrees, "as CLOCK_BOOTTIME".into()),
    };
    rows.add(UPTIME, "/proc/uptime", seconds(before), Some(before), verdict);
}

/// `started` is the time of day less the uptime, before and after; `machine` is it less
/// CLOCK_BOOTTIME.
fn boot_time(look: &Look, rows: &mut Rows, started: (f64, f64), machine: f64) {
    // Where /proc/stat cannot be read, the rows of processors say so.
    let Ok((_, value)) = look.stat else { return };
    let reader = "/proc/stat btime";
    // Whole seconds, in which the file and the clock may round differently.
    let between = (started.0.min(started.1) - 2.0, started.0.max(started.1) + 1.0);
    let print = |time: f64| format!("{time:.0}");
    if !(between.0..=between.1).contains(&value) && (value - machine).abs() <= 2.0 {
        let reason = "the machine's, from which start times in /proc/PID/stat count";
        return rows.add(
            "boot time",
            reader,
            print(value),
            Some(value),
            (Mark::Untold, reason.into()),
        );
    }
    rows.add_between(
        "boot time",
        reader,
        value,
        between,
        print,
        ("as the uptime", "the time of day less the uptime"),
    );
}
