//! How many snapshots, and when each is taken.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use super::{downtime, size_inc_snapshot};

/// Snapshots of one migration at most.
pub const SNAPSHOTS_MAX: u32 = 30;

/// Goals for the snapshots of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectLimits {
    /// How many, the last one included: 1 to [`SNAPSHOTS_MAX`], anything else is taken for the nearest of them.
    pub snapshots: u32,
    /// So long a collection by the application is waited for before each snapshot (the paper's "migration-timeout").
    pub ride_max: Duration,
    /// So long a forced collection is waited for.
    pub forced_max: Duration,
}

impl Default for CollectLimits {
    /// Two, as in ALMA, where more did not make the downtime shorter (3.3). 1 s and 10 s: the paper leaves them to the user.
    fn default() -> Self {
        CollectLimits {
            snapshots: 2,
            ride_max: Duration::from_secs(1),
            forced_max: Duration::from_secs(10),
        }
    }
}

impl CollectLimits {
    fn count(&self) -> u32 {
        self.snapshots.clamp(1, SNAPSHOTS_MAX)
    }

    /// The bytes of each snapshot: (7), each time from the one before.
    pub fn sizes(&self, size_init_bytes: u64, bandwidth: u64, dirty_rate: u64) -> Vec<u64> {
        let next = |&before: &u64| Some(size_inc_snapshot(before, bandwidth, dirty_rate));
        let sizes = core::iter::successors(Some(size_init_bytes), next);
        sizes.take(self.count() as usize).collect()
    }

    /// The downtime: (6) for the last of [`CollectLimits::sizes`].
    pub fn downtime(&self, size_init_bytes: u64, bandwidth: u64, dirty_rate: u64) -> Duration {
        let last = self.sizes(size_init_bytes, bandwidth, dirty_rate).pop();
        downtime(last.unwrap_or(0), bandwidth)
    }
}

/// Something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotEvent {
    /// A collection is over, and the application still stands in its pause: one of its own, or the forced one. Comes
    /// at any time; without effect unless one is waited for.
    Paused,
    /// The answer to [`SnapshotOrder::Force`] if it cannot be done.
    CannotCollect,
    /// The answer to [`SnapshotOrder::Take`]. After the last one the workload stays stopped.
    Taken,
    /// The snapshot has arrived at the destination as a whole.
    Arrived,
}

impl SnapshotEvent {
    fn name(self) -> &'static str {
        match self {
            SnapshotEvent::Paused => "Paused",
            SnapshotEvent::CannotCollect => "CannotCollect",
            SnapshotEvent::Taken => "Taken",
            SnapshotEvent::Arrived => "Arrived",
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotOrder {
    /// Tell of the next collection that the application makes, and hold it in its pause; ask again then.
    Ride {
        /// Time since the migration began.
        until: Duration,
    },
    /// Collect the [`CollectionSet`](super::CollectionSet), and stay in the pause. Ask again at that time.
    Force {
        /// Time since the migration began.
        until: Duration,
    },
    /// Take a snapshot, and forward it while it is taken.
    Take {
        /// 1 is the initial one; the others hold what changed since the one before.
        number: u32,
        /// The workload does not run on afterwards.
        last: bool,
        /// Inside the pause of a collection: [`super::free_pages`] are left out. Otherwise nothing may be.
        in_pause: bool,
    },
    /// Wait until it has arrived. The next one is taken only then, so that it holds all that changed meanwhile.
    AwaitArrival,
    /// All is at the destination: resume there.
    Resume,
}

/// An event that is no answer to what was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unexpected {
    /// The event.
    pub event: &'static str,
    /// Of this snapshot.
    pub snapshot: u32,
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unexpected { event, snapshot } = self;
        write!(f, "the event {event} answers no order about snapshot {snapshot}")
    }
}

impl core::error::Error for Unexpected {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Riding { until: Duration },
    Forcing { until: Duration },
    Taking { in_pause: bool },
    Arriving,
    Over,
}

/// The snapshots of one migration, which begins at time zero: ALMA's workflow (3.3, figure 4). Each rides on a collection that the
/// application triggers in time, or forces one (3.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshots {
    limits: CollectLimits,
    number: u32,
    state: State,
}

impl Snapshots {
    /// Begins to wait for the first one.
    pub fn new(limits: CollectLimits) -> Self {
        Snapshots {
            limits,
            number: 1,
            state: State::Riding {
                until: limits.ride_max,
            },
        }
    }

    /// What to do next. Asked twice without an event in between it says the same, until a time is reached.
    pub fn poll(&mut self, now: Duration) -> SnapshotOrder {
        self.expire(now);
        match self.state {
            State::Riding { until } => SnapshotOrder::Ride { until },
            State::Forcing { until } => SnapshotOrder::Force { until },
            State::Taking { in_pause } => SnapshotOrder::Take {
                number: self.number,
                last: self.is_last(),
                in_pause,
            },
            State::Arriving => SnapshotOrder::AwaitArrival,
            State::Over => SnapshotOrder::Resume,
        }
    }

