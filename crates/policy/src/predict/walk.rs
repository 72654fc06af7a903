//! One walk through a migration.

use super::*;
use crate::pages::PAGE_SIZE;
use crate::strategy::{Decision, PreCopy, RoundFacts, Strategy};

/// Steps that a pass is cut into.
const STEPS: u32 = 32;
/// Of the pages that are touched before the push has brought them, this part is left to fault if the push follows the faults: it spares four in
/// five (Hines and Gopalan, "up to 80 %").
pub(super) const FAULTS_LEFT: f64 = 0.2;

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Walked {
    pub total_s: f64,
    pub downtime_s: f64,
    pub bytes: f64,
    /// Pages that are touched at the destination before the push, in the order of addresses, would have brought them.
    pub touched: f64,
    pub resume_s: f64,
    pub rounds: u32,
    pub stop_reason: Option<StopReason>,
}

impl Walked {
    /// The share of the time until the end that is lost to so many faults.
    pub fn slowdown(&self, measured: &Measured, faults: f64) -> f64 {
        let page_s = PAGE_SIZE as f64 * measured.wire_share / measured.link_bandwidth.max(1) as f64;
        let lost = faults * (measured.round_trip.as_secs_f64() + page_s);
        if self.resume_s > 0.0 {
            (lost.min(self.resume_s) / self.total_s).min(1.0)
        } else {
            0.0
        }
    }
}

struct Walk<'a> {
    measured: &'a Measured,
    limits: &'a Limits,
    belief: Belief,
    /// Pages with content per second.
    page_rate: f64,
    /// Bytes per second on the wire.
    wire_rate: f64,
    cost: f64,
    /// Since the last scan, in seconds.
    since_scan: f64,
    /// Only the first pass finds pages of zeros.
    content_share: f64,
    sent_pages: f64,
    walked: Walked,
}

pub(super) fn walk(
    measured: &Measured,
    limits: &Limits,
    position: &Position,
    course: Course,
    belief: Belief,
    speed: f64,
    cost: f64,
) -> Walked {
    let mut walk = Walk::new(measured, limits, position, belief, speed, cost);
    let left = position.left_pages as f64;
    walk.try_plain_pages();
    match course {
        Course::StopCopy => walk.stop_with(left),
        Course::PostCopy => walk.switch(position),
        Course::Hybrid { passes } => {
            walk.passes(position, passes.max(1));
            walk.switch_with(0.0, walk.urgent_again());
        }
        Course::PreCopy => {
            walk.rounds(position);
            walk.stop_with(0.0);
        }
    }
    walk.walked.total_s += measured.costs.after.as_secs_f64() * cost;
    walk.walked
}

impl<'a> Walk<'a> {
    fn new(
        measured: &'a Measured,
        limits: &'a Limits,
        position: &Position,
        belief: Belief,
        speed: f64,
        cost: f64,
    ) -> Self {
        let wire = measured.link_bandwidth as f64 * speed;
        let wire_rate = limits
            .bandwidth_max
            .map_or(wire, |max| wire.min(max as f64))
            .max(1.0);
        let share = measured.wire_share.max(f64::MIN_POSITIVE);
        let read = measured
            .page_rate_max
            .map_or(f64::MAX, |rate| rate as f64 * speed);
        let first_pass = position.rounds == 0;
        Walk {
            measured,
            limits,
            belief,
            page_rate: ((wire_rate / share).min(read) / PAGE_SIZE as f64).max(f64::MIN_POSITIVE),
            wire_rate,
            cost,
            since_scan: position.since_scan.as_secs_f64(),
            content_share: if first_pass {
                1.0 - measured.zero_share
            } else {
                1.0
            },
            sent_pages: position.sent_pages as f64,
            walked: Walked {
                total_s: position.elapsed.as_secs_f64(),
                bytes: position.sent_bytes as f64,
                rounds: position.rounds,
                ..Walked::default()
            },
        }
    }

    /// Pages that are not packed, to see what that brings, take longer by what packing would have saved.
    fn try_plain_pages(&mut self) {
        let more = self.measured.plain_bytes as f64 * (1.0 - self.measured.wire_share).max(0.0);
        self.walked.bytes += more;
        self.walked.total_s += more / self.wire_rate;
    }

    /// Distinct pages written since the last scan.
    fn dirtied(&self) -> f64 {
        let pages = self.measured.dirty.pages_in(self.since_scan, self.belief);
        pages.min(self.measured.memory_pages as f64)
    }

    /// Sends so many pages with content: how long that takes.
    fn send(&mut self, pages: f64) -> f64 {
        self.sent_pages += pages;
        self.walked.bytes += pages * PAGE_SIZE as f64 * self.measured.wire_share;
        pages / self.page_rate
    }

    /// Sends what a round has `left` of `round` pages, without those that are written again meanwhile, and scans.
    fn pass(&mut self, left: f64, round: f64) {
        for _ in 0..STEPS {
            let again = self.again(round.max(1.0));
            let seconds = self.send(left / f64::from(STEPS) * (1.0 - again) * self.content_share);
            self.since_scan += seconds;
            self.walked.total_s += seconds;
        }
        self.content_share = 1.0;
        self.walked.rounds += 1;
        self.walked.total_s += self.measured.costs.scan.as_secs_f64() * self.cost;
    }

    /// The share of a round's pages that were written since its scan. Where a working set shows, all of its pages are alike. Where none does
    /// it is a sweep, and that comes to the pages that it wrote last when it has been at all others.
    fn again(&self, round: f64) -> f64 {
        let memory = self.measured.memory_pages as f64;
        let share = match self.measured.dirty.working_set_pages() {
            // A curve that bends late seems to lead to more than there is.
            Some(set) => self.dirtied() / round.max(set.min(memory)),
            None => (self.dirtied() + round - memory) / round,
        };
        share.clamp(0.0, 1.0)
    }

