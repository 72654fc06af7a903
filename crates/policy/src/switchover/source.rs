//! The source's end of the switch-over. The table stands at the head of the module above.

use core::time::Duration;

use super::{pause_after, Message, Outcome, SourceJournal, Unexpected};

/// What to do next. All but `Listen` and `End` are answered by `Done` or `Failed` before anything else is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Wait for something to happen and hand it in. A peer that is silent for too long is `LinkLost`.
    Listen,
    /// Make the freeze outlive this process.
    Hold,
    /// Write this into the journal. `Failed` means that the old content is still there.
    Journal(SourceJournal),
    /// Say this on the connection that there is. `Failed` if there is none any more.
    Send(Message),
    /// Connect to the destination again, by the migration's id.
    Connect,
    /// End the copy here, or let it run on. Idempotent; may have happened already.
    Release(Outcome),
    /// Remove the journal; it may be gone already.
    RemoveJournal,
    /// Do nothing for so long, then say `Done`.
    Pause(Duration),
    /// It is over.
    End(SourceEnd),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEnd {
    /// There was nothing to recover.
    Nothing,
    /// It runs at the destination.
    Moved,
    /// It runs here.
    Stays,
    /// The operator forced it to run here, and it runs at the destination, too: one of the two must be ended.
    Conflict,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceInput {
    /// The action was carried out.
    Done,
    /// It was not.
    Failed,
    /// The state is being sent: from here on the destination may become ready at any time.
    StateSent,
    /// The destination says.
    Message(Message),
    /// The destination has no record of the migration and cannot say more than that.
    Unknown,
    /// The connection is lost, or silent for too long.
    LinkLost,
    /// Something failed here, or the user wants it stopped. Too late once the offer is made: without effect then.
    Abandon,
    /// The operator's word: run it here, whatever the destination may have done.
    ForceHere,
    /// Do not wait any longer for the destination to forget. Without effect while the workload's place is open.
    GiveUp,
}

/// The source's machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceSwitch {
    state: State,
    /// A pause comes before the state's action.
    pausing: bool,
    attempts: u8,
    /// There may be a connection.
    linked: bool,
    /// The destination may be waiting for our last word.
    awaited: bool,
    end: SourceEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Listens: rounds.
    Active,
    Hold,
    /// Listens: for Prepared.
    Held,
    JournalOffered,
    Offer,
    /// Listens: for the answer that decides.
    Offered,
    AskConnect,
    Ask,
    JournalReleased,
    ReleaseMoved,
    /// Out of ACTIVE: first let it run, then take note.
    ReleaseStays,
    NoteStayed,
    /// Out of OFFERED: first take note, so that nobody asks again, then let it run.
    JournalStayed,
    ReleaseStayed,
    TellConnect,
    Tell,
    /// Listens: for Forgotten.
    Told,
    Close,
    Ended,
}

impl SourceSwitch {
    /// A migration that has just been journalled as ACTIVE by the controller, which is connected.
    pub fn begin() -> Self {
        SourceSwitch {
            state: State::Active,
            pausing: false,
            attempts: 0,
            linked: true,
            awaited: false,
            end: SourceEnd::Stays,
        }
    }

    /// Takes over from a process that died and left this journal, if any.
    pub fn recover(journal: Option<SourceJournal>) -> Self {
        let (state, end) = match journal {
            None => (State::Ended, SourceEnd::Nothing),
            Some(SourceJournal::Active) => (State::ReleaseStays, SourceEnd::Stays),
            Some(SourceJournal::Offered) => (State::AskConnect, SourceEnd::Stays),
            Some(SourceJournal::Released) => (State::ReleaseMoved, SourceEnd::Moved),
            Some(SourceJournal::Stayed) => (State::ReleaseStayed, SourceEnd::Stays),
        };
        // Nobody knows how far the dead one came.
        SourceSwitch {
            state,
            end,
            linked: false,
            awaited: true,
            ..Self::begin()
        }
    }

