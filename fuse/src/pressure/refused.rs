//! The requests that `/proc/pressure` always refuses, with the kernel's errors. fuser's defaults
//! would log a warning for each, and containers choose how many they send. Included in `mod.rs` as
//! a macro.

/// Implements the methods of [`fuser::Filesystem`] that always refuse.
macro_rules! refuse_the_rest {
    () => {
        refuse_the_rest! {
            ENOENT: mknod(&OsStr, u32, u32, u32) -> ReplyEntry;
            ENOENT: mkdir(&OsStr, u32, u32) -> ReplyEntry;
            EPERM: unlink(&OsStr) -> ReplyEmpty;
            EPERM: rmdir(&OsStr) -> ReplyEmpty;
            ENOENT: symlink(&OsStr, &std::path::Path) -> ReplyEntry;
            EPERM: rename(&OsStr, INodeNo, &OsStr, fuser::RenameFlags) -> ReplyEmpty;
            ENOENT: link(INodeNo, &OsStr) -> ReplyEntry;
            ENOENT: create(&OsStr, u32, u32, i32) -> fuser::ReplyCreate;
            EOPNOTSUPP: setxattr(&OsStr, &[u8], i32, u32) -> ReplyEmpty;
            EOPNOTSUPP: removexattr(&OsStr) -> ReplyEmpty;
            EINVAL: readlink() -> ReplyData;
            ENOSYS: fsyncdir(FileHandle, bool) -> ReplyEmpty;
            ENOSYS: bmap(u32, u64) -> fuser::ReplyBmap;
            ENOTTY: ioctl(FileHandle, fuser::IoctlFlags, u32, &[u8], u32) -> fuser::ReplyIoctl;
            EOPNOTSUPP: fallocate(FileHandle, u64, u64, i32) -> ReplyEmpty;
        }
    };
    ($($errno:ident: $name:ident($($argument:ty),*) -> $reply:ty;)*) => {$(
        fn $name(&self, _: &Request, _: INodeNo, $(_: $argument,)* reply: $reply) {
            reply.error(Errno::$errno);
        }
    )*};
}

pub(super) use refuse_the_rest;
