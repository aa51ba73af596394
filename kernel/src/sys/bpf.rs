//! bpf(2) for programs that decide on devices: loading them, attaching them to control groups, asking
//! which ones are attached.
//!
//! Every attribute is built here from plain values; nothing of a caller's own attribute gets to the
//! kernel. Whoever calls this has `CAP_BPF` and `CAP_NET_ADMIN`, and `CAP_SYS_ADMIN` to open a program
//! by its number.
#![allow(unsafe_code, reason = "bpf(2) has no wrapper in nix or rustix")]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

// include/uapi/linux/bpf.h
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const PROG_QUERY: i32 = 16;
/// `BPF_PROG_TYPE_CGROUP_DEVICE`
const CGROUP_DEVICE_PROGRAM: u32 = 15;
/// `BPF_PROG_TYPE_CGROUP_SKB`
const CGROUP_PACKET_PROGRAM: u32 = 8;
/// `BPF_CGROUP_DEVICE`
const CGROUP_DEVICE: u32 = 6;
/// As many as one control group can have.
const MOST: usize = 64;

/// `BPF_F_ALLOW_MULTI`: programs of control groups below are added, they replace nothing.
pub const ALLOW_MULTI: u32 = 2;

/// What a program decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Opening and making devices.
    Device,
    /// Packets.
    Packet,
}

/// How much is asked of what the kernel knows of a program: `struct bpf_prog_info` up to and with its
/// name (`BPF_OBJ_NAME_LEN`).
pub const INFO: usize = 80;

/// What the kernel knows of a program.
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
    /// With zeros at its end.
    pub name: [u8; 16],
    /// `BPF_F_STRICT_ALIGNMENT` and the like.
    pub flags: u32,
}

/// What the verifier is to say, and where.
#[derive(Debug)]
pub struct Log<'a> {
    /// How much.
    pub level: u32,
    /// How many bytes of the buffer it may use.
    pub size: u32,
    /// Without one it says nothing.
    pub buffer: Option<&'a mut [u8]>,
}

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
    /// The kernel reads fields of eight bytes after this.
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Info {
    file: u32,
    length: u32,
    place: u64,
}

/// # Safety
/// All addresses in the attribute are those of memory that the kernel may use as the command says.
unsafe fn bpf<A>(command: i32, attribute: &mut A) -> Result<RawFd, Errno> {
    // SAFETY: the structure lives through the call, and its size is passed with it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<A>())
    };
    RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)
}

/// The kernel takes a negative number for a descriptor that is not there.
fn number(fd: Option<BorrowedFd<'_>>) -> u32 {
    fd.map_or(-1, |fd| fd.as_raw_fd()).cast_unsigned()
}

