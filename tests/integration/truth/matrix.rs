//! The truth matrix: readers × limits, and no contradiction.
//!
//! Around each program the container's own memory usage, load and the time of day are noted, so
//! that what may have changed while it ran is known. What is right is computed from the limits,
//! from the control group's own usage, and from the clock outside.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::claims::{Claim, MIB, Quantity, after, leading};
use super::columns::{Above, COLUMNS, Column};
use super::readers::{Needs, READERS, Reader};
use crate::harness::command::{self, runs};
use crate::harness::daemon::Daemon;
use crate::harness::{machine, sandbox};

/// Notes made without starting a program: time of day; bytes used; bytes swapped; load; available
/// memory.
const NOTES: &str = r#"
echo "@born $EPOCHREALTIME"
for f in /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory/memory.usage_in_bytes; do
    [ ! -e $f ] || usage=$f; done
swap=/sys/fs/cgroup/memory.swap.current both=/sys/fs/cgroup/memory/memory.memsw.usage_in_bytes
export LC_ALL=C TZ=UTC
note() {
    read -r used <$usage; swapped=0
    if [ -e $swap ]; then read -r swapped <$swap
    elif [ -e $both ]; then read -r swapped <$both; swapped=$((swapped > used ? swapped - used : 0)); fi
    read -r load rest </proc/loadavg; mapfile -t lines </proc/meminfo
    echo "@note $EPOCHREALTIME $used $swapped $load ${lines[2]}"
}
"#;

/// Leaves 40 MiB that no process touches, and has the kernel swap them out (21 is `MADV_PAGEOUT`).
/// v1 counts them as memory until their pages are needed, so others are wanted and given back.
const SWAPPED_OUT: &str = "/usr/bin/python3 -c '
import mmap, time
kept = mmap.mmap(-1, 40 << 20, mmap.MAP_PRIVATE)
kept.write(b\"x\" * len(kept))
kept.madvise(21)
mmap.mmap(-1, 500 << 20, mmap.MAP_PRIVATE | mmap.MAP_POPULATE).close()
print(\"done\", flush=True)
time.sleep(100000)' >/tmp/swapped & until [ -s /tmp/swapped ] || ! kill -0 $!; do sleep 0.1; done
";
/// Of them, so many must have been.
const SWAPPED: f64 = 16.0 * MIB;

fn script(column: &Column, readers: &[&Reader]) -> String {
    let mut script = NOTES.to_owned();
    if column.swaps() {
        script += SWAPPED_OUT;
    }
    for (number, Reader { command, .. }) in readers.iter().enumerate() {
        // What the program before gave back shows after 20 ms, the age a view may have.
        let _ = writeln!(
            script,
            "sleep 0.03; echo @@ {number}; note; {{ {command}\n}} 2>&1; echo; note"
        );
    }
    script + "echo @@ end\n"
}

/// What was so when a program began or ended.
#[derive(Debug, Clone, Copy)]
struct Note {
    time: f64,
    used: f64,
    swapped: f64,
    load: f64,
    available: f64,
}

impl Note {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("@note ")?.split(' ');
        let mut next = || leading(words.next()?);
        let (time, used, swapped, load) = (next()?, next()?, next()?, next()?);
        let available = after(line, "MemAvailable:")? * 1024.0;
        Some(Self { time, used, swapped, load, available })
    }
}

/// What one program answered.
struct Answer<'a> {
    reader: &'a Reader,
    begin: Note,
    end: Note,
    text: String,
}

/// All answers under one kind of limit.
struct Survey<'a> {
    column: &'a Column,
    /// Just before the sandbox was asked for, and when its first command ran.
    born: (f64, f64),
    /// What the machine's zones and nodes lacked of its memory before.
    missing: f64,
    answers: Vec<Answer<'a>>,
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

