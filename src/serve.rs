//! The server: the process that the keeper starts, and restarts (`ambit serve --kept`).
//!
//! It takes commands from the keeper only. A signal that a terminal or a service manager sends to
//! the whole process group reaches the keeper too, and the keeper decides what follows.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_fuse::Submount;
use ambit_keeper::client::{ALIVE, BROKER, KeeperClient, Kept, Orders};
use ambit_keeper::wire;
use ambit_kernel::sys::x32;
use ambit_kernel::text::mountinfo::Watch;
use anyhow::Context;
use nix::sys::signal::SigSet;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, ConfigError, DEFAULT_PATH};
use crate::control::{self, Control};
use crate::daemon::{Origin, Reach, Server};
use crate::threads::{self, Threads};
use crate::{hook, logging, process_setup, self_check, server_filter};
use ambit_intercept::operations::Operations;
use ambit_intercept::timestamp;
use ambit_worker::Broker;

/// The interval of heartbeats to the keeper.
const BEAT: Duration = Duration::from_secs(1);

/// How long calls in progress may take when this process leaves. The keeper waits longer.
const SETTLE: Duration = Duration::from_secs(3);

/// A command of the keeper.
enum Command {
    /// End, and leave files and listeners to the next server.
    Leave,
    /// Unmount and end.
    Release,
    /// Read the configuration again.
    Reload,
}

/// The configuration that is used, and a warning about it, which is logged once logging has
/// started.
struct Chosen {
    config: Config,
    origin: Origin,
    warning: Option<String>,
}

/// Runs the server until the keeper ends it.
pub fn serve_kept(path: Option<&Path>) -> anyhow::Result<()> {
    // The keeper executes `/proc/self/fd/N`, so that the name is a number.
    let _ = rustix::thread::set_name(c"ambit");
    let keeper = KeeperClient::inherit()?;
    let Orders { is_candidate, configuration, broker } = keeper.orders();
    let served = choose(path, &keeper, configuration.filter(|_| !is_candidate))
        .map_err(anyhow::Error::from)
        .and_then(|chosen| serve(chosen, &keeper, is_candidate, broker));
    if let Err(error) = &served {
        // The keeper passes it on to `ambit reload --exec`.
        let _ = keeper.send(&format!("failed {error:#}"), None);
    }
    served
}

/// Reads the configuration. If the file is invalid, returns the last good one, which the keeper
/// holds: containers depend on a server.
fn choose(
    path: Option<&Path>,
    keeper: &KeeperClient,
    kept: Option<Kept>,
) -> Result<Chosen, ConfigError> {
    let file = path.map(Path::to_owned);
    let on_disk = match &kept {
        Some(kept) if kept.instead => None,
        _ => Some(Config::load_with_text(path)),
    };
    // Most programs truncate a file before they write it.
    let is_empty = |text: &str| text.trim().is_empty();
    let is_being_written = matches!(&on_disk, Some(Ok((_, text))) if is_empty(text))
        && kept.as_ref().is_some_and(|kept| !is_empty(&kept.text));
    let (error, kept) = match (on_disk.filter(|_| !is_being_written), kept) {
        (Some(Ok((config, text))), _) => {
            keeper.send_with_text(wire::CONFIGURED, &text);
            let origin = Origin { file, read: SystemTime::now(), instead: false };
            return Ok(Chosen { config, origin, warning: None });
        }
        (Some(Err(error)), None) => return Err(error),
        (None, None) => {
            (None, Kept { text: String::new(), read: SystemTime::now(), instead: true })
        }
        (Some(Err(error)), Some(kept)) => (Some(error), kept),
        (None, Some(kept)) => (None, kept),
    };
    let Kept { text, read, instead } = kept;
    let config = Config::parse(&text, path.unwrap_or(Path::new(DEFAULT_PATH)));
    let (config, error) = match (config, error) {
        (Ok(config), error) => (config, error),
        // The error of the file on disk is the one that the administrator can correct.
        (Err(kept), error) => return Err(error.unwrap_or(kept)),
    };
    let why = match error {
        Some(error) => format!("the configuration file is wrong: {error}"),
        None if is_being_written => "the configuration file is empty".to_owned(),
        None => "servers with the configuration on disk died early".to_owned(),
    };
    let at = timestamp::seconds(read);
    let warning = Some(format!("{why}; running with the one read at {at}"));
    Ok(Chosen { config, origin: Origin { file, read, instead }, warning })
}

