//! Asks a FUSE mount of the container whether its connection was aborted.
//!
//! A connection that was aborted answers at once with ENOTCONN. One whose server is stopped does not
//! answer, and the process that asks cannot be relied on to end. So a child asks, and is left behind
//! if it does not answer: it ends with the connection.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::super::child::{Child, OnDrop};
use super::super::report_channel::ReportChannel;
use crate::error::{Context, Error};

/// How long a mount may take to answer.
const PATIENCE: Duration = Duration::from_millis(300);

/// The state of a FUSE mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Alive,
    Dead,
    Silent,
}

/// Asks a mount.
pub(super) fn ask(mount: BorrowedFd<'_>) -> Result<Verdict, Error> {
    let (ours, theirs) = ReportChannel::pair()?;
    let child = Child::start(OnDrop::Kill, || {
        let answer = rustix::fs::fstatfs(mount).context("statfs").map(|_| Vec::new());
        theirs.report(answer);
    })?;
    drop(theirs);
    let verdict = match ours.receive(Instant::now() + PATIENCE) {
        Ok(_) => Verdict::Alive,
        Err(Error { errno: Errno::NOTCONN | Errno::CONNABORTED | Errno::CONNREFUSED, .. }) => {
            Verdict::Dead
        }
        Err(Error { errno: Errno::TIMEDOUT, .. }) => return Ok(Verdict::Silent),
        Err(_) => Verdict::Alive,
    };
    child.finish();
    Ok(verdict)
}
