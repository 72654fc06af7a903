//! What the source can tell of the residual phase.

use alloc::collections::BTreeMap;
use core::time::Duration;

use super::ThreadId;
use crate::estimate::rate;

/// Threads whose faults are counted apart. Those of others are counted together.
pub const THREADS_MAX: usize = 4096;

/// What happened between the switch-over and the last acknowledgement, as the source sees it.
///
/// How long a fault took is known only where it happened: see [`super::Latencies`]. Which of the pushed pages were
/// touched later is known to nobody without looking at accessed bits, so there is a bound and not a number of
/// the faults that the push has spared: [`Metrics::faults_avoided_max`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Pages owed at the switch-over.
    pub pages: u64,
    /// Pages sent by the push.
    pub pages_pushed: u64,
    /// Those of them that a guide has asked for.
    pub pages_guided: u64,
    /// Pages sent in replies, neighbours included.
    pub pages_replied: u64,
    /// Those of both that were full of zeros.
    pub pages_zero: u64,
    /// Pages that were sent before a lost link and are owed again, since the destination lacked them.
    pub pages_again: u64,
    /// Pages that need not be sent any more, because they were gone at the destination before.
    pub pages_spared: u64,
    /// Pages that are known to have been placed.
    pub pages_placed: u64,
    /// Pages for which at least one thread has waited.
    pub pages_faulted: u64,
    /// Network faults for a page that was not sent yet.
    pub faults_unsent: u64,
    /// Network faults for a page that was already on its way: the thread waited for less than a reply takes.
    pub faults_in_flight: u64,
    /// Reports of faults that were known. Not network faults.
    pub faults_repeated: u64,
    /// Reports for a page that was acknowledged or gone meanwhile. Not network faults: the page was there before the report
    /// was read.
    pub faults_settled: u64,
    /// Reports for a page that was never owed or could not be read. Not network faults.
    pub faults_refused: u64,
    /// Network faults of each thread, for the first [`THREADS_MAX`] of them.
    pub threads: BTreeMap<ThreadId, u64>,
    /// Network faults of all other threads.
    pub faults_other_threads: u64,
    /// Bytes that the push put on the wire.
    pub bytes_pushed: u64,
    /// Bytes that replies put on the wire.
    pub bytes_replied: u64,
    /// Looks into the set of unsent pages; linear in pages and faults.
    pub steps: u64,
    /// When the residual phase began.
    pub begun: Duration,
    /// When the last page was settled; `None` before.
    pub ended: Option<Duration>,
}

impl Metrics {
    /// Faults in which the destination had to wait for the network.
    pub fn network_faults(&self) -> u64 {
        self.faults_unsent + self.faults_in_flight
    }

    /// How long the residual phase has lasted, lost links included.
    pub fn duration(&self, now: Duration) -> Duration {
        self.ended.unwrap_or(now).saturating_sub(self.begun)
    }

    /// Bytes per second of the residual phase.
    pub fn send_rate(&self, now: Duration) -> Option<u64> {
        rate(
            self.bytes_pushed.saturating_add(self.bytes_replied),
            self.duration(now),
        )
    }

    /// Network faults that were avoided at most: pages that were placed and that nobody has waited for. With demand paging
    /// each of them would have been a network fault if it was touched at all, and none if it was not.
    pub fn faults_avoided_max(&self) -> u64 {
        self.pages_placed.saturating_sub(self.pages_faulted)
    }

    /// Counts a network fault of `thread`.
    pub(super) fn network_fault(&mut self, thread: ThreadId, is_in_flight: bool) {
        if is_in_flight {
            self.faults_in_flight += 1;
        } else {
            self.faults_unsent += 1;
        }
        if self.threads.len() < THREADS_MAX || self.threads.contains_key(&thread) {
            *self.threads.entry(thread).or_default() += 1;
        } else {
            self.faults_other_threads += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_without_end_are_counted_together_from_some_point_on() {
        let mut metrics = Metrics::default();
        for thread in 0..THREADS_MAX as u32 + 10 {
            metrics.network_fault(ThreadId(thread), thread % 2 == 0);
        }
        metrics.network_fault(ThreadId(3), false);
        assert_eq!(
            (metrics.threads.len(), metrics.faults_other_threads),
            (THREADS_MAX, 10)
        );
        assert_eq!(metrics.threads[&ThreadId(3)], 2);
        assert_eq!(metrics.network_faults(), THREADS_MAX as u64 + 11);
    }
}
