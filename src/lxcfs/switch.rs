//! The switch that SIGUSR2 toggles: while it is off, containers see the machine's own files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ambit_sysinfo::view::Origin;
use ambit_sysinfo::{Error, Host, Numbers, Stall, StatSet, TriggerFile, View, Views};

/// [`Views`] that can be switched to the machine's own numbers.
pub struct Switch {
    views: Arc<dyn Views>,
    off: AtomicBool,
}

impl Switch {
    /// Wraps views, switched on.
    pub fn new(views: Arc<dyn Views>) -> Self {
        Self { views, off: AtomicBool::new(false) }
    }

    /// Toggles the switch. True if containers see their own numbers now.
    pub fn toggle(&self) -> bool {
        self.off.fetch_xor(true, Ordering::Relaxed)
    }

    /// Returns the container's view, or the machine's while switched off.
    fn pass(&self, view: Arc<View>) -> Arc<View> {
        if !self.off.load(Ordering::Relaxed) {
            return view;
        }
        Arc::new(View { origin: Origin::Host, ..View::clone(&view) })
    }
}

impl Views for Switch {
    fn view(&self, tid: u32) -> Result<Arc<View>, Error> {
        self.view_with(tid, StatSet::BASE)
    }

    fn view_with(&self, tid: u32, wanted: StatSet) -> Result<Arc<View>, Error> {
        self.views.view_with(tid, wanted).map(|view| self.pass(view))
    }

    fn newcomer(&self, tid: u32) -> Option<u64> {
        self.views.newcomer(tid)
    }

    fn owner(&self, tid: u32) -> Option<u64> {
        self.views.owner(tid)
    }

    fn numbers(&self, tid: u32, wanted: StatSet) -> Result<Numbers, Error> {
        let Numbers { view, account } = self.views.numbers(tid, wanted)?;
        Ok(Numbers { view: self.pass(view), account })
    }

    fn last_view(&self, tid: u32) -> Result<Arc<View>, Error> {
        self.views.last_view(tid).map(|view| self.pass(view))
    }

    fn trigger_file(&self, tid: u32, stall: Stall) -> Result<TriggerFile, Error> {
        self.views.trigger_file(tid, stall)
    }

    fn has_32_bit_personality(&self, tid: u32) -> bool {
        self.views.has_32_bit_personality(tid)
    }

    fn host(&self) -> Option<Arc<Host>> {
        self.views.host()
    }
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switch").field("off", &self.off).finish_non_exhaustive()
    }
}
