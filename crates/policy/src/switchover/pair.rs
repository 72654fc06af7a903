//! Both ends, their journals, what is on the wire, and everything that can go wrong: every reachable state is visited.
//!
//! At each step any message may vanish or overtake another, either end may take the link for lost, any step may fail
//! without effect, and either process may die before its step, or after it and before it knows. Who takes over may die, too.

use std::collections::{HashMap, HashSet, VecDeque};
use std::vec;
use std::vec::Vec;
use std::{println, string::String};

use super::*;

/// Messages in flight in one direction; more are lost.
const WIRE_MAX: usize = 3;

/// On the way to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ToDestination {
    /// The request, with which the destination's part begins.
    Spec,
    /// The state and the last pages.
    State,
    Says(Message),
}

/// Whoever acts at one end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Process<M> {
    /// `applied`: its step is done, but it does not know yet.
    Alive { machine: M, applied: bool },
    /// Killed. The guardian or the next command will take over.
    Dead,
    /// Nothing is left to be done.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Workload {
    Runs,
    /// Stopped by its tracer: runs on when that dies.
    Stopped,
    /// Held by something that outlives every process.
    Held,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Replica {
    None,
    /// Under construction: ends with its tracer.
    Shell,
    /// Complete and held.
    Loaded,
    Runs,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pair {
    source: Process<SourceSwitch>,
    source_journal: Option<SourceJournal>,
    workload: Workload,
    destination: Process<DestinationSwitch>,
    destination_journal: Option<DestinationJournal>,
    replica: Replica,
    to_destination: Vec<ToDestination>,
    to_source: Vec<Message>,
    /// The destination has taken the request in; the state is not sent before.
    accepted: bool,
    /// A step that cannot be done.
    impossible: Option<&'static str>,
    /// The operator has spoken.
    forced: bool,
    /// The source has stopped waiting for the destination to forget.
    gave_up: bool,
}

/// What may happen beside crashes and losses.
#[derive(Clone, Copy, Debug, Default)]
struct World {
    operator: bool,
    impatience: bool,
    broken: Option<Broken>,
}

/// Mistakes that the walk must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// The destination starts, then journals.
    StartBeforeJournal,
    /// The source lets it run when the answer does not come.
    ThawOnTimeout,
    /// The source offers without having journalled that.
    OfferUnjournalled,
    /// The source offers what only its own process holds.
    NoHold,
    /// The destination forgets STARTED before the source confirms.
    StartedForgotten,
    /// The destination forgets PREPARED and FENCED by itself, and answers nobody after that.
    SilentWithoutJournal,
    /// A destination that takes over from PREPARED takes an offer.
    PromiseInherited,
    /// The source asks only once.
    AsksOnce,
    /// The destination's last word is not waited for.
    NoAcknowledgement,
}

/// A step: what follows, and whether it only happens when something goes wrong.
type Step = (Pair, bool);

const GOOD: bool = true;
const BAD: bool = false;

impl Pair {
    fn begin() -> Self {
        Pair {
            source: Process::Alive {
                machine: SourceSwitch::begin(),
                applied: false,
            },
            source_journal: Some(SourceJournal::Active),
            workload: Workload::Runs,
            destination: Process::Alive {
                machine: DestinationSwitch::recover(None),
                applied: false,
            },
            destination_journal: None,
            replica: Replica::None,
            to_destination: vec![ToDestination::Spec],
            to_source: vec![],
            accepted: false,
            impossible: None,
            forced: false,
            gave_up: false,
        }
    }

    /// A copy in which the source's machine has taken `input` in.
    fn source_takes(&self, input: SourceInput) -> Pair {
        let mut next = self.clone();
        if let Process::Alive { machine, applied } = &mut next.source {
            machine.handle(input).unwrap();
            *machine = machine.clone().without_attempts();
            *applied = false;
        }
        next
    }

    fn destination_takes(&self, input: DestinationInput) -> Pair {
        let mut next = self.clone();
        if let Process::Alive { machine, applied } = &mut next.destination {
            machine.handle(input).unwrap();
            *machine = machine.clone().without_attempts();
            *applied = false;
        }
        next
    }

