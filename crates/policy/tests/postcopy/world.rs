//! An imagined destination in virtual time: a link with a rate, a delay and one queue; threads that touch pages and stop at
//! those that are missing; a kernel that places what arrives.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use whimbrel_policy::postcopy::{
    Answer, Event, Fault, Latencies, Limits, Order, Path, PieceId, PrePaging, Residual, ThreadId,
};
use whimbrel_policy::{Page, PageRun, Pages, SpaceId, PAGE_SIZE};

use crate::patterns::{Pattern, Random};

const FRAME_BYTES: u64 = 24;

/// What the destination is like.
#[derive(Clone, Debug)]
pub struct Setting {
    pub seed: u64,
    /// Pages, all of them missing at first.
    pub pages: u64,
    /// Bytes per second.
    pub rate: u64,
    pub round_trip: Duration,
    pub threads: u32,
    pub pattern: Pattern,
    /// Between two accesses of a thread.
    pub think: Duration,
    pub accesses: u64,
    /// Of 100 pages, how many are zero.
    pub zero_percent: u64,
    /// When the link is cut, and for how long.
    pub cuts: Vec<(Duration, Duration)>,
    /// When the workload unmaps pages: (when, first, pages).
    pub unmaps: Vec<(Duration, u64, u64)>,
    /// After a cut the destination tells again who waits.
    pub repeats: bool,
}

impl Setting {
    /// 64 MiB, 1 Gbit/s, four threads that touch every page several times.
    pub fn new(pattern: Pattern, round_trip: Duration) -> Self {
        Setting {
            seed: 1,
            pages: 16384,
            rate: 125_000_000,
            round_trip,
            threads: 4,
            pattern,
            think: Duration::from_micros(2),
            accesses: 16384,
            zero_percent: 0,
            cuts: Vec::new(),
            unmaps: Vec::new(),
            repeats: true,
        }
    }

    /// Where a page lies: two spaces, with a hole in each.
    pub fn page(&self, index: u64) -> Page {
        let half = self.pages / 2;
        let (space, number) = (index / half.max(1), index % half.max(1));
        let hole = if number > half / 3 { 1 << 30 } else { 0 };
        Page {
            space: SpaceId(space as u32),
            number: 1000 + number + hole,
        }
    }

    pub fn residue(&self) -> Pages {
        let runs: Vec<_> = (0..self.pages).map(|index| run_of(self.page(index))).collect();
        Pages::from_runs(&runs).unwrap()
    }
}

pub fn run_of(page: Page) -> PageRun {
    PageRun {
        space: page.space,
        first: page.number,
        count: 1,
    }
}

pub fn pages_of(runs: &[PageRun]) -> impl Iterator<Item = Page> + '_ {
    runs.iter().flat_map(|run| {
        (run.first..run.first + run.count).map(|number| Page {
            space: run.space,
            number,
        })
    })
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Access(u32),
    Unmap(u64, u64),
    Cut(Duration),
    Back,
    /// At the source.
    Timer,
    /// What was on the way when the link was cut is lost: the number says on which link it is.
    OnLink(u32, Carried),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Carried {
    Piece(PieceId, Vec<(Page, u64)>),
    Ack(PieceId),
    Fault(Page, u32, bool),
    Gone(Page, u64),
}

struct Thread {
    random: Random,
    done: u64,
    waits: Option<(Page, Duration)>,
}

/// What was seen at the destination.
#[derive(Default)]
pub struct Seen {
    /// How often each page arrived.
    pub arrived: BTreeMap<Page, u32>,
    pub touched: BTreeSet<Page>,
    pub network_faults: u64,
    pub latencies: Latencies,
    pub bytes: u64,
    pub last_arrival: Duration,
    /// Pages that were on the way when the link was cut, or sent into the void.
    pub lost: u64,
    /// The longest time that a reply would have waited for what was pushed before it.
    pub queue_max: Duration,
}

pub struct World {
    pub setting: Setting,
    pub residual: Residual,
    now: Duration,
    pub seen: Seen,
    pub is_done: bool,
    events: BinaryHeap<Reverse<(Duration, u64, Happens)>>,
    count: u64,
    link: u32,
    is_up: bool,
    free_at: Duration,
    missing: Pages,
    threads: Vec<Thread>,
    limits: Limits,
    timer: Option<Duration>,
}

