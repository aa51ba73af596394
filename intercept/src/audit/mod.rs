//! The audit log: one line of JSON for each act that was granted or refused.
//!
//! Written by a thread of its own from a bounded queue, so that a disk that hangs holds nobody up.
//! What a container's flood would add is left out, and a line tells how much that was. Start
//! reading at `record.rs` (what is in a line); `log.rs` writes them.

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
    /// Goes on in this file, opened anew, or nowhere.
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

    /// Logs an act of the container with this account.
    pub(super) fn log(&self, account: &Arc<Account>, record: &Record<'_>) {
        if let Some(log) = &*self.0.load()
            && account.may_log()
        {
            log.add(account, record.line());
        }
    }

    /// Waits, though not for long, until everything so far is written.
    pub(super) fn flush(&self) {
        if let Some(log) = &*self.0.load() {
            log.flush();
        }
    }
}
