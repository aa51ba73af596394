//! Sends a listener to a running daemon, as an OCI runtime does: for `ambit run` and tests.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ambit_kernel::channel;
use rustix::net::SendFlags;

use super::message::{LISTENER, Message, State};

/// How long a daemon that reads nothing is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends the listener of container `id`, whose init is `pid`, to the daemon that listens on
/// `socket`. The protocol has no acknowledgement: success means that the message is in the socket.
/// Calls of the container wait until the daemon has read it.
pub fn deliver(
    socket: &Path,
    listener: BorrowedFd<'_>,
    id: &str,
    pid: i32,
    annotations: &[(&str, &str)],
) -> io::Result<()> {
    let annotations: BTreeMap<String, String> =
        annotations.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    let version = "1.1.0".to_owned();
    let message = serde_json::to_vec(&Message {
        oci_version: version.clone(),
        fds: vec![LISTENER.to_owned()],
        pid,
        metadata: None,
        state: State {
            oci_version: version,
            id: id.to_owned(),
            status: "creating".to_owned(),
            pid,
            bundle: "/".to_owned(),
            annotations: Some(annotations),
        },
    })?;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // sendmsg(2) on a stream may send a part only. One byte cannot be split.
    let (first, rest) = message.split_at(1);
    channel::send(&stream, first, &[listener], SendFlags::empty())?;
    stream.write_all(rest)
}
