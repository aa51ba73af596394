use proptest::prelude::*;

use super::*;
use crate::policy::WeightFormula;

const SECOND: u64 = 1_000_000_000;

fn sum(times: &Times) -> u64 {
    times.user + times.nice + times.system + times.idle + times.steal
}

#[test]
fn half_a_quota_is_half_a_processor() {
    let one = CpuSet::first(1);
    let mut clock = CpuClock::starting_at(0);
    clock.advance(0, &Busy::default(), &one);
    clock.advance(10 * SECOND, &Busy { user: 5 * SECOND, ..Busy::default() }, &one);
    let cpu = clock.view(one);
    assert_eq!((cpu.total.user, cpu.total.idle), (500, 500));
    assert_eq!(cpu.times[0].1, cpu.total);
}

#[test]
fn usage_on_hidden_processors_is_shown_on_visible_ones() {
    let visible = CpuSet::first(1);
    let mut clock = CpuClock::starting_at(0);
    clock.advance(0, &Busy::default(), &visible);
    let busy = Busy { user: SECOND, per_cpu: vec![(0, 0), (SECOND, 0)], ..Busy::default() };
    clock.advance(2 * SECOND, &busy, &visible);
    assert_eq!(clock.view(visible).total.user, 100);
}

#[test]
fn what_a_busy_processor_cannot_show_is_shown_on_the_others() {
    let visible = CpuSet::first(2);
    let mut clock = CpuClock::starting_at(0);
    clock.advance(0, &Busy::default(), &visible);
    let per_cpu = vec![(0, 0), (10 * SECOND, 0)];
    let busy = Busy { user: 18 * SECOND, per_cpu, ..Busy::default() };
    clock.advance(10 * SECOND, &busy, &visible);
    let cpu = clock.view(visible);
    assert_eq!([0, 1].map(|cpu_at| cpu.times[cpu_at].1.user), [800, 1000]);
}

#[test]
fn at_most_two_seconds_are_carried() {
    // A real-time task uses two processors for an hour; one is shown.
    let one = CpuSet::first(1);
    let mut clock = CpuClock::starting_at(0);
    let mut busy = Busy::default();
    for second in 1..=3600 {
        busy.user = 2 * second * SECOND;
        clock.advance(second * SECOND, &busy, &one);
    }
    assert_eq!(clock.idle(), 0);
    clock.advance(3610 * SECOND, &busy, &one);
    assert_eq!(clock.idle(), 8 * SECOND);
    clock.advance(3620 * SECOND, &busy, &one);
    assert_eq!(clock.idle(), 18 * SECOND);
}

#[test]
fn a_new_division_of_counted_time_adds_nothing() {
    let one = CpuSet::first(1);
    let mut clock = CpuClock::starting_at(0);
    let per_cpu =
        |user, system| Busy { user, system, per_cpu: vec![(user, system)], ..Busy::default() };
    clock.advance(20 * SECOND, &per_cpu(10 * SECOND, 0), &one);
    clock.advance(21 * SECOND, &per_cpu(10 * SECOND, 0), &one);
    clock.advance(22 * SECOND, &per_cpu(8 * SECOND, 2 * SECOND), &one);
    let total = clock.view(one).total;
    assert_eq!((total.user, total.system, total.idle), (1000, 0, 1200));
}

#[test]
fn a_cgroup_that_was_used_before_adds_no_more_than_fits() {
    let one = CpuSet::first(1);
    let mut clock = CpuClock::starting_at(0);
    let busy = |seconds| Busy { user: seconds * SECOND, ..Busy::default() };
    clock.advance(10 * SECOND, &busy(1), &one);
    clock.change_cgroup();
    clock.advance(11 * SECOND, &busy(500), &one);
    clock.advance(20 * SECOND, &busy(501), &one);
    assert_eq!(clock.view(one).total.user, 300);
}

#[test]
fn the_quota_caps_the_cpuset_and_is_never_empty() {
    let host = Host { online: CpuSet::first(8), ..Host::default() };
    let mut sample = Sample { quota: Quota::new(150, 100), ..Sample::default() };
    assert_eq!(visible(&sample, &host, &Options::default()).len(), 2);
    sample.cpus = CpuSet::parse(b"4-7");
    let two = visible(&sample, &host, &Options::default());
    assert_eq!((two.len(), two.intersection(&CpuSet::parse(b"4-7").unwrap())), (2, two));
    let cpuset = Options { cpu_policy: CpuPolicy::Cpuset, ..Options::default() };
    assert_eq!(visible(&sample, &host, &cpuset).to_string(), "4-7");
    sample.cpus = CpuSet::parse(b"64");
    let cpuset = Options { cpu_policy: CpuPolicy::Cpuset, ..Options::default() };
    assert_eq!(visible(&sample, &host, &cpuset), host.online);
}

