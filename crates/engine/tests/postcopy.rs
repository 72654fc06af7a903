//! Migrations that leave pages behind, with real sockets, journals and threads, and an imagined workload that touches what is missing.
#![allow(clippy::unwrap_used)]

mod imagined;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imagined::{
    destination_died, kill_me, look, receive, send, At, Cable, Copy, ImaginedRecover, ImaginedWorkload,
    Random, Stage, Where,
};
use whimbrel_engine::{
    recover_stale, Error, GuardianOptions, Mode, Phase, Prepaging, Role, Settled, SourceOptions, State,
    Summary, Whereabouts,
};
use whimbrel_policy::{Hints, Hybrid, Limits, Migration, Passes, PostCopy, Strategy};

fn options(
    stage: &Stage,
    to: SocketAddr,
    strategy: Box<dyn Strategy>,
    prepaging: Prepaging,
) -> SourceOptions {
    let mut options = stage.source_options(Mode::Live, to);
    options.migration = Migration::new(strategy, Limits::default(), Hints::default());
    options.residual.prepaging = prepaging;
    options
}

/// A push that takes about a second for the imagined workload's pages.
fn slow(stage: &Stage, to: SocketAddr) -> SourceOptions {
    let mut options = options(stage, to, Box::new(PostCopy), Prepaging::default());
    options.residual.bandwidth_max = Some(4 << 20);
    options
}

fn moved(stage: &Stage, seed: u64, options: SourceOptions) -> Summary {
    let mut workload = ImaginedWorkload::new(&stage.world, seed);
    let destination = receive(stage, (), None);
    let summary = send(stage, &mut workload, options, &mut ()).unwrap();
    destination.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
    summary
}

#[test]
fn pages_follow_in_every_order_and_are_what_they_were() {
    let orders = ["push", "bubbling", "demand"].map(|name| name.parse::<Prepaging>().unwrap());
    for (seed, prepaging) in (0..).zip(orders) {
        for passes in [None, Some(1), Some(3)] {
            let stage = Stage::new();
            let strategy: Box<dyn Strategy> = match passes {
                None => Box::new(PostCopy),
                Some(passes) => Box::new(Hybrid::new(Passes::Exactly(passes))),
            };
            let mut options = options(&stage, stage.address(), strategy, prepaging);
            // What nobody touches would otherwise never come.
            options.residual.residual_max = Some(Duration::from_secs(1));
            let summary = moved(&stage, seed, options);
            let residual = summary.residual.unwrap();
            assert!(residual.pages > 0, "{residual:?}");
            let sent = residual.pages_pushed + residual.pages_replied + residual.pages_spared;
            assert_eq!(
                (sent, residual.pages_again),
                (residual.pages, 0),
                "each once: {residual:?}"
            );
            assert_eq!(residual.reconnects, 0);
        }
    }
}

#[test]
fn a_strategy_without_a_residue_has_none() {
    let stage = Stage::new();
    let mut options = stage.source_options(Mode::Live, stage.address());
    options.residual.prepaging = Prepaging::Demand;
    assert_eq!(moved(&stage, 1, options).residual, None);
}

#[test]
fn by_demand_only_the_rest_comes_when_time_is_up_and_meanwhile_it_waits() {
    let stage = Stage::new();
    let mut options = options(&stage, stage.address(), Box::new(PostCopy), Prepaging::Demand);
    options.residual.residual_max = Some(Duration::from_millis(50));
    let summary = moved(&stage, 3, options);
    let world = look(&stage.world);
    assert_eq!((world.pauses, world.paused), (1, false));
    assert!(summary.residual.unwrap().pages_pushed > 0);
}

#[test]
fn a_limit_on_the_push_does_not_slow_faults() {
    let stage = Stage::new();
    let mut options = options(&stage, stage.address(), Box::new(PostCopy), Prepaging::Push);
    options.residual.bandwidth_max = Some(4096 * 20);
    options.residual.residual_max = Some(Duration::from_secs(2));
    let residual = moved(&stage, 4, options).residual.unwrap();
    // In two seconds the limit lets 40 pages pass; thousands of faults were answered.
    assert!(residual.pages_replied > 400, "{residual:?}");
}

