//! The unsafe code of this package: calls that neither nix nor rustix offers, in a typed form.
//!
//! Every function is sound for all arguments. Lengths are those of slices, structures that hold an
//! address are filled here, and an ioctl is sent only to a file of the kind that defines its number.
//! Nothing here decides anything. The other files of `sys` document the calls and are what the rest
//! of the program uses; start there.
#![allow(unsafe_code, reason = "system calls and ioctls without a safe form in nix or rustix")]

use std::ffi::{CStr, c_int, c_long, c_void};
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use libseccomp_sys::{
    SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, SECCOMP_GET_NOTIF_SIZES,
    SECCOMP_SET_MODE_FILTER, seccomp_notif_sizes,
};
use nix::sched::CloneFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;
use rustix::fs::{FileType, FsWord, PROC_SUPER_MAGIC, fstat, fstatfs, major, minor};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::errno::to_errno;
use super::uapi::{BpfAttach, BpfById, BpfInfo, BpfLoad, BpfQuery, LoopConfig, LoopInfo};

/// Returns the result of a call of the C library, or the error that it left in `errno`.
fn check<T: PartialEq + From<i8>>(result: T) -> Result<T, Errno> {
    if result == T::from(-1) { Err(to_errno(io::Error::last_os_error())) } else { Ok(result) }
}

// ---------------------------------------------------------------------------------- descriptors

/// Returns the descriptor that a call made, or its error.
///
/// # Safety
/// `result` was just returned by a call that makes a descriptor, and nothing else owns that.
unsafe fn own(result: c_long) -> Result<OwnedFd, Errno> {
    let number = RawFd::try_from(check(result)?).map_err(|_| Errno::BADF)?;
    // SAFETY: the call succeeded, so the number is open, and the caller promises that it has no owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes a descriptor that came with `execve`, and sets `FD_CLOEXEC`.
///
/// Returns `None` for the standard descriptors, for a number that is not open, and for one that has
/// the flag already: it was opened or taken by this process, which opens everything with `O_CLOEXEC`.
pub fn take(number: RawFd) -> Option<OwnedFd> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if number <= libc::STDERR_FILENO {
        return None;
    }
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the number is not -1. It is used for two calls of fcntl(2), which return EBADF if it is
    // not open, and change no more than the flag of a descriptor that has no owner here.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if fcntl_getfd(borrowed).ok()?.contains(FdFlags::CLOEXEC) {
        return None;
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok()?;
    // SAFETY: the number is open. It lacked FD_CLOEXEC, so it came with execve and has no owner in
    // this process; the flag, set under the lock, keeps a second call from taking it again.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `close_range(2)`. The caller keeps the rule of [`super::close_range`]: what is closed is not used
/// by a value that still owns it.
pub(super) fn close_range(first: u32, last: u32, flags: u32) -> Result<(), Errno> {
    // SAFETY: the call takes three integers and no address.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(result).map(drop)
}

/// Closes a descriptor by its number. The rule of [`close_range`] holds.
pub(super) fn close(number: c_int) {
    // SAFETY: the call takes an integer and no address, and returns EBADF if the number is not open.
    unsafe { libc::close(number) };
}

/// Sets `FD_CLOEXEC` of a descriptor by its number.
pub(super) fn set_close_on_exec(number: c_int) {
    // SAFETY: the call takes three integers and no address, and returns EBADF if the number is not
    // open.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
}

// --------------------------------------------------------------------------------------- ioctls

/// The files for which a request number is defined. Drivers may give one number different meanings.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// The request is handled before the driver or filesystem sees it.
    Any,
    BlockDevice,
    LoopDevice,
    LoopControl,
    Namespace,
    Procfs,
}

/// `NSFS_MAGIC` of include/uapi/linux/magic.h.
const NSFS_MAGIC: FsWord = 0x6e73_6673;

