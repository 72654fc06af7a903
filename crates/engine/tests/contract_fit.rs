//! The contracts tried in types against a workload that is still to come: a tree of two processes that share memory. No sockets: a driver hands the policy's orders over.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use whimbrel_engine::contract::{Captured, Scanned};
use whimbrel_engine::{Mode, Never, Outcome, Replica, Workload};
use whimbrel_policy::{
    Event, Hints, Limits, Migration, Order, Page, PageRun, Pages, PreCopy, Scan, Sent, SpaceId, StopCopy,
    Strategy, PAGE_SIZE,
};

const PAGE: usize = PAGE_SIZE as usize;
type Memory = BTreeMap<(u32, u64), u8>;

fn run(space: u32, number: u64) -> PageRun {
    PageRun {
        space: SpaceId(space),
        first: number,
        count: 1,
    }
}

fn each_page(runs: &[PageRun]) -> impl Iterator<Item = (u32, u64)> + '_ {
    runs.iter()
        .flat_map(|run| (run.first..run.first + run.count).map(|number| (run.space.0, number)))
}

/// Where a mapping of a process leads: its own space, or an object that others map too.
#[derive(Clone)]
struct Mapping {
    process: u32,
    first: u64,
    pages: u64,
    space: SpaceId,
    offset: u64,
}

/// Two processes; a write through any mapping dirties one page of one space.
#[derive(Default)]
struct Tree {
    mappings: Vec<Mapping>,
    memory: Memory,
    written: BTreeSet<(u32, u64)>,
    frozen: bool,
    held: bool,
    ended: bool,
    /// Writes that come one by one while the engine is busy with other things.
    to_come: Vec<(u32, u64, u8)>,
}

impl Tree {
    fn store(&mut self, process: u32, number: u64, value: u8) {
        assert!(!self.frozen, "a frozen workload writes nothing");
        let mapping = self
            .mappings
            .iter()
            .find(|m| m.process == process && (m.first..m.first + m.pages).contains(&number))
            .unwrap();
        let page = (mapping.space.0, mapping.offset + number - mapping.first);
        self.memory.insert(page, value);
        self.written.insert(page);
    }

    fn live_a_little(&mut self) {
        if let Some((process, number, value)) = self.to_come.pop() {
            self.store(process, number, value);
        }
    }

    fn layout(&self) -> Vec<u8> {
        vec![self.mappings.len() as u8]
    }

    fn collect(&mut self, present: bool) -> Scanned {
        let written = std::mem::take(&mut self.written);
        Scanned {
            scan: Scan {
                written: written
                    .into_iter()
                    .map(|(space, number)| run(space, number))
                    .collect(),
                lost: Vec::new(),
                present: present.then(|| self.memory.keys().map(|&(s, n)| run(s, n)).collect()),
                urgent: Vec::new(),
            },
            layout: (!present).then(|| self.layout()),
            pages_total: self.memory.len() as u64,
        }
    }
}

impl Workload for Tree {
    type Error = Infallible;
    type Store = Never;
    fn store(&mut self) -> Result<Never, Infallible> {
        unreachable!("nothing is left behind")
    }
    fn describe(&mut self) -> Result<Vec<u8>, Infallible> {
        Ok(b"two processes".to_vec())
    }
    fn resources(&self) -> Vec<u8> {
        Vec::new()
    }
    fn begin(&mut self, _: Mode) -> Result<(), Infallible> {
        self.written = self.memory.keys().copied().collect();
        Ok(())
    }
    fn scan(&mut self) -> Result<Scanned, Infallible> {
        let scanned = self.collect(false);
        self.live_a_little();
        Ok(scanned)
    }
    fn rewritten(&mut self, runs: &[PageRun], out: &mut Vec<PageRun>) -> Result<(), Infallible> {
        out.extend(
            each_page(runs)
                .filter(|page| self.written.contains(page))
                .map(|(s, n)| run(s, n)),
        );
        Ok(())
    }
    fn read(&mut self, runs: &[PageRun], buffer: &mut [u8], _: &mut Vec<PageRun>) -> Result<(), Infallible> {
        for (page, bytes) in each_page(runs).zip(buffer.chunks_exact_mut(PAGE)) {
            bytes.fill(self.memory.get(&page).copied().unwrap_or(0));
        }
        if !self.frozen {
            self.live_a_little();
        }
        Ok(())
    }
    fn freeze(&mut self) -> Result<(), Infallible> {
        self.frozen = true;
        Ok(())
    }
    fn layout_frozen(&mut self) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(Some(self.layout()))
    }
    fn capture(&mut self) -> Result<Captured, Infallible> {
        Ok(Captured {
            layout: None,
            state: b"state of both".to_vec(),
        })
    }
    fn scan_frozen(&mut self) -> Result<Scanned, Infallible> {
        Ok(self.collect(true))
    }
    fn hold(&mut self) -> Result<(), Infallible> {
        self.held = true;
        Ok(())
    }
    fn release(&mut self, outcome: Outcome) -> Result<(), Infallible> {
        self.ended = outcome == Outcome::Moved;
        Ok(())
    }
}

#[derive(Default)]
struct Shell {
    memory: Memory,
    loaded: Vec<u8>,
    complete: bool,
    running: bool,
}

