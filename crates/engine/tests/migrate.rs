//! Whole migrations of the imagined workload over real sockets: nothing fails here that was not made to.
#![allow(clippy::unwrap_used)]

mod imagined;

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use imagined::*;
use whimbrel_engine::{Error, Mode, Phase, Whereabouts, DESTINATION_PHASES, SOURCE_PHASES};
use whimbrel_wire::handshake::{respond_with, Versions};
use whimbrel_wire::{Key, StreamKind};

/// Returns how many pages were left out because they were written again.
fn moves(mode: Mode, seed: u64) -> u64 {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, seed);
    let receiver = receive(&stage, (), None);
    let summary = migrate_to(&stage, &mut workload, mode).unwrap();
    let received = receiver.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
    assert_eq!(received.bulk_bytes, summary.bulk_bytes);
    assert!(summary.downtime_us > 0 && summary.downtime_us <= summary.total_us);
    let rounds = summary.phases.iter().filter(|p| p.phase == Phase::Round).count();
    assert_eq!(rounds == 0, mode == Mode::Stopped, "{rounds} rounds");
    let expected: Vec<_> = SOURCE_PHASES
        .into_iter()
        .filter(|&p| rounds > 0 || p != Phase::Round)
        .collect();
    let mut seen: Vec<_> = summary.phases.iter().map(|p| p.phase).collect();
    seen.dedup();
    assert_eq!(seen, expected);
    assert_eq!(
        received.phases.iter().map(|p| p.phase).collect::<Vec<_>>(),
        DESTINATION_PHASES
    );
    summary.rounds.iter().map(|round| round.pages_rewritten).sum()
}

fn migrate_to(
    stage: &Stage,
    workload: &mut ImaginedWorkload,
    mode: Mode,
) -> Result<whimbrel_engine::Summary, whimbrel_engine::Failure> {
    send(
        stage,
        workload,
        stage.source_options(mode, stage.address()),
        &mut (),
    )
}

#[test]
fn precopy_moves_everything() {
    let rewritten: u64 = (0..25).map(|seed| moves(Mode::Live, seed)).sum();
    assert!(
        rewritten > 0,
        "pages that are written all the time were sent all the time"
    );
}

#[test]
fn stopcopy_moves_everything() {
    let rewritten: u64 = (100..110).map(|seed| moves(Mode::Stopped, seed)).sum();
    assert_eq!(rewritten, 0);
}

#[test]
fn a_failing_workload_stays_whatever_it_fails_in() {
    for trouble in [
        "describe",
        "begin",
        "scan",
        "rewritten",
        "read",
        "freeze",
        "layout_frozen",
        "capture",
        "scan_frozen",
        "hold",
    ] {
        let stage = Stage::new();
        let mut workload = ImaginedWorkload::new(&stage.world, 1);
        workload.trouble = Some(trouble);
        let receiver = receive(&stage, (), None);
        let failure = migrate_to(&stage, &mut workload, Mode::Live).unwrap_err();
        assert_eq!(failure.to_string(), format!("trouble in {trouble} of process 42"));
        let expected = if trouble == "describe" {
            Whereabouts::Untouched
        } else {
            Whereabouts::Source
        };
        assert_eq!(failure.whereabouts, expected, "{trouble}");
        if trouble == "describe" {
            // The destination was not bothered: it still waits, and takes the next one.
            workload.trouble = None;
            migrate_to(&stage, &mut workload, Mode::Live).unwrap();
            receiver.join().unwrap().unwrap();
            assert_eq!(stage.verify(), Where::Destination);
        } else {
            let failure = receiver.join().unwrap().unwrap_err();
            assert!(
                failure.to_string().contains(&format!("trouble in {trouble}")),
                "{failure}"
            );
            assert_eq!(stage.verify(), Where::Source);
        }
    }
}

#[test]
fn a_failing_replica_leaves_the_workload_where_it_is_and_the_source_hears_why() {
    for trouble in ["follow", "write", "zero", "load", "complete"] {
        let stage = Stage::new();
        let mut workload = ImaginedWorkload::new(&stage.world, 2);
        let receiver = receive(&stage, (), Some(trouble));
        let failure = migrate_to(&stage, &mut workload, Mode::Live).unwrap_err();
        assert_eq!(
            failure.to_string(),
            format!("the other end gave up: trouble in {trouble} of the replica")
        );
        assert_eq!(failure.whereabouts, Whereabouts::Source);
        assert_eq!(whereabouts(receiver.join().unwrap()), Whereabouts::Source);
        assert_eq!(stage.verify(), Where::Source);
    }
}

#[test]
fn a_refusal_is_shown_at_the_source_and_the_destination_waits_on() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 3);
    let receiver = receive(&stage, (), Some("prepare"));
    for _ in 0..2 {
        let failure = migrate_to(&stage, &mut workload, Mode::Live).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "the destination refuses: trouble in prepare of the replica"
        );
        assert_eq!(failure.whereabouts, Whereabouts::Untouched);
        assert!(!receiver.is_finished());
    }
    assert!(imagined::look(&stage.world).source.runs());
}

