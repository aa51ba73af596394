//! What is checked: each reader against the limits, and against the others.

mod memory;
mod others;
mod processors;
mod times;

use crate::files::{Cover, Mount, Root};
use crate::kernel::Visited;
use crate::limits::{Bounds, Limit, Limits};
use crate::look::{Look, NODE};
use crate::verdict::{Mark, Rows};

/// What does not change between looks.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) mounts: &'a [Mount],
    pub(crate) bounds: &'a Bounds,
    /// Where this program ran; `None` for a root that is not this machine's.
    pub(crate) visited: Option<&'a Visited>,
    /// Whether a seccomp filter may answer system calls.
    pub(crate) filtered: bool,
    /// Whether clocks count from the machine's boot.
    pub(crate) clocks_of_machine: bool,
    /// When the first process started, in seconds of CLOCK_BOOTTIME.
    pub(crate) first_process: Option<f64>,
}

/// The first time namespace of a machine (`PROC_TIME_INIT_INO`).
const FIRST_TIME_NAMESPACE: &str = "time:[4026531834]";

impl<'a> Context<'a> {
    pub(crate) fn read(
        root: &Root,
        mounts: &'a [Mount],
        bounds: &'a Bounds,
        visited: Option<&'a Visited>,
    ) -> Self {
        let status = root.read("/proc/self/status").unwrap_or_default();
        let clocks = root.link("/proc/self/ns/time");
        // Behind the name, which may contain anything: the state, and 18 numbers to the start time.
        let first_process = root.parse("/proc/1/stat", |text| {
            text.rsplit_once(") ")?.1.split(' ').nth(19)?.parse::<f64>().ok()
        });
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Self {
            mounts,
            bounds,
            visited,
            filtered: status
                .lines()
                .any(|line| line.starts_with("Seccomp:") && line.ends_with('2')),
            clocks_of_machine: clocks.is_none_or(|clocks| clocks == FIRST_TIME_NAMESPACE),
            first_process: first_process.ok().map(|started| started / ticks),
        }
    }

    /// Why a file may show the machine's numbers.
    fn cover(&self, path: &str) -> Cover {
        Cover::of(path, self.mounts)
    }

    /// The same of a system call.
    fn filter(&self) -> &'static str {
        if self.filtered {
            "the seccomp filter does not answer the call"
        } else {
            "no seccomp filter answers the call"
        }
    }

    /// Why a reader may show something else than the others.
    fn why(&self, reader: &str) -> String {
        match reader.split(' ').next() {
            Some(file) if file.starts_with('/') => self.cover(file).to_string(),
            Some(file) if file.starts_with("node") => self.cover(NODE).to_string(),
            Some(file) if file.starts_with("memory.") => self.cover("/proc/meminfo").to_string(),
            _ => self.filter().into(),
        }
    }

    /// Judges a number by the limits.
    fn judge(
        &self,
        value: u64,
        limits: impl Fn(&Limits) -> Vec<Limit<u64>>,
        print: impl Fn(u64) -> String,
        source: &Source<'_>,
    ) -> (Mark, String) {
        let all: Vec<_> = self.bounds.limits.iter().map(limits).collect();
        let fits = |limit: &&Limit<u64>| limit.value >> source.shift == value >> source.shift;
        if let Some(limit) = all.iter().flatten().find(fits) {
            return (Mark::Agrees, limit_of(&limit.from));
        }
        if all.iter().any(Vec::is_empty) {
            return (Mark::Agrees, "no limit seen".into());
        }
        let Some(limit) = all.iter().flatten().max_by_key(|limit| limit.value) else {
            return (Mark::Agrees, String::new());
        };
        let (shown, most) = (print(value), print(limit.value));
        let from = limit.file();
        if value > limit.value {
            let whose = if source.is_kernels { "the machine's " } else { "" };
            let (name, why) = (source.name, &source.why);
            return (
                Mark::Contradicts,
                format!("{name} shows {whose}{shown}, the limit is {most} ({from}): {why}"),
            );
        }
        let reason = format!("less than {most} ({from})");
        if from.starts_with("--") {
            return (Mark::Contradicts, reason);
        }
        (Mark::Untold, format!("{reason}: the machine has no more, or a limit above is tighter"))
    }
}

/// What a subject's first reader shows, which the others are compared with.
#[derive(Clone, Copy)]
struct First<'a, T> {
    value: T,
    name: &'a str,
    is_right: bool,
}

impl<T> First<'_, T> {
    /// Adds the comparison to what the limits say: nothing is compared with what is wrong itself,
    /// and what agrees needs no reason of its own for what cannot be told.
    fn compare(
        self,
        (mark, reason): (Mark, String),
        differs: bool,
        why: impl FnOnce(T) -> String,
    ) -> (Mark, String) {
        match mark {
            Mark::Contradicts => (mark, reason),
            _ if self.is_right && differs => (Mark::Contradicts, why(self.value)),
            Mark::Untold if self.is_right => (Mark::Agrees, format!("as {}", self.name)),
            _ => (mark, reason),
        }
    }
}

/// The reason of agreement with a limit.
fn limit_of(from: &str) -> String {
    if from.starts_with("--") { format!("as {from}") } else { "the limit".into() }
}

/// Where a number comes from, for the reason of a contradiction.
struct Source<'a> {
    name: &'a str,
    /// Whether it is certainly the kernel's own answer.
    is_kernels: bool,
    /// What is or is not between the kernel and the reader.
    why: String,
    /// Low bits that the reader cannot show.
    shift: u32,
}

impl<'a> Source<'a> {
    fn file(context: &Context<'_>, name: &'a str, shift: u32) -> Self {
        let cover = context.cover(name);
        Self { name, is_kernels: cover == Cover::Nothing, why: cover.to_string(), shift }
    }

    fn call(context: &Context<'_>, name: &'a str, shift: u32) -> Self {
        Self { name, is_kernels: !context.filtered, why: context.filter().into(), shift }
    }
}

/// All checks of one look.
pub(crate) fn check(context: &Context<'_>, look: &Look) -> Rows {
    let mut rows = Rows::default();
    memory::check(context, look, &mut rows);
    processors::check(context, look, &mut rows);
    times::check(context, look, &mut rows);
    others::check(context, look, &mut rows);
    for row in &mut rows.0 {
        // What moves is compared with another reader; a limit's reason has this already.
        if row.mark == Mark::Contradicts && row.between.is_some() {
            row.reason = format!("{}: {}", row.reason, context.why(&row.reader));
        }
    }
    rows
}
