#![allow(
    unsafe_code,
    reason = "replacing the descriptor that a fuser session owns: one dup3, one ioctl"
)]
//! Putting a live FUSE device under an unmodified fuser session.
//!
//! The kernel sends INIT once in the life of a connection, and fuser starts a session with INIT. So
//! INIT is received here, kept as a record, and replayed to fuser through a socket pair. When fuser
//! has answered, dup3(2) replaces the socket by the device. The first server forwards the answer to
//! the kernel; a successor drops it and asks the kernel to send unanswered requests again. Both go
//! through [`adopt`], so every start exercises it.
//!
//! Start reading at [`adopt`]. Nothing here may be called once the session runs.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::io::{DupFlags, Errno};
use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::error::Error;

/// Bytes of `struct fuse_in_header`.
const HEADER: usize = 40;
/// The opcode of INIT.
const INIT: u32 = 26;
/// `FUSE_NOTIFY_RESEND` (Linux 6.9).
const NOTIFY_RESEND: i32 = 7;
/// Size of the buffer for INIT. The request is shorter than a page, but the kernel requires
/// `FUSE_MIN_READ_BUFFER` (8 KiB).
const ROOM: usize = 64 << 10;

/// The INIT request of a connection, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitRequest(Vec<u8>);

impl InitRequest {
    /// Receives INIT from a device that was just mounted.
    pub fn receive(device: BorrowedFd<'_>) -> Result<Self, Error> {
        Self::from_record(&read(device)?)
    }

    /// Parses a record of an earlier start.
    pub fn from_record(record: &[u8]) -> Result<Self, Error> {
        let word = |at: usize| {
            let bytes = record.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        if record.len() < HEADER + 8 || word(0) != u32::try_from(record.len()).ok() {
            return Err(Error::Init("the record is not one whole request"));
        }
        if word(4) != Some(INIT) {
            return Err(Error::Init("the first request is not INIT"));
        }
        Ok(Self(record.to_vec()))
    }

    /// True if the kernel can send unanswered requests again (Linux 6.9).
    pub(crate) fn can_resend(&self) -> bool {
        let minor = self.0.get(HEADER + 4..HEADER + 8).and_then(|bytes| bytes.try_into().ok());
        minor.map(u32::from_ne_bytes).is_some_and(|minor| minor >= 40)
    }

    /// Returns the bytes, to be kept with the device.
    pub fn record(&self) -> &[u8] {
        &self.0
    }
}

/// fuser's answer to INIT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitReply(Vec<u8>);

impl InitReply {
    /// Sends it to the kernel: the connection is usable then.
    pub fn forward(&self, device: BorrowedFd<'_>) -> Result<(), Error> {
        rustix::io::write(device, &self.0).map(drop).map_err(failed("write INIT reply"))
    }
}

/// Answers fuser's handshake in place of the kernel, then puts the device under its session.
///
/// # Errors
/// A step failed; the device is unchanged.
pub fn adopt<F: Filesystem>(
    filesystem: F,
    device: BorrowedFd<'_>,
    init: &InitRequest,
    config: Config,
) -> Result<(Session<F>, InitReply), Error> {
    let (kernel, server) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed("socketpair"))?;
    rustix::io::write(&kernel, init.record()).map_err(failed("replay INIT"))?;
    let session = Session::from_fd(filesystem, server, SessionACL::All, config)
        .map_err(|source| Error::Session { call: "fuser handshake", source })?;
    // fuser's buffer of 16 MiB for INIT stays in the heap, and the next connection's would be there,
    // cleared and so present.
    ambit_kernel::sys::arenas::trim();
    let reply = read(kernel.as_fd())?;
    // struct fuse_out_header: length, error, unique.
    let error = reply.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    if error != Some(0) {
        return Err(Error::Init("fuser refused the protocol version of this kernel"));
    }
    let own = if init.can_resend() { None } else { clone(device) };
    let device = own.as_ref().map_or(device, AsFd::as_fd);
    replace(session.as_fd(), device).map_err(failed("dup3"))?;
    Ok((session, InitReply(reply)))
}

/// Asks the kernel to send unanswered requests again.
///
/// # Errors
/// The kernel is older than 6.9, or the connection has ended.
pub fn resend(device: BorrowedFd<'_>) -> Result<(), Error> {
    let mut notification = [0; 16];
    notification[..4].copy_from_slice(&16u32.to_ne_bytes());
    notification[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    rustix::io::write(device, &notification).map(drop).map_err(failed("FUSE_NOTIFY_RESEND"))
}

/// Clones the device. Requests read from a clone end with an error when this process dies, instead
/// of waiting for ever; unread requests wait for a successor.
fn clone(device: BorrowedFd<'_>) -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let own = rustix::fs::open("/dev/fuse", flags, Mode::empty()).ok()?;
    let number = device.as_raw_fd().unsigned_abs();
    // SAFETY: FUSE_DEV_IOC_CLONE (include/uapi/linux/fuse.h) reads one u32 from this address.
    let cloned =
        unsafe { ioctl(&own, Setter::<{ opcode::read::<u32>(229, 0) }, u32>::new(number)) };
    cloned.ok().map(|()| own)
}

/// Makes the descriptor number of `place` refer to the file of `device`.
fn replace(place: BorrowedFd<'_>, device: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // SAFETY: the number is open, as the borrow shows, and stays open: dup3 replaces its file in
    // one step, and ManuallyDrop keeps this second owner from closing it.
    let owner = unsafe { OwnedFd::from_raw_fd(place.as_raw_fd()) };
    rustix::io::dup3(device, &mut ManuallyDrop::new(owner), DupFlags::CLOEXEC)
}

fn read(from: BorrowedFd<'_>) -> Result<Vec<u8>, Error> {
    let mut message = vec![0; ROOM];
    loop {
        match rustix::io::read(from, &mut message) {
            Ok(length) => {
                message.truncate(length);
                return Ok(message);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(failed("read INIT")(errno)),
        }
    }
}

fn failed(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Session { call, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_must_be_one_whole_init_request() {
        let mut record = vec![0; 104];
        record[..4].copy_from_slice(&104u32.to_ne_bytes());
        record[4..8].copy_from_slice(&INIT.to_ne_bytes());
        assert_eq!(InitRequest::from_record(&record).unwrap().record(), record);
        assert!(matches!(InitRequest::from_record(&record[..100]), Err(Error::Init(_))));
        assert!(matches!(InitRequest::from_record(&[]), Err(Error::Init(_))));
        record[4] = 1;
        assert!(matches!(InitRequest::from_record(&record), Err(Error::Init(_))));
    }
}
