//! The switch-over: nothing may be lost, and nothing may run twice.
//!
//! Two machines without I/O, one for each end. A controller, a guardian and the next command all drive the same
//! machines; they only enter them at different places. Ask [`SourceSwitch::poll`] (or the destination's) what to do, do it, and
//! say what came of it with `handle`; while the answer is `Listen`, hand in what happens.
//!
//! ```text
//!  source                              journal     journal      destination
//!  rounds                              ACTIVE      ACTIVE       follow
//!  freeze, State, last pages --------------------------------->  load
//!  hold                                            PREPARED
//!            <------------------------------------- Prepared --
//!                                      OFFERED
//!            -- Offer --------------------------->  STARTED      <- the commit
//!                                                                start
//!            <-------------------------------------- Started --
//!                                      RELEASED
//!  end the copy
//!            -- Released ------------------------->  (removed)
//!            <------------------------------------ Forgotten --
//!                                      (removed)
//! ```
//!
//! # The source
//!
//! | journal | workload | on failure, lost link, or a new process that takes over | leaves it by |
//! |---|---|---|---|
//! | ACTIVE | runs, or stopped by its tracer | runs on; STAYED if the destination may wait for word, else removed | Prepared -> OFFERED |
//! | OFFERED | held | stays held, connects and asks (0.1 s to 5 s between), for ever | Started -> RELEASED, Fenced or the operator -> STAYED |
//! | RELEASED | being ended, or gone | ends it (again), tells Released until Forgotten | Forgotten -> removed |
//! | STAYED | being thawed, or runs | thaws it (again), tells Stays until Forgotten | Forgotten -> removed |
//!
//! # The destination
//!
//! | journal | replica | on failure, lost link, or a new process that takes over | Query | Offer | Stays | Released |
//! |---|---|---|---|---|---|---|
//! | ACTIVE | shell, or loaded and held | discard, removed | Fenced, discard, removed | as Query | discard, removed, Forgotten | - |
//! | PREPARED | loaded and held | FENCED | FENCED | **STARTED** | discard, removed, Forgotten | - |
//! | STARTED | starts, or runs | start (again), wait | Started | Started | Started (the operator forced the source) | removed, Forgotten |
//! | FENCED | being discarded, or gone | discard (again), wait | Fenced | Fenced | removed, Forgotten | removed, Forgotten |
//! | none | none | - | Fenced | Fenced | Forgotten | Forgotten |
//!
//! Why it holds:
//! - Only a destination that is PREPARED can become STARTED, only by an Offer, and only in the process that made the
//!   promise: whoever takes over from it fences. A source offers only once it is held by something that outlives it, and OFFERED is
//!   journalled first. So while the destination may start it, the source cannot run, whoever dies.
//! - A source that is OFFERED gets a true answer from whoever is there: PREPARED, STARTED and FENCED are kept until the
//!   source has confirmed that it will never ask again. A FENCED one that nobody asks about may go after a long time: without
//!   a journal the answer is the same, or, to a source whose key nobody knows any more, none.
//! - A destination without a journal answers Fenced and writes nothing: it has nothing that could be started, and a
//!   shell that a late Spec makes would have to be offered to, which only the source of that same connection does.
//! - Forgotten is an acknowledgement, so that nothing is left behind when the last word is lost. The workload's place is
//!   decided then; whoever waits for it may give up (`GiveUp`): a record without resources is left at the destination.
//!
//! All of it is walked through in the tests: every message lost or late, every process dead before and after every step.

use core::fmt;
use core::time::Duration;

mod destination;
#[cfg(test)]
mod pair;
mod source;

pub use destination::{DestinationAction, DestinationEnd, DestinationInput, DestinationSwitch};
pub use source::{SourceAction, SourceEnd, SourceInput, SourceSwitch};

/// The first pause between two attempts; it doubles up to [`PAUSE_MAX`].
pub const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause between two attempts.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the two ends say to each other about the switch-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// Destination: complete and held; one word is enough.
    Prepared,
    /// Source: mine is held until you answer: run yours.
    Offer,
    /// Source: what became of it?
    Query,
    /// Destination: committed, it runs here.
    Started,
    /// Destination: not started, and never will be.
    Fenced,
    /// Destination: busy; ask again.
    Undecided,
    /// Source: my copy is gone; forget the migration.
    Released,
    /// Source: it runs here; forget the migration.
    Stays,
    /// Destination: the migration is forgotten here.
    Forgotten,
}

/// What the source's journal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceJournal {
    /// Under way: the workload is the source's.
    Active,
    /// The destination was told to start it; only its answer decides.
    Offered,
    /// It runs at the destination.
    Released,
    /// It runs on here, and the destination may have to be told.
    Stayed,
}

/// What the destination's journal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationJournal {
    /// Under way: the workload is the source's.
    Active,
    /// Complete; the source was, or is about to be, told.
    Prepared,
    /// Committed: it runs here.
    Started,
    /// Not started, and never will be.
    Fenced,
}

/// Where the workload is in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// At the destination: end the copy here.
    Moved,
    /// Here: let it run on.
    Stays,
}

/// An input that does not answer what was asked for. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unexpected {
    /// The input.
    pub input: &'static str,
    /// At which end.
    pub end: &'static str,
    /// What the machine was doing.
    pub state: &'static str,
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unexpected { input, end, state } = self;
        write!(
            f,
            "the {end} of a switch-over cannot take {input} in while it is at {state}"
        )
    }
}

impl core::error::Error for Unexpected {}

/// The pause after so many attempts.
fn pause_after(attempts: u8) -> Duration {
    PAUSE_MIN.saturating_mul(1u32 << attempts.min(16)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_seconds() {
        let pauses: std::vec::Vec<_> = (0..8).map(|n| pause_after(n).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pause_after(u8::MAX), PAUSE_MAX);
    }
}