    /// Takes in what happened.
    ///
    /// # Errors
    /// [`Unexpected`]; nothing has changed then but for times that were reached.
    pub fn handle(&mut self, now: Duration, event: SnapshotEvent) -> Result<(), Unexpected> {
        // A pause that comes at the last moment, before anybody was told not to hold it, is as good as one in time.
        if event != SnapshotEvent::Paused {
            self.expire(now);
        }
        self.state = match (self.state, event) {
            (State::Riding { .. } | State::Forcing { .. }, SnapshotEvent::Paused) => {
                State::Taking { in_pause: true }
            }
            (state, SnapshotEvent::Paused) => state,
            (State::Forcing { .. }, SnapshotEvent::CannotCollect) => State::Taking { in_pause: false },
            // The answer crossed the time limit.
            (state @ State::Taking { in_pause: false }, SnapshotEvent::CannotCollect) => state,
            (State::Taking { .. }, SnapshotEvent::Taken) => State::Arriving,
            (State::Arriving, SnapshotEvent::Arrived) => self.next(now),
            (_, event) => {
                return Err(Unexpected {
                    event: event.name(),
                    snapshot: self.number,
                })
            }
        };
        Ok(())
    }

    fn is_last(&self) -> bool {
        self.number >= self.limits.count()
    }

    fn next(&mut self, now: Duration) -> State {
        if self.is_last() {
            return State::Over;
        }
        self.number += 1;
        State::Riding {
            until: now.saturating_add(self.limits.ride_max),
        }
    }

    fn expire(&mut self, now: Duration) {
        self.state = match self.state {
            State::Riding { until } if now >= until => State::Forcing {
                until: now.saturating_add(self.limits.forced_max),
            },
            State::Forcing { until } if now >= until => State::Taking { in_pause: false },
            state => state,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn take(number: u32, last: bool, in_pause: bool) -> SnapshotOrder {
        SnapshotOrder::Take {
            number,
            last,
            in_pause,
        }
    }

    #[test]
    fn the_first_rides_on_a_collection_and_the_second_forces_one() {
        let mut snapshots = Snapshots::new(CollectLimits::default());
        assert_eq!(snapshots.poll(s(0)), SnapshotOrder::Ride { until: s(1) });
        snapshots
            .handle(Duration::from_millis(400), SnapshotEvent::Paused)
            .unwrap();
        assert_eq!(
            snapshots.poll(s(5)),
            take(1, false, true),
            "no time is up any more"
        );
        snapshots.handle(s(5), SnapshotEvent::Taken).unwrap();
        // Between snapshots the application collects as it likes.
        snapshots.handle(s(6), SnapshotEvent::Paused).unwrap();
        assert_eq!(snapshots.poll(s(6)), SnapshotOrder::AwaitArrival);
        snapshots.handle(s(7), SnapshotEvent::Arrived).unwrap();
        assert_eq!(snapshots.poll(s(7)), SnapshotOrder::Ride { until: s(8) });
        assert_eq!(snapshots.poll(s(8)), SnapshotOrder::Force { until: s(18) });
        snapshots.handle(s(9), SnapshotEvent::Paused).unwrap();
        assert_eq!(snapshots.poll(s(9)), take(2, true, true));
        snapshots.handle(s(10), SnapshotEvent::Taken).unwrap();
        snapshots.handle(s(11), SnapshotEvent::Arrived).unwrap();
        assert_eq!(snapshots.poll(s(11)), SnapshotOrder::Resume);
    }

    #[test]
    fn without_a_pause_nothing_is_left_out() {
        let forcing = || {
            let mut snapshots = Snapshots::new(CollectLimits::default());
            assert_eq!(snapshots.poll(s(1)), SnapshotOrder::Force { until: s(11) });
            snapshots
        };
        let mut snapshots = forcing();
        snapshots.handle(s(2), SnapshotEvent::CannotCollect).unwrap();
        assert_eq!(snapshots.poll(s(2)), take(1, false, false));
        let mut snapshots = forcing();
        assert_eq!(snapshots.poll(s(11)), take(1, false, false));
        snapshots.handle(s(12), SnapshotEvent::Paused).unwrap();
        assert_eq!(snapshots.poll(s(12)), take(1, false, false), "too late");
    }

    #[test]
    fn an_event_that_answers_nothing_changes_nothing() {
        let mut snapshots = Snapshots::new(CollectLimits::default());
        let before = snapshots;
        let unexpected = snapshots.handle(s(0), SnapshotEvent::Arrived).unwrap_err();
        assert_eq!((unexpected.event, unexpected.snapshot), ("Arrived", 1));
        assert_eq!(snapshots, before);
    }

    #[test]
    fn any_number_of_snapshots() {
        let of = |snapshots| CollectLimits {
            snapshots,
            ..CollectLimits::default()
        };
        // A fifth of the bandwidth is dirtied: each is a fifth of the one before.
        assert_eq!(
            of(3).sizes(500 * MB, 125 * MB, 25 * MB),
            [500 * MB, 100 * MB, 20 * MB]
        );
        assert_eq!(
            of(2).downtime(500 * MB, 125 * MB, 25 * MB),
            Duration::from_millis(800)
        );
        assert_eq!(of(0).downtime(500 * MB, 125 * MB, 25 * MB), s(4));
        assert_eq!(of(u32::MAX).sizes(1, 1, 1).len(), 30);
        for count in [1, 3] {
            let mut snapshots = Snapshots::new(of(count));
            for number in 1..=count {
                snapshots.handle(s(0), SnapshotEvent::Paused).unwrap();
                assert_eq!(snapshots.poll(s(0)), take(number, number == count, true));
                snapshots.handle(s(0), SnapshotEvent::Taken).unwrap();
                snapshots.handle(s(0), SnapshotEvent::Arrived).unwrap();
            }
            assert_eq!(snapshots.poll(s(0)), SnapshotOrder::Resume);
        }
    }
}
