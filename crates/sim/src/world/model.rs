//! How loads pick pages.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::time::Duration;

use super::guest::Marks;
use super::heap::Heap;
use super::random::Random;
use crate::scenario::{Load, ModelKind, Trace};

/// From so many draws for each page on, an area is taken to be written all over: a page is left out with e^-16.
const DRAWS_FOR_ALL: u64 = 16;

/// An access that is followed by itself costs as much as so many draws.
const STEP_WORK: u64 = 8;

/// One access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub page: u64,
    pub is_write: bool,
    /// The whole load stands still for so long: a collection, a disk.
    pub pause: Duration,
    /// Until the next access, if the model knows that better than the load's rate.
    pub then_ns: Option<f64>,
}

impl Access {
    pub fn new(page: u64, is_write: bool) -> Self {
        Access {
            page,
            is_write,
            pause: Duration::ZERO,
            then_ns: None,
        }
    }
}

/// A source of accesses that vCPUs share.
pub(crate) trait Model: Debug + Send {
    /// The next access of a vCPU; nothing, if it has ended.
    fn next(&mut self, vcpu: usize, random: &mut Random) -> Option<Access>;

    /// So many accesses at once, of which only the writes leave something. Returns how long the load stood still.
    fn write_many(&mut self, vcpu: usize, accesses: u64, random: &mut Random, marks: &mut Marks) -> Duration {
        let mut pause = Duration::ZERO;
        for _ in 0..accesses {
            marks.work += STEP_WORK;
            let Some(access) = self.next(vcpu, random) else {
                break;
            };
            if access.is_write {
                marks.write(access.page);
            }
            pause += access.pause;
        }
        pause
    }

    /// For what its accesses pause, if they do.
    fn waits_for(&self) -> &'static str {
        "collection"
    }

    /// The heap, if it is one.
    fn heap(&mut self) -> Option<&mut Heap> {
        None
    }

    /// A copy that goes its own way.
    fn boxed(&self) -> Box<dyn Model>;
}

impl Clone for Box<dyn Model> {
    fn clone(&self) -> Self {
        self.boxed()
    }
}

macro_rules! boxed {
    () => {
        fn boxed(&self) -> Box<dyn Model> {
            Box::new(self.clone())
        }
    };
}
pub(super) use boxed;

/// The model of a load.
pub(crate) fn model(load: &Load, vcpus: u32) -> Box<dyn Model> {
    let (first, pages) = load.area;
    let area = Area { first, pages };
    let writes = Writes::new(load.writes.0);
    match load.model {
        ModelKind::Uniform | ModelKind::PageCache => Box::new(Uniform { area, writes }),
        ModelKind::Sequential => Box::new(Sequential::new(area, writes, vcpus)),
        ModelKind::HotCold => {
            let hot = part(area, load.hot.map_or(0.2, |hot| hot.0));
            let share = load.hot_share.map_or(0.8, |share| share.0);
            Box::new(HotCold {
                area,
                hot,
                share,
                writes,
            })
        }
        ModelKind::MovingSet => Box::new(MovingSet::new(area, writes, load)),
        ModelKind::Lru => Box::new(Lru::new(area, writes, load)),
        ModelKind::Heap => Box::new(Heap::new(load)),
        ModelKind::Trace => Box::new(Replay {
            first,
            trace: load.trace.clone(),
            at: 0,
        }),
    }
}

/// Pages next to each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    pub first: u64,
    pub pages: u64,
}

impl Area {
    pub fn any(self, random: &mut Random) -> u64 {
        self.first + random.below(self.pages)
    }

    /// Writes to so many pages, drawn one by one.
    pub fn write_any(self, writes: u64, random: &mut Random, marks: &mut Marks) {
        if writes >= self.pages.saturating_mul(DRAWS_FOR_ALL) {
            return marks.write_range(self.first, self.pages);
        }
        (0..writes).for_each(|_| marks.write(self.any(random)));
    }

    /// Writes to so many pages from an offset on, round and round.
    pub fn write_along(self, offset: u64, count: u64, marks: &mut Marks) {
        let count = count.min(self.pages);
        let to_end = count.min(self.pages - offset);
        marks.write_range(self.first + offset, to_end);
        marks.write_range(self.first, count - to_end);
    }
}

