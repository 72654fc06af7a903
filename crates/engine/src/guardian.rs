//! What is done when a controller died: by its guardian at once, or by the next command that finds a stale journal.
//!
//! | role | journal | what is done |
//! |---|---|---|
//! | source | `Active` | it stays; the journal goes |
//! | source | `Offered` | the destination is asked until it answers: `Started` -> as `Released`; `Fenced` -> it stays; no answer -> frozen, undecided |
//! | source | `Released` | its copy is ended; the journal goes |
//! | destination | `Active` | discarded; the journal goes |
//! | destination | `Prepared`, `Fenced` | fenced, discarded; questions are answered `Fenced` for a while; the journal goes |
//! | destination | `Started` | started; questions are answered `Started`; the journal goes when the source has confirmed, or stays |
//! | destination | none | questions are answered `Fenced` |
//!
//! Every row may be done twice, or break off anywhere and begin again: each step is idempotent and the journal goes last.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use whimbrel_wire::{write_message, DestinationTimes, Message, MigrationId, StreamKind};

use crate::ask::{ask, farewell, Answer, Asking};
use crate::contract::Recover;
use crate::door::{accept_soon, greet};
use crate::error::{Error, Result};
use crate::journal::{Journal, Journals, Record, Role, State};
use crate::link::hear;

/// How to recover.
#[derive(Debug)]
pub struct GuardianOptions<'a> {
    /// Each connection's time limit.
    pub link_timeout: Duration,
    /// Source: how long to ask; for ever if it is not said.
    pub ask_for: Option<Duration>,
    /// Source: the operator knows that the workload does not run at the destination, and takes it back.
    pub force_here: bool,
    /// Destination: the socket that the controller listened on. Without it nobody can ask, and nothing is waited for.
    pub listener: Option<&'a TcpListener>,
    /// Destination: how long questions are answered.
    pub answer_for: Duration,
    /// Set when it shall end early.
    pub cancel: &'a AtomicBool,
}

/// How a recovery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// There was nothing to do: the controller had settled everything.
    Nothing,
    /// Source: the workload runs on here.
    Stays,
    /// Source: it runs at the destination; its copy is gone.
    Moved,
    /// Source: it stays frozen until the destination answers.
    Undecided,
    /// Destination: nothing of it is left here.
    Discarded,
    /// Destination: it runs here.
    Started {
        /// False if the source has not confirmed; the journal stays for its question.
        confirmed: bool,
    },
}

/// Recovers one migration. [`Error::Busy`] if another process acts on it: leave it alone.
pub fn take_over<C: Recover>(
    journals: &Journals,
    id: MigrationId,
    role: Role,
    recover: &C,
    options: &GuardianOptions<'_>,
) -> Result<Settled> {
    match journals.open(id, role)? {
        None => Ok(Settled::Nothing),
        Some(journal) => match role {
            Role::Source => settle_source(journal, recover, options),
            Role::Destination => settle_destination(journal, recover, options),
        },
    }
}

/// Recovers every stale journal, as each command does before its own work. What another process acts on is left alone.
pub fn recover_stale<C: Recover>(
    journals: &Journals,
    recover: &C,
    options: &GuardianOptions<'_>,
) -> Result<Vec<(Record, Result<Settled>)>> {
    let mut results = Vec::new();
    for record in journals.stale()? {
        match take_over(journals, record.id, record.role, recover, options) {
            Err(Error::Busy { .. }) => {}
            result => results.push((record, result)),
        }
    }
    Ok(results)
}

fn settle_source<C: Recover>(
    journal: Journal,
    recover: &C,
    options: &GuardianOptions<'_>,
) -> Result<Settled> {
    match journal.record().state {
        State::Released => end_copy(journal, recover, None),
        State::Offered if !options.force_here => {
            let asking = Asking {
                link_timeout: options.link_timeout,
                until: options.ask_for.map(|time| Instant::now() + time),
                cancel: options.cancel,
            };
            match ask(journal.record(), &asking) {
                Some((Answer::Started(_), query)) => end_copy(journal, recover, Some(query)),
                Some((Answer::Fenced, query)) => stay(journal, recover, Some(query)),
                None => Ok(Settled::Undecided),
            }
        }
        _ => stay(journal, recover, None),
    }
}

