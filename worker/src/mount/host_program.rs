//! A helper that is a program of the host, so that the container does not need to have it.
//!
//! It runs as the caller in all of the caller's namespaces, where the host's files are not visible.
//! So it is opened with the host's rights before any namespace is entered, and is then copied to
//! sealed memory: the copies are charged to the container, and a process that reads the helper's
//! `/proc` directory must never get a file of the host. A dynamically linked program is started by
//! a copy of its loader, which gets copies of all its libraries and looks up none by name. Start
//! reading at [`HostProgram::open`].

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::error::{Context, Error};

/// The largest program or library, in bytes. All copies are charged to the container.
const LONGEST: u64 = 64 << 20;
/// `MFD_EXEC` (Linux 6.3), which is needed if `vm.memfd_noexec` is set.
const EXEC: MemfdFlags = MemfdFlags::from_bits_retain(0x10);
/// The ELF program header type `PT_INTERP`.
const INTERPRETER: u32 = 3;
/// A string in programs that are linked to libfuse 3, and one in libfuse 3 itself.
const LIBFUSE3: [&[u8]; 2] = [b"libfuse3.so", b"/dev/fd/%u%n"];
/// A string in programs that are linked to libfuse 2, and one in libfuse 2 itself and in its copy in
/// ntfs-3g.
const LIBFUSE2: [&[u8]; 2] = [b"libfuse.so.2", b"\0nonempty\0"];

/// The library of a FUSE program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Library {
    /// libfuse 3, which accepts an open `/dev/fuse` as the mount point.
    Fuse3,
    /// libfuse 2, which mounts on a folder with files only if told so.
    Fuse2,
    /// Another one, or a script.
    Other,
}

impl Library {
    /// Finds the library in the bytes of a program.
    pub(super) fn find(bytes: &[u8]) -> Self {
        let has = |words: &[&[u8]]| {
            words.iter().any(|word| bytes.windows(word.len()).any(|window| window == *word))
        };
        match () {
            () if has(&LIBFUSE3) => Self::Fuse3,
            () if has(&LIBFUSE2) => Self::Fuse2,
            () => Self::Other,
        }
    }
}

/// A program of the host, opened.
#[derive(Debug)]
pub(super) struct HostProgram {
    path: PathBuf,
    program: File,
    /// Its loader and its libraries, if it is dynamically linked.
    linked: Option<(File, Vec<File>)>,
    library: Library,
}

/// An executable copy.
#[derive(Debug)]
pub(super) struct Image {
    /// The file for execveat(2): the program or its loader.
    pub(super) start: OwnedFd,
    /// The arguments for the loader, in front of the program's own. Empty for a static program.
    pub(super) words: Vec<CString>,
    /// The files that the loader opens. They must be open during execveat(2).
    pub(super) files: Vec<OwnedFd>,
}

impl HostProgram {
    /// Opens the program. Needs the host's rights and root.
    pub(super) fn open(path: &str) -> Result<Self, Error> {
        let gone = |error: std::io::Error| {
            Error::new(Errno::NODEV, format!("the host has no {path}: open: {error}"))
        };
        let program = File::open(path).map_err(gone)?;
        let bytes = content(&program, path)?;
        if !bytes.starts_with(b"\x7fELF") {
            return Err(Error::new(
                Errno::NOEXEC,
                format!("{path} is a script: a helper of the host has to be a binary"),
            ));
        }
        let path = PathBuf::from(path);
        let Some(loader) = interpreter(&bytes) else {
            let library = Library::find(&bytes);
            return Ok(Self { path, program, linked: None, library });
        };
        let (loader, libraries) = libraries(&path, &loader)?;
        let is_linked = |start: &[u8]| {
            let mut names = libraries.iter().filter_map(|library| library.file_name());
            names.any(|name| name.as_bytes().starts_with(start))
        };
        let library = match () {
            () if is_linked(b"libfuse3.so") => Library::Fuse3,
            () if is_linked(b"libfuse.so.2") => Library::Fuse2,
            // ntfs-3g has its own copy inside.
            () if Library::find(&bytes) == Library::Fuse2 => Library::Fuse2,
            () => Library::Other,
        };
        let open = |path: &PathBuf| File::open(path).context(format!("open of {}", path.display()));
        let linked = (open(&loader)?, libraries.iter().map(open).collect::<Result<_, _>>()?);
        Ok(Self { path, program, linked: Some(linked), library })
    }

    /// Its path on the host.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its FUSE library.
    pub(super) fn library(&self) -> Library {
        self.library
    }

