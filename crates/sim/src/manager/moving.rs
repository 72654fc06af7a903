//! One migration in the hall: drives the policy objects that the engine drives, [`Migration`] up to the switch-over and
//! [`Residual`] after it, and carries their orders out over an imagined link.
//!
//! A page's identity is its virtual number, in a space for each VM. Its place in memory plays no part: pages that LRU has
//! replaced are lost in scans, and gone after the switch-over.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use whimbrel_policy::postcopy::{Event as After, Fault, Limits as AfterLimits, Order as AfterOrder};
use whimbrel_policy::postcopy::{Path, PieceId, Residual, ThreadId};
use whimbrel_policy::{
    Event, Hints, Limits, Migration, Order, Page, PageRun, Scan, Sent, SpaceId, PAGE_SIZE,
};

use super::context::Context;
use super::hall::{Hall, Step};
use super::log::clock;
use super::record::{Asked, Record};
use super::settings::Policy;

/// Registers and page table, in bytes.
const STATE_BYTES: u64 = 4096;
/// The seed's VM is a single thread.
const THREAD: ThreadId = ThreadId(0);

/// What happens in a migration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moves {
    /// The rounds go on.
    Round,
    /// A page of a round has come.
    Came { page: u64, asked: Asked },
    /// The VM goes on at the destination.
    Started,
    /// The source hears that.
    SourceReleased,
    /// The residual phase has to look whether it may send.
    Timer,
    /// A piece has come to the destination.
    Piece { piece: u64, pages: Vec<(u64, Asked)> },
    /// The source hears that.
    Acked { piece: u64 },
    /// The source hears that somebody waits.
    Fault { page: u64 },
    /// The source hears that the VM has replaced a page.
    Gone { page: u64 },
    /// The forward context is due.
    Guide,
}

/// The forward context: the VM's context goes on at the source. It has its own copy of registers and page table, and what it loads
/// it loads for itself, so that nothing of what it does can be seen.
#[derive(Clone, Debug)]
struct Guide {
    context: Context,
    step: Step,
    /// Pages that it has from disk: the following context has those from there, too.
    own: BTreeSet<u64>,
    /// It is as far ahead as it may be.
    rests: bool,
}

/// A batch of a round on its way.
#[derive(Debug)]
struct Batch {
    left: VecDeque<u64>,
    skip_rewritten: bool,
    asked: Asked,
    sent: Sent,
}

/// A migration.
#[derive(Debug)]
pub(super) struct Move {
    number: u32,
    pub vm: usize,
    pub source: usize,
    pub destination: usize,
    policy: Policy,
    migration: Migration,
    after_limits: AfterLimits,
    batch: Option<Batch>,
    residual: Option<Residual>,
    timer: Option<Duration>,
    guide: Option<Guide>,
    /// Pages that the forward context has touched.
    touched: BTreeSet<u64>,
    /// What the VM would have waited for its next step when it was frozen.
    rest: Duration,
    /// When all that was sent before the start is there.
    there_at: Duration,
    record: Record,
    is_over: bool,
}

impl Move {
    pub fn new(hall: &Hall, number: u32, vm: usize, destination: usize) -> Self {
        let settings = &hall.settings;
        let state = &hall.vms[vm];
        let limits = Limits {
            downtime_max: settings.downtime_max,
            bandwidth_max: settings.background_max,
            ..Limits::default()
        };
        let hints = Hints {
            memory_pages: state.context.memory().len() as u64,
            state_bytes: STATE_BYTES,
            fixed_cost: settings.link_latency,
            bandwidth: Some(settings.link_rate),
        };
        // A reply is one page, as in the seed: its references are random, and neighbours would only be in the way.
        let after_limits = AfterLimits {
            bandwidth_max: settings.background_max,
            reply_pages_max: 1,
            ..AfterLimits::default()
        };
        Move {
            number,
            vm,
            source: state.server,
            destination,
            policy: settings.policy,
            migration: Migration::new(settings.policy.strategy(), limits, hints),
            after_limits,
            batch: None,
            residual: None,
            timer: None,
            guide: None,
            touched: BTreeSet::new(),
            rest: Duration::ZERO,
            there_at: hall.now,
            record: Record {
                number,
                vm: state.name.clone(),
                source: hall.servers[state.server].name.clone(),
                destination: hall.servers[destination].name.clone(),
                policy: settings.policy.name().to_owned(),
                begun: hall.now,
                ..Record::default()
            },
            is_over: false,
        }
    }

    fn page(&self, number: u64) -> Page {
        Page {
            space: self.space(),
            number,
        }
    }