fn serve(
    chosen: Chosen,
    keeper: &KeeperClient,
    candidate: bool,
    broker: Option<Option<OwnedFd>>,
) -> anyhow::Result<()> {
    let Chosen { config, origin, warning } = chosen;
    let config = &config;
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!("the daemon must run as root: it mounts files and reads every container");
    }
    // The keeper blocks its signals, and the mask is inherited.
    SigSet::empty().thread_set_mask().context("cannot unblock signals")?;
    let broker = Arc::new(match broker {
        Some(connection) => Broker::kept(connection),
        // A keeper of an older version starts no broker.
        None => Broker::start().context("cannot start the broker of acts: fork")?,
    });
    let operations = Operations::new(Arc::clone(&broker));
    process_setup::give_up_rights().context("cannot give up rights: capset")?;
    let filter = server_filter::install();
    logging::start(config.daemon.log);
    if let Err(error) = filter {
        tracing::warn!("the server has no seccomp filter: {error}");
    }
    threads::watch_panics();
    if let Some(warning) = warning {
        tracing::error!("{warning}");
    }
    keep_pages();
    if candidate {
        self_check::run(config).context("it fails its check")?;
    }
    // Containers wait from `take_over` on, so accounting is started before it, and a standby has
    // done this long before. Most of the time is spent on reading the topology.
    let accounting = process_setup::start_accounting(process_setup::accounting_options(config))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(async {
        // Kept alive so that these signals have no effect.
        let _signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
            .map(|kind| signal(kind).ok());
        let socket = config.socket("control.sock");
        let mut inherited = keeper.take_over()?;
        if let Some(connection) = inherited.take(BROKER) {
            broker.replace(connection);
        }
        let is_successor = inherited.has_predecessor();
        let mut control_sockets = inherited.take_sockets(control::SOCKET);
        if !is_successor && control_sockets.is_empty() {
            control::check_free(&socket)?;
        }
        let server = Server::take_over(
            config,
            Reach::Host,
            Some(operations),
            accounting,
            keeper.clone(),
            inherited,
        )?;
        let server = server.configured_from(origin);
        let mut control = match Control::open(socket, &mut control_sockets, is_successor, keeper) {
            Ok(control) => control,
            Err(error) => {
                // No container uses this server yet.
                server.stop()?;
                return Err(error);
            }
        };
        let _ = keeper.send("serving", None);
        hook::leave_shared_profile(config);
        let threads = Threads::running();
        tracing::info!(
            mount = %server.mount().display(),
            sockets = %config.daemon.runtime_dir.display(),
            cgroups = server.accounting.hierarchies().layout(),
            restarts = keeper.restarts(),
            "serving"
        );
        tokio::select! {
            () = control.serve(&server) => {}
            () = send_heartbeats(keeper) => {}
            () = watch_mounts(&server) => leave_dead(),
            name = wait_for_lost_thread(&threads) => end_without_thread(&name),
            command = receive_commands(keeper, &server, &broker) => match command {
                Command::Leave | Command::Reload => leave(&server),
                Command::Release => tracing::info!("stopping; the files are unmounted"),
            },
        }
        drop(control);
        let stopped = server.stop();
        // Without the sockets no container starts whose profile reports calls.
        hook::leave_shared_profile(config);
        stopped
    })
}

/// Has the kernel leave the pages of request buffers as they are: it takes them away for a moment
/// when it makes a huge page of them, and write-protects them when this process forks
/// (`ambit_fuse::PrefaultAllocator` tells why that matters). Helpers do not inherit this: the broker
/// is no child of this process.
fn keep_pages() {
    // It forks at the first call.
    let _ = x32::is_there();
    if let Err(errno) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!("huge pages cannot be refused: prctl(PR_SET_THP_DISABLE): {errno}");
    }
}

