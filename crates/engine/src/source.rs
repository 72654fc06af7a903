//! The source of a migration, from the request to the end of its copy.
//!
//! Every step is one of [`crate::observer::SOURCE_PHASES`]. Up to the journal's `Offered` any failure ends with the workload
//! running here as if nothing had happened; after it, only the destination's answer decides.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_policy::switchover::{SourceAction, SourceEnd, SourceInput, SourceJournal, SourceSwitch};
use whimbrel_policy::Migration;
use whimbrel_wire::{Key, Message, MigrationId, StreamKind};

use crate::contract::{Mode, Outcome, Workload};
use crate::error::{Error, Failure, Result, Whereabouts};
use crate::inbox::Inbox;
use crate::journal::{Journal, Journals, Record, Role, State};
use crate::link::{dial, ControlLink, Cut, Event, LinkOptions};
use crate::measure::{look, Measurement};
use crate::observer::{micros, Observer, Phase, Timeline};
use crate::residual::ResidualOptions;
use crate::rounds::{Barriers, Rounds, Tally, LAST_BARRIER};
use crate::send::PageSender;
use crate::serve::{Noted, Route, Server, Session, Stores, Waited};
use crate::source_switch::{Patience, SourceDriver, SourceHost, SourceLeft, SourceLine};
use crate::summary::{Predicted, ResidualSummary, Summary};
use crate::trace::{Trace, TracedMigration, TracedResidual};

/// How long the controller itself asks a destination that it lost after the offer, before it leaves that to the guardian.
pub const ASK_FOR: Duration = Duration::from_secs(30);

/// How long a destination that was only asked may take to hang up.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// How often it is told how the residual phase goes.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// How long the destination is told where the workload is, once that is decided.
pub(crate) const TELL_FOR: Duration = Duration::from_secs(3);

/// What to move where, and how.
#[derive(Debug)]
pub struct SourceOptions {
    /// The migration's name; a guardian may know it already.
    pub id: MigrationId,
    /// What `receive` printed.
    pub key: Key,
    /// `host:port`.
    pub destination: String,
    /// For people and for the summary.
    pub workload_name: String,
    /// The decisions: strategy and limits.
    pub migration: Migration,
    /// What follows after the switch-over, if the strategy leaves anything.
    pub residual: ResidualOptions,
    /// Where all that is decided is written down, with what it was decided from. That it cannot be is a warning.
    pub trace: Option<Trace>,
    /// When a silent destination is given up.
    pub link_timeout: Duration,
    /// How long to ask a destination that was lost after the offer.
    pub ask_for: Duration,
    /// Whether a guardian goes on when this returns and a destination that could not be reached must still be told.
    pub followed: bool,
    /// Where the journal is kept.
    pub journals: Journals,
    /// Set by the user's wish to stop. Without effect once the destination was asked to start the workload.
    pub cancel: Arc<AtomicBool>,
}

/// Moves `workload`. All its methods are called on this thread.
///
/// # Errors
/// [`Failure`] says why and where the workload is now. With [`Whereabouts::Undecided`] the journal is left for the guardian or the next
/// command.
pub fn migrate<W: Workload>(
    workload: &mut W,
    options: SourceOptions,
    observer: &mut dyn Observer,
) -> Result<Summary, Failure> {
    let mut source = Source::new(workload, options, observer);
    source.begin_trace();
    let result = source.run();
    source.end_trace();
    source.timeline.end();
    result
}

/// Asks the destination whether `workload` could come, with everything that it prepares for one that does, and moves nothing.
///
/// # Errors
/// Why it cannot move, or not to there. It was not touched.
pub fn ask<W: Workload>(
    workload: &mut W,
    options: SourceOptions,
    observer: &mut dyn Observer,
) -> Result<(), Error> {
    let mut source = Source::new(workload, options, observer);
    let asked = source.ask();
    source.timeline.end();
    asked.map_err(|error| source.line.inbox.explain(error))
}

