//! Up to the hand-over: carries out what a [`Migration`] orders, as the engine does.

use std::time::Duration;

use whimbrel_policy::converge::{AutoConverge, Steps};
use whimbrel_policy::estimate::time_for;
use whimbrel_policy::migration::{Event, Hints, Scan, Sent};
use whimbrel_policy::postcopy::Path;
use whimbrel_policy::predict::{Costs, Goals};
use whimbrel_policy::strategy::Named;
use whimbrel_policy::{
    Hybrid, Limits, Migration, Order, PageRun, Pages, Passes, Phase, PostCopy, PreCopy, StopCopy, Strategy,
    PAGE_SIZE,
};

use super::{pages_in, split, World};
use crate::scenario::{PassesKind, Scenario, StrategyKind};

/// Pages that are looked at and sent at once, as in the engine.
const PIECE_PAGES: u64 = 256;
/// Bytes around each piece.
pub(super) const FRAME_BYTES: u64 = 24;

/// What the time after the switch-over begins with.
#[derive(Debug)]
pub(super) struct HandOver {
    pub residue: Pages,
    pub path: Path,
    /// When the source had nothing left to do for it.
    pub left_at: Duration,
}

/// What the rounds remember.
struct Rounds {
    migration: Migration,
    /// Slows the workload down, if that was asked for.
    converge: Option<AutoConverge>,
    /// Bytes on the link when it was last waited for.
    settled_bytes: Option<u64>,
    /// When the piece before the last one has left: a socket's buffer.
    left_at: Duration,
}

