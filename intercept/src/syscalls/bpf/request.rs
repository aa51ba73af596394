//! Reads the request of a caller from its attribute (`union bpf_attr`).
//!
//! The attribute is copied once. A field that is not known here, or that would refer to a
//! descriptor of the daemon, must never be passed on: a call with such a field is left to the
//! kernel. The layout is the same for 32-bit programs. Start reading at [`read`].

use ambit_kernel::sys::bpf::Kind;
use rustix::io::Errno;

use super::{OBJ_GET_INFO_BY_FD, PROG_ATTACH, PROG_DETACH, PROG_GET_FD_BY_ID, PROG_LOAD};
use crate::call::Call;
use crate::syscalls::context::Context;
use crate::verdict::CallError::{self, Fail, NotGranted};
use crate::verdict::Verdict;
use ambit_worker::operation::bpf::{ALIGNMENT, LONGEST, LONGEST_LOG, Load, Log, is_plain};

/// The kernel copies at most a page.
const PAGE: usize = 4096;
/// The length of the attribute that is known here: that of Linux 6.18.
const KNOWN: usize = 168;
/// The longest license with its NUL, in bytes.
const LICENSE: usize = 128;

// include/uapi/linux/bpf.h
const CGROUP_DEVICE_PROGRAM: u32 = 15;
/// Libraries load one of these to find out whether programs can be attached.
const CGROUP_PACKET_PROGRAM: u32 = 8;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_OVERRIDE: u32 = 1;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;
/// The offset of `log_true_size`, which the kernel only writes.
const TRUE_SIZE: std::ops::Range<usize> = 140..144;

/// A request of a caller. Descriptors and addresses are the caller's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Load { program: Load, log: u64 },
    Attach { target: i32, program: i32, flags: u32, replaced: Option<i32> },
    Detach { target: i32, program: i32 },
    Query(Query),
    Info(Info),
    Open(u32),
}

/// A query for attached programs, and where the result is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) target: i32,
    attribute: u64,
    ids: u64,
    room: u32,
}

/// A query for the information about a program, and where the result is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) fd: i32,
    attribute: u64,
    place: u64,
    room: u32,
}

/// Reads the attribute, and for a load the instructions and the license. The error of a request that
/// the kernel would refuse is its errno; requests that are not known here are not granted.
pub(super) fn read(call: &Call, cx: &Context<'_>) -> Result<Request, CallError> {
    let size = call.uint(2) as usize;
    if size > PAGE {
        // The kernel accepts more if its pages are larger. No known program needs that.
        let is_accepted = size <= rustix::param::page_size();
        return Err(if is_accepted { NotGranted } else { Fail(Errno::TOOBIG) });
    }
    if size == 0 && call.uint(0) == PROG_LOAD {
        // A program without instructions.
        return Err(Fail(Errno::TOOBIG));
    }
    let mut bytes = [0; PAGE];
    if size > 0 && cx.read(call, call.long(1), &mut bytes[..size])? < size {
        return Err(Fail(Errno::FAULT));
    }
    let (known, beyond) = bytes.split_at(KNOWN);
    if beyond.iter().any(|&byte| byte != 0) {
        return Err(Fail(Errno::TOOBIG));
    }
    let attribute = Attribute(known);
    match call.uint(0) {
        PROG_LOAD => load(call, cx, attribute),
        PROG_ATTACH => attach(attribute),
        PROG_DETACH => detach(attribute),
        PROG_GET_FD_BY_ID => open(attribute),
        OBJ_GET_INFO_BY_FD => info(attribute, call.long(1), size),
        _ => query(attribute, call.long(1), size),
    }
}

/// The known part of an attribute. Bytes that the caller left out are zero.
#[derive(Clone, Copy)]
struct Attribute<'a>(&'a [u8]);

impl Attribute<'_> {
    fn word(self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }

    fn long(self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    }

    fn fd(self, at: usize) -> i32 {
        self.word(at).cast_signed()
    }

    /// True if all bytes from here on are zero.
    fn ends(self, at: usize) -> bool {
        self.0.iter().skip(at).all(|&byte| byte == 0)
    }
}