/// Looks for `look_for` at what `workload` writes and what the way to the destination carries, for predictions. The destination prepares for the
/// workload as for one that comes, and puts that away again; the workload runs on, tracked meanwhile.
///
/// # Errors
/// Why it cannot move, or not to there, or that the user does not want to wait any longer. It runs on; if the tracking could not be taken
/// from it, the journal is left for the guardian.
pub fn measure<W: Workload>(
    workload: &mut W,
    options: SourceOptions,
    look_for: Duration,
    observer: &mut dyn Observer,
) -> Result<Measurement, Error> {
    let mut source = Source::new(workload, options, observer);
    let measured = source.measure(look_for);
    source.timeline.end();
    measured.map_err(|error| source.line.inbox.explain(error))
}

struct Source<'w, 'o, W> {
    workload: &'w mut W,
    options: SourceOptions,
    timeline: Timeline<'o>,
    line: SourceLine,
    sender: Sender<Event>,
    cut: Cut,
    tally: Tally,
    /// The connections for what follows after the switch-over.
    session: Option<Session>,
    server: Option<Server>,
}

impl<'w, 'o, W: Workload> Source<'w, 'o, W> {
    fn new(workload: &'w mut W, options: SourceOptions, observer: &'o mut dyn Observer) -> Self {
        let (sender, events) = channel();
        let inbox = Inbox::new(events, Arc::clone(&options.cancel));
        Self {
            workload,
            options,
            timeline: Timeline::new(observer),
            line: SourceLine::new(inbox),
            sender,
            cut: Cut::default(),
            tally: Tally::default(),
            session: None,
            server: None,
        }
    }

    fn run(&mut self) -> Result<Summary, Failure> {
        let untouched = |error| Failure {
            error,
            whereabouts: Whereabouts::Untouched,
        };
        self.begin(Phase::Check).map_err(untouched)?;
        let spec = self
            .workload
            .describe()
            .map_err(|e| untouched(Error::workload(e)))?;
        self.begin(Phase::Connect)
            .and_then(|()| self.connect())
            .map_err(untouched)?;
        let mut journal = self.options.journals.create(self.record()).map_err(untouched)?;
        let mut sender = None;
        let sent = self.send_all(spec, &mut journal, &mut sender);
        let error = sent.err().map(|error| self.line.inbox.explain(error));
        self.switch_over(journal, sender, error)
    }

    fn begin_trace(&self) {
        if let Some(trace) = &self.options.trace {
            trace.begin(&self.options.migration, &self.options.residual);
        }
    }

    fn end_trace(&mut self) {
        if let Some(warning) = self.options.trace.as_ref().and_then(Trace::end) {
            self.timeline.observer.warning(&warning);
        }
    }

    fn ask(&mut self) -> Result<()> {
        self.begin(Phase::Check)?;
        let spec = self.workload.describe().map_err(Error::workload)?;
        self.begin(Phase::Connect)?;
        self.connect()?;
        self.begin(Phase::Prepare)?;
        self.control()?.say(&Message::Spec(spec))?;
        self.line.inbox.wait_for(&Message::SpecAccepted)?;
        self.control()?.say(&Message::OnlyAsked)
    }

    fn measure(&mut self, look_for: Duration) -> Result<Measurement> {
        self.begin(Phase::Check)?;
        let spec = self.workload.describe().map_err(Error::workload)?;
        self.begin(Phase::Connect)?;
        // A user who has enough does not cut the connection: the destination is to hear that nothing comes.
        self.connect_until(Arc::default())?;
        // A guardian undoes the tracking if we are killed.
        let mut journal = self.options.journals.create(self.record())?;
        let measured = self.measure_tracked(spec, look_for, &mut journal);
        let released = self.workload.release(Outcome::Stays).map_err(Error::workload);
        match (released.and_then(|()| journal.remove()), measured) {
            (Err(left), Err(first)) => {
                self.timeline.observer.warning(&left.to_string());
                Err(first)
            }
            (left, measured) => left.and(measured),
        }
    }