impl Replica for Shell {
    type Error = Infallible;
    type Pager = Never;
    fn arm(&mut self, _: &[PageRun]) -> Result<Never, Infallible> {
        unreachable!("nothing is left behind")
    }
    fn prepare(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
    fn resources(&self) -> Vec<u8> {
        Vec::new()
    }
    fn follow(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
    fn write(&mut self, run: PageRun, data: &[u8]) -> Result<(), Infallible> {
        for (page, bytes) in each_page(&[run]).zip(data.chunks_exact(PAGE)) {
            self.memory.insert(page, bytes[0]);
        }
        Ok(())
    }
    fn zero(&mut self, run: PageRun) -> Result<(), Infallible> {
        for page in each_page(&[run]) {
            self.memory.insert(page, 0);
        }
        Ok(())
    }
    fn forget(&mut self, run: PageRun) -> Result<(), Infallible> {
        for page in each_page(&[run]) {
            self.memory.remove(&page);
        }
        Ok(())
    }
    fn load(&mut self, state: &[u8]) -> Result<(), Infallible> {
        self.loaded = state.to_vec();
        Ok(())
    }
    fn complete(&mut self) -> Result<(), Infallible> {
        self.complete = true;
        Ok(())
    }
    fn start(&mut self) -> Result<(), Infallible> {
        self.running = self.complete;
        Ok(())
    }
    fn settle(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
    fn discard(&mut self) -> Result<(), Infallible> {
        self.memory.clear();
        Ok(())
    }
}

/// Carries the policy's orders out, up to the hand-over.
fn drive(workload: &mut impl Workload, replica: &mut impl Replica, strategy: Box<dyn Strategy>) {
    let limits = Limits {
        rounds_max: 4,
        ..Limits::default()
    };
    let mut migration = Migration::new(strategy, limits, Hints::default());
    replica.prepare(&workload.describe().unwrap()).unwrap();
    workload
        .begin(if migration.is_live() {
            Mode::Live
        } else {
            Mode::Stopped
        })
        .unwrap();
    let mut now = Duration::ZERO;
    loop {
        now += Duration::from_millis(1);
        let event = match migration.poll(now) {
            Order::Scan => scanned(workload.scan().unwrap(), replica),
            Order::ScanLast => scanned(workload.scan_frozen().unwrap(), replica),
            Order::Send { runs, skip_rewritten } => sent(workload, replica, &runs, skip_rewritten),
            Order::Freeze => {
                workload.freeze().unwrap();
                if let Some(layout) = workload.layout_frozen().unwrap() {
                    replica.follow(&layout).unwrap();
                }
                Event::Frozen
            }
            Order::Capture => {
                let state = workload.capture().unwrap().state;
                replica.load(&state).unwrap();
                Event::Captured {
                    state_bytes: state.len() as u64,
                }
            }
            Order::Drop { runs } => {
                runs.iter().for_each(|run| replica.forget(*run).unwrap());
                continue;
            }
            Order::Wait { .. } => continue,
            Order::Sample => Event::Sampled { written_pages: 0 },
            Order::HandOver => return,
        };
        migration.handle(now, event).unwrap();
    }
}

fn scanned(scanned: Scanned, replica: &mut impl Replica) -> Event {
    if let Some(layout) = scanned.layout {
        replica.follow(&layout).unwrap();
    }
    Event::Scanned(scanned.scan)
}

fn sent(workload: &mut impl Workload, replica: &mut impl Replica, runs: &[PageRun], skip: bool) -> Event {
    let mut report = Sent::default();
    if skip {
        workload.rewritten(runs, &mut report.rewritten).unwrap();
    }
    let left_out = Pages::from_runs(&report.rewritten).unwrap();
    for (space, number) in each_page(runs) {
        let page = Page {
            space: SpaceId(space),
            number,
        };
        if left_out.contains(page) {
            continue;
        }
        let mut bytes = vec![0; PAGE];
        workload
            .read(&[run(space, number)], &mut bytes, &mut report.failed)
            .unwrap();
        replica.write(run(space, number), &bytes).unwrap();
        report.wire_bytes += PAGE_SIZE;
        report.busy += Duration::from_micros(40);
    }
    Event::Sent(report)
}

/// Process 1 and 2, each with a private page range, and an object that both map at different addresses.
fn tree() -> Tree {
    let mapping = |process, first, space, offset| Mapping {
        process,
        first,
        pages: 8,
        space: SpaceId(space),
        offset,
    };
    let mut tree = Tree {
        mappings: vec![
            mapping(1, 100, 0, 100),
            mapping(2, 100, 1, 100),
            mapping(1, 500, 2, 0),
            mapping(2, 900, 2, 0),
        ],
        ..Tree::default()
    };
    for number in 0..8 {
        tree.store(1, 100 + number, 1);
        tree.store(2, 100 + number, 2);
        tree.store(1, 500 + number, 3);
    }
    // The object is written through the other process's mapping while it is being sent.
    tree.to_come = vec![(2, 901, 44), (1, 501, 43), (1, 101, 41), (2, 903, 45)];
    tree
}

#[test]
fn a_tree_with_shared_memory_moves_by_either_strategy() {
    for strategy in [Box::<PreCopy>::default() as Box<dyn Strategy>, Box::new(StopCopy)] {
        let (mut source, mut replica) = (tree(), Shell::default());
        drive(&mut source, &mut replica, strategy);
        source.hold().unwrap();
        replica.complete().unwrap();
        assert!(!replica.running, "a loaded workload is still held");
        replica.start().unwrap();
        source.release(Outcome::Moved).unwrap();
        assert_eq!(replica.memory, source.memory);
        assert_eq!(replica.loaded, b"state of both");
        assert!(replica.running && source.held && source.ended);
    }
}

#[test]
fn a_shared_page_travels_once_for_both_processes() {
    let mut source = tree();
    source.to_come.clear();
    let mut replica = Shell::default();
    drive(&mut source, &mut replica, Box::new(StopCopy));
    let shared = replica.memory.keys().filter(|(space, _)| *space == 2).count();
    assert_eq!(shared, 8, "one page of one space, whoever maps it");
}
