//! The control socket: one line in, one line of JSON out. Only root can connect.
//!
//! Runs on the main thread's event loop; nothing a container does reaches it.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_keeper::client::{Inherited, KeeperClient};
use ambit_kernel::output;
use anyhow::Context;
use rustix::net::SocketType;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::attacher::{Attacher, Question};
use crate::config::Config;
use crate::daemon::Server;
use crate::status::Status;
use ambit_keeper::socket::{Entrance, Users};

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a client may take to send its question. Other clients wait meanwhile.
const FIRST_LINE: Duration = Duration::from_millis(500);

/// The longest question: the path of a program.
const LONGEST: u64 = 8192;

/// How long a daemon that is about to end may still listen.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The name under which the keeper holds the socket.
pub const SOCKET: &str = "control";

/// The interval at which the socket's file is checked.
const BEAT: Duration = Duration::from_secs(1);

/// The control socket.
#[derive(Debug)]
pub struct Control {
    entrance: Entrance,
    /// `None` while it cannot be bound.
    listener: Option<UnixListener>,
}

impl Control {
    /// Listens on the socket of the previous server or of a socket unit, or binds one. A socket file
    /// that no daemon listens on is replaced.
    pub fn open(
        path: PathBuf,
        held: &mut Inherited,
        is_successor: bool,
        keeper: &KeeperClient,
    ) -> anyhow::Result<Self> {
        let mut entrance = Entrance::new(SOCKET, path, SocketType::STREAM, Users::Root);
        entrance.open(held, is_successor, keeper)?;
        let mut control = Self { entrance, listener: None };
        control.listen()?;
        Ok(control)
    }

    /// Answers questions for ever.
    pub async fn serve(&mut self, server: &Server) {
        let mut beat = tokio::time::interval(BEAT);
        loop {
            let stream = tokio::select! {
                _ = beat.tick() => {
                    self.look(server);
                    continue;
                }
                stream = accept(self.listener.as_ref()) => stream,
            };
            match tokio::time::timeout(PATIENCE * 7, answer(stream, server)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a question was not answered"),
                Err(_) => tracing::debug!("a question took too long"),
            }
        }
    }

    /// Binds the sockets again whose files were removed, this one and those of runtimes.
    fn look(&mut self, server: &Server) {
        if self.entrance.look(&server.keeper).is_some()
            && let Err(error) = self.listen()
        {
            tracing::error!("the control socket is not watched: {error}");
        }
        server.notifier.rebind_sockets();
    }

    fn listen(&mut self) -> std::io::Result<()> {
        // Clients that wait on the old socket connect again.
        self.listener = None;
        if let Some(socket) = self.entrance.listening() {
            let socket =
                std::os::unix::net::UnixListener::from(socket.as_fd().try_clone_to_owned()?);
            self.listener = Some(UnixListener::from_std(socket)?);
        }
        Ok(())
    }
}

