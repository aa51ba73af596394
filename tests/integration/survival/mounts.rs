//! Filesystems that containers mount while the server is killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{kill_server, next_read, number};
use crate::harness::daemon::{Daemon, Place, mounts, readable_dir};
use crate::harness::{command, machine, sandbox};

/// A container that mounts and unmounts until a file appears, and prints each call that failed.
#[test]
fn a_mount_that_is_under_way_ends_and_one_that_was_made_goes_on() {
    machine::needs(&["mke2fs", "fuse2fs", "mksquashfs", "squashfuse"]);
    let by_kernel = "mount.enabled = true\nmount.allowed = [\"ext4\"]\nmount.shift = true\n";
    let by_helper =
        "mount.enabled = true\nmount.fuse = { ext4 = \"fuse2fs\", squashfs = \"squashfuse\" }\n";
    for (lines, kinds) in [(by_kernel, &["ext4"][..]), (by_helper, &["ext4", "squashfs"])] {
        for kind in kinds {
            mounts_while_killed(lines, kind);
        }
    }
}

fn mounts_while_killed(lines: &str, kind: &str) {
    let folder = readable_dir();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("tree")).unwrap();
    fs::write(path("tree/kept"), "kept").unwrap();
    fs::File::create(path("ext4")).unwrap().set_len(8 << 20).unwrap();
    let mut make = command::quiet(if kind == "ext4" { "mke2fs" } else { "mksquashfs" });
    match kind {
        "ext4" => make.args(["-q", "-F", "-t", "ext4"]).arg(path("ext4")),
        _ => make.arg(path("tree")).arg(path("squashfs")),
    };
    command::run(&mut make).ok();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(path(kind), fs::Permissions::from_mode(0o666)).unwrap();
    let daemon = Daemon::start_at(Place::intercepting(lines));
    let before = mounts().lines().count();
    // A mount whose call was ended with EINTR may come a moment later: it is waited for, at the end
    // for longer, because on a busy machine it comes after the caller has stopped waiting.
    let write = if kind == "ext4" { "echo word >m/file && cat m/file" } else { "cat m/kept" };
    let script = format!(
        "mkdir /tmp/m; cd /tmp; echo ready; while [ ! -e /run/i/stop ]; do
             said=$(/mnt/mount_call /run/i/{kind} /tmp/m {kind} 0); echo call $said
             [ $said = ok ] || {{ sleep .3; grep -q ' /tmp/m ' /proc/self/mountinfo || continue; }}
             for i in 1 2 3 4 5; do {write} >/dev/null || echo lost; sleep .02; done
             umount m || echo stays
         done; for i in 1 2 3 4 5 6 7 8; do sleep .5; umount m 2>/dev/null; done
         grep ' /tmp/m ' /proc/self/mountinfo"
    );
    let bind = format!("{}:/run/i", folder.path().display());
    let args = ["--intercept", "mount", "--bind", &bind, "--device", "/dev/fuse"];
    let mut running = command::start(&mut sandbox::command(&daemon, &args, &script));
    running.wait_for("call ok", machine::patience(30));
    for turn in 0..number("AMBIT_SURVIVAL_KILLS", 8) {
        std::thread::sleep(Duration::from_millis(40 + turn * 37 % 150));
        kill_server(&daemon);
        next_read(&daemon);
    }
    fs::write(path("stop"), "").unwrap();
    let output = running.finish(machine::patience(60));
    let (text, said) = (output.stdout.clone(), output.stderr);
    for line in text.lines().filter(|line| *line != "ready") {
        assert!(["call ok", "call EINTR"].contains(&line), "{kind}: {text}{said}");
    }
    assert_eq!(mounts().lines().count(), before, "{}", mounts());
    let until = Instant::now() + machine::patience(10);
    let image = path(kind);
    while !uses_of(&image).is_empty() {
        assert!(Instant::now() < until, "left over: {:?}", uses_of(&image));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Loop devices of a file, and helpers that serve it.
fn uses_of(image: &Path) -> Vec<String> {
    let image = image.to_str().unwrap();
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let files = devices
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|one| fs::read_to_string(one.path().join("cmdline")).ok());
    let helpers =
        lines.filter(|line| ["fuse2fs", "squashfuse"].iter().any(|h| line.starts_with(h)));
    files.filter(|file| file.starts_with(image)).chain(helpers).collect()
}
