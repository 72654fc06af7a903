//! An imagined workload: its memory is a map, it changes whenever the engine is not looking, and a world around it keeps
//! count of where it runs. Sockets, journals and threads are real.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use whimbrel_engine::contract::{Captured, Scanned};
use whimbrel_engine::{
    migrate, take_over, Error, Failure, GuardianOptions, Journals, Left, Mode, News, Observer, Outcome,
    PageStore, Pager, Phase, ReceiveOptions, Received, Reception, Recover, Replica, ResidualOptions, Role,
    Settled, SourceOptions, Summary, Tell, Whereabouts, Workload,
};
use whimbrel_policy::postcopy::{Fault, ThreadId};
use whimbrel_policy::{Hints, Limits, Migration, Page, PageRun, PreCopy, Scan, SpaceId, StopCopy};
use whimbrel_wire::{FaultTimes, Key, MigrationId};

pub const PAGE: usize = 4096;
type PageId = (u32, u64);

/// Something went wrong on purpose, or is asked for in the wrong order.
#[derive(Debug)]
pub struct Trouble(pub String);

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Trouble {}

/// Numbers that look random and are the same for the same seed (xorshift, Marsaglia 2003).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}

/// One copy of the workload.
#[derive(Clone, Debug, Default)]
pub struct Copy {
    pub exists: bool,
    /// Stopped by the controller: ends with it.
    pub stopped: bool,
    /// Stopped by something that outlives the controller.
    pub held: bool,
    /// What each page holds; a page that is not there has no content of its own. 0 is a page full of zeros.
    pub memory: BTreeMap<PageId, u64>,
}

impl Copy {
    pub fn runs(&self) -> bool {
        self.exists && !self.stopped && !self.held
    }
}

/// Both hosts, and the rules that must hold on them.
#[derive(Debug, Default)]
pub struct World {
    pub source: Copy,
    pub destination: Copy,
    /// What was frozen; what starts must be the same.
    pub frozen: Option<BTreeMap<PageId, u64>>,
    pub state: u64,
    pub complaints: Vec<String>,
    /// What the destination lacks while it runs already.
    pub missing: BTreeSet<PageId>,
    /// Who waits for what.
    pub waiting: BTreeSet<(PageId, u32)>,
    /// It shall wait until everything is there.
    pub paused: bool,
    pub pauses: u32,
    /// It was ended, since it could not have its pages.
    pub given_up: Option<String>,
    pub faults: u64,
}

pub type Shared = Arc<Mutex<World>>;

pub fn look(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn judge(&mut self) {
        if self.source.runs() && self.destination.runs() {
            self.complaints.push("it runs twice".into());
        }
        if self.destination.runs() {
            if let Some(frozen) = &self.frozen {
                // A page of zeros and a page that is not there read the same.
                let full = |m: &BTreeMap<PageId, u64>| {
                    let there = |p: &(PageId, u64)| p.1 != 0 && !self.missing.contains(&p.0);
                    m.clone().into_iter().filter(there).collect::<Vec<_>>()
                };
                if full(frozen) != full(&self.destination.memory) {
                    self.complaints.push("the memory differs".into());
                }
                if self.missing.is_empty() {
                    self.frozen = None;
                }
            }
        }
    }
}

/// One area of memory; a new one at the same place has another generation.
type Areas = BTreeMap<(u32, u64), (u64, u64)>;

pub struct ImaginedWorkload {
    pub world: Shared,
    random: Random,
    areas: Areas,
    told: Areas,
    lost: Vec<PageRun>,
    written: BTreeSet<PageId>,
    layouts: u64,
    /// Fails in this call.
    pub trouble: Option<&'static str>,
    generations: u64,
    copy: u64,
}

const AREA_PAGES: u64 = 700;

impl ImaginedWorkload {
    pub fn new(world: &Shared, seed: u64) -> Self {
        look(world).source.exists = true;
        let mut workload = Self {
            world: Arc::clone(world),
            random: Random::new(seed),
            areas: Areas::new(),
            told: Areas::new(),
            lost: Vec::new(),
            written: BTreeSet::new(),
            layouts: 0,
            trouble: None,
            generations: 0,
            copy: 0,
        };
        (0..6).for_each(|_| workload.map());
        (0..4000).for_each(|_| workload.write());
        workload
    }