#[test]
fn a_wrong_key_is_told_at_both_ends_and_the_right_one_still_works() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 4);
    let receiver = receive(&stage, (), None);
    let mut options = stage.source_options(Mode::Live, stage.address());
    options.key = Key::random().unwrap();
    let failure = send(&stage, &mut workload, options, &mut ()).unwrap_err();
    assert!(
        matches!(
            failure.error,
            Error::Handshake {
                cause: whimbrel_wire::Error::KeyRefused,
                ..
            }
        ),
        "{failure}"
    );
    assert_eq!(failure.whereabouts, Whereabouts::Untouched);
    migrate_to(&stage, &mut workload, Mode::Live).unwrap();
    receiver.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
}

#[test]
fn another_version_is_named() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 5);
    let (listener, key) = (stage.listener.try_clone().unwrap(), stage.key.clone());
    let newer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        respond_with(
            &mut stream,
            Versions {
                lowest: 7,
                highest: 8,
            },
            |_, _: StreamKind| Some(key),
        )
        .unwrap_err()
    });
    let failure = migrate_to(&stage, &mut workload, Mode::Live).unwrap_err();
    assert!(
        failure.to_string().contains("protocol 1, the other end 7 to 8"),
        "{failure}"
    );
    assert!(newer
        .join()
        .unwrap()
        .to_string()
        .contains("protocol 7 to 8, the other end 1"));
    assert!(imagined::look(&stage.world).source.runs());
}

#[test]
fn nobody_at_the_address() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 6);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failure = send(
        &stage,
        &mut workload,
        stage.source_options(Mode::Live, closed),
        &mut (),
    )
    .unwrap_err();
    assert!(
        failure
            .to_string()
            .contains(&format!("cannot reach the destination {closed}")),
        "{failure}"
    );
    assert_eq!(failure.whereabouts, Whereabouts::Untouched);
    assert_eq!(stage.verify(), Where::Source);
}

#[test]
fn somebody_who_never_answers() {
    let mut stage = Stage::new();
    stage.link_timeout = Duration::from_millis(300);
    let mut workload = ImaginedWorkload::new(&stage.world, 7);
    // The kernel accepts into the backlog; nobody greets.
    let failure = migrate_to(&stage, &mut workload, Mode::Live).unwrap_err();
    assert!(matches!(failure.error, Error::Handshake { .. }), "{failure}");
    assert_eq!(stage.verify(), Where::Source);
}

#[test]
fn a_second_migration_is_told_to_wait() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 8);
    let receiver = receive(&stage, (), None);
    let other = Stage::new();
    let (key, address) = (stage.key.clone(), stage.address());
    let meanwhile = move || {
        let mut second = ImaginedWorkload::new(&other.world, 9);
        let mut options = other.source_options(Mode::Live, address);
        options.key = key;
        let failure = send(&other, &mut second, options, &mut ()).unwrap_err();
        assert!(
            failure
                .to_string()
                .contains("another migration is being received"),
            "{failure}"
        );
        assert_eq!(other.verify(), Where::Source);
    };
    let mut observer = At {
        phase: Phase::Track,
        act: Some(meanwhile),
        warnings: Vec::new(),
    };
    let options = stage.source_options(Mode::Live, stage.address());
    send(&stage, &mut workload, options, &mut observer).unwrap();
    receiver.join().unwrap().unwrap();
    assert!(observer.act.is_none());
    assert_eq!(stage.verify(), Where::Destination);
}

#[test]
fn strangers_at_the_door_do_not_disturb() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 10);
    let receiver = receive(&stage, (), None);
    let silent: Vec<_> = (0..10)
        .map(|_| TcpStream::connect(stage.address()).unwrap())
        .collect();
    let mut loud = TcpStream::connect(stage.address()).unwrap();
    std::io::Write::write_all(&mut loud, &[b'G'; 200]).unwrap();
    migrate_to(&stage, &mut workload, Mode::Live).unwrap();
    receiver.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
    drop(silent);
}

#[test]
fn a_cancel_before_the_offer_leaves_it_where_it_is() {
    for phase in SOURCE_PHASES
        .into_iter()
        .filter(|&p| !matches!(p, Phase::Offer | Phase::Release))
    {
        let stage = Stage::new();
        let mut workload = ImaginedWorkload::new(&stage.world, 11);
        let receiver = receive(&stage, (), None);
        let cancel = std::sync::Arc::clone(&stage.cancel);
        let act = move || cancel.store(true, Ordering::Relaxed);
        let mut observer = At {
            phase,
            act: Some(act),
            warnings: Vec::new(),
        };
        let options = stage.source_options(Mode::Live, stage.address());
        let failure = send(&stage, &mut workload, options, &mut observer).unwrap_err();
        assert!(matches!(failure.error, Error::Cancelled), "{phase}: {failure}");
        if matches!(phase, Phase::Check | Phase::Connect | Phase::Prepare) {
            assert_eq!(failure.whereabouts, Whereabouts::Untouched);
            assert!(!receiver.is_finished(), "{phase}: it waits on");
        } else {
            let failure = receiver.join().unwrap().unwrap_err();
            assert!(failure.to_string().contains("cancelled"), "{phase}: {failure}");
            assert_eq!(stage.verify(), Where::Source);
        }
    }
}
