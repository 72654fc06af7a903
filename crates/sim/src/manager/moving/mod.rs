//! One migration in the hall: drives the policy objects that the engine drives, [`Migration`] up to the switch-over and
//! [`Residual`] after it, and carries their orders out over an imagined link.
//!
//! A page's identity is its virtual number, in a space for each VM. Its place in memory plays no part: pages that LRU has
//! replaced are lost in scans, and gone after the switch-over.

mod after;
mod before;
mod guide;

use std::collections::BTreeSet;
use std::time::Duration;

use before::Batch;
use guide::Guide;
use whimbrel_policy::postcopy::{Event as After, Limits as AfterLimits, PieceId, Residual, ThreadId};
use whimbrel_policy::{Hints, Limits, Migration, Page, PageRun, SpaceId, PAGE_SIZE};

use super::context::Context;
use super::hall::Hall;
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
    /// The source hears that the following context has run so long.
    Followed { ran: Duration },
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
            Moves::Followed { ran } => self.guide_hears(moved, ran),
        }
        Ok(())
    }

    /// Bytes of a migration on the link. When they have left.
    fn send(&mut self, moved: &mut Move, bytes: u64) -> Duration {
        let left = self.transmit(moved.source, moved.destination, bytes);
        moved.there_at = left + self.settings.link_latency;
        left
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
