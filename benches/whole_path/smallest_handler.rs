//! Compares the notification threads with the smallest possible handler.
//!
//! Measures sysinfo(2) of a child, in turn answered by the smallest possible handler (epoll, RECV, a
//! write into the caller's memory as `intercept/src/memory.rs` does it, SEND, SYNC_WAKE_UP) and by a
//! `Notifier`, everything pinned to one processor.
#![allow(unsafe_code, reason = "the smallest handler is nothing but system calls")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use ambit_intercept::filter::Filter;
use ambit_intercept::{Notifier, Options, Policy};
use ambit_kernel::sys::procmap_query::{WRITABLE, end_of_mapping};
use ambit_sysinfo::sysinfo::{Abi, encode};
use ambit_sysinfo::view::{Clock, Cpu, Load, Memory, Origin, Swap, Tasks};
use ambit_sysinfo::{CpuSet, Error, View, Views};
use libseccomp_sys::{seccomp_notif, seccomp_notif_resp};
use nix::sched::{CpuSet as Mask, sched_setaffinity};
use nix::unistd::Pid;
use rustix::event::epoll;

const CALLS: u32 = 20_000;
const ROUNDS: usize = 7;

struct Fixed(Arc<View>);

impl Views for Fixed {
    fn view(&self, _tid: u32) -> Result<Arc<View>, Error> {
        Ok(Arc::clone(&self.0))
    }
}

fn view() -> View {
    View {
        origin: Origin::Container,
        host: Arc::default(),
        memory: Memory { total: 256 << 20, free: 128 << 20, ..Memory::default() },
        swap: Swap::default(),
        nodes: None,
        cpu: Cpu { online: CpuSet::first(1), ..Cpu::default() },
        tasks: Tasks { total: 1, ..Tasks::default() },
        load: Load::default(),
        clock: Clock::default(),
        stats: ambit_sysinfo::stats::Stats::default(),
    }
}

