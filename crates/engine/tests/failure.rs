//! Controllers that die and links that break, at every phase of both ends: afterwards exactly one copy runs, its memory
//! is right, and nothing is left behind.
#![allow(clippy::unwrap_used)]

mod imagined;

use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use imagined::*;
use whimbrel_engine::*;

static NEVER: AtomicBool = AtomicBool::new(false);

fn at<F: FnOnce()>(phase: Phase, act: F) -> At<F> {
    At {
        phase,
        act: Some(act),
        warnings: Vec::new(),
    }
}

/// The source on a thread of its own, which may be killed.
fn spawn_source(
    stage: &Stage,
    seed: u64,
    mut observer: impl Observer + Send + 'static,
    change: impl FnOnce(&mut SourceOptions),
) -> JoinHandle<Result<Summary, Failure>> {
    let mut options = stage.source_options(Mode::Live, stage.address());
    change(&mut options);
    let mut workload = ImaginedWorkload::new(&stage.world, seed);
    thread::spawn(move || migrate(&mut workload, options, &mut observer))
}

/// Has offered before the phase: from there on the destination decides.
fn after_offer(phase: Phase) -> bool {
    matches!(phase, Phase::Release)
}

#[test]
fn the_source_is_killed_at_each_phase() {
    for (seed, phase) in SOURCE_PHASES.into_iter().enumerate() {
        let mut stage = Stage::new();
        if !after_offer(phase) {
            // The destination may have gone home; the guardian does not tell it for long.
            stage.answer_for = Duration::from_millis(300);
            stage.link_timeout = Duration::from_secs(1);
        }
        let receiver = receive(&stage, (), None);
        let source = spawn_source(&stage, seed as u64, at(phase, kill_me), |_| {});
        assert!(source.join().is_err(), "{phase}: not killed");
        source_died(&stage.world);
        let settled = stage.guardian(Role::Source, &NEVER).unwrap();
        let bothered = !matches!(phase, Phase::Check | Phase::Connect);
        if after_offer(phase) {
            assert_eq!(settled, Settled::Moved, "{phase}");
            receiver.join().unwrap().unwrap();
            assert_eq!(stage.verify(), Where::Destination, "{phase}");
        } else {
            let expected = if bothered {
                Settled::Stays
            } else {
                Settled::Nothing
            };
            assert_eq!(settled, expected, "{phase}");
            if bothered && phase != Phase::Prepare {
                assert_eq!(
                    whereabouts(receiver.join().unwrap()),
                    Whereabouts::Source,
                    "{phase}"
                );
            }
            assert_eq!(stage.verify(), Where::Source, "{phase}");
        }
    }
}

#[test]
fn the_destination_is_killed_at_each_phase() {
    for (seed, phase) in DESTINATION_PHASES.into_iter().enumerate() {
        let stage = Stage::new();
        let receiver = receive(&stage, at(phase, kill_me), None);
        let source = spawn_source(&stage, seed as u64, (), |_| {});
        assert!(receiver.join().is_err(), "{phase}: not killed");
        destination_died(&stage.world);
        let (settled, moved) = thread::scope(|scope| {
            let guardian = scope.spawn(|| stage.guardian(Role::Destination, &NEVER).unwrap());
            (guardian.join().unwrap(), source.join().unwrap())
        });
        if matches!(phase, Phase::Start | Phase::Settle) {
            assert!(matches!(settled, Settled::Started { .. }), "{phase}: {settled:?}");
            moved.unwrap();
            if (settled == Settled::Started { confirmed: false }) {
                // The source was told before the death; its last word went to the dead. The next command would ask nobody.
                assert_eq!(phase, Phase::Settle);
                stage
                    .journals
                    .open(stage.id, Role::Destination)
                    .unwrap()
                    .unwrap()
                    .remove()
                    .unwrap();
            }
            assert_eq!(stage.verify(), Where::Destination, "{phase}");
        } else {
            assert_eq!(
                settled,
                if phase == Phase::Prepare {
                    Settled::Nothing
                } else {
                    Settled::Discarded
                },
                "{phase}"
            );
            assert_ne!(whereabouts(moved), Whereabouts::Undecided, "{phase}");
            assert_eq!(stage.verify(), Where::Source, "{phase}");
        }
    }
}

/// A migration whose link was cut.
struct Cut {
    phase: Phase,
    stage: Stage,
    source: Result<Summary, Failure>,
    receiver: JoinHandle<Result<Received, Failure>>,
    _cable: Arc<Cable>,
}