    fn map(&mut self) {
        self.generations += 1;
        let at = (self.random.next(2) as u32, self.random.next(8) * AREA_PAGES);
        self.unmap(at);
        let pages = 1 + self.random.next(AREA_PAGES);
        self.areas.insert(at, (pages, self.generations));
    }

    fn unmap(&mut self, at: (u32, u64)) {
        let Some((pages, generation)) = self.areas.remove(&at) else {
            return;
        };
        let gone = |p: &PageId| p.0 == at.0 && p.1 >= at.1 && p.1 < at.1 + pages;
        look(&self.world).source.memory.retain(|p, _| !gone(p));
        self.written.retain(|p| !gone(p));
        if self.told.get(&at) == Some(&(pages, generation)) {
            self.lost.push(PageRun {
                space: SpaceId(at.0),
                first: at.1,
                count: pages,
            });
        }
    }

    fn some_page(&mut self) -> Option<PageId> {
        let index = self.random.next(self.areas.len().max(1) as u64) as usize;
        let (&at, &(pages, _)) = self.areas.iter().nth(index)?;
        Some((at.0, at.1 + self.random.next(pages)))
    }

    fn write(&mut self) {
        let Some(page) = self.some_page() else { return };
        let content = if self.random.next(8) == 0 {
            0
        } else {
            self.random.next(u64::MAX - 1) + 1
        };
        look(&self.world).source.memory.insert(page, content);
        self.written.insert(page);
    }

    /// MADV_DONTNEED: the page has no content of its own any more, and counts as written.
    fn punch(&mut self) {
        let Some(page) = self.some_page() else { return };
        look(&self.world).source.memory.remove(&page);
        self.written.insert(page);
    }

    /// What a running workload does between two looks.
    fn live(&mut self) {
        if !look(&self.world).source.runs() {
            return;
        }
        for _ in 0..self.random.next(30) {
            match self.random.next(40) {
                0 => self.map(),
                1..4 => self.punch(),
                _ => self.write(),
            }
        }
    }

    fn call(&mut self, name: &'static str) -> Result<(), Trouble> {
        self.live();
        match self.trouble {
            Some(trouble) if trouble == name => Err(Trouble(format!("trouble in {name} of process 42"))),
            _ => Ok(()),
        }
    }

    /// The layout, if it is another than the last that was told.
    fn layout(&mut self) -> Option<Vec<u8>> {
        (self.told != self.areas || self.layouts == 0).then(|| {
            self.layouts += 1;
            self.told = self.areas.clone();
            encode(&self.areas)
        })
    }

    fn scanned(&mut self) -> Scanned {
        let layout = self.layout();
        let memory = look(&self.world).source.memory.clone();
        let written = std::mem::take(&mut self.written);
        // As a kernel does: what is not there is not reported while it runs.
        let written = written.into_iter().filter(|p| memory.contains_key(p));
        let scan = Scan {
            written: runs(written),
            lost: std::mem::take(&mut self.lost),
            present: None,
            urgent: Vec::new(),
        };
        Scanned {
            scan,
            layout,
            pages_total: memory.len() as u64,
        }
    }
}

pub fn runs(pages: impl IntoIterator<Item = PageId>) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for (space, first) in pages {
        match runs.last_mut() {
            Some(run) if run.space.0 == space && run.first + run.count == first => run.count += 1,
            _ => runs.push(PageRun {
                space: SpaceId(space),
                first,
                count: 1,
            }),
        }
    }
    runs
}

fn pages(run: PageRun) -> impl Iterator<Item = PageId> {
    (run.first..run.first + run.count).map(move |page| (run.space.0, page))
}

fn encode(areas: &Areas) -> Vec<u8> {
    let words = areas
        .iter()
        .flat_map(|(&(space, first), &(pages, generation))| [u64::from(space), first, pages, generation]);
    words.flat_map(u64::to_le_bytes).collect()
}

