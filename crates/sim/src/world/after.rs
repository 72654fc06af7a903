//! From the hand-over until nothing is missing: carries out what a [`Residual`] orders, while vCPUs touch pages one by one.

use std::cmp::Reverse;
use std::time::Duration;

use whimbrel_policy::postcopy::{
    Answer, Bubbling, Demand, Event, Fault, Guide, Limits, Order, PieceId, PrePaging, Push, Residual,
    ThreadId,
};
use whimbrel_policy::{Page, PageRun, SpaceId, PAGE_SIZE};

use super::before::HandOver;
use super::bits::Bits;
use super::guest::Task;
use super::guide::{Forward, GUIDE_STEP};
use super::{pages_in, split, Due, World};
use crate::scenario::{PrePagingKind, StrategyKind};

/// A vCPU at the destination.
#[derive(Clone, Copy, Debug, Default)]
struct Vcpu {
    /// The page that it waits for, whether it is to be written, and since when.
    waits: Option<(u64, bool, Duration)>,
    /// It has waited so long before.
    waited: Duration,
}

/// The destination, and the source that serves it.
struct Residue {
    residual: Residual,
    missing: Bits,
    vcpus: Vec<Vcpu>,
    /// When each task makes its next access; none for one that has ended.
    next: Vec<Option<Duration>>,
    timer: Option<Duration>,
    /// The source reads or packs until then, and does nothing else.
    busy_until: Duration,
    /// Runs ahead at the source, with guide-copy.
    forward: Option<Forward>,
    resumed: Duration,
    is_done: bool,
}

