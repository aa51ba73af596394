//! Random requests against the whole filesystem. Each answer is compared with a simple model: open
//! files of several containers are snapshots, whatever is read, opened and closed in between.
//!
//! `AMBIT_MODEL_READS` sets how many reads are made; without it a debug build makes fewer.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ambit_fuse::{FILES, Text};
use ambit_sysinfo::{Error, Host, View, Views};
use kernel::{ACCESS, ENOENT, Kernel, READDIR, READDIRPLUS, STATFS, u32_at, u64_at};

#[path = "fixtures/container.rs"]
mod container;
#[path = "fake_kernel/kernel.rs"]
mod kernel;

/// Threads of as many containers.
const CONTAINERS: u32 = 7;

/// Every view has another moment, so that no two texts are equal.
struct Moving(AtomicU64);

/// The view of one container at one moment; the model and the server share nothing else.
fn at(container: u32, moment: u64) -> View {
    let mut view = container::view();
    view.memory.total += u64::from(container) << 24;
    view.memory.free = moment << 10;
    view.clock.uptime = moment * 1_000_000_000;
    view.cpu.total.user = moment;
    view.tasks.forks = moment;
    view.load.one = moment % 4096;
    view.cpu.online = (0..=container % 3).collect();
    view.cpu.times = view.cpu.online.iter().map(|cpu| (cpu, view.cpu.total)).collect();
    view.stats.events = view.stats.events.with("pgfault", moment);
    let mut devices = view.stats.devices.to_vec();
    devices[0].io.reads = moment;
    view.stats.devices = devices.into();
    view
}

impl Views for Moving {
    fn view(&self, tid: u32) -> Result<Arc<View>, Error> {
        Ok(Arc::new(at(tid, self.0.fetch_add(1, Ordering::Relaxed) + 1)))
    }

    fn host(&self) -> Option<Arc<Host>> {
        None
    }
}

/// An open file as the model knows it.
struct Open {
    file: usize,
    handle: u64,
    container: u32,
    text: Vec<u8>,
    /// True once it was read. The first read, and every read from behind the start, is of the text
    /// of OPEN; a later read from the start renders the file again.
    read: bool,
}

/// A generator of numbers, the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }
}

struct Model {
    kernel: Kernel,
    clock: Arc<Moving>,
    nodes: Vec<u64>,
    open: Vec<Open>,
    dice: Dice,
    rendered: Text,
}

impl Model {
    /// Returns the text of the file if it is rendered now.
    fn expect(&mut self, file: usize, container: u32) -> Vec<u8> {
        let next = self.clock.0.load(Ordering::Relaxed) + 1;
        self.rendered.clear();
        (FILES[file].render)(&at(container, next), &mut self.rendered);
        self.rendered.as_bytes().to_vec()
    }

    fn open(&mut self) {
        let file = self.dice.roll(FILES.len() as u64) as usize;
        let container = 1 + self.dice.roll(CONTAINERS.into()) as u32;
        let text = self.expect(file, container);
        self.kernel.thread = container;
        let handle = self.kernel.open(self.nodes[file], 0).unwrap();
        assert!(self.open.iter().all(|other| other.handle != handle), "handles are unique");
        self.open.push(Open { file, handle, container, text, read: false });
    }

    fn close(&mut self) {
        let at = self.dice.roll(self.open.len() as u64) as usize;
        let open = self.open.swap_remove(at);
        self.kernel.release(self.nodes[open.file], open.handle);
    }