fn decode(layout: &[u8]) -> Areas {
    let words: Vec<u64> = layout
        .chunks(8)
        .map(|w| u64::from_le_bytes(w.try_into().unwrap()))
        .collect();
    words
        .chunks(4)
        .map(|w| ((w[0] as u32, w[1]), (w[2], w[3])))
        .collect()
}

fn fill(page: &mut [u8], content: u64) {
    page.chunks_mut(8)
        .for_each(|word| word.copy_from_slice(&content.to_le_bytes()));
}

/// Reads what is frozen.
pub struct ImaginedStore(Shared);

impl PageStore for ImaginedStore {
    type Error = Trouble;

    fn read(
        &mut self,
        asked: &[PageRun],
        buffer: &mut [u8],
        failed: &mut Vec<PageRun>,
    ) -> Result<(), Trouble> {
        let world = look(&self.0);
        for (page, data) in asked.iter().flat_map(|&r| pages(r)).zip(buffer.chunks_mut(PAGE)) {
            match world.source.exists {
                true => fill(data, world.source.memory.get(&page).copied().unwrap_or(0)),
                false => failed.extend(runs([page])),
            }
        }
        Ok(())
    }
}

/// Spaces from this one on cannot be served.
const URGENT_SPACE: u32 = 1;

impl Workload for ImaginedWorkload {
    type Error = Trouble;
    type Store = ImaginedStore;

    fn describe(&mut self) -> Result<Vec<u8>, Trouble> {
        self.call("describe")?;
        Ok(b"imagined".to_vec())
    }

    fn resources(&self) -> Vec<u8> {
        vec![1, self.layouts as u8]
    }

    fn begin(&mut self, _: Mode) -> Result<(), Trouble> {
        self.call("begin")?;
        self.written = look(&self.world).source.memory.keys().copied().collect();
        Ok(())
    }

    fn scan(&mut self) -> Result<Scanned, Trouble> {
        self.call("scan")?;
        let scanned = self.scanned();
        self.live();
        Ok(scanned)
    }

    fn rewritten(&mut self, asked: &[PageRun], out: &mut Vec<PageRun>) -> Result<(), Trouble> {
        self.call("rewritten")?;
        out.extend(runs(
            asked
                .iter()
                .flat_map(|&r| pages(r))
                .filter(|p| self.written.contains(p)),
        ));
        Ok(())
    }

    fn read(
        &mut self,
        asked: &[PageRun],
        buffer: &mut [u8],
        failed: &mut Vec<PageRun>,
    ) -> Result<(), Trouble> {
        self.call("read")?;
        assert_eq!(
            buffer.len() as u64,
            asked.iter().map(|r| r.count).sum::<u64>() * PAGE as u64
        );
        let source = look(&self.world).source.clone();
        let (memory, running) = (&source.memory, source.runs());
        for (page, data) in asked.iter().flat_map(|&r| pages(r)).zip(buffer.chunks_mut(PAGE)) {
            let mapped = self
                .areas
                .iter()
                .any(|(at, a)| at.0 == page.0 && (at.1..at.1 + a.0).contains(&page.1));
            // Reading what is there fails now and then, too, as long as it runs.
            let unlucky = running && self.random.next(50) == 0;
            if mapped && !unlucky {
                fill(data, memory.get(&page).copied().unwrap_or(0));
            } else {
                failed.extend(runs([page]));
                data.fill(0xee);
            }
        }
        Ok(())
    }

    fn freeze(&mut self) -> Result<(), Trouble> {
        self.call("freeze")?;
        let mut world = look(&self.world);
        world.source.stopped = true;
        world.frozen = Some(world.source.memory.clone());
        Ok(())
    }

    fn layout_frozen(&mut self) -> Result<Option<Vec<u8>>, Trouble> {
        self.call("layout_frozen")?;
        Ok(self.layout())
    }

