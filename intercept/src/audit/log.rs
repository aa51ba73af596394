//! The file of the audit log, and the thread that writes it.

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

/// Lines that wait for the disk at most.
const WAITING: usize = 4096;

/// How long after a flood it is told what was left out.
const TELL: Duration = Duration::from_secs(1);

/// How long is waited for the disk when the server ends.
const PATIENCE: Duration = Duration::from_secs(2);

enum Message {
    Line(Arc<Account>, Vec<u8>),
    /// Everything before is written.
    Flush(SyncSender<()>),
}

/// An open file. Its thread ends, after the last line, when it is dropped.
#[derive(Debug)]
pub(super) struct Log {
    queue: SyncSender<Message>,
}

impl Log {
    /// Opens a file for lines that follow those it has.
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            // A pipe that nobody reads would block; std adds O_CLOEXEC.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is no regular file"));
        }
        let (queue, lines) = sync_channel(WAITING);
        std::thread::Builder::new().name("audit".into()).spawn(move || write(file, &lines))?;
        Ok(Self { queue })
    }

    /// Adds a line of the container with this account. It is left out when the disk cannot follow.
    pub(super) fn add(&self, account: &Arc<Account>, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(Arc::clone(account), line)).is_err() {
            account.leave_out();
        }
    }

    /// Waits, though not for long, until everything so far is written.
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

/// What the thread does.
fn write(mut file: File, lines: &Receiver<Message>) {
    let failures = Limiter::default();
    let mut put = |line: &[u8]| {
        // One write per line: whoever reads the file sees whole lines.
        if let Err(error) = file.write_all(line)
            && let Some(suppressed) = failures.pass()
        {
            tracing::error!(suppressed, "a line of the audit log is lost: {error}");
        }
    };
    // Containers that may have lines left out.
    let mut recent: HashMap<String, Arc<Account>> = HashMap::new();
    let mut told = Instant::now();
    loop {
        let next = if recent.is_empty() {
            let next = lines.recv().map_err(|_| RecvTimeoutError::Disconnected);
            told = Instant::now();
            next
        } else {
            lines.recv_timeout(TELL.saturating_sub(told.elapsed()))
        };
        let (mut flushed, mut ended) = (None, false);
        match next {
            Ok(Message::Line(account, line)) => {
                put(&line);
                if !recent.contains_key(&account.id) {
                    recent.insert(account.id.clone(), account);
                }
            }
            Ok(Message::Flush(written)) => flushed = Some(written),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => ended = true,
        }
        if flushed.is_some() || ended || told.elapsed() >= TELL {
            recent.drain().for_each(|(_, account)| tell(&account, &mut put));
            told = Instant::now();
        }
        if let Some(written) = flushed {
            let _ = written.send(());
        }
        if ended {
            return;
        }
    }
}

fn tell(account: &Account, put: &mut impl FnMut(&[u8])) {
    let lines = account.left_out();
    if lines > 0 {
        put(&record::left_out(&account.id, lines));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_bounded_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let log = Log::open(&path).unwrap();
        let (flood, other) = (Arc::new(Account::new("flood")), Arc::new(Account::new("other")));
        for _ in 0..1000 {
            if flood.may_log() {
                log.add(&flood, b"flood\n".to_vec());
            }
        }
        assert!(other.may_log());
        log.add(&other, b"other\n".to_vec());
        log.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| *line == "flood").count();
        let told = text.lines().filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            (line["container"] == "flood").then(|| line["lines_left_out"].as_u64())?
        });
        assert_eq!(lines as u64 + told.sum::<u64>(), 1000);
        assert!((100..1000).contains(&lines), "{lines}");
        assert!(text.contains("other"));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Log::open(folder.path()).is_err());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(Log::open(&link).is_err());
        assert!(Log::open(Path::new("/dev/null")).is_err());
    }
}
