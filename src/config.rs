//! The configuration file (TOML): one struct per section, every key with a default.

use std::path::PathBuf;

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Sockets and state: `[daemon] runtime_dir`.
    pub runtime_dir: PathBuf,
    /// Where the overlay is mounted: `[overlay] mount`.
    pub mount: PathBuf,
}