#[test]
fn weights_are_processors_and_a_quota_still_caps_them() {
    let host = Host { online: CpuSet::first(64), ..Host::default() };
    let count = |weight, weight_base, weight_formula| {
        let sample = Sample { weight: Some(weight), ..Sample::default() };
        let cpu_policy = CpuPolicy::Weight;
        let options = Options { cpu_policy, weight_base, weight_formula, ..Options::default() };
        visible(&sample, &host, &options).len()
    };
    for shares in [2, 1000, 1024, 1025, 1536, 2048, 3072, 10_000, 64 * 1024, 262_144] {
        let processors = usize::try_from(shares).unwrap().div_ceil(1024).min(64);
        let formula = WeightFormula::default();
        assert_eq!(count(Weight::Shares(shares), 1024, formula), processors, "{shares}");
        for formula in [WeightFormula::Quadratic, WeightFormula::Linear, WeightFormula::Systemd] {
            let weight = Weight::Unified(formula.weight(shares));
            let found = count(weight, 1024, formula);
            // A weight has less than a percent of precision: 1025 shares weigh as 1024 do.
            let rounded = usize::from(shares == 1025);
            assert!((processors - rounded..=processors).contains(&found), "{formula:?}");
        }
    }
    // What runc 1.3.2 and runc 1.3.1 make of them.
    let [new, old] = [WeightFormula::Quadratic, WeightFormula::Linear];
    assert_eq!([new.weight(1024), new.weight(2000), old.weight(2000)], [100, 170, 77]);
    assert_eq!(count(Weight::Unified(50), 16, WeightFormula::Systemd), 32, "half of 64");
    assert_eq!(count(Weight::Unified(0), 1024, WeightFormula::Linear), 1, "cpu.idle");
    let sample = Sample {
        quota: Quota::new(150, 100),
        weight: Some(Weight::Unified(10_000)),
        ..Sample::default()
    };
    let options = Options { cpu_policy: CpuPolicy::Weight, ..Options::default() };
    assert_eq!(visible(&sample, &host, &options).len(), 2);
    assert_eq!(visible(&Sample::default(), &host, &options).len(), 64, "no cpu controller");
}

#[test]
fn throttled_time_is_stolen_however_often_it_is_read() {
    // Half of each period of 100 ms is used, and then the quota is spent: the kernel counts
    // that when the next period begins.
    for step in [1, 10, 70, 100, 1000] {
        let one = CpuSet::first(1);
        let mut clock = CpuClock::starting_at(0);
        clock.keep_back(SECOND / 10);
        let busy = |ms: u64| Busy {
            user: (ms / 100 * 50 + (ms % 100).min(50)) * SECOND / 1000,
            throttled: ms / 100 * 50 * SECOND / 1000,
            ..Busy::default()
        };
        for ms in (0..=10_000).step_by(step) {
            clock.advance(ms * SECOND / 1000, &busy(ms), &one);
        }
        let total = clock.view(one).total;
        assert!((495..=500).contains(&total.steal) && total.idle <= 5, "{step} ms: {total:?}");
    }
}

#[test]
fn more_is_not_stolen_than_is_unused() {
    // Sixteen threads on eight processors with a quota of 2.
    let two = CpuSet::first(2);
    let mut clock = CpuClock::starting_at(0);
    let busy = |at| Busy { user: 2 * at, throttled: 6 * at, ..Busy::default() };
    clock.advance(10 * SECOND, &busy(9 * SECOND), &two);
    let total = clock.view(two.clone()).total;
    assert_eq!((total.user, total.steal, total.idle), (1800, 200, 0));
    // Idle again, it looks idle.
    clock.advance(20 * SECOND, &busy(9 * SECOND), &two);
    let total = clock.view(two).total;
    assert_eq!((total.steal, total.idle), (200, 2000));
}

#[test]
fn what_one_processor_cannot_show_as_stolen_is_stolen_from_another() {
    let mut clock = CpuClock::starting_at(0);
    clock.keep_back(SECOND);
    // One second of the first processor is kept back when the second one becomes visible.
    clock.advance(10 * SECOND, &Busy::default(), &CpuSet::first(1));
    let two = CpuSet::first(2);
    let busy = Busy { throttled: 3 * SECOND, ..Busy::default() };
    clock.advance(11 * SECOND, &busy, &two);
    let cpu = clock.view(two);
    assert_eq!([0, 1].map(|cpu_at| cpu.times[cpu_at].1.steal), [200, 100]);
}

