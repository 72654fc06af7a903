//! What `set` sets.

use std::time::Duration;

use whimbrel_policy::postcopy::{Bubbling, Demand, Guide, PrePaging, Push};
use whimbrel_policy::{PostCopy, PreCopy, StopCopy, Strategy};

/// How a VM is migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Frozen from the first page to the last.
    StopCopy,
    /// Rounds while it runs.
    PreCopy,
    /// Post-copy with network faults alone.
    Demand,
    /// Post-copy with a push in address order: the seed's.
    Push,
    /// Post-copy with a push that grows from the last fault.
    Bubbling,
    /// The seed's lazy-copy: post-copy in which the forward context says which pages come first.
    LazyCopy,
}

impl Policy {
    /// The name that users read.
    pub fn name(self) -> &'static str {
        match self {
            Policy::StopCopy => "stopcopy",
            Policy::PreCopy => "precopy",
            Policy::Demand => "postcopy demand",
            Policy::Push => "postcopy push",
            Policy::Bubbling => "postcopy bubbling",
            Policy::LazyCopy => "lazycopy",
        }
    }

    /// The part before the switch-over.
    pub(super) fn strategy(self) -> Box<dyn Strategy> {
        match self {
            Policy::StopCopy => Box::new(StopCopy),
            Policy::PreCopy => Box::<PreCopy>::default(),
            Policy::Demand | Policy::Push | Policy::Bubbling | Policy::LazyCopy => Box::new(PostCopy),
        }
    }

    /// The order of the push after it.
    pub(super) fn prepaging(self) -> Box<dyn PrePaging> {
        match self {
            Policy::StopCopy | Policy::PreCopy | Policy::Demand => Box::new(Demand),
            Policy::Push => Box::<Push>::default(),
            Policy::Bubbling => Box::<Bubbling>::default(),
            Policy::LazyCopy => Box::<Guide>::default(),
        }
    }
}

/// The settings of the manager. Policy, downtime and background rate hold for migrations that begin later, and the lead for forward
/// contexts that begin later. Links, disk and references hold at once, for a migration under way, too; what was begun ends as it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How VMs are migrated.
    pub policy: Policy,
    /// Bytes per second of each link between two servers.
    pub link_rate: u64,
    /// From one server to another, without any queue.
    pub link_latency: Duration,
    /// From one reference to the next.
    pub reference: Duration,
    /// What a page from disk takes at the following context while it is migrated.
    pub disk: Duration,
    /// Every miss takes that long, also that of a VM that is not migrated, and that of the forward context.
    pub is_disk_always: bool,
    /// References that the forward context is ahead at most.
    pub lead: u64,
    /// The downtime at which pre-copy freezes.
    pub downtime_max: Duration,
    /// Bytes per second of the push and of pre-copy; `None` for as fast as the link goes.
    pub background_max: Option<u64>,
}

impl Default for Settings {
    /// The seed says 11 s for the disk, and nothing about the rest: a reference each second, and a link of 1 KiB/s (4 s for a page),
    /// so that some references fall into a migration in spite of the slow disk.
    fn default() -> Self {
        Settings {
            policy: Policy::Push,
            link_rate: 1024,
            link_latency: Duration::from_millis(100),
            reference: Duration::from_secs(1),
            disk: Duration::from_secs(11),
            is_disk_always: false,
            lead: 8,
            downtime_max: Duration::from_secs(10),
            background_max: None,
        }
    }
}