    fn capture(&mut self) -> Result<Captured, Trouble> {
        self.call("capture")?;
        let mut world = look(&self.world);
        world.state = self.random.next(1 << 60);
        let words = 1 + self.random.next(300_000) as usize;
        Ok(Captured {
            layout: None,
            state: world.state.to_le_bytes().repeat(words),
        })
    }

    fn scan_frozen(&mut self) -> Result<Scanned, Trouble> {
        self.call("scan_frozen")?;
        let mut scanned = self.scanned();
        let memory = look(&self.world).source.memory.clone();
        scanned.scan.urgent = runs(memory.keys().copied().filter(|p| p.0 >= URGENT_SPACE));
        scanned.scan.present = Some(runs(memory.into_keys()));
        Ok(scanned)
    }

    fn store(&mut self) -> Result<ImaginedStore, Trouble> {
        self.call("store")?;
        Ok(ImaginedStore(Arc::clone(&self.world)))
    }

    fn hold(&mut self) -> Result<(), Trouble> {
        self.call("hold")?;
        look(&self.world).source.held = true;
        Ok(())
    }

    fn release(&mut self, outcome: Outcome) -> Result<(), Trouble> {
        match outcome {
            Outcome::Moved => moved(&self.world),
            Outcome::Stays => stays(&self.world),
        }
        Ok(())
    }
}

fn moved(world: &Shared) {
    let mut world = look(world);
    if world.destination.exists && !world.missing.is_empty() {
        world
            .complaints
            .push("the copy was ended while pages of it were missing".into());
    }
    world.source = Copy::default();
}

fn stays(world: &Shared) {
    let mut world = look(world);
    world.source.stopped = false;
    world.source.held = false;
    world.judge();
}

pub struct ImaginedReplica {
    pub world: Shared,
    areas: Areas,
    loaded: bool,
    pub trouble: Option<&'static str>,
}

impl ImaginedReplica {
    pub fn new(world: &Shared, trouble: Option<&'static str>) -> Self {
        Self {
            world: Arc::clone(world),
            areas: Areas::new(),
            loaded: false,
            trouble,
        }
    }

    fn call(&self, name: &'static str) -> Result<(), Trouble> {
        match self.trouble {
            Some(trouble) if trouble == name => Err(Trouble(format!("trouble in {name} of the replica"))),
            _ => Ok(()),
        }
    }
}

/// A workload at the destination that touches what is missing, and drops some of it.
pub struct ImaginedPager {
    world: Shared,
    random: Mutex<Random>,
}

impl ImaginedPager {
    fn new(world: &Shared) -> Self {
        Self {
            world: Arc::clone(world),
            random: Mutex::new(Random::new(look(world).missing.len() as u64)),
        }
    }

    fn random(&self, below: usize) -> usize {
        self.random.lock().unwrap().next(below.max(1) as u64) as usize
    }
}

impl Pager for ImaginedPager {
    type Error = Trouble;

    fn serve(&self, _: Duration, tell: Tell<'_>) -> Result<bool, Trouble> {
        thread::sleep(Duration::from_micros(200));
        let mut world = look(&self.world);
        if world.given_up.is_some() {
            return Ok(false);
        }
        let some = self.random(world.missing.len());
        let page = world.missing.iter().nth(some).copied();
        if let Some(page) = page.filter(|_| world.destination.runs() && !world.paused) {
            let run = runs([page])[0];
            if self.random(10) == 0 {
                world.missing.remove(&page);
                world.waiting.retain(|w| w.0 != page);
                // What it has dropped is nobody's business any more.
                world.frozen.as_mut().unwrap().remove(&page);
                world.source.memory.remove(&page);
                tell(News::Gone(run));
                world.judge();
                return Ok(true);
            }
            let thread = self.random(4) as u32;
            if world.waiting.insert((page, thread)) {
                world.faults += 1;
                tell(News::Fault(fault(page, thread, false)));
            }
        }
        Ok(true)
    }

