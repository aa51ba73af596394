//! The program of a helper: where it is in the container, its command line, its execution and its
//! output.
//!
//! The helper is never executed before it is confined (`confine.rs`), and its output must never
//! block it or take more than a page. Start reading at [`execute`] and [`watch`].

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ambit_kernel::output;
use ambit_kernel::sys::close_range::close_on_exec_from;
use ambit_kernel::sys::errno::{self, to_errno};
use ambit_kernel::sys::fork::{Fork, fork};
use ambit_kernel::sys::signal_defaults::restore_all;
use ambit_kernel::text::shown::{LONGEST_MESSAGE, shown_within};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::{WaitStatus, waitpid};
use rustix::fs::{Access, MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::confine;
use super::host_program::{HostProgram, Image, Library};
use super::order::{Handler, Order};
use crate::caller::WholeCaller;
use crate::child::{execute_open, exit};
use crate::error::{Context, Error, MarkUntried};

/// The directories in which a program is searched for in the container.
const PLACES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// How many bytes of its output are kept.
const OUTPUT: usize = 4096;
/// How many bytes of a program are read to find out whether it uses libfuse 3.
const PROGRAM: u64 = 16 << 20;

/// The executable of a helper.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    library: Library,
    /// The copy of a program of the host.
    image: Option<Image>,
}

impl Program {
    /// Searches for the program below the current root. ENODEV if it is not there.
    pub(super) fn find(name: &str) -> Result<Self, Error> {
        let runs =
            |path: &Path| rustix::fs::access(path, Access::EXEC_OK).is_ok() && path.is_file();
        let path = if name.contains('/') {
            Some(PathBuf::from(name)).filter(|path| path.is_absolute() && runs(path))
        } else {
            PLACES.iter().map(|place| Path::new(place).join(name)).find(|path| runs(path))
        };
        // For ENODEV mount(8) reports an unknown filesystem type.
        let path = path.ok_or_else(|| {
            Error::new(Errno::NODEV, format!("the helper {name} is not in the container"))
        })?;
        let library = library_of(&path);
        Ok(Self { path, library, image: None })
    }

    /// Copies a program of the host.
    pub(super) fn of_the_host(program: &HostProgram) -> Result<Self, Error> {
        Ok(Self {
            path: program.path().to_owned(),
            library: program.library(),
            image: Some(program.copy()?),
        })
    }

    /// True if the helper accepts an open `/dev/fuse` as its mount point.
    pub(super) fn takes_device(&self) -> bool {
        self.library == Library::Fuse3
    }

    /// Returns the command line of a helper that calls mount(2) itself.
    pub(super) fn arguments(
        &self,
        order: &Order,
        handler: &Handler,
    ) -> Result<Vec<CString>, Error> {
        let mut options = handler.options.clone();
        options.extend(handler.mount_options.iter().map(|option| option.clone().into_bytes()));
        if self.library == Library::Fuse2 {
            // The kernel mounts on a folder with files; libfuse 2 has to be told.
            options.push(b"nonempty".to_vec());
        }
        self.command_line(order, &order.target, &options)
    }

    /// Returns the command line of a helper that gets an open `/dev/fuse`.
    pub(super) fn arguments_with_device(
        &self,
        order: &Order,
        handler: &Handler,
        device: BorrowedFd<'_>,
    ) -> Result<Vec<CString>, Error> {
        let mut options = handler.options.clone();
        if order.read_only {
            options.push(b"ro".to_vec());
        }
        self.command_line(order, format!("/dev/fd/{}", device.as_raw_fd()).as_bytes(), &options)
    }

    fn command_line(
        &self,
        order: &Order,
        target: &[u8],
        options: &[Vec<u8>],
    ) -> Result<Vec<CString>, Error> {
        let source = order.source.as_deref().unwrap_or(b"none");
        let mut words =
            vec![self.path.as_os_str().as_bytes().to_vec(), operand(source), operand(target)];
        if !options.is_empty() {
            words.extend([b"-o".to_vec(), options.join(&b","[..])]);
        }
        let words: Result<Vec<_>, _> = words.into_iter().map(CString::new).collect();
        let mut words =
            words.map_err(|_| Error::new(Errno::INVAL, "a NUL in an argument of the helper"))?;
        if let Some(image) = self.image.as_ref().filter(|image| !image.words.is_empty()) {
            // The loader's arguments end with the program.
            words.splice(..1, image.words.iter().cloned());
        }
        Ok(words)
    }
}

