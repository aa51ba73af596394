//! One image, several mounts: either they are one filesystem, or the later one is refused.

use std::fs;
use std::process::Command;

use super::{Loop, Stage, helpers};
use crate::harness::command::{self, Running, quiet};
use crate::harness::daemon::Daemon;
use crate::harness::{machine, sandbox};

/// The same image as `ext4` by the kernel and as `ext3` by a helper.
const BOTH: &str = "mount.enabled = true\nmount.allowed = [\"ext4\"]\nmount.shift = true\n\
                    mount.fuse = { ext3 = \"fuse2fs\", squashfs = \"squashfuse\" }\n";
const FUSE: [&str; 2] = ["--device", "/dev/fuse"];
/// `k FOLDER FLAGS` mounts by the kernel, `h FOLDER FLAGS` by a helper.
const MOUNTS: &str = "mkdir -p a b c; k() { /mnt/mount_call ${3-/run/i/ext4} /tmp/$1 ext4 $2; }
     h() { /mnt/mount_call ${3-/run/i/ext4} /tmp/$1 ext3 $2; }";

fn script(text: &str) -> String {
    format!("{MOUNTS}\n{text}")
}

/// A container that mounts the image, says so, and unmounts it when the file `go` appears.
#[track_caller]
fn holder(stage: &Stage, args: &[&str], mount: &str) -> Running {
    let bind = format!("{}:/run/i", stage.folder().display());
    let args = [&["--intercept", "mount", "--bind", &bind], args].concat();
    let script = format!(
        "mkdir /tmp/m; cd /tmp; {MOUNTS}\n{mount}; echo mounted
         while [ ! -e /run/i/go ]; do sleep .1; done; umount a"
    );
    let mut running = command::start(&mut sandbox::command(stage.daemon(), &args, &script));
    running.wait_for("mounted", machine::patience(20));
    running
}

fn let_go(stage: &Stage, running: Running) {
    fs::write(stage.folder().join("go"), "").unwrap();
    running.finish(machine::patience(30)).ok();
}

#[test]
fn an_image_mounted_twice_is_one_filesystem() {
    let stage = Stage::new(BOTH);
    let text = script(
        "k a 0; k b 0; echo one >a/one; cat b/one; echo two >b/two; cat a/two; umount a
         echo three >b/three; umount b; k a 0; cat a/one a/two a/three; umount a",
    );
    assert_eq!(stage.run(&[], &text).ok(), "ok\nok\none\ntwo\nok\none\ntwo\nthree\n");
    stage.leaves_nothing();
}

#[test]
fn two_containers_with_an_image_have_one_filesystem() {
    let stage = Stage::new(BOTH);
    let other = holder(&stage, &[], "k a 0; echo other >a/other");
    let text = script("k a 0; cat a/other; k b 1; h c 0; umount a");
    assert_eq!(stage.run(&FUSE, &text).ok(), "ok\nother\nEBUSY\nEBUSY\n");
    let_go(&stage, other);
    stage.leaves_nothing();
}

#[test]
fn a_mount_that_writes_an_image_excludes_others() {
    let stage = Stage::new(BOTH);
    fs::hard_link(stage.image(), stage.folder().join("link")).unwrap();
    fs::copy(stage.image(), stage.folder().join("copy")).unwrap();
    let text = script(
        "touch bound; mount --bind /run/i/ext4 bound
         k a 1; k b 1; h c 1; umount b c; k b 0; h c 0; umount a
         k a 0; k b 1; h b 1; k b 0 /run/i/link; umount b; k b 1 /tmp/bound; h b 1 /tmp/bound
         k b 0 /run/i/copy; umount a b
         h a 0; k b 0; k b 1; h b 0; h b 1; h b 0 /run/i/link; k b 0 /tmp/bound
         h b 0 /run/i/copy; umount a b; k a 0; umount a bound",
    );
    let expected = "ok ok ok EBUSY EBUSY ok EBUSY EBUSY ok EBUSY EBUSY ok \
                    ok EBUSY EBUSY EBUSY EBUSY EBUSY EBUSY ok ok";
    let text = stage.run(&FUSE, &text).ok();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("a helper serves it as the filesystem 0:"), "{said}");
    assert!(said.contains("ambit mounted it with /dev/loop"), "{said}");
}

