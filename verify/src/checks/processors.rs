//! Which processors there are, by every list of them, and which numbers a program can meet.

use super::{Context, First, Source};
use crate::files::{Reading, Unread};
use crate::limits::{Limit, Limits};
use crate::look::{CPU, Look, NODE};
use crate::text::{Cpus, print_list};
use crate::verdict::{Mark, Rows};

const SUBJECT: &str = "processors";
const NUMBERS: &str = "processor numbers";

fn limits(limits: &Limits) -> Vec<Limit<u64>> {
    limits.cpus().into_iter().collect()
}

fn print(count: u64) -> String {
    if count == 1 { "1 processor".into() } else { format!("{count} processors") }
}

/// The count, and the list where it is short.
fn shown(cpus: &Cpus) -> String {
    let list = print_list(cpus);
    if list.len() > 14 { cpus.len().to_string() } else { format!("{} ({list})", cpus.len()) }
}

type Reference<'a> = First<'a, &'a Cpus>;

pub(super) fn check(context: &Context<'_>, look: &Look, rows: &mut Rows) {
    let stat = look.stat.as_ref().map(|(cpus, _)| cpus.clone()).map_err(Clone::clone);
    let online = (format!("{CPU}/online"), &look.cpu.online);
    // Some kernels have no folder of processors; /proc/stat is everywhere.
    let (name, first) =
        if online.1.is_ok() { (&*online.0, online.1) } else { ("/proc/stat", &stat) };
    let Ok(first) = first else {
        rows.unread(SUBJECT, name, &first.clone().err().unwrap_or(Unread::Missing), false);
        return numbers(context, look, rows);
    };
    let verdict = limited(context, first, &Source::file(context, name, 0));
    let reference = First { value: first, name, is_right: verdict.0 != Mark::Contradicts };
    let add = |rows: &mut Rows, reader: &str, cpus: &Cpus, verdict| {
        rows.add(SUBJECT, reader, shown(cpus), Some(cpus.len() as f64), verdict);
    };
    add(rows, name, first, verdict.clone());
    let mut list = |reader: &str, cpus: &Reading<Cpus>, optional: bool| match cpus {
        Ok(cpus) => {
            let file = if reader.starts_with("node") { NODE } else { reader };
            let source = Source { name: reader, ..Source::file(context, file, 0) };
            add(rows, reader, cpus, same(context, cpus, reference, &source));
        }
        Err(why) => rows.unread(SUBJECT, reader, why, optional),
    };
    if name == "/proc/stat" {
        list(&online.0, online.1, true);
    } else {
        list("/proc/stat", &stat, false);
    }
    list("/proc/cpuinfo", &look.cpuinfo, false);
    list("/proc/interrupts", &look.interrupts, true);
    // What is present and off is no contradiction: its own file says so.
    let offline = &look.cpu.offline;
    let present = look.cpu.present.as_ref().map(|cpus| cpus - offline).map_err(Clone::clone);
    list(&format!("{CPU}/present"), &present, true);
    let folders = &look.cpu.folders - offline;
    let folders = if folders.is_empty() { Err(Unread::Missing) } else { Ok(folders) };
    list(&format!("{CPU}/cpuN"), &folders, true);
    let nodes = look.nodes.iter().try_fold(Cpus::new(), |all, node| match &node.cpus {
        Ok(cpus) => Ok(&all | cpus),
        Err(why) => Err(why.clone()),
    });
    let nodes = if look.nodes.is_empty() { Err(Unread::Missing) } else { nodes };
    list("node*/cpulist", &nodes, true);
    if let Some(calls) = &look.calls {
        let affinity = match &calls.affinity {
            Ok(cpus) => {
                let verdict = affinity(context, look, cpus, reference);
                add(rows, "sched_getaffinity(2)", cpus, verdict.clone());
                Some((cpus, verdict))
            }
            Err(why) => {
                let why = Unread::Failed(why.clone());
                rows.unread(SUBJECT, "sched_getaffinity(2)", &why, false);
                None
            }
        };
        if let Some((cpus, (mark, _))) = affinity {
            sysconf(look, rows, first, verdict.0, cpus, mark);
        }
    }
    numbers(context, look, rows);
}