/// Returns a path that does not start with a dash, so that no program parses it as an option.
fn operand(path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"-") { [b"./", path].concat() } else { path.to_vec() }
}

fn library_of(path: &Path) -> Library {
    let Ok(file) = std::fs::File::open(path) else { return Library::Other };
    let mut bytes = Vec::new();
    let read = file.take(PROGRAM).read_to_end(&mut bytes).is_ok();
    if read && bytes.starts_with(b"\x7fELF") { Library::find(&bytes) } else { Library::Other }
}

/// What a helper gets from the starter.
#[derive(Debug)]
pub(super) struct HelperContext<'a> {
    /// The host's `/dev/null`.
    pub(super) null: &'a std::fs::File,
    pub(super) output: &'a Output,
    /// The host's `/proc`.
    pub(super) proc: &'a OwnedFd,
    pub(super) caller: &'a WholeCaller,
    /// The caller's variables.
    pub(super) environment: &'a [CString],
}

/// Confines this process and executes the helper. Returns the error if that fails. The source, which
/// was opened as the caller, stays open in the helper, whose lock it carries (`claim.rs`).
pub(super) fn execute(
    program: &Program,
    words: &[CString],
    device: Option<&std::fs::File>,
    source: Option<BorrowedFd<'_>>,
    context: &HelperContext<'_>,
) -> Error {
    let HelperContext { null, output, proc, caller, environment } = *context;
    let confine = || {
        if let Some(label) = &caller.facts.label {
            confine::set_label(proc.as_fd(), label)?;
        }
        confine::filter()
    };
    if let Err(error) = confine() {
        return error.mark_untried();
    }
    let exec_as_caller = || -> Result<std::convert::Infallible, Errno> {
        let _ = rustix::process::setsid();
        restore_all();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(to_errno)?;
        rustix::stdio::dup2_stdin(null)?;
        rustix::stdio::dup2_stdout(&output.0)?;
        rustix::stdio::dup2_stderr(&output.0)?;
        close_on_exec_from(3, proc)?;
        let keep = |fd: BorrowedFd<'_>| {
            let kept = rustix::io::FdFlags::empty();
            rustix::io::fcntl_setfd(fd, kept)
        };
        let files = program.image.iter().flat_map(|image| &image.files).map(AsFd::as_fd);
        files.chain(device.map(AsFd::as_fd)).chain(source).try_for_each(keep)?;
        caller.set_limits();
        match &program.image {
            Some(image) => Err(execute_open(&image.start, words, environment)),
            None => nix::unistd::execve(&words[0], words, environment).map_err(to_errno),
        }
    };
    let Err(errno) = exec_as_caller();
    Error::new(errno, format!("cannot execute {}: {errno}", program.path.display()))
}

/// Starts the helper and waits for its exit. Processes that it daemonizes become children of this
/// process, and after its end of the container's init.
pub(super) fn watch(run: impl FnOnce() -> Error) -> Result<(), Error> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("prctl(PR_SET_CHILD_SUBREAPER)")
        .mark_untried()?;
    // Not a `Child`, which would be killed when this process ends.
    let helper = match fork().context("fork").mark_untried()? {
        Fork::Child => {
            let error = run();
            output::complain(&error);
            exit(if error.untried { NOT_CONFINED } else { NOT_EXECUTED })
        }
        Fork::Parent(helper) => helper,
    };
    // Closes `/dev/fuse`: once the helper has ended, the connection must be aborted.
    drop(run);
    loop {
        match waitpid(helper, None).map_err(to_errno) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, NOT_CONFINED)) => {
                let message = "the helper could not be confined";
                return Err(Error::new(Errno::PERM, message).mark_untried());
            }
            Ok(WaitStatus::Exited(_, status)) => {
                return Err(Error::new(Errno::INVAL, format!("exit status {status}")));
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Err(Error::new(Errno::IO, format!("killed by {signal}")));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::new(errno, "waitpid of the helper")),
        }
    }
}

/// The exit status for a program that cannot be executed, as in shells.
const NOT_EXECUTED: i32 = 126;
/// The exit status for a program that was not executed because it could not be confined.
const NOT_CONFINED: i32 = 125;