async fn accept(listener: Option<&UnixListener>) -> UnixStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Out of descriptors: wait for some to come back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Checks that no daemon listens on the socket. Waits for one that is about to end: after a kill,
/// its last process may take a moment.
pub fn check_free(path: &Path) -> anyhow::Result<()> {
    let until = Instant::now() + LAST_MOMENT;
    while BlockingStream::connect(path).is_ok() {
        if Instant::now() >= until {
            anyhow::bail!(
                "an ambit daemon is already running (it listens on {}); \
                 stop it, or give this one another runtime_dir and mount",
                path.display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

async fn answer(mut stream: UnixStream, server: &Server) -> std::io::Result<()> {
    let mut line = String::new();
    let mut question = tokio::io::BufReader::new((&mut stream).take(LONGEST));
    match tokio::time::timeout(FIRST_LINE, question.read_line(&mut line)).await {
        Ok(read) => drop(read?),
        Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
    }
    let line = line.trim_end();
    if let Some(question) = Question::parse(line) {
        // The container may not answer: other clients do not wait meanwhile.
        let attacher = server.attacher.clone();
        tokio::spawn(async move { respond(stream, attach(question, attacher).await).await });
        return Ok(());
    }
    let text = match line {
        "status" => serde_json::to_vec(&Status::of(server))?,
        "parts" => serde_json::to_vec(&Parts::of(server))?,
        word @ ("release" | "stop") => {
            if !server.keeper.send(word, None) {
                // Without a keeper nothing outlives this process: both commands are the same.
                server.end();
            }
            b"{}".to_vec()
        }
        "reload" => reload(server),
        order if order.starts_with("exec ") => {
            if server.keeper.send(order, None) {
                // The new program answers, or the keeper tells why it was refused.
                error_answer(&wait_for_refusal(server).await)
            } else {
                error_answer(
                    "the keeper has ended and cannot start another program; stop the daemon and \
                     start it again",
                )
            }
        }
        other => error_answer(&format!(
            "unknown question {other:?}; known: status, parts, reload, stop, release, exec PROGRAM, \
             attach PID, detach PID"
        )),
    };
    respond(stream, text).await
}

async fn respond(mut stream: UnixStream, mut text: Vec<u8>) -> std::io::Result<()> {
    text.push(b'\n');
    let written = tokio::time::timeout(PATIENCE, stream.write_all(&text)).await;
    written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Returns the JSON of an error, which [`parse`] reads.
fn error_answer(reason: &str) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({ "error": reason })).unwrap_or_default()
}

/// Attaches files to a container, on another thread: the broker may take some seconds.
async fn attach(question: Result<Question, String>, attacher: Arc<Attacher>) -> Vec<u8> {
    let done = match question {
        Ok(question) => {
            let done = tokio::task::spawn_blocking(move || attacher.run(question)).await;
            done.map_err(Into::into).and_then(|done| done).map_err(|error| output::one_line(&error))
        }
        Err(reason) => Err(reason),
    };
    match done {
        Ok(report) => serde_json::to_vec(&report).unwrap_or_default(),
        Err(error) => error_answer(&error),
    }
}

/// Waits until the keeper refuses a new program. If it accepts, this process ends before.
async fn wait_for_refusal(server: &Server) -> String {
    let mut refusals = server.refusals();
    let reason = tokio::time::timeout(Duration::from_secs(30), refusals.recv()).await;
    reason.ok().and_then(Result::ok).unwrap_or_else(|| "no answer in time".to_owned())
}

/// The parts of a daemon, for `ambit stop`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parts {
    /// Its processes: the keeper, where there is one, and the server.
    pub processes: Vec<u32>,
    /// Where the overlay is mounted.
    pub mount: PathBuf,
    /// A service manager holds mounts and listeners when the processes have ended.
    pub is_kept: bool,
    /// The containers whose calls are reported to it.
    pub listeners: Vec<String>,
}

impl Parts {
    fn of(server: &Server) -> Self {
        let keeper = &server.keeper;
        let mut processes = vec![keeper.service_pid(), std::process::id()];
        processes.dedup();
        Self {
            processes,
            mount: server.mount().to_owned(),
            is_kept: keeper.is_kept() && !keeper.is_lost() && ambit_keeper::has_manager(),
            listeners: server.notifier.listeners(),
        }
    }
}

/// No daemon listens.
#[derive(Debug, thiserror::Error)]
#[error("no ambit daemon answers on {}; start one with `ambit serve`", .0.display())]
pub struct NoDaemon(PathBuf);

/// Sends a command to the daemon. The answer has the error if the daemon refuses. With `exec` the
/// connection ends without an answer, because the process that holds it ends.
pub fn order(path: &Path, order: &str) -> anyhow::Result<()> {
    let mut stream = connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(40)))?;
    writeln!(stream, "{order}")?;
    let mut line = String::new();
    let read = BufReader::new(&stream).read_line(&mut line);
    if order.starts_with("exec ") && line.is_empty() {
        // It has ended: the next server answers soon on the same socket.
        return ask_status(path).map(drop);
    }
    if matches!(order, "stop" | "release") && line.is_empty() {
        // It may end before it answers.
        return Ok(());
    }
    read.context("the daemon does not answer")?;
    if line.is_empty() {
        anyhow::bail!(
            "the daemon ended before it answered; `ambit status` tells whether it is back"
        );
    }
    parse::<serde_json::Value>(&line).map(drop)
}

/// Asks the daemon for its status.
pub fn ask_status(path: &Path) -> anyhow::Result<Status> {
    ask_for(path, "status")
}

/// Asks the daemon for its parts.
pub fn ask_parts(path: &Path) -> anyhow::Result<Parts> {
    ask_for(path, "parts")
}

/// The error that the daemon answers.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ControlError(String);

/// Sends a question.
pub fn ask_for<T: DeserializeOwned>(path: &Path, question: &str) -> anyhow::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        let line = ask_once(path, question)?;
        if !line.is_empty() || Instant::now() >= until {
            return parse(&line);
        }
        // It was killed or replaced while it answered: the next server has the same socket.
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> anyhow::Result<T> {
    #[derive(Deserialize)]
    struct Answer {
        error: Option<String>,
    }
    const UNKNOWN: &str = "the daemon's answer is not understood";
    match serde_json::from_str(line).context(UNKNOWN)? {
        Answer { error: Some(reason) } => Err(ControlError(reason).into()),
        Answer { error: None } => serde_json::from_str(line).context(UNKNOWN),
    }
}

/// Returns the answer, which is empty if the daemon ended before it answered.
fn ask_once(path: &Path, question: &str) -> anyhow::Result<String> {
    let mut stream = connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    let asked = stream.write_all(format!("{question}\n").as_bytes());
    match asked.and_then(|()| BufReader::new(stream).read_line(&mut line)) {
        Err(error)
            if [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()) =>
        {
            Ok(String::new())
        }
        read => read.map(|_| line).context("the daemon does not answer"),
    }
}

fn connect(path: &Path) -> anyhow::Result<BlockingStream> {
    match BlockingStream::connect(path) {
        Err(error)
            if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind()) =>
        {
            Err(NoDaemon(path.to_owned()).into())
        }
        stream => stream.with_context(|| format!("cannot connect to {}", path.display())),
    }
}

/// Reads the configuration again. An error in it changes nothing. Returns the JSON that answers the
/// command.
pub(crate) fn reload(server: &Server) -> Vec<u8> {
    let reconfigured = Config::load_with_text(server.origin().file.as_deref())
        .map_err(Into::into)
        .and_then(|(config, text)| server.reconfigure(&config).map(|()| text));
    match reconfigured {
        Ok(text) => {
            server.restore_mounts();
            server.reread();
            // The keeper restarts the standby, which has read the old configuration.
            server.keeper.send_with_text("reloaded", &text);
            tracing::info!("the configuration was read again");
            b"{}".to_vec()
        }
        Err(error) => {
            let error = output::one_line(&error);
            tracing::error!("the configuration stays as it was: {error}");
            error_answer(&error)
        }
    }
}
