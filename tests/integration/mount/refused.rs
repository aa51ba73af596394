//! Mounts that are refused, fail, or are left to the kernel.

use std::fs;

use super::{Loop, SHIFTED, Stage};
use crate::harness::{cgroup, command, machine, sandbox};

#[test]
fn a_mount_that_is_not_granted_fails_as_with_the_kernel() {
    let stage = Stage::new(SHIFTED);
    let call = |words: &str| format!("/mnt/mount_call {words}\n");
    let script = [
        call("/run/i/ext4 m ext3 0"),
        call("/run/i/ext4 m devtmpfs 0"),
        call("/run/i/ext4 m ext4 0 errors=panic"),
        call("/run/i/ext4 m ext4 0 journal_path=/dev/vda"),
        call("/run/i/none m ext4 0"),
        call("/run/i/ext4 none ext4 0"),
        call("/run/i/junk m ext4 0"),
        call("/run/i/junk m squashfs 0"),
        call("/dev/null m ext4 0"),
        call("/run/i m ext4 0"),
        call("- m ext4 0"),
        call("/run/i/ext4 /run/i/junk ext4 0"),
        call("none m tmpfs 0"),
        "umount m\n".into(),
        call("/tmp m - 0x1000"),
        "umount m; chmod 777 m\n".into(),
        // A user of the container, and one of a namespace that the container made.
        "setpriv --reuid 1000 --clear-groups /mnt/mount_call /run/i/ext4 m ext4 0\n".into(),
        "unshare -Urm /mnt/mount_call /run/i/ext4 /tmp/m ext4 0\n".into(),
        // A mount namespace alone is nothing special.
        "unshare -m sh -c '/mnt/mount_call /run/i/ext4 /tmp/m ext4 0'\n".into(),
        "mkfifo fifo; /mnt/mount_call fifo m ext4 0\n".into(),
    ]
    .concat();
    let text = stage.run(&[], &script).ok();
    let expected = [
        "EPERM", "EPERM", "EPERM", "EPERM", "ENOENT", "ENOENT", "EINVAL", "EINVAL", "ENOTBLK",
        "EISDIR", "EINVAL", "ENOTDIR", "ok", "ok", "EPERM", "EPERM", "ok", "ENOTBLK",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("errors=panic") && said.contains("squashfs image"), "{said}");
}

#[test]
fn nothing_is_mounted_while_it_is_off() {
    let stage = Stage::new("mount = false\n");
    let output = stage.run(&[], "/mnt/mount_call /run/i/ext4 m ext4 0");
    assert_eq!(output.ok(), "EPERM\n");
    stage.leaves_nothing();
}

#[test]
fn the_new_mount_api_is_complete_or_enosys() {
    let stage = Stage::new(SHIFTED);
    let script = "for t in ext4 squashfs tmpfs ext3; do /mnt/mount_call fsopen $t; done";
    assert_eq!(stage.run(&[], script).ok(), "ENOSYS\nENOSYS\nok\nok\n");
    stage.leaves_nothing();
}

#[test]
fn errors_are_those_of_the_documentation() {
    let stage = Stage::new(
        "mount.enabled = true\nmount.allowed = [\"ext4\", \"hugetlbfs\", \"nosuchfs\"]\n\
         mount.fuse = { xfs = \"nosuchhelper\" }\n",
    );
    let private = stage.folder().join("private");
    fs::copy(stage.folder().join("ext4"), &private).unwrap();
    fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // Users of the host that are not mapped in the container.
    std::os::unix::fs::chown(&private, Some(700_000), Some(700_000)).unwrap();
    let script = "at() { /mnt/mount_call $1 $2 $3 0 $4; }; mkdir -m 700 closed; mkdir closed/m; chown 7 closed
        at /run/i/private m ext4; at /run/i/ext4/x m ext4; at /run/i/nothing m ext4; at /run/i/ext4 nothing ext4
        at /dev/null m ext4; at /run/i/junk m ext4; at /run/i/ext4 m ext4 no_such_option
        at /run/i/ext4 m nosuchfs; at /run/i/ext4 m xfs; at /run/i/ext4 /run/i/junk ext4
        mkdir l u w; at none m tmpfs; umount m; at none m overlay lowerdir=l,upperdir=u,workdir=w; umount m";
    let expected = "EACCES ENOTDIR ENOENT ENOENT ENOTBLK EINVAL EINVAL ENODEV ENODEV ENOTDIR ok ok";
    let text = stage.run(&[], script).ok();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    let said = stage.leaves_nothing().stderr;
    assert!(
        !said.contains("filesystem=\"tmpfs\"") && !said.contains("\"overlay\""),
        "the kernel's: {said}"
    );
}

#[test]
fn unusual_arguments_are_answered_as_by_the_kernel() {
    let stage = Stage::new(SHIFTED);
    let text = stage.run(&[], "/mnt/mount_call edges /run/i/ext4 /tmp/m ext4").ok();
    let expected = "at the end: ok\nodd bytes: EINVAL\ndata that ends with memory: ok\n\
                    endless target: ENAMETOOLONG\nendless type: EINVAL\nendless source: EINVAL\n\
                    endless data: EINVAL\nno data: EFAULT\nno target: EFAULT\nno type: EFAULT\n\
                    no source: EFAULT\n";
    assert_eq!(text, expected);
    stage.leaves_nothing();
}

#[test]
fn the_device_policy_of_the_container_decides() {
    let hierarchies = cgroup::hierarchies();
    let Some(devices) = hierarchies.iter().find(|hierarchy| hierarchy.has("devices")) else {
        return machine::not_on_this_kernel("a devices controller that is a file system");
    };
    let stage = Stage::new(SHIFTED);
    let device = Loop::of(&stage.image());
    let script = format!(
        "cat /proc/self/cgroup; echo ready; while [ ! -e /run/i/go ]; do sleep .1; done
         /mnt/mount_call {0} /tmp/m ext4 0; /mnt/mount_call {0} /tmp/m ext4 1",
        device.0
    );
    let bind = format!("{}:/run/i", stage.folder.path().display());
    let args = ["--intercept", "mount", "--bind", &bind, "--device", &device.0];
    let script = format!("mkdir /tmp/m; {script}");
    let mut running = command::start(&mut sandbox::command(&stage.daemon, &args, &script));
    running.wait_for("ready", machine::patience(20));
    let place = cgroup::find(devices.root(), &format!("run-{}", running.pid()));
    fs::write(place.join("devices.deny"), "b 7:* w").unwrap();
    fs::write(stage.folder.path().join("go"), "").unwrap();
    let text = running.finish(machine::patience(30)).ok();
    assert!(text.ends_with("ready\nEPERM\nok\n"), "it may be read, not written: {text}");
    drop(device);
    stage.leaves_nothing();
}