impl World {
    pub fn new(setting: Setting, prepaging: Box<dyn PrePaging>, limits: Limits) -> Self {
        let missing = setting.residue();
        let residual = Residual::new(
            Duration::ZERO,
            missing.clone(),
            prepaging,
            limits,
            Path::default(),
        );
        let thread = |id: u32| Thread {
            random: Random(setting.seed.wrapping_mul(0x9E37_79B9) ^ (u64::from(id) + 1)),
            done: 0,
            waits: None,
        };
        let mut world = World {
            threads: (0..setting.threads).map(thread).collect(),
            residual,
            now: Duration::ZERO,
            seen: Seen::default(),
            is_done: false,
            events: BinaryHeap::new(),
            count: 0,
            link: 0,
            is_up: true,
            free_at: Duration::ZERO,
            missing,
            limits,
            timer: None,
            setting,
        };
        (0..world.setting.threads).for_each(|id| world.at(Duration::ZERO, Happens::Access(id)));
        for (when, how_long) in world.setting.cuts.clone() {
            world.at(when, Happens::Cut(how_long));
        }
        for (when, first, pages) in world.setting.unmaps.clone() {
            world.at(when, Happens::Unmap(first, pages));
        }
        world
    }

    /// Until nothing happens any more: all threads have done what they had to do, and nothing is on the way.
    pub fn run(&mut self) {
        self.run_until(Duration::MAX);
    }

    pub fn run_until(&mut self, end: Duration) {
        self.source();
        while let Some(Reverse((when, _, happens))) = self.events.pop() {
            assert!(when >= self.now);
            if when > end {
                return;
            }
            self.now = when;
            self.happens(happens);
        }
    }

    /// Touches of pages that were or came there.
    pub fn touches(&self) -> u64 {
        self.threads.iter().map(|thread| thread.done).sum()
    }

    pub fn missing(&self) -> &Pages {
        &self.missing
    }

    pub fn all_threads_are_through(&self) -> bool {
        let accesses = self.setting.accesses;
        self.threads.iter().all(|thread| thread.done == accesses)
    }

    /// Percent of what the link could have carried up to the last arrival.
    pub fn link_use(&self) -> f64 {
        self.seen.bytes as f64 * 100.0 / (self.setting.rate as f64 * self.seen.last_arrival.as_secs_f64())
    }

    fn at(&mut self, when: Duration, happens: Happens) {
        self.count += 1;
        self.events.push(Reverse((when, self.count, happens)));
    }

    fn on_link(&mut self, when: Duration, carried: Carried) {
        let link = self.link;
        if self.is_up {
            self.at(when, Happens::OnLink(link, carried));
        }
    }

    fn happens(&mut self, happens: Happens) {
        match happens {
            Happens::Access(id) => self.access(id),
            Happens::Unmap(first, pages) => self.unmap(first, pages),
            Happens::Cut(how_long) => {
                self.link += 1;
                self.is_up = false;
                self.residual.handle(self.now, Event::LinkLost);
                self.source();
                self.at(self.now + how_long, Happens::Back);
            }
            Happens::Back => self.link_back(),
            Happens::Timer => {
                self.timer = None;
                self.source();
            }
            Happens::OnLink(link, carried) if link == self.link && self.is_up => self.arrives(carried),
            Happens::OnLink(_, Carried::Piece(_, runs)) => {
                self.seen.lost += runs.iter().map(|run| run.1).sum::<u64>();
            }
            Happens::OnLink(..) => {}
        }
    }

    fn access(&mut self, id: u32) {
        let setting = &self.setting;
        let thread = &mut self.threads[id as usize];
        if thread.done == setting.accesses {
            return;
        }
        let index = setting
            .pattern
            .index(id, setting, thread.done, &mut thread.random);
        let page = setting.page(index);
        self.seen.touched.insert(page);
        if !self.missing.contains(page) {
            thread.done += 1;
            let next = self.now + setting.think;
            self.at(next, Happens::Access(id));
            return;
        }
        thread.waits = Some((page, self.now));
        self.seen.network_faults += 1;
        self.tell(Carried::Fault(page, id, false));
    }

    fn tell(&mut self, carried: Carried) {
        self.on_link(self.now + self.setting.round_trip / 2, carried);
    }

