//! Handles OPEN, READ and RELEASE: identifies the caller, gets its numbers, renders the text.
//!
//! It knows nothing of FUSE messages (`filesystem.rs` does), and is the only file in which an error
//! of accounting becomes an errno. Start reading at [`Service::open`].

use std::cell::RefCell;
use std::sync::Arc;

use ambit_kernel::recorder::Recorder;
use ambit_sysinfo::view::Origin;
use ambit_sysinfo::{Error, Numbers, StatSet, View, Views};
use fuser::Errno;

use crate::counters::Counters;
use crate::families::{Member, Shape};
use crate::handles::{Handles, Payer, was_read, window};
use crate::overlay::{OverlayFile, PAGE, WORLD_READABLE};
use crate::text::Text;
use crate::thread_pool::{self, ThreadPool};
use crate::tree::{NodeKind, Tree};

/// The renderer of a text.
#[derive(Clone, Copy)]
enum Source {
    File(&'static OverlayFile),
    Member(Member),
}

/// State that all requests use.
pub(crate) struct Service {
    pub(crate) tree: Tree,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pool: Arc<ThreadPool>,
    /// Paths of files that every reader sees as on the machine.
    pub(crate) passed: &'static [&'static str],
    pub(crate) views: Arc<dyn Views>,
    handles: Handles,
}

thread_local! {
    /// Buffer for texts that are not kept.
    static UNKEPT: RefCell<Text> = const { RefCell::new(Text::new()) };
}

impl Service {
    pub(crate) fn new(recorder: Option<Arc<dyn Recorder>>, views: Arc<dyn Views>) -> Self {
        Self {
            tree: Tree::default(),
            counters: Arc::default(),
            pool: Arc::new(ThreadPool::with_recorder(recorder)),
            passed: &[],
            views,
            handles: Handles::new(),
        }
    }

    /// Returns the view of a thread's container, of which these groups are current.
    pub(crate) fn view(&self, thread: u32, wanted: StatSet) -> Result<Arc<View>, Errno> {
        self.numbers(thread, wanted).map(|numbers| numbers.view)
    }

    /// Returns a view of which these groups are current, and the account that pays for text kept of it.
    fn numbers(&self, thread: u32, wanted: StatSet) -> Result<Numbers, Errno> {
        let numbers = match thread_pool::must_not_wait() {
            true => self.views.last_view(thread).map(|view| Numbers { view, account: None }),
            false => self.views.numbers(thread, wanted),
        };
        numbers.map_err(|error| errno(&error))
    }

    fn source(&self, node: u64) -> Result<Source, Errno> {
        match self.tree.node(node).map(|node| &node.kind) {
            Some(NodeKind::File(file)) => Ok(Source::File(file)),
            Some(NodeKind::Directory(_)) => Err(Errno::EISDIR),
            None => Member::of_id(node).map(Source::Member).ok_or(Errno::ENOENT),
        }
    }

    /// Returns the size that a thread is shown of a file that can be longer than a page on this
    /// machine; `None` for every other node, whose attributes are the same for every caller.
    pub(crate) fn own_size(&self, node: u64, thread: u32) -> Option<u64> {
        let Ok(Source::File(file)) = self.source(node) else { return None };
        // Whether a file can be long depends on the machine only, so most callers are not
        // identified.
        if (file.longest)(&*self.views.host()?) <= PAGE {
            return None;
        }
        UNKEPT.with_borrow_mut(|text| {
            text.clear();
            let _ = self.render_uncounted(Source::File(file), thread, text).ok()?;
            Some(text.as_bytes().len() as u64)
        })
    }

    /// True if a user may open or read the node.
    pub(crate) fn allows(&self, node: u64, user: u32) -> bool {
        match self.source(node) {
            Ok(Source::File(file)) => user == 0 || file.mode == WORLD_READABLE,
            _ => true,
        }
    }

    /// Opens a file for a thread and renders it with the current numbers. Returns the handle.
    pub(crate) fn open(&self, node: u64, thread: u32) -> Result<u64, Errno> {
        let source = self.source(node)?;
        let handle = self.handles.open(thread, node, |text| self.render(source, thread, text))?;
        Counters::add(&self.counters.opens);
        Ok(handle)
    }

