//! Options, one by one: the answer of the kernel to its own root is what a container gets.

use std::process::Command;

use super::{Loop, MIB, Stage, tool};
use crate::harness::command::{self, quiet};
use crate::harness::daemon::readable_dir;
use crate::harness::machine;

/// A filesystem, its maker, and options with good and bad values.
const CASES: [(&str, &[&str], &str); 4] = [
    (
        "ext4",
        &["mke2fs", "-qFt", "ext4"],
        "noload norecovery usrquota grpquota quota noquota usrjquota=aquota.user,jqfmt=vfsv1 \
         nobarrier barrier=0 delalloc nodelalloc resuid=0 resgid=5 stripe=16 data=ordered \
         data=nonsense commit=5 commit=often journal_checksum journal_async_commit min_batch_time=1 \
         bsddf minixdf grpid nouid32 noacl user_xattr discard inode_readahead_blks=32 sb=1 sb=7 \
         init_itable=10 noauto_da_alloc dioread_nolock max_dir_size_kb=100 i_version errors=continue \
         errors=nonsense dax no_such_option ro,sync lazytime noload=1 debug_want_extra_isize=32",
    ),
    (
        "xfs",
        &["mkfs.xfs", "-q"],
        "nouuid noquota usrquota wsync logbufs=8 logbufs=99 logbsize=32k inode64 noikeep largeio \
         allocsize=64k discard norecovery ro,norecovery barrier filestreams noload sunit=8 grpid",
    ),
    (
        "btrfs",
        &["mkfs.btrfs", "-q"],
        "compress=zstd compress=nonsense nodatacow noatime degraded subvol=/ subvol=/none subvolid=5 \
         space_cache=v2 thread_pool=2 commit=10 max_inline=100 discard=async skip_balance ssd \
         rescue=nologreplay noload user_subvol_rm_allowed autodefrag",
    ),
    ("squashfs", &[], "errors=continue threads=single threads=none noload"),
];

#[test]
fn options_are_answered_as_the_kernel_answers_its_root() {
    let stage = Stage::new(
        "mount.enabled = true\nmount.allowed = [\"ext4\", \"xfs\", \"btrfs\", \"squashfs\"]\n",
    );
    for case in CASES {
        compare(&stage, case);
    }
    stage.leaves_nothing();
}

/// Gives each option to mount(2), on the host and in a container.
#[track_caller]
pub(crate) fn compare(stage: &Stage, (kind, maker, options): (&str, &[&str], &str)) {
    let _ = Command::new("modprobe").arg("-q").arg(kind).status();
    if !std::fs::read_to_string("/proc/filesystems").unwrap().contains(kind) {
        return machine::not_on_this_kernel(kind);
    }
    let image = match maker {
        [] => stage.folder().join("squashfs"),
        [name, rest @ ..] => {
            machine::needs(&[*name]);
            let image = stage.folder().join("optional");
            std::fs::File::create(&image).unwrap().set_len(320 * MIB).unwrap();
            tool(name, rest, &[&image]);
            image
        }
    };
    let (device, on_host) = (Loop::of(&image), readable_dir());
    let script = |call: &str, at: &str| {
        format!(
            "for o in {options}; do r=$({call} {} {at} {kind} 0 $o); echo $o $r
             [ $r != ok ] || umount {at}; done",
            device.0
        )
    };
    let call = machine::program("mount_call");
    let direct = script(call.to_str().unwrap(), on_host.path().to_str().unwrap());
    let direct = command::run(quiet("sh").args(["-c", &direct])).ok();
    let inside = script("/mnt/mount_call", "/tmp/m");
    let inside = stage.run(&["--device", &device.0], &inside).ok();
    let pairs = direct.lines().zip(inside.lines());
    let other: Vec<_> = pairs.filter(|(direct, inside)| direct != inside).collect();
    assert!(other.is_empty() && direct.contains("ok"), "{kind}: {other:?}");
    assert_eq!(direct.lines().count(), inside.lines().count(), "{kind}: {inside}");
    drop(device);
    if !maker.is_empty() {
        std::fs::remove_file(image).unwrap();
    }
}

/// Hints of the kernel's ext4, which fuse2fs does not know, and options that mean something.
#[test]
fn a_helper_mounts_with_hints_and_without_what_it_cannot_do() {
    let stage = Stage::new("mount.enabled = true\nmount.fuse = { ext4 = \"fuse2fs\" }\n");
    let hints =
        "usrquota,nobarrier,delalloc,resuid=5,stripe=16,data=ordered,commit=5,errors=continue";
    let script = format!(
        "try() {{ /mnt/mount_call /run/i/ext4 /tmp/m ext4 0 $1; }}
         try {hints}; umount m; try noload; ls m; umount m
         try grpid; try sb=8193; try data=nonsense; try no_such_option"
    );
    let text = stage.run(&["--device", "/dev/fuse"], &script).ok();
    assert_eq!(text, "ok\nok\nlost+found\nEINVAL\nEINVAL\nEINVAL\nEINVAL\n");
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("no helper of ext4 has the option"), "{said}");
}