impl Target {
    fn check(self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let device = |wanted, ours: fn(u32, u32) -> bool| {
            let stat = fstat(file)?;
            let is_ours = ours(major(stat.st_rdev), minor(stat.st_rdev));
            Ok(is_ours && FileType::from_raw_mode(stat.st_mode) == wanted)
        };
        let filesystem = |magic| Ok(fstatfs(file)?.f_type == magic);
        let is_target = match self {
            Self::Any => Ok(true),
            Self::BlockDevice => device(FileType::BlockDevice, |_, _| true),
            // LOOP_MAJOR of include/uapi/linux/major.h.
            Self::LoopDevice => device(FileType::BlockDevice, |major, _| major == 7),
            // MISC_MAJOR, and LOOP_CTRL_MINOR of include/linux/miscdevice.h.
            Self::LoopControl => {
                device(FileType::CharacterDevice, |major, minor| (major, minor) == (10, 237))
            }
            Self::Namespace => filesystem(NSFS_MAGIC),
            Self::Procfs => filesystem(PROC_SUPER_MAGIC),
        };
        if is_target? { Ok(()) } else { Err(Errno::NOTTY) }
    }
}

/// A request whose argument is the address of a `T`. Only this file makes one.
#[derive(Debug)]
pub(super) struct Request<T> {
    number: libc::Ioctl,
    target: Target,
    argument: PhantomData<fn(T)>,
}

impl<T> Request<T> {
    /// The kernel reads and writes at most one `T` for this number on such a file, every value that it
    /// writes is valid, and it takes no field for an address unless that field is private to its file.
    const fn new(number: libc::Ioctl, target: Target) -> Self {
        Self { number, target, argument: PhantomData }
    }
}

/// Marks a request without argument that returns a new descriptor.
#[derive(Debug)]
pub(super) enum Descriptor {}

// include/uapi/linux/loop.h and include/uapi/linux/fs.h
pub(super) const LOOP_CONFIGURE: Request<LoopConfig> = Request::new(0x4c0a, Target::LoopDevice);
pub(super) const LOOP_CTL_GET_FREE: Request<()> = Request::new(0x4c82, Target::LoopControl);
pub(super) const LOOP_GET_STATUS64: Request<LoopInfo> = Request::new(0x4c05, Target::LoopDevice);
pub(super) const BLKROGET: Request<c_int> = Request::new(0x125e, Target::BlockDevice);
// The number says that it reads and writes an int; the kernel does neither.
pub(super) const FIFREEZE: Request<()> =
    Request::new(nix::request_code_readwrite!(b'X', 119, size_of::<c_int>()) as _, Target::Any);
pub(super) const FITHAW: Request<()> =
    Request::new(nix::request_code_readwrite!(b'X', 120, size_of::<c_int>()) as _, Target::Any);
pub(super) const PROCMAP_QUERY: Request<MappingQuery> = Request::new(
    nix::request_code_readwrite!(b'f', 17, size_of::<MappingQuery>()) as _,
    Target::Procfs,
);
// include/uapi/linux/nsfs.h
pub(super) const NS_GET_USERNS: Request<Descriptor> =
    Request::new(nix::request_code_none!(0xb7, 0x1) as _, Target::Namespace);
pub(super) const NS_GET_PARENT: Request<Descriptor> =
    Request::new(nix::request_code_none!(0xb7, 0x2) as _, Target::Namespace);
pub(super) const NS_GET_OWNER_UID: Request<u32> =
    Request::new(nix::request_code_none!(0xb7, 0x4) as _, Target::Namespace);
/// The number says that an int is read, but the argument is the id itself.
const NS_GET_PID_FROM_PIDNS: libc::Ioctl =
    nix::request_code_read!(0xb7, 0x6, size_of::<c_int>()) as _;

/// Sends a request with the address of its argument. Returns what ioctl(2) returns.
pub(super) fn ioctl<T>(
    file: BorrowedFd<'_>,
    request: &Request<T>,
    argument: &mut T,
) -> Result<c_int, Errno> {
    request.target.check(file)?;
    // SAFETY: `file` is of the kind for which `Request::new` states that the kernel reads and writes
    // one `T`; that one is borrowed exclusively until the call returns.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), request.number, std::ptr::from_mut(argument)) };
    check(result)
}

/// Sends a request that returns a new descriptor.
pub(super) fn ioctl_descriptor(
    file: BorrowedFd<'_>,
    request: &Request<Descriptor>,
) -> Result<OwnedFd, Errno> {
    request.target.check(file)?;
    // SAFETY: the request has no argument, so the kernel takes 0 for no address.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request.number, 0) };
    // SAFETY: the requests of this type return a descriptor that they made.
    unsafe { own(result.into()) }
}

