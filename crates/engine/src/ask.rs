//! A source that lost its destination after the offer asks what became of the workload, again and again: only the answer decides.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_wire::{write_message, DestinationTimes, Message, StreamKind};

use crate::error::{Error, Result};
use crate::journal::Record;
use crate::link::{dial, hear};

/// The first pause between two questions; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the destination says for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It runs there. The times are zero if the one who answers has not started it himself.
    Started(DestinationTimes),
    /// It does not, and never will.
    Fenced,
}

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'a> {
    /// For each attempt.
    pub link_timeout: Duration,
    /// When to give up; never, if it is not said.
    pub until: Option<Instant>,
    /// Set when the asking shall end.
    pub cancel: &'a AtomicBool,
}

impl Asking<'_> {
    fn is_over(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Sleeps in small steps, so that a cancel is noticed.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.is_over() {
            thread::sleep(PAUSE_MIN.min(until.saturating_duration_since(Instant::now())));
        }
    }
}

/// Asks until there is an answer. It comes with the connection, on which [`farewell`] says the last word.
pub(crate) fn ask(record: &Record, asking: &Asking<'_>) -> Option<(Answer, TcpStream)> {
    let mut pause = PAUSE_MIN;
    while !asking.is_over() {
        if let Ok(Some(answered)) = ask_once(record, asking.link_timeout) {
            return Some(answered);
        }
        asking.pause(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    None
}

fn ask_once(record: &Record, timeout: Duration) -> Result<Option<(Answer, TcpStream)>> {
    let mut stream = dial(&record.peer, &record.key, record.id, StreamKind::Query, timeout)?;
    let lost = |cause| Error::Link {
        peer: record.peer.clone(),
        cause,
    };
    write_message(&mut stream, &Message::Query).map_err(lost)?;
    match hear(&stream, timeout).map_err(lost)? {
        Message::Started(times) => Ok(Some((Answer::Started(times), stream))),
        Message::Fenced => Ok(Some((Answer::Fenced, stream))),
        _ => Ok(None),
    }
}

/// Tells the destination that it may forget the migration. If that does not arrive, its journal stays a while longer.
pub(crate) fn farewell(stream: &mut TcpStream, word: &Message) {
    let _ = write_message(stream, word);
}
