//! Threads that wait in the kernel: they are load, whatever they wait for, and `procs_blocked` has
//! those that wait for a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::cgroup::{self, Cgroup, Limits};
use crate::harness::command::{Running, quiet, run, start};
use crate::harness::daemon::Daemon;
use crate::harness::machine;
use crate::harness::table::row;

/// Prints the load average and `procs_blocked` until it is killed.
fn look(daemon: &Daemon) -> String {
    format!(
        "while sleep 0.5; do read -r load rest <{}; \
         echo look=$load=$(sed -n 's/^procs_blocked //p' {}); done",
        daemon.file("proc/loadavg").display(),
        daemon.file("proc/stat").display()
    )
}

/// Load average and `procs_blocked` of each look so far.
fn looks(running: &mut Running) -> Vec<(f64, u64)> {
    let (stdout, _) = running.printed();
    let look = |line: &str| {
        let (load, blocked) = line.strip_prefix("look=")?.split_once('=')?;
        Some((load.parse().ok()?, blocked.parse().ok()?))
    };
    stdout.lines().filter_map(look).collect()
}

/// Waits until a look is as it should be, and returns all looks.
#[track_caller]
fn wait_for(running: &mut Running, what: impl Fn(f64, u64) -> bool) -> Vec<(f64, u64)> {
    let until = Instant::now() + machine::patience(60);
    loop {
        let looks = looks(running);
        if looks.iter().any(|&(load, blocked)| what(load, blocked)) {
            return looks;
        }
        let printed = running.printed();
        assert!(!running.ended() && Instant::now() < until, "{printed:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A file system in a file, with three files of random bytes, that nothing was read of yet.
struct Disk {
    device: PathBuf,
    folder: TempDir,
}

impl Disk {
    /// `None` where the kernel has no loop devices.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (files, image) = (folder.path().join("files"), folder.path().join("image"));
        fs::create_dir(&files).unwrap();
        for name in ["0", "1", "2"] {
            fs::write(files.join(name), vec![1; 8 << 20]).unwrap();
        }
        let mut make = quiet("mkfs.ext4");
        run(make.args(["-q", "-d"]).arg(&files).arg(&image).arg("40M")).ok();
        let output = run(quiet("losetup").args(["--find", "--show"]).arg(&image));
        let device = output.stdout.trim();
        if output.status != 0 || device.is_empty() {
            eprintln!("{}", output.stderr);
            return None;
        }
        let disk = Self { device: device.into(), folder };
        let target = disk.files();
        run(quiet("mount").args(["-o", "ro"]).arg(&disk.device).arg(target)).ok();
        Some(disk)
    }

    /// Where it is mounted.
    fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// Its numbers, as `8:0`.
    fn numbers(&self) -> String {
        let name = self.device.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(Path::new("/sys/block").join(name).join("dev")).unwrap();
        text.trim().to_owned()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(quiet("umount").arg("--lazy").arg(self.files()));
        run(quiet("losetup").arg("--detach").arg(&self.device));
    }
}

/// Lets a cgroup read so many bytes in a second.
fn throttle(cgroup: &Cgroup, disk: &Disk, bytes: u64) -> bool {
    let numbers = disk.numbers();
    let v1 = ("blkio.throttle.read_bps_device", format!("{numbers} {bytes}"));
    let v2 = ("io.max", format!("{numbers} rbps={bytes}"));
    let dirs: Vec<_> = cgroup.dirs().collect();
    [v1, v2].into_iter().any(|(file, value)| {
        let mut paths = dirs.iter().map(|dir| dir.join(file)).filter(|path| path.exists());
        paths.any(|path| fs::write(path, &value).is_ok())
    })
}

#[test]
fn readers_of_a_slow_disk_are_load_and_are_blocked() {
    machine::needs(&["mkfs.ext4", "losetup"]);
    let daemon = Daemon::start();
    let Some(disk) = Disk::new() else {
        return machine::not_on_this_kernel("loop devices");
    };
    let cgroup = Cgroup::new("readers", Limits::default());
    if !throttle(&cgroup, &disk, 64 << 10) {
        return machine::not_on_this_kernel("disks that can be throttled");
    }
    // Through the page cache, where they wait in killable sleep.
    let files = disk.files();
    let read =
        |name| format!("dd if={}/{name} of=/dev/null bs=64k 2>/dev/null & ", files.display());
    let readers: String = (0..3).map(read).collect();
    let mut running = start(&mut cgroup.script(&format!("{readers}{}", look(&daemon))));
    let looks = wait_for(&mut running, |load, blocked| load >= 0.3 && blocked >= 2);
    drop(running);
    assert!(looks.iter().all(|&(load, blocked)| load < 4.0 && blocked <= 4), "{looks:?}");
    let blocked = looks.iter().map(|&(_, blocked)| blocked).max().unwrap();
    row("procs_blocked", "three dd on a throttled disk").because("one runs, or sed waits").numbers(
        blocked as f64,
        3.0,
        1.0,
    );
    row_of_load("three dd on a throttled disk", &looks);
}

#[test]
fn parents_in_vfork_are_load_and_wait_for_no_disk() {
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("vfork", Limits::default());
    let vfork = machine::program("vfork");
    let script = format!("{} 3 & {}", vfork.display(), look(&daemon));
    let mut running = start(&mut cgroup.script(&script));
    let looks = wait_for(&mut running, |load, _| load >= 0.3);
    drop(running);
    assert!(looks.iter().all(|&(load, _)| load < 4.0), "{looks:?}");
    row_of_load("three parents in vfork", &looks);
    // Elsewhere the kernel tells only what the machine has.
    if !cgroup::memory_is_v2() {
        assert!(looks.iter().all(|&(_, blocked)| blocked == 0), "{looks:?}");
    }
}

/// Holds the first load average that is not zero against what three waiting threads make of it.
#[track_caller]
fn row_of_load(situation: &str, looks: &[(f64, u64)]) {
    // The kernel's formula: the first count of three has this weight.
    let right = 3.0 * (1.0 - (-5.0f64 / 60.0).exp());
    let shown = looks.iter().map(|&(load, _)| load).find(|&load| load > 0.0).unwrap_or(0.0);
    row("load after one count", situation)
        .because("one thread more or less")
        .numbers(shown, right, 0.09);
}

/// Threads that the freezer of cgroup v1 stopped are in state D, and are no load.
#[test]
fn a_frozen_part_of_a_container_is_no_load() {
    let freezers = || cgroup::hierarchies().into_iter().filter(|one| one.has("freezer"));
    if freezers().next().is_none() {
        return machine::not_on_this_kernel("the freezer of cgroup v1");
    }
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("cold", Limits::default());
    let frozen = cgroup.child("part", Limits::default());
    let state = frozen.dirs().map(|dir| dir.join("freezer.state")).find(|path| path.exists());
    let dirs: Vec<_> = frozen.dirs().map(|dir| dir.display().to_string()).collect();
    let script = format!(
        "for i in 1 2 3; do sh -c 'for d in {}; do echo 0 >$d/cgroup.procs; done; \
         exec sleep 1000' & done; sleep 0.5; echo FROZEN >{}; busy() {{ n=0; \
         while [ $n -lt 20000 ]; do n=$((n+1)); done; }}; (while :; do busy; sleep 0.3; done) & {}",
        dirs.join(" "),
        state.as_ref().unwrap().display(),
        look(&daemon),
    );
    let began = Instant::now();
    let mut running = start(&mut cgroup.script(&script));
    let until = began + machine::patience(60);
    // Four counts, less the time that the looks take.
    while looks(&mut running).len() < 40 {
        assert!(!running.ended() && Instant::now() < until, "{:?}", running.printed());
        std::thread::sleep(Duration::from_millis(200));
    }
    let looks = looks(&mut running);
    fs::write(state.unwrap(), "THAWED").unwrap();
    drop(running);
    // One works now and then, and one looks; three more would be more than this.
    let most = 2.0 * (1.0 - (-began.elapsed().as_secs_f64() / 60.0).exp());
    assert!(looks.iter().all(|&(load, _)| load < most), "{most}: {looks:?}");
}