/// Returns the id, in our own pid namespace, of the thread that is called `id` in `namespace`, an open
/// `/proc/<pid>/ns/pid` (`NS_GET_PID_FROM_PIDNS`, Linux 6.11).
///
/// # Errors
/// ESRCH: there is no such thread, or it is not visible from our namespace. ENOTTY: `namespace` is
/// another file, or the kernel is older.
pub fn pid_from_namespace(namespace: BorrowedFd<'_>, id: i32) -> Result<i32, Errno> {
    Target::Namespace.check(namespace)?;
    // SAFETY: nsfs takes the argument for a number and uses no memory of this process.
    let found = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PID_FROM_PIDNS, id) };
    check(found)
}

/// `struct procmap_query` of include/uapi/linux/fs.h. Both addresses in it stay null.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct MappingQuery {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name_address: u64,
    build_id_address: u64,
}

impl MappingQuery {
    pub(super) fn new(address: u64, flags: u64) -> Self {
        Self { size: size_of::<Self>() as u64, flags, address, ..Self::default() }
    }

    pub(super) const fn end(&self) -> u64 {
        self.end
    }
}

// ----------------------------------------------------------------------------- files and mounts

/// Handles of control groups have eight bytes.
const LONGEST_HANDLE: usize = 32;

/// `struct file_handle`, as the kernel filled it.
#[repr(C)]
#[derive(Debug)]
pub(super) struct FileHandle {
    length: u32,
    kind: i32,
    bytes: [u8; LONGEST_HANDLE],
}

/// `name_to_handle_at(2)` for an open file.
pub(super) fn name_to_handle(file: BorrowedFd<'_>) -> Result<FileHandle, Errno> {
    let bytes = [0; LONGEST_HANDLE];
    let mut handle = FileHandle { length: LONGEST_HANDLE as u32, kind: 0, bytes };
    let mut mount_id: c_int = 0;
    // SAFETY: the path is a C string. The kernel writes `length` bytes at most after the two fields,
    // which the structure has, and one int.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    check(result).map(|_| handle)
}

/// `open_by_handle_at(2)` for a folder.
pub(super) fn open_folder(mount: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the kernel reads `length` bytes after the two fields, no more than the structure has:
    // the field is private and was written by name_to_handle_at, which succeeded.
    let result = unsafe {
        let handle = std::ptr::from_ref(handle);
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), handle, flags)
    };
    // SAFETY: open_by_handle_at returns a descriptor that it made.
    unsafe { own(result) }
}

/// `mount_setattr(2)` for an open mount, and with `AT_RECURSIVE` in the flags for those below it.
pub(super) fn mount_setattr(
    mount: BorrowedFd<'_>,
    flags: c_int,
    attributes: &libc::mount_attr,
) -> Result<(), Errno> {
    // SAFETY: the path is a C string. The kernel reads as many bytes of the structure as its size,
    // writes none, and finds no address in it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// The number of `setxattrat(2)`: all architectures count alike since Linux 5.0.
pub(super) const SETXATTRAT: c_long = libc::SYS_mount_setattr - 442 + 463;

/// Calls `setxattrat(2)` with arguments that the kernel refuses with EINVAL if it has the call.
pub(super) fn probe_setxattrat() -> Option<Errno> {
    let nothing = null::<u8>();
    // SAFETY: all addresses are null, and the flags do not exist: the kernel follows no address.
    let result =
        unsafe { libc::syscall(SETXATTRAT, -1, nothing, u32::MAX, nothing, nothing, 0usize) };
    check(result).err()
}

// ------------------------------------------------------------------------ threads and processes

/// Fills `mask` with the processors that a thread may run on and returns how many bytes the kernel
/// wrote (`sched_getaffinity(2)`). nix and rustix fix the mask at 1024 processors and hide that.
///
/// # Errors
/// ESRCH: there is no such thread. EINVAL: the mask is too short for this machine.
pub fn sched_getaffinity(tid: i32, mask: &mut [u64]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most as many bytes as the slice has, and any bits are a u64.
    let written = unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, tid, size_of_val(mask), mask.as_mut_ptr())
    };
    check(written).map(|written| usize::try_from(written).unwrap_or(0))
}

/// `sched_setattr(2)`. Sets the size in the structure itself.
pub(super) fn sched_setattr(tid: i32, mut attributes: libc::sched_attr) -> Result<(), Errno> {
    attributes.size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the kernel reads as many bytes as the field `size` says, which is the size of the
    // structure, and writes that field at most. There is no address in it.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw mut attributes, 0u32) };
    check(result).map(drop)
}

