//! A busy loop under half a processor: what `top` and `vmstat` show inside is half a processor
//! of this container, and nothing of what else keeps the machine busy.

use std::process::Command;

use super::claims::{after, before};
use crate::harness::command::{quiet, runs, start};
use crate::harness::daemon::Daemon;
use crate::harness::{machine, sandbox, text};

/// How far, in percent of a processor, what is shown may be from what the kernel says of the
/// loop itself: wide, since right is 50 and wrong is 0, 25 (of two processors) or 100.
const APART: f64 = 15.0;

/// Each look is taken between two notes of the loop's own processor time and of the time of day.
const LOOK: &str = "(while :; do :; done) & busy=$!
    note() { echo \"$(date +%s.%N) $(cut -d' ' -f14,15 /proc/$busy/stat)\"; }
    sleep 5
    echo @top; note; top -b -n 2 -d 4 -w 200; note
    echo @vmstat; note; vmstat 4 2; note
    echo @stat; note; head -n 1 /proc/stat; sleep 4; head -n 1 /proc/stat; note
    echo @load; sleep 6; cat /proc/loadavg
    echo @end; kill $busy";

/// A part of the output, and how busy the loop was meanwhile, in percent.
fn part<'a>(output: &'a str, name: &str) -> (&'a str, f64) {
    let (_, part) = output.split_once(&format!("@{name}\n")).expect(output);
    let part = part.split("\n@").next().unwrap();
    let note = |line: &str| -> Vec<f64> {
        line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    let (first, last) = (note(part.lines().next().unwrap()), note(part.lines().last().unwrap()));
    let ticks = |note: &[f64]| note.get(1).zip(note.get(2)).map_or(0.0, |(user, sys)| user + sys);
    (part, (ticks(&last) - ticks(&first)) / (last[0] - first[0]))
}

#[test]
fn a_busy_loop_under_half_a_processor_is_half_a_processor() {
    let daemon = Daemon::start();
    // The machine's other load: one more busy process, in no container.
    let _other = start(quiet("sh").args(["-c", "while :; do :; done"]));
    let output = sandbox::run(&daemon, &["--cpus", "0.5", "--memory", "256M"], LOOK).ok();
    let shows = |what: &str, percent: f64, really: f64| {
        eprintln!("{what}: {percent:.0} %, the loop itself had {really:.0} %");
        assert!(really <= 60.0, "the kernel gave it {really} %");
        assert!((percent - really).abs() <= APART, "{what} shows {percent} %:\n{output}");
    };
    // Used and idle ticks of four seconds.
    let (stat, really) = part(&output, "stat");
    let lines = stat.lines().filter(|line| line.starts_with("cpu"));
    let ticks: Vec<Vec<f64>> = lines
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .collect();
    let gone = |column: usize| ticks[1][column] - ticks[0][column];
    let (used, idle) = (gone(0) + gone(1) + gone(2), gone(3));
    shows("/proc/stat", 100.0 * used / (used + idle), really);
    // It rises towards 1 with the time constant of a minute: 0.3 after 20 s, and never above.
    let (_, load) = output.split_once("@load\n").expect(&output);
    let load = text::first_number(load);
    assert!((0.08..=1.5).contains(&load), "{output}");

    if !runs(&mut Command::new("vmstat")) {
        return machine::not_on_this_kernel("top and vmstat of procps");
    }
    let (top, really) = part(&output, "top");
    let second = &top[top.rfind("\ntop - ").expect(top)..];
    let idle = before(second.split_once("%Cpu").expect(top).1, " id").expect(top);
    shows("top", 100.0 - idle, really);
    assert_eq!(second.matches("%Cpu").count(), 1, "{top}");
    assert!(after(second, "load average:").is_some_and(|load| load <= 1.5), "{top}");
    let (vmstat, really) = part(&output, "vmstat");
    let idle = vmstat.lines().nth(4).and_then(|line| line.split_whitespace().nth(14)?.parse().ok());
    let idle: f64 = idle.unwrap_or_else(|| panic!("{output}"));
    shows("vmstat", 100.0 - idle, really);
}