impl World<'_> {
    /// Runs until the workload starts at the destination. Nothing, if a limit of the simulation ended it.
    pub(super) fn run_before(&mut self) -> Option<HandOver> {
        let mut rounds = Rounds {
            migration: migration(self.scenario),
            converge: AutoConverge::new(Steps::default())
                .ok()
                .filter(|_| self.scenario.migration.converge),
            settled_bytes: None,
            left_at: Duration::ZERO,
        };
        self.settle(&mut rounds);
        let known = self.ask(|one, world| one.begin(world));
        self.tell(&mut rounds, known);
        while !self.is_over() {
            self.book.events += 1;
            match rounds.migration.poll(self.now) {
                Order::Scan => self.scan(&mut rounds),
                Order::Send { runs, skip_rewritten } => self.send(&mut rounds, &runs, skip_rewritten),
                Order::Sample => self.count(&mut rounds),
                Order::Drop { runs } => self.drops(&runs),
                Order::Freeze => self.freeze(&mut rounds),
                Order::Capture => self.capture(&mut rounds),
                Order::ScanLast => self.scan_last(&mut rounds),
                Order::Wait { until } => self.advance(until),
                Order::HandOver => {
                    let handover = self.hand_over(&rounds);
                    if handover.is_some() {
                        return handover;
                    }
                }
            }
            self.slow_down(&mut rounds);
            self.link_rate = rounds.migration.link_rate();
            self.book.rounds(self.now, &rounds.migration);
        }
        self.book.migration(&rounds.migration, self.now);
        self.book.outcome.bytes = self.link.bytes;
        None
    }

    fn handle(&mut self, rounds: &mut Rounds, event: Event) {
        if let Err(refused) = rounds.migration.handle(self.now, event) {
            self.book
                .note(&format!("the decisions refused what happened: {refused}"));
        }
    }

    /// What the rounds that have just ended mean for the workload's time.
    fn slow_down(&mut self, rounds: &mut Rounds) {
        let Some(converge) = &mut rounds.converge else {
            return;
        };
        for round in &rounds.migration.rounds()[self.book.outcome.rounds.len()..] {
            if let Some(percent) = converge.note(round) {
                self.guest.speed = 1.0 - f64::from(percent) / 100.0;
                self.book
                    .log(self.now, || format!("the workload loses {percent} % of its time"));
            }
        }
    }

    /// Hands over what somebody knows.
    fn tell(&mut self, rounds: &mut Rounds, events: Vec<Event>) {
        events.into_iter().for_each(|event| self.handle(rounds, event));
    }

    fn scan(&mut self, rounds: &mut Rounds) {
        let is_first = rounds.migration.rounds().is_empty() && self.book.outcome.rounds.is_empty();
        self.settle(rounds);
        let known = self.ask(|one, world| one.before_scan(world));
        self.tell(rounds, known);
        self.looked_at_all();
        // What is written while it scans is found by the next one.
        let dirty = self.guest.take_marks();
        let mut written = if is_first { self.guest.present() } else { dirty };
        written.subtract(&self.guest.absent);
        self.spend(scan_time(self.scenario));
        let mut scan = Scan {
            written: written.runs(),
            ..Scan::default()
        };
        self.show(|one, world| one.live_scan(world, &mut scan));
        self.book
            .log(self.now, || format!("scan: {} pages", pages_in(&scan.written)));
        self.handle(rounds, Event::Scanned(scan));
        self.book.scanned(self.now, &rounds.migration);
        if matches!(
            rounds.migration.progress(self.now).phase,
            Phase::Round | Phase::Scan
        ) {
            let known = self.ask(|one, world| one.scanned(world));
            self.tell(rounds, known);
        }
    }

    /// The source works for so long.
    fn spend(&mut self, time: Duration) {
        self.book.cpu(time);
        self.advance(self.now + time);
    }

    fn count(&mut self, rounds: &mut Rounds) {
        self.looked_at_all();
        let written_pages = self.guest.marks.dirty.len();
        self.spend(scan_time(self.scenario));
        self.handle(rounds, Event::Sampled { written_pages });
    }

    /// Sends a batch in pieces. Pages that were written since the scan are left out if so told; the next scan finds them.
    fn send(&mut self, rounds: &mut Rounds, runs: &[PageRun], skip_rewritten: bool) {
        let mut sent = Sent::default();
        let skip_rewritten = skip_rewritten && !self.scenario.migration.sends_rewritten;
        for mut piece in pieces(runs) {
            if self.is_over() {
                return;
            }
            if skip_rewritten {
                let (mut rewritten, rest) = split(&piece, &self.guest.marks.dirty);
                sent.rewritten.append(&mut rewritten);
                piece = rest;
            }
            self.copied(&piece);
            self.show(|one, _| one.left(&piece));
            let (mut zero, content) = split(&piece, &self.guest.zero);
            sent.zero.append(&mut zero);
            self.send_piece(rounds, pages_in(&content), &mut sent);
            self.book.events += 1;
        }
        if self.is_running && rounds.migration.is_last_batch() {
            sent.busy += self.settle(rounds);
        }
        self.book.owed_pages = self
            .book
            .owed_pages
            .saturating_sub(pages_in(runs) - pages_in(&sent.rewritten));
        self.book.log(self.now, || {
            format!("sent: {} pages, {} bytes", pages_in(runs), sent.wire_bytes)
        });
        self.handle(rounds, Event::Sent(sent));
    }

    /// Bytes of pages are read or packed, whichever is better: how long that takes a core, and what travels.
    pub(super) fn made_ready(&self, bytes: u64) -> (Duration, u64) {
        let host = &self.scenario.host;
        let is_packed = self.scenario.migration.packing && self.packing.is_packed();
        let (rate, share) = if is_packed {
            (host.packer.0, host.packed.0)
        } else {
            (host.read.0, 1.0)
        };
        (time_for(bytes, rate), FRAME_BYTES + (bytes as f64 * share) as u64)
    }

    /// Reads or packs a piece, queues it, and waits until the one before has left.
    fn send_piece(&mut self, rounds: &mut Rounds, pages: u64, sent: &mut Sent) {
        let begun = self.now;
        let bytes = pages * PAGE_SIZE;
        let (work, wire_bytes) = self.made_ready(bytes);
        self.spend(work);
        let before = std::mem::replace(&mut rounds.left_at, self.link.send(self.now, wire_bytes));
        let waiting = before.saturating_sub(self.now);
        self.advance(self.now + waiting);
        sent.wire_bytes += wire_bytes;
        sent.page_bytes += bytes + FRAME_BYTES;
        if pages > 0 {
            sent.busy += self.now - begun;
            self.packing.sent(bytes, self.now - begun, waiting);
        }
    }

    /// Waits until everything that was sent has arrived and that was heard of. Returns the time beyond the way there and back.
    fn settle(&mut self, rounds: &mut Rounds) -> Duration {
        if rounds.settled_bytes == Some(self.link.bytes) {
            return Duration::ZERO;
        }
        rounds.settled_bytes = Some(self.link.bytes);
        let left = self.link.free_at(self.now);
        let waited = left - self.now;
        self.advance(left + 2 * self.link.latency);
        waited
    }

    fn drops(&mut self, runs: &[PageRun]) {
        self.link.send(self.now, FRAME_BYTES);
        self.show(|one, _| one.left(runs));
        if let Some(copies) = &mut self.copies {
            runs.iter()
                .flat_map(|run| run.first..run.first + run.count)
                .for_each(|page| copies[page as usize] = 0);
        }
    }

    fn freeze(&mut self, rounds: &mut Rounds) {
        self.settle(rounds);
        self.show(|one, world| one.before_freeze(world));
        self.book.outcome.preparation_s = self.now.as_secs_f64();
        self.is_running = false;
        self.book.frozen_at = Some(self.now);
        self.book.log(self.now, || "frozen".into());
        self.spend(self.scenario.host.freeze.0);
        self.handle(rounds, Event::Frozen);
    }

    fn capture(&mut self, rounds: &mut Rounds) {
        self.spend(self.scenario.host.capture.0);
        let state_bytes = self.scenario.guest.state.0;
        self.link.send(self.now, state_bytes);
        self.handle(rounds, Event::Captured { state_bytes });
    }

    fn scan_last(&mut self, rounds: &mut Rounds) {
        self.looked_at_all();
        let mut written = self.guest.take_marks();
        written.subtract(&self.guest.absent);
        self.spend(scan_time(self.scenario));
        let mut scan = Scan {
            written: written.runs(),
            present: Some(self.guest.present().runs()),
            ..Scan::default()
        };
        self.show(|one, world| one.frozen_scan(world, &mut scan));
        self.present = scan.present.clone().unwrap_or_default();
        let present = scan.present.as_deref().map_or(0, pages_in);
        self.book.outcome.pages_skipped = self.scenario.memory_pages() - present;
        self.book.log(self.now, || {
            format!(
                "last scan: {} written, {present} present",
                pages_in(&scan.written)
            )
        });
        self.handle(rounds, Event::Scanned(scan));
        self.book.scanned(self.now, &rounds.migration);
    }

    /// The last byte arrives, the destination builds the workload and says that it is ready, and hears that it may start.
    /// Nothing, if a limit of the simulation comes before that.
    fn hand_over(&mut self, rounds: &Rounds) -> Option<HandOver> {
        let latency = self.link.latency;
        let residue = rounds.migration.residual().clone();
        let left_at = self.now;
        self.advance(self.link.free_at(self.now) + latency);
        self.advance(self.now + self.scenario.host.restore.0 + 2 * latency);
        if self.is_over() {
            return None;
        }
        self.book.migration(&rounds.migration, self.now);
        self.book.outcome.bytes = self.link.bytes;
        self.book.owed_pages = residue.len();
        self.book.resumed(self.now);
        self.book
            .log(self.now, || format!("started, {} pages missing", residue.len()));
        self.show(|one, world| one.resumed(world));
        Some(HandOver {
            residue,
            left_at,
            path: Path {
                round_trip: Some(2 * latency),
                bandwidth: rounds.migration.link_rate(),
            },
        })
    }
}