    fn space(&self) -> SpaceId {
        SpaceId(self.vm as u32)
    }

    fn runs<'a>(&self, pages: impl IntoIterator<Item = &'a u64>) -> Vec<PageRun> {
        let space = self.space();
        let run = |&first: &u64| PageRun {
            space,
            first,
            count: 1,
        };
        pages.into_iter().map(run).collect()
    }

    /// The round that is being sent.
    fn round(&self) -> Asked {
        match self.record.frozen {
            Some(_) => Asked::Last,
            None => Asked::Round(self.migration.rounds().len() as u32 + 1),
        }
    }

    /// On the clock of the policies.
    fn clock(&self, now: Duration) -> Duration {
        now.saturating_sub(self.record.begun)
    }
}

type Done = Result<(), String>;

impl Hall {
    /// The first steps of a migration.
    pub fn begin_move(&mut self, mut moved: Move) -> Done {
        let Record {
            number,
            vm,
            source,
            destination,
            policy,
            ..
        } = &moved.record;
        let line = format!("migration {number} begins: {vm} from {source} to {destination} by {policy}");
        self.say(&line);
        self.tell_states("before", &moved);
        let over = self.drive(&mut moved);
        self.moves.insert(moved.number, moved);
        over
    }

    /// Something happened in a migration. One that is over does not care.
    pub fn moves_on(&mut self, number: u32, moves: Moves) -> Done {
        let Some(mut moved) = self.moves.remove(&number) else {
            return Ok(());
        };
        let done = self.take_in(&mut moved, moves);
        match moved.is_over {
            true => self.records.push(moved.record),
            false => {
                self.moves.insert(number, moved);
            }
        }
        done
    }

    fn take_in(&mut self, moved: &mut Move, moves: Moves) -> Done {
        match moves {
            Moves::Round => self.send_next(moved)?,
            Moves::Came { page, asked } => self.came(moved, page, asked, ""),
            Moves::Started => self.started(moved),
            Moves::SourceReleased => self.end(moved),
            Moves::Timer => {
                moved.timer = None;
                self.send_residual(moved);
            }
            Moves::Piece { piece, pages } => self.place(moved, piece, &pages),
            Moves::Acked { piece } => {
                let piece = PieceId(piece);
                self.tell_residual(moved, After::Acked { piece });
            }
            Moves::Gone { page } => {
                let runs = moved.runs([&page]);
                self.tell_residual(moved, After::Gone { runs });
            }
            Moves::Fault { page } => self.answer(moved, page),
            Moves::Guide => self.guide_on(moved),
        }
        Ok(())
    }

    /// Carries orders out until one takes time.
    fn drive(&mut self, moved: &mut Move) -> Done {
        loop {
            let event = match moved.migration.poll(moved.clock(self.now)) {
                Order::Scan => Event::Scanned(self.scan(moved, false)),
                Order::ScanLast => Event::Scanned(self.scan(moved, true)),
                Order::Sample => Event::Sampled {
                    written_pages: self.vms[moved.vm].written.len() as u64,
                },
                Order::Send { runs, skip_rewritten } => {
                    moved.batch = Some(Batch {
                        left: pages_of(&runs).collect(),
                        skip_rewritten,
                        asked: moved.round(),
                        sent: Sent::default(),
                    });
                    return self.send_next(moved);
                }
                // The destination's memory is what the page table names: what is not in it is forgotten there anyway.
                Order::Drop { .. } => continue,
                Order::Freeze => self.freeze(moved),
                Order::Capture => self.capture(moved),
                Order::Wait { until } => {
                    let due = moved.record.begun + until;
                    self.moving_at(due, moved.number, Moves::Round);
                    return Ok(());
                }
                Order::HandOver => {
                    self.hand_over(moved);
                    return Ok(());
                }
            };
            self.happened(moved, event)?;
        }
    }

    fn happened(&mut self, moved: &mut Move, event: Event) -> Done {
        let now = moved.clock(self.now);
        moved.migration.handle(now, event).map_err(|e| e.to_string())
    }

    fn scan(&mut self, moved: &Move, is_last: bool) -> Scan {
        let vm = &mut self.vms[moved.vm];
        let is_first = moved.migration.rounds().is_empty() && !is_last;
        let memory = vm.context.memory();
        let scan = Scan {
            written: match is_first {
                true => moved.runs(memory),
                false => moved.runs(&vm.written),
            },
            lost: moved.runs(&vm.lost),
            present: is_last.then(|| moved.runs(memory)),
            urgent: Vec::new(),
        };
        vm.written.clear();
        vm.lost.clear();
        scan
    }