#[test]
fn cables_that_are_cut_again_and_again_cost_time_only() {
    let stage = Stage::new();
    let cable = Cable::new(stage.address());
    let mut workload = ImaginedWorkload::new(&stage.world, 7);
    let destination = receive(&stage, (), None);
    let over = AtomicBool::new(false);
    let options = slow(&stage, cable.address);
    let (begin, begun) = std::sync::mpsc::channel();
    let mut observer = At {
        phase: Phase::Serve,
        act: Some(move || begin.send(()).unwrap()),
        warnings: Vec::new(),
    };
    let summary = thread::scope(|scope| {
        let (over, cable) = (&over, &cable);
        scope.spawn(move || {
            let mut random = Random::new(9);
            begun.recv().unwrap();
            // At least once, since it takes a second.
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(random.next(150)));
                cable.jerk();
            }
        });
        let summary = send(&stage, &mut workload, options, &mut observer);
        over.store(true, Ordering::Relaxed);
        summary.unwrap()
    });
    destination.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
    let residual = summary.residual.unwrap();
    assert!(residual.reconnects > 0, "{residual:?}");
    assert!(observer
        .warnings
        .iter()
        .any(|w| w.contains("until the link is back")));
}

/// Ends the one controller at the beginning of a phase, as kill -9 does.
fn source_dies_serving(stage: &Stage) {
    let mut workload = ImaginedWorkload::new(&stage.world, 11);
    let options = slow(stage, stage.address());
    let mut observer = At {
        phase: Phase::Serve,
        act: Some(kill_me),
        warnings: Vec::new(),
    };
    thread::scope(|scope| {
        let dead = scope.spawn(|| send(stage, &mut workload, options, &mut observer).map(drop));
        assert!(dead.join().is_err());
    });
    let record = stage.journals.read(stage.id, Role::Source).unwrap().unwrap();
    assert_eq!(record.state, State::Serving);
}

#[test]
fn a_guardian_serves_on_when_the_source_dies() {
    let stage = Stage::new();
    let destination = receive(&stage, (), None);
    source_dies_serving(&stage);
    assert!(look(&stage.world).source.held, "the copy is kept");
    let settled = stage.guardian(Role::Source, &AtomicBool::new(false)).unwrap();
    assert_eq!(settled, Settled::Moved);
    destination.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
}

#[test]
fn other_commands_leave_a_copy_that_serves_alone() {
    let stage = Stage::new();
    let destination = receive(&stage, (), None);
    source_dies_serving(&stage);
    let cancel = AtomicBool::new(false);
    let options = GuardianOptions {
        link_timeout: stage.link_timeout,
        ask_for: None,
        force_here: false,
        listener: None,
        answer_for: Duration::ZERO,
        follow: false,
        cancel: &cancel,
    };
    let recover = ImaginedRecover(stage.world.clone());
    let settled: Vec<_> = recover_stale(&stage.journals, &recover, &options).unwrap();
    let source = settled
        .iter()
        .find(|(record, _)| record.role == Role::Source)
        .unwrap();
    assert_eq!(source.1.as_ref().unwrap(), &Settled::Serving);
    assert!(look(&stage.world).source.held, "the copy is kept");
    // By hand.
    let settled = stage.guardian(Role::Source, &cancel).unwrap();
    assert_eq!(settled, Settled::Moved);
    destination.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
}