    fn measure_tracked(
        &mut self,
        spec: Vec<u8>,
        look_for: Duration,
        journal: &mut Journal,
    ) -> Result<Measurement> {
        let bulk = self.prepare(spec)?;
        self.begin(Phase::Track)?;
        self.begin_tracking(Mode::Live, journal)?;
        let before = self.timeline.elapsed();
        let mut sender = PageSender::new(bulk, self.options.destination.clone());
        let found = look(self.workload, &mut sender, &mut self.line.inbox, look_for);
        // Said in any case, so that `receive` goes on waiting; it hangs up when it has read that.
        let said = sender.enough();
        let mut found = found?;
        said?;
        self.line.inbox.wait_gone(GOODBYE_MAX);
        found.measured.costs.before = before;
        Ok(found)
    }

    /// The destination has prepared for it, and has the bulk stream.
    fn prepare(&mut self, spec: Vec<u8>) -> Result<TcpStream> {
        self.begin(Phase::Prepare)?;
        self.control()?.say(&Message::Spec(spec))?;
        self.line.inbox.wait_for(&Message::SpecAccepted)?;
        let bulk = self.dial(StreamKind::Bulk(0))?;
        self.cut.add(&bulk).map_err(|cause| Error::Socket {
            what: "share a connection".into(),
            cause,
        })?;
        Ok(bulk)
    }

    fn begin_tracking(&mut self, mode: Mode, journal: &mut Journal) -> Result<()> {
        journal.set_resources(self.workload.resources())?;
        self.workload.begin(mode).map_err(Error::workload)?;
        journal.set_resources(self.workload.resources())
    }

    /// Begins a phase that can still be cancelled.
    fn begin(&mut self, phase: Phase) -> Result<()> {
        self.timeline.begin(phase);
        self.line.inbox.check()
    }

    fn record(&self) -> Record {
        Record {
            id: self.options.id,
            role: Role::Source,
            state: State::Active,
            key: self.options.key.clone(),
            peer: self.options.destination.clone(),
            workload: self.options.workload_name.clone(),
            resources: self.workload.resources(),
            pid: 0,
            residual: None,
            missing_pages: None,
            listen: None,
        }
    }

    fn dial(&self, kind: StreamKind) -> Result<TcpStream> {
        let options = &self.options;
        dial(
            &options.destination,
            &options.key,
            options.id,
            kind,
            options.link_timeout,
        )
    }

    fn connect(&mut self) -> Result<()> {
        self.connect_until(Arc::clone(&self.options.cancel))
    }

    /// The connections are cut when `cancel` is set.
    fn connect_until(&mut self, cancel: Arc<AtomicBool>) -> Result<()> {
        let stream = self.dial(StreamKind::Control)?;
        let options = LinkOptions {
            peer: self.options.destination.clone(),
            timeout: self.options.link_timeout,
            cancel,
            cut: self.cut.clone(),
        };
        self.line.control = Some(ControlLink::start(stream, options, self.sender.clone())?);
        Ok(())
    }

    fn control(&self) -> Result<&ControlLink> {
        self.line
            .control
            .as_ref()
            .ok_or_else(|| Error::Internal("no control stream".into()))
    }

    /// Everything up to the last page, while the workload is the source's without any doubt. The workload is frozen then.
    fn send_all(
        &mut self,
        spec: Vec<u8>,
        journal: &mut Journal,
        sender: &mut Option<PageSender>,
    ) -> Result<()> {
        let bulk = self.prepare(spec)?;
        if self.options.migration.may_leave_residue() {
            journal.set_residual(self.options.residual)?;
            self.session = Some(self.route().open()?);
        }
        self.begin(Phase::Track)?;
        let mode = if self.options.migration.is_live() {
            Mode::Live
        } else {
            Mode::Stopped
        };
        self.begin_tracking(mode, journal)?;
        let mut pages = PageSender::new(bulk, self.options.destination.clone());
        if self.options.migration.is_paced() {
            pages = pages.paced();
        }
        self.rounds(sender.insert(pages), journal)?;
        self.serve_from_now_on(journal)?;
        journal.set_resources(self.workload.resources())
    }

    fn route(&self) -> Route {
        Route {
            address: self.options.destination.clone(),
            key: self.options.key.clone(),
            id: self.options.id,
            timeout: self.options.link_timeout,
        }
    }

