//! Calls that are used as they are.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::affinity::sched_getaffinity;
use super::inherited::take;
use super::mapping::Mapping;
use super::pid_in_namespace::pid_from_namespace;
use super::seccomp::notification_sizes;
use super::shared_descriptors::shared;

#[test]
fn a_thread_may_run_somewhere() {
    let mut mask = [0u64; 128];
    let written = sched_getaffinity(0, &mut mask).unwrap();
    assert_eq!(written % 8, 0);
    assert!(mask.iter().any(|&word| word != 0));
    assert!(mask[written / 8..].iter().all(|&word| word == 0));
}

#[test]
fn a_negative_id_is_esrch() {
    assert_eq!(sched_getaffinity(-1, &mut [0u64; 128]), Err(Errno::SRCH));
}

#[test]
fn a_descriptor_with_an_owner_is_not_taken() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(take(file.as_raw_fd()).is_none());
    assert!(take(-1).is_none() && take(0).is_none() && take(i32::MAX).is_none());
}

#[test]
fn a_descriptor_is_taken_once() {
    let file = std::fs::File::open("/dev/null").unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    let number = file.into_raw_fd();
    let taken = take(number).unwrap();
    assert_eq!(taken.as_raw_fd(), number);
    assert!(take(number).is_none());
}

#[test]
fn our_own_namespace_changes_nothing() {
    let namespace = File::open("/proc/self/ns/pid").unwrap();
    let me = i32::try_from(std::process::id()).unwrap();
    match pid_from_namespace(namespace.as_fd(), me) {
        Ok(id) => assert_eq!(id, me),
        Err(errno) => assert_eq!(errno, Errno::NOTTY, "only kernels before 6.11 lack it"),
    }
}

#[test]
fn the_kernel_returns_its_sizes() {
    let sizes = notification_sizes().unwrap();
    assert!(sizes.seccomp_notif >= 80 && sizes.seccomp_notif_resp >= 24);
}

#[test]
fn threads_share_and_processes_do_not() {
    let this = std::process::id().cast_signed();
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    match shared(this, thread) {
        Ok(shared) => assert!(shared),
        Err(errno) => assert_eq!(errno, Errno::NOSYS, "a kernel without it"),
    }
}

type Line = [AtomicU64; 8];

#[test]
fn two_mappings_of_a_file_share_their_numbers() {
    let file = memfd_create("mapping", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, Mapping::<Line>::length(1000).unwrap()).unwrap();
    let one = Mapping::<Line>::new(file.as_fd(), 1000).unwrap();
    let other = Mapping::<Line>::new(file.as_fd(), 1000).unwrap();
    one[999][7].store(5, Ordering::Relaxed);
    assert_eq!((other.len(), other[999][7].load(Ordering::Relaxed)), (1000, 5));
}

#[test]
fn a_length_that_does_not_fit_is_an_error() {
    let file = memfd_create("mapping", MemfdFlags::CLOEXEC).unwrap();
    assert!(Mapping::<Line>::new(file.as_fd(), usize::MAX / 2).is_err());
    assert!(Mapping::<Line>::new(file.as_fd(), usize::MAX / 64).is_err());
    assert!(Mapping::<Line>::new(file.as_fd(), 0).is_err());
}
