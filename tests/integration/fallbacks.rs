//! What is shown when something is missing, dies or goes away: docs/fallbacks.md, end to end.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{quiet, run, start};
use crate::harness::daemon::{Daemon, readable_dir};
use crate::harness::machine;
use crate::harness::text::kb;

const MIB: u64 = 1 << 20;

fn limited(name: &str, mib: u64) -> Cgroup {
    Cgroup::new(name, Limits { memory: Some(mib * MIB), ..Limits::default() })
}

/// Containers die in the middle of reading, again and again: no other reader fails, and the log
/// does not fill.
#[test]
fn the_death_of_an_init_fails_only_reads_of_its_container() {
    let daemon = Daemon::start();
    let files = ["meminfo", "stat", "uptime", "vmstat", "loadavg", "pressure/cpu"];
    let files = files.map(|name| daemon.file("proc").join(name).display().to_string()).join(" ");
    let (dying, other) = (limited("dying", 64), limited("other", 72));
    let check = format!(
        "for i in $(seq 200); do read -r a b c <{}; [ $b = {} ] || echo wrong $b; done; echo done",
        daemon.file("proc/meminfo").display(),
        72 << 10
    );
    let witness = start(&mut other.script(&check));
    for _ in 0..5 {
        let script = format!(
            "for i in 1 2 3 4; do while :; do cat {files} >/dev/null; done & done; echo up; wait"
        );
        let mut doomed = start(&mut dying.script(&script));
        doomed.wait_for("up", machine::patience(10));
        std::thread::sleep(Duration::from_millis(100));
        let init = rustix::process::Pid::from_raw(dying.init()).unwrap();
        rustix::process::kill_process(init, Signal::KILL).unwrap();
        doomed.finish(machine::patience(10));
    }
    let seen = witness.finish(machine::patience(60));
    assert_eq!(seen.stdout, "done\n", "{seen:?}");
    let (output, _) = daemon.stop();
    assert!(output.stderr.lines().count() < 20, "an error storm:\n{}", output.stderr);
}

/// A file that a container opened goes on in other hands when the container and its cgroup are
/// gone: what was read stays readable, and from the start it shows the reader's own numbers only.
#[test]
fn an_open_file_survives_its_container() {
    let daemon = Daemon::start();
    let cgroup = limited("gone", 48);
    let meminfo = daemon.file("proc/meminfo").display().to_string();
    let script = format!("exec 7<{meminfo}; head -c 30 <&7; echo; echo up; sleep 1000");
    let mut container = start(&mut cgroup.script(&script));
    container.wait_for("up", machine::patience(10));
    assert_eq!(kb(&container.printed().0, "MemTotal"), 48 << 10);
    let init = cgroup.init();
    // pidfd_getfd(2).
    let steal = format!(
        "import ctypes, os\n\
         f = ctypes.CDLL(None).syscall(438, os.pidfd_open({init}), 7, 0)\n\
         print('stolen', flush=True)\ninput()\n\
         print('>', os.pread(f, 4096, 0).decode())\n"
    );
    let (ours, theirs) = std::io::pipe().unwrap();
    let mut thief = start(quiet("python3").args(["-c", &steal]).stdin(ours));
    thief.wait_for("stolen", machine::patience(10));
    rustix::process::kill_process(rustix::process::Pid::from_raw(init).unwrap(), Signal::KILL)
        .unwrap();
    container.finish(machine::patience(10));
    drop(cgroup);
    (&theirs).write_all(b"\n").unwrap();
    let output = thief.finish(machine::patience(20)).ok();
    let (_, output) = output.split_once("> ").unwrap();
    let own = run(quiet("cat").arg(&meminfo)).ok();
    assert_eq!(kb(output, "MemTotal"), kb(&own, "MemTotal"), "{output}");
    assert_ne!(kb(&own, "MemTotal"), 48 << 10);
}