/// Cuts runs into pieces, in order.
fn pieces(runs: &[PageRun]) -> impl Iterator<Item = Vec<PageRun>> + '_ {
    let mut runs = runs.iter().copied();
    let mut rest: Option<PageRun> = None;
    std::iter::from_fn(move || {
        let (mut piece, mut room) = (Vec::new(), PIECE_PAGES);
        while room > 0 {
            let Some(run) = rest.take().or_else(|| runs.next()) else {
                break;
            };
            let count = run.count.min(room);
            piece.push(PageRun { count, ..run });
            room -= count;
            if count < run.count {
                rest = Some(PageRun {
                    first: run.first + count,
                    count: run.count - count,
                    ..run
                });
            }
        }
        (!piece.is_empty()).then_some(piece)
    })
}

pub(super) fn limits(scenario: &Scenario) -> Limits {
    let asked = &scenario.migration;
    let policy = Limits::default();
    Limits {
        downtime_max: asked.downtime.map_or(policy.downtime_max, |time| time.0),
        // A snapshot is a round; the last one is the freeze.
        rounds_max: match asked.collect {
            true => asked.snapshots - 1,
            false => asked.rounds.unwrap_or(policy.rounds_max),
        },
        traffic_percent_max: asked
            .traffic
            .map_or(policy.traffic_percent_max, |traffic| (traffic.0 * 100.0) as u32),
        bandwidth_max: asked.bandwidth.map(|rate| rate.0),
    }
}