    /// Answers a read of an open file. An unknown handle is one of a predecessor: the reader is
    /// identified again.
    pub(crate) fn read(
        &self,
        node: u64,
        handle: u64,
        thread: u32,
        (offset, size): (u64, u32),
        answer: impl FnOnce(&[u8]),
    ) -> Result<(), Errno> {
        let source = self.source(node)?;
        Counters::add(&self.counters.reads);
        let render = |text: &mut Text| self.render(source, thread, text);
        let adopt = || {
            let adopted = self.handles.adopt(handle, node)?;
            Counters::add(&self.counters.adopted);
            Some(adopted)
        };
        let known = self.handles.find(handle, node);
        if known.is_none() && was_read(handle, offset) {
            answer(&[]);
            return Ok(());
        }
        if let Some(open) = known.or_else(adopt) {
            return self.handles.read(&open, offset, size, render, answer);
        }
        Counters::add(&self.counters.unkept);
        UNKEPT.with_borrow_mut(|text| {
            text.clear();
            let _ = render(text)?;
            answer(window(text.as_bytes(), offset, size));
            Ok(())
        })
    }

    /// Closes an open file.
    pub(crate) fn release(&self, handle: u64) {
        self.handles.release(handle);
    }

    /// Renders a text for a reader; returns the account that pays for keeping it.
    fn render(&self, source: Source, thread: u32, text: &mut Text) -> Result<Payer, Errno> {
        let rendered = self.render_uncounted(source, thread, text);
        match rendered {
            Ok(_) => Counters::add(&self.counters.renders),
            Err(_) => Counters::add(&self.counters.refused),
        }
        rendered
    }

    fn render_uncounted(
        &self,
        source: Source,
        thread: u32,
        text: &mut Text,
    ) -> Result<Payer, Errno> {
        let needs = match source {
            Source::File(file) => file.needs,
            Source::Member(member) => member.family.needs(),
        };
        let numbers = self.numbers(thread, needs);
        numbers.and_then(|Numbers { view, account }| match source {
            Source::File(OverlayFile { render_32_bit: Some(render), .. })
                if view.host.cpuinfo_32.is_some() && self.views.has_32_bit_personality(thread) =>
            {
                render(&view, text);
                Ok(account)
            }
            _ => write(source, &view, self.passed, text).map(|()| account),
        })
    }
}

/// Writes a text. A reader on the host, and any reader of a `passed` file, gets the kernel's text.
fn write(source: Source, view: &View, passed: &[&str], text: &mut Text) -> Result<(), Errno> {
    let is_passed = match source {
        Source::File(file) => passed.contains(&file.path),
        Source::Member(_) => false,
    };
    let raw = view.host.raw.as_ref().filter(|_| is_passed || view.origin == Origin::Host);
    match (source, raw) {
        (Source::File(file), Some(raw)) if file.mode == WORLD_READABLE => {
            raw.read(file.path, text.buffer()).map_err(Errno::from)
        }
        (Source::File(file), _) => {
            (file.render)(view, text);
            Ok(())
        }
        (Source::Member(member), raw) => match (member.shape(view), raw) {
            (Some(Shape::File), Some(raw)) => {
                raw.read(&member.path(view), text.buffer()).map_err(Errno::from)
            }
            (Some(Shape::File), None) => {
                member.render(view, text);
                Ok(())
            }
            (Some(Shape::Directory), _) => Err(Errno::EISDIR),
            (Some(Shape::Link), _) => Err(Errno::ELOOP),
            (None, _) => Err(Errno::ENOENT),
        },
    }
}

