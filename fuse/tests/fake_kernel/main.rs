//! The whole filesystem over a socket pair, without root and without a mount: every request a
//! kernel sends, and some it never would.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ambit_fuse::{FILES, bind_points};
use ambit_sysinfo::{Error, View, Views};
use kernel::{
    ACCESS, EACCES, EINVAL, EIO, EISDIR, ENOENT, ENOSYS, ESRCH, FORGET, GETATTR, Kernel, READ,
    READDIR, READDIRPLUS, RELEASE, STATFS, read_request, u32_at, u64_at,
};

#[path = "../fixtures/container.rs"]
mod container;
mod families;
mod hanging;
mod kernel;
mod neighbours;

/// A container of one MiB per thread id; every view is newer than the one before.
struct PerThread(AtomicU64);

impl Views for PerThread {
    fn view(&self, tid: u32) -> Result<Arc<View>, Error> {
        match tid {
            0 => return Err(Error::Gone(0)),
            666 => panic!("expected by the test"),
            _ => {}
        }
        let mut view = container::view();
        view.memory.total = u64::from(tid) << 20;
        view.clock.uptime = self.0.fetch_add(1, Ordering::Relaxed) * 1_000_000_000;
        Ok(Arc::new(view))
    }
}

fn start() -> (Kernel, ambit_fuse::Overlay) {
    Kernel::start(Arc::new(PerThread(AtomicU64::new(1))), 2)
}

#[test]
fn every_file_is_found_read_and_closed() {
    let (mut kernel, overlay) = start();
    for path in FILES.iter().map(|file| file.path) {
        let attr = kernel.walk(path).unwrap();
        let mode = if path == "proc/slabinfo" { 0o100_400 } else { 0o100_444 };
        assert_eq!((attr.mode, attr.uid, attr.gid), (mode, 0, 0), "{path}");
        assert!(attr.size > 0, "{path}");
        assert_eq!(kernel.getattr(attr.ino).unwrap(), attr);
        // The size of a long file is found by rendering it once more at LOOKUP.
        let texts = if attr.size == 4096 { 1 } else { 2 };
        let before = overlay.counters().renders;
        let text = kernel.cat(path).unwrap();
        assert_eq!(overlay.counters().renders, before + texts, "{path}");
        assert!(text.ends_with('\n') || path.ends_with("/uevent"), "{path}: {text}");
    }
    let counts = overlay.counters();
    assert_eq!(counts.opens, FILES.len() as u64);
    overlay.unmount().unwrap();
}

#[test]
fn every_caller_is_shown_its_own_numbers() {
    let (mut kernel, _overlay) = start();
    for thread in [1, 7, 64, 100_000] {
        kernel.thread = thread;
        let text = kernel.cat("proc/meminfo").unwrap();
        let total = text.split_whitespace().nth(1).unwrap();
        assert_eq!(total.parse(), Ok(u64::from(thread) << 10));
    }
}

#[test]
fn one_open_file_reads_one_text_at_any_offset() {
    let (mut kernel, _overlay) = start();
    let node = kernel.walk("proc/meminfo").unwrap().ino;
    let handle = kernel.open(node, 0).unwrap();
    let whole = kernel.read(node, handle, 0, 1 << 20).unwrap();
    assert!(whole.len() > 1000);
    let mut state = 12_345_u64;
    for _ in 0..300 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let offset = 1 + (state >> 33) as usize % (whole.len() + 100);
        let size = (state >> 13) as usize % 700;
        let part = kernel.read(node, handle, offset as u64, size as u32).unwrap();
        let from = offset.min(whole.len());
        assert_eq!(part, whole[from..(from + size).min(whole.len())]);
    }
    for offset in [whole.len() as u64, u64::from(u32::MAX), i64::MAX as u64] {
        assert!(kernel.read(node, handle, offset, 4096).unwrap().is_empty());
    }
    kernel.release(node, handle);
}

