//! The starter: a process that starts the helper, and is the subreaper of what that daemonizes
//! until the filesystem is served.
//!
//! It is the caller in everything but the mount namespace, and so is the helper. A helper there
//! would keep the namespace, and with it its own mount, for ever: the kernel unmounts a namespace
//! when the last process has left it. By its root the helper sees all files of the caller's
//! namespace as long as that exists. Start reading at [`Starter::fork`].

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::host_program::HostProgram;
use super::mount_call::{self, MountCalls};
use super::order::{Handler, Order};
use super::program::{self, HelperContext, Program};
use crate::child::{Child, OnDrop};
use crate::error::{Error, MarkUntried};
use crate::report_channel::ReportChannel;

/// How long to wait for a helper's message after its failure has been detected.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// The running starter.
#[derive(Debug)]
pub(super) struct Starter {
    process: Child,
    /// Reports the end of the helper's first process.
    pub(super) channel: ReportChannel,
}

impl Starter {
    /// Forks the starter.
    pub(super) fn fork(
        order: &Order,
        handler: &Handler,
        host: Option<&HostProgram>,
        context: &HelperContext<'_>,
        until: Instant,
    ) -> Result<Self, Error> {
        let (channel, theirs) = ReportChannel::pair()?;
        let process = Child::start(OnDrop::Leave, || {
            let ended = run(&theirs, order, handler, host, context, until);
            // Daemonized processes must be descendants of the starter until the mount is made.
            theirs.report(ended.map(|()| Vec::new()));
            let _ = theirs.receive(until + LAST_WORDS);
        })?;
        Ok(Self { process, channel })
    }

    /// Waits until the program was found. Returns its calls of mount(2) if it does not take the
    /// device.
    pub(super) fn ready(&self, until: Instant) -> Result<Option<MountCalls>, Error> {
        Ok(self.channel.receive(until)?.pop().map(MountCalls::from))
    }

    /// Has the helper started, with an open `/dev/fuse` if it takes one, and with its source.
    pub(super) fn start(
        &self,
        device: Option<BorrowedFd<'_>>,
        source: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        self.channel.done(&device.into_iter().chain(source).collect::<Vec<_>>())
    }

    /// Ends the starter and leaves the helper running.
    pub(super) fn detach(self) {
        self.process.detach();
    }
}

fn run(
    parent: &ReportChannel,
    order: &Order,
    handler: &Handler,
    host: Option<&HostProgram>,
    context: &HelperContext<'_>,
    until: Instant,
) -> Result<(), Error> {
    context.caller.enter_without_mounts()?;
    let program = match host {
        Some(program) => Program::of_the_host(program)?,
        None => Program::find(handler.program.name())?,
    };
    let takes_device = program.takes_device();
    let listener = if takes_device { None } else { Some(mount_call::install().mark_untried()?) };
    parent.done(listener.as_ref().map(AsFd::as_fd).as_slice())?;
    drop(listener);
    let mut given = parent.receive(until)?.into_iter();
    let device = if takes_device { given.next().map(File::from) } else { None };
    let source = given.next();
    let words = match &device {
        Some(device) => program.arguments_with_device(order, handler, device.as_fd())?,
        None => program.arguments(order, handler)?,
    };
    program::watch(move || {
        let source = source.as_ref().map(AsFd::as_fd);
        program::execute(&program, &words, device.as_ref(), source, context)
    })
}