#[test]
fn a_guardian_fetches_on_when_the_destination_dies_and_the_workload_waits_for_it() {
    for phase in [Phase::Fetch, Phase::Start] {
        let stage = Stage::new();
        let observer = At {
            phase,
            act: Some(kill_me),
            warnings: Vec::new(),
        };
        let destination = receive(&stage, observer, None);
        let mut workload = ImaginedWorkload::new(&stage.world, 13);
        let mut options = slow(&stage, stage.address());
        // On a busy machine it takes a while until the controller is killed; by then not everything may be there.
        options.residual.bandwidth_max = Some(1 << 20);
        thread::scope(|scope| {
            let guardian = scope.spawn(|| {
                assert!(destination.join().is_err());
                destination_died(&stage.world);
                stage
                    .guardian(Role::Destination, &AtomicBool::new(false))
                    .unwrap()
            });
            let summary = send(&stage, &mut workload, options, &mut ()).unwrap();
            assert_eq!(guardian.join().unwrap(), Settled::Started { confirmed: true });
            // Killed before it said that it runs: what became of it was asked on a new connection, and so was what it lacks.
            assert!(summary.residual.unwrap().reconnects > 0 || phase == Phase::Start);
        });
        assert_eq!(stage.verify(), Where::Destination);
        let world = look(&stage.world);
        assert_eq!((world.pauses, world.paused), (1, false));
    }
}

#[test]
fn both_ends_may_die() {
    let stage = Stage::new();
    let observer = At {
        phase: Phase::Fetch,
        act: Some(kill_me),
        warnings: Vec::new(),
    };
    let destination = receive(&stage, observer, None);
    source_dies_serving(&stage);
    assert!(destination.join().is_err());
    let never = AtomicBool::new(false);
    thread::scope(|scope| {
        let source = scope.spawn(|| stage.guardian(Role::Source, &never).unwrap());
        let destination = scope.spawn(|| stage.guardian(Role::Destination, &never).unwrap());
        assert_eq!(source.join().unwrap(), Settled::Moved);
        assert_eq!(destination.join().unwrap(), Settled::Started { confirmed: true });
    });
    assert_eq!(stage.verify(), Where::Destination);
}

#[test]
fn who_cancels_afterwards_leaves_the_pages_to_whoever_follows() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 17);
    let destination = receive(&stage, (), None);
    let options = slow(&stage, stage.address());
    let cancel = stage.cancel.clone();
    let mut observer = At {
        phase: Phase::Serve,
        act: Some(move || cancel.store(true, Ordering::Relaxed)),
        warnings: Vec::new(),
    };
    let failure = send(&stage, &mut workload, options, &mut observer).unwrap_err();
    assert_eq!(failure.whereabouts, Whereabouts::Destination);
    assert!(matches!(failure.error, Error::Unserved { .. }), "{failure}");
    stage.guardian(Role::Source, &AtomicBool::new(false)).unwrap();
    destination.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
}

#[test]
fn a_destination_that_stays_away_is_waited_for_only_so_long() {
    let stage = Stage::new();
    let cable = Cable::new(stage.address());
    let mut workload = ImaginedWorkload::new(&stage.world, 19);
    let destination = receive(&stage, (), None);
    let mut options = slow(&stage, cable.address);
    options.residual.reconnect_for = Duration::from_millis(300);
    let mut observer = At {
        phase: Phase::Serve,
        act: Some(cable.cutter()),
        warnings: Vec::new(),
    };
    let failure = send(&stage, &mut workload, options, &mut observer).unwrap_err();
    assert!(matches!(failure.error, Error::Unserved { .. }), "{failure}");
    assert!(look(&stage.world).source.held, "the copy is kept");
    cable.plug();
    assert_eq!(
        stage.guardian(Role::Source, &AtomicBool::new(false)).unwrap(),
        Settled::Moved
    );
    destination.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
}

#[test]
fn a_workload_whose_frozen_copy_is_gone_is_ended_before_it_reads_anything_else() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 23);
    let destination = receive(&stage, (), None);
    let options = slow(&stage, stage.address());
    let world = stage.world.clone();
    let mut observer = At {
        phase: Phase::Serve,
        act: Some(move || look(&world).source = Copy::default()),
        warnings: Vec::new(),
    };
    send(&stage, &mut workload, options, &mut observer).unwrap();
    let warned = observer.warnings.iter();
    assert_eq!(warned.filter(|one| one.contains("cannot be read")).count(), 1);
    let failure = destination.join().unwrap().unwrap_err();
    assert!(matches!(failure.error, Error::Ended(_)), "{failure}");
    assert_eq!(failure.whereabouts, Whereabouts::Destination);
    let world = look(&stage.world);
    assert!(
        world.given_up.as_deref().unwrap().contains("cannot send page"),
        "{:?}",
        world.given_up
    );
    assert_eq!(world.complaints, [""; 0]);
}

