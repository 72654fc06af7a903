//! The source of a migration, from the request to the end of its copy.
//!
//! Every step is one of [`crate::observer::SOURCE_PHASES`]. Up to the journal's `Offered` any failure ends with the workload
//! running here as if nothing had happened; after it, only the destination's answer decides.

use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{channel, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_policy::Migration;
use whimbrel_wire::{DestinationTimes, Key, Message, MigrationId, StreamKind};

use crate::ask::{ask, farewell, Answer, Asking};
use crate::contract::{Mode, Outcome, Workload};
use crate::error::{Error, Failure, Result, Whereabouts};
use crate::inbox::{Inbox, Taken};
use crate::journal::{Journal, Journals, Record, Role, State};
use crate::link::{dial, ControlLink, Cut, Event, LinkOptions};
use crate::observer::{micros, Observer, Phase, Timeline};
use crate::rounds::{Barriers, Rounds, Tally};
use crate::send::PageSender;
use crate::summary::Summary;

/// How long the controller itself asks a destination that it lost after the offer, before it leaves that to the guardian.
pub const ASK_FOR: Duration = Duration::from_secs(30);

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
    /// When a silent destination is given up.
    pub link_timeout: Duration,
    /// How long to ask a destination that was lost after the offer.
    pub ask_for: Duration,
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
    let timeline = Timeline::new(observer);
    let (sender, events) = channel();
    let inbox = Inbox::new(events, Arc::clone(&options.cancel));
    let link = SourceLink {
        control: None,
        query: None,
        inbox,
        sender,
        cut: Cut::default(),
    };
    let mut source = Source {
        workload,
        options,
        timeline,
        link,
        tally: Tally::default(),
    };
    let result = source.run();
    source.timeline.end();
    result
}

struct Source<'w, 'o, W> {
    workload: &'w mut W,
    options: SourceOptions,
    timeline: Timeline<'o>,
    link: SourceLink,
    tally: Tally,
}

/// The connection to the destination.
struct SourceLink {
    control: Option<ControlLink>,
    /// On which the destination answered after the control stream was lost.
    query: Option<TcpStream>,
    inbox: Inbox,
    sender: Sender<Event>,
    cut: Cut,
}

impl SourceLink {
    fn say(&self, message: &Message) -> Result<()> {
        match &self.control {
            Some(control) => control.say(message),
            None => Err(Error::Internal("nobody to talk to".into())),
        }
    }

    /// The last word, if anybody is left to hear it.
    fn say_last(&mut self, word: &Message) {
        match &mut self.query {
            Some(query) => farewell(query, word),
            None => {
                let _ = self.say(word);
            }
        }
        self.control = None;
        self.query = None;
    }
}

