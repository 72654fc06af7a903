//! After the switch-over: the workload runs at the destination, and the pages that it lacks there follow.
//!
//! One machine without I/O, at the source, for which the workload is frozen memory from now on. Tell [`Residual`] what
//! happened, ask it what to send, and send it.
//!
//! ```text
//!  source                                                destination
//!  Residual::new(what is owed)                           runs; a missing page stops the thread that touches it
//!           <------------------------ fault ------------- network fault
//!  Reply    == faulted page, and neighbours ============> place, wake        stream for faults
//!  Push     == pages in pre-paging order ===============> place              bulk stream
//!           <------------------------ piece number ------ placed, all of it
//!           <------------------------ gone -------------- unmapped or discarded by the workload
//!  (link lost: both keep what they have)
//!           <------------------------ missing ----------- this is what I lack
//!  Done     -- nothing is owed -------------------------> the source may be released
//! ```
//!
//! A page of the residue is in one of these states:
//!
//! | state | meaning | left by |
//! |---|---|---|
//! | unsent | owed | Reply or Push -> in flight; gone -> settled |
//! | in flight | sent, not acknowledged | acknowledged or gone -> settled; link back -> unsent if it is missing, else settled |
//! | unreadable | the source could not read it | gone -> settled; link back -> unsent if it is missing |
//! | settled | placed there, or gone there | link back -> unsent if it is missing after all and not gone |
//!
//! Pages leave the set of the unsent by being taken out of it ([`Unsent`]), and nothing else names pages to send. So a page
//! is sent once, whatever a pre-paging order does; twice only if the link was lost and the destination says that it lacks it.
//!
//! What is behind one `trait` is the order of the push: [`Demand`], [`Push`], [`Bubbling`], [`Guide`]. Replies never wait for
//! it: they are ordered first, and [`pace`] keeps what is under way on the link down to about what the link holds.

mod bubbling;
mod demand;
mod guide;
pub mod latency;
mod lead;
mod metrics;
pub mod pace;
mod push;
mod readahead;
mod residual;
mod unsent;

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

pub use bubbling::Bubbling;
pub use demand::Demand;
pub use guide::{Guide, TOUCHED_MAX};
pub use latency::Latencies;
pub use lead::{GuideEnd, GuideStep, Lead, LeadLimits, LEAD_PAGES_MAX};
pub use metrics::{Metrics, THREADS_MAX};
pub use pace::{Pace, Path};
pub use push::Push;
pub use residual::{Residual, FAULTS_MAX, PIECES_MAX};
pub use unsent::Unsent;

use crate::pages::{Page, PageRun, Pages};

/// A thread of the workload, or a vCPU. Only told apart, never used to reach one: any number is valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadId(pub u32);

/// An order in which residual pages are pushed: one file for each.
///
/// It says what comes next, and nothing about when. The pages that it names it has taken out of the set of the unsent, so
/// that none is sent twice.
pub trait PrePaging: fmt::Debug + Send {
    /// The name that users type.
    fn name(&self) -> &'static str;

    /// `thread` waits for `page`.
    fn fault(&mut self, thread: ThreadId, page: Page);

    /// `thread` is about to touch `page`. As good as a fault, unless there is something better to do.
    fn about_to_touch(&mut self, thread: ThreadId, page: Page) {
        self.fault(thread, page);
    }

    /// Takes what somebody is known to touch soon: asked before [`PrePaging::next`], with the same rules, and not held back by the
    /// limit on the push.
    fn next_guided(&mut self, _unsent: &mut Unsent, _pages_max: u64) -> Vec<PageRun> {
        Vec::new()
    }

    /// Takes what is to be pushed next: at most `pages_max` pages (at least 1). Nothing, if there is nothing to push
    /// before the next fault.
    fn next(&mut self, unsent: &mut Unsent, pages_max: u64) -> Vec<PageRun>;

    /// Pages that were taken before are unsent again.
    fn restart(&mut self);
}

/// What the user sets for the time after the switch-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes per second of the push, `None` for as fast as the link goes. Replies and guided pages neither wait for it nor count.
    pub bandwidth_max: Option<u64>,
    /// Pages of a reply at most, the faulted one included. More spares faults of a thread that walks through memory; each costs
    /// whoever faults next the time that a page takes on the link.
    pub reply_pages_max: u64,
    /// Bytes under way at most.
    pub window_max: u64,
}

impl Default for Limits {
    /// As fast as the link goes, 16 pages (0.5 ms of a 1 Gbit/s link), 32 MiB (10 Gbit/s over 25 ms).
    fn default() -> Self {
        Limits {
            bandwidth_max: None,
            reply_pages_max: 16,
            window_max: 32 << 20,
        }
    }
}

/// A network fault, as the destination reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The page that is missing.
    pub page: Page,
    /// Who waits for it.
    pub thread: ThreadId,
    /// Told before, and told again to be sure (after the link was lost). Where the first report arrived it is not counted
    /// again, and the pivot stays.
    pub repeated: bool,
}

/// What comes of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The page will be ordered in a [`Order::Reply`], or goes with one that is.
    Queued,
    /// The page was sent and is not acknowledged yet: nothing to do.
    OnItsWay,
    /// The destination has acknowledged the page, or said that it is gone: tell it to look again and wake the thread.
    Settled,
    /// The page was never owed. Refuse it: the destination is confused or hostile, or the page is a hole, which it can
    /// fill with zeros itself.
    Unknown,
    /// The page could not be read here: refuse it. The destination decides what the thread gets.
    Unreadable,
    /// [`FAULTS_MAX`] pages are waited for. Nothing was taken in: report it again after some acknowledgements.
    Busy,
}

/// Names what was sent by one order. Numbers go up and are never used twice, so that an acknowledgement from before a lost link
/// names nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceId(pub u64);

/// Something happened, beside faults. `now` is passed with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The answer to [`Order::Reply`] and [`Order::Push`]: it was written to its stream.
    Sent {
        /// Which.
        piece: PieceId,
        /// Bytes that it took.
        wire_bytes: u64,
        /// Pages of it that were full of zeros, and told without content.
        zero_pages: u64,
        /// Pages of it that could not be read, and are not sent. Those beyond the piece are ignored.
        unreadable: Vec<PageRun>,
    },
    /// The destination has placed every page of a piece that was not there already. Unknown pieces are ignored.
    Acked {
        /// Which.
        piece: PieceId,
    },
    /// The workload has unmapped or discarded these pages: they are not owed any more, whatever becomes of their place. May be
    /// very long runs, and name pages that were never owed.
    Gone {
        /// Which.
        runs: Vec<PageRun>,
    },
    /// The connection is lost. Nothing is ordered until it is back.
    LinkLost,
    /// Both ends are connected again, and the destination lacks exactly these pages. What it does not name is settled.
    /// Only after everything that was received on the old connection was placed there: a page must not be both named here and
    /// placed later.
    LinkBack {
        /// What it lacks.
        missing: Pages,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Send these pages on the stream for faults, at once.
    Reply {
        /// Its name.
        piece: PieceId,
        /// The faulted page is the first. The destination may place it before the others have arrived.
        run: PageRun,
        /// What is answered.
        fault: Fault,
    },
    /// Send these pages on the bulk stream, in this order.
    Push {
        /// Its name.
        piece: PieceId,
        /// What to send.
        runs: Vec<PageRun>,
    },
    /// Nothing can be sent before something happens, or before `until`.
    Wait {
        /// On the clock that `now` is taken from.
        until: Option<Duration>,
    },
    /// Every page is settled: the source may be released.
    Done,
}
