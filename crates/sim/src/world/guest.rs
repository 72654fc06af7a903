//! The guest: what its vCPUs do, and the marks that they leave.

use std::time::Duration;

use super::bits::{run, Bits, WORD_PAGES};
use super::model::{model, Model};
use super::random::Random;
use crate::scenario::Scenario;

/// Longer than any simulation.
const HELD: Duration = Duration::from_secs(1 << 40);
/// Accesses that are made at once at most, so that the limit on events is looked at now and then.
const ACCESSES_AT_ONCE: f64 = (1 << 20) as f64;
/// Zero pages lie in groups of so many.
const ZERO_GROUP_PAGES: u64 = 64;

/// Which pages were written since the last scan.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    pub dirty: Bits,
    /// How often each page was written, if somebody checks.
    pub versions: Option<Vec<u32>>,
    /// Draws and words of marks that were needed for them: what it costs to simulate.
    pub work: u64,
}

impl Marks {
    pub fn write(&mut self, page: u64) {
        self.work += 1;
        self.dirty.insert(page);
        if let Some(versions) = &mut self.versions {
            versions[page as usize] += 1;
        }
    }

    pub fn write_range(&mut self, first: u64, count: u64) {
        self.work += 1 + count / WORD_PAGES;
        self.dirty.insert_range(first, count);
        if let Some(versions) = &mut self.versions {
            versions[first as usize..(first + count) as usize]
                .iter_mut()
                .for_each(|version| *version += 1);
        }
    }
}

/// One load on one vCPU.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub model: usize,
    pub vcpu: u32,
    /// Between two accesses; none for a trace, which knows its times.
    period_ns: Option<f64>,
    /// Work until the next access.
    pub wait_ns: f64,
    /// Accesses until it ends.
    left: u64,
}

impl Task {
    /// Works for so long. Returns how many accesses that is.
    fn accesses_in(&mut self, work_ns: f64, period_ns: f64) -> u64 {
        if self.wait_ns > work_ns {
            self.wait_ns -= work_ns;
            return 0;
        }
        let accesses = 1 + ((work_ns - self.wait_ns) / period_ns) as u64;
        self.wait_ns += accesses as f64 * period_ns - work_ns;
        let accesses = accesses.min(self.left);
        self.left -= accesses;
        accesses
    }
}

/// What one access came to, for those who follow them one by one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub page: u64,
    pub is_write: bool,
    /// All tasks of the model stand still for so long.
    pub pause: Duration,
    /// Until the task's next access.
    pub then_ns: f64,
}

/// Everything that runs.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub models: Vec<Box<dyn Model>>,
    /// Time that each model still stands still.
    stalls: Vec<Duration>,
    /// Whether each model stands still until it is released.
    held: Vec<bool>,
    /// Time for which everything still stands still, not of its own will.
    still: Duration,
    pub tasks: Vec<Task>,
    pub vcpus: u32,
    /// It is not run for longer at once.
    pub step_max: Duration,
    pub marks: Marks,
    /// Pages that are full of zeros, unless they are marked.
    pub zero: Bits,
    /// Pages that were ever written, up to the last scan.
    pub written: Bits,
    /// Pages without content: in the balloon.
    pub absent: Bits,
    /// Share of the time in which it may run.
    pub speed: f64,
    /// Time that it was held up by others than itself, summed over the vCPUs.
    pub lost: Duration,
    /// How long models stood still of their own will since it was last asked for, and for what.
    pub pauses: Vec<(Duration, &'static str)>,
    randoms: Vec<Random>,
}

impl Guest {
    pub fn new(scenario: &Scenario) -> Self {
        let pages = scenario.memory_pages();
        let vcpus = scenario.guest.vcpus;
        let models: Vec<_> = scenario
            .guest
            .load
            .iter()
            .map(|load| model(load, vcpus))
            .collect();
        let tasks = tasks(scenario);
        Guest {
            stalls: vec![Duration::ZERO; models.len()],
            held: vec![false; models.len()],
            still: Duration::ZERO,
            models,
            randoms: (0..tasks.len())
                .map(|at| Random::new(scenario.seed, at as u64 + 1))
                .collect(),
            tasks,
            vcpus,
            marks: Marks {
                dirty: Bits::new(pages),
                versions: None,
                work: 0,
            },
            step_max: step_max(scenario),
            zero: zero_pages(scenario),
            written: Bits::new(pages),
            absent: Bits::new(pages),
            speed: 1.0,
            lost: Duration::ZERO,
            pauses: Vec::new(),
        }
    }

    /// Runs for so long, with only the marks to show for it.
    pub fn run(&mut self, time: Duration) {
        self.marks.work += 1 + self.tasks.len() as u64;
        let still = match self.held.contains(&true) {
            true => time,
            false => self.still.min(time),
        };
        self.still = self.still.saturating_sub(time);
        let slowed = (time - still).mul_f64(1.0 - self.speed);
        self.lost += (still + slowed) * self.vcpus;
        let runs: Vec<f64> = self
            .stalls
            .iter_mut()
            .map(|stall| {
                let still = (*stall).min(time);
                *stall -= still;
                (time - still).as_nanos() as f64 * self.speed
            })
            .collect();
        for (task, random) in self.tasks.iter_mut().zip(&mut self.randoms) {
            let (at, vcpu) = (task.model, task.vcpu as usize);
            let model = &mut self.models[at];
            let pause = match task.period_ns {
                Some(period_ns) => {
                    let accesses = task.accesses_in(runs[at], period_ns);
                    model.write_many(vcpu, accesses, random, &mut self.marks)
                }
                None => replay(task, runs[at], model.as_mut(), random, &mut self.marks),
            };
            if !pause.is_zero() {
                self.stalls[at] += pause;
                self.pauses.push((pause, model.waits_for()));
            }
        }
    }

