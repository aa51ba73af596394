//! LXC with the drop-in while ambit is down: containers start, and are equipped later.

use std::os::unix::net::UnixListener;

use super::engine::{Container, Engine};
use super::{MEMORY, TOTAL, number};
use crate::harness::daemon::{Daemon, Place};

/// Starts a container where nothing serves the sockets, and then a daemon.
#[track_caller]
fn starts(place: Place) {
    Engine::Lxc.needs();
    // `sysinfo` must not be refused while nothing answers it.
    let script = format!("{TOTAL}; busybox free -k; echo ready; sleep 600");
    let mut container = Container::start_at(Engine::Lxc, &place, &script);
    container.wait_for("ready");
    let said = container.printed();
    assert_ne!(number(&said, "total"), Some(MEMORY), "{said}");
    assert!(number(&said, "Mem:").is_some(), "{said}");
    let daemon = Daemon::start_at(place);
    let attached = daemon.place().ambit(&["attach", &container.pid().to_string()]).ok();
    let said = container.exec(TOTAL);
    assert_eq!(number(&said, "total"), Some(MEMORY), "{attached}{said}");
    container.end();
}

#[test]
fn an_lxc_container_starts_without_a_socket() {
    starts(Place::new());
}

#[test]
fn an_lxc_container_starts_with_a_socket_that_nothing_serves() {
    let place = Place::new();
    std::fs::create_dir(place.runtime()).unwrap();
    // The file stays when the socket is closed.
    drop(UnixListener::bind(place.runtime().join("lxc.sock")).unwrap());
    starts(place);
}