fn stay<C: Recover>(journal: Journal, recover: &C, query: Option<TcpStream>) -> Result<Settled> {
    recover
        .stays(&journal.record().resources)
        .map_err(Error::workload)?;
    if let Some(mut query) = query {
        farewell(&mut query, &Message::Stays);
    }
    journal.remove()?;
    Ok(Settled::Stays)
}

fn end_copy<C: Recover>(mut journal: Journal, recover: &C, query: Option<TcpStream>) -> Result<Settled> {
    journal.set_state(State::Released)?;
    recover
        .moved(&journal.record().resources)
        .map_err(Error::workload)?;
    if let Some(mut query) = query {
        farewell(&mut query, &Message::Released);
    }
    journal.remove()?;
    Ok(Settled::Moved)
}

fn settle_destination<C: Recover>(
    journal: Journal,
    recover: &C,
    options: &GuardianOptions<'_>,
) -> Result<Settled> {
    let was = journal.record().state;
    let (journal, word) = decide(journal, recover)?;
    let Some(journal) = journal else {
        return Ok(Settled::Discarded);
    };
    let confirmed = answer_questions(&journal, &word, options);
    if was == State::Started {
        if confirmed {
            journal.remove()?;
        }
        return Ok(Settled::Started { confirmed });
    }
    journal.remove()?;
    Ok(Settled::Discarded)
}

/// Does what the journal says, and says what is to be answered. A journal of which nobody can ask is removed.
fn decide<C: Recover>(mut journal: Journal, recover: &C) -> Result<(Option<Journal>, Message)> {
    let resources = journal.record().resources.clone();
    match journal.record().state {
        State::Started => {
            recover.start(&resources).map_err(Error::workload)?;
            Ok((Some(journal), Message::Started(DestinationTimes::default())))
        }
        State::Active => {
            recover.discard(&resources).map_err(Error::workload)?;
            journal.remove()?;
            Ok((None, Message::Fenced))
        }
        _ => {
            journal.set_state(State::Fenced)?;
            recover.discard(&resources).map_err(Error::workload)?;
            Ok((Some(journal), Message::Fenced))
        }
    }
}

/// True if the source has confirmed.
fn answer_questions(journal: &Journal, word: &Message, options: &GuardianOptions<'_>) -> bool {
    let Some(listener) = options.listener else {
        return false;
    };
    let record = journal.record();
    let until = Instant::now() + options.answer_for;
    while Instant::now() < until && !options.cancel.load(Ordering::Relaxed) {
        let Some((stream, _)) = accept_soon(listener) else {
            continue;
        };
        let key_of = |id, kind| (id == record.id && kind == StreamKind::Query).then(|| record.key.clone());
        if greet(&stream, options.link_timeout, key_of).is_ok()
            && answer_on(&stream, word, options.link_timeout)
        {
            return true;
        }
    }
    false
}

/// Answers a question on a connection behind its handshake. True if the source confirmed that it heard.
pub(crate) fn answer_on(stream: &TcpStream, word: &Message, timeout: Duration) -> bool {
    let mut writer = stream;
    matches!(hear(stream, timeout), Ok(Message::Query))
        && write_message(&mut writer, word).is_ok()
        && matches!(hear(stream, timeout), Ok(Message::Released | Message::Stays))
}

/// Answers a question about a migration that this process does not receive: from its journal, if it has one.
pub(crate) fn answer_arrival<C: Recover>(
    journals: &Journals,
    recover: &C,
    id: MigrationId,
    mut stream: TcpStream,
    timeout: Duration,
) -> Result<()> {
    let journal = match journals.open(id, Role::Destination) {
        Err(Error::Busy { .. }) => {
            let _ = write_message(&mut stream, &Message::Undecided);
            return Ok(());
        }
        journal => journal?,
    };
    let Some(journal) = journal else {
        answer_on(&stream, &Message::Fenced, timeout);
        return Ok(());
    };
    let (journal, word) = decide(journal, recover)?;
    let confirmed = answer_on(&stream, &word, timeout);
    match journal {
        Some(journal) if confirmed || word == Message::Fenced => journal.remove(),
        _ => Ok(()),
    }
}
