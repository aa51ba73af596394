//! A busy loop under half a processor: what `top` and `vmstat` show inside is half a processor
//! of this container, and nothing of what else keeps the machine busy.

use std::process::Command;

use super::claims::{after, before};
use crate::harness::command::{quiet, runs, start};
use crate::harness::daemon::Daemon;
use crate::harness::table::row;
use crate::harness::{machine, sandbox};

/// How far, in percent of a processor, what is shown may be from what the kernel says of the
/// loop itself: wide, since right is 50 and wrong is 0, 25 (of two processors) or 100.
const APART: f64 = 15.0;

/// Each look is taken between two notes: the time of day, the loop's own processor time, the load
/// average.
const LOOK: &str = "(while :; do :; done) & busy=$!
    note() {
        read -r load rest </proc/loadavg
        echo \"note $(date +%s.%N) $(cut -d' ' -f14,15 /proc/$busy/stat) $load\"
    }
    echo @begin; note; sleep 5
    echo @top; note; top -b -n 2 -d 4 -w 200; note
    echo @vmstat; note; vmstat 4 2; note
    echo @stat; note; head -n 1 /proc/stat; sleep 4; head -n 1 /proc/stat; note
    echo @load; sleep 6; note
    echo @end; kill $busy";

/// What a note says.
#[derive(Debug, Clone, Copy)]
struct Note {
    /// Seconds.
    time: f64,
    /// Ticks of the loop.
    ticks: f64,
    load: f64,
}

fn notes(text: &str) -> Vec<Note> {
    let note = |line: &str| {
        let mut words = line.strip_prefix("note ")?.split(' ').map(str::parse::<f64>);
        let mut next = || words.next()?.ok();
        Some(Note { time: next()?, ticks: next()? + next()?, load: next()? })
    };
    text.lines().filter_map(note).collect()
}

/// A part of the output, and its two notes.
fn part<'a>(output: &'a str, name: &str) -> (&'a str, [Note; 2]) {
    let (_, part) = output.split_once(&format!("@{name}\n")).expect(output);
    let part = part.split("\n@").next().unwrap();
    let [first, last] = notes(part)[..] else { panic!("{output}") };
    (part, [first, last])
}

/// How busy the loop was between two notes, in percent of a processor.
fn busy([first, last]: [Note; 2]) -> f64 {
    (last.ticks - first.ticks) / (last.time - first.time)
}

/// One thread that always wants to run is a load of one, reached with the time constant of a
/// minute. It is taken every five seconds, so it is that much late; now and then one of the
/// programs that look wants to run as well in that moment.
#[track_caller]
fn rises_towards_one(notes: &[Note]) {
    let begin = notes[0].time;
    for (at, note) in notes.iter().enumerate() {
        let seconds = note.time - begin;
        let after = |seconds: f64| 1.0 - (-seconds.max(0.0) / 60.0).exp();
        let (least, most) = (0.8 * after(seconds - 7.0), 1.5 * after(seconds + 5.0) + 0.01);
        eprintln!("load {:.2} after {seconds:.0} s, within {least:.2}..{most:.2}", note.load);
        assert!((least..=most).contains(&note.load), "{notes:?}");
        let earlier = notes[..at].iter().filter(|earlier| note.time - earlier.time > 8.0);
        assert!(earlier.into_iter().all(|earlier| earlier.load < note.load), "{notes:?}");
    }
    assert!(notes.last().is_some_and(|last| last.load > 0.2), "{notes:?}");
}

#[test]
fn a_busy_loop_under_half_a_processor_is_half_a_processor() {
    let daemon = Daemon::start();
    // The machine's other load: one more busy process, in no container.
    let _other = start(quiet("sh").args(["-c", "while :; do :; done"]));
    let output = sandbox::run(&daemon, &["--cpus", "0.5", "--memory", "256M"], LOOK).ok();
    let shows = |what: &str, percent: f64, really: f64| {
        assert!(really <= 60.0, "the kernel gave it {really} %");
        row(&format!("{what}, % busy"), "a loop under half a processor")
            .because("ticks of 4 s, what looks")
            .numbers(percent, really, APART);
    };
    // Used and idle ticks of four seconds.
    let (stat, around) = part(&output, "stat");
    let lines = stat.lines().filter(|line| line.starts_with("cpu"));
    let ticks: Vec<Vec<f64>> = lines
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .collect();
    let gone = |column: usize| ticks[1][column] - ticks[0][column];
    let (used, idle) = (gone(0) + gone(1) + gone(2), gone(3));
    shows("/proc/stat", 100.0 * used / (used + idle), busy(around));
    rises_towards_one(&notes(&output));

    if !runs(&mut Command::new("vmstat")) {
        return machine::not_on_this_kernel("top and vmstat of procps");
    }
    let (top, around) = part(&output, "top");
    let second = &top[top.rfind("\ntop - ").expect(top)..];
    let idle = before(second.split_once("%Cpu").expect(top).1, " id").expect(top);
    shows("top", 100.0 - idle, busy(around));
    assert_eq!(second.matches("%Cpu").count(), 1, "{top}");
    let load = after(second, "load average:").expect(top);
    assert!((around[0].load..=around[1].load).contains(&load), "{load}:\n{top}");
    let (vmstat, around) = part(&output, "vmstat");
    let mut rows = vmstat.lines().filter(|line| !line.starts_with("note "));
    let idle = rows.nth(3).and_then(|line| line.split_whitespace().nth(14)?.parse().ok());
    let idle: f64 = idle.unwrap_or_else(|| panic!("{output}"));
    shows("vmstat", 100.0 - idle, busy(around));
}
