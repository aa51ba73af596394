//! What a serving process consists of, started and stopped in order.

use std::path::Path;
use std::sync::Arc;

use ambit_sysinfo::Views;

use crate::config::Config;
use crate::notify::Notifier;

/// Accounting, overlay and notifications of one process.
#[derive(Debug)]
pub struct Server {}

impl Server {
    /// Starts accounting, mounts the overlay and takes notifications. Threads are running when
    /// this returns: fork before.
    ///
    /// # Errors
    /// Something essential is missing; the message says what to do.
    pub fn start(_config: &Config) -> anyhow::Result<Self> {
        anyhow::bail!("not here yet")
    }

    /// Where the overlay is mounted.
    #[must_use]
    pub fn mount(&self) -> &Path {
        Path::new("/var/lib/ambit")
    }

    /// The notification threads.
    #[must_use]
    pub fn notifier(&self) -> &Notifier {
        unreachable!()
    }

    /// The accounting that everything is rendered from.
    #[must_use]
    pub fn views(&self) -> Arc<dyn Views> {
        unreachable!()
    }

    /// Stops serving: unmounts the overlay and ends the threads.
    ///
    /// # Errors
    /// The overlay cannot be unmounted.
    pub fn stop(self) -> anyhow::Result<()> {
        Ok(())
    }
}