    fn place(&self, run: PageRun, data: Option<&[u8]>, _: Tell<'_>) -> Result<(), Trouble> {
        let mut world = look(&self.world);
        for (index, page) in pages(run).enumerate() {
            let content = data.map_or(0, |data| {
                u64::from_le_bytes(data[index * PAGE..index * PAGE + 8].try_into().unwrap())
            });
            if world.missing.remove(&page) {
                world.waiting.retain(|w| w.0 != page);
                if world.destination.memory.insert(page, content).is_some() {
                    world.complaints.push(format!("{page:?} was missing and there"));
                }
            }
        }
        if world.missing.is_empty() {
            world.judge();
        }
        Ok(())
    }

    fn look_again(&self, _: PageRun) -> Result<(), Trouble> {
        Ok(())
    }

    fn missing_pages(&self) -> u64 {
        look(&self.world).missing.len() as u64
    }

    fn missing(&self) -> Vec<PageRun> {
        runs(look(&self.world).missing.clone())
    }

    fn waiting(&self) -> Vec<Fault> {
        let waiting = look(&self.world).waiting.clone();
        waiting
            .into_iter()
            .map(|(page, thread)| fault(page, thread, true))
            .collect()
    }

    fn times(&self) -> FaultTimes {
        FaultTimes::default()
    }

    fn pause(&self) -> Result<(), Trouble> {
        let mut world = look(&self.world);
        world.paused = true;
        world.pauses += 1;
        Ok(())
    }

    fn finish(&self) -> Result<(), Trouble> {
        let mut world = look(&self.world);
        if !world.missing.is_empty() && world.given_up.is_none() {
            world.complaints.push("finished while pages are missing".into());
        }
        world.paused = false;
        Ok(())
    }

    fn give_up(&self, sentence: &str) -> Result<(), Trouble> {
        let mut world = look(&self.world);
        world.given_up = Some(sentence.to_owned());
        world.destination = Copy::default();
        world.missing.clear();
        Ok(())
    }
}

fn fault(page: PageId, thread: u32, repeated: bool) -> Fault {
    let page = Page {
        space: SpaceId(page.0),
        number: page.1,
    };
    let thread = ThreadId(thread);
    Fault {
        page,
        thread,
        repeated,
    }
}

impl Replica for ImaginedReplica {
    type Error = Trouble;
    type Pager = ImaginedPager;

    fn arm(&mut self, missing: &[PageRun]) -> Result<ImaginedPager, Trouble> {
        self.call("arm")?;
        let mut world = look(&self.world);
        world.missing = missing.iter().flat_map(|&run| pages(run)).collect();
        if world.missing.iter().any(|p| p.0 >= URGENT_SPACE) {
            world.complaints.push("urgent pages were left behind".into());
        }
        if world
            .missing
            .iter()
            .any(|p| world.destination.memory.contains_key(p))
        {
            world.complaints.push("older copies of missing pages".into());
        }
        drop(world);
        Ok(ImaginedPager::new(&self.world))
    }

    fn prepare(&mut self, spec: &[u8]) -> Result<(), Trouble> {
        self.call("prepare")?;
        assert_eq!(spec, b"imagined");
        let mut world = look(&self.world);
        world.destination = Copy {
            exists: true,
            stopped: true,
            ..Copy::default()
        };
        Ok(())
    }

    fn resources(&self) -> Vec<u8> {
        vec![2]
    }

    fn follow(&mut self, layout: &[u8]) -> Result<(), Trouble> {
        self.call("follow")?;
        let areas = decode(layout);
        if self.loaded {
            look(&self.world)
                .complaints
                .push("a layout after the state".into());
        }
        let old = std::mem::replace(&mut self.areas, areas);
        let new = &self.areas;
        let gone: Vec<_> = old
            .iter()
            .filter(|(at, area)| new.get(at) != Some(area))
            .collect();
        look(&self.world).destination.memory.retain(|p, _| {
            !gone
                .iter()
                .any(|(at, area)| at.0 == p.0 && (at.1..at.1 + area.0).contains(&p.1))
        });
        Ok(())
    }

