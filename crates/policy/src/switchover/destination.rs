//! The destination's end of the switch-over. The table stands at the head of the module above.

use core::time::Duration;

use super::{pause_after, DestinationJournal, Message, Unexpected};

/// What to do next. All but `Listen` and `End` are answered by `Done` or `Failed` before anything else is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationAction {
    /// Wait for something to happen and hand it in. A peer that is silent for too long is `LinkLost`.
    Listen,
    /// Build the workload from its state; held by something that outlives this process.
    Load,
    /// Write this into the journal. `Failed` means that the old content is still there.
    Journal(DestinationJournal),
    /// Let it run. Idempotent; it may run already.
    Start,
    /// End what was built and leave nothing behind. Idempotent; may have happened already.
    Discard,
    /// Remove the journal; it may be gone already.
    RemoveJournal,
    /// Say this to whoever spoke last. `Failed` if nobody is there any more.
    Send(Message),
    /// Do nothing for so long, then say `Done`.
    Pause(Duration),
    /// It is over.
    End(DestinationEnd),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEnd {
    /// It runs here.
    Runs,
    /// Nothing is left of it here.
    Discarded,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationInput {
    /// The action was carried out.
    Done,
    /// It was not.
    Failed,
    /// All pages and the state are here.
    Complete,
    /// The source says, on any connection.
    Message(Message),
    /// The connection on which the pages come is lost, or silent for too long.
    LinkLost,
    /// Something failed here, or the user wants it stopped. Without effect once it is committed.
    Abandon,
}

/// The destination's machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DestinationSwitch {
    state: State,
    /// A pause comes before the state's action.
    pausing: bool,
    attempts: u8,
    /// Somebody waits for an answer.
    asked: bool,
    /// There was a promise (PREPARED), so the source may ask: keep a journal until it confirms.
    promised: bool,
    /// The source has confirmed that it will not ask any more.
    confirmed: bool,
    discarded: bool,
    /// There is no journal: this only answers, and never ends.
    unknown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Listens: follows the rounds.
    Active,
    Load,
    JournalPrepared,
    SayPrepared,
    /// Listens: for the offer.
    Prepared,
    JournalStarted,
    Start,
    SayStarted,
    /// Listens: for Released.
    Started,
    JournalFenced,
    SayFenced,
    Discard,
    /// Listens: for Stays.
    Fenced,
    Close,
    SayForgotten,
    /// Listens, without a journal.
    Unknown,
    Ended,
}

impl DestinationSwitch {
    /// A migration that has just been journalled as ACTIVE by the controller, which is connected.
    pub fn begin() -> Self {
        DestinationSwitch {
            state: State::Active,
            pausing: false,
            attempts: 0,
            asked: false,
            promised: false,
            confirmed: false,
            discarded: false,
            unknown: false,
        }
    }

    /// Takes over from a process that died and left this journal; without one, answers for a migration that is not
    /// known here (and never ends: stop asking it when nobody asks any more).
    pub fn recover(journal: Option<DestinationJournal>) -> Self {
        let (state, promised) = match journal {
            None => (State::Unknown, false),
            Some(DestinationJournal::Active) => (State::Discard, false),
            Some(DestinationJournal::Prepared) => (State::JournalFenced, true),
            Some(DestinationJournal::Started) => (State::Start, true),
            Some(DestinationJournal::Fenced) => (State::Discard, true),
        };
        DestinationSwitch {
            state,
            promised,
            unknown: journal.is_none(),
            ..Self::begin()
        }
    }

    /// What to do next. Asking twice changes nothing.
    pub fn poll(&self) -> DestinationAction {
        if self.pausing {
            return DestinationAction::Pause(pause_after(self.attempts));
        }
        match self.state {
            State::Active | State::Prepared | State::Started | State::Fenced | State::Unknown => {
                DestinationAction::Listen
            }
            State::Load => DestinationAction::Load,
            State::JournalPrepared => DestinationAction::Journal(DestinationJournal::Prepared),
            State::SayPrepared => DestinationAction::Send(Message::Prepared),
            State::JournalStarted => DestinationAction::Journal(DestinationJournal::Started),
            State::Start => DestinationAction::Start,
            State::SayStarted => DestinationAction::Send(Message::Started),
            State::JournalFenced => DestinationAction::Journal(DestinationJournal::Fenced),
            State::SayFenced => DestinationAction::Send(Message::Fenced),
            State::Discard => DestinationAction::Discard,
            State::Close => DestinationAction::RemoveJournal,
            State::SayForgotten => DestinationAction::Send(Message::Forgotten),
            State::Ended if self.discarded => DestinationAction::End(DestinationEnd::Discarded),
            State::Ended => DestinationAction::End(DestinationEnd::Runs),
        }
    }

    /// True once the workload is committed to this end.
    pub fn is_committed(&self) -> bool {
        matches!(self.state, State::Start | State::SayStarted | State::Started)
    }

    /// Takes in what happened.
    ///
    /// # Errors
    /// [`Unexpected`]: the input does not answer the action. Nothing has changed.
    pub fn handle(&mut self, input: DestinationInput) -> Result<(), Unexpected> {
        match input {
            DestinationInput::Done if self.pausing => {
                self.pausing = false;
                self.attempts = self.attempts.saturating_add(1);
            }
            _ if self.pausing => return Err(self.unexpected(input)),
            DestinationInput::Done => self.done()?,
            DestinationInput::Failed => self.failed()?,
            _ if self.poll() != DestinationAction::Listen => return Err(self.unexpected(input)),
            DestinationInput::Complete if self.state == State::Active => self.go(State::Load),
            DestinationInput::Complete => return Err(self.unexpected(input)),
            DestinationInput::Message(message) => self.message(message),
            DestinationInput::LinkLost => self.abandon(false),
            DestinationInput::Abandon => self.abandon(true),
        }
        Ok(())
    }

