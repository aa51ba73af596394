//! Requests that a filesystem always refuses. fuser's defaults would log a warning for each, and
//! containers choose how many they send.

/// Implements methods of [`fuser::Filesystem`] that always return this errno.
macro_rules! refuse {
    ($($errno:ident: $($name:ident)+;)+) => { $($( refuse!(@$name $errno); )+)+ };
    (@access $e:ident) => { refuse!(= access($e; fuser::AccessFlags) ReplyEmpty); };
    (@bmap $e:ident) => { refuse!(= bmap($e; u32, u64) ReplyBmap); };
    (@copy_file_range $e:ident) => {
        refuse!(= copy_file_range($e; FileHandle, u64, fuser::INodeNo, FileHandle, u64, u64,
            fuser::CopyFileRangeFlags) ReplyWrite);
    };
    (@create $e:ident) => { refuse!(= create($e; &OsStr, u32, u32, i32) ReplyCreate); };
    (@fallocate $e:ident) => { refuse!(= fallocate($e; FileHandle, u64, u64, i32) ReplyEmpty); };
    (@flush $e:ident) => { refuse!(= flush($e; FileHandle, fuser::LockOwner) ReplyEmpty); };
    (@fsync $e:ident) => { refuse!(= fsync($e; FileHandle, bool) ReplyEmpty); };
    (@fsyncdir $e:ident) => { refuse!(= fsyncdir($e; FileHandle, bool) ReplyEmpty); };
    (@getlk $e:ident) => {
        refuse!(= getlk($e; FileHandle, fuser::LockOwner, u64, u64, i32, u32) ReplyLock);
    };
    (@getxattr $e:ident) => { refuse!(= getxattr($e; &OsStr, u32) ReplyXattr); };
    (@ioctl $e:ident) => {
        refuse!(= ioctl($e; FileHandle, fuser::IoctlFlags, u32, &[u8], u32) ReplyIoctl);
    };
    (@link $e:ident) => { refuse!(= link($e; fuser::INodeNo, &OsStr) ReplyEntry); };
    (@listxattr $e:ident) => { refuse!(= listxattr($e; u32) ReplyXattr); };
    (@lseek $e:ident) => { refuse!(= lseek($e; FileHandle, i64, i32) ReplyLseek); };
    (@mkdir $e:ident) => { refuse!(= mkdir($e; &OsStr, u32, u32) ReplyEntry); };
    (@mknod $e:ident) => { refuse!(= mknod($e; &OsStr, u32, u32, u32) ReplyEntry); };
    (@open $e:ident) => { refuse!(= open($e; fuser::OpenFlags) ReplyOpen); };
    (@poll $e:ident) => {
        refuse!(= poll($e; FileHandle, fuser::PollNotifier, fuser::PollEvents, fuser::PollFlags)
            ReplyPoll);
    };
    (@readlink $e:ident) => { refuse!(= readlink($e;) ReplyData); };
    (@removexattr $e:ident) => { refuse!(= removexattr($e; &OsStr) ReplyEmpty); };
    (@rename $e:ident) => {
        refuse!(= rename($e; &OsStr, fuser::INodeNo, &OsStr, fuser::RenameFlags) ReplyEmpty);
    };
    (@rmdir $e:ident) => { refuse!(= rmdir($e; &OsStr) ReplyEmpty); };
    (@setattr $e:ident) => {
        refuse!(= setattr($e; Option<u32>, Option<u32>, Option<u32>, Option<u64>,
            Option<fuser::TimeOrNow>, Option<fuser::TimeOrNow>, Option<std::time::SystemTime>,
            Option<FileHandle>, Option<std::time::SystemTime>, Option<std::time::SystemTime>, Option<std::time::SystemTime>,
            Option<fuser::BsdFileFlags>) ReplyAttr);
    };
    (@setlk $e:ident) => {
        refuse!(= setlk($e; FileHandle, fuser::LockOwner, u64, u64, i32, u32, bool) ReplyEmpty);
    };
    (@setxattr $e:ident) => { refuse!(= setxattr($e; &OsStr, &[u8], i32, u32) ReplyEmpty); };
    (@symlink $e:ident) => { refuse!(= symlink($e; &OsStr, &std::path::Path) ReplyEntry); };
    (@unlink $e:ident) => { refuse!(= unlink($e; &OsStr) ReplyEmpty); };
    (@write $e:ident) => {
        refuse!(= write($e; FileHandle, u64, &[u8], fuser::WriteFlags, fuser::OpenFlags,
            Option<fuser::LockOwner>) ReplyWrite);
    };
    (= $name:ident($errno:ident; $($argument:ty),*) $reply:ident) => {
        fn $name(&self, _: &Request, _: fuser::INodeNo, $(_: $argument,)* reply: fuser::$reply) {
            reply.error(Errno::$errno);
        }
    };
}

pub(crate) use refuse;