    /// The scan after a pass: what is owed now.
    fn scan(&mut self) -> f64 {
        let owed = self.dirtied();
        self.since_scan = self.measured.costs.scan.as_secs_f64() * self.cost;
        owed
    }

    fn passes(&mut self, position: &Position, passes: u32) {
        let (mut left, mut round) = (position.left_pages as f64, position.round_pages as f64);
        loop {
            self.pass(left, round);
            if self.walked.rounds >= passes {
                self.walked.stop_reason = Some(StopReason::Residue);
                return;
            }
            left = self.scan();
            round = left;
        }
    }

    /// Rounds until the strategy stops them.
    fn rounds(&mut self, position: &Position) {
        let mut strategy = PreCopy::default();
        strategy.note(self.measured.memory_pages);
        let (mut left, mut round) = (position.left_pages as f64, position.round_pages as f64);
        loop {
            self.pass(left, round);
            let owed = self.dirtied();
            if let Decision::Freeze(reason) = self.decide(&mut strategy, owed) {
                self.walked.stop_reason = Some(reason);
                return;
            }
            left = self.scan();
            round = left;
        }
    }

    fn decide(&self, strategy: &mut PreCopy, owed: f64) -> Decision {
        let bandwidth = (self.page_rate * PAGE_SIZE as f64) as u64;
        let downtime = Duration::try_from_secs_f64(self.stop_s(owed)).unwrap_or(Duration::MAX);
        let facts = RoundFacts {
            rounds: self.walked.rounds,
            owed_pages: owed as u64,
            urgent_pages: 0,
            round_pages: owed as u64,
            sent_pages: self.sent_pages as u64,
            zero_pages: 0,
            sent_bytes: self.walked.bytes as u64,
            memory_pages: self.measured.memory_pages,
            dirty_rate: None,
            dirty: &self.measured.dirty,
            bandwidth: Some(bandwidth),
            wire_share: Some(self.measured.wire_share),
            predicted_downtime: Some(downtime),
            since_scan: Duration::ZERO,
            elapsed: Duration::try_from_secs_f64(self.walked.total_s).unwrap_or(Duration::MAX),
            limits: self.limits,
            hints: &Hints::default(),
        };
        let decision = strategy.decide(&facts);
        match (decision, facts.limit_reached()) {
            (Decision::Round, Some(limit)) => Decision::Freeze(limit),
            (decision, _) => decision,
        }
    }

    /// The downtime with so many last pages.
    fn stop_s(&self, last_pages: f64) -> f64 {
        let state_s = self.measured.state_bytes as f64 / self.wire_rate;
        last_pages / self.page_rate + state_s + self.measured.costs.stop.as_secs_f64() * self.cost
    }

    fn stop(&mut self, last_pages: f64) {
        self.walked.downtime_s = self.stop_s(last_pages);
        self.send(last_pages);
        self.walked.bytes += self.measured.state_bytes as f64;
        self.walked.total_s += self.walked.downtime_s;
    }

    /// Freezes, and sends the rest: `left` of the round, and what was written since its scan.
    fn stop_with(&mut self, left: f64) {
        let last = self.owed(left);
        self.stop(last);
    }

    /// Of the urgent pages those that were written since they were sent, as many as of all others.
    fn urgent_again(&self) -> f64 {
        let share = self.measured.urgent_pages as f64 / self.measured.memory_pages.max(1) as f64;
        self.dirtied() * share.min(1.0)
    }

    /// Switches over now. What is urgent travels before the freeze if nothing was sent yet, else while it is frozen.
    fn switch(&mut self, position: &Position) {
        let (left, urgent) = (position.left_pages as f64, self.measured.urgent_pages as f64);
        if position.sent_pages > 0 {
            return self.switch_with(left, urgent);
        }
        let seconds = self.send(urgent.min(left) * self.content_share);
        self.since_scan += seconds;
        self.walked.total_s += seconds + self.measured.costs.scan.as_secs_f64() * self.cost;
        self.switch_with((left - urgent).max(0.0), self.urgent_again());
    }

    /// Freezes, sends so many urgent pages, and leaves the rest for the time after the start.
    fn switch_with(&mut self, left: f64, urgent: f64) {
        let owed = self.owed(left);
        let urgent = urgent.min(owed);
        self.stop(urgent);
        let costs = &self.measured.costs;
        let drop = match self.sent_pages > urgent && owed > left + urgent {
            true => costs.drop,
            false => Duration::ZERO,
        };
        let arm = (costs.arm + drop).as_secs_f64() * self.cost;
        self.walked.downtime_s += arm;
        self.walked.total_s += arm;
        self.resume(owed - urgent);
    }

    /// What is owed in the middle of a round, without pages of zeros.
    fn owed(&self, left: f64) -> f64 {
        let written = self.dirtied() * (1.0 - (left / self.measured.memory_pages.max(1) as f64).min(1.0));
        left * self.content_share + written
    }

    /// The push, and who touches a page before it. Each page of the working set is touched once in the time that the curve says.
    fn resume(&mut self, residual: f64) {
        let seconds = self.send(residual);
        let curve = |at: f64| self.measured.dirty.pages_in(at, self.belief).min(residual);
        let step = seconds / f64::from(STEPS);
        let touched = (0..STEPS).map(|n| {
            let still_missing = 1.0 - (f64::from(n) + 0.5) / f64::from(STEPS);
            (curve(step * f64::from(n + 1)) - curve(step * f64::from(n))) * still_missing
        });
        self.walked.touched = touched.sum();
        self.walked.resume_s = seconds + self.measured.round_trip.as_secs_f64();
        self.walked.total_s += self.walked.resume_s;
    }
}
