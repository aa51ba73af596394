//! The sandbox's own pseudo terminal, and the caller's terminal that it is relayed to.
//!
//! The command never gets the caller's terminal, because a process that holds a terminal can type on
//! it (TIOCSTI). Init opens a pseudo terminal of the sandbox's own devpts and sends the master side
//! to `ambit run`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios};

/// The two sides of a pseudo terminal.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

/// True if standard input, output and error are all terminals.
pub(super) fn is_wanted() -> bool {
    use std::io::IsTerminal;

    io::stdin().is_terminal() && io::stdout().is_terminal() && io::stderr().is_terminal()
}

/// Opens a pseudo terminal of the sandbox. Must run inside.
pub(super) fn open_inside() -> Result<Pair> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())
        .context("cannot open the sandbox's /dev/pts/ptmx")?;
    rustix::pty::unlockpt(&master).context("cannot unlock a terminal: TIOCSPTLCK")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)
        .context("cannot open a terminal: TIOCGPTPEER")?;
    // If this fails, only programs that open /dev/console miss it.
    let _ = bind_console(&master);
    Ok(Pair { master, slave })
}

fn bind_console(master: &OwnedFd) -> rustix::io::Result<()> {
    let name = rustix::pty::ptsname(master, Vec::new())?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, name, flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", CWD, "/dev/console", flags)
}

/// Makes it the controlling terminal and the standard descriptors of this process.
pub(super) fn take(slave: &OwnedFd) -> Result<()> {
    rustix::process::setsid().context("cannot make a session: setsid")?;
    rustix::process::ioctl_tiocsctty(slave).context("cannot take the terminal: TIOCSCTTY")?;
    standard(slave.as_fd()).context("cannot use the terminal: dup2")
}

/// Closes the caller's terminal: the standard descriptors become `/dev/null`.
pub(super) fn leave_host() -> Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.context("cannot open the sandbox's /dev/null")?;
    standard(null.as_fd()).context("cannot leave the terminal: dup2")
}

fn standard(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::stdio::dup2_stdin(fd)?;
    rustix::stdio::dup2_stdout(fd)?;
    rustix::stdio::dup2_stderr(fd)
}

/// Opens a terminal again with O_NONBLOCK. The flag must not be set on the open file of this process,
/// which the caller's shell shares.
pub(super) fn reopen(terminal: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let name = format!("/proc/self/fd/{}", terminal.as_raw_fd());
    // The master side of a pseudo terminal would be another terminal.
    let opened = match rustix::pty::ptsname(terminal, Vec::new()) {
        Ok(_) => Err(rustix::io::Errno::NXIO),
        Err(_) => rustix::fs::openat(CWD, name, flags, Mode::empty()),
    };
    match opened {
        Ok(terminal) => Ok(terminal),
        Err(_) => terminal.try_clone_to_owned().context("cannot use the terminal: dup"),
    }
}

/// The caller's terminal in raw mode. Dropping it restores its settings.
#[derive(Debug)]
pub(super) struct Raw(Termios);

impl Raw {
    pub(super) fn enter() -> Result<Self> {
        let before = rustix::termios::tcgetattr(io::stdin())
            .context("cannot read the terminal's settings: tcgetattr")?;
        let mut raw = before.clone();
        raw.make_raw();
        let saved = Self(before);
        rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)
            .context("cannot change the terminal's settings: tcsetattr")?;
        Ok(saved)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Now, and not after the output is drained: a stopped terminal may never drain it.
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Gives the sandbox's terminal the size of the caller's.
pub(super) fn copy_size(master: &OwnedFd) {
    if let Ok(size) = rustix::termios::tcgetwinsize(io::stdin()) {
        let _ = rustix::termios::tcsetwinsize(master, size);
    }
}
