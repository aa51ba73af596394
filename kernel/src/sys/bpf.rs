//! bpf(2) for programs that decide on devices: loading them, attaching them to control groups, and
//! listing those that are attached.
//!
//! Every attribute is built here from plain values; no field of a container's own attribute gets to the
//! kernel. The caller has `CAP_BPF` and `CAP_NET_ADMIN`, and `CAP_SYS_ADMIN` to open a program by its
//! id.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::raw;
use super::uapi::{BpfAttach, BpfById, BpfLoad, BpfQuery};

// include/uapi/linux/bpf.h
/// `BPF_PROG_TYPE_CGROUP_DEVICE`
const CGROUP_DEVICE_PROGRAM: u32 = 15;
/// `BPF_PROG_TYPE_CGROUP_SKB`
const CGROUP_PACKET_PROGRAM: u32 = 8;
/// `BPF_CGROUP_DEVICE`
const CGROUP_DEVICE: u32 = 6;
/// The most programs that one control group can have (`BPF_CGROUP_MAX_PROGS`).
const MOST: usize = 64;

/// `BPF_F_ALLOW_OVERRIDE`: a program of a control group below replaces this one.
pub const ALLOW_OVERRIDE: u32 = 1;
/// `BPF_F_ALLOW_MULTI`: the programs of control groups below are run too, and replace nothing.
pub const ALLOW_MULTI: u32 = 2;

/// What a program decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Opening and making devices.
    Device,
    /// Packets.
    Packet,
}

/// The length of `struct bpf_prog_info` up to the end of its name (`BPF_OBJ_NAME_LEN`).
pub const INFO: usize = 80;

/// The beginning of `struct bpf_prog_info`.
pub type ProgramInfo = [u8; INFO];

/// A program that is to be loaded.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// What it decides on.
    pub kind: Kind,
    /// `struct bpf_insn`, eight bytes each.
    pub instructions: &'a [u64],
    /// Such as "GPL".
    pub license: &'a CStr,
    /// Padded with zeros.
    pub name: [u8; 16],
    /// `BPF_F_STRICT_ALIGNMENT` and the like.
    pub flags: u32,
}

/// The log of the verifier.
#[derive(Debug)]
pub struct Log<'a> {
    /// `log_level`.
    pub level: u32,
    /// How many bytes of the buffer it may fill.
    pub size: u32,
    /// Without one it writes no log.
    pub buffer: Option<&'a mut [u8]>,
}

/// The kernel takes a negative number for a missing descriptor.
fn number(fd: Option<BorrowedFd<'_>>) -> u32 {
    fd.map_or(-1, |fd| fd.as_raw_fd()).cast_unsigned()
}

/// Loads a program.
///
/// # Errors
/// EINVAL: the log is longer than its buffer. Otherwise what the kernel or its verifier returns.
pub fn load(program: Program<'_>, log: Log<'_>) -> Result<OwnedFd, Errno> {
    let kind = match program.kind {
        Kind::Device => CGROUP_DEVICE_PROGRAM,
        Kind::Packet => CGROUP_PACKET_PROGRAM,
    };
    let Program { instructions, license, name, flags, .. } = program;
    let attribute = BpfLoad { kind, log_level: log.level, flags, name, ..BpfLoad::default() };
    raw::bpf_load(attribute, instructions, license, log.size, log.buffer)
}

/// Attaches a program to a control group, in the place of `replaced` if that is given. The kernel takes
/// no program of another kind (EINVAL).
pub fn attach(
    target: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    flags: u32,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let (target, program) = (number(Some(target)), number(Some(program)));
    let replaced = replaced.map_or(0, |fd| number(Some(fd)));
    let kind = CGROUP_DEVICE;
    raw::bpf_attach(BpfAttach { target, program, kind, flags, replaced, ..BpfAttach::default() })
}

/// Detaches a program from a control group. Without `program` the kernel detaches that of a control
/// group that can have only one.
pub fn detach(target: BorrowedFd<'_>, program: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let (target, program) = (number(Some(target)), number(program));
    raw::bpf_detach(BpfAttach { target, program, kind: CGROUP_DEVICE, ..BpfAttach::default() })
}

/// Returns the flags with which programs are attached to this very control group, and their ids.
///
/// # Errors
/// It is no control group, or the kernel lacks `CONFIG_CGROUP_BPF`.
pub fn attached(target: BorrowedFd<'_>) -> Result<(u32, Vec<u32>), Errno> {
    let mut ids = vec![0u32; MOST];
    let query =
        BpfQuery { target: number(Some(target)), kind: CGROUP_DEVICE, ..BpfQuery::default() };
    let found = raw::bpf_query(query, &mut ids)?;
    ids.truncate(found.count as usize);
    Ok((found.attach_flags, ids))
}

/// Opens the program with this id, if it is one that decides on devices.
///
/// # Errors
/// ENOENT: there is none.
pub fn by_id(id: u32) -> Result<OwnedFd, Errno> {
    let program = raw::bpf_open(BpfById { id, ..BpfById::default() })?;
    let info = info(program.as_fd())?;
    let word = |at: usize| info[at..at + 4].try_into().map_or(0, u32::from_ne_bytes);
    if (word(0), word(4)) == (CGROUP_DEVICE_PROGRAM, id) { Ok(program) } else { Err(Errno::NOENT) }
}

/// Returns what the kernel knows of a program.
pub fn info(program: BorrowedFd<'_>) -> Result<ProgramInfo, Errno> {
    raw::bpf_info(program)
}

/// Returns a program's name, padded with zeros.
pub fn name(info: &ProgramInfo) -> [u8; 16] {
    info.last_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_beyond_its_buffer_is_refused() {
        let (instructions, license) = (&[][..], c"GPL");
        let program =
            Program { kind: Kind::Device, instructions, license, name: [0; 16], flags: 0 };
        let log = Log { level: 1, size: 9, buffer: Some(&mut [0; 8]) };
        assert_eq!(load(program, log).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn a_file_that_is_no_control_group_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // EPERM without rights, EINVAL without CONFIG_CGROUP_BPF.
        let errno = attached(file.as_fd()).unwrap_err();
        assert!(matches!(errno, Errno::BADF | Errno::PERM | Errno::INVAL), "{errno}");
    }
}
