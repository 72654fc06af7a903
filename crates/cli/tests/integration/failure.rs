//! Controllers are killed and cables cut at every phase: the workload runs in exactly one place with its data right, and
//! nothing is left behind.
//!
//! `WHIMBREL_TEST_PHASE=offer` plays that phase alone.

use std::time::{Duration, Instant};

use whimbrel_engine::observer::{Phase, DESTINATION_PHASES, SOURCE_PHASES};
use whimbrel_testbed::{programs, Running};

use crate::postcopy::count;
use crate::rig::{How, Moving, Rig, Side, LONG};

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// The controller that has stopped there is killed.
    Kill,
    /// The cable is cut and mended again after both ends have noticed.
    Cut,
}

/// What happens where.
#[derive(Clone, Copy, Debug)]
struct Case {
    blow: Blow,
    /// Whose controller stops itself at the beginning of the phase.
    side: Side,
    phase: Phase,
}

impl Case {
    fn how(self) -> How {
        let phase = Some(self.phase.name());
        match self.side {
            Side::Alpha => How {
                pause_source_at: phase,
                ..How::impatient()
            },
            Side::Beta => How {
                pause_destination_at: phase,
                ..How::impatient()
            },
        }
    }

    fn strike(self, rig: &Rig, moving: &mut Moving) -> Result<(), String> {
        let Moving { receive, migrate } = moving;
        let (stopped, other) = match self.side {
            Side::Alpha => (migrate, receive),
            Side::Beta => (receive, migrate),
        };
        let text = |error: whimbrel_testbed::Error| error.to_string();
        stopped
            .wait_stopped(LONG)
            .map_err(|error| format!("{error}; the other end: {}", other.output()))?;
        match self.blow {
            Blow::Kill => stopped.kill().map(drop).map_err(text),
            Blow::Cut => {
                rig.hosts.cut(&rig.hosts.beta).map_err(text)?;
                stopped.go_on().map_err(text)?;
                // The one at the source ends by itself, whatever it decides. The other may go on listening.
                let ended = migrate_ended(self, stopped, other);
                rig.hosts.mend(&rig.hosts.beta).map_err(text)?;
                ended
            }
        }
    }
}

/// Waits until `migrate` has noticed that the link is gone: it ends, or says that it must wait.
fn migrate_ended(case: Case, stopped: &mut Running, other: &mut Running) -> Result<(), String> {
    let migrate = match case.side {
        Side::Alpha => stopped,
        Side::Beta => other,
    };
    let finished = migrate.wait(LONG).map_err(|error| error.to_string())?;
    match finished.code {
        Some(0 | 1 | 4) => Ok(()),
        _ => Err(format!("migrate ended with {finished:?}")),
    }
}

/// Waits until the program runs on one host alone, and says on which.
fn settled(rig: &Rig) -> Result<Side, String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let counts = [Side::Alpha, Side::Beta].map(|side| rig.processes(side, "machinery"));
        match counts {
            [1, 0] => return Ok(Side::Alpha),
            [0, 1] => return Ok(Side::Beta),
            _ if Instant::now() > deadline => {
                return Err(format!("it runs {counts:?} times"));
            }
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// One case, on hosts where nothing runs.
fn play(rig: &Rig, case: Case) -> Result<(), String> {
    rig.run("machinery");
    rig.more_steps(Side::Alpha, 3);
    let mut moving = rig.begin_move(Side::Alpha, &case.how());
    case.strike(rig, &mut moving)?;
    let side = settled(rig)?;
    // The steps count on without a gap: it has run once, and nothing of it was lost.
    rig.more_steps(side, 10);
    if settled(rig)? != side {
        return Err("it settled twice, at different places".to_string());
    }
    // A `receive` that still listens for another try is no left-over.
    drop(moving);
    rig.nothing_left(&[side.other()])?;
    rig.finish(side);
    Ok(())
}

/// All cases, and all faults in one message. After a fault the hosts are made anew.
fn play_all(blow: Blow, side: Side, phases: &[Phase]) {
    let program = [programs::c("machinery").unwrap()];
    let mut faults = Vec::new();
    let mut rig = Rig::new(&program);
    let only = std::env::var("WHIMBREL_TEST_PHASE").ok();
    let only: Option<Phase> = only.map(|name| name.parse().unwrap());
    for &phase in phases
        .iter()
        .filter(|&&phase| only.is_none_or(|only| only == phase))
    {
        let case = Case { blow, side, phase };
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(&rig, case)));
        let fault = match played {
            Ok(Ok(())) => continue,
            Ok(Err(fault)) => fault,
            Err(_) => "an assertion failed, see above".to_string(),
        };
        let hosts = rig.both_hosts();
        faults.push(format!("{blow:?} at {phase} of {side:?}: {fault}\n{hosts}"));
        rig = Rig::new(&program);
    }
    assert!(
        faults.is_empty(),
        "{} of {} cases failed:\n{}",
        faults.len(),
        phases.len(),
        faults.join("\n")
    );
}

#[test]
fn the_source_is_killed_at_each_phase() {
    play_all(Blow::Kill, Side::Alpha, &SOURCE_PHASES);
}

#[test]
fn the_destination_is_killed_at_each_phase() {
    play_all(Blow::Kill, Side::Beta, &DESTINATION_PHASES);
}

/// Both ends wait for their time limits each time: `make test` takes one phase of each state of the switch-over, `make soak` all.
fn cut_at<const N: usize>(all: [Phase; N], some: &[Phase]) -> Vec<Phase> {
    let mut phases = all.to_vec();
    phases.truncate(count(0, N));
    if phases.is_empty() {
        phases.extend_from_slice(some);
    }
    phases
}

#[test]
fn the_cable_is_cut_at_phases_of_the_source() {
    let some = [
        Phase::Prepare,
        Phase::Round,
        Phase::Capture,
        Phase::LastPages,
        Phase::Offer,
        Phase::Release,
    ];
    play_all(Blow::Cut, Side::Alpha, &cut_at(SOURCE_PHASES, &some));
}

#[test]
fn the_cable_is_cut_at_phases_of_the_destination() {
    let some = [Phase::Round, Phase::Load, Phase::Commit, Phase::Start];
    play_all(Blow::Cut, Side::Beta, &cut_at(DESTINATION_PHASES, &some));
}

#[test]
fn ctrl_c_cancels_and_the_workload_runs_on() {
    let rig = Rig::new(&[programs::c("machinery").unwrap()]);
    rig.run("machinery");
    for phase in ["round", "freeze", "last-pages"] {
        let how = How {
            pause_source_at: Some(phase),
            ..How::default()
        };
        let mut moving = rig.begin_move(Side::Alpha, &how);
        moving.migrate.wait_stopped(LONG).unwrap();
        moving.migrate.interrupt().unwrap();
        moving.migrate.go_on().unwrap();
        let finished = moving.migrate.wait(LONG).unwrap();
        assert_eq!(finished.code, Some(130), "{finished:?}");
        drop(moving);
        rig.more_steps(Side::Alpha, 5);
        rig.nothing_left(&[Side::Beta]).unwrap();
    }
    rig.moved(Side::Alpha, &How::default());
    rig.more_steps(Side::Beta, 5);
    rig.finish(Side::Beta);
}
