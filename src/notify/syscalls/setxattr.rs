//! setxattr(2) and its kin: the mark that overlayfs puts on folders that hide the layers below.
//!
//! `trusted.overlay.opaque=y` and nothing else; all other attributes are the kernel's. Layers are
//! unpacked with it by container engines that run in a container.

use nix::errno::Errno;

use super::ranges;
use crate::notify::acts;
use crate::notify::audit::text;
use crate::notify::call::Call;
use crate::notify::context::Context;
use crate::notify::handler::{Cost, Description, Handler, Refusal, Screen, Verdict};
use crate::notify::once::Once;
use crate::worker::Find;
use crate::worker::act::{Base, SetOpaque, What};

const CAP_SYS_ADMIN: u32 = 21;
const NAME: &[u8] = b"trusted.overlay.opaque";
/// `XATTR_CREATE` and `XATTR_REPLACE`.
const FLAGS: u32 = 3;

/// Attempts of callers that signals interrupt: with `XATTR_CREATE` a second one fails.
static ONCE: Once<(Base, SetOpaque)> = Once::new();

/// Answers setxattr(2), lsetxattr(2) and fsetxattr(2).
pub(super) struct Setxattr;

impl Handler for Setxattr {
    fn describe(&self) -> Description {
        Description {
            name: "setxattr",
            syscalls: &["setxattr", "lsetxattr", "fsetxattr"],
            default_on: false,
            privileged: true,
            summary: "Folders can be marked opaque for overlayfs.",
        }
    }

    fn reported(&self, _syscall: &str) -> &'static [(u32, u64, u64)] {
        // The value is one byte.
        &[(3, u32::MAX as u64, 1)]
    }

    fn cost(&self) -> Cost {
        Cost::Act
    }

    fn settled(&self, who: (&str, u32), delivered: bool) {
        ONCE.settled(who, delivered);
    }

    fn screen(&self, call: &Call) -> Screen {
        let fits = call.long(3) == 1 && call.uint(4) & !FLAGS == 0;
        if fits { Screen::Inspect } else { Screen::Continue }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, Refusal> {
        let mut value = [0; 1];
        match cx.read(call, call.long(2), &mut value) {
            Ok(1) if value == *b"y" => {}
            Ok(_) | Err(Refusal::Fail(Errno::EFAULT)) => return Ok(Verdict::Continue),
            Err(refusal) => return Err(refusal),
        }
        if cx.string(call, 1)?.as_deref() != Some(NAME) {
            return Ok(Verdict::Continue);
        }
        let (base, path) = match call.syscall {
            "fsetxattr" if call.int(0) < 0 => return Ok(Verdict::Continue),
            "fsetxattr" => (Base::Descriptor(call.int(0)), None),
            _ => match cx.string(call, 0)? {
                None => return Ok(Verdict::Continue),
                // The kernel refuses an empty path.
                Some(path) if path.is_empty() => return Ok(Verdict::Continue),
                path => (Base::Folder, path),
            },
        };
        cx.note("name", || text(NAME));
        match (&path, base) {
            (Some(path), _) => cx.note("path", || text(path)),
            (None, Base::Descriptor(fd)) => cx.note("fd", || fd.to_string()),
            (None, Base::Folder) => {}
        }
        let Some(actor) = acts::pin(call, cx, base, CAP_SYS_ADMIN)? else {
            return Ok(Verdict::Continue);
        };
        let (users, groups) = (ranges(call, cx, "uid_map")?, ranges(call, cx, "gid_map")?);
        let follow = call.syscall != "lsetxattr";
        let find = path.clone().map(|path| Find { path, folder: false, follow });
        let set = SetOpaque { path, follow, flags: call.uint(4), users, groups };
        let key = (base, set.clone());
        ONCE.act((cx.container, call.tid), &key, acts::patience(), cx, || {
            acts::act(call, cx, &actor, What::SetOpaque(set), find)
        })
    }
}