/// Judges a list by the limits of number and place.
fn limited(context: &Context<'_>, cpus: &Cpus, source: &Source<'_>) -> (Mark, String) {
    let (mark, reason) = context.judge(cpus.len() as u64, limits, print, source);
    let sets = || context.bounds.limits.iter().map(|limits| limits.cpuset.as_ref());
    if mark != Mark::Contradicts && sets().all(|set| set.is_some()) {
        let allowed = sets().flatten().fold(Cpus::new(), |all, set| &all | &set.value);
        let outside = cpus - &allowed;
        if let (false, Some(set)) = (outside.is_empty(), sets().flatten().next_back()) {
            let (outside, allowed) = (print_list(&outside), print_list(&allowed));
            return (Mark::Contradicts, format!("{outside} is not in {allowed} ({})", set.file()));
        }
    }
    (mark, reason)
}

/// Judges a list by the limits and by the first list.
fn same(
    context: &Context<'_>,
    cpus: &Cpus,
    reference: Reference<'_>,
    source: &Source<'_>,
) -> (Mark, String) {
    let verdict = limited(context, cpus, source);
    reference.compare(verdict, cpus != reference.value, |first| {
        format!("{} lists {}: {}", reference.name, print_list(first), source.why)
    })
}

/// The affinity mask has as many processors as the lists, unless the thread was given fewer.
fn affinity(
    context: &Context<'_>,
    look: &Look,
    cpus: &Cpus,
    reference: Reference<'_>,
) -> (Mark, String) {
    let source = Source::call(context, "sched_getaffinity(2)", 0);
    let (mark, reason) = limited(context, cpus, &source);
    if mark == Mark::Contradicts {
        return (mark, reason);
    }
    if let Ok(mask) = &look.mask {
        let outside = cpus - mask;
        if !outside.is_empty() {
            let outside = print_list(&outside);
            return (Mark::Contradicts, format!("the kernel runs this thread never on {outside}"));
        }
        if !mask.is_superset(reference.value) {
            let mask = print_list(mask);
            return (Mark::Untold, format!("this thread may run on {mask} alone: it is pinned"));
        }
    }
    same(context, cpus, reference, &source)
}

/// What the C libraries make of it: glibc reads files, musl asks for the mask.
fn sysconf(look: &Look, rows: &mut Rows, online: &Cpus, lists: Mark, mask: &Cpus, calls: Mark) {
    let both = |glibc: usize, musl: usize| format!("glibc {glibc}, musl {musl}");
    let mark = lists.max(calls);
    let reason = if mark == Mark::Agrees {
        ""
    } else {
        "glibc reads cpu/online, musl asks sched_getaffinity(2): see their rows"
    };
    rows.add(
        SUBJECT,
        "sysconf(_SC_NPROCESSORS_ONLN)",
        both(online.len(), mask.len()),
        Some(online.len() as f64),
        (mark, reason.into()),
    );
    if let Ok(possible) = &look.cpu.possible {
        rows.add(
            NUMBERS,
            "sysconf(_SC_NPROCESSORS_CONF)",
            both(possible.len(), mask.len()),
            Some(possible.len() as f64),
            (Mark::Agrees, "glibc 2.36 and later count cpu/possible, musl the mask".into()),
        );
    }
}

/// Programs with a table of all possible processors index it by the number of the current one.
fn numbers(context: &Context<'_>, look: &Look, rows: &mut Rows) {
    let name = format!("{CPU}/possible");
    let possible = match &look.cpu.possible {
        Ok(possible) => possible,
        Err(why) => return rows.unread(NUMBERS, name, why, true),
    };
    let inside = |cpus: &Cpus| {
        let outside = cpus - possible;
        if outside.is_empty() {
            return (Mark::Agrees, "all of them are in cpu/possible".into());
        }
        let outside = print_list(&outside);
        let reason = format!("{outside} is not in cpu/possible: tables of that size are too short");
        (Mark::Contradicts, reason)
    };
    let lists = [&look.cpu.online, &look.cpu.present];
    let listed = lists.into_iter().flatten().fold(look.cpu.folders.clone(), |all, one| &all | one);
    rows.add(NUMBERS, name, shown(possible), Some(possible.len() as f64), inside(&listed));
    if let Ok(mask) = &look.mask {
        rows.add(NUMBERS, "Cpus_allowed_list", shown(mask), None, inside(mask));
    }
    if let Some(visited) = context.visited {
        let cpus = &visited.getcpu;
        rows.add(NUMBERS, "getcpu(2)", shown(cpus), None, inside(cpus));
        let cpus = &visited.rseq;
        let (shown, verdict) = if cpus.is_empty() {
            (String::new(), (Mark::Untold, "rseq(2) is not to be had here".into()))
        } else {
            (shown(cpus), inside(cpus))
        };
        rows.add(NUMBERS, "rseq(2) cpu_id", shown, None, verdict);
    }
}