fn migration(scenario: &Scenario) -> Migration {
    let hints = Hints {
        memory_pages: scenario.memory_pages(),
        state_bytes: scenario.guest.state.0,
        fixed_cost: costs(scenario).stop,
        bandwidth: None,
    };
    Migration::new(strategy(scenario), limits(scenario), hints)
}

/// How long a look at all pages takes.
fn scan_time(scenario: &Scenario) -> Duration {
    let page_ns = scenario.host.scan.0.as_nanos() as u64;
    Duration::from_nanos(page_ns.saturating_mul(scenario.memory_pages()))
}

/// What does not depend on pages. In front of each scan is a round trip, in which it is heard that all has arrived; the state, the
/// word that all is ready and the word to start are on the way while the workload is frozen.
pub(super) fn costs(scenario: &Scenario) -> Costs {
    let host = &scenario.host;
    let latency = scenario.link.latency.0;
    let scan = scan_time(scenario);
    Costs {
        before: 2 * latency + scan,
        scan: 2 * latency + scan,
        stop: host.freeze.0 + host.capture.0 + scan + host.restore.0 + 3 * latency,
        arm: Duration::ZERO,
        drop: Duration::ZERO,
        after: latency,
    }
}

fn auto(scenario: &Scenario) -> Named {
    Named::Auto {
        goals: Goals {
            downtime_max: limits(scenario).downtime_max,
            min: scenario.migration.min,
        },
        costs: costs(scenario),
        round_trip: 2 * scenario.link.latency.0,
    }
}

fn strategy(scenario: &Scenario) -> Box<dyn Strategy> {
    match scenario.migration.strategy {
        StrategyKind::Precopy if scenario.migration.to_the_limits => Box::new(PreCopy::to_the_limits()),
        StrategyKind::Precopy => Box::new(PreCopy::default()),
        StrategyKind::Stopcopy => Box::new(StopCopy),
        StrategyKind::Postcopy | StrategyKind::Guide => Box::new(PostCopy),
        StrategyKind::Auto => auto(scenario).build(),
        StrategyKind::Hybrid => Box::new(Hybrid::new(match scenario.migration.passes {
            PassesKind::Exactly(passes) => Passes::Exactly(passes),
            PassesKind::WhileProgress => Passes::WhileProgress,
        })),
    }
}