    /// Copies the program. The memory is charged to the control groups of this process.
    pub(super) fn copy(&self) -> Result<Image, Error> {
        let program = sealed(&self.program)?;
        let Some((loader, libraries)) = &self.linked else {
            return Ok(Image { start: program, words: Vec::new(), files: Vec::new() });
        };
        let start = sealed(loader)?;
        let mut files = libraries.iter().map(sealed).collect::<Result<Vec<_>, _>>()?;
        let name = |file: &OwnedFd| format!("/proc/self/fd/{}", file.as_raw_fd());
        let preload = files.iter().map(name).collect::<Vec<_>>().join(":");
        let own = self.path.to_string_lossy().into_owned();
        // The container's ld.so.cache is for its own libraries.
        let mut words = vec![own.clone(), "--inhibit-cache".into(), "--argv0".into(), own];
        words.extend(["--preload".into(), preload, name(&program)]);
        files.push(program);
        let words: Result<_, _> = words.into_iter().map(CString::new).collect();
        let words = words.map_err(|_| Error::new(Errno::INVAL, "a NUL in a path"))?;
        Ok(Image { start, words, files })
    }
}

fn content(file: &File, path: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).context(format!("read of {path}"))?;
    if bytes.len() as u64 > LONGEST {
        return Err(Error::new(Errno::FBIG, format!("{path} is longer than 64 MiB")));
    }
    Ok(bytes)
}

/// Returns the loader that an ELF program names. `None` for a static program.
fn interpreter(bytes: &[u8]) -> Option<String> {
    let number = |at: usize, length: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(length)?)?;
        let mut number = [0; 8];
        number[..length].copy_from_slice(field);
        usize::try_from(u64::from_le_bytes(number)).ok()
    };
    // 64 bits, little endian. For other programs execve(2) fails.
    if bytes.get(4..6) != Some(&[2, 1]) {
        return None;
    }
    let (from, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let header = from.checked_add(index.checked_mul(size)?)?;
        if number(header, 4)? == INTERPRETER as usize {
            let (at, length) = (number(header.checked_add(8)?, 8)?, number(header + 32, 8)?);
            let text = bytes.get(at..at.checked_add(length)?)?;
            let text = text.split(|&byte| byte == 0).next()?;
            return std::str::from_utf8(text).ok().map(str::to_owned);
        }
    }
    None
}

/// Has the loader list the libraries that it would load on the host. No code of the program runs.
fn libraries(path: &Path, loader: &str) -> Result<(PathBuf, Vec<PathBuf>), Error> {
    let wrong = |what: String| {
        let path = path.display();
        Error::new(
            Errno::NOEXEC,
            format!("{path} is dynamically linked and {what}; give a static one"),
        )
    };
    if !["ld-linux", "ld64.so"].iter().any(|name| loader.contains(name)) {
        return Err(wrong(format!("its loader {loader} is not glibc's")));
    }
    let mut list = Command::new(loader);
    list.arg("--list").arg(path).env_clear().stdin(Stdio::null());
    let said = list.output().context(format!("execution of {loader}"))?;
    let text = String::from_utf8_lossy(&said.stdout);
    if !said.status.success() {
        return Err(wrong(format!("{loader} --list fails")));
    }
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        return Err(wrong(format!("the host lacks a library: {}", missing.trim())));
    }
    Ok((PathBuf::from(loader), loaded(&text)))
}

/// Parses the output of `ld.so --list`: `NAME => PATH (ADDRESS)`.
fn loaded(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let (path, _) = line.split_once(" => ")?.1.rsplit_once(" (")?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter_map(path).collect()
}

/// Copies a file to a memory file with all seals.
pub(crate) fn sealed(file: &File) -> Result<OwnedFd, Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = match rustix::fs::memfd_create("helper", flags | EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("helper", flags),
        other => other,
    };
    let memory = File::from(memory.context("memfd_create for a copy of the helper")?);
    let (mut part, mut at) = (vec![0; 1 << 16], 0);
    while let length @ 1.. = file.read_at(&mut part, at).context("read of the helper")? {
        memory.write_all_at(&part[..length], at).context("write of a copy of the helper")?;
        at += length as u64;
        if at > LONGEST {
            return Err(Error::new(Errno::FBIG, "a library is longer than 64 MiB"));
        }
    }
    let seals = SealFlags::SEAL | SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK;
    rustix::fs::fcntl_add_seals(&memory, seals).context("fcntl(F_ADD_SEALS)")?;
    Ok(memory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaders_and_libraries_are_found() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let loader = interpreter(&bytes).unwrap();
        assert!(loader.contains("ld"), "{loader}");
        assert_eq!(interpreter(b"\x7fELF\x02\x01"), None);
        let mut wrong = bytes;
        wrong[32..40].fill(0xff);
        assert_eq!(interpreter(&wrong), None);
        let text = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f01)\n\t/lib64/ld.so (0x7f)\n";
        assert_eq!(loaded(text), [PathBuf::from("/lib/libc.so.6")]);
    }

    #[test]
    fn a_missing_program_and_a_script_are_refused_with_the_reason() {
        let error = |path: &str| HostProgram::open(path).unwrap_err().message;
        assert!(error("/no/such").contains("the host has no /no/such"));
        assert!(error("/etc/passwd").contains("script"));
    }

    #[test]
    fn a_sealed_copy_cannot_be_written() {
        let copy = File::from(sealed(&File::open("/etc/passwd").unwrap()).unwrap());
        assert!(copy.write_at(b"x", 0).is_err() && copy.set_len(0).is_err());
    }
}
