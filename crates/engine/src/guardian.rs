//! What is done when a controller died: by its guardian at once, or by the next command that finds a stale journal.
//!
//! What that is stands in the table of `policy::switchover`: the same machines as in the controllers are entered at the place
//! that the journal names. Every step is idempotent, may break off anywhere and be done again.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::Arc;
use std::time::Duration;

use whimbrel_policy::switchover::{DestinationEnd, DestinationSwitch, SourceEnd, SourceSwitch};
use whimbrel_wire::{write_message, Message, MigrationId, StreamKind};

use crate::contract::{Left, Outcome, Recover};
use crate::destination_switch::{DestinationDriver, DestinationHost, DestinationLeft, Ear};
use crate::error::{Error, Result};
use crate::fetch::{join, Fetch};
use crate::inbox::Inbox;
use crate::journal::{Journal, Journals, Record, Role, State, FENCED_MAX};
use crate::link::LINK_TIMEOUT;
use crate::serve::{Noted, Route, Server, Stores, Waited};
use crate::source_switch::{Patience, SourceDriver, SourceHost, SourceLeft, SourceLine};

/// How often a server is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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
    /// Whether pages that are still at the source are sent and fetched, which takes as long as it takes. If not, they wait: the workload
    /// runs, but for threads that need one of them.
    pub follow: bool,
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
    /// Source: it runs at the destination, and pages of it are still here, in the frozen copy. Nobody sends them now.
    Serving,
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
    let host = Recovering::new(recover, options.follow, options.link_timeout, options.cancel);
    match SourceDriver::new(switch, Some(journal), line, host, patience).run() {
        SourceLeft::Serving(_) => Ok(Settled::Serving),
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
    // Without a socket the source cannot come.
    let follow = options.follow && options.listener.is_some();
    let mut driver = recovering(journal, recover, follow, ear, options.cancel)?;
    driver.host.timeout = options.link_timeout;
    driver.link_timeout = options.link_timeout;
    driver.answer_for = options.answer_for;
    let left = driver.run();
    let host = &mut driver.host;
    let given_up = host.fetch.as_ref().and_then(Fetch::given_up);
    if let Some(sentence) = host.ended.take().or(given_up) {
        return Err(Error::Ended(sentence));
    }
    match left {
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
    follow: bool,
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
        Recovering::new(recover, follow, LINK_TIMEOUT, cancel),
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
        Some(journal) => recovering(journal, recover, false, Ear::Deaf, &never)?,
        None => {
            let switch = DestinationSwitch::recover(None);
            let host = Recovering::new(recover, false, timeout, &never);
            DestinationDriver::new(switch, id, None, Ear::Deaf, host, &never)
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
struct Recovering<'a, C: Recover> {
    recover: &'a C,
    follow: bool,
    timeout: Duration,
    cancel: &'a AtomicBool,
    fetch: Option<Fetch<C::Pager>>,
    /// It is known what is left to be fetched.
    is_asked: bool,
    /// Why the workload had to be ended.
    ended: Option<String>,
}

impl<'a, C: Recover> Recovering<'a, C> {
    fn new(recover: &'a C, follow: bool, timeout: Duration, cancel: &'a AtomicBool) -> Self {
        Self {
            recover,
            follow,
            timeout,
            cancel,
            fetch: None,
            is_asked: false,
            ended: None,
        }
    }

    fn server(&self, record: &Record) -> Result<Server> {
        let store = || self.recover.store(&record.resources).map_err(Error::workload);
        let stores = Stores {
            replies: store()?,
            push: store()?,
        };
        let route = Route {
            address: record.peer.clone(),
            key: record.key.clone(),
            id: record.id,
            timeout: self.timeout,
        };
        let options = record.residual.unwrap_or_default();
        // What is missing only the destination knows now.
        Server::start(None, None, route, stores, options)
    }
}

impl<C: Recover> SourceHost for Recovering<'_, C> {
    fn hold(&mut self) -> Result<()> {
        Err(Error::Internal("nothing to hold".into()))
    }

    fn serve(&mut self, journal: &mut Journal) -> Result<()> {
        let (id, workload) = (journal.record().id, journal.record().workload.clone());
        let unserved = |why: &str| Error::Unserved {
            id,
            workload: workload.clone(),
            why: why.to_owned(),
        };
        if !self.follow {
            return Err(unserved("nobody sends them just now"));
        }
        let server = self.server(journal.record())?;
        let mut noted = Noted::default();
        loop {
            noted.note(journal, &server.progress().0);
            match server.wait(LOOK_EVERY) {
                Waited::Done => return Ok(()),
                Waited::GivenUp(why) => return Err(unserved(&why)),
                Waited::Going if self.cancel.load(Ordering::Relaxed) => return Err(unserved("cancelled")),
                Waited::Going => {}
            }
        }
    }

    fn release(&mut self, outcome: Outcome, resources: &[u8]) -> Result<()> {
        match outcome {
            Outcome::Moved => self.recover.moved(resources),
            Outcome::Stays => self.recover.stays(resources),
        }
        .map_err(Error::workload)
    }
}

impl<C: Recover> DestinationHost for Recovering<'_, C> {
    fn load(&mut self) -> Result<Vec<u8>> {
        Err(Error::Internal("nothing to load".into()))
    }

    fn start(&mut self, resources: &[u8]) -> Result<()> {
        self.recover.start(resources).map_err(Error::workload)?;
        if !self.follow || self.is_asked {
            return Ok(());
        }
        match self.recover.pager(resources).map_err(Error::workload)? {
            Left::Pages(pager) => self.fetch = Some(Fetch::start(pager, self.timeout)?),
            Left::Ended(sentence) => self.ended = Some(sentence),
            Left::Nothing => {}
        }
        self.is_asked = true;
        Ok(())
    }

    fn discard(&mut self, resources: &[u8]) -> Result<()> {
        self.recover.discard(resources).map_err(Error::workload)
    }

    fn join(&mut self, kind: StreamKind, stream: TcpStream) {
        // A stream that fails is lost, and the source comes again.
        let _ = join(&mut self.fetch, self.is_asked, kind, stream);
    }

    fn missing_pages(&self) -> Option<u64> {
        self.fetch.as_ref().and_then(Fetch::missing_pages)
    }

    fn is_fetching(&mut self) -> bool {
        self.fetch.as_ref().is_some_and(|fetch| !fetch.is_complete())
    }
}
