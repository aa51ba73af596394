//! A busy loop under half a processor: what `top` and `vmstat` show inside is half a processor
//! of this container, and nothing of what else keeps the machine busy.

use std::process::Command;

use super::claims::{after, before};
use crate::harness::command::{quiet, runs, start};
use crate::harness::daemon::Daemon;
use crate::harness::{machine, sandbox, text};

/// Wide: right is 50, wrong is 100 (of the machine) or 0 or 25.
const HALF: std::ops::RangeInclusive<f64> = 35.0..=65.0;

const LOOK: &str = "(while :; do :; done) & busy=$!
    top -b -n 1 -d 1 >/dev/null; sleep 6
    echo @top; top -b -n 2 -d 4 -w 200 | tail -n +3 | grep -A 100 '^top'
    echo @vmstat; vmstat 4 2 | tail -n 1
    echo @stat; head -n 1 /proc/stat; sleep 4; head -n 1 /proc/stat
    echo @load; sleep 6; cat /proc/loadavg
    echo @end; kill $busy";

#[test]
fn a_busy_loop_under_half_a_processor_is_half_a_processor() {
    let daemon = Daemon::start();
    // The machine's other load: one more busy process, in no container.
    let _other = start(quiet("sh").args(["-c", "while :; do :; done"]));
    let output = sandbox::run(&daemon, &["--cpus", "0.5", "--memory", "256M"], LOOK).ok();
    let part = |name: &str| {
        let (_, part) = output.split_once(&format!("@{name}\n")).expect(&output);
        part.split("\n@").next().unwrap()
    };
    // Used and idle ticks of four seconds: the loop had half of them.
    let ticks: Vec<Vec<f64>> = part("stat")
        .lines()
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .collect();
    let gone = |column: usize| ticks[1][column] - ticks[0][column];
    let (used, idle) = (gone(0) + gone(1) + gone(2), gone(3));
    let percent = 100.0 * used / (used + idle);
    assert!(HALF.contains(&percent), "{used} ticks used, {idle} idle:\n{output}");
    // It rises towards 1 with the time constant of a minute: 0.2 after 15 s, and never above.
    let load = text::first_number(part("load"));
    assert!((0.08..=1.5).contains(&load), "{output}");

    if !runs(&mut Command::new("vmstat")) {
        return machine::not_on_this_kernel("top and vmstat of procps");
    }
    let top = part("top");
    let idle = before(top.split_once("%Cpu").expect(top).1, " id").expect(top);
    assert!(HALF.contains(&(100.0 - idle)), "{idle} % idle in top:\n{output}");
    assert_eq!(top.matches("%Cpu").count(), 1, "{top}");
    assert!(after(top, "load average:").is_some_and(|load| load <= 1.5), "{top}");
    let idle = part("vmstat").split_whitespace().nth(14).and_then(|word| word.parse::<f64>().ok());
    let idle = idle.unwrap_or_else(|| panic!("{output}"));
    assert!(HALF.contains(&(100.0 - idle)), "{idle} % idle in vmstat:\n{output}");
}