    fn read(&mut self) {
        let at = self.dice.roll(self.open.len() as u64) as usize;
        let (file, handle, container) = {
            let open = &self.open[at];
            (open.file, open.handle, open.container)
        };
        let length = self.open[at].text.len() as u64;
        let offset = match self.dice.roll(8) {
            0 => 0,
            1 => length,
            2 => length + self.dice.roll(1 << 20),
            3 => (1 << 62) + self.dice.roll(1 << 61),
            _ => self.dice.roll(length + 1),
        };
        let size = match self.dice.roll(4) {
            0 => self.dice.roll(8),
            1 => 131_072,
            _ => self.dice.roll(length + 100),
        } as u32;
        // A read from the start of a file that was read before, or of an empty text, is of a new
        // text.
        let open = &self.open[at];
        if open.read && (offset == 0 || open.text.is_empty()) {
            let text = self.expect(file, container);
            self.open[at].text = text;
        }
        self.open[at].read = true;
        // Any thread may read: the text is the opener's, except that a new text is the reader's
        // own.
        self.kernel.thread = container;
        let part = self.kernel.read_borrowed(self.nodes[file], handle, offset, size).unwrap();
        let text = &self.open[at].text;
        let from = usize::try_from(offset).unwrap().min(text.len());
        let expected = &text[from..from.saturating_add(size as usize).min(text.len())];
        assert!(
            part == expected,
            "{} of container {container}, {size} bytes at {offset}:\n{}\ninstead of\n{}",
            FILES[file].path,
            String::from_utf8_lossy(part),
            String::from_utf8_lossy(expected),
        );
    }

    /// Requests of exporters and file managers, which must change nothing.
    fn look_around(&mut self) {
        let file = self.dice.roll(FILES.len() as u64) as usize;
        let node = self.nodes[file];
        let path = FILES[file].path;
        match self.dice.roll(6) {
            0 => assert_eq!(self.kernel.walk(path).unwrap().ino, node),
            1 => {
                let attr = self.kernel.getattr(node).unwrap();
                assert!(attr.size > 0 && attr.ino == node && attr.mode & 0o170_222 == 0o100_000);
            }
            2 => {
                // Exporters divide by these.
                let answer = self.kernel.call(STATFS, node, &[]).unwrap();
                let [blocks, free, available, nodes, free_nodes] =
                    [0, 8, 16, 24, 32].map(|at| u64_at(&answer, at));
                assert!(blocks > 0 && free <= blocks && available <= free);
                assert!(nodes > 0 && free_nodes <= nodes);
                assert!(u32_at(&answer, 40) > 0 && u32_at(&answer, 44) > 0);
            }
            3 => {
                let folder = self.kernel.walk("proc").unwrap().ino;
                let opcode = if self.dice.roll(2) == 0 { READDIR } else { READDIRPLUS };
                let size = 180 + self.dice.roll(4000) as u32;
                let names = self.kernel.list(folder, opcode, size);
                assert!(names.iter().any(|(name, ..)| name == "meminfo"));
            }
            4 => {
                self.kernel.user = 0;
                let readable = 4u64.to_ne_bytes();
                assert!(self.kernel.call(ACCESS, node, &readable).unwrap().is_empty());
            }
            _ => assert_eq!(self.kernel.walk("proc/cmdline"), Err(ENOENT)),
        }
    }
}

#[test]
fn reads_are_what_the_model_says() {
    let default = if cfg!(debug_assertions) { 60_000 } else { 1_000_000 };
    let reads = std::env::var("AMBIT_MODEL_READS").map_or(default, |reads| reads.parse().unwrap());
    let clock = Arc::new(Moving(AtomicU64::new(0)));
    let (mut kernel, overlay) = Kernel::start(clock.clone(), 1);
    let nodes = FILES.iter().map(|file| kernel.walk(file.path).unwrap().ino).collect();
    let mut model =
        Model { kernel, clock, nodes, open: Vec::new(), dice: Dice(42), rendered: Text::new() };
    let (mut opened, mut most) = (0u64, 0);
    for _ in 0..reads {
        match model.dice.roll(100) {
            0..5 => {
                model.open();
                opened += 1;
            }
            5..9 if !model.open.is_empty() => model.close(),
            9..11 => model.look_around(),
            _ => {}
        }
        // Now and then all of them are closed, so that handles are used again.
        if model.open.len() > 2000 {
            while model.open.len() > 3 {
                model.close();
            }
        }
        if model.open.is_empty() {
            model.open();
            opened += 1;
        }
        most = most.max(model.open.len());
        model.read();
    }
    let counts = overlay.counters();
    assert_eq!((counts.panics, counts.refused, counts.unkept, counts.adopted), (0, 0, 0, 0));
    assert_eq!((counts.opens, counts.reads), (opened, reads));
    println!("{reads} reads of {opened} open files, up to {most} at a time: all equal");
}
