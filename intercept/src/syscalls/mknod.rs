//! mknod(2) and mknodat(2): harmless character devices, and those that the configuration lists.
//!
//! This file decides by the device number and the caller's capability;
//! `ambit_worker::operation::Mknod` makes the node where the caller may write. No device that gives
//! access to the machine's memory or ports may be made. All other calls are left to the kernel, in
//! particular the whiteouts of overlayfs (device 0:0), which any user may make. Start reading at
//! the method `run`.

use serde::{Deserialize, Serialize};

use crate::audit::text;
use crate::call::Call;
use crate::operations;
use crate::replay_cache::ReplayCache;
use crate::settings::settings;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Description, Handler, Prefilter, Repeat, Run};
use crate::syscalls::operation;
use crate::verdict::{CallError, Verdict};
use ambit_worker::operation::{Base, Mknod as Make, Operation};

const CAP_MKNOD: u32 = 27;

/// Results, for callers that signals interrupt.
static REPLAYS: ReplayCache<(Base, Operation)> = ReplayCache::new();

/// Character devices that every container may have: null, zero, full, random, urandom, tty,
/// console.
const HARMLESS: [Device; 7] = [
    Device(1, 3),
    Device(1, 5),
    Device(1, 7),
    Device(1, 8),
    Device(1, 9),
    Device(5, 0),
    Device(5, 1),
];

/// Character devices that no container may make: mem, kmem, port.
const NEVER: [Device; 3] = [Device(1, 1), Device(1, 2), Device(1, 4)];

settings! {
    /// mknod(2) and mknodat(2): harmless character devices (`null`, `zero`, `full`, `random`,
    /// `urandom`, `tty`, `console`) can be made.
    pub struct Settings {
        /// True if the calls are answered.
        pub enabled: bool = false, lxd "mknod";
        /// More character devices that may be made, `MAJOR:MINOR`. Not 1:1, 1:2 and 1:4 (`mem`,
        /// `kmem`, `port`), which give the whole machine away.
        pub devices: Vec<Device> = Vec::new(), such as r#"["10:229"]"#;
        /// True if, below `/dev`, a device is mounted where the filesystem forbids nodes.
        pub bind: bool = false;
    }
}

/// A device number: major, minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Device(u32, u32);

impl Device {
    /// Decodes the argument of mknod(2), as the kernel's `new_decode_dev` does.
    fn decode(number: u32) -> Self {
        Self(number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00)
    }

    /// True if a container may make this character device, whose policy lists `listed`.
    fn is_allowed(self, listed: &[Self]) -> bool {
        (HARMLESS.contains(&self) || listed.contains(&self)) && !NEVER.contains(&self)
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts = text.split_once(':').map(|(major, minor)| (major.parse(), minor.parse()));
        match parts {
            Some((Ok(major), Ok(minor))) if NEVER.contains(&Self(major, minor)) => Err(format!(
                "{text} is the machine's memory or its ports, and gives the whole machine away: \
                 leave it out"
            )),
            Some((Ok(major), Ok(minor))) if (major, minor) != (0, 0) => Ok(Self(major, minor)),
            _ => Err(format!("{text:?} is no character device: use MAJOR:MINOR, such as 10:229")),
        }
    }
}

impl From<Device> for String {
    fn from(Device(major, minor): Device) -> Self {
        format!("{major}:{minor}")
    }
}

/// Answers mknod(2) and mknodat(2).
pub(super) struct Mknod;

/// Returns the index of the argument `mode`; the device number follows it.
fn mode_at(syscall: &str) -> usize {
    if syscall == "mknodat" { 2 } else { 1 }
}

impl Handler for Mknod {
    fn describe(&self) -> Description {
        Description { name: "mknod", syscalls: &["mknod", "mknodat"], privileged: true }
    }

