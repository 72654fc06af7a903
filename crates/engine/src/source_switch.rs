//! The source's end of the switch-over, carried out: drives [`SourceSwitch`] for the controller, for the guardian, and for the next
//! command alike. What is decided stands in `policy::switchover`; here it is done.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_policy::switchover::{
    Message as Word, Outcome as Decided, SourceAction, SourceEnd, SourceInput, SourceJournal, SourceSwitch,
};
use whimbrel_wire::{write_message, DestinationTimes, Message, StreamKind};

use crate::contract::Outcome;
use crate::error::{Error, Result};
use crate::failures::Failures;
use crate::inbox::{end_of, Inbox};
use crate::journal::{Journal, State};
use crate::link::{dial, hear, ControlLink, Event};

/// How long a destination that lives may take for an answer: it may have to build a large workload.
const ANSWER_MAX: Duration = Duration::from_secs(600);
/// Pauses are slept in steps of this, so that a cancel is noticed.
const STEP: Duration = Duration::from_millis(20);

/// Who does what concerns the workload.
pub(crate) trait SourceHost {
    /// An action is about to be carried out.
    fn before(&mut self, _action: SourceAction) {}
    /// Makes the freeze outlive this process.
    fn hold(&mut self) -> Result<()>;
    /// Sends what the destination still lacks, until it lacks nothing. Fails with [`Error::Unserved`] if that has to wait for
    /// somebody else.
    fn serve(&mut self, _journal: &mut Journal) -> Result<()> {
        Ok(())
    }
    /// Ends the copy, or lets it run.
    fn release(&mut self, outcome: Outcome, resources: &[u8]) -> Result<()>;
    /// Something that the user should know.
    fn warn(&mut self, _sentence: &str) {}
}

/// How long things may take that depend on the destination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience<'a> {
    /// For each attempt to reach it.
    pub link_timeout: Duration,
    /// Undecided: how long it is asked; for ever if it is not said.
    pub ask_for: Option<Duration>,
    /// Decided: how long it is told.
    pub tell_for: Duration,
    /// Decided: what happens then. If somebody follows, the journal is left, so that the telling goes on.
    pub followed: bool,
    /// Undecided: the operator knows that it does not run there.
    pub force_here: bool,
    /// Undecided: set when the asking shall end.
    pub cancel: &'a AtomicBool,
}

/// The connection to the destination: the control stream, or after its loss a question.
#[derive(Debug)]
pub(crate) struct SourceLine {
    pub control: Option<ControlLink>,
    pub inbox: Inbox,
    query: Option<TcpStream>,
}

impl SourceLine {
    pub fn new(inbox: Inbox) -> Self {
        Self {
            control: None,
            inbox,
            query: None,
        }
    }

    fn send(&mut self, message: &Message) -> Result<()> {
        match (&mut self.query, &self.control) {
            (Some(query), _) => write_message(query, message).map_err(|cause| lost("the destination", cause)),
            (None, Some(control)) => control.say(message),
            (None, None) => Err(lost("the destination", whimbrel_wire::Error::Closed)),
        }
    }

    fn close(&mut self) {
        self.control = None;
        self.query = None;
    }
}

fn lost(peer: &str, cause: whimbrel_wire::Error) -> Error {
    Error::Link {
        peer: peer.to_owned(),
        cause,
    }
}

/// How the driving ended.
#[derive(Debug)]
pub(crate) enum SourceLeft {
    /// Settled.
    End(SourceEnd),
    /// Still frozen, and nobody has answered within the time. The journal is left.
    Undecided,
    /// It runs at the destination, which still lacks pages, for this reason. The journal and the frozen copy are left.
    Serving(Error),
    /// A step on this host failed again and again. The journal is left.
    Stuck(Error),
}

/// Drives the machine.
pub(crate) struct SourceDriver<'a, H> {
    pub switch: SourceSwitch,
    pub journal: Option<Journal>,
    pub line: SourceLine,
    pub host: H,
    pub patience: Patience<'a>,
    pub failures: Failures,
    /// What the destination said when it had started it.
    pub times: DestinationTimes,
    asking_since: Option<Instant>,
    settled_since: Option<Instant>,
    nobody_listens: bool,
    unserved: Option<Error>,
}

impl<'a, H: SourceHost> SourceDriver<'a, H> {
    pub fn new(
        switch: SourceSwitch,
        journal: Option<Journal>,
        line: SourceLine,
        host: H,
        patience: Patience<'a>,
    ) -> Self {
        Self {
            switch,
            journal,
            line,
            host,
            patience,
            failures: Failures::default(),
            times: DestinationTimes::default(),
            asking_since: None,
            settled_since: None,
            nobody_listens: false,
            unserved: None,
        }
    }

