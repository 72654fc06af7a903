//! The forward context of guide-copy: a copy of the guest that goes on at the source, kept slightly ahead by
//! `whimbrel_policy::postcopy::Lead`. What it touches goes first. It writes nothing that anybody sees.

use std::time::Duration;

use whimbrel_policy::postcopy::{GuideStep, Lead, LeadLimits};

use super::after::{next_of, page};
use super::bits::Bits;
use super::guest::Guest;

/// How often it is looked after.
pub(super) const GUIDE_STEP: Duration = Duration::from_millis(1);

/// Accesses of one step at most: a context that makes more stays where it is until the next one.
const ACCESSES_MAX: u64 = 1 << 20;

/// What one step of the forward context came to.
#[derive(Debug, Default)]
pub(super) struct Stepped {
    /// Touched for the first time, by which vCPU, in order.
    pub touched: Vec<(u32, u64)>,
    /// All of its accesses.
    pub accesses: u64,
    /// Running time of all vCPUs.
    pub ran: Duration,
    /// It has to begin anew where the following context is.
    pub wants_jump: bool,
    /// No vCPU of it goes on any more.
    pub is_over: bool,
}

/// A guest that runs ahead. Times are running times of its vCPUs, from the hand-over on.
#[derive(Debug)]
pub(super) struct Forward {
    guest: Guest,
    /// When each task makes its next access.
    next: Vec<Option<Duration>>,
    leads: Vec<Lead>,
    ran: Vec<Duration>,
    named: Bits,
    at: Duration,
}

impl Forward {
    /// A copy that goes on at this moment.
    pub fn new(guest: &Guest, next: Vec<Option<Duration>>, now: Duration) -> Self {
        let vcpus = guest.vcpus as usize;
        Forward {
            guest: guest.clone(),
            next,
            leads: vec![Lead::new(LeadLimits::default()); vcpus],
            ran: vec![Duration::ZERO; vcpus],
            named: Bits::new(guest.absent.pages()),
            at: now,
        }
    }

    /// Runs up to now. `followed` is how long each vCPU of the following context has run.
    pub fn step(&mut self, now: Duration, followed: &[Duration]) -> Stepped {
        let time = now.saturating_sub(std::mem::replace(&mut self.at, now));
        let mut stepped = Stepped {
            is_over: true,
            ..Stepped::default()
        };
        for (vcpu, &follower) in followed.iter().enumerate() {
            if self.leads[vcpu].step() == GuideStep::Run {
                let before = self.ran[vcpu];
                self.run(vcpu, before + time, &mut stepped);
                stepped.ran += self.ran[vcpu] - before;
            }
            self.leads[vcpu].follower_ran(follower);
            let next = self.leads[vcpu].step();
            stepped.wants_jump |= next == GuideStep::Jump;
            stepped.is_over &= matches!(next, GuideStep::End(_));
        }
        stepped
    }

    /// Runs one vCPU until then, or until it is far enough ahead.
    fn run(&mut self, vcpu: usize, until: Duration, stepped: &mut Stepped) {
        while let Some((at, task)) =
            next_of(&self.next, &self.guest.tasks, vcpu as u32).filter(|one| one.0 <= until)
        {
            if stepped.accesses >= ACCESSES_MAX {
                return;
            }
            stepped.accesses += 1;
            self.ran[vcpu] = self.ran[vcpu].max(at);
            self.leads[vcpu].guide_ran(at);
            let Some(number) = self.access(task) else {
                continue;
            };
            self.leads[vcpu].guide_touched(page(number));
            if !self.named.contains(number) {
                self.named.insert(number);
                stepped.touched.push((vcpu as u32, number));
            }
            if self.leads[vcpu].step() != GuideStep::Run {
                return;
            }
        }
        self.ran[vcpu] = self.ran[vcpu].max(until);
        self.leads[vcpu].guide_ran(until);
    }

    /// The page of the next access of a task.
    fn access(&mut self, task: usize) -> Option<u64> {
        let Some(step) = self.guest.step(task) else {
            self.next[task] = None;
            return None;
        };
        self.guest.pauses.clear();
        let model = self.guest.tasks[task].model;
        self.next[task] = self.next[task].map(|at| at + Duration::from_nanos(step.then_ns as u64));
        if !step.pause.is_zero() {
            let others = self.guest.tasks.iter().zip(&mut self.next);
            others
                .filter(|(other, _)| other.model == model)
                .for_each(|(_, next)| *next = next.map(|at| at + step.pause));
        }
        Some(step.page)
    }

    /// Begins anew where the following context is.
    pub fn jump(&mut self, guest: &Guest, next: Vec<Option<Duration>>, followed: &[Duration]) {
        self.guest = guest.clone();
        self.next = next;
        self.ran = followed.to_vec();
        self.leads.iter_mut().for_each(Lead::jumped);
    }

    /// A vCPU of the following context waits for a page.
    pub fn follower_faulted(&mut self, vcpu: u32, number: u64) {
        self.leads[vcpu as usize].follower_faulted(page(number));
    }
}
