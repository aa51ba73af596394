//! The page of a file on lease is one of the kernel's page cache: the kernel may drop it at any time,
//! and charges it to a control group.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::harness::cgroup::{Cgroup, Limits, hierarchies};
use crate::harness::command::{run, start};
use crate::harness::machine;
use crate::harness::text::value;
use crate::survival::resends;

use super::container::{FRESH, MEMORY_KB, Unshared, ok};
use super::leases::{attach, daemon, leased, name, total};

#[test]
fn no_read_fails_while_the_kernel_drops_pages_and_inodes() {
    if !resends() {
        return;
    }
    let daemon = daemon(20);
    let [container, other] = ["dropped", "detached"].map(|name| Unshared::start(name, FRESH));
    let file = attach(&daemon, &container);
    ok(&daemon, "attach", other.pid);
    let [named, others] = [&container, &other].map(|container| name(&daemon, container));
    // The kernel forgets a file when the last mount of it is gone.
    ok(&daemon, "detach", other.pid);
    run(&mut leased("drop", &file, &[])).ok();

    let files = [(&file, "1"), (&file, "1024"), (&named, "1024"), (&others, "1024")];
    let readers = files.map(|(file, piece)| start(&mut leased("pieces", file, &[piece, "2000"])));
    for what in ["1", "2", "3"].into_iter().cycle().take(12) {
        fs::write("/proc/sys/vm/drop_caches", what).unwrap();
        assert_eq!([&file, &named, &others].map(|file| total(file)), [MEMORY_KB; 3]);
    }
    for reader in readers {
        let counts = reader.finish(machine::patience(20)).ok();
        assert_ne!(value(&counts, "opens"), "0");
    }
    run(&mut leased("kinds", &file, &[])).ok();

    // Attached again, it has the file of the same name.
    ok(&daemon, "detach", container.pid);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_eq!(total(&file), machine::memory_kb());
    ok(&daemon, "attach", container.pid);
    assert_eq!((total(&file), name(&daemon, &container)), (MEMORY_KB, named));
}

#[test]
fn a_page_is_charged_to_the_control_group_that_reads_it_first() {
    if !resends() {
        return;
    }
    if !fs::exists("/proc/kpagecgroup").unwrap() {
        return machine::not_on_this_kernel("/proc/kpagecgroup");
    }
    let daemon = daemon(20);
    let container = Unshared::start("charged", FRESH);
    let file = attach(&daemon, &container);
    let other = Cgroup::new("another", Limits::default());
    for reader in [container.cgroup(), &other, container.cgroup()] {
        let groups: Vec<_> = reader.dirs().map(|dir| dir.to_str().unwrap()).collect();
        let owner = run(&mut leased("owner", &file, &groups)).ok();
        assert_eq!(owner.trim(), inode(reader).to_string());
    }
}

/// The inode of a control group in the hierarchy of memory.
fn inode(cgroup: &Cgroup) -> u64 {
    let memory = hierarchies().into_iter().find(|hierarchy| hierarchy.has("memory")).unwrap();
    let dir = cgroup.dirs().find(|dir| dir.starts_with(memory.root())).unwrap();
    fs::metadata(dir).unwrap().ino()
}
