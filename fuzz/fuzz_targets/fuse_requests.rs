//! Requests that no kernel sends: the whole overlay over a socket pair, as in the tests.
//!
//! The bytes are a list of requests: opcode, node, length of the body, body. After them an
//! honest request must be answered as if nothing had happened.
#![no_main]

use std::cell::RefCell;

use ambit_fuse::{FILES, Overlay};
use libfuzzer_sys::fuzz_target;

#[path = "../../fuse/tests/fixtures/container.rs"]
mod container;
#[path = "../../fuse/tests/fake_kernel/kernel.rs"]
mod kernel;

use kernel::Kernel;

/// They begin a session or end it, which is for the kernel alone to do.
const SESSION: [u32; 2] = [kernel::INIT, 38];
const WRITE: u32 = 16;
const SETATTR: u32 = 4;
const SETXATTR: u32 = 21;
const IOCTL: u32 = 39;

thread_local! {
    static SERVED: RefCell<(Kernel, Overlay, Vec<u64>)> = RefCell::new(start());
}

fn start() -> (Kernel, Overlay, Vec<u64>) {
    let (mut kernel, overlay) = Kernel::start(container::Fixed::new(), 1);
    let mut nodes: Vec<u64> =
        FILES.iter().map(|file| kernel.walk(file.path).unwrap().ino).collect();
    for path in ["proc", "sys/devices/system/cpu", "sys/devices/system/node"] {
        nodes.push(kernel.walk(path).unwrap().ino);
    }
    (kernel, overlay, nodes)
}

fn request(bytes: &[u8]) -> Option<(u32, u8, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<3>()?;
    // Most opcodes are small; the others are 4096 (CUSE) and above.
    let opcode = u32::from(head[0]) << if head[0] & 128 == 0 { 0 } else { 6 };
    let (body, rest) = rest.split_at((usize::from(head[2])).min(rest.len()));
    Some((opcode, head[1], body, rest))
}

fuzz_target!(|bytes: &[u8]| {
    SERVED.with_borrow_mut(|(kernel, overlay, nodes)| {
        let mut rest = bytes;
        for _ in 0..16 {
            let Some((opcode, node, body, next)) = request(rest) else { break };
            rest = next;
            if SESSION.contains(&opcode) {
                continue;
            }
            let node = nodes.get(usize::from(node)).copied().unwrap_or(u64::from(node));
            let mut body = body.to_vec();
            // The kernel never lies about how much it sends, and fuser insists on that.
            let told = match opcode {
                WRITE => Some((40, 16)),
                IOCTL => Some((32, 24)),
                _ => None,
            };
            if let Some((head, at)) = told
                && body.len() >= head
            {
                let size = u32::try_from(body.len() - head).unwrap();
                body[at..at + 4].copy_from_slice(&size.to_ne_bytes());
            }
            if opcode == SETXATTR {
                body = vec![0; 9];
            }
            // Nor are there times of more nanoseconds than a second has.
            if opcode == SETATTR {
                for at in [59, 63, 67] {
                    if let Some(highest) = body.get_mut(at) {
                        *highest = 0;
                    }
                }
            }
            kernel.send(opcode, node, &body);
        }
        // Some of them have no answer. One thread serves, so this one comes last.
        let last = kernel.send(kernel::GETATTR, 1, &[0; 16]);
        while kernel.receive().0 != last {}
        assert_eq!(overlay.counters().panics, 0);
    });
});
