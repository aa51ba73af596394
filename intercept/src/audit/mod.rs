//! The audit log: one line of JSON for each privileged operation that was granted or refused.
//!
//! A thread of its own writes it from a bounded queue, so that a disk that hangs never delays a
//! call. Lines and bytes a second are bounded for each container, and bytes for all together: what
//! is beyond is left out, and a line says how many lines that were. Start reading at `record.rs`
//! (what is in a line); `log.rs` writes the lines.

mod log;
mod record;

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

pub(super) use self::record::{Caller, Notes, Record, message, text};

use self::log::Log;
use super::account::Account;
use super::bucket::{self, Bucket, Rate};

/// The bytes of all containers: 2.7 GB a day.
const ALL: Rate = Rate { per_second: 32 << 10, most: 8 << 20 };

/// The audit log, if there is one.
#[derive(Debug, Default)]
pub(super) struct Audit {
    log: ArcSwapOption<Log>,
    /// The budget of bytes of all containers.
    bytes: Bucket,
}

impl Audit {
    /// Opens this file and writes to it from now on. `None` ends the audit log.
    pub(super) fn open(&self, path: Option<&Path>) -> std::io::Result<()> {
        let log = path.map(Log::open).transpose()?;
        if let Some(old) = self.log.swap(log.map(Arc::new)) {
            old.flush();
        }
        Ok(())
    }

    pub(super) fn is_on(&self) -> bool {
        self.log.load().is_some()
    }

    /// Logs an operation of the container with this account.
    pub(super) fn log(&self, account: &Arc<Account>, record: &Record<'_>) {
        let log = self.log.load();
        let Some(log) = &*log else { return };
        let line = account.may_audit().then(|| record.line());
        match line.filter(|line| self.has_room(account, line.len() as u64)) {
            Some(line) => log.add(account, line),
            None => log.leave_out(account),
        }
    }

    fn has_room(&self, account: &Account, bytes: u64) -> bool {
        account.may_audit_bytes(bytes) && self.bytes.take_many(bucket::now(), bytes, ALL)
    }

    /// Waits until all lines so far are written, for a few seconds at most.
    pub(super) fn flush(&self) {
        if let Some(log) = &*self.log.load() {
            log.flush();
        }
    }
}