    fn go(&mut self, state: State) {
        self.state = state;
        self.attempts = 0;
    }

    fn unexpected(&self, input: DestinationInput) -> Unexpected {
        let input = match input {
            DestinationInput::Done => "Done",
            DestinationInput::Failed => "Failed",
            DestinationInput::Complete => "Complete",
            DestinationInput::Message(_) => "a message",
            DestinationInput::LinkLost => "LinkLost",
            DestinationInput::Abandon => "Abandon",
        };
        Unexpected {
            input,
            end: "destination",
            state: self.state.name(),
        }
    }

    fn done(&mut self) -> Result<(), Unexpected> {
        match self.state {
            State::Load => self.go(State::JournalPrepared),
            State::JournalPrepared => {
                self.promised = true;
                self.go(State::SayPrepared);
            }
            State::SayPrepared => self.go(State::Prepared),
            State::JournalStarted => self.go(State::Start),
            State::Start if self.asked => self.go(State::SayStarted),
            State::Start => self.go(State::Started),
            State::SayStarted => self.answered(State::Started),
            State::JournalFenced => self.fenced(),
            State::SayFenced => self.after_fenced(),
            State::Discard => {
                self.discarded = true;
                self.after_discard();
            }
            State::Close if self.asked => self.go(State::SayForgotten),
            State::Close => self.go(State::Ended),
            State::SayForgotten => self.after_forgotten(),
            _ => return Err(self.unexpected(DestinationInput::Done)),
        }
        Ok(())
    }

    fn failed(&mut self) -> Result<(), Unexpected> {
        match self.state {
            // The source still waits for a word.
            State::Load | State::JournalPrepared | State::JournalStarted => self.abandon(true),
            State::SayPrepared => self.abandon(false),
            State::SayStarted => self.answered(State::Started),
            // PREPARED says the same to whoever takes over, and this process will not start it.
            State::JournalFenced => self.fenced(),
            State::SayFenced => self.after_fenced(),
            State::SayForgotten => self.after_forgotten(),
            State::Start | State::Discard | State::Close => self.pausing = true,
            _ => return Err(self.unexpected(DestinationInput::Failed)),
        }
        Ok(())
    }

    fn message(&mut self, message: Message) {
        match (self.state, message) {
            (State::Active, Message::Query | Message::Offer) | (State::Prepared, Message::Query) => {
                self.abandon(true)
            }
            (State::Prepared, Message::Offer) => self.answer(State::JournalStarted),
            (State::Active | State::Prepared | State::Fenced, Message::Stays) => self.confirm(),
            (State::Started, Message::Query | Message::Offer | Message::Stays) => {
                self.answer(State::SayStarted)
            }
            (State::Started, Message::Released) => self.answer(State::Close),
            (State::Fenced | State::Unknown, Message::Query | Message::Offer) => {
                self.answer(State::SayFenced)
            }
            (State::Fenced, Message::Released) => self.confirm(),
            (State::Unknown, Message::Released | Message::Stays) => self.answer(State::SayForgotten),
            // Nothing that a source says at this point.
            _ => {}
        }
    }

    fn answer(&mut self, state: State) {
        self.asked = true;
        self.go(state);
    }

    fn answered(&mut self, state: State) {
        self.asked = false;
        self.go(state);
    }

    /// It will not run here. `tell` if somebody waits for a word.
    fn abandon(&mut self, tell: bool) {
        let committed = matches!(self.state, State::Started | State::Fenced | State::Unknown);
        if !committed {
            self.asked = tell;
            if self.promised {
                self.go(State::JournalFenced);
            } else {
                self.fenced();
            }
        }
    }

    /// The source waits, frozen: the answer goes before the cleaning.
    fn fenced(&mut self) {
        self.go(if self.asked {
            State::SayFenced
        } else {
            State::Discard
        });
    }

    fn after_fenced(&mut self) {
        self.answered(match (self.unknown, self.discarded) {
            (true, _) => State::Unknown,
            (false, true) => State::Fenced,
            (false, false) => State::Discard,
        });
    }

    fn confirm(&mut self) {
        self.confirmed = true;
        self.asked = true;
        self.go(if self.discarded {
            State::Close
        } else {
            State::Discard
        });
    }

    fn after_discard(&mut self) {
        let keep = self.promised && !self.confirmed;
        self.go(if keep { State::Fenced } else { State::Close });
    }

    fn after_forgotten(&mut self) {
        self.answered(if self.unknown {
            State::Unknown
        } else {
            State::Ended
        });
    }
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Active => "the rounds",
            State::Load => "the load",
            State::JournalPrepared | State::SayPrepared => "the promise",
            State::Prepared => "the wait for the offer",
            State::JournalStarted => "the commit",
            State::Start | State::SayStarted => "the start",
            State::Started => "the wait for the source's end",
            State::JournalFenced | State::SayFenced | State::Discard => "the retreat",
            State::Fenced => "the wait for the source's return",
            State::Close | State::SayForgotten | State::Ended => "the end",
            State::Unknown => "nothing",
        }
    }
}

#[cfg(test)]
impl DestinationSwitch {
    /// Without the memory of attempts, which only sets the length of pauses.
    pub(super) fn without_attempts(mut self) -> Self {
        self.attempts = 0;
        self
    }
}