    fn steps(&self, world: &World) -> Vec<Step> {
        let mut steps = Vec::new();
        self.source_steps(world, &mut steps);
        self.destination_steps(world, &mut steps);
        for at in 0..self.to_destination.len() {
            let mut next = self.clone();
            next.to_destination.remove(at);
            steps.push((next, BAD));
        }
        for at in 0..self.to_source.len() {
            let mut next = self.clone();
            next.to_source.remove(at);
            steps.push((next, BAD));
        }
        steps
    }

    fn source_steps(&self, world: &World, steps: &mut Vec<Step>) {
        match &self.source {
            Process::Gone => {}
            Process::Dead => steps.push((self.source_taken_over(), GOOD)),
            Process::Alive { machine, applied } => {
                steps.push((self.source_dies(), BAD));
                self.source_acts(world, machine, *applied, steps);
                if world.operator && machine.is_undecided() {
                    let mut next = self.source_takes(SourceInput::ForceHere);
                    next.forced = true;
                    steps.push((next, BAD));
                }
                let waits = !matches!(machine.poll(), SourceAction::End(_));
                if world.impatience && machine.is_settled() && waits {
                    let mut next = self.source_takes(SourceInput::GiveUp);
                    next.gave_up = true;
                    steps.push((next, BAD));
                }
            }
        }
    }

    fn source_dies(&self) -> Pair {
        let mut next = self.clone();
        next.source = Process::Dead;
        if next.workload == Workload::Stopped {
            next.workload = Workload::Runs;
        }
        next.to_source.clear();
        next
    }

    fn source_taken_over(&self) -> Pair {
        let mut next = self.clone();
        let machine = SourceSwitch::recover(next.source_journal);
        next.source = Process::Alive {
            machine,
            applied: false,
        };
        next
    }

    fn source_acts(&self, world: &World, machine: &SourceSwitch, applied: bool, steps: &mut Vec<Step>) {
        match machine.poll() {
            SourceAction::Listen => self.source_listens(world, machine, steps),
            SourceAction::Pause(_) => steps.push((self.source_takes(SourceInput::Done), GOOD)),
            SourceAction::Connect => {
                let mut next = self.source_takes(SourceInput::Done);
                // What was said on the connection before is never read.
                next.to_source.clear();
                steps.push((next, GOOD));
                steps.push((self.source_takes(SourceInput::Failed), BAD));
            }
            SourceAction::Send(message) => {
                let mut next = self.source_takes(SourceInput::Done);
                next.tell_destination(ToDestination::Says(message));
                steps.push((next, GOOD));
                steps.push((self.source_takes(SourceInput::Failed), BAD));
            }
            SourceAction::End(_) => {
                let mut next = self.clone();
                next.source = Process::Gone;
                next.to_source.clear();
                steps.push((next, GOOD));
            }
            _ if applied => steps.push((self.source_takes(SourceInput::Done), GOOD)),
            action => {
                steps.push((self.source_takes(SourceInput::Failed), BAD));
                let mut next = self.clone();
                next.apply_source(world, action);
                if let Process::Alive { applied, .. } = &mut next.source {
                    *applied = true;
                }
                steps.push((next, GOOD));
            }
        }
    }

    fn source_listens(&self, world: &World, machine: &SourceSwitch, steps: &mut Vec<Step>) {
        if *machine == SourceSwitch::begin() && self.accepted {
            let mut next = self.source_takes(SourceInput::StateSent);
            next.workload = Workload::Stopped;
            next.tell_destination(ToDestination::State);
            steps.push((next, GOOD));
        }
        let unknown = [SourceInput::Unknown]
            .into_iter()
            .filter(|_| self.is_unknown_there());
        for input in [SourceInput::LinkLost, SourceInput::Abandon]
            .into_iter()
            .chain(unknown)
        {
            let good = if input == SourceInput::LinkLost { GOOD } else { BAD };
            let mut next = self.source_takes(input);
            if machine.is_undecided() && input == SourceInput::LinkLost {
                match world.broken {
                    Some(Broken::ThawOnTimeout) => next.workload = Workload::Runs,
                    Some(Broken::AsksOnce) => next.source = Process::Gone,
                    _ => {}
                }
            }
            steps.push((next, good));
        }
        for (at, &message) in self.to_source.iter().enumerate() {
            let mut next = self.source_takes(SourceInput::Message(message));
            next.to_source.remove(at);
            steps.push((next, GOOD));
        }
    }

