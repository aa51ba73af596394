//! Privileged operations: what handlers use that do more than read and write the caller's memory.
//!
//! The operations run in processes of the package `worker`, never in this one. `LiveMounts` counts
//! what was mounted. Start reading at `syscalls/operation.rs`, which prepares an operation for a
//! caller.

use std::sync::Arc;
use std::time::Duration;

use ambit_worker::operation::{TIMES, Workers};
use ambit_worker::{Broker, Error};

use super::live_mounts::LiveMounts;
use super::verdict::{CallError, DaemonError, Verdict};

/// How long an operation that is not a mount may take. A filesystem that hangs delays one call of
/// its own container.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// The processes that perform privileged operations.
#[derive(Debug)]
pub struct Operations {
    /// Forks the other processes.
    pub broker: Arc<Broker>,
    pub(super) workers: Workers,
    /// The filesystems that were mounted for containers and still exist.
    pub(super) mounts: LiveMounts,
}

impl Operations {
    /// Returns operations whose processes this broker forks.
    pub fn new(broker: Arc<Broker>) -> Self {
        let workers = Workers::new(Arc::clone(&broker), DEADLINE);
        Self { workers, broker, mounts: LiveMounts::default() }
    }
}

/// The longest time that an operation that is not a mount can take: the deadline of a worker that
/// waits for a CPU is extended up to [`TIMES`] times.
pub(super) fn patience() -> Duration {
    DEADLINE * TIMES
}

/// The verdict after an operation failed: CONTINUE if it was not attempted, otherwise its errno.
pub(super) fn refusal(failure: &Error) -> Result<Verdict, CallError> {
    if failure.untried {
        return Err(CallError::Continue(DaemonError::System(
            "a worker of privileged operations",
            failure.errno,
        )));
    }
    Ok(Verdict::Fail(failure.errno))
}