/// The standard output and error of a helper: a memory file of fixed size. A helper that runs for
/// long can neither fill memory by its output nor block on it.
#[derive(Debug)]
pub(super) struct Output(OwnedFd);

impl Output {
    pub(super) fn new() -> Result<Self, Error> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("output", flags).context("memfd_create")?;
        rustix::fs::ftruncate(&file, OUTPUT as u64).context("ftruncate of a memfd")?;
        let seals = SealFlags::GROW | SealFlags::SHRINK;
        rustix::fs::fcntl_add_seals(&file, seals).context("fcntl(F_ADD_SEALS)")?;
        Ok(Self(file))
    }

    /// Adds the output of the helper to its error. The errno is taken from the output if it is more
    /// specific.
    pub(super) fn explain(&self, name: &str, error: &Error) -> Error {
        let mut bytes = [0; OUTPUT];
        let length = rustix::io::pread(&self.0, &mut bytes, 0).unwrap_or(0);
        let said = bytes[..length].split(|&byte| byte == 0).next().unwrap_or_default();
        let said = shown_within(said.trim_ascii(), LONGEST_MESSAGE);
        let errno = match error.errno {
            // The helper gave up, and the kernel ended the connection: ECONNREFUSED if that was
            // before it had answered INIT.
            errno @ (Errno::INVAL
            | Errno::IO
            | Errno::NOTCONN
            | Errno::CONNABORTED
            | Errno::CONNREFUSED) => {
                let is_option = said.contains("unknown option");
                if is_option { Errno::INVAL } else { spoken(&said).unwrap_or(errno) }
            }
            errno => errno,
        };
        let said = if said.is_empty() { "no output" } else { &said };
        let words: Vec<_> = said.split_whitespace().collect();
        Error::new(errno, format!("{name}: {}: {}", error.message, words.join(" ")))
    }
}

/// Finds an errno by the text of strerror(3) in a message.
fn spoken(message: &str) -> Option<Errno> {
    const KNOWN: [Errno; 9] = [
        Errno::ACCESS,
        Errno::PERM,
        Errno::NOENT,
        Errno::ROFS,
        Errno::BUSY,
        Errno::NODEV,
        Errno::NXIO,
        Errno::NOSPC,
        Errno::NOMEM,
    ];
    KNOWN.into_iter().find(|errno| message.contains(errno::description(*errno)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errno_is_found_in_a_helpers_message() {
        assert_eq!(spoken("fuse: mount failed: Operation not permitted"), Some(Errno::PERM));
        assert_eq!(spoken("s.img: Permission denied."), Some(Errno::ACCESS));
        assert_eq!(spoken("This doesn't look like a squashfs image."), None);
    }

    #[test]
    fn output_is_bounded_and_never_blocks_the_helper() {
        let output = Output::new().unwrap();
        let mut written = 0;
        while let Ok(length) = rustix::io::write(&output.0, &[b'x'; 1000]) {
            written += length;
            assert!(written <= OUTPUT);
        }
        let error = output.explain("frob", &Error::new(Errno::INVAL, "exit status 1"));
        assert!(error.message.starts_with("frob: exit status 1: xxx"));
        assert!(error.message.len() < LONGEST_MESSAGE + 100);
        rustix::io::pwrite(&output.0, b"\n it\xff\n failed \0", 0).unwrap();
        let error = output.explain("frob", &Error::new(Errno::INVAL, "exit status 1"));
        assert_eq!(error.message, "frob: exit status 1: it\\xff failed");
        rustix::io::pwrite(&output.0, b"fuse: unknown option(s): `-o x'\0", 0).unwrap();
        let refused = output.explain("frob", &Error::new(Errno::CONNREFUSED, "statfs"));
        assert_eq!(refused.errno, Errno::INVAL);
    }

    #[test]
    fn a_path_that_starts_with_a_dash_is_not_an_option() {
        assert_eq!(operand(b"-o"), b"./-o");
        assert_eq!(operand(b"/dev/sda"), b"/dev/sda");
    }

    #[test]
    fn a_missing_or_relative_program_is_enodev() {
        assert_eq!(Program::find("no-such-helper").unwrap_err().errno, Errno::NODEV);
        assert_eq!(Program::find("../bin/sh").unwrap_err().errno, Errno::NODEV);
        assert!(!Program::find("/bin/sh").unwrap().takes_device());
    }
}