    /// Goes on until it is settled, or cannot be now.
    pub fn run(&mut self) -> SourceLeft {
        loop {
            if let Err(error) = self.hurry() {
                return SourceLeft::Stuck(error);
            }
            if self.is_asked_enough() {
                return SourceLeft::Undecided;
            }
            let action = self.switch.poll();
            if let SourceAction::End(end) = action {
                return SourceLeft::End(end);
            }
            if let Some(end) = self.left_to_follower() {
                return SourceLeft::End(end);
            }
            self.host.before(action);
            let input = self.carry_out(action);
            if let Some(error) = self.unserved.take() {
                return SourceLeft::Serving(error);
            }
            if let Some(error) = self.failures.given_up() {
                return SourceLeft::Stuck(error);
            }
            if let Err(e) = self.switch.handle(input) {
                return SourceLeft::Stuck(Error::Internal(e.to_string()));
            }
        }
    }

    /// The operator's word, and the end of patience with a destination that does not forget.
    fn hurry(&mut self) -> Result<()> {
        let internal = |e: whimbrel_policy::switchover::Unexpected| Error::Internal(e.to_string());
        if self.patience.force_here && self.switch.is_undecided() {
            self.switch.handle(SourceInput::ForceHere).map_err(internal)?;
        }
        if self.switch.is_settled() {
            let since = *self.settled_since.get_or_insert_with(Instant::now);
            // A destination that gave up by itself has nothing that it could forget.
            let gone = self.nobody_listens
                || matches!(self.failures.why, Some(Error::Aborted(_) | Error::Refused(_)));
            if gone || (since.elapsed() > self.patience.tell_for && !self.patience.followed) {
                self.switch.handle(SourceInput::GiveUp).map_err(internal)?;
            }
        }
        Ok(())
    }

    /// It is decided, and the destination could not be told in time: whoever follows finds the journal.
    fn left_to_follower(&self) -> Option<SourceEnd> {
        let since = self
            .settled_since
            .filter(|_| self.patience.followed && self.switch.is_settled())?;
        let journal = self
            .journal
            .as_ref()
            .filter(|_| since.elapsed() > self.patience.tell_for)?;
        Some(match journal.record().state {
            State::Released => SourceEnd::Moved,
            _ => SourceEnd::Stays,
        })
    }

    fn is_asked_enough(&self) -> bool {
        let Some(since) = self.asking_since.filter(|_| self.switch.is_undecided()) else {
            return false;
        };
        let over = self.patience.ask_for.is_some_and(|time| since.elapsed() >= time);
        over || self.patience.cancel.load(Ordering::Relaxed)
    }

    fn carry_out(&mut self, action: SourceAction) -> SourceInput {
        match action {
            SourceAction::Listen => self.listen(),
            SourceAction::Hold => {
                let held = self.host.hold();
                self.answer(held)
            }
            SourceAction::Journal(state) => {
                let written = self.write(state);
                self.answer_here(written)
            }
            SourceAction::Send(word) => self.say(word),
            SourceAction::Connect => self.connect(),
            SourceAction::Release(decided) => {
                let released = self.release(decided);
                self.answer_here(released)
            }
            SourceAction::RemoveJournal => {
                let removed = self.journal.as_ref().map_or(Ok(()), Journal::remove);
                self.answer_here(removed)
            }
            SourceAction::Pause(pause) => self.pause(pause),
            SourceAction::End(_) => SourceInput::Done,
        }
    }

    fn answer(&mut self, result: Result<()>) -> SourceInput {
        input_of(self.failures.note(result))
    }

    fn answer_here(&mut self, result: Result<()>) -> SourceInput {
        let host = &mut self.host;
        input_of(self.failures.note_here(result, |sentence| host.warn(sentence)))
    }

    fn write(&mut self, state: SourceJournal) -> Result<()> {
        match &mut self.journal {
            Some(journal) if state == SourceJournal::Released && journal.record().residual.is_some() => {
                journal.set_state(State::Serving)
            }
            Some(journal) => journal.set_state(state.into()),
            None => Err(Error::Internal("no journal to write".into())),
        }
    }

