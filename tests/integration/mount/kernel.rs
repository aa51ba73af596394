//! Mounted by the kernel.

use std::fs;

use super::{Loop, SHIFTED, Stage};
use crate::harness::machine;

#[test]
fn a_block_device_is_mounted_by_plain_mount_and_unmounted_inside() {
    let stage = Stage::new(SHIFTED);
    let device = Loop::of(&stage.image());
    let script = format!(
        "mount -t ext4 {0} m && grep ' /tmp/m ' /proc/self/mountinfo
         cp /bin/sh m/program; chown 33:44 m/program; mkdir m/d; stat -c '%u:%g' m m/program
         mount -o remount,bind,dev,suid m 2>/dev/null && echo 'devices again'
         umount m && echo unmounted; ls m; mount -t ext4 -o ro {0} m && touch m/x; cmp m/program /bin/sh && echo same
         umount m",
        device.0
    );
    let output = stage.run(&["--device", &device.0], &script);
    let (text, errors) = (output.stdout.clone(), output.stderr.clone());
    output.ok();
    let line = text.lines().next().unwrap_or_default();
    assert!(
        line.contains("nosuid,nodev") && line.contains(&format!("ext4 {}", device.0)),
        "{text}"
    );
    assert!(text.contains("0:0\n33:44\nunmounted\nsame\n"), "{text}{errors}");
    assert!(errors.contains("Read-only file system"), "{errors}");
    drop(device);
    let said = stage.leaves_nothing();
    assert!(said.stderr.contains("mounted"), "the audit log: {}", said.stderr);
}

#[test]
fn an_image_is_mounted_by_its_path() {
    let stage = Stage::new(SHIFTED);
    let script = "mount -t ext4.image /run/i/ext4 m && echo deep >m/file && umount m || exit 1
         cd /run/i && /mnt/mount_call ./ext4 ../../tmp/m ext4 0x400 && cat /tmp/m/file
         grep -o 'noatime.*ext4 [^ ]*' /proc/self/mountinfo; umount /tmp/m
         mkdir -p /tmp/inner/m /tmp/inner/usr; mount --bind /usr /tmp/inner/usr
         mount --bind /mnt /tmp/inner/m; ln -s usr/lib /tmp/inner/lib; ln -s usr/lib64 /tmp/inner/lib64
         cp ext4 /tmp/inner/inside; mkdir /tmp/inner/at
         chroot /tmp/inner /m/mount_call /inside /at ext4 0; cat /tmp/inner/at/file; umount /tmp/inner/at";
    let text = stage.run(&[], script).ok();
    assert_eq!(text.matches("deep").count(), 2, "{text}");
    assert!(text.contains("idmapped - ext4 ./ext4"), "{text}");
    assert_eq!(text.matches("ok\n").count(), 2, "{text}");
    stage.leaves_nothing();
}

#[test]
fn squashfs_is_mounted_directly_and_owners_are_unmapped_unless_shifted() {
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("squashfs") {
        return machine::not_on_this_kernel("squashfs");
    }
    let stage = Stage::new("mount.enabled = true\nmount.allowed = [\"squashfs\"]\n");
    let script =
        "mount -t squashfs.image /run/i/squashfs m && cat m/hello; stat -c %u m/hello; umount m";
    assert_eq!(stage.run(&[], script).ok(), "hello\n65534\n");
    stage.leaves_nothing();
}

#[test]
fn every_thread_and_every_word_size_is_served() {
    let stage = Stage::new(SHIFTED);
    let calls = machine::runnable(&["mount_call", "mount_call-32"]);
    let script: String = calls
        .iter()
        .map(|call| format!("/mnt/{call} thread /run/i/ext4 /tmp/m ext4; touch m/x; umount m\n"))
        .collect();
    assert_eq!(stage.run(&[], &script).ok(), "ok\n".repeat(calls.len()));
    stage.leaves_nothing();
}

#[test]
fn a_call_that_signals_interrupt_mounts_once() {
    let stage = Stage::new(SHIFTED);
    let script = format!(
        "/mnt/mount_call signals /run/i/ext4 /tmp/m ext4 {}
         grep -c ' /tmp/m ' /proc/self/mountinfo; umount m",
        5 * machine::slowness()
    );
    assert_eq!(stage.run(&[], &script).ok(), "ok\n1\n");
    stage.leaves_nothing();
}

#[test]
fn a_container_may_change_its_mount_but_not_the_superblock() {
    let stage = Stage::new(SHIFTED);
    let again = "mkdir -p other; /mnt/mount_call again m other";
    let script = format!(
        "mount -t ext4.image /run/i/ext4 m; {again}; mount -t squashfs.image /run/i/squashfs m; {again}
         mount -t ext4.image -o ro /run/i/ext4 m; mount -o remount,bind,rw m 2>/dev/null || echo locked; umount m"
    );
    let text = stage.run(&[], &script).ok();
    let kernels = "fspick: ok\nan option: ok\nreconfigure: EPERM\nremount: EPERM\ndevices: EPERM\n\
        devices by remount: EPERM\nread-only: ok\nwritable: ok\nopen_tree: ok\na copy: ok\n\
        its end: ok\na move: ok\numount: ok\n";
    // A helper's superblock was made as the container, which may do with it what it likes.
    let helpers = kernels.replace("EPERM", "ok");
    assert_eq!(text, format!("{kernels}{helpers}locked\n"));
    stage.leaves_nothing();
}

#[test]
fn network_filesystems_are_mounted_from_allowed_sources_only() {
    let stage = Stage::new(
        "mount.enabled = true\nmount.allowed = [\"9p\", \"nfs\"]\nmount.sources = [\"9p=share-?\"]\n",
    );
    let script = "/mnt/mount_call share m 9p 0; /mnt/mount_call share-1 m nfs 0 addr=10.0.0.1
        /mnt/mount_call share-1 m 9p 0 trans=fd,rfdno=3,wfdno=3; /mnt/mount_call - m 9p 0
        /mnt/mount_call share-1 m 9p 0 trans=none";
    let text = stage.run(&[], script).ok();
    let answers: Vec<_> = text.lines().collect();
    assert_eq!(answers[..4], ["EPERM"; 4], "{text}");
    // By the kernel: there is no such share, or no such filesystem.
    assert!(answers[4] != "EPERM" && answers[4] != "ok", "{text}");
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("add 9p=share") && said.contains("add nfs=share-1"), "{said}");
    assert!(said.contains("not mounted: "), "{said}");
}

#[test]
fn huge_pages_belong_to_users_of_the_container() {
    let stage = Stage::new("mount.enabled = true\nmount.allowed = [\"hugetlbfs\"]\n");
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("hugetlbfs") {
        assert_eq!(stage.run(&[], "/mnt/mount_call none m hugetlbfs 0").ok(), "ENODEV\n");
        stage.leaves_nothing();
        return machine::not_on_this_kernel("hugetlbfs");
    }
    let script = "mount -t hugetlbfs -o uid=5,gid=6,mode=750 none m; stat -c '%u:%g %a' m; umount m
        mount -t hugetlbfs none m; stat -c %u:%g m; umount m; /mnt/mount_call none m hugetlbfs 0 uid=70000
        /mnt/mount_call none m hugetlbfs 0 uid=x";
    assert_eq!(stage.run(&[], script).ok(), "5:6 750\n0:0\nEPERM\nEINVAL\n");
    stage.leaves_nothing();
}
