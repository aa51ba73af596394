//! The control socket: one line in, one line of JSON out. Only root can connect.
//!
//! Runs on the main thread's event loop; nothing a container does reaches it.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::daemon::Server;
use crate::status::Status;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a client may take to ask: others wait meanwhile.
const FIRST_LINE: Duration = Duration::from_millis(500);

/// The longest question: the path of a program.
const LONGEST: u64 = 8192;

/// How long a daemon that is about to end may still listen.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Binds the socket. A socket file that nobody listens on is replaced.
///
/// # Errors
/// Another daemon listens on it, or it cannot be bound.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    check_free(path)?;
    replace(path)
}

/// Goes on listening on a predecessor's socket, unless its file is gone.
///
/// # Errors
/// As [`bind`].
pub fn take_over(socket: Option<OwnedFd>, path: &Path) -> anyhow::Result<UnixListener> {
    match socket {
        Some(socket) if path.exists() => {
            let socket = std::os::unix::net::UnixListener::from(socket);
            socket.set_nonblocking(true)?;
            Ok(UnixListener::from_std(socket)?)
        }
        _ => bind(path),
    }
}

/// Makes sure that no daemon listens on the socket. One that is about to end gets a moment for it:
/// who has killed it may not have seen the last of its processes go.
///
/// # Errors
/// One goes on listening.
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

fn replace(path: &Path) -> anyhow::Result<UnixListener> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers questions for ever.
pub async fn serve(listener: &UnixListener, server: &Server) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: wait for some to come back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        match tokio::time::timeout(PATIENCE * 7, answer(stream, server)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a question was not answered"),
            Err(_) => tracing::debug!("a question took too long"),
        }
    }
}

async fn answer(mut stream: UnixStream, server: &Server) -> std::io::Result<()> {
    let mut line = String::new();
    let mut question = tokio::io::BufReader::new((&mut stream).take(LONGEST));
    match tokio::time::timeout(FIRST_LINE, question.read_line(&mut line)).await {
        Ok(read) => drop(read?),
        Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
    }
    let mut text = match line.trim_end() {
        "status" => serde_json::to_vec(&Status::of(server))?,
        word @ ("release" | "stop") => {
            if !server.link().say(word, None) {
                // Nobody could keep anything: both are the same.
                server.end();
            }
            b"{}".to_vec()
        }
        "reload" => crate::serve::reload(server),
        order if order.starts_with("exec ") => {
            if server.link().say(order, None) {
                // Whoever answers is the new program, or the keeper says why there is none.
                refusal(server).await
            } else {
                let error = "the keeper is gone, and nobody can start a program in this one's place; \
                             stop the daemon and start it again";
                serde_json::to_vec(&serde_json::json!({ "error": error }))?
            }
        }
        other => serde_json::to_vec(&serde_json::json!({
            "error": format!("unknown question {other:?}; known: status, reload, stop, release, exec PROGRAM"),
        }))?,
    };
    text.push(b'\n');
    let written = tokio::time::timeout(PATIENCE, stream.write_all(&text)).await;
    written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Waits until the keeper refuses a new program; when it takes it, this process ends before.
async fn refusal(server: &Server) -> Vec<u8> {
    let mut refusals = server.refusals();
    let reason = tokio::time::timeout(Duration::from_secs(30), refusals.recv()).await;
    let reason = reason.ok().and_then(Result::ok).unwrap_or_else(|| "no answer in time".to_owned());
    serde_json::to_vec(&serde_json::json!({ "error": reason })).unwrap_or_default()
}

/// Gives the daemon an order; its answer is the reason why it does not obey. With `exec` the
/// connection ends without an answer, because the process that has it does.
///
/// # Errors
/// No daemon listens, or it refuses.
pub fn order(path: &Path, order: &str) -> anyhow::Result<()> {
    let mut stream = BlockingStream::connect(path).with_context(|| {
        format!("no ambit daemon answers on {}; start one with `ambit serve`", path.display())
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(40)))?;
    writeln!(stream, "{order}")?;
    let mut line = String::new();
    let read = BufReader::new(&stream).read_line(&mut line);
    if order.starts_with("exec ") && line.is_empty() {
        // Gone: its successor answers in a moment, because the socket is the same.
        return ask_status(path).map(drop);
    }
    read.context("the daemon does not answer")?;
    if line.is_empty() {
        anyhow::bail!(
            "the daemon ended before it answered; `ambit status` tells whether it is back"
        );
    }
    let answer: serde_json::Value =
        serde_json::from_str(&line).context("the daemon's answer is not understood")?;
    match answer["error"].as_str() {
        Some(reason) => anyhow::bail!("{reason}"),
        None => Ok(()),
    }
}

/// Asks the daemon for its status.
///
/// # Errors
/// No daemon listens, or it does not answer.
pub fn ask_status(path: &Path) -> anyhow::Result<Status> {
    let until = Instant::now() + PATIENCE;
    loop {
        let line = ask_once(path)?;
        if !line.is_empty() || Instant::now() >= until {
            return serde_json::from_str(&line).context("the daemon's answer is not understood");
        }
        // Killed or replaced while it answered: its successor has the same socket.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The answer; empty if there was none.
fn ask_once(path: &Path) -> anyhow::Result<String> {
    let mut stream = BlockingStream::connect(path).with_context(|| {
        format!("no ambit daemon answers on {}; start one with `ambit serve`", path.display())
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    let asked = stream.write_all(b"status\n");
    match asked.and_then(|()| BufReader::new(stream).read_line(&mut line)) {
        Err(error)
            if [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()) =>
        {
            Ok(String::new())
        }
        read => read.map(|_| line).context("the daemon does not answer"),
    }
}