    /// What was simulated since it was last asked for, in events.
    pub fn take_work(&mut self) -> u64 {
        std::mem::take(&mut self.marks.work)
    }

    /// The next access of a task.
    pub fn step(&mut self, task: usize) -> Option<Step> {
        let one = &mut self.tasks[task];
        one.left = one.left.checked_sub(1)?;
        let model = &mut self.models[one.model];
        let access = model.next(one.vcpu as usize, &mut self.randoms[task])?;
        if !access.pause.is_zero() {
            self.pauses.push((access.pause, model.waits_for()));
        }
        Some(Step {
            page: access.page,
            is_write: access.is_write,
            pause: access.pause,
            then_ns: access.then_ns.or(one.period_ns).unwrap_or(1.0),
        })
    }

    /// A model stands still until it is released.
    pub fn hold(&mut self, model: usize) {
        self.stalls[model] = HELD;
        self.held[model] = true;
    }

    /// It goes on.
    pub fn release(&mut self, model: usize) {
        self.stalls[model] = Duration::ZERO;
        self.held[model] = false;
    }

    /// Everything stands still for so long, and not of its own will.
    pub fn stand_still(&mut self, time: Duration) {
        self.still += time;
        self.stalls.iter_mut().for_each(|stall| *stall += time);
    }

    /// The time that the tasks of each model still stand still.
    pub fn stall(&self, model: usize) -> Duration {
        self.stalls[model]
    }

    /// Takes the marks away. Pages that were zero and are marked are not zero any more.
    pub fn take_marks(&mut self) -> Bits {
        let dirty = self.marks.dirty.clone();
        self.zero.subtract(&dirty);
        self.written.union_with(&dirty);
        self.marks.dirty.clear();
        dirty
    }

    /// Pages with content of their own, zeros included.
    pub fn present(&self) -> Bits {
        let mut present = Bits::new(self.absent.pages());
        present.insert_range(0, self.absent.pages());
        present.subtract(&self.absent);
        present
    }
}

/// The time of [`ACCESSES_AT_ONCE`].
fn step_max(scenario: &Scenario) -> Duration {
    let loads = scenario.guest.load.iter();
    let rate: f64 = loads.filter_map(|load| load.rate).map(|rate| rate.0).sum();
    // Less than one access a second needs no bound.
    Duration::from_secs_f64(ACCESSES_AT_ONCE / rate.max(1.0)).max(Duration::from_nanos(1))
}

/// A trace goes by its own times.
fn replay(
    task: &mut Task,
    work_ns: f64,
    model: &mut dyn Model,
    random: &mut Random,
    marks: &mut Marks,
) -> Duration {
    let mut left_ns = work_ns;
    while task.wait_ns <= left_ns && task.left > 0 {
        left_ns -= task.wait_ns;
        let Some(access) = model.next(task.vcpu as usize, random) else {
            task.left = 0;
            break;
        };
        if access.is_write {
            marks.write(access.page);
        }
        task.left -= 1;
        marks.work += 1;
        task.wait_ns = access.then_ns.unwrap_or(1.0);
    }
    task.wait_ns -= left_ns;
    Duration::ZERO
}

/// Each load runs on all vCPUs, which share its rate and begin one after the other; a trace runs on the first one.
fn tasks(scenario: &Scenario) -> Vec<Task> {
    let vcpus = scenario.guest.vcpus;
    let mut tasks = Vec::new();
    for (model, load) in scenario.guest.load.iter().enumerate() {
        let period_ns = load.rate.map(|rate| f64::from(vcpus) * 1e9 / rate.0);
        let first_ns = load
            .trace
            .0
            .first()
            .map_or(0.0, |access| access.0.as_nanos() as f64);
        let of_load = if period_ns.is_some() { vcpus } else { 1 };
        tasks.extend((0..of_load).map(|vcpu| Task {
            model,
            vcpu,
            period_ns,
            wait_ns: period_ns.map_or(first_ns, |period| period * f64::from(vcpu + 1) / f64::from(vcpus)),
            left: load.accesses.unwrap_or(u64::MAX),
        }));
    }
    tasks
}

fn zero_pages(scenario: &Scenario) -> Bits {
    let pages = scenario.memory_pages();
    let mut zero = Bits::new(pages);
    let mut random = Random::new(scenario.seed, 0);
    for group in 0..pages.div_ceil(ZERO_GROUP_PAGES) {
        if random.chance(scenario.memory.zero.0) {
            let group = run(group * ZERO_GROUP_PAGES, ZERO_GROUP_PAGES);
            zero.insert_range(group.first, group.count);
        }
    }
    zero
}