/// The link is cut at the beginning of this phase of one end, and mended at once; the source has ended then.
fn cut_for_a_moment(stage: Stage, seed: usize, role: Role, phase: Phase) -> Cut {
    let cable = Arc::new(Cable::new(stage.address()));
    let (cut, plug) = (cable.cutter(), Arc::clone(&cable));
    let act = at(phase, move || {
        cut();
        plug.plug();
    });
    let over = |o: &mut SourceOptions| o.destination = cable.address.to_string();
    let seed = seed as u64;
    let (receiver, source) = match role {
        Role::Source => (receive(&stage, (), None), spawn_source(&stage, seed, act, over)),
        Role::Destination => (receive(&stage, act, None), spawn_source(&stage, seed, (), over)),
    };
    Cut {
        phase,
        stage,
        source: source.join().unwrap(),
        receiver,
        _cable: cable,
    }
}

impl Cut {
    /// The source's last word may be lost.
    fn has_moved(self) {
        let phase = self.phase;
        self.source.unwrap();
        self.receiver.join().unwrap().unwrap();
        if let Some(journal) = self
            .stage
            .journals
            .open(self.stage.id, Role::Destination)
            .unwrap()
        {
            assert!(
                matches!(
                    phase,
                    Phase::Release | Phase::Start | Phase::Settle | Phase::Commit
                ),
                "{phase}"
            );
            assert_eq!(journal.record().state, State::Started, "{phase}");
            journal.remove().unwrap();
        }
        assert_eq!(self.stage.verify(), Where::Destination, "{phase}");
    }

    /// Both ends say so. One that had not begun says that it is untouched.
    fn stays(self) {
        let phase = self.phase;
        assert_ne!(whereabouts(self.source), Whereabouts::Undecided, "{phase}");
        assert_eq!(
            whereabouts(self.receiver.join().unwrap()),
            Whereabouts::Source,
            "{phase}"
        );
        assert_eq!(self.stage.verify(), Where::Source, "{phase}");
    }

    /// The offer may have arrived or not, but both agree.
    fn agrees(self) {
        let (source, received) = (self.source, self.receiver.join().unwrap());
        assert_eq!(source.is_ok(), received.is_ok(), "{source:?} {received:?}");
        let expected = if source.is_ok() {
            Where::Destination
        } else {
            Where::Source
        };
        assert_eq!(self.stage.verify(), expected);
    }
}

#[test]
fn the_link_is_cut_for_a_moment_at_each_phase_of_the_source() {
    for (seed, phase) in SOURCE_PHASES.into_iter().enumerate() {
        let mut stage = Stage::new();
        // Where the source has not offered, nobody will ask.
        stage.answer_for = Duration::from_millis(if phase == Phase::Offer { 2000 } else { 300 });
        let cut = cut_for_a_moment(stage, seed, Role::Source, phase);
        match phase {
            // Nothing was connected yet, or everything was said.
            Phase::Check | Phase::Connect | Phase::Release => cut.has_moved(),
            // Refused before anything was built: the destination waits on.
            Phase::Prepare => assert_eq!(whereabouts(cut.source), Whereabouts::Untouched),
            Phase::Offer => cut.agrees(),
            _ => {
                let failure = cut.source.as_ref().unwrap_err();
                assert_eq!(failure.whereabouts, Whereabouts::Source, "{phase}");
                cut.stays();
            }
        }
    }
}

#[test]
fn the_link_is_cut_for_a_moment_at_each_phase_of_the_destination() {
    for (seed, phase) in DESTINATION_PHASES.into_iter().enumerate() {
        let mut stage = Stage::new();
        stage.answer_for = Duration::from_secs(2);
        let cut = cut_for_a_moment(stage, seed, Role::Destination, phase);
        match phase {
            Phase::Prepare => assert_ne!(whereabouts(cut.source), Whereabouts::Undecided),
            Phase::Round | Phase::Build | Phase::Load => cut.stays(),
            Phase::Offer => cut.agrees(),
            _ => cut.has_moved(),
        }
    }
}

/// The link goes after the offer and stays away until long after the controllers have given up: the source stays frozen, is
/// undecided, and the guardians find together again.
#[test]
fn a_link_that_stays_away_leaves_the_source_frozen_until_it_can_ask() {
    let stage = Stage::new();
    let cable = Cable::new(stage.address());
    let receiver = receive(&stage, at(Phase::Commit, cable.cutter()), None);
    let source = spawn_source(&stage, 1, (), |o| {
        o.destination = cable.address.to_string();
        o.ask_for = Duration::from_millis(300);
    });
    assert_eq!(whereabouts(source.join().unwrap()), Whereabouts::Undecided);
    let record = stage.journals.read(stage.id, Role::Source).unwrap().unwrap();
    assert_eq!(record.state, State::Offered);
    {
        let world = look(&stage.world);
        assert!(world.source.held && world.destination.runs());
    }
    cable.plug();
    assert_eq!(stage.guardian(Role::Source, &NEVER).unwrap(), Settled::Moved);
    receiver.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
}