/// `sched_setscheduler(2)`.
pub(super) fn sched_setscheduler(tid: i32, policy: i32, priority: i32) -> Result<(), Errno> {
    let priority: c_int = priority;
    // SAFETY: the kernel reads one `struct sched_param`, which is one int.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, tid, policy, &raw const priority) };
    check(result).map(drop)
}

/// `sched_getscheduler(2)`.
pub(super) fn sched_getscheduler(tid: i32) -> Result<c_int, Errno> {
    // SAFETY: the call takes an integer and no address.
    let policy = check(unsafe { libc::syscall(libc::SYS_sched_getscheduler, tid) })?;
    c_int::try_from(policy).map_err(|_| Errno::OVERFLOW)
}

/// `ioprio_set(2)` with `IOPRIO_WHO_PROCESS`.
pub(super) fn ioprio_set(tid: i32, priority: u32) -> Result<(), Errno> {
    // include/uapi/linux/ioprio.h
    const ONE_THREAD: c_int = 1;
    // SAFETY: the call takes integers and no address.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, ONE_THREAD, tid, priority) };
    check(result).map(drop)
}

/// True if these threads share their table of descriptors (`kcmp(2)`, `CONFIG_KCMP`).
///
/// # Errors
/// ESRCH: one of them is gone. ENOSYS: the kernel has no kcmp(2).
pub fn shared(one: i32, other: i32) -> Result<bool, Errno> {
    // include/uapi/linux/kcmp.h
    const KCMP_FILES: c_int = 2;
    // SAFETY: the call takes integers and no address.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) };
    check(order).map(|order| order == 0)
}

/// Gives all signals their default actions, those that programs may define (`SIGRTMIN` …) too.
pub(super) fn default_actions() {
    // `struct sigaction` of the kernel with SIG_DFL, no flags and no mask is all zeros, and shorter
    // on every architecture. The C library refuses to set the signals that it uses itself.
    let default = [0u64; 8];
    for number in 1..=64 {
        // SAFETY: the default action runs no code of this process, and the kernel only reads the
        // structure. SIGKILL and SIGSTOP are refused with EINVAL.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                c_long::from(number),
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
}

/// Gives a signal its default action.
pub(super) fn default_action(signal: Signal) -> Result<(), Errno> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this process.
    unsafe { sigaction(signal, &default) }.map(drop).map_err(to_errno)
}

/// `fork(2)`, or `clone(2)` with `CLONE_PARENT` so that the child's parent is this process's own.
/// Returns `None` in the child.
pub(super) fn fork(for_parent: bool) -> io::Result<Option<Pid>> {
    refuse_threads()?;
    let child = if for_parent {
        let flags = c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
        // The stack comes first there (clone(2)). A stack of 0 is the caller's.
        let order = if cfg!(target_arch = "s390x") { [0, flags] } else { [flags, 0] };
        // SAFETY: without CLONE_VM this is fork(2): the child has a copy of the memory and of this
        // stack. This process has one thread, so no lock in the copy is held by another one. The
        // C library's record of the thread id stays the parent's; nothing here uses that.
        unsafe { libc::syscall(libc::SYS_clone, order[0], order[1], 0usize, 0usize, 0usize) }
    } else {
        // SAFETY: this process has one thread, so nothing in the child's copy of the memory is in
        // the middle of a change, and no lock in it is held by another one.
        unsafe { libc::fork() }.into()
    };
    let child = i32::try_from(check(child)?).map_err(io::Error::other)?;
    Ok((child != 0).then(|| Pid::from_raw(child)))
}

/// An error unless this process has exactly one thread.
fn refuse_threads() -> io::Result<()> {
    // unshare(2): no effect in a process with one thread, EINVAL in one with more.
    let threads = match nix::sched::unshare(CloneFlags::CLONE_THREAD) {
        Ok(()) => return Ok(()),
        // A seccomp filter may forbid the call.
        Err(_) => std::fs::read_dir("/proc/self/task")?.count(),
    };
    if threads == 1 {
        return Ok(());
    }
    Err(io::Error::other(format!("this process has {threads} threads and cannot fork")))
}

