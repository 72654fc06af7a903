//! What is done when a controller died: by its guardian at once, or by the next command that finds a stale journal.
//!
//! What that is stands in the table of `policy::switchover`: the same machines as in the controllers are entered at the place
//! that the journal names. Every step is idempotent, may break off anywhere and be done again.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::sync::Arc;
use std::time::Duration;

use whimbrel_policy::switchover::{DestinationEnd, DestinationSwitch, SourceEnd, SourceSwitch};
use whimbrel_wire::{write_message, Message, MigrationId};

use crate::contract::{Outcome, Recover};
use crate::destination_switch::{DestinationDriver, DestinationHost, DestinationLeft, Ear};
use crate::error::{Error, Result};
use crate::inbox::Inbox;
use crate::journal::{Journal, Journals, Record, Role, State, FENCED_MAX};
use crate::source_switch::{Patience, SourceDriver, SourceHost, SourceLeft, SourceLine};

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
    /// Destination: how long questions are answered. Source: how long a destination that may wait for it is told where the
    /// workload is.
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
    /// Source: taken back by force, and yet it runs at the destination, too: one of the two must be ended.
    Conflict,
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

/// Recovers every stale journal, as each command does before its own work. What another process acts on is left alone, and so is what
/// is only kept for a question; when that is old, it goes.
pub fn recover_stale<C: Recover>(
    journals: &Journals,
    recover: &C,
    options: &GuardianOptions<'_>,
) -> Result<Vec<(Record, Result<Settled>)>> {
    journals.forget_fenced(FENCED_MAX)?;
    let mut results = Vec::new();
    for record in journals.stale()?.into_iter().filter(|r| !r.is_only_kept()) {
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
    let state = journal.record().state;
    let decided = state.at_source().ok_or_else(|| misplaced(state))?;
    let patience = Patience {
        link_timeout: options.link_timeout,
        ask_for: options.ask_for,
        tell_for: options.answer_for,
        followed: false,
        force_here: options.force_here,
        cancel: options.cancel,
    };
    let (_, nothing) = channel();
    let line = SourceLine::new(Inbox::new(nothing, Arc::default()));
    let switch = SourceSwitch::recover(Some(decided));
    match SourceDriver::new(switch, Some(journal), line, Recovering(recover), patience).run() {
        SourceLeft::End(SourceEnd::Nothing) => Ok(Settled::Nothing),
        SourceLeft::End(SourceEnd::Moved) => Ok(Settled::Moved),
        SourceLeft::End(SourceEnd::Stays) => Ok(Settled::Stays),
        SourceLeft::End(SourceEnd::Conflict) => Ok(Settled::Conflict),
        SourceLeft::Undecided => Ok(Settled::Undecided),
        SourceLeft::Stuck(error) => Err(error),
    }
}

fn settle_destination<C: Recover>(
    journal: Journal,
    recover: &C,
    options: &GuardianOptions<'_>,
) -> Result<Settled> {
    let ear = options.listener.map_or(Ear::Deaf, Ear::Door);
    let mut driver = recovering(journal, recover, ear, options.cancel)?;
    driver.link_timeout = options.link_timeout;
    driver.answer_for = options.answer_for;
    match driver.run() {
        DestinationLeft::End(DestinationEnd::Runs) => Ok(Settled::Started { confirmed: true }),
        DestinationLeft::Unconfirmed { runs: true } => Ok(Settled::Started { confirmed: false }),
        DestinationLeft::End(DestinationEnd::Discarded) | DestinationLeft::Unconfirmed { runs: false } => {
            Ok(Settled::Discarded)
        }
        DestinationLeft::Stuck(error) => Err(error),
    }
}

fn recovering<'a, C: Recover>(
    journal: Journal,
    recover: &'a C,
    ear: Ear<'a>,
    cancel: &'a AtomicBool,
) -> Result<DestinationDriver<'a, Recovering<'a, C>>> {
    let (id, state) = (journal.record().id, journal.record().state);
    let decided = state.at_destination().ok_or_else(|| misplaced(state))?;
    let switch = DestinationSwitch::recover(Some(decided));
    Ok(DestinationDriver::new(
        switch,
        id,
        Some(journal),
        ear,
        Recovering(recover),
        cancel,
    ))
}

fn misplaced(state: State) -> Error {
    Error::Internal(format!("a journal of the other end: {state:?}"))
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
            // Whoever works on it has not decided; if the connection is gone, the source asks again anyway.
            let _ = write_message(&mut stream, &Message::Undecided);
            return Ok(());
        }
        journal => journal?,
    };
    let never = AtomicBool::new(false);
    let mut driver = match journal {
        Some(journal) => recovering(journal, recover, Ear::Deaf, &never)?,
        None => {
            let switch = DestinationSwitch::recover(None);
            DestinationDriver::new(switch, id, None, Ear::Deaf, Recovering(recover), &never)
        }
    };
    driver.query = Some(stream);
    driver.link_timeout = timeout;
    match driver.run() {
        DestinationLeft::Stuck(error) => Err(error),
        _ => Ok(()),
    }
}

/// Does from the journal's resources what the dead controller would have done.
struct Recovering<'a, C>(&'a C);

impl<C: Recover> SourceHost for Recovering<'_, C> {
    fn hold(&mut self) -> Result<()> {
        Err(Error::Internal("nothing to hold".into()))
    }

    fn release(&mut self, outcome: Outcome, resources: &[u8]) -> Result<()> {
        match outcome {
            Outcome::Moved => self.0.moved(resources),
            Outcome::Stays => self.0.stays(resources),
        }
        .map_err(Error::workload)
    }
}

impl<C: Recover> DestinationHost for Recovering<'_, C> {
    fn load(&mut self) -> Result<Vec<u8>> {
        Err(Error::Internal("nothing to load".into()))
    }

    fn start(&mut self, resources: &[u8]) -> Result<()> {
        self.0.start(resources).map_err(Error::workload)
    }

    fn discard(&mut self, resources: &[u8]) -> Result<()> {
        self.0.discard(resources).map_err(Error::workload)
    }
}
