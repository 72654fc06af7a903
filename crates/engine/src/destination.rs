//! The destination of a migration, from the listening socket to the workload that runs here.
//!
//! Every step is one of [`crate::observer::DESTINATION_PHASES`]. Up to the journal's `Started` any failure discards the replica; from then on
//! the workload is this host's, whatever happens to the link.
//!
//! What happens from the last page on, and after any failure, is decided by `policy::switchover`.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_policy::switchover::{
    DestinationAction, DestinationEnd, DestinationInput, DestinationJournal, DestinationSwitch,
    Message as Word,
};
use whimbrel_policy::{PageRun, Pages};
use whimbrel_wire::{DestinationTimes, Key, Message, MigrationId, StreamKind};

use crate::contract::{Recover, Replica};
use crate::destination_switch::{DestinationDriver, DestinationHost, DestinationLeft, Ear};
use crate::door::{Arrival, Door, Visit};
use crate::error::{Error, Failure, Result, Whereabouts};
use crate::fetch::{join, Fetch};
use crate::guardian::answer_arrival;
use crate::inbox::{Inbox, Taken};
use crate::intake::take_in;
use crate::journal::{Journal, Journals, Record, Role, State};
use crate::link::{ControlLink, Cut, Event, LinkOptions};
use crate::observer::{micros, Observer, Phase, Timeline};
use crate::summary::Received;

/// How long questions about a migration are answered after its link was lost.
pub const ANSWER_FOR: Duration = Duration::from_secs(15);
/// How often somebody who waits at the door looks whether the user cancelled.
const TICK: Duration = Duration::from_millis(100);

/// How to receive.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// What a source must prove.
    pub key: Key,
    /// Where journals are kept.
    pub journals: Journals,
    /// When a silent source is given up.
    pub link_timeout: Duration,
    /// How long a question is waited for and answered after the link was lost.
    pub answer_for: Duration,
    /// Set by the user's wish to stop. Without effect once a workload was committed.
    pub cancel: Arc<AtomicBool>,
}

/// A destination that listens.
#[derive(Debug)]
pub struct Reception {
    door: Door,
    options: ReceiveOptions,
    address: SocketAddr,
}

/// What is known of a migration before its description arrives.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Its name; the journal has it already.
    pub id: MigrationId,
    /// The source's address.
    pub source: String,
}