    fn reported(&self, syscall: &str) -> &'static [(u32, u64, u64)] {
        const FORMAT: u64 = libc::S_IFMT as u64;
        const CHARACTER: u64 = libc::S_IFCHR as u64;
        match syscall {
            "mknodat" => &[(2, FORMAT, CHARACTER)],
            _ => &[(1, FORMAT, CHARACTER)],
        }
    }

    fn repeat(&self, _call: &Call) -> Repeat {
        Repeat::Exists
    }

    fn placement(&self) -> Run {
        Run::Queued
    }

    fn on_delivered(&self, who: (&str, u32), delivered: bool) {
        REPLAYS.on_delivered(who, delivered);
    }

    fn prefilter(&self, call: &Call) -> Prefilter {
        let mode = mode_at(call.syscall);
        let character = call.uint(mode) & libc::S_IFMT == libc::S_IFCHR;
        if character && call.uint(mode + 1) != 0 { Prefilter::Inspect } else { Prefilter::Continue }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
        let mode = mode_at(call.syscall);
        let device = Device::decode(call.uint(mode + 1));
        if !device.is_allowed(&cx.settings.mknod.devices) {
            return Ok(Verdict::Continue);
        }
        let path = cx.string(call, mode - 1)?;
        let base = Base::of(if mode == 2 { call.int(0) } else { libc::AT_FDCWD }, &path);
        cx.note("path", || text(&path));
        cx.note("device", || format!("c {}:{}", device.0, device.1));
        cx.note("mode", || format!("{:04o}", call.uint(mode) & 0o7777));
        if let Base::Descriptor(fd) = base {
            cx.note("dirfd", || fd.to_string());
        }
        let handle = operation::pin(call, cx, base, CAP_MKNOD)?;
        let device = rustix::fs::makedev(device.0, device.1);
        let make = (base, Operation::Mknod(Make { path, mode: call.uint(mode) & 0o7777, device }));
        REPLAYS.perform((cx.container, call.tid), &make, operations::patience(), cx, || {
            operation::perform(call, cx, &handle, &make.1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_parsed_unless_it_gives_the_machine_away() {
        let device = |text: &str| Device::try_from(text.to_owned());
        assert_eq!(device("10:229"), Ok(Device(10, 229)));
        for text in ["10", "a:b", "1:3:5", "", "0:0", "-1:3", "b8:0"] {
            assert!(device(text).is_err(), "{text}");
        }
        for text in ["1:1", "1:2", "1:4", "01:+1"] {
            let error = device(text).unwrap_err();
            assert!(error.contains("gives the whole machine away"), "{error}");
        }
    }

    #[test]
    fn harmless_devices_and_listed_ones_are_allowed_and_no_others() {
        let null_to_console = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1)];
        assert!(null_to_console.iter().all(|&(major, minor)| Device(major, minor).is_allowed(&[])));
        let fuse = Device(10, 229);
        assert!(!fuse.is_allowed(&[]) && fuse.is_allowed(&[fuse]));
        // Whiteouts of overlayfs, kmsg, ptmx, a disk's number, neighbours of a listed one.
        for (major, minor) in [(0, 0), (1, 11), (5, 2), (8, 0), (10, 228), (229, 10)] {
            assert!(!Device(major, minor).is_allowed(&[fuse]), "{major}:{minor}");
        }
    }

    #[test]
    fn other_files_and_whiteouts_are_left_to_the_kernel() {
        let inspects = |mode: u32, device| {
            let args = [8, mode.into(), device, 0, 0, 0];
            let call = Call { tid: 1, abi: crate::arch::Abi::Bits64, syscall: "mknod", args };
            Mknod.prefilter(&call) == Prefilter::Inspect
        };
        assert!(inspects(libc::S_IFCHR | 0o666, 0x103));
        assert!(!inspects(libc::S_IFCHR, 0), "a whiteout of overlayfs");
        for kind in [libc::S_IFBLK, libc::S_IFIFO, libc::S_IFREG, libc::S_IFSOCK, 0] {
            assert!(!inspects(kind | 0o666, 0x103), "{kind:o}");
        }
    }

    #[test]
    fn a_node_that_exists_after_a_crash_was_made_before_it() {
        let abi = crate::arch::Abi::Bits64;
        let call = Call { tid: 1, abi, syscall: "mknod", args: [0; 6] };
        assert_eq!(Mknod.repeat(&call), Repeat::Exists);
    }

    #[test]
    fn memory_and_ports_are_never_allowed() {
        let listed = [Device(1, 1), Device(1, 2), Device(1, 4)];
        assert!(listed.iter().all(|device| !device.is_allowed(&listed)));
    }

    #[test]
    fn a_device_number_is_decoded_as_the_kernel_does() {
        for (major, minor) in [(1, 3), (10, 229), (0xfff, 0xf_ffff), (0, 0x100), (259, 300)] {
            let number = u32::try_from(libc::makedev(major, minor)).unwrap();
            assert_eq!(Device::decode(number), Device(major, minor));
        }
    }
}