/// The link goes after the answer and stays away for longer than the source's controller waits: its guardian tells the destination
/// when it is back, so that no journal is left.
#[test]
fn a_guardian_goes_on_telling_what_was_decided() {
    let stage = Stage::new();
    let cable = Cable::new(stage.address());
    let receiver = receive(&stage, (), None);
    let source = spawn_source(&stage, 1, at(Phase::Release, cable.cutter()), |o| {
        o.destination = cable.address.to_string();
        o.followed = true;
    });
    source.join().unwrap().unwrap();
    let record = stage.journals.read(stage.id, Role::Source).unwrap().unwrap();
    assert_eq!(record.state, State::Released);
    cable.plug();
    assert_eq!(stage.guardian(Role::Source, &NEVER).unwrap(), Settled::Moved);
    receiver.join().unwrap().unwrap();
    assert_eq!(stage.verify(), Where::Destination);
}

/// The link goes before the offer and stays away for longer than the destination's controller answers: its guardian tells the
/// source, which is frozen, that it was given up.
#[test]
fn a_guardian_goes_on_answering_that_it_was_given_up() {
    let mut stage = Stage::new();
    stage.answer_for = Duration::from_millis(300);
    let cable = Cable::new(stage.address());
    let receiver = receive(&stage, (), None);
    let source = spawn_source(&stage, 1, at(Phase::Offer, cable.cutter()), |o| {
        o.destination = cable.address.to_string();
        o.ask_for = Duration::from_millis(300);
    });
    assert_eq!(whereabouts(source.join().unwrap()), Whereabouts::Undecided);
    assert_eq!(whereabouts(receiver.join().unwrap()), Whereabouts::Source);
    cable.plug();
    stage.answer_for = Duration::from_secs(20);
    thread::scope(|scope| {
        let destination = scope.spawn(|| stage.guardian(Role::Destination, &NEVER).unwrap());
        assert_eq!(stage.guardian(Role::Source, &NEVER).unwrap(), Settled::Stays);
        assert_eq!(destination.join().unwrap(), Settled::Discarded);
    });
    assert_eq!(stage.verify(), Where::Source);
}

/// The link goes before the offer and stays away until everybody at the destination has gone home and other commands have run there:
/// whoever listens next knows the migration and its key, though its own is another.
#[test]
fn whoever_listens_later_answers_that_it_was_given_up() {
    let mut stage = Stage::new();
    stage.answer_for = Duration::from_millis(100);
    let cable = Cable::new(stage.address());
    let receiver = receive(&stage, (), None);
    let source = spawn_source(&stage, 1, at(Phase::Offer, cable.cutter()), |o| {
        o.destination = cable.address.to_string();
        o.ask_for = Duration::from_millis(100);
    });
    assert_eq!(whereabouts(source.join().unwrap()), Whereabouts::Undecided);
    assert_eq!(whereabouts(receiver.join().unwrap()), Whereabouts::Source);
    let recover = ImaginedRecover(Arc::clone(&stage.world));
    let mut options = GuardianOptions {
        link_timeout: Duration::from_millis(100),
        ask_for: Some(Duration::ZERO),
        force_here: false,
        follow: true,
        listener: None,
        answer_for: Duration::ZERO,
        cancel: &NEVER,
    };
    let stale = recover_stale(&stage.journals, &recover, &options).unwrap();
    assert!(matches!(stale[..], [(_, Ok(Settled::Undecided))]), "{stale:?}");
    stage.is_kept_at_destination();
    stage.key = whimbrel_wire::Key::random().unwrap();
    let next = receive(&stage, (), None);
    cable.plug();
    options.link_timeout = Duration::from_secs(5);
    options.ask_for = Some(Duration::from_secs(20));
    options.answer_for = Duration::from_secs(20);
    assert_eq!(
        take_over(&stage.journals, stage.id, Role::Source, &recover, &options).unwrap(),
        Settled::Stays
    );
    assert_eq!(stage.verify(), Where::Source);
    assert!(!next.is_finished());
}

