//! The layout of the packets of liblxc's proxy protocol, in native byte order.
//!
//! Packets come from a process outside of the daemon: no bytes may make [`decode`] panic.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | reserved, zero |
//! | 8 | 4 | process id of the monitor, in its own pid namespace |
//! | 12 | 4 | process id of the container's init, in the same namespace |
//! | 16 | 2+2+2+2 | sizes of the three structures of seccomp, padding |
//! | 24 | 8 | length of the cookie |
//! | 32 | 80 | `struct seccomp_notif` |
//! | 112 | 24 | `struct seccomp_notif_resp`, to be filled in |
//! | 136 | | cookie |

use libseccomp_sys::{seccomp_data, seccomp_notif_resp};

/// Length of a packet without its cookie, and of every answer.
pub(super) const FIXED: usize = 136;

/// The length of the longest packet that is accepted. liblxc has room for cookies of 64 bytes.
pub(super) const LONGEST: usize = FIXED + 256;

/// A decoded request.
#[derive(Debug)]
pub(super) struct Packet<'a> {
    /// All but the cookie.
    pub(super) fixed: [u8; FIXED],
    pub(super) monitor_pid: i32,
    pub(super) init_pid: i32,
    pub(super) id: u64,
    pub(super) tid: u32,
    pub(super) data: seccomp_data,
    cookie: &'a [u8],
}

/// Why a packet is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("its length is wrong")]
    Length,
    #[error("the reserved field is not zero")]
    Reserved,
    #[error("its structures have other sizes than 80, 24 and 64: is this liblxc's protocol?")]
    Sizes,
    #[error("it lacks the descriptors of /proc/<tid> and /proc/<tid>/mem")]
    Descriptors,
}

/// Decodes a packet.
pub(super) fn decode(packet: &[u8]) -> Result<Packet<'_>, Error> {
    let (fixed, cookie) = packet.split_first_chunk::<FIXED>().ok_or(Error::Length)?;
    if u64_at(fixed, 0) != 0 {
        return Err(Error::Reserved);
    }
    if [u16_at(fixed, 16), u16_at(fixed, 18), u16_at(fixed, 20)] != [80, 24, 64] {
        return Err(Error::Sizes);
    }
    if u64_at(fixed, 24) != cookie.len() as u64 {
        return Err(Error::Length);
    }
    let data = seccomp_data {
        nr: u32_at(fixed, 48).cast_signed(),
        arch: u32_at(fixed, 52),
        instruction_pointer: u64_at(fixed, 56),
        args: [64, 72, 80, 88, 96, 104].map(|at| u64_at(fixed, at)),
    };
    Ok(Packet {
        monitor_pid: u32_at(fixed, 8).cast_signed(),
        init_pid: u32_at(fixed, 12).cast_signed(),
        id: u64_at(fixed, 32),
        tid: u32_at(fixed, 40),
        data,
        fixed: *fixed,
        cookie,
    })
}

impl Packet<'_> {
    /// Returns the cookie, which names the container (`lxc.seccomp.notify.cookie`).
    pub(super) fn cookie(&self) -> &str {
        std::str::from_utf8(self.cookie).unwrap_or("(not text)")
    }
}

/// Returns the answer to a packet: the packet without its cookie, with the response filled in.
pub(super) fn reply(mut packet: [u8; FIXED], response: &seccomp_notif_resp) -> [u8; FIXED] {
    packet[112..120].copy_from_slice(&response.id.to_ne_bytes());
    packet[120..128].copy_from_slice(&response.val.to_ne_bytes());
    packet[128..132].copy_from_slice(&response.error.to_ne_bytes());
    packet[132..136].copy_from_slice(&response.flags.to_ne_bytes());
    packet
}

fn bytes<const N: usize>(packet: &[u8; FIXED], at: usize) -> [u8; N] {
    std::array::from_fn(|index| packet[at + index])
}

fn u16_at(packet: &[u8; FIXED], at: usize) -> u16 {
    u16::from_ne_bytes(bytes(packet, at))
}

