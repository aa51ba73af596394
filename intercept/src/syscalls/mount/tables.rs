//! The options of each filesystem, and what a helper makes of them.
//!
//! An option that no table has must never reach the kernel, which makes the superblock with the
//! host's rights. The names are those of the kernel's parsers up to Linux 6.18; the kernel checks
//! the values. A helper has options of its own and runs as the caller, so it gets what is not
//! listed here. Start reading at [`find`].

/// What a helper makes of an option of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByHelper {
    /// It has the same option.
    Pass,
    /// It has the option under another name.
    As(&'static str),
    /// A hint, or the default: the helper works without.
    Drop,
    /// It means something that no helper does.
    Refuse,
}

/// The values of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// None.
    Flag,
    /// A number.
    Number,
    /// One of these words.
    Word(&'static str),
    /// Anything.
    Any,
}

/// Names of options, their values, and what a helper makes of them.
type Row = (&'static str, Value, ByHelper);

use self::ByHelper::{As, Drop, Pass, Refuse};
use self::Value::{Any, Flag, Number, Word};

/// Options of the superblock of every filesystem.
pub(super) const COMMON: &[Row] =
    &[("ro rw sync async dirsync", Flag, Pass), ("lazytime nolazytime mand nomand", Flag, Drop)];
const EXT4: &[Row] = &[
    ("norecovery", Flag, Pass),
    ("noload", Flag, As("norecovery")),
    ("minixdf", Flag, Pass),
    ("bsddf nogrpid sysvgroups orlov oldalloc bh nobh nouid32 debug i_version", Flag, Drop),
    ("user_xattr acl noacl block_validity noblock_validity reservation noreservation", Flag, Drop),
    ("journal_checksum nojournal_checksum journal_async_commit nobarrier", Flag, Drop),
    ("delalloc nodelalloc mblk_io_submit nomblk_io_submit dioread_lock dioread_nolock", Flag, Drop),
    ("nodioread_nolock discard nodiscard noinit_itable inlinecrypt nowarn_on_error", Flag, Drop),
    ("nombcache no_mbcache prefetch_block_bitmaps no_prefetch_block_bitmaps", Flag, Drop),
    ("noauto_da_alloc nocheck usrquota grpquota prjquota quota noquota", Flag, Drop),
    ("commit min_batch_time max_batch_time stripe inode_readahead_blks", Number, Drop),
    ("journal_ioprio journal resuid resgid debug_want_extra_isize mb_optimize_scan", Number, Drop),
    ("barrier auto_da_alloc init_itable usrjquota grpjquota", Any, Drop),
    ("jqfmt", Word("vfsold vfsv0 vfsv1"), Drop),
    ("data", Word("journal ordered writeback"), Drop),
    ("data_err", Word("abort ignore"), Drop),
    ("errors", Word("continue remount-ro"), Drop),
    ("check", Word("none"), Drop),
    ("grpid bsdgroups nouser_xattr abort", Flag, Refuse),
    ("sb max_dir_size_kb", Number, Refuse),
    ("dax", Any, Refuse),
];
const XFS: &[Row] = &[
    ("norecovery", Flag, Pass),
    ("wsync noalign swalloc nouuid nogrpid sysvgroups inode64 inode32 ikeep noikeep", Flag, Drop),
    ("largeio nolargeio attr2 noattr2 filestreams discard nodiscard barrier nobarrier", Flag, Drop),
    ("delaylog nodelaylog lifetime nolifetime", Flag, Drop),
    ("quota noquota usrquota grpquota prjquota uquota gquota pquota qnoenforce", Flag, Drop),
    ("uqnoenforce gqnoenforce pqnoenforce", Flag, Drop),
    ("logbufs sunit swidth max_open_zones", Number, Drop),
    ("logbsize allocsize max_atomic_write", Any, Drop),
    ("grpid bsdgroups", Flag, Refuse),
    ("dax", Any, Refuse),
];
const BTRFS: &[Row] = &[
    (
        "acl noacl autodefrag noautodefrag barrier nobarrier clear_cache datacow nodatacow",
        Flag,
        Drop,
    ),
    ("datasum nodatasum nodiscard flushoncommit noflushoncommit inode_cache", Flag, Drop),
    ("noinode_cache rescan_uuid_tree nospace_cache treelog notreelog", Flag, Drop),
    ("user_subvol_rm_allowed enospc_debug noenospc_debug ssd nossd ssd_spread", Flag, Drop),
    ("nossd_spread check_int check_int_data skip_balance", Flag, Drop),
    ("commit metadata_ratio thread_pool check_int_print_mask", Number, Drop),
    ("compress compress-force discard max_inline space_cache", Any, Drop),
    ("degraded usebackuproot recovery norecovery nologreplay", Flag, Refuse),
    ("rescue subvol subvolid subvolrootid", Any, Refuse),
];
const FAT: &[Row] = &[
    ("uid gid umask dmask fmask", Any, Pass),
    ("allow_utime codepage time_offset iocharset shortname check nfs tz conv", Any, Drop),
    ("quiet showexec debug usefree flush discard utf8 uni_xlate nonumtail rodir posix", Any, Drop),
    ("numtail nocase sys_immutable dos1xfloppy dotsOK dots nodots fat blocksize", Any, Drop),
    ("errors", Word("continue remount-ro"), Drop),
];
const EXFAT: &[Row] = &[
    ("uid gid umask dmask fmask", Any, Pass),
    ("allow_utime iocharset codepage namecase", Any, Drop),
    ("discard utf8 debug sys_tz", Flag, Drop),
    ("errors", Word("continue remount-ro"), Drop),
    ("keep_last_dots zero_size_dir", Flag, Refuse),
    ("time_offset", Number, Refuse),
];
const NTFS: &[Row] = &[
    ("uid gid umask dmask fmask", Any, Pass),
    ("windows_names hide_dot_files force acl", Any, Pass),
    ("showmeta", Any, As("show_sys_files")),
    ("nohidden", Any, As("hide_hid_files")),
    ("hidedotfiles", Any, As("hide_dot_files")),
    ("iocharset nls discard nodiscard sparse nosparse prealloc noprealloc delalloc", Any, Drop),
    ("noacl acsrules noacsrules no_acs_rules case nonocase noforce noshowmeta hidden", Any, Drop),
    ("nosys_immutable nohide_dot_files nohidedotfiles nowindows_names", Any, Drop),
    ("errors", Word("continue remount-ro"), Drop),
    ("sys_immutable nocase case_sensitive", Any, Refuse),
];
const SQUASHFS: &[Row] = &[("errors", Word("continue"), Drop), ("threads", Any, Drop)];
const EROFS: &[Row] = &[
    ("user_xattr nouser_xattr acl noacl directio", Flag, Drop),
    ("cache_strategy", Any, Drop),
    ("dax fsoffset", Any, Refuse),
];
const ISO9660: &[Row] = &[
    ("norock nojoliet unhide cruft overriderockperm utf8 hide showassoc", Flag, Drop),
    ("check map block iocharset", Any, Drop),
    ("session sbsector mode dmode uid gid", Any, Refuse),
];
const UDF: &[Row] = &[
    ("novrs nostrict unhide undelete noadinicb adinicb shortad longad utf8", Flag, Drop),
    ("bs iocharset", Any, Drop),
    ("uid gid umask mode dmode", Any, Pass),
    ("session lastblock anchor volume partition fileset rootdir", Any, Refuse),
];
const F2FS: &[Row] = &[
    (
        "background_gc mode alloc_mode fsync_mode whint_mode discard_unit memory active_logs",
        Any,
        Drop,
    ),
    ("disable_roll_forward norecovery nodiscard discard noheap heap nouser_xattr", Flag, Drop),
    ("user_xattr inline_xattr noinline_xattr noacl acl disable_ext_identify", Flag, Drop),
    ("inline_data noinline_data inline_dentry noinline_dentry flush_merge", Flag, Drop),
    ("noflush_merge barrier nobarrier fastboot extent_cache noextent_cache", Flag, Drop),
    ("age_extent_cache data_flush quota noquota usrquota grpquota prjquota", Flag, Drop),
    ("inlinecrypt checkpoint_merge nocheckpoint_merge compress_chksum atgc", Flag, Drop),
    ("gc_merge nogc_merge nat_bits compress_cache", Flag, Drop),
    ("inline_xattr_size resgid resuid reserve_root reserve_node io_bits checkpoint", Any, Drop),
    ("compress_algorithm compress_log_size compress_extension", Any, Drop),
    ("nocompress_extension compress_mode jqfmt usrjquota grpjquota prjjquota", Any, Drop),
    ("errors", Word("continue remount-ro"), Drop),
];
const HFS: &[Row] = &[
    ("uid gid umask file_umask dir_umask", Any, Pass),
    ("creator type session part nls quiet codepage iocharset force", Any, Drop),
    ("decompose nodecompose barrier nobarrier", Flag, Drop),
];
const JFS: &[Row] = &[
    ("iocharset resize errors uid gid umask discard minlen", Any, Drop),
    ("integrity nointegrity nodiscard quota noquota usrquota grpquota", Flag, Drop),
];
const NILFS2: &[Row] = &[
    ("barrier nobarrier discard nodiscard norecovery", Flag, Drop),
    ("errors order", Any, Drop),
    ("cp", Number, Refuse),
];
const UFS: &[Row] = &[("ufstype onerror", Any, Refuse)];
const HUGETLBFS: &[Row] = &[("gid min_size mode nr_inodes pagesize size uid", Any, Pass)];

const NFS: &[Row] = &[
    ("vers nfsvers minorversion proto mountproto mountvers v2 v3 v4 v4.0 v4.1 v4.2", Any, Pass),
    ("tcp udp rdma soft hard softerr softreval intr nointr posix ac noac cto nocto", Any, Pass),
    ("lock nolock resvport noresvport rdirplus nordirplus acl noacl bg fg", Any, Pass),
    ("sharecache nosharecache trunkdiscovery notrunkdiscovery migration nomigration", Any, Pass),
    ("timeo retrans retry rsize wsize bsize namlen acregmin acregmax acdirmin", Any, Pass),
    ("acdirmax actimeo local_lock lookupcache sec nconnect max_connect write", Any, Pass),
    ("fatal_neterrors clientaddr addr mountaddr mounthost port", Any, Pass),
];
const CIFS: &[Row] = &[
    ("ip addr unc user username pass password password2 domain dom workgroup", Any, Pass),
    ("vers ver sec uid gid forceuid noforceuid forcegid noforcegid file_mode", Any, Pass),
    ("dir_mode iocharset rsize wsize bsize actimeo acregmax acdirmax closetimeo", Any, Pass),
    ("echo_interval max_credits max_channels handletimeout snapshot cache reparse", Any, Pass),
    ("soft hard seal sign guest nounix unix linux nolinux serverino noserverino", Flag, Pass),
    ("nobrl brl noperm perm mapchars nomapchars mapposix nomapposix mfsymlinks", Flag, Pass),
    ("nodfs nocase ignorecase posix posixpaths noposixpaths setuids nosetuids", Flag, Pass),
    ("dynperm nodynperm idsfromsid cifsacl modefromsid noblocksend nosharesock", Flag, Pass),
    ("strictsync nostrictsync sfu handlecache nohandlecache nolease", Flag, Pass),
    ("resilienthandles noresilienthandles persistenthandles nopersistenthandles", Flag, Pass),
    ("multichannel nomultichannel locallease rdma acl noacl user_xattr nouser_xattr", Flag, Pass),
    ("symlink symlinkroot esize nativesocket port", Any, Pass),
];
const NINE_P: &[Row] = &[
    ("trans msize cache access version debug dfltuid dfltgid locktimeout port", Any, Pass),
    ("noextend nodevmap privport posixacl directio ignoreqv noxattr", Any, Pass),
];
const CEPH: &[Row] = &[
    ("name secret mon_addr ip fsid fs mds_namespace rsize wsize rasize ms_mode", Any, Pass),
    ("readdir_max_entries readdir_max_bytes caps_wanted_delay_min", Any, Pass),
    ("caps_wanted_delay_max caps_max write_congestion_kb snapdirname", Any, Pass),
    ("recover_session osdtimeout osdkeepalive mount_timeout osd_idle_ttl", Any, Pass),
    ("osd_request_timeout crc nocrc dirstat nodirstat rbytes norbytes asyncreaddir", Any, Pass),
    ("noasyncreaddir dcache nodcache ino32 noino32 acl noacl quotadf noquotadf", Any, Pass),
    ("copyfrom nocopyfrom wsync nowsync pagecache nopagecache share noshare", Any, Pass),
    ("cephx_require_signatures nocephx_require_signatures cephx_sign_messages", Any, Pass),
    ("nocephx_sign_messages tcp_nodelay notcp_nodelay abort_on_full sparseread", Any, Pass),
];
const AFS: &[Row] = &[("autocell flock", Any, Pass)];
const ORANGEFS: &[Row] = &[("intr acl local_lock", Any, Pass)];

/// The table of each type. Other types have the common options alone.
const TABLES: &[(&str, &[Row])] = &[
    ("ext2 ext3 ext4", EXT4),
    ("xfs", XFS),
    ("btrfs", BTRFS),
    ("vfat msdos", FAT),
    ("exfat", EXFAT),
    ("ntfs ntfs3", NTFS),
    ("squashfs", SQUASHFS),
    ("erofs", EROFS),
    ("iso9660", ISO9660),
    ("udf", UDF),
    ("f2fs", F2FS),
    ("hfs hfsplus hpfs", HFS),
    ("jfs", JFS),
    ("nilfs2", NILFS2),
    ("ufs", UFS),
    ("hugetlbfs", HUGETLBFS),
    ("nfs nfs4", NFS),
    ("cifs smb3", CIFS),
    ("9p", NINE_P),
    ("ceph", CEPH),
    ("afs", AFS),
    ("orangefs", ORANGEFS),
];

/// Options whose value the kernel or the server knows better. mount.nfs and mount.cifs add them to
/// what the caller gave: the kernel asks the server's rpcbind for the port, and takes the folder
/// from the source.
const FOUND_BY_THE_KERNEL: [(&str, &str); 4] = [
    ("nfs nfs4", "mountport"),
    ("cifs smb3", "prefixpath"),
    ("nfs nfs4", "sloppy"),
    ("cifs smb3", "sloppy"),
];

/// Returns what the tables have for an option of a filesystem.
pub(super) fn find(filesystem: &str, key: &[u8]) -> Option<(Value, ByHelper)> {
    let key = std::str::from_utf8(key).ok()?;
    let own = TABLES.iter().find(|(types, _)| has(types, filesystem)).map(|(_, table)| *table);
    let rows = own.unwrap_or_default().iter().chain(COMMON);
    rows.copied().find(|(names, ..)| has(names, key)).map(|(_, value, helper)| (value, helper))
}

/// True for an option that is left out for the kernel.
pub(super) fn is_found_by_the_kernel(filesystem: &str, key: &[u8]) -> bool {
    FOUND_BY_THE_KERNEL.iter().any(|(types, name)| has(types, filesystem) && name.as_bytes() == key)
}

fn has(words: &str, word: &str) -> bool {
    words.split(' ').any(|one| one == word)
}

impl Value {
    /// True if an option may have this value.
    pub(super) fn takes(self, value: Option<&[u8]>) -> bool {
        match (self, value.map(std::str::from_utf8)) {
            (Any, _) | (Flag, None) => true,
            (Number, Some(Ok(value))) => {
                let digits = value.strip_prefix("0x").unwrap_or(value);
                !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            }
            (Word(words), Some(Ok(value))) => has(words, value),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_is_listed_twice() {
        for (types, table) in TABLES {
            let names = table.iter().chain(COMMON).flat_map(|(names, ..)| names.split(' '));
            let mut names: Vec<_> = names.collect();
            names.sort_unstable();
            let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
            assert_eq!(twice, None, "{types}");
            assert!(!names.contains(&""), "{types}");
        }
    }

    #[test]
    fn options_belong_to_their_filesystem() {
        assert_eq!(find("ext4", b"noload"), Some((Flag, As("norecovery"))));
        assert_eq!(find("ext2", b"stripe"), Some((Number, Drop)));
        assert_eq!(find("xfs", b"noload"), None);
        assert_eq!(find("minix", b"ro"), Some((Flag, Pass)));
        assert_eq!(find("minix", b"noload"), None);
        assert_eq!(find("ext4", b"\xff"), None);
    }

    #[test]
    fn values_are_checked_as_by_the_kernel() {
        assert!(Number.takes(Some(b"0x40")) && Number.takes(Some(b"5")) && !Number.takes(None));
        assert!(!Number.takes(Some(b"")) && !Number.takes(Some(b"many")));
        assert!(Flag.takes(None) && !Flag.takes(Some(b"1")));
        assert!(Word("a b").takes(Some(b"b")) && !Word("a b").takes(Some(b"c")));
        assert!(Any.takes(None) && Any.takes(Some(b"\xff")));
    }
}