    /// What to do next. Asking twice changes nothing.
    pub fn poll(&self) -> SourceAction {
        if self.pausing {
            return SourceAction::Pause(pause_after(self.attempts));
        }
        match self.state {
            State::Active | State::Held | State::Offered | State::Told => SourceAction::Listen,
            State::Hold => SourceAction::Hold,
            State::JournalOffered => SourceAction::Journal(SourceJournal::Offered),
            State::Offer => SourceAction::Send(Message::Offer),
            State::AskConnect | State::TellConnect => SourceAction::Connect,
            State::Ask => SourceAction::Send(Message::Query),
            State::JournalReleased => SourceAction::Journal(SourceJournal::Released),
            State::ReleaseMoved => SourceAction::Release(Outcome::Moved),
            State::ReleaseStays | State::ReleaseStayed => SourceAction::Release(Outcome::Stays),
            State::NoteStayed | State::JournalStayed => SourceAction::Journal(SourceJournal::Stayed),
            State::Tell => SourceAction::Send(self.last_word()),
            State::Close => SourceAction::RemoveJournal,
            State::Ended => SourceAction::End(self.end),
        }
    }

    /// True from the offer until the destination's answer is known: only that, or the operator, decides.
    pub fn is_undecided(&self) -> bool {
        matches!(
            self.state,
            State::Offer | State::Offered | State::AskConnect | State::Ask
        )
    }

    /// True once the workload is where it stays, and only the destination's record is left to be cleared.
    pub fn is_settled(&self) -> bool {
        matches!(
            self.state,
            State::TellConnect | State::Tell | State::Told | State::Close | State::Ended
        )
    }

    /// Takes in what happened.
    ///
    /// # Errors
    /// [`Unexpected`]: the input does not answer the action. Nothing has changed.
    pub fn handle(&mut self, input: SourceInput) -> Result<(), Unexpected> {
        match input {
            SourceInput::ForceHere if self.is_undecided() => self.go(State::JournalStayed),
            SourceInput::GiveUp if self.is_settled() && self.state != State::Ended => self.go(State::Close),
            SourceInput::ForceHere | SourceInput::GiveUp => {}
            SourceInput::Done if self.pausing => self.end_pause(),
            _ if self.pausing => return Err(self.unexpected(input)),
            SourceInput::Done => self.done()?,
            SourceInput::Failed => self.failed()?,
            _ if self.poll() != SourceAction::Listen => return Err(self.unexpected(input)),
            SourceInput::StateSent if self.state == State::Active => {
                self.awaited = true;
                self.go(State::Hold);
            }
            SourceInput::StateSent => return Err(self.unexpected(input)),
            SourceInput::Message(message) => self.message(message),
            SourceInput::Unknown => self.unknown(),
            SourceInput::LinkLost => self.link_lost(),
            SourceInput::Abandon => self.abandon(),
        }
        Ok(())
    }

    fn go(&mut self, state: State) {
        self.state = state;
        self.pausing = false;
        self.attempts = 0;
    }

    /// Back to `state` after a pause, which grows until something leads on.
    fn retry(&mut self, state: State) {
        self.state = state;
        self.pausing = true;
    }

    fn end_pause(&mut self) {
        self.pausing = false;
        self.attempts = self.attempts.saturating_add(1);
    }

    fn unexpected(&self, input: SourceInput) -> Unexpected {
        let input = match input {
            SourceInput::Done => "Done",
            SourceInput::Failed => "Failed",
            SourceInput::StateSent => "StateSent",
            SourceInput::Message(_) => "a message",
            SourceInput::Unknown => "Unknown",
            SourceInput::LinkLost => "LinkLost",
            SourceInput::Abandon => "Abandon",
            SourceInput::ForceHere => "ForceHere",
            SourceInput::GiveUp => "GiveUp",
        };
        Unexpected {
            input,
            end: "source",
            state: self.state.name(),
        }
    }

    fn done(&mut self) -> Result<(), Unexpected> {
        match self.state {
            State::Hold => self.go(State::Held),
            State::JournalOffered => self.go(State::Offer),
            State::Offer => self.go(State::Offered),
            State::AskConnect => {
                self.linked = true;
                // The attempts go on counting: whoever takes connections but does not answer must not be hammered.
                self.state = State::Ask;
            }
            State::Ask => self.state = State::Offered,
            State::JournalReleased => self.go(State::ReleaseMoved),
            State::ReleaseMoved | State::ReleaseStayed | State::NoteStayed => self.tell(),
            State::ReleaseStays if self.awaited => self.go(State::NoteStayed),
            State::ReleaseStays => self.tell(),
            State::JournalStayed => self.go(State::ReleaseStayed),
            State::TellConnect => {
                self.linked = true;
                self.state = State::Tell;
            }
            State::Tell if self.awaited => self.state = State::Told,
            State::Tell => self.go(State::Close),
            State::Close => self.go(State::Ended),
            State::Active | State::Held | State::Offered | State::Told | State::Ended => {
                return Err(self.unexpected(SourceInput::Done));
            }
        }
        Ok(())
    }

