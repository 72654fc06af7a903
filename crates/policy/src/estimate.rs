//! Bandwidth and dirty rate, measured. All rates are in bytes per second.

use core::time::Duration;

use crate::pages::PAGE_SIZE;

/// So much busy time is remembered: what lies further back counts for less than half.
const WINDOW_SECONDS: f64 = 1.0;

/// Less than this may have vanished in a socket's buffer (4 MiB on Linux, `net.ipv4.tcp_wmem`) at the speed of
/// memory, and says little about the link.
const SAMPLE_BYTES_MIN: u64 = 4 << 20;

/// An average of bytes over busy time, in which older samples fade with the busy time since.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    bytes: f64,
    seconds: f64,
}

impl Average {
    fn add(&mut self, bytes: f64, seconds: f64) {
        // The first term of exp(-t / window), which `core` does not have; the weight only has to fall.
        let old = WINDOW_SECONDS / (WINDOW_SECONDS + seconds);
        self.bytes = self.bytes * old + bytes;
        self.seconds = self.seconds * old + seconds;
    }

    fn rate(&self) -> Option<u64> {
        (self.seconds > 0.0 && self.bytes > 0.0).then(|| ((self.bytes / self.seconds) as u64).max(1))
    }
}

/// The bandwidth that pages get, from the time in which some were under way and nothing else: time spent in waits for a
/// limit, on pages of zeros, or without anything to send must not make a link look slow (the most frequent error of
/// predictions in the field). Reading the pages counts. Without it a link of 118 MB/s was taken for one of 236 MB/s: while the next pages
/// are read, those before leave the socket's buffer, and that time belongs to them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bandwidth {
    large: Average,
    small: Average,
}

impl Bandwidth {
    /// Adds `bytes` that kept the link busy for `busy`. Samples below 4 MiB only count until there is a larger one.
    pub fn add(&mut self, bytes: u64, busy: Duration) {
        self.add_packed(bytes, bytes, busy);
    }

    /// The same for bytes that were fewer on the wire: those are what a socket's buffer takes.
    pub fn add_packed(&mut self, bytes: u64, wire_bytes: u64, busy: Duration) {
        let average = if wire_bytes >= SAMPLE_BYTES_MIN {
            &mut self.large
        } else {
            &mut self.small
        };
        average.add(bytes as f64, busy.as_secs_f64());
    }

    /// Bytes per second; `None` before anything was measured.
    pub fn rate(&self) -> Option<u64> {
        self.large.rate().or_else(|| self.small.rate())
    }
}

/// Bytes per second that a workload dirties: distinct pages written over the time between two scans. A page that is
/// written a thousand times in between counts once, because it travels once.
pub fn dirty_rate(pages: u64, between_scans: Duration) -> Option<u64> {
    rate(pages.saturating_mul(PAGE_SIZE), between_scans)
}

/// Bytes per second; `None` if no time has passed.
pub fn rate(bytes: u64, time: Duration) -> Option<u64> {
    let seconds = time.as_secs_f64();
    (seconds > 0.0).then(|| (bytes as f64 / seconds) as u64)
}

/// How long `bytes` take at `rate` bytes per second.
pub fn time_for(bytes: u64, rate: u64) -> Duration {
    let seconds = bytes as f64 / rate.max(1) as f64;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn idle_time_does_not_make_a_link_slow() {
        let mut bandwidth = Bandwidth::default();
        assert_eq!(bandwidth.rate(), None);
        bandwidth.add(100 * MIB, Duration::from_secs(1));
        bandwidth.add(0, Duration::ZERO);
        assert_eq!(bandwidth.rate(), Some(100 * MIB));
    }

    #[test]
    fn it_follows_a_link_that_becomes_slower_within_a_few_seconds() {
        let mut bandwidth = Bandwidth::default();
        (0..50).for_each(|_| bandwidth.add(20 * MIB, Duration::from_millis(200)));
        let fast = bandwidth.rate().unwrap();
        assert!((99 * MIB..101 * MIB).contains(&fast), "{fast}");
        (0..10).for_each(|_| bandwidth.add(5 * MIB, Duration::from_millis(500)));
        let slow = bandwidth.rate().unwrap();
        assert!((10 * MIB..12 * MIB).contains(&slow), "{slow}");
    }

    #[test]
    fn what_a_socket_buffer_swallows_does_not_make_it_fast() {
        let mut bandwidth = Bandwidth::default();
        bandwidth.add(MIB, Duration::from_micros(300));
        assert!(bandwidth.rate().unwrap() > 1000 * MIB, "all there is to go by");
        bandwidth.add(100 * MIB, Duration::from_secs(1));
        bandwidth.add(MIB, Duration::from_micros(300));
        assert_eq!(bandwidth.rate(), Some(100 * MIB));
    }

    #[test]
    fn rates_and_times() {
        assert_eq!(dirty_rate(256, Duration::from_millis(500)), Some(2 * MIB));
        assert_eq!(dirty_rate(256, Duration::ZERO), None);
        assert_eq!(time_for(5 * MIB, 10 * MIB), Duration::from_millis(500));
        assert_eq!(time_for(u64::MAX, 0).as_secs(), u64::MAX);
    }
}
