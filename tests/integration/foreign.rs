//! Filesystems of other systems, whose drivers not every kernel has: their options, one by one. Apart
//! from `mount`, because a guest has the drivers, and `mount` is left out there.

use crate::mount::Stage;
use crate::mount::options::compare;

const VFAT: &str = "uid=1000 gid=1000 uid=name umask=022 umask=9 dmask=077 fmask=133 allow_utime=20 \
    codepage=437 iocharset=ascii shortname=mixed check=r nfs=stale_rw tz=UTC time_offset=60 \
    time_offset=9999 quiet showexec debug usefree flush discard utf8 uni_xlate nonumtail=no rodir \
    posix nocase sys_immutable dos1xfloppy dotsOK=yes fat=32 conv=b blocksize=512 errors=remount-ro \
    errors=nonsense noload ro,sync lazytime";
const EXFAT: &str = "uid=1000 dmask=077 allow_utime=20 iocharset=utf8 codepage=437 namecase=1 namecase \
    discard utf8 utf8=1 debug sys_tz keep_last_dots zero_size_dir time_offset=60 time_offset=9999 \
    errors=remount-ro errors=nonsense quiet ro,sync";
const NTFS3: &str = "uid=1000 dmask=077 iocharset=utf8 nls=utf8 discard nodiscard sparse nosparse force \
    noforce hidden nohidden hide_dot_files nohide_dot_files hidedotfiles windows_names \
    nowindows_names showmeta noshowmeta acl noacl prealloc noprealloc case nocase nonocase \
    sys_immutable nosys_immutable noacsrules errors=continue quiet ro,sync";

#[test]
fn options_are_answered_as_the_kernel_answers_its_root() {
    let stage =
        Stage::new("mount.enabled = true\nmount.allowed = [\"vfat\", \"exfat\", \"ntfs3\"]\n");
    compare(&stage, ("vfat", &["mkfs.vfat"], VFAT));
    compare(&stage, ("exfat", &["mkfs.exfat"], EXFAT));
    compare(&stage, ("ntfs3", &["mkntfs", "-qFQ"], NTFS3));
    stage.leaves_nothing();
}