    /// The next page of a batch, or the answer when it is through.
    fn send_next(&mut self, moved: &mut Move) -> Done {
        let Some(mut batch) = moved.batch.take() else {
            return self.drive(moved);
        };
        let vm = &self.vms[moved.vm];
        while let Some(page) = batch.left.pop_front() {
            if batch.skip_rewritten && vm.written.contains(&page) {
                batch.sent.rewritten.extend(moved.runs([&page]));
            } else if vm.context.holds(page) {
                self.send_page(moved, batch, page);
                return Ok(());
            } else {
                batch.sent.failed.extend(moved.runs([&page]));
            }
        }
        self.happened(moved, Event::Sent(batch.sent))?;
        self.drive(moved)
    }

    fn send_page(&mut self, moved: &mut Move, mut batch: Batch, page: u64) {
        let asked = batch.asked;
        let left = self.send(moved, PAGE_SIZE);
        batch.sent.wire_bytes += PAGE_SIZE;
        batch.sent.page_bytes += PAGE_SIZE;
        batch.sent.busy += left.saturating_sub(self.now);
        moved.batch = Some(batch);
        let there = left + self.settings.link_latency;
        self.moving_at(there, moved.number, Moves::Came { page, asked });
        self.moving_at(left, moved.number, Moves::Round);
    }

    /// Bytes of a migration on the link. When they have left.
    fn send(&mut self, moved: &mut Move, bytes: u64) -> Duration {
        let left = self.transmit(moved.source, moved.destination, bytes);
        moved.there_at = left + self.settings.link_latency;
        left
    }

    fn freeze(&mut self, moved: &mut Move) -> Event {
        moved.rest = self.halt(moved.vm);
        moved.record.frozen = Some(self.now);
        let why = moved.migration.stop_reason().map(|reason| reason.to_string());
        let context = &self.vms[moved.vm].context;
        let line = format!(
            "{} is frozen at {} ({}); {}",
            moved.record.vm,
            moved.record.source,
            why.unwrap_or_default(),
            registers(context)
        );
        self.say(&line);
        Event::Frozen
    }

    fn capture(&mut self, moved: &mut Move) -> Event {
        self.send(moved, STATE_BYTES);
        Event::Captured {
            state_bytes: STATE_BYTES,
        }
    }

    fn hand_over(&mut self, moved: &mut Move) {
        self.moving_at(moved.there_at, moved.number, Moves::Started);
        if !moved.migration.may_leave_residue() {
            return;
        }
        let residual = moved.migration.residual().clone();
        self.vms[moved.vm].missing = residual.runs().flat_map(|run| pages_of(&[run])).collect();
        // What a handshake would have told.
        let path = Path {
            round_trip: Some(self.settings.link_latency * 2),
            bandwidth: Some(self.settings.link_rate),
        };
        let now = moved.clock(self.now);
        let prepaging = moved.policy.prepaging();
        moved.residual = Some(Residual::new(now, residual, prepaging, moved.after_limits, path));
        if moved.policy == Policy::LazyCopy && self.vms[moved.vm].is_running {
            self.begin_guide(moved);
        }
        self.send_residual(moved);
    }

    fn started(&mut self, moved: &mut Move) {
        moved.record.started = Some(self.now);
        moved.record.bytes += STATE_BYTES;
        let vm = &mut self.vms[moved.vm];
        vm.server = moved.destination;
        let (is_running, step) = (vm.is_running, vm.step);
        let line = format!(
            "{} goes on at {}, {} pages are missing there",
            moved.record.vm,
            moved.record.destination,
            vm.missing.len()
        );
        self.say(&line);
        if is_running {
            self.step_after(moved.vm, step, moved.rest);
        }
        if moved.residual.is_some() {
            self.send_residual(moved);
        } else {
            let heard = self.now + self.settings.link_latency;
            self.moving_at(heard, moved.number, Moves::SourceReleased);
        }
    }

    fn tell_residual(&mut self, moved: &mut Move, event: After) {
        let now = moved.clock(self.now);
        if let Some(residual) = &mut moved.residual {
            residual.handle(now, event);
        }
        self.send_residual(moved);
    }

    /// The source sends what may be sent now.
    fn send_residual(&mut self, moved: &mut Move) {
        let now = moved.clock(self.now);
        while let Some(residual) = &mut moved.residual {
            match residual.poll(now) {
                AfterOrder::Reply { piece, run, .. } => self.send_piece(moved, piece, &[run], true),
                AfterOrder::Push { piece, runs } => self.send_piece(moved, piece, &runs, false),
                AfterOrder::Wait { until } => return self.wait(moved, until),
                AfterOrder::Done if moved.record.started.is_some() => return self.end(moved),
                AfterOrder::Done => return,
            }
        }
    }