/// Loads a program.
///
/// # Errors
/// What the verifier or the kernel has against it.
pub fn load(program: Program<'_>, log: Log<'_>) -> Result<OwnedFd, Errno> {
    let (log_size, place) = match log.buffer {
        Some(buffer) if (log.size as usize) <= buffer.len() => (log.size, buffer.as_mut_ptr()),
        Some(_) => return Err(Errno::EINVAL),
        None => (log.size, std::ptr::null_mut()),
    };
    let mut attribute = Load {
        kind: match program.kind {
            Kind::Device => CGROUP_DEVICE_PROGRAM,
            Kind::Packet => CGROUP_PACKET_PROGRAM,
        },
        count: u32::try_from(program.instructions.len()).map_err(|_| Errno::E2BIG)?,
        instructions: program.instructions.as_ptr().addr() as u64,
        license: program.license.as_ptr().addr() as u64,
        log_level: log.level,
        log_size,
        log: place.expose_provenance() as u64,
        kernel_version: 0,
        flags: program.flags,
        name: program.name,
    };
    // SAFETY: instructions and license are read, and as long as they say; the log is written, at
    // most `log_size` bytes, which the buffer has. Without a buffer the address is null.
    let fd = unsafe { bpf(PROG_LOAD, &mut attribute) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to a control group, in the place of another one if there is one to replace. The
/// kernel takes no program of another kind (EINVAL).
///
/// # Errors
/// What the kernel has against it.
pub fn attach(
    target: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    flags: u32,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let (target, program) = (number(Some(target)), number(Some(program)));
    let replaced = replaced.map_or(0, |fd| number(Some(fd)));
    let mut attribute =
        Attach { target, program, kind: CGROUP_DEVICE, flags, replaced, ..Attach::default() };
    // SAFETY: there are no addresses in it.
    unsafe { bpf(PROG_ATTACH, &mut attribute) }.map(drop)
}

/// Detaches a program from a control group. Without one the kernel takes that of a control group that
/// can have only one.
///
/// # Errors
/// What the kernel has against it.
pub fn detach(target: BorrowedFd<'_>, program: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let (target, program) = (number(Some(target)), number(program));
    let mut attribute = Attach { target, program, kind: CGROUP_DEVICE, ..Attach::default() };
    // SAFETY: there are no addresses in it.
    unsafe { bpf(PROG_DETACH, &mut attribute) }.map(drop)
}

/// The numbers of the programs that are attached to this very control group, and with which flags.
///
/// # Errors
/// It is no control group, or the kernel lacks `CONFIG_CGROUP_BPF`.
pub fn attached(target: BorrowedFd<'_>) -> Result<(u32, Vec<u32>), Errno> {
    let mut ids = vec![0u32; MOST];
    let mut attribute = Query {
        target: number(Some(target)),
        kind: CGROUP_DEVICE,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: the kernel writes at most `count` numbers, for which there is room.
    unsafe { bpf(PROG_QUERY, &mut attribute) }?;
    ids.truncate(attribute.count as usize);
    Ok((attribute.attach_flags, ids))
}

/// Opens the program of this number, if it is one that decides on devices.
///
/// # Errors
/// There is none (ENOENT).
pub fn by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attribute = ById { id, ..ById::default() };
    // SAFETY: there are no addresses in it.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attribute) }?;
    // SAFETY: the kernel just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let info = info(program.as_fd())?;
    let word = |at: usize| info[at..at + 4].try_into().map_or(0, u32::from_ne_bytes);
    if (word(0), word(4)) == (CGROUP_DEVICE_PROGRAM, id) { Ok(program) } else { Err(Errno::ENOENT) }
}

/// What the kernel tells of a program.
///
/// # Errors
/// The descriptor is none of a program.
pub fn info(program: BorrowedFd<'_>) -> Result<ProgramInfo, Errno> {
    // Zero: nothing that the structure would point to is asked for.
    let mut info = [0; INFO];
    let mut attribute = Info {
        file: number(Some(program)),
        length: INFO as u32,
        place: info.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the kernel writes `length` bytes at most, which is the size of the array.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attribute) }?;
    Ok(info)
}

/// A program's name, with zeros at its end.
#[must_use]
pub fn name(info: &ProgramInfo) -> [u8; 16] {
    info.last_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_laid_out_as_the_kernel_has_them() {
        assert_eq!((size_of::<Load>(), size_of::<Attach>(), size_of::<Query>()), (64, 24, 32));
        assert_eq!((std::mem::offset_of!(Load, log), size_of::<Info>()), (32, 16));
    }

    #[test]
    fn a_log_beyond_its_buffer_is_refused() {
        let (instructions, license) = (&[][..], c"GPL");
        let program =
            Program { kind: Kind::Device, instructions, license, name: [0; 16], flags: 0 };
        let log = Log { level: 1, size: 9, buffer: Some(&mut [0; 8]) };
        assert_eq!(load(program, log).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn what_is_no_control_group_has_no_programs() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // EPERM without rights, EINVAL without CONFIG_CGROUP_BPF.
        let errno = attached(file.as_fd()).unwrap_err();
        assert!(matches!(errno, Errno::EBADF | Errno::EPERM | Errno::EINVAL), "{errno}");
    }
}
