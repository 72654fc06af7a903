//! Whole residual phases of an imagined destination in virtual time: every page arrives once, nothing is lost with the link,
//! and pre-paging spares the faults that it is there for.

#![allow(clippy::unwrap_used)]

mod patterns;
mod world;

use std::time::Duration;

use patterns::Pattern;
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest, Just, ProptestConfig};
use proptest::strategy::Strategy as Values;
use whimbrel_policy::postcopy::{Bubbling, Demand, Limits, PrePaging, Push};
use world::{Setting, World};

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn run(setting: &Setting, prepaging: impl PrePaging + 'static, limits: Limits) -> World {
    let mut world = World::new(setting.clone(), Box::new(prepaging), limits);
    world.run();
    assert!(world.all_threads_are_through(), "somebody waits for ever");
    world
}

fn single_pages() -> Limits {
    Limits {
        reply_pages_max: 1,
        ..Limits::default()
    }
}

fn setting() -> impl Values<Value = Setting> {
    let size = (64u64..2000, 1u32..6, 0u64..1500);
    let link = (1_000_000u64..1_000_000_000, 50u64..20_000);
    let pattern = prop::sample::select(Pattern::ALL.to_vec());
    let habits = (
        any::<u64>(),
        pattern,
        prop_oneof![Just(2u64), 2u64..500],
        0u64..60,
    );
    (size, link, habits).prop_map(
        |((pages, threads, accesses), (rate, round_trip), habits)| Setting {
            pages,
            threads,
            accesses,
            rate,
            seed: habits.0,
            think: us(habits.2),
            zero_percent: habits.3,
            ..Setting::new(habits.1, us(round_trip))
        },
    )
}

fn unmaps() -> impl Values<Value = Vec<(Duration, u64, u64)>> {
    let unmap = (0u64..300_000, 0u64..2000, 1u64..300);
    prop::collection::vec(unmap.prop_map(|(at, first, pages)| (us(at), first, pages)), 0..4)
}

fn cuts() -> impl Values<Value = Vec<(Duration, Duration)>> {
    // One after the other: how long after the last one, and how long without a link.
    let cut = (1u64..100_000, 1u64..3_000_000);
    prop::collection::vec(cut, 1..5).prop_map(|cuts| {
        let mut at = Duration::ZERO;
        let place = |(after, how_long)| {
            let begin = at + us(after);
            at = begin + us(how_long);
            (begin, us(how_long))
        };
        cuts.into_iter().map(place).collect()
    })
}

fn limits() -> impl Values<Value = Limits> {
    (
        prop::option::of(1_000_000u64..1_000_000_000),
        1u64..64,
        4096u64..10_000_000,
    )
        .prop_map(|(bandwidth_max, reply_pages_max, window_max)| Limits {
            bandwidth_max,
            reply_pages_max,
            window_max,
        })
}

fn pushing(which: bool, pivots: usize) -> Box<dyn PrePaging> {
    match which {
        true => Box::new(Bubbling::new(pivots)),
        false => Box::new(Push::default()),
    }
}

/// Everything is there or gone, nothing came twice, and both ends have counted the same.
fn check(world: &World) {
    let metrics = world.residual.metrics();
    assert!(
        world.seen.arrived.values().all(|&times| times == 1),
        "{:?}",
        world.seen.arrived
    );
    assert_eq!(metrics.pages, world.setting.pages);
    let faults = metrics.network_faults() + metrics.faults_settled;
    assert!(faults <= world.seen.network_faults);
    if world.setting.cuts.is_empty() {
        assert_eq!(faults, world.seen.network_faults);
        // What is gone while it is on its way is not placed.
        let arrived = world.seen.arrived.len() as u64;
        assert!(metrics.pages_placed <= arrived);
        assert!(metrics.pages_placed == arrived || !world.setting.unmaps.is_empty());
    }
    assert_eq!(metrics.bytes_pushed + metrics.bytes_replied, world.seen.bytes);
    let sent = metrics.pages_pushed + metrics.pages_replied;
    assert_eq!(sent, world.seen.arrived.len() as u64 + world.seen.lost);
    let runs = metrics.pages + metrics.pages_again;
    // A page taken, or a pivot retired; a lost link makes every pivot look again.
    let cuts = world.setting.cuts.len() as u64;
    let bound = 8 * runs + 8 * faults + 100 * (cuts + 1);
    assert!(metrics.steps <= bound, "{} steps, at most {bound}", metrics.steps);
}