/// Starts a child that calls `getpid` of the x32 ABI and exits with 0 if that succeeds. A process with
/// threads may call this.
pub(super) fn fork_x32_getpid() -> Result<rustix::process::Pid, Errno> {
    /// `getpid` with `__X32_SYSCALL_BIT`.
    const GETPID: c_long = 0x4000_0000 | 39;
    // SAFETY: the child makes three system calls and ends. It takes no lock and allocates nothing, so
    // it needs nothing that another thread may have held.
    let child = check(unsafe { libc::fork() })?;
    let Some(child) = rustix::process::Pid::from_raw(child) else {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel reads one rlimit, which lives until the call returns; the other two calls
        // have no address. Without the limit a core file is left if a filter kills this process.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            libc::_exit(i32::from(libc::syscall(GETPID) <= 0))
        }
    };
    Ok(child)
}

/// `mallopt(M_ARENA_TEST)` of glibc with the largest number. Does nothing with another C library.
pub(super) fn limit_arena_test() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    {
        refuse_threads()?;
        // SAFETY: mallopt(3) takes two numbers. It is not safe beside threads that allocate; there
        // are none.
        if unsafe { libc::mallopt(libc::M_ARENA_TEST, i32::MAX) } == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
    }
    Ok(())
}

/// `malloc_trim` of glibc. Does nothing with another C library.
pub(super) fn trim_heaps() {
    // SAFETY: malloc_trim(3) takes a number, and locks each heap before it looks at it.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

// -------------------------------------------------------------------------------------- seccomp

/// Returns the kernel's sizes of `struct seccomp_notif` and the two structures that go with it.
///
/// # Errors
/// The kernel has no user notification (before 5.0, or built without).
pub fn notification_sizes() -> Result<seccomp_notif_sizes, Errno> {
    let mut sizes =
        seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
    // SAFETY: the kernel writes one structure of this type.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes) };
    check(result).map(|_| sizes)
}

/// Installs a filter in the calling thread and returns its listener. Allocates nothing: it may be
/// called between fork and exec. libseccomp keeps the listener in a variable of the whole process.
///
/// # Errors
/// EACCES without CAP_SYS_ADMIN and without no_new_privs, EBUSY if a filter of this thread has a
/// listener already, EINVAL for a program that the kernel refuses.
pub fn install_with_listener(program: &[libc::sock_filter]) -> Result<OwnedFd, Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        // The kernel only reads it; the type is shared with calls that write.
        filter: program.as_ptr().cast_mut(),
    };
    // Without SPEC_ALLOW, kernels before 5.16 would slow the whole program down with SSBD.
    let flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the kernel copies `len` instructions, which are those of the slice.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    // SAFETY: with NEW_LISTENER the call returns the listener that it made.
    unsafe { own(result) }
}

// ------------------------------------------------------------------------------------------ bpf

/// `bpf(2)`.
///
/// # Safety
/// All addresses in the attribute are those of memory that the kernel may use as the command says.
unsafe fn bpf<A>(command: c_int, attribute: &mut A) -> Result<c_long, Errno> {
    // SAFETY: the kernel reads and writes no more of the attribute than the size that it is told; the
    // caller answers for the addresses in it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<A>())
    };
    check(result)
}

/// `BPF_PROG_LOAD`. The addresses and sizes in `attribute` are replaced by those of the slices.
/// `log_size` is how much of the log the kernel may use.
pub(super) fn bpf_load(
    mut attribute: BpfLoad,
    instructions: &[u64],
    license: &CStr,
    log_size: u32,
    log: Option<&mut [u8]>,
) -> Result<OwnedFd, Errno> {
    let log = match log {
        Some(log) if (log_size as usize) <= log.len() => log.as_mut_ptr(),
        Some(_) => return Err(Errno::INVAL),
        None => null_mut(),
    };
    attribute.count = u32::try_from(instructions.len()).map_err(|_| Errno::TOOBIG)?;
    attribute.instructions = instructions.as_ptr().expose_provenance() as u64;
    attribute.license = license.as_ptr().expose_provenance() as u64;
    attribute.log_size = log_size;
    attribute.log = log.expose_provenance() as u64;
    // SAFETY: the kernel reads `count` instructions of eight bytes and a C string, and writes
    // `log_size` bytes of the log at most, which it has. Without a log its address is null.
    let result = unsafe { bpf(5, &mut attribute) }?;
    // SAFETY: BPF_PROG_LOAD returns a descriptor that it made.
    unsafe { own(result) }
}