#[test]
fn trouble_with_the_missing_pages_before_the_offer_leaves_it_at_the_source() {
    for trouble in ["arm", "complete"] {
        let stage = Stage::new();
        let mut workload = ImaginedWorkload::new(&stage.world, 29);
        let destination = receive(&stage, (), Some(trouble));
        let options = slow(&stage, stage.address());
        let failure = send(&stage, &mut workload, options, &mut ()).unwrap_err();
        assert_eq!(failure.whereabouts, Whereabouts::Source);
        assert!(destination.join().unwrap().is_err());
        look(&stage.world).missing.clear();
        assert_eq!(stage.verify(), Where::Source);
    }
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 29);
    workload.trouble = Some("store");
    let destination = receive(&stage, (), None);
    let failure = send(&stage, &mut workload, slow(&stage, stage.address()), &mut ()).unwrap_err();
    assert_eq!(failure.whereabouts, Whereabouts::Source);
    assert!(destination.join().unwrap().is_err());
    assert_eq!(stage.verify(), Where::Source);
}

/// Pages of memory that the workload never had, from whoever has the key.
#[test]
fn a_destination_that_asks_for_what_it_does_not_lack_is_refused() {
    use whimbrel_wire::{write_wishes, Wish};
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 31);
    let destination = receive(&stage, (), None);
    let cable = Cable::new(stage.address());
    let options = slow(&stage, cable.address);
    let injected = cable.inject_backwards(move |stream| {
        let wish = Wish::Fault {
            space: 0,
            page: 0xdead_beef,
            thread: 1,
            repeated: false,
        };
        write_wishes(stream, &[wish]).unwrap();
    });
    let mut observer = At {
        phase: Phase::Serve,
        act: Some(injected),
        warnings: Vec::new(),
    };
    let begun = Instant::now();
    send(&stage, &mut workload, options, &mut observer).unwrap();
    destination.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
    let told = observer.warnings.iter().any(|w| w.contains("0xdeadbeef"));
    assert!(told, "{:?} after {:?}", observer.warnings, begun.elapsed());
}

/// What has no place on the stream for faults, from whoever has the key.
#[test]
fn a_source_that_says_what_has_no_place_is_hung_up_on() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 37);
    let destination = receive(&stage, (), None);
    let cable = Cable::new(stage.address());
    let options = slow(&stage, cable.address);
    let injected = cable.inject_forwards(|stream| {
        let mut writer = whimbrel_wire::BulkWriter::new(stream);
        writer.layout(&[7; 100]).unwrap();
    });
    let mut observer = At {
        phase: Phase::Serve,
        act: Some(injected),
        warnings: Vec::new(),
    };
    let summary = send(&stage, &mut workload, options, &mut observer).unwrap();
    destination.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
    assert!(summary.residual.unwrap().reconnects > 0);
}

/// Pages that nobody lacks change nothing, wherever they are said to belong.
#[test]
fn pages_that_are_not_missing_are_left_alone() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 41);
    let destination = receive(&stage, (), None);
    let cable = Cable::new(stage.address());
    let options = slow(&stage, cable.address);
    let injected = cable.inject_forwards(|stream| {
        let mut writer = whimbrel_wire::BulkWriter::new(stream);
        let run = |space, first| whimbrel_wire::Run {
            space,
            first,
            count: 1,
        };
        let page = [9; 4096];
        let far = run(0, u64::MAX / 4096 - 9);
        writer.pages([(run(1, 3), &page[..]), (far, &page[..])]).unwrap();
        writer.zeros(&[run(77, 0)]).unwrap();
        writer.barrier(u64::MAX).unwrap();
    });
    let mut observer = At {
        phase: Phase::Serve,
        act: Some(injected),
        warnings: Vec::new(),
    };
    send(&stage, &mut workload, options, &mut observer).unwrap();
    destination.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
}