    fn wait(&mut self, moved: &mut Move, until: Option<Duration>) {
        let Some(until) = until.filter(|_| moved.timer.is_none()) else {
            return;
        };
        moved.timer = Some(until);
        self.moving_at(moved.record.begun + until, moved.number, Moves::Timer);
    }

    fn send_piece(&mut self, moved: &mut Move, piece: PieceId, runs: &[PageRun], is_reply: bool) {
        let asked = |page| match (is_reply, moved.touched.contains(&page)) {
            (true, _) => Asked::Fault,
            (false, true) => Asked::Guide,
            (false, false) => Asked::Background,
        };
        let pages: Vec<_> = pages_of(runs).map(|page| (page, asked(page))).collect();
        let wire_bytes = pages.len() as u64 * PAGE_SIZE;
        let there = self.send(moved, wire_bytes) + self.settings.link_latency;
        let came = Moves::Piece {
            piece: piece.0,
            pages,
        };
        self.moving_at(there, moved.number, came);
        let sent = After::Sent {
            piece,
            wire_bytes,
            zero_pages: 0,
            unreadable: Vec::new(),
        };
        let now = moved.clock(self.now);
        if let Some(residual) = &mut moved.residual {
            residual.handle(now, sent);
        }
    }

    /// At the destination: what is still wanted is placed, and who waits for it goes on.
    fn place(&mut self, moved: &mut Move, piece: u64, pages: &[(u64, Asked)]) {
        for &(page, asked) in pages {
            let is_wanted = self.vms[moved.vm].missing.remove(&page);
            moved.record.placed += u64::from(is_wanted);
            let remark = if is_wanted { "" } else { ", replaced meanwhile" };
            self.came(moved, page, asked, remark);
            self.wake(moved, page);
        }
        let heard = self.now + self.settings.link_latency;
        self.moving_at(heard, moved.number, Moves::Acked { piece });
    }

    fn wake(&mut self, moved: &mut Move, page: u64) {
        let vm = &mut self.vms[moved.vm];
        let Some((_, since)) = vm.waits.take_if(|(waited, _)| *waited == page) else {
            return;
        };
        let delay = self.now.saturating_sub(since);
        moved.record.network_wait += delay;
        let line = format!(
            "page fault of {}: page {page} is there after {}",
            moved.record.vm,
            clock(delay)
        );
        self.say(&line);
        self.hit(moved.vm);
        self.note_reference(moved);
    }

    /// At the source: a report of a fault has come.
    fn answer(&mut self, moved: &mut Move, page: u64) {
        let fault = Fault {
            page: moved.page(page),
            thread: THREAD,
            repeated: false,
        };
        if let Some(residual) = &mut moved.residual {
            residual.fault(fault);
        }
        self.send_residual(moved);
    }

    /// The forward context begins where the VM was frozen.
    fn begin_guide(&mut self, moved: &mut Move) {
        let vm = &self.vms[moved.vm];
        moved.guide = Some(Guide {
            context: vm.context.clone(),
            step: vm.step,
            own: BTreeSet::new(),
            rests: false,
        });
        let line = format!(
            "the forward context of {} goes on at {}",
            vm.name, moved.record.source
        );
        self.say(&line);
        self.moving_at(self.now + moved.rest, moved.number, Moves::Guide);
    }

    fn guide_on(&mut self, moved: &mut Move) {
        let done = self.vms[moved.vm].context.done();
        let Some(guide) = &mut moved.guide else { return };
        let context = &mut guide.context;
        // That the following context's progress is known at once spares messages, and says a latency more than could be known.
        if context.done().saturating_sub(done) >= self.settings.lead {
            guide.rests = true;
            return;
        }
        let page = context.wanted();
        let mut wait = self.settings.reference;
        if context.holds(page) {
            context.hit();
            if !guide.own.contains(&page) {
                self.aim(moved, page);
            }
        } else if guide.step == Step::Touch && self.settings.is_disk_always {
            guide.step = Step::Load;
            wait = self.settings.disk;
        } else {
            guide.step = Step::Touch;
            guide.own.insert(page);
            context.load();
        }
        self.moving_at(self.now + wait, moved.number, Moves::Guide);
    }

    fn aim(&mut self, moved: &mut Move, page: u64) {
        moved.touched.insert(page);
        let aimed = moved.page(page);
        if let Some(residual) = &mut moved.residual {
            residual.aim(THREAD, aimed);
        }
        self.send_residual(moved);
    }