#[test]
fn the_page_cache_that_all_containers_share_gets_nothing() {
    let (mut kernel, _overlay) = start();
    let node = kernel.walk("proc/meminfo").unwrap().ino;
    let handle = kernel.open(node, 0).unwrap();
    let mut request = read_request(handle, 0, 4096);
    request[20..24].fill(0); // no FUSE_READ_LOCKOWNER
    assert_eq!(kernel.call(READ, node, &request).unwrap_err(), EINVAL);
    kernel.release(node, handle);
}

#[test]
fn going_back_to_the_start_reads_anew() {
    let (mut kernel, _overlay) = start();
    let node = kernel.walk("proc/uptime").unwrap().ino;
    let handle = kernel.open(node, 0).unwrap();
    let first = kernel.read(node, handle, 0, 4096).unwrap();
    assert!(kernel.read(node, handle, first.len() as u64, 4096).unwrap().is_empty());
    let second = kernel.read(node, handle, 0, 4096).unwrap();
    assert_ne!(first, second, "`top` keeps its files open");
}

#[test]
fn directories_list_themselves_whatever_the_buffer() {
    let (mut kernel, _overlay) = start();
    let proc = kernel.walk("proc").unwrap().ino;
    let files = bind_points().filter_map(|path| path.strip_prefix("proc/")?.split('/').next());
    let mut expected: Vec<_> = [".", ".."].into_iter().chain(files).collect();
    expected.dedup();
    for (opcode, size) in [(READDIR, 4096), (READDIR, 40), (READDIRPLUS, 4096), (READDIRPLUS, 170)]
    {
        let listed = kernel.list(proc, opcode, size);
        let names: Vec<_> = listed.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, expected, "{size}");
        assert_eq!((listed[0].1, listed[1].1), (proc, 1));
        for (name, node, kind) in &listed[2..] {
            let folder = format!("proc/{name}/");
            let is_folder = bind_points().any(|path| path.starts_with(&folder));
            let expected = if is_folder { 4 } else { 8 };
            assert_eq!((kernel.lookup(proc, name).unwrap().ino, *kind), (*node, expected));
        }
    }
    assert_eq!(kernel.list(1, READDIR, 4096).len(), 4);
}

#[test]
fn what_only_root_may_read_is_refused_to_others() {
    let (mut kernel, _overlay) = start();
    let node = kernel.walk("proc/slabinfo").unwrap().ino;
    kernel.user = 100_000;
    assert_eq!(kernel.open(node, 0), Err(EACCES));
    assert_eq!(kernel.call(ACCESS, node, &4u64.to_ne_bytes()), Err(EACCES));
    assert!(kernel.cat("proc/meminfo").is_ok());
    kernel.user = 0;
    assert!(kernel.cat("proc/slabinfo").unwrap().starts_with("slabinfo - version: 2.1\n"));
}

#[test]
fn what_is_not_there_or_not_allowed_is_refused() {
    let (mut kernel, overlay) = start();
    let node = kernel.walk("proc/meminfo").unwrap().ino;
    assert_eq!(kernel.lookup(1, "cgroup"), Err(ENOENT));
    assert_eq!(kernel.lookup(node, "x"), Err(ENOENT));
    assert_eq!(kernel.getattr(99), Err(ENOENT));
    assert_eq!(kernel.open(99, 0), Err(ENOENT));
    assert_eq!(kernel.open(1, 0), Err(EISDIR));
    assert_eq!((kernel.open(node, 1), kernel.open(node, 2)), (Err(EACCES), Err(EACCES)));
    for (mask, answer) in [(4u32, Ok(vec![])), (0, Ok(vec![])), (2, Err(EACCES)), (1, Err(EACCES))]
    {
        let body = u64::from(mask).to_ne_bytes();
        assert_eq!(kernel.call(ACCESS, node, &body), answer, "access {mask}");
    }
    kernel.thread = 0;
    assert_eq!(kernel.open(node, 0), Err(ESRCH), "a caller of another pid namespace");
    assert_eq!(overlay.counters().refused, 1);
}

