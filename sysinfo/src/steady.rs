//! A counter that never decreases although its source may start again: a container that is moved to
//! another cgroup, a device that is removed and comes back, a counter that an administrator resets.
//! Start reading at [`Steady::advance`].

/// A counter, and the sum before its source last started again.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Steady {
    base: u64,
    last: u64,
}

impl Steady {
    /// Takes the current value of the source. A smaller value than before means that the source
    /// started again.
    pub(crate) fn advance(&mut self, raw: u64) {
        if raw < self.last {
            self.base = self.base.saturating_add(self.last);
        }
        self.last = raw;
    }

    pub(crate) fn total(self) -> u64 {
        self.base.saturating_add(self.last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_source_that_starts_again_adds_to_the_total() {
        let mut counter = Steady::default();
        let totals = [5, 9, 2, 4].map(|raw| {
            counter.advance(raw);
            counter.total()
        });
        assert_eq!(totals, [5, 9, 11, 13]);
    }

    proptest! {
        #[test]
        fn never_decreases(raws: Vec<u64>) {
            let mut counter = Steady::default();
            let mut before = 0;
            for raw in raws {
                counter.advance(raw);
                prop_assert!(counter.total() >= before);
                before = counter.total();
            }
        }
    }
}
