//! Watches of folders in the place of a cgroup hierarchy.

use ambit_sysinfo::hierarchy::Hierarchies;

use super::super::account::BURST;
use super::*;

/// Watches of a folder in the place of a cgroup hierarchy.
fn folders() -> (tempfile::TempDir, Folders) {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(root.path().join("v1")).unwrap();
    let mountinfo = b"30 20 0:30 / /v1 rw - cgroup cgroup rw,memory\n";
    let found = Hierarchies::from_mountinfo(mountinfo, root.path()).unwrap();
    let mounts = found.legacy.into_iter().map(|(_, mount)| mount).take(1).collect();
    (root, Folders::new(mounts).unwrap())
}

fn paths(found: Option<Vec<Found>>) -> Vec<String> {
    found.unwrap().into_iter().map(|found| found.path).collect()
}

#[test]
fn a_new_container_is_found_once_wherever_it_is_made() {
    let (root, mut folders) = folders();
    let (at, now) = (|name: &str| root.path().join("v1").join(name), Instant::now());
    fs::create_dir_all(at("docker/old")).unwrap();
    assert_eq!(paths(Some(folders.scan(Report::New, now))), ["/docker/old"]);
    assert_eq!(paths(folders.read(now)), [""; 0]);
    fs::create_dir_all(at("docker/new/init")).unwrap();
    fs::create_dir_all(at("system.slice/crun-a.scope")).unwrap();
    fs::create_dir_all(at("system.slice/a.service")).unwrap();
    let mut new = paths(folders.read(now));
    new.sort();
    assert_eq!(new, ["/docker/new", "/system.slice/crun-a.scope"]);
    assert_eq!(paths(folders.read(now)), [""; 0]);
    // A container in a container.
    fs::create_dir_all(at("docker/new/docker/inner")).unwrap();
    assert_eq!(paths(folders.read(now)), ["/docker/new/docker/inner"]);
    assert_eq!(paths(Some(folders.scan(Report::New, now))), [""; 0]);
    assert_eq!(folders.scan(Report::All, now).len(), 4);
    fs::remove_dir(at("docker/old")).unwrap();
    let before = folders.watched.len();
    assert_eq!(paths(folders.read(now)), [""; 0]);
    assert_eq!(folders.watched.len(), before - 1);
}

#[test]
fn a_container_that_makes_many_cgroups_is_not_watched_for_a_while() {
    let (root, mut folders) = folders();
    let (at, now) = (|name: &str| root.path().join("v1").join(name), Instant::now());
    fs::create_dir_all(at("docker/busy")).unwrap();
    folders.scan(Report::New, now);
    let before = folders.watched.len();
    for _ in 0..=BURST {
        fs::create_dir(at("docker/busy/x")).unwrap();
        fs::remove_dir(at("docker/busy/x")).unwrap();
        assert_eq!(paths(folders.read(now)), [""; 0]);
    }
    assert_eq!(folders.watched.len(), before - 1);
    fs::create_dir_all(at("docker/busy/docker/late")).unwrap();
    fs::create_dir_all(at("docker/quiet")).unwrap();
    assert_eq!(paths(folders.read(now)), ["/docker/quiet"], "others are not affected");
    assert_eq!(paths(Some(folders.resume(now))), [""; 0]);
    let later = folders.next_due().unwrap();
    let found = paths(Some(folders.resume(later)));
    assert!(found.contains(&"/docker/busy/docker/late".to_owned()), "{found:?}");
    assert_eq!(folders.next_due(), None);
}

#[test]
fn lost_events_are_reported() {
    let (root, mut folders) = folders();
    let now = Instant::now();
    folders.scan(Report::New, now);
    // Equal events in a row are merged by the kernel.
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    for number in 0..=queue.trim().parse::<usize>().unwrap() {
        let folder = root.path().join("v1").join(number.to_string());
        fs::create_dir(&folder).unwrap();
        fs::remove_dir(&folder).unwrap();
    }
    let mut is_complete = true;
    for _ in 0..200 {
        is_complete &= folders.read(now).is_some();
    }
    assert!(!is_complete);
    // The event that ends a watch may be among those that were lost.
    let gone = Folder { scan: 0, hierarchy: 0, relative: "x".to_owned(), account: None };
    folders.watched.insert(i32::MAX, gone);
    fs::create_dir_all(root.path().join("v1/docker/late")).unwrap();
    assert_eq!(paths(Some(folders.scan(Report::New, now))), ["/docker/late"]);
    assert!(!folders.watched.contains_key(&i32::MAX));
}