fn part(area: Area, share: f64) -> Area {
    let pages = ((area.pages as f64 * share) as u64).clamp(1, area.pages);
    Area { pages, ..area }
}

/// The part of the accesses that write.
#[derive(Clone, Copy, Debug)]
struct Writes {
    share: f64,
    carry: f64,
}

impl Writes {
    fn new(share: f64) -> Self {
        Writes { share, carry: 0.0 }
    }

    /// Of so many accesses: what is left of a write is kept for the next time.
    fn of(&mut self, accesses: u64) -> u64 {
        let writes = accesses as f64 * self.share + self.carry;
        self.carry = writes.fract();
        writes as u64
    }
}

#[derive(Clone, Debug)]
struct Uniform {
    area: Area,
    writes: Writes,
}

impl Model for Uniform {
    fn next(&mut self, _: usize, random: &mut Random) -> Option<Access> {
        let page = self.area.any(random);
        Some(Access::new(page, random.chance(self.writes.share)))
    }

    fn write_many(&mut self, _: usize, accesses: u64, random: &mut Random, marks: &mut Marks) -> Duration {
        self.area.write_any(self.writes.of(accesses), random, marks);
        Duration::ZERO
    }

    boxed!();
}

#[derive(Clone, Debug)]
struct Sequential {
    area: Area,
    writes: Writes,
    /// Where each vCPU is.
    offsets: Vec<u64>,
}

impl Sequential {
    fn new(area: Area, writes: Writes, vcpus: u32) -> Self {
        let place = |vcpu| area.pages * u64::from(vcpu) / u64::from(vcpus);
        Sequential {
            area,
            writes,
            offsets: (0..vcpus).map(place).collect(),
        }
    }
}

impl Model for Sequential {
    fn next(&mut self, vcpu: usize, random: &mut Random) -> Option<Access> {
        let offset = &mut self.offsets[vcpu];
        let page = self.area.first + *offset;
        *offset = (*offset + 1) % self.area.pages;
        Some(Access::new(page, random.chance(self.writes.share)))
    }

    fn write_many(&mut self, vcpu: usize, accesses: u64, random: &mut Random, marks: &mut Marks) -> Duration {
        if self.writes.share < 1.0 {
            marks.work += accesses;
            let pages = (0..accesses).filter_map(|_| self.next(vcpu, random));
            pages
                .filter(|access| access.is_write)
                .for_each(|access| marks.write(access.page));
            return Duration::ZERO;
        }
        self.area.write_along(self.offsets[vcpu], accesses, marks);
        self.offsets[vcpu] = (self.offsets[vcpu] + accesses % self.area.pages) % self.area.pages;
        Duration::ZERO
    }

    boxed!();
}

#[derive(Clone, Debug)]
struct HotCold {
    area: Area,
    hot: Area,
    /// Of the accesses, to the hot part; the others go anywhere.
    share: f64,
    writes: Writes,
}

impl Model for HotCold {
    fn next(&mut self, _: usize, random: &mut Random) -> Option<Access> {
        let area = if random.chance(self.share) {
            self.hot
        } else {
            self.area
        };
        let page = area.any(random);
        Some(Access::new(page, random.chance(self.writes.share)))
    }

    fn write_many(&mut self, _: usize, accesses: u64, random: &mut Random, marks: &mut Marks) -> Duration {
        let writes = self.writes.of(accesses);
        let hot = (writes as f64 * self.share) as u64;
        // What is less than one draw is a chance.
        let hot = hot + u64::from(random.chance((writes as f64 * self.share).fract()));
        self.hot.write_any(hot.min(writes), random, marks);
        self.area.write_any(writes - hot.min(writes), random, marks);
        Duration::ZERO
    }

    boxed!();
}

#[derive(Clone, Debug)]
struct MovingSet {
    area: Area,
    set: Area,
    writes: Writes,
    /// Accesses for which a set stays, and how many of them are left.
    stays: u64,
    left: u64,
}