fn check_done(world: &World) {
    check(world);
    let metrics = world.residual.metrics();
    assert!(world.is_done && world.missing().is_empty());
    assert_eq!(
        metrics.pages_pushed + metrics.pages_replied + metrics.pages_spared,
        metrics.pages + metrics.pages_again
    );
    // What is gone need not have arrived.
    let is_any_gone = !world.setting.unmaps.is_empty();
    let ended = metrics.ended.unwrap();
    assert!(ended >= world.seen.last_arrival || is_any_gone);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn every_page_arrives_once_or_is_gone(
        setting in setting(), unmaps in unmaps(), limits in limits(), bubbling in any::<bool>(), pivots in 1usize..8,
    ) {
        let setting = Setting { unmaps, ..setting };
        let mut world = World::new(setting, pushing(bubbling, pivots), limits);
        world.run();
        prop_assert!(world.all_threads_are_through());
        prop_assert_eq!(world.seen.lost, 0);
        check_done(&world);
    }

    #[test]
    fn a_lost_link_loses_nothing_and_only_what_was_lost_is_sent_again(
        setting in setting(), unmaps in unmaps(), cuts in cuts(), limits in limits(),
        bubbling in any::<bool>(), repeats in any::<bool>(),
    ) {
        let setting = Setting { unmaps, cuts, repeats, ..setting };
        let mut world = World::new(setting, pushing(bubbling, 4), limits);
        world.run();
        prop_assert!(world.all_threads_are_through(), "somebody waits for ever");
        check_done(&world);
        // Fewer, if some of it is gone.
        prop_assert!(world.residual.metrics().pages_again <= world.seen.lost);
    }

    #[test]
    fn demand_brings_what_is_asked_for_and_neighbours(
        setting in setting(), unmaps in unmaps(), limits in limits(),
    ) {
        let setting = Setting { unmaps, ..setting };
        let world = run(&setting, Demand, limits);
        check(&world);
        let metrics = world.residual.metrics();
        prop_assert_eq!((metrics.pages_pushed, metrics.bytes_pushed), (0, 0));
        prop_assert_eq!(world.is_done, world.missing().is_empty());
    }
}

/// What the table shows of one residual phase, in percent of the network faults of demand paging with single pages.
fn row(name: &str, world: &World, demand: u64) -> u64 {
    let seen = &world.seen;
    let percent = seen.network_faults * 100 / demand;
    println!(
        "  {name:<18} {:>6} faults {percent:>4} %   {:>5} on the way   p50 {:>8.3} p99 {:>8.3} sum {:>8.1} ms   all after {:>8.1} ms   link {:>5.1} %",
        seen.network_faults,
        world.residual.metrics().faults_in_flight,
        seen.latencies.quantile(500).as_secs_f64() * 1000.0,
        seen.latencies.quantile(990).as_secs_f64() * 1000.0,
        seen.latencies.sum().as_secs_f64() * 1000.0,
        seen.last_arrival.as_secs_f64() * 1000.0,
        world.link_use(),
    );
    percent
}

/// Prints the rows of one setting. Returns the percentage of bubbling, what its threads waited in percent of what they waited with demand, and
/// its link use.
fn rows(setting: &Setting) -> (u64, u64, f64) {
    let Setting {
        pattern,
        round_trip,
        think,
        ..
    } = setting;
    println!("{pattern:?}, round trip {round_trip:?}, a touch each {think:?}");
    let demand = run(setting, Demand, single_pages());
    let faults = demand.seen.network_faults;
    assert!(faults >= demand.seen.touched.len() as u64);
    row("demand, one page", &demand, faults);
    row("demand", &run(setting, Demand, Limits::default()), faults);
    row("push", &run(setting, Push::default(), Limits::default()), faults);
    row(
        "bubbling, 1 pivot",
        &run(setting, Bubbling::new(1), Limits::default()),
        faults,
    );
    let bubbling = run(setting, Bubbling::default(), Limits::default());
    let waited = |world: &World| world.seen.latencies.sum().as_micros() as u64;
    let waited = waited(&bubbling) * 100 / waited(&demand);
    (row("bubbling", &bubbling, faults), waited, bubbling.link_use())
}