    fn write(&mut self, run: PageRun, data: &[u8]) -> Result<(), Trouble> {
        self.call("write")?;
        let mut world = look(&self.world);
        for (page, data) in pages(run).zip(data.chunks(PAGE)) {
            let content = u64::from_le_bytes(data[..8].try_into().unwrap());
            if data.chunks(8).any(|word| word != &data[..8]) {
                world.complaints.push(format!("page {page:?} is torn"));
            }
            world.destination.memory.insert(page, content);
        }
        Ok(())
    }

    fn zero(&mut self, run: PageRun) -> Result<(), Trouble> {
        self.call("zero")?;
        look(&self.world)
            .destination
            .memory
            .extend(pages(run).map(|p| (p, 0)));
        Ok(())
    }

    fn forget(&mut self, run: PageRun) -> Result<(), Trouble> {
        self.call("forget")?;
        let mut world = look(&self.world);
        pages(run).for_each(|p| {
            world.destination.memory.remove(&p);
        });
        Ok(())
    }

    fn load(&mut self, state: &[u8]) -> Result<(), Trouble> {
        self.call("load")?;
        let mut world = look(&self.world);
        if state.chunks(8).any(|word| word != world.state.to_le_bytes()) {
            world.complaints.push("the state is another".into());
        }
        self.loaded = true;
        Ok(())
    }

    fn complete(&mut self) -> Result<(), Trouble> {
        self.call("complete")?;
        let mut world = look(&self.world);
        if !self.loaded {
            world.complaints.push("complete without a state".into());
        }
        world.destination.held = true;
        Ok(())
    }

    fn start(&mut self) -> Result<(), Trouble> {
        self.call("start")?;
        start(&self.world);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Trouble> {
        self.call("settle")
    }

    fn discard(&mut self) -> Result<(), Trouble> {
        self.call("discard")?;
        discard(&self.world);
        Ok(())
    }
}

fn start(world: &Shared) {
    let mut world = look(world);
    if !world.destination.exists {
        world.complaints.push("started what is not there".into());
    }
    world.destination.held = false;
    world.destination.stopped = false;
    world.judge();
}

fn discard(world: &Shared) {
    let mut world = look(world);
    if world.destination.runs() {
        world.complaints.push("discarded what runs".into());
    }
    world.destination = Copy::default();
}

/// Cleans up after a dead controller.
pub struct ImaginedRecover(pub Shared);

impl Recover for ImaginedRecover {
    type Error = Trouble;
    type Store = ImaginedStore;
    type Pager = ImaginedPager;

    fn store(&self, _: &[u8]) -> Result<ImaginedStore, Trouble> {
        Ok(ImaginedStore(Arc::clone(&self.0)))
    }

    fn pager(&self, _: &[u8]) -> Result<Left<ImaginedPager>, Trouble> {
        let missing = look(&self.0).missing.len();
        match missing {
            0 => Ok(Left::Nothing),
            _ => {
                let pager = ImaginedPager::new(&self.0);
                pager.pause()?;
                Ok(Left::Pages(pager))
            }
        }
    }

    fn stays(&self, _: &[u8]) -> Result<(), Trouble> {
        stays(&self.0);
        Ok(())
    }

    fn moved(&self, _: &[u8]) -> Result<(), Trouble> {
        moved(&self.0);
        Ok(())
    }

    fn discard(&self, resources: &[u8]) -> Result<(), Trouble> {
        if !resources.is_empty() {
            discard(&self.0);
        }
        Ok(())
    }

    fn start(&self, _: &[u8]) -> Result<(), Trouble> {
        start(&self.0);
        Ok(())
    }
}

/// What a test does at the beginning of a phase.
pub struct At<F> {
    pub phase: Phase,
    pub act: Option<F>,
    pub warnings: Vec<String>,
}

impl<F: FnOnce()> Observer for At<F> {
    fn begun(&mut self, phase: Phase) {
        if phase == self.phase {
            if let Some(act) = self.act.take() {
                act();
            }
        }
    }

