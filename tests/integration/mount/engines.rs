//! In containers of engines.

use super::{MIB, SHIFTED, Stage};
use crate::harness::command::Output;
use crate::harness::daemon::Daemon;
use crate::harness::{lxc, oci};

/// In a container whose files are its own: an image in its `/tmp`, mounted, written, checked.
const INSIDE: &str = "mount -t tmpfs tmp /tmp; cd /tmp; mkdir m; truncate -s 16M image
    mke2fs -q -F -t ext4 image; mount -t ext4.image image m && echo deep >m/file
    stat -c '%u %U' m/file; umount m && e2fsck -fn image >/dev/null 2>&1 && echo clean
    mount -t ext3 image m 2>/dev/null || echo refused
    mkdir t; echo packed >t/f; chown 33:44 t/f; mksquashfs t packed >/dev/null
    mount -t squashfs.image packed m && cat m/f && stat -c %u:%g m/f; umount m";

#[track_caller]
fn engine(run: impl Fn(&Daemon) -> Output) {
    let stage = Stage::new(&SHIFTED.replace("squashfuse", "host:/usr/bin/squashfuse"));
    let text = run(&stage.daemon).ok();
    assert!(text.contains("clean\nrefused\npacked\n33:44\n") && text.starts_with("0 "), "{text}");
    stage.leaves_nothing();
}

crate::on_each_engine!(INSIDE);