/// Prints medians of several rounds and their ratio. The child enters the control groups whose
/// folders are given, as a container is in others than its daemon: the kernel takes longer from one
/// to another.
pub(crate) fn compare(groups: &[String]) {
    let mut mask = Mask::new();
    mask.set(0).expect("processor 0 fits the mask");
    sched_setaffinity(Pid::from_raw(0), &mask).expect("processor 0 exists");
    let open = |folder| {
        let file = std::path::Path::new(folder).join("cgroup.procs");
        File::options().write(true).open(file).expect("a control group")
    };
    let groups: Vec<File> = groups.iter().map(open).collect();
    let view = Arc::new(view());
    let mut least = Vec::new();
    let mut ours = Vec::new();
    for _ in 0..ROUNDS {
        least.push(round(&groups, |listener| minimal(&listener, &view)));
        let views = Arc::new(Fixed(Arc::clone(&view)));
        let notifier = Notifier::start(views, Options::default()).expect("notifier");
        ours.push(round(&groups, |listener| {
            notifier.adopt(listener, "bench", Policy::default()).expect("a listener");
        }));
    }
    let (least, ours) = (median(&mut least), median(&mut ours));
    println!("smallest handler {least:.2} us, notifier {ours:.2} us, ratio {:.2}", ours / least);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Microseconds per call of a child in these control groups, whose listener is given to `serve`.
fn round(groups: &[File], serve: impl FnOnce(OwnedFd)) -> f64 {
    let filter = Filter::new(&Policy::default()).expect("filter");
    let mut pair = [0; 2];
    let mut pipe = [0; 2];
    // SAFETY: plain system calls on arrays of the right size.
    let (made, piped) = unsafe {
        let made = libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr());
        (made, libc::pipe(pipe.as_mut_ptr()))
    };
    assert_eq!((made, piped), (0, 0));
    // SAFETY: the child makes system calls only and ends with _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        for group in groups {
            // SAFETY: one byte of a live string.
            let entered = unsafe { libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            assert_eq!(entered, 1, "the control group is not entered");
        }
        target(&filter, pipe[1], pair[1]);
    }
    assert!(child > 0, "fork failed");
    let number = read_u64(pipe[0]);
    // SAFETY: plain system calls; the descriptors are ours.
    let listener = unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, child, 0);
        let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0);
        assert!(fd >= 0, "pidfd_getfd failed");
        libc::close(i32::try_from(pidfd).expect("a descriptor"));
        OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor"))
    };
    // SAFETY: the pipe is open; the byte tells the child that this process has the listener.
    unsafe { libc::write(pair[0], [0u8; 8].as_ptr().cast(), 8) };
    serve(listener);
    let nanoseconds = read_u64(pipe[0]);
    // SAFETY: plain system calls on descriptors of this round.
    unsafe {
        libc::waitpid(child, std::ptr::null_mut(), 0);
        for fd in pair.into_iter().chain(pipe) {
            libc::close(fd);
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let result = nanoseconds as f64 / f64::from(CALLS) / 1000.0;
    result
}

fn target(filter: &Filter, out: RawFd, go: RawFd) -> ! {
    let Ok(listener) = filter.install() else {
        // SAFETY: ends the child.
        unsafe { libc::_exit(1) }
    };
    write_u64(out, u64::from(listener.as_raw_fd().unsigned_abs()));
    read_u64(go);
    drop(listener);
    let mut info = [0u8; 112];
    let mut call = |count: u32| {
        for _ in 0..count {
            // SAFETY: the buffer has the size of struct sysinfo.
            let result = unsafe { libc::syscall(libc::SYS_sysinfo, info.as_mut_ptr()) };
            if result != 0 {
                // SAFETY: ends the child.
                unsafe { libc::_exit(2) }
            }
        }
    };
    call(CALLS / 10);
    let start = Instant::now();
    call(CALLS);
    write_u64(out, u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    // SAFETY: ends the child.
    unsafe { libc::_exit(0) }
}

fn write_u64(fd: RawFd, value: u64) {
    // SAFETY: eight bytes are read from a live value.
    unsafe { libc::write(fd, (&raw const value).cast(), 8) };
}

fn read_u64(fd: RawFd) -> u64 {
    let mut value = 0u64;
    // SAFETY: eight bytes are written into a live value.
    let read = unsafe { libc::read(fd, (&raw mut value).cast(), 8) };
    assert_eq!(read, 8, "the child failed");
    value
}

mod ioctls {
    use libseccomp_sys::{seccomp_notif, seccomp_notif_resp};

    nix::ioctl_readwrite!(recv, b'!', 0, seccomp_notif);
    nix::ioctl_readwrite!(send, b'!', 1, seccomp_notif_resp);
    nix::ioctl_write_ptr!(id_valid, b'!', 2, u64);
    nix::ioctl_write_int_bad!(set_flags, nix::request_code_write!(b'!', 4, size_of::<u64>()));
}

/// Opens a file of a thread, without an allocation.
fn open(tid: u32, file: &str, flags: i32) -> File {
    let mut path = [0u8; 32];
    write!(&mut path[..], "/proc/{tid}/{file}").expect("room");
    // SAFETY: the path ends with a zero byte, and the descriptor is new.
    unsafe {
        let fd = libc::open(path.as_ptr().cast(), flags | libc::O_CLOEXEC);
        assert!(fd >= 0, "cannot open /proc/{tid}/{file}");
        File::from_raw_fd(fd)
    }
}

/// Answers until the target is gone, on this very thread.
fn minimal(listener: &OwnedFd, view: &View) {
    let fd = listener.as_raw_fd();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    epoll::add(&epoll, listener, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
        .expect("epoll_ctl");
    let encoded = encode(view, Abi::Bits64);
    let mut events = Vec::with_capacity(1);
    // SAFETY: plain ioctls with structures of the kernel's own layout.
    unsafe {
        let _ = ioctls::set_flags(fd, 1);
        loop {
            events.clear();
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).expect("wait");
            let flags = events[0].flags;
            if !flags.contains(epoll::EventFlags::IN) {
                return;
            }
            let mut request: seccomp_notif = std::mem::zeroed();
            ioctls::recv(fd, &raw mut request).expect("RECV");
            let address = request.data.args[0];
            let mem = open(request.pid, "mem", libc::O_RDWR);
            let maps = open(request.pid, "maps", libc::O_RDONLY);
            match end_of_mapping(maps.as_fd(), address, WRITABLE) {
                Ok(end) => assert!(end.is_some_and(|end| address + 112 <= end), "not writable"),
                Err(errno) => panic!("PROCMAP_QUERY, of Linux 6.11: {errno}"),
            }
            ioctls::id_valid(fd, &raw const request.id).expect("ID_VALID");
            mem.write_all_at(encoded.bytes(), address).expect("write");
            let mut answer = seccomp_notif_resp { id: request.id, val: 0, error: 0, flags: 0 };
            ioctls::send(fd, &raw mut answer).expect("SEND");
        }
    }
}
