//! A link with one queue.

use std::time::Duration;

use crate::scenario::Competing;

/// Bytes leave one after the other, at the rate that competing traffic leaves, and arrive after the latency.
///
/// Competing traffic takes its rate, but never more than all alike would get: of a link of 1 Gbit/s one stream leaves at least half.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    rate: u64,
    pub latency: Duration,
    competing: Vec<Competing>,
    /// When the last byte leaves.
    free_at: Duration,
    pub bytes: u64,
}

impl Link {
    pub fn new(rate: u64, latency: Duration, competing: &[Competing]) -> Self {
        Link {
            rate,
            latency,
            competing: competing.to_vec(),
            free_at: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Queues so many bytes. Returns when the last of them has left.
    pub fn send(&mut self, now: Duration, bytes: u64) -> Duration {
        self.bytes += bytes;
        self.free_at = self.carried(self.free_at.max(now), bytes);
        self.free_at
    }

    /// Keeps it busy for a while without a byte.
    pub fn hold(&mut self, now: Duration, time: Duration) {
        self.free_at = self.free_at.max(now) + time;
    }

    /// When everything that was queued has left.
    pub fn free_at(&self, now: Duration) -> Duration {
        self.free_at.max(now)
    }

    /// When the last of so many bytes leaves whose first one leaves at `from`.
    fn carried(&self, from: Duration, bytes: u64) -> Duration {
        let (mut at, mut left) = (from, bytes as f64);
        loop {
            let (rate, until) = self.rate_at(at);
            let whole = Duration::from_nanos((left * 1e9 / rate).round() as u64);
            match until {
                Some(until) if at + whole > until => {
                    left -= (until - at).as_secs_f64() * rate;
                    at = until;
                }
                _ => return at + whole,
            }
        }
    }

    /// Bytes per second that competing traffic leaves now.
    pub fn rate_now(&self, now: Duration) -> u64 {
        self.rate_at(now).0 as u64
    }

    /// Bytes per second that are left at a moment, and until when.
    fn rate_at(&self, at: Duration) -> (f64, Option<Duration>) {
        let is_on = |one: &&Competing| one.from.0 <= at && one.until.is_none_or(|until| at < until.0);
        let on: Vec<&Competing> = self.competing.iter().filter(is_on).collect();
        let taken: f64 = on.iter().map(|one| one.rate.0 as f64).sum();
        let rate = self.rate as f64;
        let changes = self
            .competing
            .iter()
            .flat_map(|one| [Some(one.from.0), one.until.map(|until| until.0)]);
        let next = changes.flatten().filter(|&change| change > at).min();
        ((rate - taken).max(rate / (on.len() + 1) as f64), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Rate, Time};

    #[test]
    fn bytes_queue_and_competing_traffic_takes_its_part_while_it_lasts() {
        let s = Duration::from_secs;
        let competing = Competing {
            rate: Rate(60),
            from: Time(s(2)),
            until: Some(Time(s(4))),
        };
        let mut link = Link::new(100, Duration::ZERO, &[competing]);
        assert_eq!(link.send(Duration::ZERO, 100), s(1));
        // 100 at full rate, then 2 s at half of the rate (more than a fair share is not taken), then at full rate again.
        assert_eq!(link.send(Duration::ZERO, 300), s(5));
        assert_eq!(link.send(s(10), 50), Duration::from_millis(10_500));
        assert_eq!(link.bytes, 450);
    }
}
