//! Standard error for processes that must go on when it is closed or full, or when it is a pipe or
//! terminal whose reader has stopped reading.
//!
//! Writing never fails, never panics and never waits. A text that cannot be written at once is lost;
//! the next one that is written is preceded by the number of lost ones. Start reading at [`Stderr`].

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;

/// Standard error. Each `write` is one text, such as a line of the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

/// Writes one line, with the program's name in front.
pub fn line(text: &str) {
    let _ = Stderr.write(format!("ambit: {text}\n").as_bytes());
}

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        static OWN: OnceLock<Sink> = OnceLock::new();
        OWN.get_or_init(|| Sink::open(rustix::stdio::stderr())).write(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A descriptor that is written to without waiting.
#[derive(Debug)]
struct Sink {
    fd: Option<OwnedFd>,
    kind: Kind,
    /// Texts that were not written since the last one that was.
    lost: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `send` with MSG_DONTWAIT.
    Socket,
    /// An open file of our own with O_NONBLOCK. Setting the flag on the inherited one would change
    /// it for the processes that share it.
    Own,
    /// A file whose writes do not wait for another process.
    Plain,
}

impl Sink {
    fn open(inherited: impl AsFd) -> Self {
        let inherited = inherited.as_fd();
        let kind = rustix::fs::fstat(inherited).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let (kind, fd) = match kind {
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let number = std::os::fd::AsRawFd::as_raw_fd(&inherited);
                let path = format!("/proc/self/fd/{number}");
                match rustix::fs::open(path, flags, Mode::empty()) {
                    Ok(own) => (Kind::Own, Some(own)),
                    Err(_) => (Kind::Plain, inherited.try_clone_to_owned().ok()),
                }
            }
            Ok(FileType::Socket) => (Kind::Socket, inherited.try_clone_to_owned().ok()),
            _ => (Kind::Plain, inherited.try_clone_to_owned().ok()),
        };
        Self { fd, kind, lost: AtomicU64::new(0) }
    }

    fn write(&self, text: &[u8]) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let note = if lost > 0 {
            format!("ambit: {lost} lines of the log were lost: standard error was not read\n")
        } else {
            String::new()
        };
        if !self.try_write(&[note.as_bytes(), text].concat()) {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }

    fn try_write(&self, text: &[u8]) -> bool {
        let Some(fd) = &self.fd else { return false };
        let written = match self.kind {
            Kind::Socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                rustix::net::send(fd, text, flags)
            }
            Kind::Own => rustix::io::write(fd, text),
            Kind::Plain => {
                let mut ready = [PollFd::new(fd, PollFlags::OUT)];
                match poll(&mut ready, Some(&Timespec::default())) {
                    Ok(1) => rustix::io::write(fd, text),
                    _ => return false,
                }
            }
        };
        written.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_pipe_that_is_not_read_holds_no_writer_up() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let sink = Sink::open(&writer);
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        for _ in 0..200 {
            sink.write(&line);
        }
        drop(writer);
        let mut all = vec![0; 64 << 10];
        std::fs::File::from(reader.try_clone().unwrap()).read_exact(&mut all).unwrap();
        sink.write(b"last\n");
        drop(sink);
        let mut rest = String::new();
        std::fs::File::from(reader).read_to_string(&mut rest).unwrap();
        let last = "ambit: 136 lines of the log were lost: standard error was not read\nlast\n";
        assert_eq!(rest, last);
    }

    #[test]
    fn a_closed_pipe_a_full_device_and_a_socket_are_no_error() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let closed = Sink::open(&writer);
        drop(reader);
        let full = Sink::open(std::fs::File::options().write(true).open("/dev/full").unwrap());
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let socket = Sink::open(&near);
        drop(far);
        for sink in [closed, full, socket] {
            sink.write(b"text\n");
            assert_eq!(sink.lost.load(Ordering::Relaxed), 1, "{sink:?}");
        }
    }

    #[test]
    fn a_file_is_continued_where_it_ends() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before\n").unwrap();
        Sink::open(&file).write(b"after\n");
        let mut all = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut all).unwrap();
        assert_eq!(all, "before\nafter\n");
    }
}
