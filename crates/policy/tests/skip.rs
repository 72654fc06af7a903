//! Assisted migrations of an imagined guest in virtual time: applications that tell the truth, late, or nothing, on
//! frames that change hands. Whatever is not finally skipped arrives, and what is skipped does not travel.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::{any, prop_assert_eq, proptest, ProptestConfig};
use whimbrel_policy::skip::{
    facts, ApplicationId, Assist, AssistEvent, AssistLimits, AssistOrder, AssistOutcome, Claim,
};
use whimbrel_policy::{
    Event, Hints, Limits, Migration, Order, PageRun, PreCopy, Scan, Sent, SpaceId, StopCopy, Strategy,
};

const APPLICATIONS: u64 = 3;
/// Each application has so many frames; as many belong to nobody who assists.
const FRAMES_EACH: u64 = 40;
const FRAMES: u64 = FRAMES_EACH * (APPLICATIONS + 1);
const LIMITS: AssistLimits = AssistLimits {
    answer_max: Duration::from_millis(20),
    prepare_max: Duration::from_millis(50),
};

/// xorshift64*, so that a failure repeats from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % end.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

fn run_of(frame: u64) -> PageRun {
    PageRun {
        space: SpaceId(0),
        first: frame,
        count: 1,
    }
}

fn frames_of(runs: &[PageRun]) -> impl Iterator<Item = u64> + '_ {
    runs.iter().flat_map(|run| run.first..run.first + run.count)
}

#[derive(Default)]
struct Application {
    owned: BTreeSet<u64>,
    /// What it really does not need, at this moment.
    areas: BTreeSet<u64>,
    /// Its final word was given, and taken in time.
    is_final: bool,
}

impl Application {
    fn claim(&self) -> Claim {
        Claim {
            areas: self.areas.iter().copied().map(run_of).collect(),
            owned: self.owned.iter().copied().map(run_of).collect(),
        }
    }
}

struct Guest {
    random: Random,
    content: BTreeMap<u64, u64>,
    written: BTreeSet<u64>,
    applications: Vec<Application>,
    next_content: u64,
    /// Of 100 answers, how many never come.
    silent_percent: u64,
}

impl Guest {
    fn new(seed: u64, silent_percent: u64) -> Self {
        let mut guest = Guest {
            random: Random(seed | 1),
            content: BTreeMap::new(),
            written: BTreeSet::new(),
            applications: Vec::new(),
            next_content: 0,
            silent_percent,
        };
        (0..FRAMES).for_each(|frame| guest.write(frame));
        for id in 0..APPLICATIONS {
            let owned: BTreeSet<u64> = (id * FRAMES_EACH..(id + 1) * FRAMES_EACH).collect();
            let areas = owned
                .iter()
                .copied()
                .filter(|frame| frame % FRAMES_EACH < 20)
                .collect();
            guest.applications.push(Application {
                owned,
                areas,
                is_final: false,
            });
        }
        guest
    }

    fn write(&mut self, frame: u64) {
        self.next_content += 1;
        self.content.insert(frame, self.next_content);
        self.written.insert(frame);
    }

    /// The guest's kernel swaps the frames of two pages, whoever owns them, and tells nobody.
    fn compact(&mut self) {
        let (a, b) = (self.random.below(FRAMES), self.random.below(FRAMES));
        let swapped = |frame: u64| match frame {
            _ if frame == a => b,
            _ if frame == b => a,
            other => other,
        };
        for application in &mut self.applications {
            for frames in [&mut application.owned, &mut application.areas] {
                *frames = frames.iter().copied().map(swapped).collect();
            }
        }
        self.write(a);
        self.write(b);
    }

    fn live(&mut self, assist: &mut Assist, now: Duration) {
        for _ in 0..20 {
            let who = self.random.below(APPLICATIONS) as usize;
            let frame = self.random.below(FRAMES);
            match self.random.below(30) {
                0 => self.compact(),
                1 if self.applications[who].owned.contains(&frame) => {
                    self.applications[who].areas.insert(frame);
                }
                2..=4 if !self.applications[who].is_final => self.shrink(who, frame, assist, now),
                5 => {
                    let application = ApplicationId(who as u32);
                    let claim = self.applications[who].claim();
                    assist.handle(now, AssistEvent::Areas { application, claim });
                }
                _ => self.write(frame),
            }
        }
    }

