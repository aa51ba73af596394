//! The parts of a serving process, started and stopped in order: accounting, which the others use,
//! then the overlay, then the sockets on which runtimes hand listeners over.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_fuse::{MountOptions, Overlay, Restored};
use ambit_keeper::client::{Inherited, KeeperClient};
use ambit_kernel::lock;
use ambit_kernel::output;
use ambit_kernel::recorder::Recorder;
use ambit_sysinfo::{Accounting, COUNTER_STORE};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast};

use crate::attacher::Attacher;
use crate::config::Config;
use crate::crash_guard::CrashGuard;
use crate::overlay_connection::{self, keep_submounts, selinux_context};
use crate::process_setup::{accounting_options, start_accounting};
use crate::visitor;
use crate::watcher::Watcher;
use ambit_intercept::operations::Operations;
use ambit_intercept::{self as intercept, Notifier};

/// How often the overlay was attached again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountsRestored {
    pub count: u64,
    /// When it was last, in seconds since 1970; 0 if it never was.
    pub last: u64,
}

/// Accounting, overlay and notifications of one process.
#[derive(Debug)]
pub struct Server {
    /// The accounting that everything is rendered from.
    pub(crate) accounting: Arc<Accounting>,
    pub(crate) overlay: Overlay,
    pub(crate) notifier: Notifier,
    pub(crate) keeper: KeeperClient,
    origin: Mutex<Origin>,
    mounts_restored: Mutex<MountsRestored>,
    pub(crate) attacher: Arc<Attacher>,
    /// `None` if containers do not reach this server.
    pub(crate) watcher: Option<Watcher>,
    refusals: broadcast::Sender<String>,
    ending: Notify,
}

/// The origin of a configuration.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The file; `None` for the default one.
    pub file: Option<PathBuf>,
    pub read: SystemTime,
    /// True if it is used instead of the file on disk, with which servers died early.
    pub instead: bool,
}

/// Which processes can reach a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Every container of the host: sockets for OCI runtimes and liblxc.
    Host,
    /// Only this process, which hands listeners over itself. The overlay is not attached.
    Process,
}

impl Server {
    /// Starts accounting, mounts the overlay and handles notifications. It starts threads, so a
    /// caller that forks must do so before.
    ///
    /// # Errors
    /// Something that it needs is missing. The message says what to do.
    pub fn start(
        config: &Config,
        reach: Reach,
        operations: Option<Operations>,
    ) -> anyhow::Result<Self> {
        let accounting = start_accounting(accounting_options(config))?;
        Self::take_over(
            config,
            reach,
            operations,
            accounting,
            KeeperClient::default(),
            Inherited::default(),
        )
    }

    /// Like [`Self::start`], with accounting that was started before, and with the descriptors that
    /// the previous server stored with the keeper. Containers wait meanwhile.
    pub fn take_over(
        config: &Config,
        reach: Reach,
        operations: Option<Operations>,
        accounting: Arc<Accounting>,
        keeper: KeeperClient,
        mut inherited: Inherited,
    ) -> anyhow::Result<Self> {
        if let Some(file) = counter_store(&keeper, &mut inherited) {
            accounting.remember(file);
        }
        let known = accounting.clone();
        let container_of = move |thread| known.owner_number(thread).unwrap_or(0);
        let recorder =
            CrashGuard::take_over(&keeper, &mut inherited, accounting.oom_kills(), container_of)
                .map(|guard| Arc::new(guard) as Arc<dyn Recorder>);
        let options = MountOptions {
            threads: config.overlay.threads,
            recorder: recorder.clone(),
            visitor: visitor::in_child,
            context: selinux_context(&config.overlay.selinux_context),
            ..match reach {
                Reach::Host => MountOptions {
                    lease: Duration::from_millis(config.overlay.lease),
                    ..MountOptions::new(&config.overlay.mount)
                },
                Reach::Process => MountOptions::detached(),
            }
        };
        let broker = operations.as_ref().map(|operations| operations.broker.clone());
        let is_watching = reach == Reach::Host && broker.is_some();
        let leases = (config.overlay.lease > 0).then(|| accounting.clone());
        let (mount, settings) = (config.overlay.mount.clone(), config.attach.clone());
        let attacher = Arc::new(Attacher::new(broker, mount, leases, settings));
        let successor = inherited.has_predecessor();
        let overlay = overlay_connection::open(options, &accounting, &keeper, &mut inherited)?;
        warn_of_notes(config);
        let socket = |name| (reach == Reach::Host).then(|| config.socket(name));
        let options = intercept::Options {
            oci_socket: socket("oci.sock"),
            lxc_socket: socket("lxc.sock"),
            policies: config.policies.clone(),
            operations: operations.map(Arc::new),
            recorder,
            is_successor: successor,
        };
        match Notifier::take_over(accounting.clone(), options, &keeper, &mut inherited) {
            Ok(notifier) => {
                if let Err(error) = audit(&notifier, config) {
                    // Running containers depend on the server more than on the audit log.
                    if !successor {
                        drop(notifier);
                        overlay.unmount()?;
                        return Err(error);
                    }
                    tracing::error!("nothing is audited: {}", output::one_line(&error));
                }
                let watcher =
                    is_watching.then(|| start_watcher(&attacher, &accounting, config)).flatten();
                Ok(Self {
                    accounting,
                    overlay,
                    notifier,
                    keeper,
                    origin: Mutex::new(Origin {
                        file: None,
                        read: SystemTime::now(),
                        instead: false,
                    }),
                    mounts_restored: Mutex::default(),
                    attacher,
                    watcher,
                    refusals: broadcast::channel(4).0,
                    ending: Notify::new(),
                })
            }
            Err(error) => {
                // Running containers keep the mount for the next attempt.
                if !successor {
                    overlay.unmount()?;
                }
                Err(error).context("cannot take notifications")
            }
        }
    }