    fn apply_source(&mut self, world: &World, action: SourceAction) {
        match action {
            SourceAction::Hold if world.broken == Some(Broken::NoHold) => {}
            SourceAction::Hold => self.workload = Workload::Held,
            SourceAction::Journal(SourceJournal::Offered)
                if world.broken == Some(Broken::OfferUnjournalled) => {}
            SourceAction::Journal(journal) => self.source_journal = Some(journal),
            SourceAction::Release(Outcome::Moved) => self.workload = Workload::Gone,
            SourceAction::Release(Outcome::Stays) => {
                if self.workload == Workload::Gone {
                    self.impossible = Some("nothing is left that could run on");
                }
                self.workload = Workload::Runs;
            }
            SourceAction::RemoveJournal => self.source_journal = None,
            other => panic!("{other:?} has no effect of its own"),
        }
        if world.broken == Some(Broken::NoAcknowledgement) && matches!(action, SourceAction::Release(_)) {
            self.source_journal = None;
        }
    }

    fn tell_destination(&mut self, message: ToDestination) {
        if self.to_destination.len() < WIRE_MAX {
            self.to_destination.push(message);
        }
    }

    fn destination_steps(&self, world: &World, steps: &mut Vec<Step>) {
        match &self.destination {
            Process::Gone => {}
            Process::Dead => steps.push((self.destination_taken_over(world), GOOD)),
            Process::Alive { machine, applied } => {
                steps.push((self.destination_dies(), BAD));
                self.destination_acts(world, machine, *applied, steps);
            }
        }
    }

    fn destination_dies(&self) -> Pair {
        let mut next = self.clone();
        next.destination = Process::Dead;
        if next.replica == Replica::Shell {
            next.replica = Replica::None;
        }
        next
    }

    fn destination_taken_over(&self, world: &World) -> Pair {
        let mut next = self.clone();
        let mut machine = DestinationSwitch::recover(next.destination_journal);
        if world.broken == Some(Broken::PromiseInherited)
            && next.destination_journal == Some(DestinationJournal::Prepared)
        {
            machine = DestinationSwitch::begin();
            for input in [
                DestinationInput::Complete,
                DestinationInput::Done,
                DestinationInput::Done,
            ] {
                machine.handle(input).unwrap();
            }
        }
        next.destination = Process::Alive {
            machine,
            applied: false,
        };
        next
    }

    fn destination_acts(
        &self,
        world: &World,
        machine: &DestinationSwitch,
        applied: bool,
        steps: &mut Vec<Step>,
    ) {
        match machine.poll() {
            DestinationAction::Listen => self.destination_listens(world, machine, steps),
            DestinationAction::Pause(_) => steps.push((self.destination_takes(DestinationInput::Done), GOOD)),
            DestinationAction::Send(message) => {
                let mut next = self.destination_takes(DestinationInput::Done);
                let heard = matches!(next.source, Process::Alive { .. });
                if heard && next.to_source.len() < WIRE_MAX {
                    next.to_source.push(message);
                }
                steps.push((next, GOOD));
                steps.push((self.destination_takes(DestinationInput::Failed), BAD));
            }
            DestinationAction::End(_) => {
                let mut next = self.clone();
                next.destination = Process::Alive {
                    machine: DestinationSwitch::recover(None),
                    applied: false,
                };
                steps.push((next, GOOD));
            }
            _ if applied => steps.push((self.destination_takes(DestinationInput::Done), GOOD)),
            action => {
                steps.push((self.destination_takes(DestinationInput::Failed), BAD));
                let mut next = self.clone();
                next.apply_destination(world, action);
                if let Process::Alive { applied, .. } = &mut next.destination {
                    *applied = true;
                }
                steps.push((next, GOOD));
                if world.broken == Some(Broken::StartBeforeJournal)
                    && action == DestinationAction::Journal(DestinationJournal::Started)
                {
                    let mut early = self.clone();
                    early.replica = Replica::Runs;
                    steps.push((early, GOOD));
                }
            }
        }
    }