impl<W: Workload> Source<'_, '_, W> {
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
        let bulk_bytes = match self.until_prepared(spec, &mut journal) {
            Ok(bytes) => bytes,
            Err(error) => return Err(self.stay(error, journal)),
        };
        self.hand_over(bulk_bytes, journal)
    }

    /// Begins a phase that can still be cancelled.
    fn begin(&mut self, phase: Phase) -> Result<()> {
        self.timeline.begin(phase);
        self.link.inbox.check()
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
        let stream = self.dial(StreamKind::Control)?;
        let options = LinkOptions {
            peer: self.options.destination.clone(),
            timeout: self.options.link_timeout,
            cancel: Arc::clone(&self.options.cancel),
            cut: self.link.cut.clone(),
        };
        self.link.control = Some(ControlLink::start(stream, options, self.link.sender.clone())?);
        Ok(())
    }

    /// Everything that can still be taken back. Returns the bytes of the bulk stream.
    fn until_prepared(&mut self, spec: Vec<u8>, journal: &mut Journal) -> Result<u64> {
        let result = self.try_until_prepared(spec, journal);
        result.map_err(|error| self.link.inbox.explain(error))
    }

    fn try_until_prepared(&mut self, spec: Vec<u8>, journal: &mut Journal) -> Result<u64> {
        self.begin(Phase::Prepare)?;
        self.link.say(&Message::Spec(spec))?;
        self.link.inbox.wait_for(&Message::SpecAccepted)?;
        let bulk = self.dial(StreamKind::Bulk(0))?;
        self.link.cut.add(&bulk).map_err(|cause| Error::Socket {
            what: "share a connection".into(),
            cause,
        })?;
        self.begin(Phase::Track)?;
        journal.set_resources(self.workload.resources())?;
        let mode = if self.options.migration.is_live() {
            Mode::Live
        } else {
            Mode::Stopped
        };
        self.workload.begin(mode).map_err(Error::workload)?;
        journal.set_resources(self.workload.resources())?;
        let bulk_bytes = self.send_pages(bulk, journal)?;
        // While the destination builds the workload from its state.
        self.begin(Phase::Hold)?;
        journal.set_resources(self.workload.resources())?;
        self.workload.hold().map_err(Error::workload)?;
        journal.set_resources(self.workload.resources())?;
        self.begin(Phase::Load)?;
        self.link.inbox.wait_for(&Message::Prepared)?;
        Ok(bulk_bytes)
    }

    fn send_pages(&mut self, bulk: TcpStream, journal: &mut Journal) -> Result<u64> {
        let Some(link) = &self.link.control else {
            return Err(Error::Internal("no control stream".into()));
        };
        let mut rounds = Rounds {
            workload: &mut *self.workload,
            journal,
            link,
            inbox: &mut self.link.inbox,
            timeline: &mut self.timeline,
            migration: &mut self.options.migration,
            sender: PageSender::new(bulk, self.options.destination.clone()),
            barriers: Barriers::default(),
            tally: &mut self.tally,
        };
        rounds.run()?;
        Ok(rounds.sender.bytes())
    }

    /// Rollback. The workload comes first; the destination finds out in any case.
    fn stay(&mut self, error: Error, journal: Journal) -> Failure {
        let untouched = !matches!(
            self.timeline.phase(),
            Some(phase) if !matches!(phase, Phase::Check | Phase::Connect | Phase::Prepare)
        );
        let whereabouts = if untouched {
            Whereabouts::Untouched
        } else {
            Whereabouts::Source
        };
        let released = self.workload.release(Outcome::Stays);
        let last_word = match error {
            Error::Fenced => Message::Stays,
            _ => Message::Abort(error.sentence()),
        };
        self.link.say_last(&last_word);
        // A rollback that failed is tried again by whoever finds the journal.
        let settled = released.map_err(Error::workload).and_then(|()| journal.remove());
        if let Err(second) = settled {
            self.timeline
                .observer
                .warning(&format!("the rollback is not complete: {second}"));
        }
        Failure { error, whereabouts }
    }

    /// From here on the destination decides.
    fn hand_over(&mut self, bulk_bytes: u64, mut journal: Journal) -> Result<Summary, Failure> {
        self.timeline.begin(Phase::Offer);
        if let Err(error) = self
            .link
            .inbox
            .check()
            .and_then(|()| journal.set_state(State::Offered))
        {
            return Err(self.stay(error, journal));
        }
        let answer = match self.offer() {
            Ok(answer) => answer,
            Err(error) => self.ask(error, &journal)?,
        };
        match answer {
            Answer::Started(times) => self.moved(times, bulk_bytes, journal),
            Answer::Fenced => Err(self.stay(Error::Fenced, journal)),
        }
    }

    fn offer(&mut self) -> Result<Answer> {
        self.link.say(&Message::Offer)?;
        self.link
            .inbox
            .wait("an answer to the offer", |event| match event {
                Event::Message(Message::Started(times)) => Taken::Yes(Answer::Started(times)),
                Event::Message(Message::Fenced) => Taken::Yes(Answer::Fenced),
                // Too late: it may run there already.
                Event::Cancelled => Taken::Skip,
                other => Taken::No(other),
            })
    }

    /// The link is lost and nobody knows whether the offer arrived.
    fn ask(&mut self, lost: Error, journal: &Journal) -> Result<Answer, Failure> {
        self.link.control = None;
        let name = &self.options.workload_name;
        self.timeline.observer.warning(&format!(
            "{lost}: {name} stays frozen while the destination is asked whether it runs there"
        ));
        let asking = Asking {
            link_timeout: self.options.link_timeout,
            until: Some(Instant::now() + self.options.ask_for),
            cancel: &self.options.cancel,
        };
        let record = journal.record();
        match ask(record, &asking) {
            Some((answer, stream)) => {
                self.link.query = Some(stream);
                Ok(answer)
            }
            None => Err(Failure {
                error: Error::Undecided {
                    id: record.id,
                    workload: name.clone(),
                },
                whereabouts: Whereabouts::Undecided,
            }),
        }
    }

    fn moved(
        &mut self,
        times: DestinationTimes,
        bulk_bytes: u64,
        mut journal: Journal,
    ) -> Result<Summary, Failure> {
        let downtime = self
            .tally
            .frozen
            .map(|frozen| frozen.elapsed())
            .unwrap_or_default();
        self.timeline.begin(Phase::Release);
        let at_destination = |error| Failure {
            error,
            whereabouts: Whereabouts::Destination,
        };
        journal.set_state(State::Released).map_err(at_destination)?;
        self.workload
            .release(Outcome::Moved)
            .map_err(|e| at_destination(Error::workload(e)))?;
        self.link.say_last(&Message::Released);
        journal.remove().map_err(at_destination)?;
        self.timeline.end();
        Ok(self.summary(times, bulk_bytes, downtime))
    }

    fn summary(&mut self, times: DestinationTimes, bulk_bytes: u64, downtime: Duration) -> Summary {
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
            total_us: micros(self.timeline.elapsed()),
            downtime_us: micros(downtime),
            destination_times: times,
            bulk_bytes,
            state_bytes: self.tally.state_bytes,
            memory_bytes: self.tally.memory_pages.saturating_mul(whimbrel_policy::PAGE_SIZE),
            rounds: std::mem::take(&mut self.tally.rounds),
            phases: self.timeline.times().to_vec(),
        }
    }
}
