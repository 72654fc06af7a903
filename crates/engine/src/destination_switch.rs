//! The destination's end of the switch-over, carried out: drives [`DestinationSwitch`] for the controller, for the guardian, for the next
//! command, and for a question about a migration that nobody here works on. What is decided stands in
//! `policy::switchover`; here it is done.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_policy::switchover::{
    DestinationAction, DestinationEnd, DestinationInput, DestinationJournal, DestinationSwitch,
    Message as Word,
};
use whimbrel_wire::{write_message, DestinationTimes, Message, MigrationId, StreamKind};

use crate::door::{accept_soon, greet};
use crate::error::{Error, Result};
use crate::failures::Failures;
use crate::inbox::{end_of, Inbox};
use crate::journal::{Journal, State};
use crate::link::{hear, ControlLink, Event};
use crate::source_switch::to_wire;

/// How often it is looked whether pages are still missing.
const FETCH_LOOK: Duration = Duration::from_millis(100);
/// How often a journal says how many pages are missing.
pub(crate) const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How long a source that lives may take for its next word.
const WORD_MAX: Duration = Duration::from_secs(600);

/// Who does what concerns the replica.
pub(crate) trait DestinationHost {
    /// An action is about to be carried out.
    fn before(&mut self, _action: DestinationAction, _committed: bool) {}
    /// Builds the workload from its state. Returns the resources.
    fn load(&mut self) -> Result<Vec<u8>>;
    /// Lets it run.
    fn start(&mut self, resources: &[u8]) -> Result<()>;
    /// Ends what was built.
    fn discard(&mut self, resources: &[u8]) -> Result<()>;
    /// What the source is told of the time that this took.
    fn times(&self) -> DestinationTimes {
        DestinationTimes::default()
    }
    /// Something that the user should know.
    fn warn(&mut self, _sentence: &str) {}
    /// A stream of post-copy has come.
    fn join(&mut self, _kind: StreamKind, _stream: TcpStream) {}
    /// True while the workload lacks pages: the source is waited for, however long.
    fn is_fetching(&mut self) -> bool {
        false
    }
    /// How many pages it lacks, if it lacks any.
    fn missing_pages(&self) -> Option<u64> {
        None
    }
}

/// Where the source's words come from.
pub(crate) enum Ear<'a> {
    /// The controller's: control stream and door.
    Inbox(&'a mut Inbox),
    /// The guardian's: the inherited socket.
    Door(&'a TcpListener),
    /// Nobody speaks any more.
    Deaf,
}

/// Drives the machine.
pub(crate) struct DestinationDriver<'a, H> {
    pub switch: DestinationSwitch,
    pub id: MigrationId,
    pub journal: Option<Journal>,
    pub control: Option<ControlLink>,
    /// A question, which is answered before anything else is heard.
    pub query: Option<TcpStream>,
    pub ear: Ear<'a>,
    pub host: H,
    pub link_timeout: Duration,
    /// How long questions are waited for when the link is lost.
    pub answer_for: Duration,
    pub cancel: &'a AtomicBool,
    pub failures: Failures,
    /// The source was given a promise (`Prepared`), so that it hears `Fenced` and not a sentence.
    promised: bool,
    /// The resources after the load, until they are journalled with the promise.
    loaded: Option<Vec<u8>>,
    deaf_at: Option<Instant>,
    noted_at: Option<Instant>,
}

/// How the driving ended.
#[derive(Debug)]
pub(crate) enum DestinationLeft {
    /// Settled.
    End(DestinationEnd),
    /// It is known where the workload runs, but the source has not confirmed.
    Unconfirmed {
        /// It runs here.
        runs: bool,
    },
    /// A step on this host failed again and again. The journal is left.
    Stuck(Error),
}

impl<'a, H: DestinationHost> DestinationDriver<'a, H> {
    pub fn new(
        switch: DestinationSwitch,
        id: MigrationId,
        journal: Option<Journal>,
        ear: Ear<'a>,
        host: H,
        cancel: &'a AtomicBool,
    ) -> Self {
        Self {
            switch,
            id,
            journal,
            control: None,
            query: None,
            ear,
            host,
            link_timeout: crate::link::LINK_TIMEOUT,
            answer_for: Duration::ZERO,
            cancel,
            failures: Failures::default(),
            promised: false,
            loaded: None,
            deaf_at: None,
            noted_at: None,
        }
    }

    /// Goes on until it is settled, or nobody speaks any more.
    pub fn run(&mut self) -> DestinationLeft {
        loop {
            let action = self.switch.poll();
            if let DestinationAction::End(end) = action {
                return DestinationLeft::End(end);
            }
            self.host.before(action, self.switch.is_committed());
            let Some(input) = self.carry_out(action) else {
                return self.leave();
            };
            if let Some(error) = self.failures.given_up() {
                return DestinationLeft::Stuck(error);
            }
            if let Err(e) = self.switch.handle(input) {
                return DestinationLeft::Stuck(Error::Internal(e.to_string()));
            }
        }
    }