#[test]
fn an_image_that_is_never_written_is_mounted_twice() {
    let stage = Stage::new(BOTH);
    let script = "mkdir n; mount -t squashfs.image /run/i/squashfs m
         mount -t squashfs.image /run/i/squashfs n; cat m/hello n/hello; umount m n";
    assert_eq!(stage.run(&[], script).ok(), "hello\nhello\n");
    stage.leaves_nothing();
}

#[test]
fn an_image_behind_a_loop_device_of_the_host_is_not_written() {
    let stage = Stage::new(BOTH);
    let text = script("k a 0; k a 1; h a 0; h a 1");
    let device = Loop::of(&stage.image());
    assert_eq!(stage.run(&FUSE, &text).ok(), "EBUSY\n".repeat(4));
    // The device itself can be mounted.
    let by_device = format!("k a 0 {0}; k b 0 {0}; touch a/x; ls b/x; umount a b", device.0);
    let args = ["--device", &device.0];
    assert_eq!(stage.run(&args, &script(&by_device)).ok(), "ok\nok\nb/x\n");
    drop(device);
    let reading = Command::new("losetup")
        .args(["--read-only", "--find", "--show"])
        .arg(stage.image())
        .output()
        .unwrap();
    let reading = Loop(String::from_utf8(reading.stdout).unwrap().trim().to_owned());
    let text = script("k a 0; h a 0; k a 1; h b 1; umount a b");
    assert_eq!(stage.run(&FUSE, &text).ok(), "EBUSY\nEBUSY\nok\nok\n");
    drop(reading);
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("the host has it behind /dev/loop"), "{said}");
}