fn load(call: &Call, cx: &Context<'_>, attribute: Attribute<'_>) -> Result<Request, CallError> {
    let kind = kind(attribute).ok_or(NotGranted)?;
    let count = attribute.word(4) as usize;
    if count == 0 || count > LONGEST {
        return Err(Fail(Errno::TOOBIG));
    }
    let mut bytes = vec![0; count * size_of::<u64>()];
    if cx.read(call, attribute.long(8), &mut bytes)? < bytes.len() {
        return Err(Fail(Errno::FAULT));
    }
    let instructions: Vec<_> =
        bytes.as_chunks().0.iter().map(|&bytes| u64::from_ne_bytes(bytes)).collect();
    let mut license = [0; LICENSE];
    let length = cx.read(call, attribute.long(16), &mut license)?;
    let read = &license[..length];
    // A license that is too long is cut, as by the kernel.
    let end = match read.iter().position(|&byte| byte == 0) {
        Some(end) => end,
        None if read.len() == LICENSE => LICENSE - 1,
        None => return Err(Fail(Errno::FAULT)),
    };
    if !is_plain(&instructions) {
        return Err(NotGranted);
    }
    let mut name = [0; 16];
    name.copy_from_slice(&attribute.0[48..64]);
    let log = attribute.long(32);
    let program = Load {
        kind,
        instructions,
        license: read[..end].to_vec(),
        name,
        flags: attribute.word(44),
        log: Log {
            level: attribute.word(24),
            size: attribute.word(28).min(LONGEST_LOG as u32),
            wanted: log != 0,
        },
    };
    Ok(Request::Load { program, log })
}

/// Returns the type of the program to load. `None` if the call is left to the kernel: another type,
/// or a field that is not known here.
fn kind(attribute: Attribute<'_>) -> Option<Kind> {
    let mut rest = attribute.0.to_vec();
    rest[TRUE_SIZE].fill(0);
    let kind = match attribute.word(0) {
        CGROUP_DEVICE_PROGRAM => Kind::Device,
        CGROUP_PACKET_PROGRAM => Kind::Packet,
        _ => return None,
    };
    // Up to byte 72: prog_type, instructions, license, log, kern_version, prog_flags, prog_name,
    // prog_ifindex, expected_attach_type. Behind that are descriptors and pointers.
    let (flags, interface, expected) = (attribute.word(44), attribute.word(64), attribute.word(68));
    let is_known = flags & !ALIGNMENT == 0
        && interface == 0
        && matches!(expected, 0 | CGROUP_DEVICE)
        && Attribute(&rest).ends(72);
    is_known.then_some(kind)
}

fn attach(attribute: Attribute<'_>) -> Result<Request, CallError> {
    let flags = attribute.word(12);
    if attribute.fd(0) < 0 && flags & !REPLACE == 0 {
        // Libraries find out by this errno which attach types the kernel has.
        return Err(Fail(Errno::BADF));
    }
    if attribute.word(8) != CGROUP_DEVICE
        || flags & !(ALLOW_OVERRIDE | ALLOW_MULTI | REPLACE) != 0
        || !attribute.ends(20)
    {
        return Err(NotGranted);
    }
    Ok(Request::Attach {
        target: attribute.fd(0),
        program: attribute.fd(4),
        flags,
        replaced: (flags & REPLACE != 0).then(|| attribute.fd(16)),
    })
}

fn detach(attribute: Attribute<'_>) -> Result<Request, CallError> {
    match (attribute.word(8), attribute.ends(12)) {
        (CGROUP_DEVICE, true) => {
            Ok(Request::Detach { target: attribute.fd(0), program: attribute.fd(4) })
        }
        (CGROUP_DEVICE, false) => Err(Fail(Errno::INVAL)),
        _ => Err(NotGranted),
    }
}

fn open(attribute: Attribute<'_>) -> Result<Request, CallError> {
    if attribute.ends(4) { Ok(Request::Open(attribute.word(0))) } else { Err(Fail(Errno::INVAL)) }
}

fn info(attribute: Attribute<'_>, address: u64, size: usize) -> Result<Request, CallError> {
    if size < 16 || !attribute.ends(16) {
        return Err(NotGranted);
    }
    let (fd, room) = (attribute.fd(0), attribute.word(4));
    Ok(Request::Info(Info { fd, attribute: address, place: attribute.long(8), room }))
}

fn query(attribute: Attribute<'_>, address: u64, size: usize) -> Result<Request, CallError> {
    // query_flags must be 0: BPF_F_QUERY_EFFECTIVE would return ids of programs of the host's
    // cgroups.
    let plain = attribute.word(8) == 0 && attribute.ends(28);
    if attribute.word(4) != CGROUP_DEVICE || !plain || size < 28 {
        return Err(NotGranted);
    }
    Ok(Request::Query(Query {
        target: attribute.fd(0),
        attribute: address,
        ids: attribute.long(16),
        room: attribute.word(24),
    }))
}

impl Info {
    /// Writes the result as the kernel does: as much as the caller has room for, and its length.
    pub(super) fn write_result(
        &self,
        call: &Call,
        cx: &Context<'_>,
        bytes: &[u8],
    ) -> Result<Verdict, CallError> {
        let length = bytes.len().min(self.room as usize);
        cx.write(call, self.place, &bytes[..length])?;
        cx.write(call, self.attribute + 4, &(length as u32).to_ne_bytes())?;
        Ok(Verdict::Return(0))
    }
}

