//! What the engine was told and has decided in whole migrations over real sockets is decided again by the simulator.
#![allow(clippy::unwrap_used)]

mod imagined;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use imagined::*;
use whimbrel_engine::{Mode, Phase, Prepaging, SourceOptions, Trace};
use whimbrel_policy::predict::{Costs, Goals};
use whimbrel_policy::strategy::Named;
use whimbrel_policy::{Hints, Limits, Migration, Passes};
use whimbrel_sim::replay::{replay, Divergence, NotReplayed, Replayed};

/// A file in memory.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn replayed(text: &str) -> Replayed {
    replay(text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn divergence(text: &str) -> Divergence {
    match replay(text.as_bytes()) {
        Err(NotReplayed::Divergence(divergence)) => divergence,
        other => panic!("{other:?}"),
    }
}

fn traced(stage: &Stage, strategy: Named, trace: Trace) -> SourceOptions {
    let mut options = stage.source_options(Mode::Live, stage.address());
    options.migration = Migration::new(strategy.build(), Limits::default(), Hints::default());
    options.trace = Some(trace);
    options
}

/// Moves the workload, and gives the trace.
fn recorded(strategy: Named, prepaging: Prepaging, seed: u64) -> String {
    let (stage, paper) = (Stage::new(), Paper::default());
    let mut options = traced(&stage, strategy, Trace::new(paper.clone()));
    options.residual.prepaging = prepaging;
    // So slow that threads must ask, and are helped out of it.
    options.residual.bandwidth_max = Some(1 << 20);
    options.residual.residual_max = Some(Duration::from_millis(100));
    let mut workload = ImaginedWorkload::new(&stage.world, seed);
    let destination = receive(&stage, (), None);
    send(&stage, &mut workload, options, &mut ()).unwrap();
    destination.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
    paper.text()
}

#[test]
fn precopy_stopcopy_and_auto_decide_the_same_again() {
    let auto = Named::Auto {
        goals: Goals {
            downtime_max: Duration::from_millis(50),
            min: None,
        },
        costs: Costs::default(),
        round_trip: Duration::from_micros(100),
    };
    for (seed, strategy) in (20..).zip([Named::PreCopy, Named::StopCopy, auto]) {
        let text = recorded(strategy, Prepaging::default(), seed);
        let replayed = replayed(&text);
        assert!(replayed.is_complete && replayed.strategy == strategy);
        // Freeze, capture, scan, hand over at the very least, and each but the last was answered.
        assert!(replayed.decisions >= 4 && replayed.events >= 3, "{replayed}");
        // A fault and its answer are one line; auto may leave pages for which there are some.
        let faults = text.matches(r#""step":{"fault""#).count();
        let lines = (text.lines().count() + faults) as u64;
        assert_eq!(
            replayed.decisions + replayed.events,
            lines - 2,
            "every line counts"
        );
    }
}

#[test]
fn what_follows_in_every_order_is_decided_the_same_again() {
    let orders = ["push", "bubbling", "demand"].map(|name| name.parse::<Prepaging>().unwrap());
    let (mut faults, mut hurries) = (0, 0);
    for (seed, prepaging) in (30..).zip(orders) {
        for strategy in [Named::PostCopy, Named::Hybrid(Passes::Exactly(2))] {
            let text = recorded(strategy, prepaging, seed);
            assert!(text.contains(r#""step":{"serve""#));
            faults += usize::from(text.contains(r#""step":{"fault""#));
            hurries += usize::from(text.contains(r#""step":"hurry""#));
            assert!(replayed(&text).is_complete);
        }
    }
    assert!(faults > 0 && hurries > 0);
}

#[test]
fn links_that_were_lost_are_replayed_too() {
    let (stage, paper) = (Stage::new(), Paper::default());
    let cable = Cable::new(stage.address());
    let mut workload = ImaginedWorkload::new(&stage.world, 41);
    let mut options = traced(&stage, Named::PostCopy, Trace::new(paper.clone()));
    options.destination = cable.address.to_string();
    options.residual.bandwidth_max = Some(4 << 20);
    let destination = receive(&stage, (), None);
    let over = AtomicBool::new(false);
    let (begin, begun) = std::sync::mpsc::channel();
    let mut observer = At {
        phase: Phase::Serve,
        act: Some(move || begin.send(()).unwrap()),
        warnings: Vec::new(),
    };
    thread::scope(|scope| {
        let (over, cable) = (&over, &cable);
        scope.spawn(move || {
            begun.recv().unwrap();
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
                cable.jerk();
            }
        });
        let sent = send(&stage, &mut workload, options, &mut observer);
        over.store(true, Ordering::Relaxed);
        sent.unwrap();
    });
    destination.join().unwrap().unwrap();
    let text = paper.text();
    assert!(text.contains("link-lost") && text.contains("link-back"));
    assert!(replayed(&text).is_complete);
}

#[test]
fn a_decision_that_is_not_the_recorded_one_is_found_at_its_line() {
    let text = recorded(Named::PostCopy, Prepaging::default(), 51);
    let lines: Vec<_> = text.lines().collect();
    let find = |what: &str| lines.iter().rposition(|line| line.contains(what)).unwrap();
    for (what, from, to) in [
        (r#""order":"freeze""#, "freeze", "scan"),
        (r#""order":{"send""#, r#"{"runs":[["#, r#"{"runs":[[7,7,7],["#),
        (r#""step":{"serve""#, r#"{"pages":[["#, r#"{"pages":[[7,7,7],["#),
        (r#""ordered":{"reply""#, r#""run":["#, r#""run":[1"#),
        (r#""ordered":{"push""#, r#""piece":"#, r#""piece":1"#),
        (r#""answer":"queued""#, "queued", "on-its-way"),
    ] {
        let at = find(what);
        let changed = lines[at].replacen(from, to, 1);
        assert_ne!(changed, lines[at]);
        let mut lines = lines.clone();
        lines[at] = &changed;
        let found = divergence(&(lines.join("\n") + "\n"));
        assert_eq!(found.line, at as u64 + 1, "{what}: {found}");
    }
}

#[test]
fn a_trace_that_was_cut_is_replayed_up_to_there() {
    let text = recorded(Named::Hybrid(Passes::Exactly(1)), Prepaging::default(), 61);
    let whole = replayed(&text);
    let cut = replayed(&text[..text.len() / 2]);
    assert!(whole.is_complete && !cut.is_complete);
    assert!(cut.decisions > 0 && cut.decisions < whole.decisions);
}

#[test]
fn a_migration_that_fails_is_traced_up_to_there() {
    let (stage, paper) = (Stage::new(), Paper::default());
    let mut workload = ImaginedWorkload::new(&stage.world, 71);
    workload.trouble = Some("capture");
    let destination = receive(&stage, (), None);
    let options = traced(&stage, Named::PreCopy, Trace::new(paper.clone()));
    assert!(send(&stage, &mut workload, options, &mut ()).is_err());
    assert!(destination.join().unwrap().is_err());
    let text = paper.text();
    assert!(text.contains(r#""order":"capture""#) && !text.contains("captured"));
    assert!(replayed(&text).is_complete);
}

/// A disk that is full.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::other("no space left"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_trace_that_cannot_be_written_is_a_warning_and_no_failure() {
    let stage = Stage::new();
    let mut workload = ImaginedWorkload::new(&stage.world, 81);
    let destination = receive(&stage, (), None);
    let options = traced(&stage, Named::PreCopy, Trace::new(Full));
    let mut observer = At {
        phase: Phase::Serve,
        act: None::<fn()>,
        warnings: Vec::new(),
    };
    send(&stage, &mut workload, options, &mut observer).unwrap();
    destination.join().unwrap().unwrap();
    let warnings = observer.warnings;
    assert!(
        warnings.iter().any(|w| w.contains("no space left")),
        "{warnings:?}"
    );
}