fn u32_at(packet: &[u8; FIXED], at: usize) -> u32 {
    u32::from_ne_bytes(bytes(packet, at))
}

fn u64_at(packet: &[u8; FIXED], at: usize) -> u64 {
    u64::from_ne_bytes(bytes(packet, at))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::arch;
    use super::*;

    /// Returns a packet for sysinfo(2) of the native architecture, as liblxc sends it.
    pub(in super::super) fn sysinfo(monitor: i32, tid: u32, address: u64, cookie: &str) -> Vec<u8> {
        let native = arch::of_this_kernel()[0];
        let mut packet = Vec::new();
        packet.extend(0u64.to_ne_bytes());
        packet.extend([monitor, monitor].map(i32::to_ne_bytes).concat());
        packet.extend([80u16, 24, 64, 0].map(u16::to_ne_bytes).concat());
        packet.extend((cookie.len() as u64).to_ne_bytes());
        packet.extend(7u64.to_ne_bytes());
        packet.extend([tid, 0].map(u32::to_ne_bytes).concat());
        packet.extend(native.number("sysinfo").unwrap().to_ne_bytes());
        packet.extend(native.audit.to_ne_bytes());
        packet.extend([0x1000, address, 0, 0, 0, 0, 0].map(u64::to_ne_bytes).concat());
        packet.extend([7u64, 0, 0].map(u64::to_ne_bytes).concat());
        packet.extend(cookie.as_bytes());
        packet
    }

    /// The packet that liblxc 5.0.2 sent for `free` of busybox on x86_64, with the cookie "web".
    #[cfg(all(target_arch = "x86_64", target_endian = "little"))]
    const GOLDEN: &str = "\
        0000000000000000 7a000000 7b000000 5000 1800 4000 0000 0300000000000000 \
        59fc603754a240e6 7d000000 00000000 63000000 3e0000c0 9715480000000000 \
        c8ae3d17fd7f0000 0a4d656d3a202020 0000000000000000 \
        ffffffff00000000 ffffff7f00000000 ffffffff00000000 \
        59fc603754a240e6 0000000000000000 00000000 00000000 776562";

    #[cfg(all(target_arch = "x86_64", target_endian = "little"))]
    #[test]
    fn a_packet_of_liblxc_is_decoded_and_answered() {
        let digits: Vec<u8> = GOLDEN.bytes().filter(u8::is_ascii_hexdigit).collect();
        let packet: Vec<u8> = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        assert_eq!(packet.len(), 139);
        let decoded = decode(&packet).unwrap();
        assert_eq!((decoded.monitor_pid, decoded.tid), (122, 125));
        assert_eq!(decoded.id, 0xe640_a254_3760_fc59);
        assert_eq!((decoded.data.nr, decoded.data.arch), (99, 0xc000_003e));
        assert_eq!(decoded.data.args[0], 0x7ffd_173d_aec8);
        assert_eq!(decoded.cookie(), "web");
        let response = seccomp_notif_resp { id: 1, val: 2, error: -14, flags: 1 };
        let answer = reply(decoded.fixed, &response);
        assert_eq!(answer[..112], packet[..112]);
        let mut response = [1u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
        response.extend((-14i32).to_le_bytes());
        response.extend(1u32.to_le_bytes());
        assert_eq!(answer[112..], response);
    }

    #[test]
    fn a_malformed_packet_is_refused_with_the_reason() {
        let good = sysinfo(1, 2, 3, "c");
        assert_eq!(decode(&good[..135]).unwrap_err(), Error::Length);
        assert_eq!(decode(&good[..136]).unwrap_err(), Error::Length, "cookie missing");
        let mut reserved = good.clone();
        reserved[3] = 1;
        assert_eq!(decode(&reserved).unwrap_err(), Error::Reserved);
        let mut sizes = good;
        sizes[16] = 81;
        assert_eq!(decode(&sizes).unwrap_err(), Error::Sizes);
    }

    proptest! {
        #[test]
        fn no_bytes_make_decode_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
        }
    }
}
