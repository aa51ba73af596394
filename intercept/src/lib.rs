//! Answers system calls of containers through seccomp user notification.
//!
//! Notifications come from listeners that OCI runtimes deliver (`oci`), from monitors of liblxc
//! (`lxc`), or from [`Notifier::adopt`]. All of them pass through `pipeline.rs` to one of the
//! handlers listed in `syscalls/mod.rs`. A call that is not granted is answered CONTINUE: the
//! kernel then runs it with the caller's own rights. Nothing here takes a right from a container.
//!
//! Start reading at `syscalls/handler.rs` (what a handler is) and `syscalls/sysinfo.rs` (the
//! smallest one), then `thread.rs` and `pipeline.rs` (the way of a notification). Unsafe code is in
//! `listener.rs` and `journal.rs`, and in one test of `arch.rs`.

mod accept;
mod account;
mod arch;
mod audit;
mod bucket;
mod call;
mod caller_thread;
mod counters;
mod cpu_mask;
mod dispatch;
mod epoll;
mod error;
pub mod filter;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod journal;
mod listener;
mod live_mounts;
mod lxc;
mod lxc_packet;
mod lxc_users;
mod memory;
pub mod mounts;
pub mod oci;
mod operation_queue;
pub mod operations;
mod pending;
mod pipeline;
mod policies;
mod policy;
mod replay_cache;
pub mod settings;
mod syscalls;
mod thread;
mod thread_id;
pub mod timestamp;
mod transport;
mod trapped;
mod user_namespace_owner;
mod verdict;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ambit_keeper::client::{Inherited, KeeperClient};
use ambit_kernel::recorder::Recorder;
use ambit_sysinfo::Views;

pub use account::ContainerCounts;
pub use arch::Abi;
pub use call::Call;
pub use counters::{CallCount, Counts};
pub use error::Error;
pub use policies::{Container, Matcher, Policies, fits};
pub use policy::{Policy, UnknownCall};
pub use syscalls::context::Context;
pub use syscalls::handler::{Description, Handler, Prefilter, Repeat, Run};
pub use syscalls::{HANDLERS, Settings, VIEW};
pub use verdict::{CallError, DaemonError, Verdict};

use accept::{Acceptor, Runtime};
use journal::Journal;
use listener::Listener;
use pipeline::Pipeline;
use policies::Member;
use thread::{Source, Threads};

/// Checks that the kernel has seccomp user notification, with structures of the sizes that this
/// program was built for.
pub fn check_kernel() -> Result<(), Error> {
    listener::check_sizes()
}

/// Where notifications come from, and how they are answered.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where OCI runtimes deliver listeners (`listenerPath`), usually `/run/ambit/oci.sock`.
    pub oci_socket: Option<PathBuf>,
    /// Where liblxc connects (`lxc.seccomp.notify.proxy`), usually `/run/ambit/lxc.sock`.
    pub lxc_socket: Option<PathBuf>,
    /// Which calls are answered, unless a container has a policy of its own.
    pub policies: Policies,
    /// Performs privileged operations. Without it, calls that need one are left to the kernel.
    pub operations: Option<Arc<operations::Operations>>,
    /// Records the call that each thread is handling, and knows which calls must not be handled.
    pub recorder: Option<Arc<dyn Recorder>>,
    /// Set if this server follows another one. A socket that cannot be bound is then no error,
    /// because the containers that run already are served without it.
    pub is_successor: bool,
}

/// The running notification threads. Dropping it ends each thread after the call that it is
/// answering, and removes the sockets. Calls of containers whose listeners are held elsewhere wait;
/// those of others fail with ENOSYS.
#[derive(Debug)]
pub struct Notifier {
    threads: Arc<Threads>,
    acceptor: Option<Acceptor>,
}

impl Notifier {
    /// Starts the threads and binds the sockets.
    pub fn start(views: Arc<dyn Views>, options: Options) -> Result<Self, Error> {
        Self::take_over(views, options, &KeeperClient::default(), &mut Inherited::default())
    }

    /// Starts with the sockets, listeners and connections that the keeper holds for a predecessor.
    pub fn take_over(
        views: Arc<dyn Views>,
        options: Options,
        link: &KeeperClient,
        held: &mut Inherited,
    ) -> Result<Self, Error> {
        let Options { oci_socket, lxc_socket, policies, operations, recorder, is_successor } =
            options;
        listener::check_sizes()?;
        let journal = Journal::open(link, held)?;
        let pipeline = Pipeline::new(views, policies, operations, recorder);
        // If a later step fails, dropping `notifier` stops the threads.
        let mut notifier = Self { threads: Threads::start(pipeline, journal)?, acceptor: None };
        let threads = Arc::clone(&notifier.threads);
        for (number, fd) in held.take_numbered(lxc::CONNECTION) {
            let (users, journal) = (&threads.users, &threads.journal);
            match lxc::Connection::take_over(fd, number, users, link.clone(), journal) {
                Some(connection) => threads.add(Source::LxcConnection(Arc::new(connection)))?,
                None => link.remove(&format!("{}{number}", lxc::CONNECTION)),
            }
        }
        notifier.take_listeners(link, held);
        oci::take_over(&threads, link, held);
        let sockets = [(Runtime::Oci, oci_socket), (Runtime::Lxc, lxc_socket)];
        let sockets = sockets.into_iter().filter_map(|(whose, path)| Some((whose, path?)));
        let sockets: Vec<_> = sockets.collect();
        if !sockets.is_empty() {
            let acceptor = Acceptor::start(sockets, is_successor, threads, link, held)?;
            notifier.acceptor = Some(acceptor);
        }
        Ok(notifier)
    }