impl Reception {
    /// Listens from now on. Connections wait until [`Reception::receive_one`] is called.
    pub fn open(listener: &TcpListener, options: ReceiveOptions) -> Result<Self> {
        let address = listener.local_addr().map_err(|cause| Error::Socket {
            what: "listen".into(),
            cause,
        })?;
        let door = Door::open(
            listener,
            options.key.clone(),
            options.journals.clone(),
            options.link_timeout,
        )?;
        Ok(Self {
            door,
            options,
            address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for a migration and receives it. `make` is called when one is there, before anything else is done (the guardian is
    /// started then); all methods of the replica are called on this thread. Questions about earlier migrations are answered
    /// while waiting, with the help of `recover`. A source that gives up or is refused before the shell was built is reported as
    /// a warning, and the waiting goes on.
    pub fn receive_one<R: Replica, C: Recover>(
        &mut self,
        recover: &C,
        mut make: impl FnMut(&Incoming) -> Result<R, R::Error>,
        observer: &mut dyn Observer,
    ) -> Result<Received, Failure> {
        loop {
            let (incoming, stream, visit) = self.wait(recover, observer)?;
            let mut timeline = Timeline::new(observer);
            let result = self.receive(&incoming, stream, visit, &mut make, &mut timeline);
            self.door.leave();
            match result {
                Err(Failure {
                    error,
                    whereabouts: Whereabouts::Untouched,
                }) if !self.is_cancelled() => {
                    let source = &incoming.source;
                    observer.warning(&match error {
                        Error::OnlyAsked => format!("{source} asked whether a workload could come; it could"),
                        error => format!("the migration from {source} did not begin: {error}"),
                    });
                }
                result => return result,
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        self.options.cancel.load(Ordering::Relaxed)
    }

    fn wait<C: Recover>(
        &self,
        recover: &C,
        observer: &mut dyn Observer,
    ) -> Result<(Incoming, TcpStream, Visit), Failure> {
        let failed = |error| Failure {
            error,
            whereabouts: Whereabouts::Untouched,
        };
        loop {
            match self.door.arrivals.recv_timeout(TICK) {
                Ok(Arrival::Control {
                    stream,
                    id,
                    peer,
                    visit,
                }) => {
                    return Ok((Incoming { id, source: peer }, stream, visit));
                }
                Ok(Arrival::Query { stream, id }) => {
                    let timeout = self.options.link_timeout;
                    if let Err(error) = answer_arrival(&self.options.journals, recover, id, stream, timeout) {
                        observer.warning(&error.to_string());
                    }
                }
                Ok(Arrival::TurnedAway(error)) => {
                    observer.warning(&format!("a connection was turned away: {error}"));
                }
                Err(RecvTimeoutError::Timeout) if self.is_cancelled() => {
                    return Err(failed(Error::Cancelled))
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed(Error::Internal("nobody listens any more".into())));
                }
            }
        }
    }

    fn receive<R: Replica>(
        &self,
        incoming: &Incoming,
        stream: TcpStream,
        visit: Visit,
        make: &mut impl FnMut(&Incoming) -> Result<R, R::Error>,
        timeline: &mut Timeline<'_>,
    ) -> Result<Received, Failure> {
        let untouched = |error| Failure {
            error,
            whereabouts: Whereabouts::Untouched,
        };
        let cut = visit.cut.clone();
        let options = LinkOptions {
            peer: incoming.source.clone(),
            timeout: self.options.link_timeout,
            cancel: Arc::clone(&self.options.cancel),
            cut: cut.clone(),
        };
        let control = ControlLink::start(stream, options, visit.sender).map_err(untouched)?;
        let mut inbox = Inbox::new(visit.events, Arc::clone(&self.options.cancel));
        let spec = inbox
            .wait("Spec", |event| match event {
                Event::Message(Message::Spec(spec)) => Taken::Yes(spec),
                other => Taken::No(other),
            })
            .map_err(untouched)?;
        timeline.begin(Phase::Prepare);
        let mut journal = self
            .options
            .journals
            .create(self.record(incoming))
            .map_err(|e| refuse(&control, e))?;
        let mut replica = match make(incoming) {
            Ok(replica) => replica,
            Err(error) => {
                let refused = refuse(&control, Error::workload(error));
                return Err(journal.remove().err().map_or(refused, untouched));
            }
        };
        let mut destination = Destination {
            replica: &mut replica,
            source: &incoming.source,
            timeline,
            times: DestinationTimes::default(),
            since: Instant::now(),
            bulk_bytes: 0,
            total_us: 0,
            started: false,
            link_timeout: self.options.link_timeout,
            fetch: None,
            is_mended: false,
        };
        if let Err(error) = destination.prepare(&spec, &mut journal) {
            let refused = refuse(&control, error);
            let discarded = destination.discard(&[]).and_then(|()| journal.remove());
            discarded.unwrap_or_else(|second| destination.warn(&second.to_string()));
            return Err(refused);
        }
        let taken = destination.take_over(&mut journal, &control, &mut inbox, &cut);
        if let Err(Error::OnlyAsked) = taken {
            return Err(untouched(destination.only_asked(journal)));
        }
        let taken = taken.map_err(|error| inbox.explain(error));
        self.switch_over(
            incoming.id,
            destination,
            journal,
            control,
            &mut inbox,
            taken.err(),
        )
    }

    /// From here on `policy::switchover` decides, also about the way back.
    fn switch_over<R: Replica>(
        &self,
        id: MigrationId,
        destination: Destination<'_, '_, R>,
        journal: Journal,
        control: ControlLink,
        inbox: &mut Inbox,
        error: Option<Error>,
    ) -> Result<Received, Failure> {
        let input = match &error {
            None => DestinationInput::Complete,
            Some(Error::Aborted(_)) => DestinationInput::Message(Word::Stays),
            Some(error) if error.is_lost_link() => DestinationInput::LinkLost,
            Some(_) => DestinationInput::Abandon,
        };
        let (switch, ear) = (DestinationSwitch::begin(), Ear::Inbox(inbox));
        let mut driver =
            DestinationDriver::new(switch, id, Some(journal), ear, destination, &self.options.cancel);
        driver.control = Some(control);
        driver.link_timeout = self.options.link_timeout;
        driver.answer_for = self.options.answer_for;
        driver.failures.why = error;
        let left = match driver.switch.handle(input) {
            Ok(()) => driver.run(),
            Err(e) => DestinationLeft::Stuck(Error::Internal(e.to_string())),
        };
        let why = driver.failures.why.take().unwrap_or(Error::Fenced);
        let committed = driver.switch.is_committed();
        let mut destination = driver.host;
        if committed && !destination.is_fetching() {
            destination.mend();
        }
        destination.timeline.end();
        let failure = |error, whereabouts| Err(Failure { error, whereabouts });
        match left {
            DestinationLeft::End(DestinationEnd::Runs) | DestinationLeft::Unconfirmed { runs: true }
                if destination.given_up().is_some() =>
            {
                let sentence = destination.given_up().unwrap_or_default();
                failure(Error::Ended(sentence), Whereabouts::Destination)
            }
            DestinationLeft::End(DestinationEnd::Runs) => Ok(destination.received(id)),
            DestinationLeft::Unconfirmed { runs: true } => {
                let source_address = destination.source.to_owned();
                destination
                    .timeline
                    .observer
                    .warning(&Error::Unconfirmed { source_address }.to_string());
                Ok(destination.received(id))
            }
            DestinationLeft::Stuck(error) if committed => failure(error, Whereabouts::Destination),
            DestinationLeft::Stuck(error) => failure(error, Whereabouts::Source),
            _ => failure(why, Whereabouts::Source),
        }
    }

    fn record(&self, incoming: &Incoming) -> Record {
        Record {
            id: incoming.id,
            role: Role::Destination,
            state: State::Active,
            key: self.options.key.clone(),
            peer: incoming.source.clone(),
            workload: String::new(),
            resources: Vec::new(),
            pid: 0,
            residual: None,
            missing_pages: None,
            listen: Some(self.address.to_string()),
        }
    }
}

/// The source shows the sentence to its user.
fn refuse(control: &ControlLink, error: Error) -> Failure {
    let _ = control.say(&Message::Refused(error.sentence()));
    Failure {
        error,
        whereabouts: Whereabouts::Untouched,
    }
}

/// One migration that is being received: does what the switch-over decides.
struct Destination<'a, 'o, R: Replica> {
    replica: &'a mut R,
    source: &'a str,
    timeline: &'a mut Timeline<'o>,
    times: DestinationTimes,
    /// When the last step of the switch-over ended.
    since: Instant,
    bulk_bytes: u64,
    /// When it ran here.
    total_us: u64,
    started: bool,
    link_timeout: Duration,
    /// What it lacks is fetched.
    fetch: Option<Fetch<R::Pager>>,
    is_mended: bool,
}

impl<R: Replica> Destination<'_, '_, R> {
    fn prepare(&mut self, spec: &[u8], journal: &mut Journal) -> Result<()> {
        journal.set_resources(self.replica.resources())?;
        self.replica.prepare(spec).map_err(Error::workload)?;
        journal.set_resources(self.replica.resources())
    }

    /// Puts away what was prepared for somebody who only wanted to know.
    fn only_asked(&mut self, journal: Journal) -> Error {
        let discarded = self.discard(&[]).and_then(|()| journal.remove());
        discarded.err().unwrap_or(Error::OnlyAsked)
    }

    /// Takes in pages and state.
    fn take_over(
        &mut self,
        journal: &mut Journal,
        control: &ControlLink,
        inbox: &mut Inbox,
        cut: &Cut,
    ) -> Result<()> {
        control.say(&Message::SpecAccepted)?;
        let bulk = inbox.wait("the bulk stream", |event| match event {
            Event::Bulk(stream) => Taken::Yes(Ok(stream)),
            Event::Message(Message::OnlyAsked) => Taken::Yes(Err(Error::OnlyAsked)),
            other => Taken::No(other),
        })??;
        cut.add(&bulk).map_err(|cause| Error::Socket {
            what: "share a connection".into(),
            cause,
        })?;
        self.timeline.begin(Phase::Round);
        let (timeline, times) = (&mut *self.timeline, &mut self.times);
        let load = |replica: &mut R, state: &[u8]| {
            timeline.begin(Phase::Build);
            let begun = Instant::now();
            replica.load(state).map_err(Error::workload)?;
            times.build_us = micros(begun.elapsed());
            Ok(())
        };
        let taken = take_in(self.replica, journal, control, bulk, self.source, load)?;
        self.bulk_bytes = taken.bytes;
        if !taken.missing.is_empty() {
            self.arm(&taken.missing, inbox)?;
        }
        journal.set_resources(self.replica.resources())
    }

    /// From here on missing pages are fetched, also for whoever touches them while the replica is completed.
    fn arm(&mut self, missing: &Pages, inbox: &mut Inbox) -> Result<()> {
        let runs: Vec<PageRun> = missing.runs().collect();
        let pager = self.replica.arm(&runs).map_err(Error::workload)?;
        let mut fetch = Fetch::start(pager, self.link_timeout)?;
        for _ in 0..2 {
            let (kind, stream) = inbox.wait_joined()?;
            fetch.join(kind, stream, true)?;
        }
        self.fetch = Some(fetch);
        Ok(())
    }

    /// The time since this was asked before.
    fn lap(&mut self) -> u64 {
        let now = Instant::now();
        micros(now.duration_since(std::mem::replace(&mut self.since, now)))
    }

    fn received(&self, id: MigrationId) -> Received {
        Received {
            id,
            source: self.source.to_owned(),
            bulk_bytes: self.bulk_bytes,
            fault_times: self.fetch.as_ref().map(Fetch::times),
            total_us: self.total_us,
            times: self.times,
            phases: self.timeline.times().to_vec(),
        }
    }

    /// Why it does not run here although it had come.
    fn given_up(&self) -> Option<String> {
        self.fetch.as_ref().and_then(Fetch::given_up)
    }

    /// What can wait until the source was told.
    fn settle(&mut self) {
        self.timeline.begin(Phase::Settle);
        if let Err(e) = self.replica.settle() {
            self.warn(&e.to_string());
        }
        match &self.fetch {
            Some(_) => self.timeline.begin(Phase::Fetch),
            None => self.mend(),
        }
    }

    /// What can wait until nothing is missing.
    fn mend(&mut self) {
        if std::mem::replace(&mut self.is_mended, true) {
            return;
        }
        if let Err(e) = self.replica.mend() {
            self.warn(&e.to_string());
        }
    }
}

impl<R: Replica> DestinationHost for Destination<'_, '_, R> {
    fn before(&mut self, action: DestinationAction, committed: bool) {
        match action {
            DestinationAction::Load => self.timeline.begin(Phase::Load),
            DestinationAction::Listen if self.timeline.phase() == Some(Phase::Load) => {
                self.lap();
                self.timeline.begin(Phase::Offer);
            }
            DestinationAction::Journal(DestinationJournal::Started) => {
                self.times.offer_us = self.lap();
                self.timeline.begin(Phase::Commit);
            }
            DestinationAction::Start if !self.started && self.timeline.phase() == Some(Phase::Commit) => {
                self.times.commit_us = self.lap();
                self.timeline.begin(Phase::Start);
            }
            DestinationAction::Listen if committed && self.timeline.phase() == Some(Phase::Start) => {
                self.settle()
            }
            _ => {}
        }
    }

    fn load(&mut self) -> Result<Vec<u8>> {
        let begun = Instant::now();
        self.replica.complete().map_err(Error::workload)?;
        self.times.load_us = micros(begun.elapsed());
        Ok(self.replica.resources())
    }

    fn start(&mut self, _: &[u8]) -> Result<()> {
        self.replica.start().map_err(Error::workload)?;
        if !self.started {
            self.started = true;
            self.times.start_us = self.lap();
            self.total_us = micros(self.timeline.elapsed());
        }
        Ok(())
    }

    fn discard(&mut self, _: &[u8]) -> Result<()> {
        let ended = self.fetch.take();
        // Served until it is gone: what discards it may touch what is missing.
        let discarded = self.replica.discard().map_err(Error::workload);
        drop(ended);
        discarded
    }

    fn times(&self) -> DestinationTimes {
        self.times
    }

    fn warn(&mut self, sentence: &str) {
        self.timeline.observer.warning(sentence);
    }

    fn join(&mut self, kind: StreamKind, stream: TcpStream) {
        if let Err(error) = join(&mut self.fetch, true, kind, stream) {
            self.warn(&error.to_string());
        }
    }

    fn missing_pages(&self) -> Option<u64> {
        self.fetch.as_ref().and_then(Fetch::missing_pages)
    }

    fn is_fetching(&mut self) -> bool {
        let Some(fetch) = &self.fetch else {
            return false;
        };
        let (warnings, complete) = (fetch.warnings(), fetch.is_complete());
        warnings.iter().for_each(|warning| self.warn(warning));
        if complete && self.started {
            self.mend();
        }
        !complete
    }
}
