//! The file of the audit log, and the thread that writes it.
//!
//! A thread that answers a call must never wait for the disk: [`Log::add`] leaves the line out if
//! the queue is full. The thread later writes a line that says how many lines were left out.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use super::record;
use crate::account::Account;
use ambit_sysinfo::Limiter;

/// The length of the queue, in lines.
const WAITING: usize = 4096;

/// The interval at which the number of left-out lines is written.
const REPORT: Duration = Duration::from_secs(1);

/// How long [`Log::flush`] waits for the disk.
const PATIENCE: Duration = Duration::from_secs(2);

enum Message {
    Line(Arc<Account>, Vec<u8>),
    /// Lines of the container were left out.
    LeftOut(Arc<Account>),
    /// Reply when all messages before this one are written.
    Flush(SyncSender<()>),
}

/// An open log file. When it is dropped, its thread writes the lines that wait, and ends.
#[derive(Debug)]
pub(super) struct Log {
    queue: SyncSender<Message>,
}

impl Log {
    /// Opens a file, to append to it.
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            // O_NONBLOCK: opening a pipe without a reader would block. std adds O_CLOEXEC.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is no regular file"));
        }
        let (queue, lines) = sync_channel(WAITING);
        std::thread::Builder::new().name("audit".into()).spawn(move || write(file, &lines))?;
        Ok(Self { queue })
    }

    /// Adds a line of the container with this account. The line is left out if the queue is full.
    pub(super) fn add(&self, account: &Arc<Account>, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(Arc::clone(account), line)).is_err() {
            account.leave_out();
        }
    }

    /// Counts a line that is left out. The thread is told of the first one since its last report.
    pub(super) fn leave_out(&self, account: &Arc<Account>) {
        if account.leave_out() == 0 {
            let _ = self.queue.try_send(Message::LeftOut(Arc::clone(account)));
        }
    }

    /// Waits until all lines so far are written, for [`PATIENCE`] twice at most.
    pub(super) fn flush(&self) {
        let (written, wait) = sync_channel(1);
        let mut message = Message::Flush(written);
        let tries = 20;
        for _ in 0..tries {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => message = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            std::thread::sleep(PATIENCE / tries);
        }
        let _ = wait.recv_timeout(PATIENCE);
    }
}

/// Writes the lines of the queue until its senders are dropped.
fn write(mut file: File, lines: &Receiver<Message>) {
    let failures = Limiter::default();
    let mut put = |line: &[u8]| {
        // One write(2) per line, so that readers of the file see whole lines.
        if let Err(error) = file.write_all(line)
            && let Some(suppressed) = failures.allow()
        {
            tracing::error!(suppressed, "a line of the audit log is lost: {error}");
        }
    };
    // Containers that had a line since the last report, and may have had lines left out.
    let mut recent: HashMap<String, Arc<Account>> = HashMap::new();
    let mut reported = Instant::now();
    loop {
        let next = if recent.is_empty() {
            let next = lines.recv().map_err(|_| RecvTimeoutError::Disconnected);
            reported = Instant::now();
            next
        } else {
            lines.recv_timeout(REPORT.saturating_sub(reported.elapsed()))
        };
        let (mut flushed, mut ended) = (None, false);
        match next {
            Ok(Message::Line(account, line)) => {
                put(&line);
                recent.entry(account.id.clone()).or_insert(account);
            }
            Ok(Message::LeftOut(account)) => {
                recent.entry(account.id.clone()).or_insert(account);
            }
            Ok(Message::Flush(written)) => flushed = Some(written),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => ended = true,
        }
        if flushed.is_some() || ended || reported.elapsed() >= REPORT {
            recent.drain().for_each(|(_, account)| report(&account, &mut put));
            reported = Instant::now();
        }
        if let Some(written) = flushed {
            let _ = written.send(());
        }
        if ended {
            return;
        }
    }
}

/// Writes how many lines of a container were left out, if any were.
fn report(account: &Account, put: &mut impl FnMut(&[u8])) {
    let lines = account.left_out();
    if lines > 0 {
        put(&record::left_out(&account.id, lines));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_limited_and_left_out_lines_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let log = Log::open(&path).unwrap();
        let (flood, other) = (Arc::new(Account::new("flood")), Arc::new(Account::new("other")));
        for _ in 0..1000 {
            if flood.may_audit() {
                log.add(&flood, b"flood\n".to_vec());
            } else {
                log.leave_out(&flood);
            }
        }
        assert!(other.may_audit());
        log.add(&other, b"other\n".to_vec());
        log.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| *line == "flood").count();
        let reported = text.lines().filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            (line["container"] == "flood").then(|| line["lines_left_out"].as_u64())?
        });
        assert_eq!(lines as u64 + reported.sum::<u64>(), 1000);
        assert!((100..1000).contains(&lines), "{lines}");
        assert!(text.contains("other"));
    }

    #[test]
    fn only_a_regular_file_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Log::open(folder.path()).is_err());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(Log::open(&link).is_err());
        assert!(Log::open(Path::new("/dev/null")).is_err());
    }
}