impl<'a> Survey<'a> {
    fn run(daemon: &Daemon, column: &'a Column, readers: &[&'a Reader]) -> Self {
        /// One begins after the other; that sandboxes can start together is no matter of this test.
        static STARTING: Mutex<()> = Mutex::new(());
        // Not as an argument: lists of processes print those.
        let run = "exec bash -c 'eval \"$READERS\"'";
        let mut command = sandbox::command(daemon, column.args, run);
        command.env("READERS", script(column, readers));
        let above = column.nested.then(Above::make);
        if let Some(above) = &above {
            command = above.around(&command);
        }
        let turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let launched = now();
        let missing = machine::missing_kb() as f64 * 1024.0;
        let patience = machine::patience(60);
        let mut running = command::start(&mut command);
        running.wait_for("@@ 0", patience);
        drop(turn);
        let text = running.finish(patience).ok();
        assert!(text.contains("@@ end"), "the survey was cut short:\n{text}");
        let answers: Vec<_> = text
            .split("@@ ")
            .filter_map(|part| {
                let (number, text) = part.split_once('\n')?;
                let reader: &Reader = readers[number.parse::<usize>().ok()?];
                let notes: Vec<_> = text.lines().filter_map(Note::parse).collect();
                let text = text.lines().filter(|line| !line.starts_with("@note"));
                let text = text.map(|line| format!("{line}\n")).collect();
                let [begin, end] = notes[..] else { panic!("{}: {text}", reader.name) };
                Some(Answer { reader, begin, end, text })
            })
            .collect();
        assert_eq!(answers.len(), readers.len());
        if column.swaps() {
            let out = answers.iter().map(|answer| answer.begin.swapped).fold(f64::MAX, f64::min);
            assert!(out >= SWAPPED, "{}: only {out} bytes were swapped out", column.name);
        }
        let first = after(&text, "@born ").expect(&text);
        Self { column, born: (launched, first), missing, answers }
    }

    /// What is wrong with a claim.
    fn contradiction(&self, answer: &Answer<'_>, claim: Claim) -> Option<String> {
        let Claim { quantity, value, unit } = claim;
        let Answer { begin, end, .. } = answer;
        let slack = answer.reader.activity * MIB + (end.used - begin.used).abs();
        // What others on the machine use comes and goes, and bounds what a large container has.
        let machine = (machine::memory_kb() * 1024) as f64;
        let memory = self.column.memory() as f64;
        // Nodes that are not covered show less.
        let missing = if memory < machine { 0.0 } else { self.missing };
        let others = if memory > machine / 3.0 { machine / 4.0 } else { 0.0 };
        let [least_available, most_available] = {
            let (one, other) = (begin.available, end.available);
            [one.min(other) - others, one.max(other) + others]
        };
        let (least, most) = match quantity {
            Quantity::MemoryTotal => (memory - missing, memory),
            Quantity::MemoryFree => {
                // Never more than is available.
                let free = |used: f64| memory - used;
                let least = free(begin.used.max(end.used)).min(least_available);
                let most = free(begin.used.min(end.used)).min(most_available);
                (least - slack - missing, most + slack)
            }
            Quantity::MemoryAvailable => (least_available - slack, most_available + slack),
            Quantity::SwapTotal => same(self.column.swap() as f64),
            Quantity::SwapFree => {
                let free = |swapped: f64| self.column.swap() as f64 - swapped;
                let (one, other) = (free(begin.swapped), free(end.swapped));
                let slack = if self.column.swap() == 0 { 0.0 } else { slack };
                let most = (one.max(other) + slack).min(self.column.swap() as f64);
                // What others swap out on the machine is not free either.
                let alone = self.column.swap() < machine::swap_kb() * 1024;
                (if alone { one.min(other) - slack } else { 0.0 }, most)
            }
            Quantity::Online | Quantity::Allowed => same(self.column.processors() as f64),
            Quantity::Configured => same(machine::possible_processors() as f64),
            // Without time namespaces these stay the machine's.
            Quantity::Clock if !machine::has_time_namespaces() => (0.0, f64::MAX),
            Quantity::BootTime if !machine::has_time_namespaces() => {
                same(machine::boot_time() as f64)
            }
            // A time namespace begins with a whole second of the machine's.
            Quantity::Uptime | Quantity::Clock => {
                (begin.time - self.born.1 - 0.01, end.time - self.born.0 + 1.01)
            }
            Quantity::Load => {
                // It changes every five seconds, by no more than this.
                let twice = if end.time - begin.time < 4.0 { 0.0 } else { 1.0 };
                (begin.load.min(end.load) - twice, begin.load.max(end.load) + twice)
            }
            Quantity::BootTime => (self.born.0 - 2.0, self.born.1 + 1.0),
            Quantity::Started => (self.born.0 - 1.0, self.born.1 + 1.0),
        };
        let wrong = value < least - unit || value > most + unit;
        wrong.then(|| {
            let (name, limits) = (answer.reader.name, self.column.name);
            format!("{name}, {limits}: {quantity:?} {value} is not in {least}..{most} (±{unit})")
        })
    }
}

fn same(value: f64) -> (f64, f64) {
    (value, value)
}