/// Everybody at the destination has gone home: nobody is left to be told, however long the guardian would wait.
#[test]
fn a_guardian_does_not_wait_where_nobody_listens() {
    let mut stage = Stage::new();
    stage.answer_for = Duration::from_secs(3600);
    let _workload = ImaginedWorkload::new(&stage.world, 1);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let record = Record {
        id: stage.id,
        role: Role::Source,
        state: State::Stayed,
        key: stage.key.clone(),
        peer: nobody.to_string(),
        workload: "imagined".into(),
        resources: Vec::new(),
        pid: 0,
        residual: None,
        missing_pages: None,
        listen: None,
    };
    drop(stage.journals.create(record).unwrap());
    assert_eq!(stage.guardian(Role::Source, &NEVER).unwrap(), Settled::Stays);
    assert_eq!(stage.verify(), Where::Source);
}

/// The destination's host is gone for good, and the source is frozen behind an offer.
#[test]
fn the_operator_may_take_it_back_by_force() {
    let stage = Stage::new();
    let _workload = ImaginedWorkload::new(&stage.world, 1);
    look(&stage.world).source.held = true;
    let record = Record {
        id: stage.id,
        role: Role::Source,
        state: State::Offered,
        key: stage.key.clone(),
        peer: "127.0.0.1:1".into(),
        workload: "imagined".into(),
        resources: Vec::new(),
        pid: 0,
        residual: None,
        missing_pages: None,
        listen: None,
    };
    drop(stage.journals.create(record).unwrap());
    let recover = ImaginedRecover(Arc::clone(&stage.world));
    let mut options = GuardianOptions {
        link_timeout: Duration::from_millis(100),
        ask_for: Some(Duration::from_millis(200)),
        force_here: false,
        follow: true,
        listener: None,
        answer_for: Duration::ZERO,
        cancel: &NEVER,
    };
    let stale = recover_stale(&stage.journals, &recover, &options).unwrap();
    assert!(matches!(stale[..], [(_, Ok(Settled::Undecided))]), "{stale:?}");
    assert!(!look(&stage.world).source.runs(), "it must stay frozen");
    options.force_here = true;
    assert_eq!(
        take_over(&stage.journals, stage.id, Role::Source, &recover, &options).unwrap(),
        Settled::Stays
    );
    assert_eq!(stage.verify(), Where::Source);
}

#[test]
fn both_controllers_are_killed_after_the_commit() {
    let mut stage = Stage::new();
    stage.link_timeout = Duration::from_secs(1);
    let receiver = receive(&stage, at(Phase::Start, kill_me), None);
    let source = spawn_source(&stage, 3, (), |o| o.ask_for = Duration::ZERO);
    assert!(receiver.join().is_err());
    assert_eq!(whereabouts(source.join().unwrap()), Whereabouts::Undecided);
    source_died(&stage.world);
    destination_died(&stage.world);
    assert!(!look(&stage.world).source.runs() && !look(&stage.world).destination.runs());
    thread::scope(|scope| {
        let destination = scope.spawn(|| stage.guardian(Role::Destination, &NEVER).unwrap());
        assert_eq!(stage.guardian(Role::Source, &NEVER).unwrap(), Settled::Moved);
        assert_eq!(destination.join().unwrap(), Settled::Started { confirmed: true });
    });
    assert_eq!(stage.verify(), Where::Destination);
}

/// The guardian of the destination is dead as well: the next `receive` finds the journal and answers.
#[test]
fn the_next_receive_answers_for_the_dead() {
    for (phase, expected) in [(Phase::Offer, Where::Source), (Phase::Start, Where::Destination)] {
        let stage = Stage::new();
        let receiver = receive(&stage, at(phase, kill_me), None);
        let source = spawn_source(&stage, 3, (), |o| o.link_timeout = Duration::from_secs(2));
        assert!(receiver.join().is_err());
        destination_died(&stage.world);
        let next = receive(&stage, (), None);
        let result = source.join().unwrap();
        assert_eq!(
            result.is_ok(),
            expected == Where::Destination,
            "{phase}: {result:?}"
        );
        if expected == Where::Source
            && stage
                .journals
                .read(stage.id, Role::Destination)
                .unwrap()
                .is_some()
        {
            // The source had not offered, so it did not ask.
            assert_eq!(
                stage.guardian(Role::Destination, &AtomicBool::new(true)).unwrap(),
                Settled::Discarded
            );
            stage.is_kept_at_destination();
            stage.journals.forget_fenced(Duration::ZERO).unwrap();
        }
        assert_eq!(stage.verify(), expected, "{phase}");
        assert!(!next.is_finished());
    }
}
