//! Threads that wait for a page, and how long they did: for whoever writes a [`crate::Pager`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use whimbrel_policy::postcopy::{Fault, Latencies, ThreadId, THREADS_MAX};
use whimbrel_policy::{Page, PageRun};
use whimbrel_wire::wish::THREADS_TOLD_MAX;
use whimbrel_wire::{FaultTimes, Latency};

/// A thread that has touched a page that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The address space that it waits in.
    pub space: u32,
    /// Of the page.
    pub address: u64,
    /// It wants to write.
    pub write: bool,
    /// Its number.
    pub thread: u32,
    /// Since when.
    pub since: Instant,
    /// The page of the source, once it was asked for.
    pub told: Option<Page>,
}

/// All of them.
#[derive(Debug)]
pub struct Waiters {
    /// Nobody knows yet what they wait for.
    pub undecided: Vec<Waiter>,
    /// They wait for a page of the source.
    waiting: Vec<Waiter>,
    all: Latencies,
    threads: BTreeMap<u32, Latencies>,
    local_faults: u64,
    begun: Instant,
}

impl Default for Waiters {
    fn default() -> Self {
        Self::new()
    }
}

impl Waiters {
    /// Nobody waits, and time begins.
    pub fn new() -> Waiters {
        Waiters {
            undecided: Vec::new(),
            waiting: Vec::new(),
            all: Latencies::default(),
            threads: BTreeMap::new(),
            local_faults: 0,
            begun: Instant::now(),
        }
    }

    /// A fault was told. One that was told before (a signal makes a thread touch its page again) is the same one.
    pub fn add(&mut self, waiter: Waiter) {
        let mut all = self.waiting.iter_mut().chain(&mut self.undecided);
        let known = all.find(|one| same(one, &waiter));
        match known {
            Some(known) => known.write |= waiter.write,
            None => self.undecided.push(waiter),
        }
    }

    /// Whether it waits already. A signal makes a thread touch its page again.
    pub fn knows(&self, waiter: &Waiter) -> bool {
        self.waiting
            .iter()
            .chain(&self.undecided)
            .any(|one| same(one, waiter))
    }

    /// What threads of an address space wait for has to be decided anew.
    pub fn reconsider(&mut self, space: u32) {
        let (again, stay) = self.waiting.drain(..).partition(|waiter| waiter.space == space);
        self.waiting = stay;
        self.undecided.extend::<Vec<Waiter>>(again);
    }

    /// Whoever waits at these addresses touches its page again by itself.
    pub fn forget(&mut self, space: u32, inside: impl Fn(u64) -> bool) {
        let goes = |waiter: &Waiter| waiter.space == space && inside(waiter.address);
        self.waiting.retain(|waiter| !goes(waiter));
        self.undecided.retain(|waiter| !goes(waiter));
    }

    /// It waits for a page of the source. True if that has not been told yet.
    pub fn wait(&mut self, waiter: Waiter, page: Page) -> bool {
        let told = Some(page);
        self.waiting.push(Waiter { told, ..waiter });
        waiter.told != told
    }

    /// It waited for a page that nobody had.
    pub fn served_here(&mut self) {
        self.local_faults += 1;
    }

    /// Pages are there: their waiters go on.
    pub fn served(&mut self, run: PageRun) {
        let now = Instant::now();
        let (served, stay) = self
            .waiting
            .drain(..)
            .partition(|waiter| waiter.told.is_some_and(|page| is_in(run, page)));
        self.waiting = stay;
        let served: Vec<Waiter> = served;
        for waiter in served {
            let time = now.saturating_duration_since(waiter.since);
            self.all.add(time);
            if self.threads.len() < THREADS_MAX || self.threads.contains_key(&waiter.thread) {
                self.threads.entry(waiter.thread).or_default().add(time);
            }
        }
    }

    /// Takes out who waits for these pages, for them to be asked for anew. Where they wait.
    pub fn look_again(&mut self, run: PageRun) -> Vec<(u32, u64)> {
        let (again, stay) = self
            .waiting
            .drain(..)
            .partition(|waiter| waiter.told.is_some_and(|page| is_in(run, page)));
        self.waiting = stay;
        let again: Vec<Waiter> = again;
        again
            .iter()
            .map(|waiter| (waiter.space, waiter.address))
            .collect()
    }

    /// Who was told of, as a repetition.
    pub fn faults(&self) -> Vec<Fault> {
        let fault = |waiter: &Waiter| {
            Some(Fault {
                page: waiter.told?,
                thread: ThreadId(waiter.thread),
                repeated: true,
            })
        };
        self.waiting.iter().filter_map(fault).collect()
    }

    /// How long they waited up to now.
    pub fn times(&self) -> FaultTimes {
        let mut threads: Vec<(u32, &Latencies)> = self
            .threads
            .iter()
            .map(|(thread, times)| (*thread, times))
            .collect();
        threads.sort_by_key(|(_, times)| std::cmp::Reverse(times.sum()));
        threads.truncate(THREADS_TOLD_MAX);
        FaultTimes {
            all: told(&self.all),
            threads: threads
                .iter()
                .map(|(thread, times)| (*thread, told(times)))
                .collect(),
            local_faults: self.local_faults,
            residual_us: micros(self.begun.elapsed()),
        }
    }
}

fn same(a: &Waiter, b: &Waiter) -> bool {
    (a.space, a.address, a.thread) == (b.space, b.address, b.thread)
}

fn is_in(run: PageRun, page: Page) -> bool {
    page.space == run.space && page.number >= run.first && page.number - run.first < run.count
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn told(times: &Latencies) -> Latency {
    Latency {
        faults: times.count(),
        p50_us: micros(times.quantile(500)),
        p99_us: micros(times.quantile(990)),
        max_us: micros(times.max()),
        waited_us: micros(times.sum()),
    }
}