    /// The destination may need pages while it still builds.
    fn serve_from_now_on(&mut self, journal: &mut Journal) -> Result<()> {
        let pages = self.options.migration.residual();
        if pages.is_empty() {
            return journal.forget_residual();
        }
        let trace = self.options.trace.clone();
        let stores = Stores {
            replies: self.workload.store().map_err(Error::workload)?,
            push: self.workload.store().map_err(Error::workload)?,
        };
        let (session, route) = (self.session.take(), self.route());
        let (options, path) = (self.options.residual, self.tally.path);
        let residual = TracedResidual::new(pages.clone(), &options, path, trace);
        self.server = Some(Server::start(Some(residual), session, route, stores, options)?);
        Ok(())
    }

    fn rounds(&mut self, sender: &mut PageSender, journal: &mut Journal) -> Result<()> {
        let line = &mut self.line;
        let mut rounds = Rounds {
            workload: &mut *self.workload,
            journal,
            inbox: &mut line.inbox,
            timeline: &mut self.timeline,
            migration: TracedMigration::new(&mut self.options.migration, self.options.trace.clone()),
            sender,
            barriers: Barriers::default(),
            tally: &mut self.tally,
        };
        rounds.run()
    }

    /// From here on `policy::switchover` decides, also about the way back.
    fn switch_over(
        &mut self,
        journal: Journal,
        sender: Option<PageSender>,
        error: Option<Error>,
    ) -> Result<Summary, Failure> {
        let input = match &error {
            None => SourceInput::StateSent,
            Some(e) if e.is_lost_link() => SourceInput::LinkLost,
            Some(_) => SourceInput::Abandon,
        };
        let begun = matches!(self.timeline.phase(), Some(p) if p != Phase::Prepare);
        let cancel = Arc::clone(&self.options.cancel);
        let patience = Patience {
            link_timeout: self.options.link_timeout,
            ask_for: Some(self.options.ask_for),
            tell_for: TELL_FOR.min(self.options.link_timeout),
            followed: self.options.followed,
            force_here: false,
            cancel: &cancel,
        };
        let (_, nothing) = channel();
        let line = std::mem::replace(
            &mut self.line,
            SourceLine::new(Inbox::new(nothing, Arc::clone(&cancel))),
        );
        let host = Controller {
            source: self,
            sender,
            moved: None,
        };
        let mut driver = SourceDriver::new(SourceSwitch::begin(), Some(journal), line, host, patience);
        driver.failures.why = error;
        let left = match driver.switch.handle(input) {
            Ok(()) => driver.run(),
            Err(e) => SourceLeft::Stuck(Error::Internal(e.to_string())),
        };
        let state = driver.journal.as_ref().map(|j| j.record().state);
        let (why, times, moved) = (driver.failures.why.take(), driver.times, driver.host.moved.take());
        let bulk_bytes = driver.host.sender.as_ref().map_or(0, PageSender::bytes);
        drop(driver);
        self.server = None;
        let failure = |error, whereabouts| Err(Failure { error, whereabouts });
        match (left, moved) {
            (SourceLeft::End(SourceEnd::Moved | SourceEnd::Conflict), Some(moved)) => {
                self.timeline.end();
                Ok(self.summary(times, bulk_bytes, moved))
            }
            (SourceLeft::Serving(error), _) => failure(error, Whereabouts::Destination),
            (SourceLeft::Undecided, _) => {
                let (id, workload) = (self.options.id, self.options.workload_name.clone());
                failure(Error::Undecided { id, workload }, Whereabouts::Undecided)
            }
            (SourceLeft::Stuck(error), _) if state == Some(State::Released) => {
                failure(error, Whereabouts::Destination)
            }
            (SourceLeft::Stuck(error), _) => failure(error, Whereabouts::Source),
            (SourceLeft::End(_), _) => {
                let whereabouts = if begun {
                    Whereabouts::Source
                } else {
                    Whereabouts::Untouched
                };
                failure(why.unwrap_or(Error::Fenced), whereabouts)
            }
        }
    }

