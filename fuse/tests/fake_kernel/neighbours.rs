//! A container with many readers, and another one whose request is behind all of theirs.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::Arc;
use std::time::Duration;

use ambit_sysinfo::{Error, View, Views};

use crate::container;
use crate::kernel::{Kernel, LOOKUP, OPEN};

/// The thread of another container than that of all others.
const VICTIM: u32 = 1000;

struct Slow;

impl Views for Slow {
    fn view(&self, tid: u32) -> Result<Arc<View>, Error> {
        // Not all the same, or both threads would become free at the same moment.
        std::thread::sleep(Duration::from_millis(3 + u64::from(tid % 3)));
        Ok(Arc::new(container::view()))
    }

    fn owner(&self, tid: u32) -> Option<u64> {
        Some(u64::from(tid / VICTIM))
    }
}

#[test]
fn many_readers_of_a_container_do_not_delay_another_one() {
    const READERS: u32 = 200;
    let (mut kernel, overlay) = Kernel::start(Arc::new(Slow), 2);
    let node = kernel.walk("proc/uptime").unwrap().ino;
    let folder = kernel.walk("sys/devices/system/cpu").unwrap().ino;
    for (operation, node, body) in [(OPEN, node, &[0; 8][..]), (LOOKUP, folder, b"cpu7\0")] {
        for thread in 1..=READERS {
            kernel.thread = thread;
            kernel.send(operation, node, body);
        }
        kernel.thread = VICTIM;
        let request = kernel.send(operation, node, body);
        let before = (0..READERS).position(|_| kernel.receive().0 == request);
        let before = before.expect("after all of the other's");
        assert!(before < 100, "after {before} of the other's, of {READERS}");
        (before..READERS as usize).for_each(|_| drop(kernel.receive()));
    }
    overlay.unmount().unwrap();
}