impl MovingSet {
    fn new(area: Area, writes: Writes, load: &Load) -> Self {
        let every = load.moves_every.map_or(Duration::from_secs(10), |every| every.0);
        let rate = load.rate.map_or(1.0, |rate| rate.0);
        let stays = ((rate * every.as_secs_f64()) as u64).max(1);
        MovingSet {
            area,
            set: part(area, load.set.map_or(0.1, |set| set.0)),
            writes,
            stays,
            left: stays,
        }
    }

    /// Uses up so many accesses of the ones that are left of this set. A new one is drawn when none is.
    fn take(&mut self, wanted: u64, random: &mut Random) -> u64 {
        if self.left == 0 {
            self.left = self.stays;
            self.set.first = self.area.first + random.below(self.area.pages - self.set.pages + 1);
        }
        let taken = wanted.min(self.left);
        self.left -= taken;
        taken
    }
}

impl Model for MovingSet {
    fn next(&mut self, _: usize, random: &mut Random) -> Option<Access> {
        self.take(1, random);
        let page = self.set.any(random);
        Some(Access::new(page, random.chance(self.writes.share)))
    }

    fn write_many(&mut self, _: usize, accesses: u64, random: &mut Random, marks: &mut Marks) -> Duration {
        let mut left = accesses;
        while left > 0 {
            let taken = self.take(left, random);
            left -= taken;
            marks.work += 1;
            self.set.write_any(self.writes.of(taken), random, marks);
        }
        Duration::ZERO
    }

    boxed!();
}

/// The third seed's workload: references to more pages than fit, the least recently used one makes room. To bring a page in
/// writes to its frame, and takes the time of a disk.
#[derive(Clone, Debug)]
struct Lru {
    area: Area,
    writes: Writes,
    /// Pages that are referred to.
    pages: u64,
    disk: Duration,
    /// Frame and last use of what is there.
    there: HashMap<u64, (u64, u64)>,
    /// By last use.
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl Lru {
    fn new(area: Area, writes: Writes, load: &Load) -> Self {
        Lru {
            area,
            writes,
            pages: load.pages.unwrap_or(area.pages * 5 / 2).max(1),
            disk: load.disk.map_or(Duration::from_millis(5), |disk| disk.0),
            there: HashMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
        }
    }

    /// The frame of a page, and whether it had to be brought in.
    fn frame(&mut self, page: u64) -> (u64, bool) {
        self.uses += 1;
        let known = self.there.get(&page).copied();
        let frame = match known {
            Some((frame, used)) => {
                self.by_use.remove(&used);
                frame
            }
            None if (self.there.len() as u64) < self.area.pages => self.there.len() as u64,
            None => self.evict(),
        };
        self.there.insert(page, (frame, self.uses));
        self.by_use.insert(self.uses, page);
        (frame, known.is_none())
    }

    fn evict(&mut self) -> u64 {
        let oldest = self.by_use.pop_first();
        oldest
            .and_then(|(_, page)| self.there.remove(&page))
            .map_or(0, |(frame, _)| frame)
    }
}

impl Model for Lru {
    fn next(&mut self, _: usize, random: &mut Random) -> Option<Access> {
        let (frame, is_new) = self.frame(random.below(self.pages));
        let is_write = random.chance(self.writes.share) || is_new;
        let pause = if is_new { self.disk } else { Duration::ZERO };
        Some(Access {
            pause,
            ..Access::new(self.area.first + frame, is_write)
        })
    }

    fn waits_for(&self) -> &'static str {
        "disk"
    }

    boxed!();
}

/// A recorded trace, once.
#[derive(Clone, Debug)]
struct Replay {
    first: u64,
    trace: Trace,
    at: usize,
}

impl Model for Replay {
    fn next(&mut self, _: usize, _: &mut Random) -> Option<Access> {
        let &(at, page, is_write) = self.trace.0.get(self.at)?;
        self.at += 1;
        let then = self
            .trace
            .0
            .get(self.at)
            .map(|next| (next.0 - at).as_nanos() as f64);
        Some(Access {
            then_ns: then.or(Some(0.0)),
            ..Access::new(self.first + page, is_write)
        })
    }

    boxed!();
}