    fn summary(&mut self, times: whimbrel_wire::DestinationTimes, bulk_bytes: u64, moved: Moved) -> Summary {
        Summary {
            id: self.options.id,
            workload: self.options.workload_name.clone(),
            destination: self.options.destination.clone(),
            strategy: self.options.migration.strategy().to_owned(),
            stop_reason: self
                .options
                .migration
                .stop_reason()
                .map(|reason| reason.to_string()),
            total_us: moved.total_us,
            downtime_us: moved.downtime_us,
            destination_times: times,
            bulk_bytes,
            state_bytes: self.tally.state_bytes,
            memory_bytes: self.tally.memory_pages.saturating_mul(whimbrel_policy::PAGE_SIZE),
            rounds: std::mem::take(&mut self.tally.rounds),
            phases: self.timeline.times().to_vec(),
            preparation_us: micros(self.tally.preparation),
            residual: moved.residual,
            predicted: Predicted::of(&self.options.migration),
        }
    }
}

/// When the decisive moments were.
#[derive(Clone, Debug, Default)]
struct Moved {
    downtime_us: u64,
    total_us: u64,
    residual: Option<ResidualSummary>,
}

/// The controller does what the switch-over decides.
struct Controller<'s, 'w, 'o, W> {
    source: &'s mut Source<'w, 'o, W>,
    sender: Option<PageSender>,
    moved: Option<Moved>,
}

impl<W: Workload> SourceHost for Controller<'_, '_, '_, W> {
    fn before(&mut self, action: SourceAction) {
        let source = &mut *self.source;
        match action {
            SourceAction::Hold => source.timeline.begin(Phase::Hold),
            SourceAction::Listen if source.timeline.phase() == Some(Phase::Hold) => {
                source.timeline.begin(Phase::Load)
            }
            SourceAction::Journal(SourceJournal::Offered) => source.timeline.begin(Phase::Offer),
            SourceAction::Journal(SourceJournal::Released) if self.moved.is_none() => {
                let downtime_us = source
                    .tally
                    .frozen
                    .map_or(0, |frozen: Instant| micros(frozen.elapsed()));
                self.moved = Some(Moved {
                    downtime_us,
                    ..Moved::default()
                });
                if source.server.is_none() {
                    source.timeline.begin(Phase::Release);
                }
            }
            _ => {}
        }
    }

    /// The last barrier goes out first: the destination builds while the source holds.
    fn hold(&mut self) -> Result<()> {
        if let Some(sender) = &mut self.sender {
            sender.barrier(LAST_BARRIER)?;
        }
        self.source.line.inbox.check()?;
        self.source.workload.hold().map_err(Error::workload)
    }

    fn serve(&mut self, journal: &mut Journal) -> Result<()> {
        let source = &mut *self.source;
        let Some(server) = &source.server else {
            return Ok(());
        };
        source.timeline.begin(Phase::Serve);
        let mut noted = Noted::default();
        let unserved = |why: String| Error::Unserved {
            id: source.options.id,
            workload: source.options.workload_name.clone(),
            why,
        };
        loop {
            source.workload.forward();
            let (progress, warnings) = server.progress();
            warnings
                .iter()
                .for_each(|one| source.timeline.observer.warning(one));
            source.timeline.observer.residual(&progress);
            noted.note(journal, &progress);
            if source.options.cancel.load(Ordering::Relaxed) {
                return Err(unserved("cancelled".into()));
            }
            match server.wait(TELL_EVERY) {
                Waited::Going => {}
                Waited::GivenUp(why) => return Err(unserved(why)),
                Waited::Done => break,
            }
        }
        let (_, last) = server.progress();
        last.iter().for_each(|one| source.timeline.observer.warning(one));
        if let Some(moved) = &mut self.moved {
            moved.residual = Some(server.summary());
        }
        source.server = None;
        source.timeline.begin(Phase::Release);
        Ok(())
    }

    fn release(&mut self, outcome: Outcome, _: &[u8]) -> Result<()> {
        // Nobody reads the memory any more.
        self.source.server = None;
        let released = self.source.workload.release(outcome).map_err(Error::workload);
        if let Some(moved) = &mut self.moved {
            // What the destination still does is not our time.
            moved.total_us = micros(self.source.timeline.elapsed());
            self.source.timeline.end();
        }
        for warning in self.source.workload.warnings() {
            self.warn(&warning);
        }
        released
    }

    fn warn(&mut self, sentence: &str) {
        self.source.timeline.observer.warning(sentence);
    }
}
