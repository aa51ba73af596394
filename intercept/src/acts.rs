//! Who acts for containers, for handlers that do more than read.

use std::sync::Arc;
use std::time::Duration;

use ambit_worker::operation::{TIMES, Workers};
use ambit_worker::{Broker, Error};

use super::live_mounts::LiveMounts;
use super::verdict::{Cause, Refusal, Verdict};

/// How long a quick act may take. A filesystem that hangs is the container's own trouble; what it
/// holds up is one of its calls.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// The processes that act.
#[derive(Debug)]
pub struct Acts {
    /// Starts the others.
    pub broker: Arc<Broker>,
    pub(super) workers: Workers,
    /// What was mounted.
    pub(super) mounts: LiveMounts,
}

impl Acts {
    /// With this broker.
    #[must_use]
    pub fn new(broker: Arc<Broker>) -> Self {
        let workers = Workers::new(Arc::clone(&broker), DEADLINE);
        Self { workers, broker, mounts: LiveMounts::default() }
    }
}

/// How long a quick act takes at most, on a machine whose processors are short.
pub(super) fn patience() -> Duration {
    DEADLINE * TIMES
}

/// What a failure on our side means for the call.
pub(super) fn refusal(failure: &Error) -> Result<Verdict, Refusal> {
    if failure.untried {
        return Err(Refusal::Continue(Cause::System("a process that acts", failure.errno)));
    }
    Ok(Verdict::Fail(failure.errno))
}