/// A process that leaves its cgroup with a file open, and the cgroup goes.
#[test]
fn a_reader_that_moved_sees_its_new_cgroup() {
    let daemon = Daemon::start();
    let (first, second) = (limited("first", 40), limited("second", 56));
    let dirs = |cgroup: &Cgroup| {
        cgroup.dirs().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" ")
    };
    let script = format!(
        "import os, sys\n\
         def go(dirs):\n    for d in dirs.split(): open(d + '/cgroup.procs', 'w').write('0')\n\
         go('{}')\nf = os.open('{}', os.O_RDONLY)\n\
         print(os.pread(f, 30, 0).decode().split()[1])\ngo('{}')\nprint('moved', flush=True)\n\
         input()\nprint(os.pread(f, 30, 0).decode().split()[1])\n",
        dirs(&first),
        daemon.file("proc/meminfo").display(),
        dirs(&second),
    );
    let (ours, theirs) = std::io::pipe().unwrap();
    let mut python = start(quiet("python3").args(["-c", &script]).stdin(ours));
    python.wait_for("moved", machine::patience(10));
    drop(first);
    // Which thread is where is believed for the age of a view.
    std::thread::sleep(Duration::from_millis(100));
    (&theirs).write_all(b"\n").unwrap();
    let output = python.finish(machine::patience(20)).ok();
    assert_eq!(output, format!("{}\nmoved\n{}\n", 40 << 10, 56 << 10));
}

/// No memory controller of its own: the nearest cgroup above that has one.
#[test]
fn without_a_controller_the_nearest_cgroup_above_is_shown() {
    let daemon = Daemon::start();
    let above = limited("above", 88);
    let mut plain: Vec<PathBuf> = Vec::new();
    let places: Vec<_> = above
        .dirs()
        .map(|dir| {
            // v2 gives no controller to a child that was not told to; on v1 it stays above.
            if dir.join("cgroup.controllers").exists() {
                plain.push(dir.join("plain"));
                fs::create_dir(dir.join("plain")).unwrap();
                dir.join("plain").display().to_string()
            } else {
                dir.display().to_string()
            }
        })
        .collect();
    let script = format!(
        "for d in {}; do echo 0 >$d/cgroup.procs; done; exec unshare --pid --fork --kill-child \
         cat {}",
        places.join(" "),
        daemon.file("proc/meminfo").display()
    );
    let output = run(quiet("sh").args(["-c", &script]));
    for dir in plain {
        for _ in 0..100 {
            if fs::remove_dir(&dir).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert_eq!(kb(&output.ok(), "MemTotal"), 88 << 10);
}

/// A disk that the container used, with how much. On v1 only throttled disks are counted.
#[test]
fn a_disk_that_was_used_is_shown_with_its_numbers() {
    machine::needs(&["losetup", "dd"]);
    if !machine::has_controller("blkio") {
        return machine::not_on_this_kernel("accounting of input and output");
    }
    let daemon = Daemon::start();
    let dir = readable_dir();
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(8 * MIB).unwrap();
    run(quiet("modprobe").arg("-q").arg("loop"));
    let attach = run(quiet("losetup").args(["--find", "--show"]).arg(&image));
    if attach.status != 0 {
        return machine::not_on_this_kernel("loop devices");
    }
    let disk = attach.stdout.trim().to_owned();
    let name = disk.trim_start_matches("/dev/");
    let number = fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap().trim().to_owned();
    let cgroup = Cgroup::new("disk", Limits::default());
    for folder in cgroup.dirs() {
        let limit = folder.join("blkio.throttle.read_bps_device");
        if limit.exists() {
            fs::write(limit, format!("{number} 1000000000")).unwrap();
        }
    }
    let script = format!(
        "cat {stats}; echo @@; dd if={disk} of=/dev/null bs=64k count=16 iflag=direct 2>&1 && \
         sleep 0.1; echo @@; cat {stats}; echo @@; cat {partitions}",
        stats = daemon.file("proc/diskstats").display(),
        partitions = daemon.file("proc/partitions").display(),
    );
    let output = run(&mut cgroup.script(&script));
    run(quiet("losetup").args(["--detach", &disk]));
    let output = output.ok();
    let parts: Vec<_> = output.split("@@\n").collect();
    assert!(parts[1].contains("1048576 bytes"), "{output}");
    let row = |text: &str| {
        let row = text.lines().find(|line| line.split_whitespace().nth(2) == Some(name))?;
        Some(row.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    assert_eq!(row(parts[0]), None, "{output}");
    let row = row(parts[2]).unwrap_or_else(|| panic!("no {name} in {output}"));
    assert_eq!(format!("{}:{}", row[0], row[1]), number);
    assert!(row[3].parse::<u64>().unwrap() >= 1, "{row:?}");
    assert_eq!(row[5], "2048", "sectors of 512 bytes: {row:?}");
    let size = parts[3].lines().find(|line| line.ends_with(name));
    let size = size.and_then(|line| line.split_whitespace().nth(2));
    assert_eq!(size, Some("8192"), "{output}");
    assert_eq!(parts[3].lines().count(), 3, "no other disk: {output}");
}