/// 64 MiB over 1 Gbit/s, four threads that each touch 10 000 pages a second.
#[test]
fn bubbling_spares_most_network_faults() {
    for round_trip in [us(200), ms(5)] {
        for pattern in Pattern::ALL {
            let setting = Setting {
                think: us(100),
                ..Setting::new(pattern, round_trip)
            };
            let (percent, waited, _) = rows(&setting);
            let percent_max = if pattern == Pattern::Uniform { 50 } else { 20 };
            assert!(percent <= percent_max, "{pattern:?}, {round_trip:?}: {percent} %");
            assert!(
                waited <= 40,
                "{pattern:?}, {round_trip:?}: they wait for {waited} % of the time"
            );
        }
    }
}

/// The same with threads that do nothing but touch pages. Where round trips are short, they ask for as much as the link
/// carries, so that nothing is left for the push: what then spares faults is the neighbours in the replies.
#[test]
fn the_link_is_full_when_threads_touch_pages_as_fast_as_they_can() {
    for round_trip in [us(200), ms(5)] {
        for pattern in Pattern::ALL {
            let (percent, _, link_use) = rows(&Setting::new(pattern, round_trip));
            assert!(percent <= 50, "{pattern:?}, {round_trip:?}: {percent} %");
            assert!(link_use >= 80.0, "{pattern:?}, {round_trip:?}: {link_use} %");
        }
    }
}

#[test]
fn where_there_is_locality_bubbling_gets_work_done_earlier_than_address_order() {
    for round_trip in [us(200), ms(5)] {
        // Half of the time in which everything arrives.
        let touches = |prepaging: Box<dyn PrePaging>| {
            let setting = Setting::new(Pattern::HotCold, round_trip);
            let mut world = World::new(setting, prepaging, Limits::default());
            world.run_until(ms(270));
            world.touches()
        };
        let (bubbling, push) = (
            touches(Box::<Bubbling>::default()),
            touches(Box::<Push>::default()),
        );
        println!("{round_trip:?}: {bubbling} touches with bubbling, {push} with push");
        assert!(
            bubbling * 10 >= push * 14,
            "{round_trip:?}: {bubbling} touches, {push} with push"
        );
    }
}

#[test]
fn replies_wait_for_a_round_trip_or_half_a_millisecond_at_most() {
    for round_trip in [us(200), ms(5)] {
        // One thread, so that replies do not wait for each other.
        let setting = Setting {
            threads: 1,
            think: us(50),
            ..Setting::new(Pattern::Uniform, round_trip)
        };
        let world = run(&setting, Bubbling::default(), Limits::default());
        let queue = world.seen.queue_max;
        let wait_max = round_trip.max(us(500));
        assert!(queue <= wait_max + us(100), "{round_trip:?}: {queue:?}");
        let p99 = world.seen.latencies.quantile(990);
        assert!(p99 <= round_trip + wait_max + us(200), "{round_trip:?}: {p99:?}");
    }
}

#[test]
fn a_limit_on_the_push_holds_and_slows_no_fault() {
    let setting = Setting {
        threads: 2,
        pages: 4096,
        accesses: 300,
        think: ms(1),
        ..Setting::new(Pattern::Uniform, ms(1))
    };
    let max = 10_000_000;
    let limits = Limits {
        bandwidth_max: Some(max),
        ..Limits::default()
    };
    let world = run(&setting, Bubbling::default(), limits);
    check_done(&world);
    let metrics = world.residual.metrics();
    let seconds = world.seen.last_arrival.as_secs_f64();
    // What a caller who comes late may catch up with is 10 ms.
    let allowed = max as f64 * (seconds + 0.01) + 65_536.0;
    let pushed = metrics.bytes_pushed as f64;
    assert!(
        pushed <= allowed && pushed >= 0.95 * max as f64 * seconds,
        "{pushed} bytes in {seconds} s"
    );
    assert!(metrics.bytes_replied > 100_000, "{metrics:?}");
    let slowest = world.seen.latencies.max();
    assert!(slowest <= us(1500), "{slowest:?}");
}