impl World<'_> {
    pub(super) fn run_after(&mut self, handover: HandOver) {
        if handover.residue.is_empty() {
            // The word that it has started comes back.
            self.now += self.link.latency;
            self.book.outcome.is_finished = true;
            return;
        }
        let resumed = self.now;
        // The destination's own writes do not travel.
        let versions = self.guest.marks.versions.take();
        let mut residue = self.residue(handover);
        (0..self.guest.vcpus).for_each(|vcpu| self.at(resumed, Due::Vcpu(vcpu)));
        self.source(&mut residue);
        while !residue.is_done && !self.is_over() {
            let Some(Reverse((when, _, due))) = self.due.pop() else {
                break;
            };
            if when > self.scenario.end.0 {
                self.now = self.now.max(self.scenario.end.0);
                continue;
            }
            self.now = when;
            self.book.events += 1;
            if let Due::Arrived(_, runs) = &due {
                self.guest.marks.versions.clone_from(&versions);
                self.copied(runs);
                self.guest.marks.versions = None;
            }
            self.happens(&mut residue, due);
        }
        self.guest.marks.versions = versions;
        self.book_residue(&residue, resumed);
    }

    fn residue(&mut self, handover: HandOver) -> Residue {
        let mut missing = Bits::new(self.scenario.memory_pages());
        handover
            .residue
            .runs()
            .for_each(|run| missing.insert_range(run.first, run.count));
        let limits = Limits {
            bandwidth_max: self.scenario.migration.bandwidth.map(|rate| rate.0),
            ..Limits::default()
        };
        let now = self.now;
        let first = |task: &super::guest::Task| {
            let wait = Duration::from_nanos(task.wait_ns as u64);
            Some(now + wait + self.guest.stall(task.model))
        };
        let next: Vec<_> = self.guest.tasks.iter().map(first).collect();
        let is_guided = self.prepaging_kind() == PrePagingKind::Guide;
        // The source went on as soon as it had nothing left to do, before the destination could.
        let forward = is_guided.then(|| Forward::new(&self.guest, since(&next, now), handover.left_at));
        if is_guided {
            self.book.outcome.strategy = "guide".into();
            self.at(now, Due::Guide);
        }
        Residue {
            residual: Residual::new(now, handover.residue, self.prepaging(), limits, handover.path),
            missing,
            vcpus: vec![Vcpu::default(); self.guest.vcpus as usize],
            next,
            timer: None,
            busy_until: now,
            forward,
            resumed: now,
            is_done: false,
        }
    }

    fn prepaging(&self) -> Box<dyn PrePaging> {
        match self.prepaging_kind() {
            PrePagingKind::Demand => Box::new(Demand),
            PrePagingKind::Push => Box::new(Push::default()),
            PrePagingKind::Bubbling => Box::new(Bubbling::new(self.scenario.migration.pivots as usize)),
            PrePagingKind::Guide => Box::new(Guide::default()),
        }
    }

    fn prepaging_kind(&self) -> PrePagingKind {
        let asked = &self.scenario.migration;
        match asked.strategy {
            StrategyKind::Guide => PrePagingKind::Guide,
            _ => asked.prepaging.unwrap_or(PrePagingKind::Bubbling),
        }
    }

    fn happens(&mut self, residue: &mut Residue, due: Due) {
        match due {
            Due::Sample => {
                self.book.owed_pages = residue.residual.owed_pages();
                self.sample();
            }
            Due::Tick(who) => self.tick(who),
            Due::Guide => self.guide(residue),
            Due::Vcpu(vcpu) => self.run_vcpu(residue, vcpu),
            Due::Source => {
                residue.timer = None;
                self.source(residue);
            }
            Due::Fault(page, vcpu) => self.fault(residue, page, vcpu),
            Due::Arrived(piece, runs) => {
                self.arrived(residue, &runs);
                self.at(self.now + self.link.latency, Due::Acked(piece));
            }
            Due::Acked(piece) => {
                residue.residual.handle(self.now, Event::Acked { piece });
                self.source(residue);
            }
        }
    }

    /// A vCPU makes its accesses, one after the other, until something else is due before the next one or a page is missing.
    fn run_vcpu(&mut self, residue: &mut Residue, vcpu: u32) {
        if residue.vcpus[vcpu as usize].waits.is_some() {
            return;
        }
        while let Some((at, task)) = next_of(&residue.next, &self.guest.tasks, vcpu) {
            let is_other_before = self.due.peek().is_some_and(|Reverse((when, ..))| *when < at);
            if is_other_before || at > self.scenario.end.0 || self.is_over() {
                return self.at(at, Due::Vcpu(vcpu));
            }
            self.now = self.now.max(at);
            self.book.events += 1;
            if !self.touch(residue, vcpu, task) {
                return;
            }
        }
    }

    /// The next access of a task. False if the vCPU has to wait for the page.
    fn touch(&mut self, residue: &mut Residue, vcpu: u32, task: usize) -> bool {
        let Some(step) = self.guest.step(task) else {
            residue.next[task] = None;
            return true;
        };
        let then = Duration::from_nanos(step.then_ns as u64);
        residue.next[task] = residue.next[task].map(|at| at + then);
        if !step.pause.is_zero() {
            self.note_pauses();
            let model = self.guest.tasks[task].model;
            let of_model = self
                .guest
                .tasks
                .iter()
                .zip(&mut residue.next)
                .filter(|(other, _)| other.model == model);
            of_model.for_each(|(_, next)| *next = next.map(|at| at + step.pause));
        }
        if !residue.missing.contains(step.page) {
            self.mark(step.page, step.is_write);
            return true;
        }
        residue.vcpus[vcpu as usize].waits = Some((step.page, step.is_write, self.now));
        self.book.faults += 1;
        self.at(self.now + self.link.latency, Due::Fault(page(step.page), vcpu));
        false
    }

    fn mark(&mut self, page: u64, is_write: bool) {
        if is_write {
            self.guest.marks.write(page);
        }
    }

    fn fault(&mut self, residue: &mut Residue, page: Page, vcpu: u32) {
        let fault = Fault {
            page,
            thread: ThreadId(vcpu),
            repeated: false,
        };
        if let Some(forward) = &mut residue.forward {
            forward.follower_faulted(vcpu, page.number);
        }
        let answer = residue.residual.fault(fault);
        if matches!(answer, Answer::Unknown | Answer::Unreadable | Answer::Busy) {
            self.book.note(&format!("a fault was refused: {answer:?}"));
        }
        self.source(residue);
    }

    /// Pages are there: those who wait for them go on.
    fn arrived(&mut self, residue: &mut Residue, runs: &[PageRun]) {
        runs.iter()
            .for_each(|run| residue.missing.remove_range(run.first, run.count));
        for vcpu in 0..self.guest.vcpus {
            let Some((page, is_write, since)) = residue.vcpus[vcpu as usize].waits else {
                continue;
            };
            if residue.missing.contains(page) {
                continue;
            }
            residue.vcpus[vcpu as usize].waits = None;
            let waited = self.now - since;
            self.mark(page, is_write);
            self.guest.lost += waited;
            residue.vcpus[vcpu as usize].waited += waited;
            self.book.outcome.fault_wait_s += waited.as_secs_f64();
            self.book.pause(since, waited, "fault");
            let own = self
                .guest
                .tasks
                .iter()
                .zip(&mut residue.next)
                .filter(|(task, _)| task.vcpu == vcpu);
            own.for_each(|(_, next)| *next = next.map(|at| at + waited));
            self.at(self.now, Due::Vcpu(vcpu));
        }
    }

    /// The forward context goes on, and what it touches is sent before it is asked for.
    fn guide(&mut self, residue: &mut Residue) {
        let Some(mut forward) = residue.forward.take() else {
            return;
        };
        let followed = self.followed(residue);
        let stepped = forward.step(self.now, &followed);
        self.book.events += stepped.accesses;
        self.book.cpu(stepped.ran);
        for &(vcpu, number) in &stepped.touched {
            residue.residual.aim(ThreadId(vcpu), page(number));
        }
        if stepped.wants_jump {
            let next = self.next_in_running_time(residue, &followed);
            forward.jump(&self.guest, next, &followed);
            self.looked_at_all();
        }
        if !stepped.is_over {
            self.at(self.now + GUIDE_STEP, Due::Guide);
            residue.forward = Some(forward);
        }
        self.source(residue);
    }

    /// How long each vCPU has run at the destination.
    fn followed(&self, residue: &Residue) -> Vec<Duration> {
        let ran = |vcpu: &Vcpu| {
            let until = vcpu.waits.map_or(self.now, |(.., since)| since);
            until - residue.resumed - vcpu.waited
        };
        residue.vcpus.iter().map(ran).collect()
    }

    /// When the tasks make their next accesses, as far as nobody waits.
    fn next_in_running_time(&self, residue: &Residue, followed: &[Duration]) -> Vec<Option<Duration>> {
        let of_task = |(task, next): (&Task, &Option<Duration>)| {
            let vcpu = task.vcpu as usize;
            let until = residue.vcpus[vcpu].waits.map_or(self.now, |(.., since)| since);
            next.map(|at| followed[vcpu] + at.saturating_sub(until))
        };
        self.guest.tasks.iter().zip(&residue.next).map(of_task).collect()
    }

    /// The source does what it is told until it has to wait. What it hears while it is busy waits for it.
    fn source(&mut self, residue: &mut Residue) {
        while residue.busy_until <= self.now {
            self.book.events += 1;
            match residue.residual.poll(self.now) {
                Order::Reply { piece, run, .. } => self.send_residue(residue, piece, vec![run]),
                Order::Push { piece, runs } => self.send_residue(residue, piece, runs),
                Order::Wait { until } => return self.wait(residue, until),
                Order::Done => {
                    residue.is_done = true;
                    return;
                }
            }
        }
        self.wait(residue, Some(residue.busy_until));
    }

    fn wait(&mut self, residue: &mut Residue, until: Option<Duration>) {
        let sooner = until.filter(|&until| residue.timer.is_none_or(|timer| until < timer));
        if let Some(until) = sooner {
            residue.timer = Some(until);
            self.at(until, Due::Source);
        }
    }

    fn send_residue(&mut self, residue: &mut Residue, piece: PieceId, runs: Vec<PageRun>) {
        let (zero, content) = split(&runs, &self.guest.zero);
        let bytes = pages_in(&content) * PAGE_SIZE;
        let (work, wire_bytes) = self.made_ready(bytes);
        // Since its last piece the source had to wait: for the window, or for something to do.
        let waiting = self.now - std::mem::replace(&mut residue.busy_until, self.now + work);
        self.book.cpu(work);
        if bytes > 0 {
            self.packing.sent(bytes, waiting + work, waiting);
        }
        let left = self.link.send(residue.busy_until, wire_bytes);
        self.at(left + self.link.latency, Due::Arrived(piece, runs));
        let sent = Event::Sent {
            piece,
            wire_bytes,
            zero_pages: pages_in(&zero),
            unreadable: Vec::new(),
        };
        residue.residual.handle(residue.busy_until, sent);
    }

    fn book_residue(&mut self, residue: &Residue, resumed: Duration) {
        for vcpu in &residue.vcpus {
            let waited = vcpu
                .waits
                .map_or(Duration::ZERO, |(_, _, since)| self.now - since);
            self.guest.lost += waited;
            self.book.outcome.fault_wait_s += waited.as_secs_f64();
        }
        self.book.residual(&residue.residual.metrics());
        self.book.outcome.is_finished = residue.is_done;
        self.book.outcome.resume_s = (self.now - resumed).as_secs_f64();
        self.book.outcome.bytes = self.link.bytes;
    }
}

/// The task of a vCPU whose access comes next, and when.
pub(super) fn next_of(next: &[Option<Duration>], tasks: &[Task], vcpu: u32) -> Option<(Duration, usize)> {
    let own = (0..tasks.len()).filter(|&task| tasks[task].vcpu == vcpu);
    own.filter_map(|task| next[task].map(|at| (at, task))).min()
}

/// Times since a moment.
fn since(times: &[Option<Duration>], moment: Duration) -> Vec<Option<Duration>> {
    times.iter().map(|time| time.map(|at| at - moment)).collect()
}

pub(super) fn page(number: u64) -> Page {
    Page {
        space: SpaceId(0),
        number,
    }
}