    fn destination_listens(&self, world: &World, machine: &DestinationSwitch, steps: &mut Vec<Step>) {
        for input in [DestinationInput::LinkLost, DestinationInput::Abandon] {
            let good = if input == DestinationInput::LinkLost {
                GOOD
            } else {
                BAD
            };
            steps.push((self.destination_takes(input), good));
        }
        for (at, &message) in self.to_destination.iter().enumerate() {
            let mut heard = self.clone();
            heard.to_destination.remove(at);
            match message {
                ToDestination::Spec if *machine == DestinationSwitch::recover(None) => {
                    heard.accepted = true;
                    heard.destination_journal = Some(DestinationJournal::Active);
                    heard.replica = Replica::Shell;
                    heard.destination = Process::Alive {
                        machine: DestinationSwitch::begin(),
                        applied: false,
                    };
                }
                ToDestination::State if *machine == DestinationSwitch::begin() => {
                    heard = heard.destination_takes(DestinationInput::Complete);
                }
                ToDestination::Spec | ToDestination::State => {}
                ToDestination::Says(_)
                    if world.broken == Some(Broken::SilentWithoutJournal)
                        && self.destination_journal.is_none() => {}
                ToDestination::Says(message) => {
                    heard = heard.destination_takes(DestinationInput::Message(message));
                }
            }
            steps.push((heard, GOOD));
        }
    }

    fn apply_destination(&mut self, world: &World, action: DestinationAction) {
        match action {
            DestinationAction::Load => self.replica = Replica::Loaded,
            DestinationAction::Journal(DestinationJournal::Fenced)
                if world.broken == Some(Broken::SilentWithoutJournal) =>
            {
                self.destination_journal = None;
            }
            DestinationAction::Journal(journal) => self.destination_journal = Some(journal),
            DestinationAction::Start => {
                if !matches!(self.replica, Replica::Loaded | Replica::Runs) {
                    self.impossible = Some("there is nothing to start");
                }
                self.replica = Replica::Runs;
                if world.broken == Some(Broken::StartedForgotten) {
                    self.destination_journal = None;
                }
            }
            DestinationAction::Discard => self.replica = Replica::None,
            DestinationAction::RemoveJournal => self.destination_journal = None,
            other => panic!("{other:?} has no effect of its own"),
        }
    }

    /// What must never be, in any state.
    fn violation(&self) -> Option<&'static str> {
        let runs_here = self.workload == Workload::Runs;
        let runs_there = self.replica == Replica::Runs;
        if self.impossible.is_some() {
            self.impossible
        } else if runs_here && runs_there && !self.forced {
            Some("it runs twice")
        } else if self.workload == Workload::Gone && !runs_there {
            Some("the copy was ended before the other ran")
        } else {
            None
        }
    }

    /// Somebody is there at the destination, and has no record.
    fn is_unknown_there(&self) -> bool {
        self.destination
            == Process::Alive {
                machine: DestinationSwitch::recover(None),
                applied: false,
            }
    }

    /// Everything is over, and nothing is left behind.
    fn is_end(&self) -> bool {
        let silent = self.to_destination.is_empty() && self.to_source.is_empty();
        let over = self.source == Process::Gone && self.source_journal.is_none() && silent;
        let left = self.destination_journal.is_some() || !self.is_unknown_there();
        let running = u8::from(self.workload == Workload::Runs) + u8::from(self.replica == Replica::Runs);
        let half_made = matches!(self.workload, Workload::Held | Workload::Stopped)
            || matches!(self.replica, Replica::Shell | Replica::Loaded);
        over && (!left || self.gave_up) && !half_made && (running == 1 || self.forced && running == 2)
    }
}