/// The readers that work on this machine.
fn readers() -> Vec<&'static Reader> {
    let works = |needs| match needs {
        Needs::Nothing => true,
        Needs::Procps => runs(&mut Command::new("vmstat")),
        Needs::Bits32 => runs(&mut Command::new(machine::program("sysinfo-32"))),
        Needs::Nodes => std::path::Path::new("/sys/devices/system/node/online").exists(),
    };
    let (there, not) = READERS.iter().partition::<Vec<_>, _>(|reader| works(reader.needs));
    for reader in not {
        machine::not_on_this_kernel(reader.name);
    }
    there
}

#[test]
fn no_two_programs_contradict_each_other() {
    machine::needs(&["free", "busybox", "lscpu", "htop", "lstopo-no-graphics", "numactl"]);
    machine::needs(&["node", "java", "script", "bash"]);
    let daemon = Daemon::start();
    let readers = readers();
    if machine::swap_kb() == 0 {
        assert_eq!(machine::slowness(), 1, "a guest without swap, see tests/guest/init");
        machine::not_on_this_kernel("swap: limits of it are limits of nothing");
    }
    if !machine::has_time_namespaces() {
        machine::not_on_this_kernel("time namespaces: boot time stays the machine's");
    }
    let columns = COLUMNS.iter().filter(|column| match column.missing() {
        None => true,
        Some(what) => {
            machine::not_on_this_kernel(&format!("{} ({what})", column.name));
            false
        }
    });
    // All at once: what one does must not show in another. Only the group above one of them can
    // be above all, so that one comes last.
    let (nested, flat): (Vec<_>, Vec<_>) = columns.partition(|column| column.nested);
    let survey = |column| Survey::run(&daemon, column, &readers);
    let mut surveys = std::thread::scope(|scope| {
        let running: Vec<_> = flat.iter().map(|column| scope.spawn(|| survey(column))).collect();
        running.into_iter().map(|survey| survey.join().unwrap()).collect::<Vec<_>>()
    });
    surveys.extend(nested.into_iter().map(survey));
    let (table, contradictions) = table(&readers, &surveys);
    // Around the capture of output: the table is what this test is for.
    let _ = write!(std::io::stderr(), "{table}");
    assert!(contradictions.is_empty(), "{}", contradictions.join("\n"));
}

/// The table: in each cell how many numbers a program said, all true, or how many were not.
fn table(readers: &[&Reader], surveys: &[Survey<'_>]) -> (String, Vec<String>) {
    let mut table = format!("\n{:18}", "");
    for Survey { column, .. } in surveys {
        let _ = write!(table, "{:>13}", column.name);
    }
    let row = |table: &mut String, name: &str, cell: &dyn Fn(&Column) -> String| {
        let _ = write!(table, "\n{name:18}");
        for Survey { column, .. } in surveys {
            let _ = write!(table, "{:>13}", cell(column));
        }
    };
    row(&mut table, "expected: MiB", &|column| (column.memory() >> 20).to_string());
    row(&mut table, "  swap MiB", &|column| (column.swap() >> 20).to_string());
    row(&mut table, "  processors", &|column| column.processors().to_string());
    let _ = write!(table, "\n{:18}", "swapped out: MiB");
    for Survey { answers, .. } in surveys {
        let swapped = answers.iter().map(|answer| answer.begin.swapped).fold(f64::MAX, f64::min);
        let _ = write!(table, "{:>13.0}", swapped / MIB);
    }
    let (mut contradictions, mut said) = (Vec::new(), 0);
    for (number, reader) in readers.iter().enumerate() {
        let _ = write!(table, "\n{:18}", reader.name);
        for survey in surveys {
            let answer = &survey.answers[number];
            let Some(claims) = (reader.claims)(&answer.text) else {
                let _ = write!(table, "{:>13}", "?");
                let (name, text) = (reader.name, &answer.text);
                contradictions.push(format!("{name}, {}: says {text}", survey.column.name));
                continue;
            };
            said += claims.len();
            let wrong: Vec<_> =
                claims.iter().filter_map(|&claim| survey.contradiction(answer, claim)).collect();
            let cell = match wrong.len() {
                0 => format!("{} true", claims.len()),
                wrong => format!("{wrong} WRONG"),
            };
            let _ = write!(table, "{cell:>13}");
            contradictions.extend(wrong);
        }
    }
    let _ = writeln!(table, "\n{said} numbers, {} contradictions", contradictions.len());
    (table, contradictions)
}
