//! What has arrived for the thread that drives a migration.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_wire::{Message, StreamKind};

use crate::error::{Error, Result};
use crate::link::Event;

/// The longest time that one answer may take while the peer is alive: it may have to hash gigabytes of files.
const ANSWER_MAX: Duration = Duration::from_secs(600);
/// How long a broken bulk stream waits for the reason, which comes on the control stream.
const REASON_MAX: Duration = Duration::from_secs(2);

/// Messages that are kept until somebody waits for them.
const EARLY_MAX: usize = 8;

/// The receiving end of a migration's events.
#[derive(Debug)]
pub(crate) struct Inbox {
    events: Receiver<Event>,
    cancel: Arc<AtomicBool>,
    acked: u64,
    /// What came before it was waited for: a destination may be prepared before the source holds.
    early: VecDeque<Event>,
    /// Streams of post-copy; they come long before they are needed.
    joined: VecDeque<(StreamKind, TcpStream)>,
    /// The event that ended the migration was taken out.
    ended: bool,
}

impl Inbox {
    pub fn new(events: Receiver<Event>, cancel: Arc<AtomicBool>) -> Self {
        Self {
            events,
            cancel,
            acked: 0,
            early: VecDeque::new(),
            joined: VecDeque::new(),
            ended: false,
        }
    }

    /// Fails if anything arrived that ends the migration, or if the user cancelled. Never waits.
    pub fn check(&mut self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        while let Ok(event) = self.events.try_recv() {
            self.keep_for_later(event)?;
        }
        Ok(())
    }

    /// True if the user wants it stopped.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Waits until `until`, or for something that ends the migration.
    pub fn pause(&mut self, until: Instant) -> Result<()> {
        loop {
            match self
                .events
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(event) => self.keep_for_later(event)?,
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
            }
        }
    }

    /// Waits until the barrier `number` is acknowledged.
    pub fn wait_ack(&mut self, number: u64) -> Result<()> {
        let until = Instant::now() + ANSWER_MAX;
        while self.acked < number {
            let event = self.next(until, "an acknowledgement")?;
            self.expect_nothing(event)?;
        }
        Ok(())
    }

    /// Waits for an event that `take` accepts.
    pub fn wait<T>(&mut self, expected: &'static str, take: impl Fn(Event) -> Taken<T>) -> Result<T> {
        let until = Instant::now() + ANSWER_MAX;
        loop {
            match take(self.next(until, expected)?) {
                Taken::Yes(value) => return Ok(value),
                Taken::No(event) => self.expect_nothing(event)?,
            }
        }
    }

    /// Waits for a stream of post-copy.
    pub fn wait_joined(&mut self) -> Result<(StreamKind, TcpStream)> {
        let until = Instant::now() + ANSWER_MAX;
        loop {
            if let Some(joined) = self.joined.pop_front() {
                return Ok(joined);
            }
            let event = self.next(until, "a stream for faults")?;
            self.expect_nothing(event)?;
        }
    }

    /// Waits for a message without content.
    pub fn wait_for(&mut self, message: &Message) -> Result<()> {
        self.wait(message.name(), |event| match event {
            Event::Message(got) if got == *message => Taken::Yes(()),
            other => Taken::No(other),
        })
    }

    fn next(&mut self, until: Instant, expected: &'static str) -> Result<Event> {
        if let Some(event) = self.early.pop_front() {
            return Ok(event);
        }
        match self
            .events
            .recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            Ok(event) => Ok(event),
            Err(RecvTimeoutError::Timeout) => Err(Error::Late {
                expected,
                waited: ANSWER_MAX,
            }),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }

    /// Waits for the next event of any kind. `None` when the time is over.
    pub fn next_event(&mut self, until: Instant) -> Option<Event> {
        if let Some((kind, stream)) = self.joined.pop_front() {
            return Some(Event::Joined(kind, stream));
        }
        if let Some(event) = self.early.pop_front() {
            return Some(event);
        }
        self.events
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .ok()
    }

    /// Waits until the peer hangs up, or so long.
    pub fn wait_gone(&mut self, most: Duration) {
        let until = Instant::now() + most;
        while let Some(event) = self.next_event(until) {
            if !matches!(event, Event::Joined(..) | Event::Message(_)) {
                return;
            }
        }
    }

    /// The reason why a stream broke is often told on the control stream: the peer gave up, the user cancelled.
    pub fn explain(&mut self, error: Error) -> Error {
        if self.ended || !matches!(error, Error::Link { .. }) {
            return error;
        }
        let until = Instant::now() + REASON_MAX;
        while let Some(event) = self.next_event(until) {
            let ends = match &event {
                Event::Joined(..) => false,
                Event::Message(message) => matches!(message, Message::Abort(_) | Message::Refused(_)),
                _ => true,
            };
            if ends {
                return end_of(event);
            }
        }
        error
    }

    fn keep_for_later(&mut self, event: Event) -> Result<()> {
        let ends =
            matches!(&event, Event::Message(m) if matches!(m, Message::Abort(_) | Message::Refused(_)));
        match event {
            Event::Message(message) if !ends && !is_noise(&message) && self.early.len() < EARLY_MAX => {
                self.early.push_back(Event::Message(message));
                Ok(())
            }
            other => self.expect_nothing(other),
        }
    }

    fn expect_nothing(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Message(Message::Ping) => Ok(()),
            Event::Message(Message::BarrierAck { number, .. }) => {
                self.acked = self.acked.max(number);
                Ok(())
            }
            Event::Joined(kind, stream) if self.joined.len() < EARLY_MAX => {
                self.joined.push_back((kind, stream));
                Ok(())
            }
            other => {
                self.ended = true;
                Err(end_of(other))
            }
        }
    }
}

fn is_noise(message: &Message) -> bool {
    matches!(message, Message::Ping | Message::BarrierAck { .. })
}

/// What a waiting thread does with an event.
pub(crate) enum Taken<T> {
    /// It was what he waited for.
    Yes(T),
    /// He does not want it: it ends the migration, or is of no importance.
    No(Event),
}

/// Why an event that nobody waited for ends the migration.
pub(crate) fn end_of(event: Event) -> Error {
    match event {
        Event::Message(Message::Abort(sentence)) => Error::Aborted(sentence),
        Event::Message(Message::Refused(sentence)) => Error::Refused(sentence),
        Event::Message(message) => Error::unexpected(&message, "nothing"),
        Event::Lost(error) => error,
        Event::Cancelled => Error::Cancelled,
        Event::Queried(_) => Error::Queried,
        Event::Bulk(_) | Event::Joined(..) => Error::unexpected(&Message::Ping, "no further stream"),
    }
}

fn gone() -> Error {
    Error::Internal("the control thread ended without a word".into())
}
