//! The mount(2) of a helper that mounts by itself.
//!
//! The helper is in no mount namespace of the container (`starter.rs`), so its own call would fail.
//! A seccomp filter reports the call, and the mount is made for the helper's `/dev/fuse`. All of
//! this runs with the caller's rights: the helper may be a program of the container, and the
//! notification may say anything. Start reading at [`MountCalls::serve`].

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use ambit_kernel::sys::arches::compatible;
use ambit_kernel::sys::seccomp::{export, install_with_listener};
use ambit_kernel::text::{self, status::Status};
use libseccomp::{
    ScmpAction, ScmpArch, ScmpFilterContext, ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags,
    ScmpSyscall, notify_id_valid,
};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::error::{Context, Error};
use crate::report_channel::{ReportChannel, wait};

/// The most bytes of the options of mount(2).
const OPTIONS: usize = 4096;

/// The listener of the filter.
#[derive(Debug)]
pub(super) struct MountCalls(OwnedFd);

/// Installs the filter in this process and its descendants, and returns the listener. A helper that
/// knows the new mount API falls back to mount(2).
pub(super) fn install() -> Result<OwnedFd, Error> {
    let build = || -> Result<ScmpFilterContext, libseccomp::error::SeccompError> {
        let mut context = ScmpFilterContext::new(ScmpAction::Allow)?;
        context.set_act_badarch(ScmpAction::Allow)?;
        for arch in compatible(ScmpArch::native()) {
            context.add_arch(arch)?;
        }
        context.add_rule(ScmpAction::Notify, ScmpSyscall::from_name("mount")?)?;
        context.add_rule(ScmpAction::Errno(libc::ENOSYS), ScmpSyscall::from_name("fsopen")?)?;
        Ok(context)
    };
    let context = build().map_err(|error| {
        Error::new(Errno::NOSYS, format!("libseccomp cannot build the helper's filter: {error}"))
    })?;
    let program = export(&context).context("export of the helper's filter")?;
    install_with_listener(&program).context("the helper's mount(2) cannot be reported: seccomp")
}

impl From<OwnedFd> for MountCalls {
    fn from(listener: OwnedFd) -> Self {
        Self(listener)
    }
}

impl MountCalls {
    /// Answers the calls until the helper's first process has ended. The first call for an open
    /// `/dev/fuse` is answered with success once `mount` has mounted it; the kernel answers all
    /// others. `proc` is the host's `/proc`.
    pub(super) fn serve(
        self,
        helper: &ReportChannel,
        proc: BorrowedFd<'_>,
        until: Instant,
        mount: impl FnOnce(BorrowedFd<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let listener = self.0.as_raw_fd();
        let mut mount = Some(mount);
        loop {
            let mut ends =
                [PollFd::new(helper, PollFlags::IN), PollFd::new(&self.0, PollFlags::IN)];
            wait(&mut ends, until)?;
            if !ends[0].revents().is_empty() {
                return helper.receive(until).map(drop);
            }
            // Fails if the thread that called has ended.
            let Ok(call) = ScmpNotifReq::receive(listener) else { continue };
            let device = if mount.is_some() { device_of(listener, &call, proc)? } else { None };
            let none = ScmpNotifRespFlags::empty();
            let answer = if let Some(device) = device
                && let Some(mount) = mount.take()
            {
                mount(device.as_fd())?;
                ScmpNotifResp::new_val(call.id, 0, none)
            } else {
                ScmpNotifResp::new_continue(call.id, none)
            };
            let _ = answer.respond(listener);
        }
    }
}

/// Takes a duplicate of the `/dev/fuse` that a call names. `None` if it names no descriptor, or the
/// thread that called has ended.
fn device_of(
    listener: RawFd,
    call: &ScmpNotifReq,
    proc: BorrowedFd<'_>,
) -> Result<Option<OwnedFd>, Error> {
    let open = || -> Result<(OwnedFd, File), Error> {
        let file = format!("{}/mem", call.pid);
        let memory =
            rustix::fs::openat(proc, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let memory = File::from(memory.context("open of mem")?);
        let status = text::read(proc, &format!("{}/status", call.pid)).context("read of status")?;
        let process = Status(&status).numbers("Tgid:").next().and_then(|id| i32::try_from(id).ok());
        let process = process.and_then(Pid::from_raw);
        let process = process.ok_or_else(|| Error::new(Errno::SRCH, "no Tgid"))?;
        let process = pidfd_open(process, PidfdFlags::empty()).context("pidfd_open")?;
        Ok((process, memory))
    };
    let opened = open();
    // Otherwise the descriptors may be those of another process, which got the id meanwhile.
    if notify_id_valid(listener, call.id).is_err() {
        return Ok(None);
    }
    let told = |error: Error| {
        let message = format!("the helper's mount(2) cannot be read: {}", error.message);
        Error::new(error.errno, message)
    };
    let (process, memory) = opened.map_err(told)?;
    let mut options = [0; OPTIONS];
    let length = memory.read_at(&mut options, call.data.args[4]).unwrap_or(0);
    let Some(number) = device_number(&options[..length]) else { return Ok(None) };
    let device = pidfd_getfd(&process, number, PidfdGetfdFlags::empty());
    device.context("pidfd_getfd").map(Some).map_err(told)
}

/// Parses `fd=` in the options, which end with a NUL.
fn device_number(options: &[u8]) -> Option<RawFd> {
    let options = options.split(|&byte| byte == 0).next()?;
    let number = options.split(|&byte| byte == b',').find_map(|one| one.strip_prefix(b"fd="))?;
    std::str::from_utf8(number).ok()?.parse().ok().filter(|&number| number >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_found_in_the_options() {
        let number = |options: &str| device_number(options.as_bytes());
        assert_eq!(number("fd=5,rootmode=40000,user_id=0\0rest,fd=6"), Some(5));
        assert_eq!(number("allow_other,fd=17"), Some(17));
        for none in ["", "ro", "rfd=5", "fd=", "fd=-1", "fd=x", "fd=99999999999", "\0fd=5"] {
            assert_eq!(number(none), None, "{none}");
        }
    }
}
