//! Pressure, and the lists of disks.

use super::Context;
use crate::look::{Look, PRESSURE};
use crate::verdict::{Mark, Rows};

pub(super) fn check(context: &Context<'_>, look: &Look, rows: &mut Rows) {
    for (at, what) in PRESSURE.into_iter().enumerate() {
        let reader = format!("/proc/pressure/{what}");
        let shown = match &look.pressure[at] {
            Ok(shown) => shown,
            Err(why) => {
                rows.unread("pressure", reader, why, true);
                continue;
            }
        };
        let (Some(before), Some(after)) = (look.before.pressure[at], look.after.pressure[at])
        else {
            let reason = "the control group's own file is not to be seen here".into();
            let seconds = print(shown.0 as f64);
            rows.add("pressure", reader, seconds, None, (Mark::Untold, reason));
            continue;
        };
        // `some` is shown, or `full` where that one does not fit.
        let some = (shown.0 as f64, (before.0 as f64, after.0 as f64));
        let full = (shown.1 as f64, (before.1 as f64, after.1 as f64));
        let fits = |(value, (least, most)): (f64, (f64, f64))| (least..=most).contains(&value);
        let (value, between) = if fits(some) && !fits(full) { full } else { some };
        let folder = context.bounds.pressure.as_deref().unwrap_or_default();
        let other = ("the control group's", &*format!("{folder}/{what}.pressure"));
        rows.add_between("pressure", reader, value, between, print, other);
    }
    disks(context, look, rows);
}

fn print(microseconds: f64) -> String {
    format!("{:.6} s", microseconds / 1e6)
}

/// Each device of partitions has a line in diskstats.
fn disks(context: &Context<'_>, look: &Look, rows: &mut Rows) {
    let reader = "/proc/partitions";
    match (&look.partitions, &look.diskstats) {
        (Ok(disks), Ok(known)) => {
            let verdict = match disks.difference(known).next() {
                Some(disk) => {
                    let cover = context.cover(reader);
                    let reason = format!("/proc/diskstats does not have {disk}: {cover}");
                    (Mark::Contradicts, reason)
                }
                None => (Mark::Agrees, "all of them are in /proc/diskstats".into()),
            };
            rows.add("disks", reader, disks.len().to_string(), Some(disks.len() as f64), verdict);
        }
        (Err(why), _) => rows.unread("disks", reader, why, true),
        (_, Err(why)) => rows.unread("disks", "/proc/diskstats", why, true),
    }
}