#[test]
fn a_successor_continues_stolen_time() {
    let one = CpuSet::first(1);
    let mut clock = CpuClock::starting_at(0);
    let busy = Busy { user: SECOND, throttled: 4 * SECOND, ..Busy::default() };
    clock.advance(10 * SECOND, &busy, &one);
    let mut after = CpuClock::restored(&mut clock.words(), 10 * SECOND);
    assert_eq!(after.view(one.clone()), clock.view(one.clone()));
    after.advance(11 * SECOND, &busy, &one);
    assert_eq!(after.view(one.clone()).total.steal, 400);
    after.change_cgroup();
    after.advance(12 * SECOND, &Busy::default(), &one);
    let last = CpuClock::restored(&mut after.words(), 12 * SECOND);
    assert_eq!(last.view(one).total.steal, 400);
}

proptest! {
    /// For any usage and visible set: nothing decreases, no processor is more than fully busy,
    /// and the lines of processors that stay visible add up to the aggregate.
    #[test]
    fn counters_never_decrease(steps in proptest::collection::vec(
        (0u64..3 * SECOND, 0u64..4 * SECOND, 0u64..4 * SECOND, 0u64..9 * SECOND, 1u32..32), 1..40),
        kept_back in 0..2 * SECOND) {
        let mut clock = CpuClock::starting_at(0);
        clock.keep_back(kept_back);
        let (mut now, mut busy) = (0, Busy::default());
        let mut before: Option<Cpu> = None;
        for (wall, user, system, throttled, mask) in steps {
            now += wall;
            busy.throttled += throttled;
            busy.user += user;
            busy.system += system;
            let visible: CpuSet = (0..5).filter(|cpu| mask >> cpu & 1 == 1).collect();
            clock.advance(now, &busy, &visible);
            let cpu = clock.view(visible);
            if let Some(before) = &before {
                prop_assert!(cpu.total.user >= before.total.user);
                prop_assert!(cpu.total.system >= before.total.system);
                prop_assert!(cpu.total.idle >= before.total.idle);
                prop_assert!(cpu.total.steal >= before.total.steal);
                for (number, times) in &before.times {
                    if let Some((_, later)) = cpu.times.iter().find(|(other, _)| other == number) {
                        prop_assert!(later.user >= times.user && later.idle >= times.idle);
                    }
                }
            }
            for (_, times) in &cpu.times {
                prop_assert!(sum(times) <= now / TICK + 1);
            }
            before = Some(cpu);
        }
    }

    /// Across restarts, after which time may be divided in another way: shown plus carried time
    /// is the used time, as far as the visible processors can show it.
    #[test]
    fn all_time_is_shown_once(steps in proptest::collection::vec(
        (1u64..3 * SECOND, 0u64..3 * SECOND, 0u64..=100, 1u32..5, any::<bool>()), 1..40)) {
        let mut clock = CpuClock::starting_at(0);
        let (mut now, mut used, mut fits) = (0, 0, true);
        clock.advance(now, &Busy::default(), &CpuSet::first(1));
        for (wall, more, percent, cpus, restart) in steps {
            if restart {
                let words: Vec<_> = clock.words().collect();
                clock = CpuClock::restored(&mut words.into_iter(), now);
            }
            now += wall;
            used += more;
            let nice = used / 300 * percent;
            let user = 2 * nice;
            let busy = Busy { user, nice, system: used - user - nice, ..Busy::default() };
            let before = clock.idle();
            clock.advance(now, &busy, &CpuSet::first(cpus));
            let spent = clock.spent.iter().map(|one| one.user + one.nice + one.system);
            let shown: u64 = spent.sum();
            let carried = clock.carried.user + clock.carried.nice + clock.carried.system;
            fits &= carried < CARRY_BOUND * u64::from(cpus);
            prop_assert!(shown + carried <= used);
            prop_assert!(!fits || shown + carried == used, "{shown} + {carried} of {used}");
            prop_assert!(carried <= CARRY_BOUND * u64::from(cpus));
            prop_assert!(carried == 0 || clock.idle() == before, "carried by one that is idle");
        }
        // Idle until nothing is carried any more.
        let busy = clock.used().clone();
        clock.advance(now + 10 * SECOND, &busy, &CpuSet::first(1));
        let before = clock.idle();
        clock.advance(now + 11 * SECOND, &busy, &CpuSet::first(1));
        prop_assert_eq!(clock.idle(), before + SECOND);
    }

    #[test]
    fn lines_add_up_to_the_aggregate(used in proptest::collection::vec(0u64..9 * SECOND, 1..20)) {
        let visible = CpuSet::first(3);
        let mut clock = CpuClock::starting_at(0);
        let mut busy = Busy::default();
        for (step, used) in used.into_iter().enumerate() {
            busy.user += used;
            clock.advance((step as u64 + 1) * SECOND, &busy, &visible);
        }
        let cpu = clock.view(visible);
        let lines: u64 = cpu.times.iter().map(|(_, times)| sum(times)).sum();
        prop_assert_eq!(lines, sum(&cpu.total));
    }
}