    fn end(&mut self, moved: &mut Move) {
        moved.is_over = true;
        moved.guide = None;
        moved.record.ended = Some(self.now);
        if let Some(residual) = &moved.residual {
            let metrics = residual.metrics();
            moved.record.spared = metrics.pages_spared;
            moved.record.late = metrics.pages_pushed + metrics.pages_replied - moved.record.placed;
        }
        self.vms[moved.vm].moving = None;
        self.tell_states("after", moved);
        let lines = moved.record.summary(self.settings.link_rate);
        lines.iter().for_each(|line| self.say(line));
    }

    fn came(&mut self, moved: &mut Move, page: u64, asked: Asked, remark: &str) {
        moved.record.sent.add(asked);
        moved.record.bytes += PAGE_SIZE;
        let Record {
            source, destination, ..
        } = &moved.record;
        let line = format!("page {page} from {source} to {destination}: {asked}{remark}");
        self.say(&line);
    }

    /// As the seed prints it before and after each migration.
    fn tell_states(&mut self, when: &str, moved: &Move) {
        let vm = &self.vms[moved.vm];
        for server in [moved.source, moved.destination] {
            let name = &self.servers[server].name;
            let line = match vm.server == server {
                true => format!("{when}: {name} has {}", state(&vm.name, &vm.context)),
                false => format!("{when}: {name} has nothing of {}", vm.name),
            };
            self.log.add(self.now, &line);
        }
    }
}

/// What a VM does while a migration follows it.
impl Hall {
    /// The migration whose following context this VM is.
    pub fn following(&mut self, vm: usize) -> Option<&mut Move> {
        let number = self.vms[vm].moving?;
        let moved = self.moves.get_mut(&number)?;
        (moved.record.started.is_some() && !moved.is_over).then_some(moved)
    }

    /// The VM touches a page that is still at the source.
    pub fn network_fault(&mut self, vm: usize, page: u64) {
        self.vms[vm].waits = Some((page, self.now));
        let heard = self.now + self.settings.link_latency;
        let Some(moved) = self.following(vm) else { return };
        moved.record.network_faults += 1;
        let number = moved.number;
        let line = format!(
            "page fault of {}: page {page} is still at the source",
            self.vms[vm].name
        );
        self.say(&line);
        self.moving_at(heard, number, Moves::Fault { page });
    }

    /// The VM touches a page that neither server has in memory.
    pub fn disk_fault(&mut self, vm: usize, page: u64, delay: Duration) {
        if let Some(moved) = self.following(vm) {
            moved.record.disk_faults += 1;
            moved.record.disk_wait += delay;
        }
        let line = format!(
            "page fault of {}: page {page} is not in the source's memory: from disk, {}",
            self.vms[vm].name,
            clock(delay)
        );
        self.say(&line);
    }

    /// The VM has replaced a page before it came.
    pub fn gone(&mut self, vm: usize, page: u64) {
        let heard = self.now + self.settings.link_latency;
        let Some(moved) = self.following(vm) else { return };
        let number = moved.number;
        let line = format!("{} has replaced page {page} before it came", self.vms[vm].name);
        self.say(&line);
        self.moving_at(heard, number, Moves::Gone { page });
    }

    /// A reference is done.
    pub fn followed(&mut self, vm: usize) {
        let Some(number) = self.following(vm).map(|moved| moved.number) else {
            return;
        };
        if let Some(mut moved) = self.moves.remove(&number) {
            self.note_reference(&mut moved);
            self.moves.insert(number, moved);
        }
    }

    /// The forward context may go on when the following one does.
    fn note_reference(&mut self, moved: &mut Move) {
        moved.record.references += 1;
        if let Some(guide) = moved.guide.as_mut().filter(|guide| guide.rests) {
            guide.rests = false;
            let heard = self.now + self.settings.link_latency;
            self.moving_at(heard, moved.number, Moves::Guide);
        }
    }
}

pub(super) fn registers(context: &Context) -> String {
    let miss = context
        .miss_percent()
        .map_or_else(|| "no reference yet".to_owned(), |miss| format!("{miss:.1} %"));
    format!(
        "pc {}, hits {}, misses {}, miss ratio {miss}",
        context.pc, context.hits, context.misses
    )
}

fn state(name: &str, context: &Context) -> String {
    let pages: Vec<_> = context.memory().iter().map(u64::to_string).collect();
    let pages = pages.join(" ");
    format!("{name}: {}; memory [{pages}]", registers(context))
}

fn pages_of(runs: &[PageRun]) -> impl Iterator<Item = u64> + use<> {
    let numbers: Vec<u64> = runs
        .iter()
        .flat_map(|run| run.first..run.first + run.count)
        .collect();
    numbers.into_iter()
}
