//! Owners of files in a container with users of its own.

use std::fs;
use std::process::Command;

use super::{Loop, MIB, Stage, tool};
use crate::harness::command::{self, quiet};
use crate::harness::daemon::readable_dir;
use crate::harness::machine;

#[test]
fn owners_are_shifted_or_the_mount_is_refused() {
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("squashfs") {
        return machine::not_on_this_kernel("squashfs");
    }
    let stage =
        Stage::new("mount.enabled = true\nmount.allowed = [\"squashfs\"]\nmount.shift = true\n");
    let script = "/mnt/mount_call /run/i/squashfs m squashfs 1; stat -c %u:%g m/hello; umount m";
    let text = stage.run(&[], script).stdout;
    let said = stage.leaves_nothing().stderr;
    // squashfs can be idmapped since Linux 6.2.
    if text.starts_with("EOPNOTSUPP\n") {
        assert!(said.contains("cannot shift the owners of squashfs"), "{said}");
    } else {
        assert_eq!(text, "ok\n0:0\n");
    }
}

/// What containers write with their users, the host finds with the same numbers on the image, and
/// the other way round.
#[test]
fn filesystems_with_owners_are_shifted_both_ways() {
    let makers: [(&str, &[&str]); 3] = [
        ("ext4", &["mke2fs", "-qFt", "ext4"]),
        ("xfs", &["mkfs.xfs", "-q"]),
        ("btrfs", &["mkfs.btrfs", "-q"]),
    ];
    let names = makers.map(|(name, _)| format!("{name:?}")).join(", ");
    let stage = Stage::new(&format!(
        "mount.enabled = true\nmount.allowed = [{names}]\nmount.shift = true\n"
    ));
    for (name, maker) in makers {
        let _ = Command::new("modprobe").arg("-q").arg(name).status();
        if !fs::read_to_string("/proc/filesystems").unwrap().contains(name) {
            machine::not_on_this_kernel(name);
            continue;
        }
        machine::needs(&maker[..1]);
        let (image, on_host) = (stage.folder().join("owned"), readable_dir());
        let at = on_host.path().to_str().unwrap();
        fs::File::create(&image).unwrap().set_len(320 * MIB).unwrap();
        tool(maker[0], &maker[1..], &[&image]);
        fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        // On the host, with the numbers that are on the image.
        let look = |script: &str| {
            let device = Loop::of(&image);
            let script = format!(
                "mount -t {name} {} {at} && cd {at} && {script}; cd /; umount {at}",
                device.0
            );
            command::run(quiet("sh").args(["-c", &script])).ok()
        };
        assert_eq!(look("touch of_host; chown 5:6 of_host; stat -c %u:%g ."), "0:0\n", "{name}");
        let script = format!(
            "/mnt/mount_call /run/i/owned m {name} 0; stat -c %u:%g m m/of_host; cd m
             touch of_root of_user; chown 7:8 of_user; stat -c %u:%g of_*; cd ..; umount m"
        );
        let text = stage.run(&[], &script).ok();
        assert_eq!(text, "ok\n0:0\n5:6\n5:6\n0:0\n7:8\n", "{name}");
        assert_eq!(look("stat -c %u:%g of_*"), "5:6\n0:0\n7:8\n", "{name}");
        fs::remove_file(&image).unwrap();
    }
    stage.leaves_nothing();
}