    fn failed(&mut self) -> Result<(), Unexpected> {
        match self.state {
            State::Hold | State::JournalOffered => self.go(State::ReleaseStays),
            State::Offer | State::AskConnect | State::Ask => self.ask_again(),
            // ACTIVE says the same to whoever takes over.
            State::NoteStayed => self.tell(),
            State::TellConnect | State::Tell => self.tell_again(),
            State::JournalReleased
            | State::ReleaseMoved
            | State::ReleaseStays
            | State::JournalStayed
            | State::ReleaseStayed
            | State::Close => self.retry(self.state),
            State::Active | State::Held | State::Offered | State::Told | State::Ended => {
                return Err(self.unexpected(SourceInput::Failed));
            }
        }
        Ok(())
    }

    fn message(&mut self, message: Message) {
        match (self.state, message) {
            (State::Held, Message::Prepared) => self.go(State::JournalOffered),
            // Anything else before the offer is a destination that gives up or talks nonsense.
            (State::Active | State::Held, _) => self.go(State::ReleaseStays),
            (State::Offered, Message::Started) => {
                self.end = SourceEnd::Moved;
                self.awaited = true;
                self.go(State::JournalReleased);
            }
            (State::Offered, Message::Fenced) => self.go(State::JournalStayed),
            (State::Offered, Message::Undecided) => self.ask_again(),
            (State::Told, Message::Forgotten) => self.go(State::Close),
            (State::Told, Message::Started) if self.end == SourceEnd::Stays => {
                self.end = SourceEnd::Conflict;
                self.go(State::Tell);
            }
            // Late or doubled.
            _ => {}
        }
    }

    fn unknown(&mut self) {
        match self.state {
            State::Told => self.go(State::Close),
            State::Offered => self.ask_again(),
            _ => self.link_lost(),
        }
    }

    fn link_lost(&mut self) {
        self.linked = false;
        match self.state {
            State::Active | State::Held => self.go(State::ReleaseStays),
            State::Offered => self.ask_again(),
            _ => self.tell_again(),
        }
    }

    fn abandon(&mut self) {
        if matches!(self.state, State::Active | State::Held) {
            self.go(State::ReleaseStays);
        }
    }

    fn ask_again(&mut self) {
        self.linked = false;
        self.retry(State::AskConnect);
    }

    fn tell(&mut self) {
        match (self.linked, self.awaited) {
            (true, _) => self.go(State::Tell),
            (false, true) => self.go(State::TellConnect),
            (false, false) => self.go(State::Close),
        }
    }

    fn tell_again(&mut self) {
        self.linked = false;
        if self.awaited {
            self.retry(State::TellConnect);
        } else {
            self.go(State::Close);
        }
    }

    fn last_word(&self) -> Message {
        match self.end {
            SourceEnd::Moved | SourceEnd::Conflict => Message::Released,
            SourceEnd::Stays | SourceEnd::Nothing => Message::Stays,
        }
    }
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Active => "the rounds",
            State::Hold => "the hold",
            State::Held => "the wait for the destination",
            State::JournalOffered | State::Offer => "the offer",
            State::Offered => "the wait for the answer",
            State::AskConnect | State::Ask => "the question",
            State::JournalReleased | State::ReleaseMoved => "the end of the copy",
            State::ReleaseStays | State::NoteStayed | State::JournalStayed | State::ReleaseStayed => {
                "the return"
            }
            State::TellConnect | State::Tell | State::Told => "the last word",
            State::Close | State::Ended => "the end",
        }
    }
}

#[cfg(test)]
impl SourceSwitch {
    /// Without the memory of attempts, which only sets the length of pauses.
    pub(super) fn without_attempts(mut self) -> Self {
        self.attempts = 0;
        self
    }
}
