//! Answers the trapped calls of every container with the numbers of one made-up container, to try
//! runtimes and seccomp profiles by hand: `cargo run --example fixed_calls -- DIRECTORY` listens on
//! `oci.sock` and `lxc.sock` in the directory, and prints its counters when standard input ends.
//! 256 MiB, one processor.

use std::io::{Read, stdin};
use std::path::PathBuf;
use std::sync::Arc;

use ambit_intercept::{HANDLERS, Notifier, Options, Policies, Policy};
use ambit_sysinfo::view::{Clock, Cpu, Load, Memory, Origin, Swap, Tasks};
use ambit_sysinfo::{CpuSet, Error, View, Views};

struct Fixed(Arc<View>);

impl Views for Fixed {
    fn view(&self, _tid: u32) -> Result<Arc<View>, Error> {
        Ok(Arc::clone(&self.0))
    }
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| anyhow::anyhow!("usage: fixed_calls DIRECTORY"))?;
    let view = View {
        origin: Origin::Container,
        host: Arc::default(),
        memory: Memory { total: 256 << 20, free: 100 << 20, ..Memory::default() },
        swap: Swap::default(),
        nodes: None,
        cpu: Cpu { online: CpuSet::first(1), ..Cpu::default() },
        tasks: Tasks { total: 5, ..Tasks::default() },
        load: Load { one: 1 << Load::SHIFT, ..Load::default() },
        clock: Clock { uptime: 90_000_000_000, ..Clock::default() },
        stats: ambit_sysinfo::stats::Stats::default(),
    };
    let names = HANDLERS.iter().map(|handler| handler.describe().name);
    let options = Options {
        oci_socket: Some(folder.join("oci.sock")),
        lxc_socket: Some(folder.join("lxc.sock")),
        policies: Policies::for_all(Policy::from_names(names)?),
        operations: None,
        recorder: None,
        is_successor: false,
    };
    let notifier = Notifier::start(Arc::new(Fixed(Arc::new(view))), options)?;
    stdin().read_to_end(&mut Vec::new())?;
    println!("{:#?}", notifier.counters());
    Ok(())
}
