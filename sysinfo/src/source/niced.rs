//! Processor time of cgroup v2, with niced time told apart. Start reading at [`Niced::cpu_stat`].

use ambit_kernel::text::scan;

use crate::sample::Busy;

/// Divides user time. `user_usec` is exact and includes niced time; `nice_usec` jumps at timer
/// ticks, so that the difference of the two goes back and forth. The part of a jump that is ahead
/// of the exact time is taken from the time that follows: nothing decreases, and nothing is counted
/// twice.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Niced {
    /// Values at the last reading.
    all: u64,
    ticks: u64,
    /// Niced time that is ahead of the exact time.
    ahead: u64,
    nice: u64,
    user: u64,
}

impl Niced {
    /// Continues from time that is already divided. The ticks of the earlier division are unknown:
    /// u64::MAX makes those of the first reading count as old.
    pub(super) fn resumed(used: &Busy) -> Self {
        let (user, nice) = (used.user, used.nice);
        Self { all: user.saturating_add(nice), ticks: u64::MAX, ahead: 0, nice, user }
    }

    /// Adds the processor times of a `cpu.stat`.
    pub(super) fn cpu_stat(&mut self, text: &[u8], busy: &mut Busy) {
        let (mut all, mut ticks) = (0, 0);
        for (key, microseconds) in scan::pairs(text) {
            let time = microseconds.saturating_mul(1000);
            match key {
                b"user_usec" => all = time,
                b"system_usec" => busy.system = time,
                b"nice_usec" => ticks = time,
                _ => {}
            }
        }
        self.advance(all, ticks);
        (busy.user, busy.nice) = (self.user, self.nice);
    }

    fn advance(&mut self, all: u64, ticks: u64) {
        let spent = all.saturating_sub(self.all);
        self.ahead = self.ahead.saturating_add(ticks.saturating_sub(self.ticks));
        let niced = self.ahead.min(spent);
        self.ahead -= niced;
        self.nice = self.nice.saturating_add(niced);
        self.user = self.user.saturating_add(spent - niced);
        (self.all, self.ticks) = (self.all.max(all), ticks);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn niced_time_that_jumps_at_ticks_is_not_counted_twice() {
        let (mut niced, mut busy) = (Niced::default(), Busy::default());
        // A niced loop of 100 ms, sampled each millisecond, with a tick every four.
        for ms in 1..=100_u64 {
            let text = format!("user_usec {}\nnice_usec {}\n", ms * 1000, ms / 4 * 4000);
            niced.cpu_stat(text.as_bytes(), &mut busy);
        }
        assert_eq!(busy.user + busy.nice, 100_000_000);
        assert!(busy.user <= 4_000_000, "{busy:?}");
    }

    #[test]
    fn a_successor_continues_the_division() {
        let (mut niced, mut busy) = (Niced::default(), Busy::default());
        // The ticks are ahead of the exact time.
        niced.cpu_stat(b"user_usec 1000\nsystem_usec 0\nnice_usec 1500\n", &mut busy);
        niced.cpu_stat(b"user_usec 2000\nsystem_usec 0\nnice_usec 1500\n", &mut busy);
        let before = busy.clone();
        let mut niced = Niced::resumed(&before);
        niced.cpu_stat(b"user_usec 2000\nsystem_usec 0\nnice_usec 1500\n", &mut busy);
        assert_eq!(busy, before, "nothing was used meanwhile");
        niced.cpu_stat(b"user_usec 2500\nsystem_usec 0\nnice_usec 1900\n", &mut busy);
        assert_eq!(busy.nice, before.nice + 400_000);
        assert_eq!(busy.total(), before.total() + 500_000);
    }

    proptest! {
        #[test]
        fn user_and_niced_time_never_decrease(steps: Vec<(u64, u64)>) {
            let mut niced = Niced::default();
            for (all, ticks) in steps {
                let before = niced;
                niced.advance(all, ticks);
                prop_assert!(niced.user >= before.user && niced.nice >= before.nice);
                prop_assert_eq!(niced.user + niced.nice, niced.all);
            }
        }
    }
}