    fn shrink(&mut self, who: usize, frame: u64, assist: &mut Assist, now: Duration) {
        if !self.applications[who].areas.remove(&frame) {
            return;
        }
        let application = ApplicationId(who as u32);
        let runs = vec![run_of(frame)];
        assist.handle(now, AssistEvent::Shrunk { application, runs });
        self.write(frame);
    }

    fn scan(&mut self, frozen: bool) -> Scan {
        let written = std::mem::take(&mut self.written);
        Scan {
            written: written.into_iter().map(run_of).collect(),
            present: frozen.then(|| self.content.keys().copied().map(run_of).collect()),
            ..Scan::default()
        }
    }
}

/// Carries the orders of both machines out.
struct World {
    guest: Guest,
    assist: Assist,
    migration: Migration,
    destination: BTreeMap<u64, u64>,
    now: Duration,
    /// How often each frame travelled.
    sends: BTreeMap<u64, u32>,
    told: u64,
    /// The guest does something by itself.
    lively: bool,
}

impl World {
    fn new(guest: Guest, strategy: Box<dyn Strategy>, lively: bool) -> Self {
        let applications: Vec<ApplicationId> = (0..APPLICATIONS as u32).map(ApplicationId).collect();
        let hints = Hints {
            fixed_cost: Duration::from_secs(1),
            ..Hints::default()
        };
        let limits = Limits {
            rounds_max: 6,
            ..Limits::default()
        };
        World {
            guest,
            assist: Assist::new(LIMITS, &applications),
            migration: Migration::new(strategy, limits, hints),
            destination: BTreeMap::new(),
            now: Duration::ZERO,
            sends: BTreeMap::new(),
            told: 0,
            lively,
        }
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            match self.migration.poll(self.now) {
                Order::HandOver => {
                    let ended = AssistEvent::Ended(AssistOutcome::Resumed);
                    self.assist.handle(self.now, ended);
                    self.talk();
                    return;
                }
                Order::Freeze => self.freeze(),
                order => {
                    self.talk();
                    self.obey(order);
                }
            }
        }
        panic!("it does not end");
    }

    /// Carries out what the assistance orders, until there is nothing more to do at this moment.
    fn talk(&mut self) {
        loop {
            match self.assist.poll(self.now) {
                AssistOrder::Ask { application } => self.answer(application, false),
                AssistOrder::Prepare { application } => self.answer(application, true),
                AssistOrder::Tell { .. } => self.told += 1,
                AssistOrder::Mask { runs } => {
                    let facts = facts(runs, 0);
                    self.migration.handle(self.now, Event::Facts(facts)).unwrap();
                }
                AssistOrder::Unmask { runs } => {
                    self.migration.handle(self.now, Event::Forgotten(runs)).unwrap();
                }
                AssistOrder::Wait { until } => self.now = until,
                AssistOrder::Listen | AssistOrder::Pause | AssistOrder::End => return,
            }
        }
    }

    fn answer(&mut self, application: ApplicationId, last: bool) {
        let silent = self.guest.silent_percent;
        if self.guest.random.chance(silent) {
            return;
        }
        let who = &mut self.guest.applications[application.0 as usize];
        let claim = who.claim();
        let event = match last {
            true => AssistEvent::Final { application, claim },
            false => AssistEvent::Areas { application, claim },
        };
        who.is_final = last;
        self.assist.handle(self.now, event);
    }

    fn freeze(&mut self) {
        self.assist.handle(self.now, AssistEvent::Suspending);
        self.talk();
        assert_eq!(self.assist.poll(self.now), AssistOrder::Pause);
        // Between the final answers and the pause the guest goes on; then the areas are walked once more.
        if self.lively {
            self.guest.live(&mut self.assist, self.now);
        }
        for (id, who) in self.guest.applications.iter().enumerate() {
            let application = ApplicationId(id as u32);
            let claim = who.claim();
            self.assist
                .handle(self.now, AssistEvent::Areas { application, claim });
        }
        self.migration.handle(self.now, Event::Frozen).unwrap();
    }

    fn obey(&mut self, order: Order) {
        self.now += Duration::from_millis(1);
        let event = match order {
            Order::Scan => {
                if self.lively {
                    self.guest.live(&mut self.assist, self.now);
                }
                Event::Scanned(self.guest.scan(false))
            }
            Order::Send { runs, .. } => self.send(&runs),
            Order::Capture => Event::Captured { state_bytes: 0 },
            Order::ScanLast => {
                let mut scan = self.guest.scan(true);
                self.assist.final_scan(&mut scan).unwrap();
                Event::Scanned(scan)
            }
            Order::Drop { runs } => {
                let dropped: BTreeSet<u64> = frames_of(&runs).collect();
                self.destination.retain(|frame, _| !dropped.contains(frame));
                return;
            }
            other => panic!("not expected: {other:?}"),
        };
        self.migration.handle(self.now, event).unwrap();
    }

    fn send(&mut self, runs: &[PageRun]) -> Event {
        for frame in frames_of(runs) {
            self.destination.insert(frame, self.guest.content[&frame]);
            *self.sends.entry(frame).or_default() += 1;
        }
        Event::Sent(Sent::default())
    }

    /// Frames that somebody needs and that are not the same at both ends.
    fn missing(&self) -> Vec<u64> {
        let finals = self.guest.applications.iter().filter(|who| who.is_final);
        let spared: BTreeSet<u64> = finals.flat_map(|who| who.areas.iter().copied()).collect();
        let needed = (0..FRAMES).filter(|frame| !spared.contains(frame));
        needed
            .filter(|frame| self.destination.get(frame) != self.guest.content.get(frame))
            .collect()
    }
}