/// `BPF_PROG_ATTACH`.
pub(super) fn bpf_attach(mut attribute: BpfAttach) -> Result<(), Errno> {
    // SAFETY: there are no addresses in it.
    unsafe { bpf(8, &mut attribute) }.map(drop)
}

/// `BPF_PROG_DETACH`.
pub(super) fn bpf_detach(mut attribute: BpfAttach) -> Result<(), Errno> {
    // SAFETY: there are no addresses in it.
    unsafe { bpf(9, &mut attribute) }.map(drop)
}

/// `BPF_PROG_QUERY`. Fills `ids` and returns the attribute with what the kernel wrote into it.
pub(super) fn bpf_query(mut attribute: BpfQuery, ids: &mut [u32]) -> Result<BpfQuery, Errno> {
    attribute.ids = ids.as_mut_ptr().expose_provenance() as u64;
    attribute.count = u32::try_from(ids.len()).map_err(|_| Errno::TOOBIG)?;
    // SAFETY: the kernel writes at most `count` numbers of four bytes, for which the slice has room.
    // The attribute has no other address.
    unsafe { bpf(16, &mut attribute) }?;
    Ok(attribute)
}

/// `BPF_PROG_GET_FD_BY_ID`.
pub(super) fn bpf_open(mut attribute: BpfById) -> Result<OwnedFd, Errno> {
    // SAFETY: there are no addresses in it.
    let result = unsafe { bpf(13, &mut attribute) }?;
    // SAFETY: BPF_PROG_GET_FD_BY_ID returns a descriptor that it made.
    unsafe { own(result) }
}

/// `BPF_OBJ_GET_INFO_BY_FD`. Returns the first `N` bytes of the kernel's structure.
pub(super) fn bpf_info<const N: usize>(object: BorrowedFd<'_>) -> Result<[u8; N], Errno> {
    // All zero: the kernel reads addresses and lengths from it and writes nothing to a length of 0.
    let mut info = [0; N];
    let mut attribute = BpfInfo {
        file: object.as_raw_fd().cast_unsigned(),
        length: u32::try_from(N).map_err(|_| Errno::TOOBIG)?,
        place: info.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes, which is the size of the array.
    unsafe { bpf(15, &mut attribute) }?;
    Ok(info)
}

// -------------------------------------------------------------------------------- shared memory

/// What can be in a [`Mapping`].
///
/// # Safety
/// Every bit pattern is a valid value. Its alignment is that of a page at most. It has no address in
/// it, and changes only through `&self`, in ways that are sound while another process does the same.
pub unsafe trait Lasting: Sync {}

// SAFETY: any bits are numbers, aligned to eight bytes, and each is read and written atomically.
unsafe impl<const N: usize> Lasting for [AtomicU64; N] {}

/// An array in a file, shared with all processes that map it.
#[derive(Debug)]
pub struct Mapping<T: Lasting> {
    start: NonNull<T>,
    count: usize,
}

// SAFETY: the mapping belongs to this value and to no thread; its elements may be moved between
// threads.
unsafe impl<T: Lasting + Send> Send for Mapping<T> {}
// SAFETY: a shared mapping gives nothing but `&T`, and `T` is `Sync`.
unsafe impl<T: Lasting> Sync for Mapping<T> {}

impl<T: Lasting> Mapping<T> {
    /// Returns how many bytes so many elements have, or `None` if no file has so many.
    pub fn length(count: usize) -> Option<u64> {
        let length = count.checked_mul(size_of::<T>())?;
        isize::try_from(length).ok()?.try_into().ok()
    }

    /// Maps the beginning of a file. A page beyond its end is SIGBUS when it is used.
    ///
    /// # Errors
    /// There is no room, the file cannot be mapped for writing, or `count` is 0.
    pub fn new(file: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let length = Self::length(count).and_then(|length| usize::try_from(length).ok());
        let length = length.ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place of a new mapping, so no memory in use is replaced.
        let start = unsafe { mmap(null_mut(), length, protection, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, count })
    }
}

impl<T: Lasting> Deref for Mapping<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has `count` elements, at most isize::MAX bytes (`length`), starts at a
        // page, and lives as long as `self`. `Lasting` promises that all bits are values, whichever
        // process wrote them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Lasting> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `new`, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), size_of_val(&**self)) };
    }
}
