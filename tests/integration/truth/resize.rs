//! Limits that change while programs read: each text is whole, and shows limits that were set.

use std::time::{Duration, Instant};

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::start;
use crate::harness::daemon::Daemon;
use crate::harness::machine;

const MIB: u64 = 1 << 20;
/// Limits in MiB, each for a number of processors.
const SIZES: [u64; 4] = [64, 96, 128, 200];
const CHANGES: usize = 1000;

/// Reads in pieces that end anywhere until the folder is there, and prints what is malformed, and
/// the sizes that were shown: the first, all, the last.
const READER: &str = r"
import os, re, sys
path, stop = sys.argv[1:]
line = re.compile(rb'[A-Za-z_()0-9]+: +[0-9]+( kB)?')
seen, step = [], 0
while True:
    last = os.path.exists(stop)
    fd, text, step = os.open(path, os.O_RDONLY), b'', step % 97 + 1
    while piece := os.read(fd, step * 50):
        text += piece
    os.close(fd)
    lines = text.split(b'\n')
    bad = [one for one in lines[:-1] if not line.fullmatch(one)]
    if bad or lines[-1] or not lines[0].startswith(b'MemTotal:'):
        print('malformed', text)
    sizes = dict(one.split(b':') for one in lines[:-1])
    number = lambda key: int(sizes[key].split()[0])
    if not number(b'MemFree') <= number(b'MemAvailable') <= number(b'MemTotal'):
        print('torn', text)
    if seen[-1:] != [number(b'MemTotal')]:
        if not seen:
            os.write(1, b'ready\n')
        seen.append(number(b'MemTotal'))
    if last:
        break
# In one write(2), which the other reader does not interrupt.
shown = ['seen', seen[0], *sorted(set(seen)), seen[-1], '\n']
os.write(1, ' '.join(map(str, shown)).encode())
";

#[test]
fn a_thousand_changes_under_readers_show_only_limits_that_were_set() {
    machine::needs(&["python3"]);
    let daemon = Daemon::start();
    let limits = |mib| Limits { memory: Some(mib * MIB), ..Limits::default() };
    let cgroup = Cgroup::new("resized", limits(SIZES[0]));
    let folder = tempfile::tempdir().expect("a folder");
    let stop = folder.path().join("stop");
    let program = folder.path().join("reader.py");
    std::fs::write(&program, READER).expect("write");
    let file = daemon.file("proc/meminfo");
    let reader = format!("python3 {} {} {}", program.display(), file.display(), stop.display());
    let mut readers = start(&mut cgroup.script(&format!("{reader} & {reader} & wait")));
    readers.wait_for("ready\nready", machine::patience(20));
    for change in 0..CHANGES {
        cgroup.set(limits(SIZES[change % SIZES.len()]));
        std::thread::sleep(Duration::from_millis(1));
    }
    let last = SIZES[(CHANGES - 1) % SIZES.len()] * 1024;
    // A text may be a second old while another thread takes a sample.
    std::thread::sleep(Duration::from_secs(1));
    std::fs::create_dir(&stop).expect("mkdir");
    let until = Instant::now() + machine::patience(20);
    while !readers.ended() {
        assert!(Instant::now() < until, "readers do not end: {:?}", readers.printed());
        std::thread::sleep(Duration::from_millis(20));
    }
    let (text, _) = readers.printed();
    let seen: Vec<&str> = text.lines().filter(|line| line.starts_with("seen")).collect();
    assert_eq!(seen.len(), 2, "{text}");
    assert!(!text.contains("malformed") && !text.contains("torn"), "{text}");
    for line in seen {
        let sizes = line.split_whitespace().skip(1).map(|word| word.parse::<u64>().expect(line));
        let sizes: Vec<u64> = sizes.collect();
        assert!(sizes.iter().all(|size| SIZES.contains(&(size / 1024))), "{line}");
        assert_eq!(sizes.first(), Some(&(SIZES[0] * 1024)), "{line}");
        assert_eq!(sizes.last(), Some(&last), "{line}");
    }
}