#[test]
fn statfs_shows_an_empty_disk_of_some_size() {
    let (mut kernel, _overlay) = start();
    let answer = kernel.call(STATFS, 1, &[]).unwrap();
    let [blocks, free, available, nodes, free_nodes] =
        [0, 8, 16, 24, 32].map(|at| u64_at(&answer, at));
    assert!(blocks > 0 && free == blocks && available == blocks);
    assert!(nodes > 0 && free_nodes == nodes);
    assert_eq!(u32_at(&answer, 44), 255);
}

#[test]
fn every_opcode_is_answered_and_none_changes_anything() {
    let (mut kernel, overlay) = start();
    let node = kernel.walk("proc/meminfo").unwrap().ino;
    let before = kernel.cat("sys/devices/system/cpu/online").unwrap();
    let body = [0; 128];
    // INIT, DESTROY and the two FORGETs are not answered, or end the session.
    for opcode in (3..=60).filter(|opcode| ![26, 38, 42].contains(opcode)) {
        // fuser requires as many bytes as WRITE and SETXATTR announce.
        let body = match opcode {
            16 => &body[..40],
            21 => &body[..9],
            _ => &body[..],
        };
        let unique = kernel.send(opcode, node, body);
        assert_eq!(kernel.receive().0, unique, "opcode {opcode}");
    }
    assert_eq!(kernel.cat("sys/devices/system/cpu/online").unwrap(), before);
    assert_eq!(overlay.counters().panics, 0);
}

#[test]
fn a_broken_request_affects_no_other_request() {
    let (mut kernel, _overlay) = start();
    let node = kernel.walk("proc/meminfo").unwrap().ino;
    assert_eq!(kernel.call(4000, node, &[]), Err(ENOSYS), "an unknown opcode");
    assert_eq!(kernel.call(READ, node, &[0; 7]), Err(ENOSYS), "a truncated request");
    assert_eq!(kernel.call(GETATTR, node, &[]), Err(ENOSYS));
    kernel.send(FORGET, node, &[0; 8]);
    assert!(kernel.cat("proc/meminfo").is_ok());
}

#[test]
fn a_panic_is_answered_and_survived() {
    let (mut kernel, overlay) = start();
    let node = kernel.walk("proc/meminfo").unwrap().ino;
    for _ in 0..5 {
        kernel.thread = 666;
        assert_eq!(kernel.open(node, 0), Err(EIO));
    }
    kernel.thread = 5;
    assert!(kernel.cat("proc/meminfo").is_ok());
    // The panic is counted after the answer, when the stack is unwound.
    while overlay.counters().panics < 5 {
        std::thread::yield_now();
    }
}

#[test]
fn a_successor_serves_what_its_predecessor_opened() {
    let (mut before, predecessor) = start();
    let node = before.walk("proc/meminfo").unwrap().ino;
    let handle = before.open(node, 0).unwrap();
    let text = before.read(node, handle, 0, 65_536).unwrap();
    predecessor.unmount().unwrap();

    let views = Arc::new(PerThread(AtomicU64::new(1)));
    let (mut after, successor) = Kernel::take_over(views);
    // A request that was in flight comes again with bit 63 of its id set.
    let resent = 1 << 63 | 4711;
    after.send_as(resent, READ, node, &read_request(handle, 100, 65_536));
    assert_eq!(after.receive(), (resent, 0, text[100..].to_vec()));
    assert_eq!(after.read(node, handle, 200, 100).unwrap(), text[200..300]);
    assert!(after.read(node, handle, text.len() as u64, 100).unwrap().is_empty());
    assert_eq!(successor.counters().adopted, 1);
    after.release(node, handle);
    assert!(after.cat("proc/stat").is_ok());
}

#[test]
fn an_unknown_handle_is_served_and_closed() {
    let (mut kernel, _overlay) = start();
    let node = kernel.walk("proc/uptime").unwrap().ino;
    for handle in [0, 1, u64::MAX] {
        assert!(!kernel.read(node, handle, 0, 4096).unwrap().is_empty());
        kernel.release(node, handle);
        kernel.release(node, handle);
    }
    assert_eq!(kernel.call(RELEASE, node, &[]), Err(ENOSYS));
    assert!(kernel.cat("proc/uptime").is_ok());
}