    fn warning(&mut self, sentence: &str) {
        self.warnings.push(sentence.to_owned());
    }
}

/// Ends this thread as kill -9 ends a process: nothing is said, sockets and locks close.
pub fn kill_me() {
    std::panic::resume_unwind(Box::new("killed"));
}

/// A link that can be cut and mended: a relay before the destination.
pub struct Cable {
    pub address: SocketAddr,
    plugged: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Cable {
    pub fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let plugged = Arc::new(AtomicBool::new(true));
        let closed = Arc::new(AtomicBool::new(false));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (p, s, c) = (Arc::clone(&plugged), Arc::clone(&streams), Arc::clone(&closed));
        let thread = thread::spawn(move || {
            for near in listener.incoming().map(Result::unwrap) {
                if c.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(far) = TcpStream::connect(to) else { continue };
                let mut all = s.lock().unwrap();
                if p.load(Ordering::SeqCst) {
                    all.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                    pump(near.try_clone().unwrap(), far.try_clone().unwrap());
                    pump(far, near);
                }
            }
        });
        Self {
            address,
            plugged,
            streams,
            closed,
            thread: Some(thread),
        }
    }

    /// Nothing passes any more; what was under way is gone.
    pub fn cut(plugged: &AtomicBool, streams: &Mutex<Vec<TcpStream>>) {
        plugged.store(false, Ordering::SeqCst);
        for stream in streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    pub fn cutter(&self) -> impl FnOnce() + Send + 'static {
        let (plugged, streams) = (Arc::clone(&self.plugged), Arc::clone(&self.streams));
        move || Self::cut(&plugged, &streams)
    }

    pub fn plug(&self) {
        self.plugged.store(true, Ordering::SeqCst);
    }

    /// Says something to the source on the stream for faults, the fourth connection of a migration that leaves pages behind.
    pub fn inject_backwards(&self, say: impl FnOnce(&mut TcpStream)) -> impl FnOnce() {
        let streams = Arc::clone(&self.streams);
        move || say(&mut streams.lock().unwrap()[6])
    }

    /// The same to the destination.
    pub fn inject_forwards(&self, say: impl FnOnce(&mut TcpStream)) -> impl FnOnce() {
        let streams = Arc::clone(&self.streams);
        move || say(&mut streams.lock().unwrap()[7])
    }

    /// What passes now is lost; what comes next is not.
    pub fn jerk(&self) {
        Self::cut(&self.plugged, &self.streams);
        self.plug();
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        Self::cut(&self.plugged, &self.streams);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
        let _ = from.shutdown(std::net::Shutdown::Both);
    });
}

/// Everything that one test needs. Its directory goes with it.
pub struct Stage {
    pub world: Shared,
    pub id: MigrationId,
    pub key: Key,
    pub journals: Journals,
    pub listener: TcpListener,
    pub cancel: Arc<AtomicBool>,
    pub link_timeout: Duration,
    pub answer_for: Duration,
    directory: PathBuf,
}

