//! How many filesystems.

use super::Stage;

#[test]
fn as_many_filesystems_exist_as_the_policy_allows() {
    let lines = "mount.enabled = true\nmount.allowed = [\"squashfs\"]\nlimit.mounts = 2\n";
    let stage = Stage::new(lines);
    // An image is one filesystem, however often it is mounted. What is unmounted may live a moment
    // longer in the kernel.
    let script = "mkdir a b c; for i in a b c; do cp /run/i/squashfs $i.image; done
         try() { /mnt/mount_call $1.image /tmp/$1 squashfs 1; }
         soon() { for i in $(seq 100); do try $1 | grep ok && return; sleep 0.1; done; }
         try a; try b; try c; umount a; soon c; umount b c; soon a; umount a";
    let output = stage.run(&[], script);
    assert_eq!(output.stdout.matches("ok\n").count(), 4, "{output:?}");
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("ENOSPC") && said.contains("limit.mounts"), "{said}");
}

#[test]
fn helpers_count_as_filesystems() {
    let lines = "mount.enabled = true\nmount.allowed = [\"ext4\"]\nlimit.mounts = 2\n\
                 mount.fuse = { squashfs = \"squashfuse\" }\n";
    let stage = Stage::new(lines);
    let script = "mkdir a b c; try() { /mnt/mount_call /run/i/$2 /tmp/$1 $2 ${3-1}; }
         soon() { for i in $(seq 100); do try $1 squashfs | grep ok && return; sleep 0.1; done; }
         try a squashfs; try b ext4 0; try c squashfs; pgrep -xc squashfuse
         umount a; soon c; pkill -9 -x squashfuse; sleep 0.2; try a squashfs; umount c; soon a; umount a b";
    let output = stage.run(&[], script);
    let text = &output.stdout;
    assert_eq!(text.matches("ok\n").count(), 4, "{output:?}");
    assert!(text.contains("ok\nok\nENOSPC\n1\nok\nENOSPC\nok\n"), "{output:?}");
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("ENOSPC") && said.contains("limit.mounts"), "{said}");
}