#[test]
fn a_device_is_not_mounted_by_the_kernel_and_a_helper_at_once() {
    let stage = Stage::new(BOTH);
    let device = Loop::of(&stage.image());
    let text = script(&format!(
        "d={}; k a 0 $d; h b 0 $d; h b 1 $d; umount a; h a 0 $d; k b 0 $d; h b 0 $d; umount a
         k a 0 $d; umount a",
        device.0
    ));
    let text = stage.run(&["--device", "/dev/fuse", "--device", &device.0], &text).ok();
    let expected = "ok EBUSY EBUSY ok EBUSY EBUSY ok";
    assert_eq!(text.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    drop(device);
    stage.leaves_nothing();
}

#[test]
fn an_image_stays_in_use_after_a_restart_of_the_daemon() {
    for (mount, expected) in
        [("k a 0; echo kept >a/kept", "ok\nEBUSY\nEBUSY\n"), ("h a 0", "EBUSY\nEBUSY\nEBUSY\n")]
    {
        let stage = Stage::new(BOTH);
        let other = holder(&stage, &FUSE, mount);
        let Stage { daemon, folder, mounts } = stage;
        let daemon = Daemon::start_at(daemon.kill());
        let stage = Stage { daemon, folder, mounts };
        let text = script("k a 0; k b 1; h c 0; umount a 2>/dev/null");
        assert_eq!(stage.run(&FUSE, &text).stdout, expected, "{mount}");
        let_go(&stage, other);
        let text = script("k a 0; ls -d a/lost+found; umount a");
        assert_eq!(stage.run(&FUSE, &text).ok(), "ok\na/lost+found\n", "{mount}");
        stage.leaves_nothing();
    }
}

/// A helper that takes a while to end when its filesystem is unmounted.
const SLOW: &str = "#!/bin/sh
    (fuse2fs -f \"$@\"; sleep 1; echo all is written >/run/i/ended) &
    for i in $(seq 100); do [ -d \"$2/lost+found\" ] && exit; sleep .1; done; exit 1\n";

#[test]
fn a_mount_waits_for_the_helper_of_the_one_before() {
    let stage = Stage::new(&BOTH.replace("\"fuse2fs\"", "\"/run/i/slow\""));
    let slow = stage.folder().join("slow");
    fs::write(&slow, SLOW).unwrap();
    fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let text = script(
        "seq 300000 >data; for next in k h; do rm -f /run/i/ended
             h a 0; cp data a/data; umount a; $next a 0; cat /run/i/ended; cmp data a/data; umount a
         done",
    );
    let one = "ok\nok\nall is written\n";
    assert_eq!(stage.run(&FUSE, &text).ok(), one.repeat(2));
    stage.leaves_nothing();
}

#[test]
fn the_next_mount_has_the_data_that_a_helper_wrote() {
    let stage = Stage::new(BOTH);
    let text = script(
        "for i in $(seq 8); do h a 0; dd if=/dev/urandom of=a/f$i bs=64k count=8 2>/dev/null
             (cd a; sha256sum f*) >sums; umount a; k a 0; (cd a; sha256sum -c --quiet ../sums)
             ls a | grep -c ^f; umount a; done",
    );
    let expected: String = (1..=8).map(|count| format!("ok\nok\n{count}\n")).collect();
    assert_eq!(stage.run(&FUSE, &text).ok(), expected);
    stage.leaves_nothing();
}

#[test]
fn simultaneous_mounts_of_an_image_exclude_each_other() {
    let stage = Stage::new(BOTH);
    let text = script(
        "for i in 1 2 3 4 5; do for m in a b c; do h $m 0 >$m.said & done; wait
             cat ?.said | sort; umount a b c 2>/dev/null
             for m in a b c; do k $m 0 >$m.said & done; wait; cat ?.said; touch a/x$i; ls b/x$i
             umount a b c; done",
    );
    let text = stage.run(&FUSE, &text).ok();
    let one = "EBUSY EBUSY ok ok ok ok";
    let expected: Vec<_> = (1..=5).map(|round| format!("{one} b/x{round}")).collect();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>().join(" "), expected.join(" "));
    while !helpers().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    command::run(quiet("e2fsck").args(["-fn"]).arg(stage.image())).ok();
    stage.leaves_nothing();
}

/// A helper that locks its image in both ways, as ntfs-3g and fuse2fs do.
const LOCKS: &str = "#!/usr/bin/env python3
import fcntl, subprocess, sys
image = open(sys.argv[1], 'r+b')
fcntl.lockf(image, fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.flock(image, fcntl.LOCK_EX | fcntl.LOCK_NB)
sys.exit(subprocess.call(['fuse2fs', *sys.argv[1:]], close_fds=False))\n";

#[test]
fn a_helper_may_lock_its_image_itself() {
    machine::needs(&["python3"]);
    let stage = Stage::new(&BOTH.replace("\"fuse2fs\"", "\"/run/i/locks\""));
    let helper = stage.folder().join("locks");
    fs::write(&helper, LOCKS).unwrap();
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let text = script("h a 0; h b 0; k b 0; umount a; h a 0; umount a; k a 0; umount a");
    assert_eq!(stage.run(&FUSE, &text).ok(), "ok\nEBUSY\nEBUSY\nok\nok\n");
    stage.leaves_nothing();
}

#[test]
fn the_end_of_a_helper_can_be_waited_for() {
    let stage = Stage::new(BOTH);
    // As docs/mount.md says.
    machine::needs(&["fuser", "debugfs"]);
    let text = script(
        "cp /run/i/ext4 disk.img; h a 0 disk.img; seq 200000 >a/data; umount a
         while fuser -s disk.img; do sleep 0.1; done; e2fsck -fn disk.img >/dev/null 2>&1 && echo clean
         while pgrep -x fuse2fs >/dev/null; do sleep .1; done; debugfs -R 'cat data' disk.img 2>/dev/null | tail -n 1",
    );
    assert_eq!(stage.run(&FUSE, &text).ok(), "ok\nclean\n200000\n");
    stage.leaves_nothing();
}