/// Ends without unmounting or removing anything: the next server takes it over.
#[allow(clippy::exit, reason = "nothing may be dropped")]
fn leave(server: &Server) -> ! {
    server.overlay.drain(SETTLE);
    server.notifier.drain(SETTLE);
    tracing::info!("leaving; the files stay mounted for the successor");
    std::process::exit(0)
}

/// Attaches the overlay again whenever it was unmounted. Returns when its connection is aborted.
async fn watch_mounts(server: &Server) {
    let watch = Watch::new().inspect_err(|error| {
        tracing::error!("an overlay that is unmounted is not noticed: mountinfo: {error}");
    });
    server.restore_mounts();
    let mut interval = tokio::time::interval(BEAT);
    while !server.overlay.is_finished() {
        let is_changed = watch.as_ref().is_ok_and(Watch::has_changed);
        if is_changed || Submount::ALL.iter().any(|&submount| server.overlay.is_aborted(submount)) {
            server.restore_mounts();
        }
        interval.tick().await;
    }
}

/// Ends because the FUSE connection was aborted: the next server mounts the files anew, and takes
/// everything else over. The exit status says that no request is to blame.
#[allow(clippy::exit, reason = "nothing may be dropped")]
fn leave_dead() -> ! {
    tracing::error!(
        "the files are dead: their FUSE connection was aborted; they are mounted anew. \
         `ambit status` tells which containers still have the dead ones"
    );
    std::process::exit(0)
}

/// Waits until a thread that is needed has ended by a panic. Returns its name.
async fn wait_for_lost_thread(threads: &Threads) -> String {
    let mut interval = tokio::time::interval(BEAT);
    loop {
        interval.tick().await;
        if let Some(name) = threads.lost() {
            return name.to_owned();
        }
    }
}

/// Ends because a thread has ended that is not restarted: the next server has all threads.
#[allow(clippy::exit, reason = "nothing may be dropped")]
fn end_without_thread(name: &str) -> ! {
    tracing::error!("the thread {name} has ended by a panic; another server goes on");
    std::process::exit(101)
}

async fn send_heartbeats(keeper: &KeeperClient) {
    let mut interval = tokio::time::interval(BEAT);
    loop {
        interval.tick().await;
        let _ = keeper.send(ALIVE, None);
    }
}

/// Handles the keeper's commands until one ends this process, and returns that one.
async fn receive_commands(keeper: &KeeperClient, server: &Server, broker: &Arc<Broker>) -> Command {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (receiver, broker) = (keeper.clone(), Arc::clone(broker));
    let listening = std::thread::Builder::new().name("keeper".into()).spawn(move || {
        while let Some((text, fd)) = receiver.receive() {
            match fd {
                Some(connection) if text.starts_with(BROKER) => broker.replace(connection),
                _ => drop(tell.send(text)),
            }
        }
    });
    if let Err(error) = listening {
        tracing::error!("no commands of the keeper are received: cannot start a thread: {error}");
        return std::future::pending().await;
    }
    while let Some(text) = told.recv().await {
        match parse_command(&text) {
            Some(Command::Reload) => drop(control::reload(server)),
            Some(command) => return command,
            None => {
                let reason = text.strip_prefix("refused ").unwrap_or(&text);
                tracing::warn!("the keeper refuses: {reason}");
                server.refused(reason);
            }
        }
    }
    // systemd starts a new keeper and passes the descriptors on to it.
    if std::env::var_os("FDSTORE").is_some() {
        return Command::Leave;
    }
    tracing::error!(
        "the keeper is gone: serving on until stopped, but nothing survives this server"
    );
    serve_without_keeper(server).await
}

/// Handles signals and commands in place of a keeper that has ended.
async fn serve_without_keeper(server: &Server) -> Command {
    let (Ok(mut terminated), Ok(mut interrupted), Ok(mut hung_up)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    ) else {
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = terminated.recv() => return Command::Release,
            _ = interrupted.recv() => return Command::Release,
            () = server.told_to_end() => return Command::Release,
            _ = hung_up.recv() => drop(control::reload(server)),
        }
    }
}

fn parse_command(text: &str) -> Option<Command> {
    match text {
        "leave" => Some(Command::Leave),
        "release" => Some(Command::Release),
        "reload" => Some(Command::Reload),
        _ => None,
    }
}
