//! The stand-in of a program: a sealed memory file that describes the program, which a container
//! gets instead of the program itself.
//!
//! Since Linux 5.8 a process with a descriptor of a device program may attach it, without any
//! capability, to every control group that it can open for reading. That includes the root of its
//! container, where programs of the host are attached, and other containers. So a container must
//! never get such a descriptor. The kernel does not accept a memory file as a program. To attach a
//! stand-in, a worker reads it, checks its instructions and loads the program again.
//!
//! The content of a stand-in is not trusted: a container can make one itself, which grants it
//! nothing that bpf(2) would not. Start reading at [`read`].

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::program::{ALIGNMENT, LONGEST, is_plain};
use super::{Load, Log};

/// The content of a stand-in.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Content {
    /// A program that the verifier accepted.
    Program(Load),
    /// An attached program, by its id.
    Attached(u32),
}

/// A stand-in that was read from a descriptor of a container.
#[derive(Debug)]
pub(super) struct StandIn {
    pub(super) content: Content,
    /// The name under which its program is loaded. It is unique for each stand-in, so that two with
    /// the same content can be told apart.
    pub(super) name: [u8; 16],
}

/// The longest content in bytes: each instruction is a number of up to 20 digits.
const SIZE: usize = 128 << 10;

const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Makes a stand-in.
pub(super) fn make(content: &Content) -> Result<OwnedFd, Errno> {
    let bytes = serde_json::to_vec(content).map_err(|_| Errno::INVAL)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("device-program", flags)?);
    file.write_all(&bytes).map_err(|_| Errno::NOMEM)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

/// Reads a descriptor of a container. `None` if it is not a stand-in.
pub(super) fn read(fd: OwnedFd) -> Option<StandIn> {
    // Only memory files have seals, so the read below cannot block.
    if !fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SEALS)) {
        return None;
    }
    let status = fstat(fd.as_fd()).ok()?;
    let size = usize::try_from(status.st_size).ok().filter(|size| *size <= SIZE)?;
    let mut bytes = vec![0; size];
    File::from(fd).read_exact_at(&mut bytes, 0).ok()?;
    let mut content: Content = serde_json::from_slice(&bytes).ok()?;
    if let Content::Program(load) = &mut content {
        load.log = Log::default();
        let known = load.instructions.len() <= LONGEST && load.flags & !ALIGNMENT == 0;
        if !known || !is_plain(&load.instructions) {
            return None;
        }
    }
    // Inode numbers of memory files are not reused.
    let mut name = [0; 16];
    let text = format!("ambit_{:x}", status.st_ino & 0xf_ffff_ffff);
    name[..text.len()].copy_from_slice(text.as_bytes());
    Some(StandIn { content, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_is_read_back_and_cannot_be_written() {
        let (one, other) =
            (make(&Content::Attached(7)).unwrap(), make(&Content::Attached(7)).unwrap());
        assert!(File::from(one.try_clone().unwrap()).write_all(b"x").is_err());
        let (one, other) = (read(one).unwrap(), read(other).unwrap());
        assert_eq!((one.content, other.content), (Content::Attached(7), Content::Attached(7)));
        assert!(one.name != other.name && one.name[15] == 0);
    }

    #[test]
    fn the_program_of_a_stand_in_is_checked_again() {
        let load = |instruction, flags| Load {
            kind: ambit_kernel::sys::bpf::Kind::Device,
            instructions: vec![instruction],
            license: Vec::new(),
            name: [0; 16],
            flags,
            log: Log { level: 1, size: 9, wanted: true },
        };
        let read = |load| read(make(&Content::Program(load)).unwrap());
        let exit = 0x95u64.to_le();
        let plain = read(load(exit, 1)).unwrap();
        let silent = Load { log: Log::default(), ..load(exit, 1) };
        assert_eq!(plain.content, Content::Program(silent));
        assert!(read(load(0x85u64.to_le(), 0)).is_none(), "a call");
        assert!(read(load(exit, 1 << 16)).is_none(), "a flag");
    }

    #[test]
    fn an_unsealed_or_empty_file_is_not_a_stand_in() {
        assert!(read(File::open("/dev/null").unwrap().into()).is_none());
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("x", flags).unwrap();
        assert!(read(file.try_clone().unwrap()).is_none(), "it can change");
        fcntl_add_seals(&file, SEALS).unwrap();
        assert!(read(file).is_none(), "it says nothing");
    }
}