/// Returns the errno for a reader without numbers.
pub(crate) fn errno(error: &Error) -> Errno {
    match error {
        Error::Gone(_) => Errno::ESRCH,
        Error::UsedUp(_) => Errno::EMFILE,
        Error::Read { .. } | Error::Parse { .. } => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use ambit_sysinfo::host::{CpuInfo, RawFiles};
    use ambit_sysinfo::{Host, View};

    use super::*;
    use crate::fixture;
    use crate::tree::node_id;

    struct Fixed(View);

    impl Views for Fixed {
        fn view(&self, tid: u32) -> Result<Arc<View>, Error> {
            if tid == 0 { Err(Error::Gone(tid)) } else { Ok(Arc::new(self.0.clone())) }
        }
    }

    struct Kernel;

    impl RawFiles for Kernel {
        fn read(&self, path: &str, text: &mut Vec<u8>) -> io::Result<()> {
            text.extend_from_slice(b"the kernel's ");
            text.extend_from_slice(path.as_bytes());
            Ok(())
        }
    }

    fn text_of(service: &Service, path: &str) -> Result<String, Errno> {
        text_of_thread(service, path, 1)
    }

    fn text_of_thread(service: &Service, path: &str, thread: u32) -> Result<String, Errno> {
        let handle = service.open(node_id(path), thread)?;
        let mut seen = Vec::new();
        let all = (0, u32::MAX);
        service.read(node_id(path), handle, thread, all, |part| seen.extend_from_slice(part))?;
        service.release(handle);
        Ok(String::from_utf8(seen).unwrap())
    }

    #[test]
    fn the_host_is_shown_the_kernels_own_text() {
        let mut view = fixture::view();
        view.origin = Origin::Host;
        view.host = Arc::new(Host { raw: Some(Arc::new(Kernel)), ..Host::default() });
        let service = Service::new(None, Arc::new(Fixed(view)));
        assert_eq!(text_of(&service, "proc/stat").as_deref(), Ok("the kernel's proc/stat"));
        let slabs = text_of(&service, "proc/slabinfo").unwrap();
        assert!(
            slabs.starts_with("slabinfo - version: 2.1\n"),
            "for the host's root alone: {slabs}"
        );
    }

    #[test]
    fn a_passed_file_is_the_kernels_for_every_reader() {
        let mut view = fixture::view();
        view.host = Arc::new(Host { raw: Some(Arc::new(Kernel)), ..Host::default() });
        let mut service = Service::new(None, Arc::new(Fixed(view)));
        service.passed = &["proc/loadavg"];
        assert_eq!(text_of(&service, "proc/loadavg").as_deref(), Ok("the kernel's proc/loadavg"));
        assert!(text_of(&service, "proc/uptime").unwrap().ends_with('\n'));
    }

    #[test]
    fn a_32_bit_program_is_shown_the_kernels_text_for_it() {
        struct Two(View);
        impl Views for Two {
            fn view(&self, _: u32) -> Result<Arc<View>, Error> {
                Ok(Arc::new(self.0.clone()))
            }
            fn has_32_bit_personality(&self, tid: u32) -> bool {
                tid == 32
            }
        }
        let mut view = fixture::view();
        let of = |text: &str| CpuInfo::parse(text.as_bytes().into());
        let cpuinfo_32 = of("processor\t: 0\nFeatures\t: thumb\n\nprocessor\t: 9\n\n");
        let cpuinfo = of("processor\t: 0\nFeatures\t: asimd\n\nprocessor\t: 9\n\n");
        view.host = Arc::new(Host { cpuinfo, cpuinfo_32: Some(cpuinfo_32), ..Host::default() });
        view.cpu.online = [0].into_iter().collect();
        let service = Service::new(None, Arc::new(Two(view)));
        let text_of = |thread| text_of_thread(&service, "proc/cpuinfo", thread).unwrap();
        assert_eq!(text_of(64), "processor\t: 0\nFeatures\t: asimd\n\n");
        assert_eq!(text_of(32), "processor\t: 0\nFeatures\t: thumb\n\n");
    }

    #[test]
    fn a_reader_that_is_gone_is_told_so() {
        let service = Service::new(None, Arc::new(Fixed(fixture::view())));
        assert_eq!(service.open(node_id("proc/stat"), 0), Err(Errno::ESRCH));
        assert_eq!(service.open(node_id("proc"), 1), Err(Errno::EISDIR));
        assert_eq!(service.open(42, 1), Err(Errno::ENOENT));
        assert_eq!(service.counters.counts().refused, 1);
    }
}
