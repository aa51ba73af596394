//! `ambit serve`: the daemon in the foreground.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::control;
use crate::daemon::{self, Reach, Server};
use crate::logging;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Something essential is missing or busy.
pub fn serve(config: &Config) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!("the daemon must run as root: it mounts files and reads every container");
    }
    let acts = daemon::start_acts()?;
    logging::start(config.daemon.log);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let path = config.socket("control.sock");
        let control = control::bind(&path)?;
        let server = Server::start(config, Reach::Host, Some(acts))
            .inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        tracing::info!(
            mount = %server.mount().display(),
            sockets = %config.daemon.runtime_dir.display(),
            cgroups = server.accounting().hierarchies().layout(),
            "serving"
        );
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tokio::select! {
            () = control::serve(&control, &server) => {}
            _ = terminated.recv() => tracing::info!("stopping on SIGTERM"),
            _ = interrupted.recv() => tracing::info!("stopping on SIGINT"),
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        drop(std::fs::remove_file(&path));
        server.stop()
    })
}
