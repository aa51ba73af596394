//! mknod(2) and mknodat(2): character devices that give access to nothing.
//!
//! What is made, and by whom, is decided here from registers alone; `crate::worker::act::Mknod`
//! makes it where the caller may. Everything else is the kernel's, above all the whiteouts of
//! overlayfs (device 0:0), which it allows everybody.

use crate::notify::acts;
use crate::notify::audit::text;
use crate::notify::call::Call;
use crate::notify::context::Context;
use crate::notify::handler::{Cost, Description, Handler, Refusal, Repeat, Screen, Verdict};
use crate::notify::once::Once;
use crate::notify::settings::Device;
use crate::worker::Find;
use crate::worker::act::{Base, Mknod as Make, What};

const CAP_MKNOD: u32 = 27;

/// Attempts of callers that signals interrupt.
static ONCE: Once<(Base, What)> = Once::repeatable();

/// Answers mknod(2) and mknodat(2).
pub(super) struct Mknod;

/// Which argument is the mode.
fn mode_at(syscall: &str) -> usize {
    if syscall == "mknodat" { 2 } else { 1 }
}

impl Handler for Mknod {
    fn describe(&self) -> Description {
        Description {
            name: "mknod",
            syscalls: &["mknod", "mknodat"],
            default_on: false,
            privileged: true,
            summary: "Harmless character devices, such as null and zero, can be made.",
        }
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

    fn cost(&self) -> Cost {
        Cost::Act
    }

    fn settled(&self, who: (&str, u32), delivered: bool) {
        ONCE.settled(who, delivered);
    }

    fn screen(&self, call: &Call) -> Screen {
        let mode = mode_at(call.syscall);
        let character = call.uint(mode) & libc::S_IFMT == libc::S_IFCHR;
        if character && call.uint(mode + 1) != 0 { Screen::Inspect } else { Screen::Continue }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, Refusal> {
        let mode = mode_at(call.syscall);
        // The kernel's own encoding, of 32 bits: `new_decode_dev`.
        let number = call.uint(mode + 1);
        let device = Device(number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00);
        if !cx.settings.devices.contains(&device) {
            return Ok(Verdict::Continue);
        }
        let Some(path) = cx.string(call, mode - 1)? else { return Ok(Verdict::Continue) };
        let base = Base::of(if mode == 2 { call.int(0) } else { libc::AT_FDCWD }, &path);
        cx.note("path", || text(&path));
        cx.note("device", || format!("c {}:{}", device.0, device.1));
        cx.note("mode", || format!("{:04o}", call.uint(mode) & 0o7777));
        if let Base::Descriptor(fd) = base {
            cx.note("dirfd", || fd.to_string());
        }
        let Some(actor) = acts::pin(call, cx, base, CAP_MKNOD)? else {
            return Ok(Verdict::Continue);
        };
        let device = rustix::fs::makedev(device.0, device.1);
        let make = (base, What::Mknod(Make { path, mode: call.uint(mode) & 0o7777, device }));
        let find = || match &make.1 {
            What::Mknod(node) => {
                Some(Find { path: node.folder().to_vec(), folder: true, follow: true })
            }
            _ => None,
        };
        ONCE.act((cx.container, call.tid), &make, acts::patience(), cx, || {
            acts::act(call, cx, &actor, &make.1, find)
        })
    }
}