    /// The copy is not ended before the destination lacks nothing.
    fn serve(&mut self) -> Result<()> {
        let serving = |journal: &&mut Journal| journal.record().state == State::Serving;
        let Some(journal) = self.journal.as_mut().filter(serving) else {
            return Ok(());
        };
        match self.host.serve(journal) {
            Err(error @ Error::Unserved { .. }) => {
                self.unserved = Some(error);
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => journal.set_state(State::Released),
        }
    }

    fn release(&mut self, decided: Decided) -> Result<()> {
        if decided == Decided::Moved {
            self.serve()?;
            if self.unserved.is_some() {
                return Ok(());
            }
        }
        let resources = self
            .journal
            .as_ref()
            .map(|j| j.record().resources.clone())
            .unwrap_or_default();
        let outcome = match decided {
            Decided::Moved => Outcome::Moved,
            Decided::Stays => Outcome::Stays,
        };
        self.host.release(outcome, &resources)
    }

    fn say(&mut self, word: Word) -> SourceInput {
        let message = match (word, &self.failures.why) {
            // On the control stream the destination hears why. To it that is the same word.
            (Word::Stays, Some(error)) if self.line.query.is_none() && !matches!(error, Error::Fenced) => {
                Message::Abort(error.sentence())
            }
            (word, _) => to_wire(word, self.times),
        };
        let sent = self.line.send(&message);
        if sent.is_err() {
            self.line.close();
        }
        self.answer(sent)
    }

    fn connect(&mut self) -> SourceInput {
        self.line.close();
        if self.asking_since.is_none() && self.switch.is_undecided() {
            self.asking_since = Some(Instant::now());
            if let Some(why) = &self.failures.why {
                self.host.warn(&format!(
                    "{why}: it stays frozen while the destination is asked whether it runs there"
                ));
            }
        }
        let Some(record) = self.journal.as_ref().map(Journal::record) else {
            return SourceInput::Failed;
        };
        match dial(
            &record.peer,
            &record.key,
            record.id,
            StreamKind::Query,
            self.patience.link_timeout,
        ) {
            Ok(stream) => {
                self.line.query = Some(stream);
                SourceInput::Done
            }
            Err(error) => {
                // Its host lives, but controller and guardian are gone: they have settled it, and did not wait for our last word.
                self.nobody_listens = error.is_connection_refused();
                SourceInput::Failed
            }
        }
    }

    fn listen(&mut self) -> SourceInput {
        if let Some(query) = &self.line.query {
            let heard = hear(query, self.patience.link_timeout);
            return match heard.ok().and_then(|message| self.understand(message)) {
                Some(input) => input,
                None => {
                    self.line.close();
                    SourceInput::LinkLost
                }
            };
        }
        if self.line.control.is_none() {
            return SourceInput::LinkLost;
        }
        // Not only by its event: a word of the destination may have come just before.
        let open = !self.switch.is_undecided() && !self.switch.is_settled();
        if open && self.line.inbox.is_cancelled() {
            self.failures.why.get_or_insert(Error::Cancelled);
            return SourceInput::Abandon;
        }
        loop {
            match self.line.inbox.next_event(Instant::now() + ANSWER_MAX) {
                Some(Event::Message(Message::Ping | Message::BarrierAck { .. })) => {}
                Some(Event::Message(message)) => {
                    return self.understand(message).unwrap_or(SourceInput::Abandon)
                }
                Some(Event::Cancelled) if self.switch.is_undecided() => {}
                Some(Event::Cancelled) => {
                    self.failures.why.get_or_insert(Error::Cancelled);
                    return SourceInput::Abandon;
                }
                Some(event) => return self.lose(end_of(event)),
                None => {
                    return self.lose(Error::Late {
                        expected: "an answer",
                        waited: ANSWER_MAX,
                    })
                }
            }
        }
    }

    fn lose(&mut self, error: Error) -> SourceInput {
        self.failures.why.get_or_insert(error);
        self.line.close();
        SourceInput::LinkLost
    }

    /// `None` for what has no place in a switch-over.
    fn understand(&mut self, message: Message) -> Option<SourceInput> {
        let word = match message {
            Message::Prepared => Word::Prepared,
            Message::Started(times) => {
                self.times = times;
                Word::Started
            }
            Message::Fenced => {
                self.failures.why.get_or_insert(Error::Fenced);
                Word::Fenced
            }
            Message::Undecided => Word::Undecided,
            Message::Forgotten => Word::Forgotten,
            Message::Abort(sentence) => {
                self.failures.why.get_or_insert(Error::Aborted(sentence));
                return Some(SourceInput::Abandon);
            }
            other => {
                self.failures
                    .why
                    .get_or_insert(Error::unexpected(&other, "a word of the switch-over"));
                return None;
            }
        };
        Some(SourceInput::Message(word))
    }

    fn pause(&mut self, pause: Duration) -> SourceInput {
        let until = Instant::now() + pause;
        let undecided = self.switch.is_undecided();
        while Instant::now() < until && !(undecided && self.patience.cancel.load(Ordering::Relaxed)) {
            thread::sleep(STEP.min(until.saturating_duration_since(Instant::now())));
        }
        SourceInput::Done
    }
}

fn input_of(done: bool) -> SourceInput {
    match done {
        true => SourceInput::Done,
        false => SourceInput::Failed,
    }
}

pub(crate) fn to_wire(word: Word, times: DestinationTimes) -> Message {
    match word {
        Word::Prepared => Message::Prepared,
        Word::Offer => Message::Offer,
        Word::Query => Message::Query,
        Word::Started => Message::Started(times),
        Word::Fenced => Message::Fenced,
        Word::Undecided => Message::Undecided,
        Word::Released => Message::Released,
        Word::Stays => Message::Stays,
        Word::Forgotten => Message::Forgotten,
    }
}

impl From<SourceJournal> for State {
    fn from(journal: SourceJournal) -> Self {
        match journal {
            SourceJournal::Active => State::Active,
            SourceJournal::Offered => State::Offered,
            SourceJournal::Released => State::Released,
            SourceJournal::Stayed => State::Stayed,
        }
    }
}

impl State {
    /// What it means at the source; `None` for a state that only a destination has.
    pub(crate) fn at_source(self) -> Option<SourceJournal> {
        match self {
            State::Active => Some(SourceJournal::Active),
            State::Offered => Some(SourceJournal::Offered),
            State::Serving | State::Released => Some(SourceJournal::Released),
            State::Stayed => Some(SourceJournal::Stayed),
            State::Prepared | State::Started | State::Fenced => None,
        }
    }
}
