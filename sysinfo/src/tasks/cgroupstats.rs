//! The command `CGROUPSTATS_CMD_GET` of the taskstats generic netlink family: the kernel counts the
//! threads of one v1 cgroup by state (include/uapi/linux/cgroupstats.h). For cgroup v2 it answers
//! EINVAL. Start reading at [`Cgroupstats::count`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CGROUPSTATS_CMD_GET: u8 = 4;
const CGROUPSTATS_CMD_ATTR_FD: u16 = 1;
const CGROUPSTATS_TYPE_CGROUP_STATS: u16 = 1;

/// Message header plus generic netlink header.
const HEADERS: usize = 16 + 4;

/// Threads of one cgroup by state, its children not included. The kernel counts a thread in a
/// column only if its state has no flags (`cgroupstats_build` in kernel/cgroup/cgroup-v1.c): a
/// freezable or killable sleep is in none of the first four.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StateCounts {
    sleeping: u64,
    pub(super) running: u64,
    stopped: u64,
    /// In uninterruptible sleep, in I/O wait or not.
    pub(super) uninterruptible: u64,
    /// In any other state, in I/O wait.
    pub(super) io_wait: u64,
}

impl StateCounts {
    /// Returns the number of threads that are certainly not blocked.
    pub(super) fn at_rest_or_running(self) -> u64 {
        self.sleeping.saturating_add(self.running).saturating_add(self.stopped)
    }
}

/// An open socket of the family.
#[derive(Debug)]
pub(super) struct Cgroupstats {
    socket: OwnedFd,
    family: u16,
    buffer: [u8; 512],
}

impl Cgroupstats {
    pub(super) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        )?;
        let mut this = Self { socket, family: GENL_ID_CTRL, buffer: [0; 512] };
        let id = this.ask(
            CTRL_CMD_GETFAMILY,
            CTRL_ATTR_FAMILY_NAME,
            b"TASKSTATS\0",
            CTRL_ATTR_FAMILY_ID,
        )?;
        let id = id.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
        this.family = u16::from_ne_bytes(*id);
        Ok(this)
    }

    /// Counts the threads of the cgroup with this directory.
    pub(super) fn count(&mut self, cgroup: BorrowedFd<'_>) -> io::Result<StateCounts> {
        let fd = cgroup.as_raw_fd().to_ne_bytes();
        let stats = self.ask(
            CGROUPSTATS_CMD_GET,
            CGROUPSTATS_CMD_ATTR_FD,
            &fd,
            CGROUPSTATS_TYPE_CGROUP_STATS,
        )?;
        Ok(parse_counts(stats))
    }

    /// Sends one command with one attribute and returns one attribute of the answer.
    fn ask(&mut self, command: u8, attribute: u16, value: &[u8], wanted: u16) -> io::Result<&[u8]> {
        let mut message = Vec::with_capacity(64);
        let value_len = 4 + value.len();
        let len = HEADERS + value_len.next_multiple_of(4);
        message.extend(u32::try_from(len).unwrap_or(0).to_ne_bytes());
        message.extend(self.family.to_ne_bytes());
        message.extend(NLM_F_REQUEST.to_ne_bytes());
        message.extend([0; 8]); // sequence and port: one question at a time, to the kernel
        message.extend([command, 1, 0, 0]);
        message.extend(u16::try_from(value_len).unwrap_or(0).to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(value);
        message.resize(len, 0);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let (len, _) = rustix::net::recv(&self.socket, &mut self.buffer, RecvFlags::empty())?;
        let answer = &self.buffer[..len.min(self.buffer.len())];
        if field(answer, 4) == Some(NLMSG_ERROR) {
            let errno = answer.get(16..20).and_then(|bytes| bytes.first_chunk().copied());
            let errno = i32::from_ne_bytes(errno.unwrap_or_default());
            return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
        }
        let parse_counts = attributes(answer.get(HEADERS..).unwrap_or_default());
        let parse_counts = parse_counts.into_iter().find(|(kind, _)| *kind == wanted);
        parse_counts.map(|(_, value)| value).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// `struct cgroupstats`
fn parse_counts(stats: &[u8]) -> StateCounts {
    let mut numbers = stats
        .chunks_exact(8)
        .map(|chunk| u64::from_ne_bytes(chunk.first_chunk().copied().unwrap_or_default()));
    let mut next = || numbers.next().unwrap_or(0);
    StateCounts {
        sleeping: next(),
        running: next(),
        stopped: next(),
        uninterruptible: next(),
        io_wait: next(),
    }
}

fn field(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

fn attributes(mut rest: &[u8]) -> Vec<(u16, &[u8])> {
    let mut parse_counts = Vec::new();
    while let (Some(len), Some(kind)) = (field(rest, 0), field(rest, 2)) {
        let len = usize::from(len);
        let Some(value) = rest.get(4..len) else { break };
        parse_counts.push((kind, value));
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    parse_counts
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn parse(answer: &[u8]) {
    let _ = attributes(answer);
    let _ = parse_counts(answer).at_rest_or_running();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_lie_about_their_length_end_the_list() {
        assert!(attributes(&[3, 0, 1, 0]).is_empty());
        assert!(attributes(&[200, 0, 1, 0, 9]).is_empty());
        let bytes = [6u16.to_ne_bytes(), 1u16.to_ne_bytes(), [7, 8], [0, 0]].concat();
        assert_eq!(attributes(&bytes), [(1, [7, 8].as_slice())]);
    }
}