impl Stage {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("whimbrel-engine-test-{}-{number}", std::process::id()));
        Self {
            world: Shared::default(),
            id: MigrationId::random().unwrap(),
            key: Key::random().unwrap(),
            journals: Journals::new(&directory),
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            cancel: Arc::default(),
            link_timeout: Duration::from_secs(5),
            answer_for: Duration::from_secs(20),
            directory,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub fn receive_options(&self) -> ReceiveOptions {
        ReceiveOptions {
            key: self.key.clone(),
            journals: self.journals.clone(),
            link_timeout: self.link_timeout,
            answer_for: self.answer_for,
            cancel: Arc::default(),
        }
    }

    pub fn guardian(&self, role: Role, cancel: &AtomicBool) -> Result<Settled, Error> {
        let options = GuardianOptions {
            link_timeout: self.link_timeout,
            ask_for: None,
            force_here: false,
            listener: Some(&self.listener),
            answer_for: self.answer_for,
            follow: true,
            cancel,
        };
        take_over(
            &self.journals,
            self.id,
            role,
            &ImaginedRecover(Arc::clone(&self.world)),
            &options,
        )
    }

    /// Exactly one copy runs, and nothing else is left anywhere.
    pub fn verify(&self) -> Where {
        self.wait_until_settled();
        let world = look(&self.world);
        assert_eq!(world.complaints, [""; 0]);
        assert_eq!(world.missing.len(), 0, "pages are missing");
        assert!(
            world.source.runs() != world.destination.runs(),
            "runs: {:?}",
            (&world.source, &world.destination)
        );
        let journals = self.journals.list().unwrap();
        assert!(journals.is_empty(), "journals are left: {journals:?}");
        assert_eq!(self.files(), 0, "files are left in {}", self.directory.display());
        if world.source.runs() {
            assert!(!world.destination.exists, "the replica is left");
            Where::Source
        } else {
            assert!(!world.source.exists, "the copy at the source is left");
            Where::Destination
        }
    }

    /// What is left of a promise that was taken back: the key, for a source that asks, and nothing that would have to be undone.
    pub fn is_kept_at_destination(&self) {
        let record = self.journals.read(self.id, Role::Destination).unwrap().unwrap();
        assert!(record.is_only_kept(), "{record:?}");
        assert!(!look(&self.world).destination.exists, "the replica is left");
    }

    /// An end that told the other may still be clearing up.
    fn wait_until_settled(&self) {
        let until = Instant::now() + Duration::from_secs(5);
        while self.files() > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn files(&self) -> usize {
        std::fs::read_dir(&self.directory).map_or(0, |d| d.count())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    Source,
    Destination,
}

/// Runs the destination on a thread of its own.
pub fn receive(
    stage: &Stage,
    mut observer: impl Observer + Send + 'static,
    trouble: Option<&'static str>,
) -> JoinHandle<Result<Received, Failure>> {
    let options = stage.receive_options();
    let listener = stage.listener.try_clone().unwrap();
    let world = Arc::clone(&stage.world);
    thread::spawn(move || {
        let mut reception = Reception::open(&listener, options).unwrap();
        let recover = ImaginedRecover(Arc::clone(&world));
        reception.receive_one(
            &recover,
            |_| Ok(ImaginedReplica::new(&world, trouble)),
            &mut observer,
        )
    })
}

/// Where the failure says that the workload is.
pub fn whereabouts<T: fmt::Debug>(result: Result<T, Failure>) -> Whereabouts {
    result.unwrap_err().whereabouts
}

/// Runs the source on this thread.
pub fn send(
    stage: &Stage,
    workload: &mut ImaginedWorkload,
    options: SourceOptions,
    observer: &mut dyn Observer,
) -> Result<Summary, Failure> {
    assert!(Arc::ptr_eq(&stage.world, &workload.world));
    migrate(workload, options, observer)
}

impl Stage {
    pub fn source_options(&self, mode: Mode, destination: SocketAddr) -> SourceOptions {
        let limits = Limits {
            downtime_max: Duration::from_micros(1),
            rounds_max: 4,
            traffic_percent_max: 1000,
            bandwidth_max: None,
        };
        SourceOptions {
            followed: false,
            residual: ResidualOptions::default(),
            trace: None,
            id: self.id,
            key: self.key.clone(),
            destination: destination.to_string(),
            workload_name: "imagined".into(),
            migration: migration(mode, limits),
            link_timeout: self.link_timeout,
            ask_for: Duration::from_secs(20),
            journals: self.journals.clone(),
            cancel: Arc::clone(&self.cancel),
        }
    }
}

fn migration(mode: Mode, limits: Limits) -> Migration {
    match mode {
        Mode::Live => Migration::new(Box::new(PreCopy::default()), limits, Hints::default()),
        Mode::Stopped => Migration::new(Box::new(StopCopy), limits, Hints::default()),
    }
}

/// A controller died: what it had only stopped runs on (ptrace), what it had only begun to build dies (PTRACE_O_EXITKILL).
pub fn source_died(world: &Shared) {
    let mut world = look(world);
    world.source.stopped = false;
    world.judge();
}

pub fn destination_died(world: &Shared) {
    let mut world = look(world);
    if world.destination.stopped && !world.destination.held {
        world.destination = Copy::default();
    }
}