    /// Binds sockets again whose files were removed.
    pub fn rebind_sockets(&self) {
        if let Some(acceptor) = &self.acceptor {
            acceptor.rebind();
        }
    }

    /// Takes over the listeners of a predecessor.
    fn take_listeners(&self, link: &KeeperClient, held: &mut Inherited) {
        for (number, fd) in held.take_numbered(listener::LISTENER) {
            let about = held.take_bytes(&format!("{}{number}", listener::ABOUT));
            // The description is missing if the server died between storing the listener and
            // storing it. The container then has the policy for all containers.
            let container = about.and_then(|about| serde_json::from_slice(&about).ok());
            let member = Member::configured(container.unwrap_or_default());
            let adopted = Listener::adopt(fd).and_then(|listener| {
                self.threads.take_over(listener.kept(link.clone(), number), member)
            });
            if let Err(error) = adopted {
                tracing::error!(number, "a listener of a predecessor is lost: {error}");
            }
        }
    }

    /// Takes over the listener of one container. No other process may receive from it.
    pub fn adopt(&self, listener: OwnedFd, container: &str, policy: Policy) -> Result<(), Error> {
        let listener = Listener::adopt(listener)?;
        self.threads.add(Source::Listener {
            listener: Arc::new(listener),
            member: Mutex::new(Member::fixed(container, policy)),
        })
    }

    /// Returns the policies for containers that were adopted without a policy.
    pub fn policies(&self) -> Arc<Policies> {
        self.threads.pipeline.policies.get()
    }

    /// Returns the names of all containers with a listener or a connection, also of those that have
    /// made no call.
    pub fn listeners(&self) -> Vec<String> {
        self.threads.containers().into_iter().collect()
    }

    /// Replaces the policies, from the next call on. Containers that were adopted with a policy
    /// keep it.
    pub fn reload(&self, policies: Policies) {
        self.threads.pipeline.policies.replace(policies);
    }

    /// Returns how often each handler answered.
    pub fn counters(&self) -> Counts {
        self.threads.pipeline.counters.read()
    }

    /// Stops receiving calls, and waits up to `patience` until those that were received are
    /// answered: a successor of another version may not read this journal. Calls that take longer
    /// stay in the journal.
    pub fn drain(&self, patience: Duration) {
        // The keeper has copies of the listeners.
        self.threads.stop();
        let until = Instant::now() + patience;
        while !self.threads.journal.is_idle() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.flush();
    }

    /// Returns the counts of each container that has a listener or a connection.
    pub fn containers(&self) -> Vec<ContainerCounts> {
        self.threads.pipeline.accounts.read()
    }

    /// Opens this file and writes the audit log to it from now on. `None` ends the audit log.
    ///
    /// # Errors
    /// The file cannot be opened. The log then continues in the file it had.
    pub fn audit(&self, file: Option<&Path>) -> std::io::Result<()> {
        self.threads.pipeline.audit.open(file)
    }

    /// Waits until the audit log is written, for a few seconds at most.
    fn flush(&self) {
        self.threads.pipeline.audit.flush();
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.stop();
        }
        self.threads.stop();
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use ambit_sysinfo::view::{Clock, Cpu, Load, Memory, Origin, Swap, Tasks};
    use ambit_sysinfo::{CpuSet, Error, View};

    use super::*;

    pub(super) fn view() -> View {
        View {
            origin: Origin::Container,
            host: Arc::default(),
            memory: Memory { total: Fixed::TOTAL, free: 1 << 20, ..Memory::default() },
            swap: Swap::default(),
            nodes: None,
            cpu: Cpu { online: CpuSet::first(1), ..Cpu::default() },
            tasks: Tasks { total: 3, ..Tasks::default() },
            load: Load::default(),
            clock: Clock::default(),
            stats: ambit_sysinfo::stats::Stats::default(),
        }
    }

    /// Returns the same view for all callers.
    pub(super) struct Fixed(Arc<View>);

    impl Fixed {
        pub(super) const TOTAL: u64 = 256 << 20;

        pub(super) fn new() -> Self {
            Self(Arc::new(view()))
        }
    }

    impl Views for Fixed {
        fn view(&self, _tid: u32) -> Result<Arc<View>, Error> {
            Ok(Arc::clone(&self.0))
        }
    }

    #[test]
    fn sockets_exist_while_the_notifier_runs() {
        let folder = tempfile::tempdir().unwrap();
        let (oci, lxc) = (folder.path().join("oci.sock"), folder.path().join("lxc.sock"));
        let options = Options {
            oci_socket: Some(oci.clone()),
            lxc_socket: Some(lxc.clone()),
            ..Options::default()
        };
        let notifier = Notifier::start(Arc::new(Fixed::new()), options.clone()).unwrap();
        assert!(oci.exists() && lxc.exists());
        let second = Notifier::start(Arc::new(Fixed::new()), options).unwrap_err();
        assert!(matches!(second, super::Error::Socket { .. }), "{second}");
        assert!(oci.exists() && lxc.exists(), "the second notifier does not remove them");
        drop(notifier);
        assert!(!oci.exists() && !lxc.exists());
    }

    #[test]
    fn a_descriptor_that_is_not_a_listener_is_refused() {
        let notifier = Notifier::start(Arc::new(Fixed::new()), Options::default()).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = notifier.adopt(file.into(), "c", Policy::default()).unwrap_err();
        assert!(matches!(error, super::Error::NoListener { .. }), "{error}");
    }
}
