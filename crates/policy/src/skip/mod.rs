//! Memory that its owner declares not worth sending: skip areas, the transfer bitmap, and the talk with the
//! applications that own them. After JAVMM (Hou, Shin and Sung, "Application-assisted live migration of virtual
//! machines with Java applications"), beside any [`crate::Migration`].
//!
//! ```text
//!  applications            Assist                        Migration
//!            <---- Ask
//!  areas     ---->         first update   Mask    ---->  Event::Facts
//!  shrunk    ---->         bits set       Unmask  ---->  Event::Forgotten      rounds
//!                          Suspending             <----  Order::Freeze
//!            <---- Prepare                               (waits)
//!  final     ---->         final update   Pause   ---->  Event::Frozen
//!                          final_scan             ---->  Event::Scanned        last round
//!            <---- Tell    Resumed, Abandoned
//! ```
//!
//! A skip only masks what is owed. Once the workload is frozen nothing counts but the areas of the final update, which
//! were walked again: in a guest that moves or shares pages, a frame of an earlier walk may hold anything by then. Whoever
//! drives this looks at the migration's next order first, since it takes no facts any more once it orders to freeze.

mod assist;
mod bitmap;
mod worth;

pub use assist::{Assist, AssistEvent, AssistLimits, AssistOrder, AssistOutcome, AssistPhase};
pub use bitmap::{ApplicationId, Change, Claim, TransferBitmap, APPLICATIONS_MAX, RUNS_MAX};
pub use worth::{worth_using, Area, Copying, AREAS_MAX};

use alloc::vec::Vec;

use crate::fact::{Expiry, Fact, Knowledge};
use crate::pages::PageRun;

/// What a migration is told of pages that are skipped: they are not sent however often they are written. The facts end
/// with this generation of the layout, so they are told again ([`Assist::bitmap`]) after an
/// [`Event::LayoutIs`](crate::Event::LayoutIs) with another one.
pub fn facts(runs: impl IntoIterator<Item = PageRun>, generation: u64) -> Vec<Fact> {
    let fact = |run| Fact {
        run,
        knowledge: Knowledge::Garbage,
        expiry: Expiry::WhenLayoutChanges(generation),
    };
    runs.into_iter().map(fact).collect()
}