    /// Applies the settings of a configuration that can change while the server runs.
    ///
    /// # Errors
    /// The audit log cannot be opened. Nothing is changed then.
    pub fn reconfigure(&self, config: &Config) -> anyhow::Result<()> {
        audit(&self.notifier, config)?;
        warn_of_notes(config);
        self.attacher.reconfigure(config.attach.clone());
        if let Some(watcher) = &self.watcher {
            watcher.reconfigure(config.attach.clone());
        }
        self.notifier.reload(config.policies.clone());
        Ok(())
    }

    /// Returns the mount point of the overlay.
    pub fn mount(&self) -> &Path {
        self.overlay.path().unwrap_or(Path::new(""))
    }

    /// Attaches the overlay again if it was unmounted, and counts that.
    pub fn restore_mounts(&self) {
        match self.overlay.restore() {
            Ok(Restored::Nothing) => {}
            Ok(Restored::Mounts(anew)) => {
                keep_submounts(&self.overlay, &self.keeper, &anew);
                let mut restored = lock(&self.mounts_restored);
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                restored.count += 1;
                restored.last = now.map_or(0, |time| time.as_secs());
                tracing::warn!(
                    "files at {} had been unmounted, or their connection aborted; they are mounted \
                     again",
                    self.mount().display()
                );
                // Containers still have the dead files.
                if let Some(watcher) = &self.watcher {
                    watcher.attach_all();
                }
            }
            Err(error) => tracing::error!("the overlay was unmounted and stays so: {error}"),
        }
    }

    /// Sets the origin of its configuration.
    pub fn configured_from(self, origin: Origin) -> Self {
        Self { origin: Mutex::new(origin), ..self }
    }

    /// Returns the origin of its configuration.
    pub fn origin(&self) -> Origin {
        lock(&self.origin).clone()
    }

    /// Notes that the configuration was read from disk just now.
    pub fn reread(&self) {
        let mut origin = lock(&self.origin);
        (origin.read, origin.instead) = (SystemTime::now(), false);
    }

    /// Ends this process, when there is no keeper to do it.
    pub fn end(&self) {
        self.ending.notify_one();
    }

    /// Waits for [`Self::end`].
    pub async fn told_to_end(&self) {
        self.ending.notified().await;
    }

    /// Returns a receiver of the keeper's reasons for refusing a new program.
    pub fn refusals(&self) -> broadcast::Receiver<String> {
        self.refusals.subscribe()
    }

    /// Passes on that the keeper has refused a new program.
    pub fn refused(&self, reason: &str) {
        // An error means that no command waits for it any more.
        let _ = self.refusals.send(reason.to_owned());
    }

    /// Returns how often the overlay was attached again.
    pub fn mounts_restored(&self) -> MountsRestored {
        *lock(&self.mounts_restored)
    }

    /// Stops serving: unmounts the overlay and ends the threads.
    pub fn stop(self) -> anyhow::Result<()> {
        drop(self.watcher);
        // Containers whose listeners are closed get ENOSYS for the calls their filter traps.
        drop(self.notifier);
        self.overlay.unmount().context("cannot unmount the overlay")
    }
}

/// Starts the watcher. The server goes on without it.
fn start_watcher(
    attacher: &Arc<Attacher>,
    accounting: &Accounting,
    config: &Config,
) -> Option<Watcher> {
    Watcher::start(attacher.clone(), accounting.hierarchies(), config.attach.clone())
        .inspect_err(|error| {
            tracing::error!("containers are not attached when they start: {error}");
        })
        .ok()
}

/// Logs the settings of the configuration that have no effect.
fn warn_of_notes(config: &Config) {
    for note in config.notes() {
        tracing::warn!("{note}");
    }
}

/// Opens the audit log, if the configuration has one.
fn audit(notifier: &Notifier, config: &Config) -> anyhow::Result<()> {
    let file = config.audit.file.as_deref();
    notifier.audit(file).with_context(|| {
        let file = file.unwrap_or(Path::new("")).display();
        format!("cannot open the audit log {file}; its folder must exist, and it must be a file")
    })
}

/// Returns the memfd of the counter store: the previous server's, or a new one. `None` without a
/// keeper, because no other server would read it.
fn counter_store(keeper: &KeeperClient, inherited: &mut Inherited) -> Option<OwnedFd> {
    keeper.is_kept().then_some(())?;
    inherited.take_version(COUNTER_STORE, keeper).or_else(|| {
        let file = rustix::fs::memfd_create(COUNTER_STORE, rustix::fs::MemfdFlags::CLOEXEC).ok()?;
        keeper.store(COUNTER_STORE, &file);
        Some(file)
    })
}