impl Query {
    /// Writes the result as the kernel does. `bytes` are the attach flags and the program ids.
    pub(super) fn write_result(
        &self,
        call: &Call,
        cx: &Context<'_>,
        bytes: &[u8],
    ) -> Result<Verdict, CallError> {
        let Some((flags, ids)) = bytes.split_first_chunk::<4>() else {
            return Ok(Verdict::Continue);
        };
        let count = ids.len() / size_of::<u32>();
        cx.write(call, self.attribute + 12, flags)?;
        cx.write(call, self.attribute + 24, &(count as u32).to_ne_bytes())?;
        // A caller without a buffer asks only for the number of programs.
        let room = self.room as usize;
        if room == 0 || self.ids == 0 || count == 0 {
            return Ok(Verdict::Return(0));
        }
        cx.write(call, self.ids, &ids[..room.min(count) * size_of::<u32>()])?;
        if room < count { Ok(Verdict::Fail(Errno::NOSPC)) } else { Ok(Verdict::Return(0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(words: &[(usize, u32)]) -> [u8; KNOWN] {
        let mut bytes = [0; KNOWN];
        for &(at, word) in words {
            bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn only_device_and_packet_programs_without_unknown_fields_are_loaded() {
        let of = |words: &[(usize, u32)]| kind(Attribute(&attribute(words)));
        assert_eq!(of(&[(0, 15), (44, ALIGNMENT), (68, CGROUP_DEVICE)]), Some(Kind::Device));
        assert_eq!(of(&[(0, 8), (TRUE_SIZE.start, 1)]), Some(Kind::Packet));
        for other in (0..40).filter(|kind| ![15, 8].contains(kind)) {
            assert_eq!(of(&[(0, other)]), None, "type {other}");
        }
        // Flags, an interface, another attach type, and all behind it: descriptors and pointers.
        let unknown = [(44, !ALIGNMENT), (64, 1), (68, 1)].into_iter();
        for field in unknown.chain((72..KNOWN).step_by(4).map(|at| (at, 1))) {
            if field.0 != TRUE_SIZE.start {
                assert_eq!(of(&[(0, 15), field]), None, "{field:?}");
            }
        }
    }

    #[test]
    fn attaching_with_unknown_fields_is_left_to_the_kernel() {
        let of = |words: &[(usize, u32)]| attach(Attribute(&attribute(words)));
        let base = [(0, 7), (4, 8), (8, CGROUP_DEVICE)];
        let with = |more: &[(usize, u32)]| of(&[&base, more].concat());
        let attach_of =
            |flags, replaced| Request::Attach { target: 7, program: 8, flags, replaced };
        assert_eq!(with(&[]).unwrap(), attach_of(0, None));
        assert_eq!(with(&[(12, 6), (16, 9)]).unwrap(), attach_of(6, Some(9)));
        assert_eq!(
            with(&[(12, 2), (16, 9)]).unwrap(),
            attach_of(2, None),
            "none is to be replaced"
        );
        for odd in [(12, 8), (12, 1 << 31), (20, 1), (24, 1), (KNOWN - 4, 1)] {
            assert!(matches!(with(&[odd]), Err(NotGranted)), "{odd:?}");
        }
        assert!(matches!(of(&[(0, 7), (4, 8), (8, 0)]), Err(NotGranted)), "another attach type");
    }

    #[test]
    fn a_query_is_for_one_cgroup() {
        let of = |words: &[(usize, u32)], size| query(Attribute(&attribute(words)), 100, size);
        let parsed = of(&[(0, 7), (4, CGROUP_DEVICE), (16, 5), (24, 3)], 32);
        let query = Query { target: 7, attribute: 100, ids: 5, room: 3 };
        assert_eq!(parsed.unwrap(), Request::Query(query));
        let is_left = |words: &[(usize, u32)], size| matches!(of(words, size), Err(NotGranted));
        assert!(is_left(&[(4, CGROUP_DEVICE)], 24), "no room for the count");
        assert!(is_left(&[(4, CGROUP_DEVICE), (8, 1)], 32), "effective programs");
        assert!(is_left(&[(4, CGROUP_DEVICE), (32, 1)], 64), "more lists");
    }

    #[test]
    fn unknown_fields_of_other_requests_are_errors() {
        let bytes = attribute(&[(0, 7), (4, 8), (8, CGROUP_DEVICE)]);
        let detached = Request::Detach { target: 7, program: 8 };
        assert_eq!(detach(Attribute(&bytes)).unwrap(), detached);
        let bytes = attribute(&[(8, CGROUP_DEVICE), (12, 2)]);
        assert!(matches!(detach(Attribute(&bytes)), Err(Fail(Errno::INVAL))));
        assert_eq!(open(Attribute(&attribute(&[(0, 5)]))).unwrap(), Request::Open(5));
        assert!(matches!(open(Attribute(&attribute(&[(4, 5)]))), Err(Fail(Errno::INVAL))));
    }
}
