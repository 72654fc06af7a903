//! The destination of a migration, from the listening socket to the workload that runs here.
//!
//! Every step is one of [`crate::observer::DESTINATION_PHASES`]. Up to the journal's `Started` any failure discards the replica; from then on
//! the workload is this host's, whatever happens to the link.
//!
//! The journal is removed without being fenced as long as `Prepared` was not said: the source cannot have offered then, and
//! a question about a migration without a journal is answered `Fenced` in any case.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_wire::{DestinationTimes, Key, Message, MigrationId};

use crate::contract::{Recover, Replica};
use crate::door::{Arrival, Door, Visit};
use crate::error::{Error, Failure, Result, Whereabouts};
use crate::guardian::{answer_arrival, answer_on};
use crate::inbox::{end_of, Inbox, Taken};
use crate::intake::take_in;
use crate::journal::{Journal, Journals, Record, Role, State};
use crate::link::{ControlLink, Cut, Event, LinkOptions};
use crate::observer::{micros, Observer, Phase, Timeline};
use crate::summary::Received;

/// How long questions about a migration are answered after its link was lost.
pub const ANSWER_FOR: Duration = Duration::from_secs(15);
/// How long a source that lives may take for its offer, or for its last word.
const OFFER_MAX: Duration = Duration::from_secs(600);
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
                    observer.warning(&format!("the migration from {source} did not begin: {error}"));
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
        let journal = self
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
            options: &self.options,
            incoming,
            control: Some(control),
            inbox,
            cut,
            timeline,
            times: DestinationTimes::default(),
            bulk_bytes: 0,
        };
        destination.run(&spec, journal)
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

/// Why a prepared workload will never be started here.
enum Fencing {
    /// The source says that it has not offered, and will not.
    SourceStays(Error),
    /// The source lost us and asks.
    Asked(TcpStream),
    /// It may have offered.
    LinkLost(Error),
    /// It may have offered, and can be told.
    OurWill(Error),
}

impl Fencing {
    fn because(event: Event) -> Self {
        match event {
            Event::Queried(stream) => Fencing::Asked(stream),
            Event::Lost(error) => Fencing::LinkLost(error),
            Event::Message(Message::Abort(_) | Message::Stays) => Fencing::SourceStays(end_of(event)),
            event => Fencing::OurWill(end_of(event)),
        }
    }

    fn into_error(self) -> Error {
        match self {
            Fencing::Asked(_) => Error::Queried,
            Fencing::SourceStays(error) | Fencing::LinkLost(error) | Fencing::OurWill(error) => error,
        }
    }
}

/// One migration that is being received.
struct Destination<'a, 'o, R> {
    replica: &'a mut R,
    options: &'a ReceiveOptions,
    incoming: &'a Incoming,
    control: Option<ControlLink>,
    inbox: Inbox,
    cut: Cut,
    timeline: &'a mut Timeline<'o>,
    times: DestinationTimes,
    bulk_bytes: u64,
}

impl<R: Replica> Destination<'_, '_, R> {
    fn run(&mut self, spec: &[u8], mut journal: Journal) -> Result<Received, Failure> {
        if let Err(error) = self.prepare(spec, &mut journal) {
            let word = Message::Refused(error.sentence());
            return Err(self.discard(error, &word, journal, Whereabouts::Untouched));
        }
        if let Err(error) = self.take_over(&mut journal) {
            let error = self.inbox.explain(error);
            let word = Message::Abort(error.sentence());
            return Err(self.discard(error, &word, journal, Whereabouts::Source));
        }
        if let Err(why) = self.wait_for_offer() {
            return Err(self.fence(why, journal));
        }
        self.commit(journal)
    }

    fn say(&self, message: &Message) -> Result<()> {
        match &self.control {
            Some(control) => control.say(message),
            None => Err(Error::Internal("nobody to talk to".into())),
        }
    }

    fn prepare(&mut self, spec: &[u8], journal: &mut Journal) -> Result<()> {
        journal.set_resources(self.replica.resources())?;
        self.replica.prepare(spec).map_err(Error::workload)?;
        journal.set_resources(self.replica.resources())
    }

    /// All that is not the workload's own: pages, then state.
    fn take_over(&mut self, journal: &mut Journal) -> Result<()> {
        self.say(&Message::SpecAccepted)?;
        let bulk = self.inbox.wait("the bulk stream", |event| match event {
            Event::Bulk(stream) => Taken::Yes(stream),
            other => Taken::No(other),
        })?;
        self.cut.add(&bulk).map_err(|cause| Error::Socket {
            what: "share a connection".into(),
            cause,
        })?;
        self.timeline.begin(Phase::Round);
        let control = self
            .control
            .as_ref()
            .ok_or_else(|| Error::Internal("no control stream".into()))?;
        self.bulk_bytes = take_in(self.replica, journal, control, bulk, &self.incoming.source)?;
        let complete = Instant::now();
        let state = self.inbox.wait("State", |event| match event {
            Event::Message(Message::State(state)) => Taken::Yes(state),
            other => Taken::No(other),
        })?;
        self.times.wait_us = micros(complete.elapsed());
        self.timeline.begin(Phase::Load);
        let loading = Instant::now();
        journal.set_resources(self.replica.resources())?;
        self.replica.load(&state).map_err(Error::workload)?;
        // Said before it is told: from `Prepared` on the source may offer.
        journal.set_prepared(self.replica.resources())?;
        self.times.load_us = micros(loading.elapsed());
        self.say(&Message::Prepared)
    }