    /// Nobody speaks any more. A source that was promised something may ask however late, and proves itself with the journal's key:
    /// only a journal that says nothing yet may go.
    fn leave(&mut self) -> DestinationLeft {
        let silent = self
            .journal
            .as_ref()
            .filter(|journal| journal.record().state == State::Active);
        if let Some(Err(e)) = silent.map(Journal::remove) {
            self.host.warn(&e.to_string());
        }
        let runs = self.switch.is_committed();
        DestinationLeft::Unconfirmed { runs }
    }

    /// `None` if there is nothing more to hear.
    fn carry_out(&mut self, action: DestinationAction) -> Option<DestinationInput> {
        let resources = || {
            self.journal
                .as_ref()
                .map(|j| j.record().resources.clone())
                .unwrap_or_default()
        };
        Some(match action {
            DestinationAction::Listen => return self.listen(),
            DestinationAction::Load => {
                let loaded = self.load();
                self.answer(loaded)
            }
            DestinationAction::Journal(state) => {
                let written = self.write(state);
                self.answer(written)
            }
            DestinationAction::Start => {
                let started = self.host.start(&resources());
                self.answer_here(started)
            }
            DestinationAction::Discard => {
                let discarded = self.host.discard(&resources()).and_then(|()| self.disclaim());
                self.answer_here(discarded)
            }
            DestinationAction::RemoveJournal => {
                let removed = self.journal.as_ref().map_or(Ok(()), Journal::remove);
                self.answer_here(removed)
            }
            DestinationAction::Send(word) => self.say(word),
            DestinationAction::Pause(pause) => {
                thread::sleep(pause);
                DestinationInput::Done
            }
            DestinationAction::End(_) => DestinationInput::Done,
        })
    }

    fn load(&mut self) -> Result<()> {
        self.loaded = Some(self.host.load()?);
        Ok(())
    }

    fn write(&mut self, state: DestinationJournal) -> Result<()> {
        let Some(journal) = &mut self.journal else {
            return Err(Error::Internal("no journal to write".into()));
        };
        match self.loaded.take() {
            // In one write, as it is part of the downtime.
            Some(resources) if state == DestinationJournal::Prepared => {
                self.promised = true;
                journal.set_prepared(resources, self.host.missing_pages())
            }
            _ => journal.set_state(state.into()),
        }
    }

    /// What a journal that stays names is gone now, and must not be discarded again when the workload comes a second time.
    fn disclaim(&mut self) -> Result<()> {
        match &mut self.journal {
            Some(journal) if journal.record().state != State::Active => journal.set_fenced(),
            _ => Ok(()),
        }
    }

    fn answer(&mut self, result: Result<()>) -> DestinationInput {
        input_of(self.failures.note(result))
    }

    fn answer_here(&mut self, result: Result<()>) -> DestinationInput {
        let host = &mut self.host;
        input_of(self.failures.note_here(result, |sentence| host.warn(sentence)))
    }

    /// To whoever spoke last.
    fn say(&mut self, word: Word) -> DestinationInput {
        let message = match (word, &self.failures.why) {
            (Word::Fenced, Some(error)) if !self.promised && self.query.is_none() => {
                Message::Abort(error.sentence())
            }
            (word, _) => to_wire(word, self.host.times()),
        };
        let sent = match (&mut self.query, &self.control) {
            (Some(query), _) => write_message(query, &message).is_ok(),
            (None, Some(control)) => control.say(&message).is_ok(),
            (None, None) => false,
        };
        if sent {
            DestinationInput::Done
        } else {
            DestinationInput::Failed
        }
    }

    fn listen(&mut self) -> Option<DestinationInput> {
        loop {
            if let Some(input) = self.hear_query() {
                return Some(input);
            }
            let until = match self.host.is_fetching() {
                true => Instant::now() + FETCH_LOOK,
                false => self.deadline(),
            };
            self.note_missing();
            if Instant::now() >= until {
                return None;
            }
            match self.hear_ear(until)? {
                Heard::Input(input) => return Some(input),
                Heard::Query(stream) => self.query = Some(stream),
                Heard::Joined(kind, stream) => self.host.join(kind, stream),
                Heard::Nothing => {}
            }
        }
    }

    /// Speech on a query stream; one that ends or says something else is closed.
    fn hear_query(&mut self) -> Option<DestinationInput> {
        let query = self.query.take()?;
        let word = match hear(&query, self.link_timeout) {
            Ok(Message::Query) => Word::Query,
            Ok(Message::Released) => Word::Released,
            Ok(Message::Stays) => Word::Stays,
            _ => return None,
        };
        self.query = Some(query);
        Some(DestinationInput::Message(word))
    }