/// What a walk through every reachable state has found.
struct Walk {
    states: usize,
    steps: usize,
    ends: usize,
    /// The shortest way to a state that must not be.
    violation: Option<(&'static str, Vec<Pair>)>,
    /// A state from which no end can be reached by steps in which nothing more goes wrong.
    stuck: Option<Pair>,
}

impl Walk {
    fn is_clean(&self) -> bool {
        self.violation.is_none() && self.stuck.is_none()
    }
}

fn walk(world: &World) -> Walk {
    let mut number: HashMap<Pair, usize> = HashMap::new();
    let mut states: Vec<(Pair, usize)> = vec![(Pair::begin(), 0)];
    let mut good_into: Vec<Vec<usize>> = vec![vec![]];
    let mut todo = VecDeque::from([0]);
    let mut steps = 0;
    number.insert(Pair::begin(), 0);
    while let Some(at) = todo.pop_front() {
        let pair = states[at].0.clone();
        if let Some(what) = pair.violation() {
            let violation = Some((what, way_to(&states, at)));
            return Walk {
                states: states.len(),
                steps,
                ends: 0,
                violation,
                stuck: None,
            };
        }
        for (next, good) in pair.steps(world) {
            steps += 1;
            let id = *number.entry(next.clone()).or_insert_with(|| {
                states.push((next, at));
                good_into.push(vec![]);
                todo.push_back(states.len() - 1);
                states.len() - 1
            });
            if good {
                good_into[id].push(at);
            }
        }
    }
    let ends: Vec<usize> = (0..states.len()).filter(|&id| states[id].0.is_end()).collect();
    let saved = backwards(&ends, &good_into);
    let stuck = (0..states.len())
        .find(|id| !saved.contains(id))
        .map(|id| states[id].0.clone());
    Walk {
        states: states.len(),
        steps,
        ends: ends.len(),
        violation: None,
        stuck,
    }
}

fn way_to(states: &[(Pair, usize)], mut at: usize) -> Vec<Pair> {
    let mut way = vec![states[at].0.clone()];
    while at != 0 {
        at = states[at].1;
        way.push(states[at].0.clone());
    }
    way.reverse();
    way
}

/// Every state from which one of `ends` can be reached.
fn backwards(ends: &[usize], into: &[Vec<usize>]) -> HashSet<usize> {
    let mut seen: HashSet<usize> = ends.iter().copied().collect();
    let mut todo = ends.to_vec();
    while let Some(at) = todo.pop() {
        todo.extend(into[at].iter().filter(|&&before| seen.insert(before)));
    }
    seen
}

fn check(name: &str, world: World) {
    let walk = walk(&world);
    println!(
        "{name}: {} states, {} steps, {} ends",
        walk.states, walk.steps, walk.ends
    );
    if let Some((what, way)) = &walk.violation {
        let way: Vec<String> = way.iter().map(|pair| std::format!("{pair:?}")).collect();
        panic!("{what}:\n{}", way.join("\n"));
    }
    assert!(
        walk.stuck.is_none(),
        "no end can be reached from {:?}",
        walk.stuck
    );
    assert!(
        walk.ends > 0 && walk.states > 1000,
        "the walk has seen too little"
    );
}

#[test]
fn it_never_runs_twice_and_always_ends_with_one_and_nothing_left() {
    check("losses and deaths", World::default());
}

#[test]
fn the_operators_word_ends_it_at_the_source() {
    check(
        "with an operator",
        World {
            operator: true,
            ..World::default()
        },
    );
}

#[test]
fn who_gives_up_waiting_leaves_only_a_record() {
    check(
        "with impatience",
        World {
            impatience: true,
            ..World::default()
        },
    );
}

/// A walk in a world with a mistake, which must be found.
fn catches(broken: Broken) -> Walk {
    let walk = walk(&World {
        broken: Some(broken),
        ..World::default()
    });
    assert!(
        !walk.is_clean(),
        "{broken:?} was not caught in {} states",
        walk.states
    );
    walk
}

#[test]
fn mistakes_that_would_run_it_twice_are_caught() {
    for broken in [
        Broken::StartBeforeJournal,
        Broken::ThawOnTimeout,
        Broken::OfferUnjournalled,
        Broken::NoHold,
        Broken::StartedForgotten,
        Broken::PromiseInherited,
    ] {
        let found = catches(broken).violation.map(|(what, way)| (what, way.len()));
        println!("{broken:?}: {found:?}");
        assert!(found.is_some(), "{broken:?}");
    }
}

#[test]
fn mistakes_that_would_leave_it_frozen_or_leave_things_behind_are_caught() {
    for broken in [
        Broken::SilentWithoutJournal,
        Broken::AsksOnce,
        Broken::NoAcknowledgement,
    ] {
        assert!(catches(broken).stuck.is_some(), "{broken:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut source = SourceSwitch::begin();
    let mut destination = DestinationSwitch::begin();
    for input in [SourceInput::Done, SourceInput::Failed] {
        let error = source.handle(input).unwrap_err();
        assert_eq!((error.end, error.state), ("source", "the rounds"));
    }
    for input in [DestinationInput::Done, DestinationInput::Failed] {
        assert_eq!(destination.handle(input).unwrap_err().end, "destination");
    }
    assert_eq!(
        (source, destination),
        (SourceSwitch::begin(), DestinationSwitch::begin())
    );
}