#[test]
fn what_stays_skipped_never_travels_and_everything_else_does() {
    for strategy in [
        Box::new(PreCopy::default()) as Box<dyn Strategy>,
        Box::new(StopCopy),
    ] {
        let mut world = World::new(Guest::new(1, 0), strategy, false);
        world.run();
        assert_eq!(world.missing(), []);
        let travelled: Vec<u64> = world.sends.keys().copied().collect();
        let needed = |frame: &u64| *frame >= FRAMES_EACH * APPLICATIONS || frame % FRAMES_EACH >= 20;
        assert_eq!(travelled, (0..FRAMES).filter(needed).collect::<Vec<_>>());
        assert_eq!(world.told, APPLICATIONS);
    }
}

#[test]
fn a_page_that_its_owner_needs_again_goes_with_the_next_round() {
    let guest = Guest::new(1, 0);
    let mut world = World::new(guest, Box::new(PreCopy::default()), false);
    let mut shrunk = false;
    while world.migration.poll(world.now) != Order::Freeze {
        world.talk();
        if world.migration.rounds().len() == 1 && !shrunk {
            assert_eq!(world.sends.get(&5), None, "skipped in the first round");
            world.guest.shrink(0, 5, &mut world.assist, world.now);
            // Not even written since it was first seen.
            world.guest.written.clear();
            world.talk();
            shrunk = true;
        }
        let order = world.migration.poll(world.now);
        world.obey(order);
    }
    assert_eq!(world.sends.get(&5), Some(&1), "before the freeze");
    world.run();
    assert_eq!(world.missing(), []);
}

#[test]
fn applications_that_say_nothing_have_everything_sent() {
    let mut world = World::new(Guest::new(1, 100), Box::new(PreCopy::default()), true);
    world.run();
    assert_eq!(world.missing(), []);
    assert_eq!(world.destination.len() as u64, FRAMES);
    assert_eq!(world.told, APPLICATIONS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn whatever_happens_all_that_is_needed_arrives(seed in any::<u64>(), silent_percent in 0..60u64) {
        let mut world = World::new(Guest::new(seed, silent_percent), Box::new(PreCopy::default()), true);
        world.run();
        prop_assert_eq!(world.missing(), []);
    }
}