    /// A source that lives is waited for; when the link is lost, questions are, for a while.
    fn deadline(&mut self) -> Instant {
        if self.control.is_some() {
            return Instant::now() + WORD_MAX;
        }
        *self
            .deaf_at
            .get_or_insert_with(|| Instant::now() + self.answer_for)
    }

    /// For whoever lists the migrations.
    fn note_missing(&mut self) {
        let (missing, now) = (self.host.missing_pages(), Instant::now());
        // Who does not fetch does not know.
        if missing.is_none() && self.noted_at.is_none() {
            return;
        }
        let due = self
            .noted_at
            .is_none_or(|at| missing.is_none() || now.duration_since(at) >= NOTE_EVERY);
        if let Some(journal) = self.journal.as_mut().filter(|_| due) {
            self.noted_at = Some(now);
            // It only informs.
            let _ = journal.set_missing(missing);
        }
    }

    fn waits_for_pages(&mut self, event: &Option<Event>) -> bool {
        event.is_none() && self.host.is_fetching()
    }

    /// `None` if nothing will come any more.
    fn hear_ear(&mut self, until: Instant) -> Option<Heard> {
        match &mut self.ear {
            Ear::Deaf => None,
            Ear::Inbox(inbox) => {
                let event = inbox.next_event(until);
                if self.waits_for_pages(&event) {
                    return Some(Heard::Nothing);
                }
                Some(self.understand(event))
            }
            Ear::Door(_) if self.cancel.load(Ordering::Relaxed) => None,
            Ear::Door(listener) => {
                let Some((stream, _)) = accept_soon(listener) else {
                    return Some(Heard::Nothing);
                };
                let key = self.journal.as_ref().map(|journal| journal.record().key.clone());
                let id = self.id;
                let key_of = |asked, kind| key.filter(|_| asked == id && is_for_a_guardian(kind));
                Some(match greet(&stream, self.link_timeout, key_of) {
                    Ok(greeting) if greeting.kind == StreamKind::Query => Heard::Query(stream),
                    Ok(greeting) => Heard::Joined(greeting.kind, stream),
                    Err(_) => Heard::Nothing,
                })
            }
        }
    }

    fn understand(&mut self, event: Option<Event>) -> Heard {
        Heard::Input(match event {
            Some(Event::Queried(stream)) => return Heard::Query(stream),
            Some(Event::Joined(kind, stream)) => return Heard::Joined(kind, stream),
            Some(Event::Message(message)) => match message {
                Message::Offer => DestinationInput::Message(Word::Offer),
                Message::Released => DestinationInput::Message(Word::Released),
                Message::Stays => DestinationInput::Message(Word::Stays),
                Message::Abort(sentence) => {
                    // It stays, and says why.
                    self.failures.why.get_or_insert(Error::Aborted(sentence));
                    DestinationInput::Message(Word::Stays)
                }
                _ => return Heard::Nothing,
            },
            Some(Event::Cancelled) if self.switch.is_committed() => return Heard::Nothing,
            Some(Event::Cancelled) => {
                self.failures.why.get_or_insert(Error::Cancelled);
                DestinationInput::Abandon
            }
            Some(event) => {
                self.failures.why.get_or_insert(end_of(event));
                self.control = None;
                DestinationInput::LinkLost
            }
            // With a link: a source that lives but says nothing. Without one: the end, at the deadline.
            None => {
                self.failures.why.get_or_insert(Error::Late {
                    expected: "its next word",
                    waited: WORD_MAX,
                });
                self.control = None;
                DestinationInput::LinkLost
            }
        })
    }
}

fn input_of(done: bool) -> DestinationInput {
    match done {
        true => DestinationInput::Done,
        false => DestinationInput::Failed,
    }
}

/// What a source may want of a destination whose controller is dead.
fn is_for_a_guardian(kind: StreamKind) -> bool {
    matches!(
        kind,
        StreamKind::Query | StreamKind::Fault(_) | StreamKind::Push(_)
    )
}

enum Heard {
    Input(DestinationInput),
    Query(TcpStream),
    Joined(StreamKind, TcpStream),
    Nothing,
}

impl From<DestinationJournal> for State {
    fn from(journal: DestinationJournal) -> Self {
        match journal {
            DestinationJournal::Active => State::Active,
            DestinationJournal::Prepared => State::Prepared,
            DestinationJournal::Started => State::Started,
            DestinationJournal::Fenced => State::Fenced,
        }
    }
}

impl State {
    /// What it means at the destination; `None` for a state that only a source has.
    pub(crate) fn at_destination(self) -> Option<DestinationJournal> {
        match self {
            State::Active => Some(DestinationJournal::Active),
            State::Prepared => Some(DestinationJournal::Prepared),
            State::Started => Some(DestinationJournal::Started),
            State::Fenced => Some(DestinationJournal::Fenced),
            State::Offered | State::Serving | State::Released | State::Stayed => None,
        }
    }
}
