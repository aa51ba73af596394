//! The audit log: one line of JSON for each privileged operation that was granted or refused.
//!
//! A thread of its own writes it from a bounded queue, so that a disk that hangs never delays a
//! call. Lines of a container that makes very many calls are left out, and a line says how many.
//! Start reading at `record.rs` (what is in a line); `log.rs` writes the lines.

mod log;
mod record;

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

pub(super) use self::record::{Caller, Notes, Record, text};

use self::log::Log;
use super::account::Account;

/// The audit log, if there is one.
#[derive(Debug, Default)]
pub(super) struct Audit(ArcSwapOption<Log>);

impl Audit {
    /// Opens this file and writes to it from now on. `None` ends the audit log.
    pub(super) fn open(&self, path: Option<&Path>) -> std::io::Result<()> {
        let log = path.map(Log::open).transpose()?;
        if let Some(old) = self.0.swap(log.map(Arc::new)) {
            old.flush();
        }
        Ok(())
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.load().is_some()
    }

    /// Logs an operation of the container with this account.
    pub(super) fn log(&self, account: &Arc<Account>, record: &Record<'_>) {
        if let Some(log) = &*self.0.load()
            && account.may_audit()
        {
            log.add(account, record.line());
        }
    }

    /// Waits until all lines so far are written, for a few seconds at most.
    pub(super) fn flush(&self) {
        if let Some(log) = &*self.0.load() {
            log.flush();
        }
    }
}
