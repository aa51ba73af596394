//! Callers whose folder or root is on a FUSE filesystem. Without `allow_other` it lets processes of
//! one user in; with it, those of one user namespace whose ids are mapped there.

use super::Stage;
use crate::harness::sandbox;

const ON: &str = "mount.enabled = true\nmount.allowed = [\"ext4\"]\nmount.shift = true\n\
                  mknod = true\nsetxattr = true\n";

/// A filesystem of the container's, with programs in it, and a folder on it.
fn on_fuse(options: &str, script: &str) -> String {
    format!(
        "cd /tmp; mkdir m x; truncate -s 16M own; mke2fs -q -F -t ext4 own
         fuse2fs -o {options} own m; while ! mountpoint -q m; do sleep .05; done
         cp /mnt/mount_call-static /mnt/memory m; mkdir m/folder m/images m/target m/marked
         {script}
         cd /tmp; umount m; while pgrep -x fuse2fs >/dev/null; do sleep .05; done"
    )
}

/// Runs a script where the calls are granted, and where the kernel alone answers them.
#[track_caller]
fn both(options: &str, script: &str) -> [String; 2] {
    let stage = Stage::new(ON);
    let script = on_fuse(options, script);
    let bind = format!("{}:/run/i", stage.folder().display());
    let both = ["mount,mknod,setxattr", "sysinfo"].map(|calls| {
        let args = ["--intercept", calls, "--bind", &bind, "--device", "/dev/fuse"];
        sandbox::run(stage.daemon(), &args, &script).ok()
    });
    stage.leaves_nothing();
    both
}

#[test]
fn a_caller_with_its_folder_on_fuse_is_served() {
    let script = "cd m/folder; /mnt/mount_call /run/i/ext4 /tmp/x ext4 0; umount /tmp/x 2>/dev/null
        /mnt/node_call make /tmp/absolute 1 3; /mnt/node_call make ../../relative 1 3
        /mnt/node_call make here 1 3; /mnt/node_call opaque ../marked; /mnt/node_call opaque /tmp/x";
    for options in ["fakeroot", "allow_other"] {
        let [granted, kernels] = both(options, script);
        assert_eq!(kernels, "EPERM\n".repeat(6), "{options}");
        // What is on the filesystem itself stays the kernel's to refuse.
        assert_eq!(granted, "ok\nok\nok\nEPERM\nEPERM\nok\n", "{options}");
    }
}

#[test]
fn a_caller_with_its_root_on_fuse_is_served() {
    let script =
        "mount --bind /run/i m/images; chroot m /mount_call-static /images/ext4 /target ext4 0
        umount m/target 2>/dev/null; umount m/images; chroot m /memory strings /folder";
    for options in ["fakeroot", "allow_other"] {
        let [granted, kernels] = both(options, script);
        let nodes = kernels.strip_prefix("EPERM\n").unwrap();
        assert!(nodes.starts_with("read-only: EPERM\n"), "{nodes}");
        assert_eq!(granted, format!("ok\n{nodes}"), "{options}");
    }
}