    fn arrives(&mut self, carried: Carried) {
        match carried {
            Carried::Piece(piece, runs) => {
                let runs = runs.iter().map(|&(page, count)| PageRun {
                    count,
                    ..run_of(page)
                });
                self.place(&runs.collect::<Vec<_>>());
                return self.tell(Carried::Ack(piece));
            }
            Carried::Ack(piece) => self.residual.handle(self.now, Event::Acked { piece }),
            Carried::Gone(page, count) => {
                let runs = vec![PageRun {
                    count,
                    ..run_of(page)
                }];
                self.residual.handle(self.now, Event::Gone { runs });
            }
            Carried::Fault(page, id, repeated) => {
                let thread = ThreadId(id);
                let answer = self.residual.fault(Fault {
                    page,
                    thread,
                    repeated,
                });
                let is_there = !self.missing.contains(page);
                match answer {
                    Answer::Queued | Answer::OnItsWay => {}
                    Answer::Settled => assert!(is_there, "{page:?} is neither there nor gone"),
                    Answer::Unknown | Answer::Unreadable | Answer::Busy => panic!("{answer:?}"),
                }
            }
        }
        self.source();
    }

    fn place(&mut self, runs: &[PageRun]) {
        self.seen.last_arrival = self.now;
        for page in pages_of(runs) {
            *self.seen.arrived.entry(page).or_default() += 1;
        }
        runs.iter().for_each(|&run| self.missing.remove(run));
        self.wake();
    }

    fn wake(&mut self) {
        for id in 0..self.setting.threads {
            let Some((page, since)) = self.threads[id as usize].waits else {
                continue;
            };
            if !self.missing.contains(page) {
                self.threads[id as usize].waits = None;
                self.seen.latencies.add(self.now - since);
                self.threads[id as usize].done += 1;
                self.at(self.now + self.setting.think, Happens::Access(id));
            }
        }
    }

    fn unmap(&mut self, first: u64, pages: u64) {
        for index in first..(first + pages).min(self.setting.pages) {
            let page = self.setting.page(index);
            if self.missing.contains(page) {
                self.missing.remove(run_of(page));
                self.tell(Carried::Gone(page, 1));
            }
        }
        self.wake();
    }

    fn link_back(&mut self) {
        self.is_up = true;
        self.free_at = self.now;
        let missing = self.missing.clone();
        self.residual.handle(self.now, Event::LinkBack { missing });
        let waiting: Vec<_> = (0..)
            .zip(&self.threads)
            .filter_map(|(id, t)| t.waits.map(|w| (w.0, id)))
            .collect();
        if self.setting.repeats {
            waiting
                .into_iter()
                .for_each(|(page, id)| self.tell(Carried::Fault(page, id, true)));
        }
        self.source();
    }

    /// The source does what it is told, until it has to wait.
    fn source(&mut self) {
        loop {
            match self.residual.poll(self.now) {
                Order::Reply { piece, run, fault } => {
                    assert_eq!((run.space, run.first), (fault.page.space, fault.page.number));
                    assert!(run.count <= self.limits.reply_pages_max);
                    let queue = self.free_at.saturating_sub(self.now);
                    self.seen.queue_max = self.seen.queue_max.max(queue);
                    self.send(piece, &[run]);
                }
                Order::Push { piece, runs } => self.send(piece, &runs),
                Order::Wait { until } => return self.wait(until),
                Order::Done => {
                    self.is_done = true;
                    return;
                }
            }
        }
    }

    fn wait(&mut self, until: Option<Duration>) {
        let Some(until) = until.filter(|_| self.timer.is_none()) else {
            return;
        };
        assert!(until > self.now, "a wait into the past");
        self.timer = Some(until);
        self.at(until, Happens::Timer);
    }

    fn send(&mut self, piece: PieceId, runs: &[PageRun]) {
        assert!(self.is_up, "sent without a link");
        let pages = pages_of(runs).count() as u64;
        // By its number, so that it is zero every time.
        let zero_percent = self.setting.zero_percent;
        let is_zero = |page: &Page| page.number.wrapping_mul(2_654_435_761) % 100 < zero_percent;
        let zero_pages = pages_of(runs).filter(is_zero).count() as u64;
        let wire_bytes = FRAME_BYTES + (pages - zero_pages) * PAGE_SIZE;
        self.seen.bytes += wire_bytes;
        self.free_at = self.free_at.max(self.now)
            + Duration::from_secs_f64(wire_bytes as f64 / self.setting.rate as f64);
        let carried = runs.iter().map(|run| {
            let number = run.first;
            (
                Page {
                    space: run.space,
                    number,
                },
                run.count,
            )
        });
        let carried = Carried::Piece(piece, carried.collect());
        self.on_link(self.free_at + self.setting.round_trip / 2, carried);
        let sent = Event::Sent {
            piece,
            wire_bytes,
            zero_pages,
            unreadable: Vec::new(),
        };
        self.residual.handle(self.now, sent);
    }
}