    fn wait_for_offer(&mut self) -> Result<(), Fencing> {
        self.timeline.begin(Phase::Offer);
        let waiting = Instant::now();
        let event = self.inbox.next_event(waiting + OFFER_MAX);
        self.times.offer_us = micros(waiting.elapsed());
        match event {
            Some(Event::Message(Message::Offer)) => Ok(()),
            Some(event) => Err(Fencing::because(event)),
            None => Err(Fencing::OurWill(Error::Late {
                expected: "the offer",
                waited: OFFER_MAX,
            })),
        }
    }

    /// Before `Prepared`: nobody will ever ask.
    fn discard(
        &mut self,
        error: Error,
        word: &Message,
        journal: Journal,
        whereabouts: Whereabouts,
    ) -> Failure {
        let _ = self.say(word);
        self.control = None;
        let discarded = self.replica.discard().map_err(Error::workload);
        self.note(discarded.and_then(|()| journal.remove()));
        Failure { error, whereabouts }
    }

    /// After `Prepared`: the source may have offered. Decides against it, and says so to whoever asks.
    fn fence(&mut self, why: Fencing, mut journal: Journal) -> Failure {
        // Should this fail, the journal still says `Prepared`, which never starts anything either.
        self.note(journal.set_state(State::Fenced));
        let discarded = self.replica.discard().map_err(Error::workload);
        let gone = discarded.is_ok();
        self.note(discarded);
        let word = Message::Fenced;
        let _ = match &why {
            Fencing::SourceStays(_) => true,
            Fencing::Asked(query) => {
                answer_on(query, &word, self.options.link_timeout)
                    || self.last_word(&word, self.options.answer_for)
            }
            Fencing::LinkLost(_) => self.last_word(&word, self.options.answer_for),
            Fencing::OurWill(_) => {
                let _ = self.say(&word);
                self.last_word(&word, OFFER_MAX)
            }
        };
        // A migration without a journal is fenced too. What is not gone yet needs the journal.
        if gone {
            self.note(journal.remove());
        }
        Failure {
            error: why.into_error(),
            whereabouts: Whereabouts::Source,
        }
    }

    fn commit(&mut self, mut journal: Journal) -> Result<Received, Failure> {
        self.timeline.begin(Phase::Commit);
        let committing = Instant::now();
        if let Err(error) = journal.set_state(State::Started) {
            return Err(self.fence(Fencing::OurWill(error), journal));
        }
        self.times.commit_us = micros(committing.elapsed());
        self.timeline.begin(Phase::Start);
        let starting = Instant::now();
        // The source hears nothing until it runs: should it never run, the operator can still take it back there.
        self.replica.start().map_err(|e| Failure {
            error: Error::workload(e),
            whereabouts: Whereabouts::Destination,
        })?;
        self.times.start_us = micros(starting.elapsed());
        let total_us = micros(self.timeline.elapsed());
        let started = Message::Started(self.times);
        let _ = self.say(&started);
        self.timeline.begin(Phase::Settle);
        let settled = self.replica.settle().map_err(Error::workload);
        self.note(settled);
        if self.last_word(&started, OFFER_MAX) {
            self.note(journal.remove());
        } else {
            self.note(Err(Error::Unconfirmed {
                source_address: self.incoming.source.clone(),
            }));
        }
        self.timeline.end();
        Ok(self.received(total_us))
    }

    /// Waits until the source has confirmed the end, and answers `word` if it asks. False if it has not within the time.
    fn last_word(&mut self, word: &Message, time: Duration) -> bool {
        let mut until = Instant::now() + time;
        loop {
            match self.inbox.next_event(until) {
                Some(Event::Message(Message::Released | Message::Stays)) => return true,
                Some(Event::Queried(stream)) if answer_on(&stream, word, self.options.link_timeout) => {
                    return true
                }
                Some(Event::Lost(_) | Event::Queried(_)) => until = Instant::now() + self.options.answer_for,
                Some(Event::Message(Message::Offer)) => {
                    let _ = self.say(word);
                }
                Some(_) => {}
                None => return false,
            }
        }
    }

    /// Something that the user should know, but that changes nothing any more.
    fn note(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.timeline.observer.warning(&error.to_string());
        }
    }

    fn received(&self, total_us: u64) -> Received {
        Received {
            id: self.incoming.id,
            source: self.incoming.source.clone(),
            bulk_bytes: self.bulk_bytes,
            total_us,
            times: self.times,
            phases: self.timeline.times().to_vec(),
        }
    }
}
