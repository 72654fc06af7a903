//! Whether it pays to pack (compress) pages before they travel.
//!
//! Packing costs processor time and saves time on the wire, so it depends on both, and both change. Nothing is assumed: pages are packed
//! from the beginning; if the link then hardly ever makes the sender wait, it may be able to carry more than the packer makes, and plain pages
//! are tried for a moment. Whatever brings more pages per second goes on. On links of up to some gigabits per second packing
//! wins; at the speed of memory it loses.

use core::time::Duration;

/// Pages that are looked at together, in bytes: less may have vanished in a socket's buffer.
const WINDOW_BYTES: u64 = 32 << 20;
/// A link that makes the sender wait for at least this part of the time is what limits it.
const WAITING_PERCENT: u32 = 10;
/// Plain pages are tried for at least this many bytes: a socket's buffer takes the first ones at the speed of memory.
const TRIAL_BYTES_MIN: u64 = 6 << 20;
/// Packing may lose by so much before plain pages are preferred: it also saves bytes.
const ADVANTAGE_PERCENT: u32 = 120;
/// What was found is believed for so many bytes.
const BELIEVED_BYTES: u64 = 1 << 30;

/// Bytes that travel plain in a trial although packed ones would have brought more, if the packer is what limits `bytes` of pages.
pub fn trial_bytes(bytes: u64) -> u64 {
    bytes.saturating_sub(WINDOW_BYTES).div_ceil(BELIEVED_BYTES) * TRIAL_BYTES_MIN
}

/// Bytes and the time they took.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    bytes: u64,
    time: Duration,
    waiting: Duration,
}

impl Sample {
    fn add(&mut self, bytes: u64, time: Duration, waiting: Duration) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.time = self.time.saturating_add(time);
        self.waiting = self.waiting.saturating_add(waiting);
    }

    fn rate(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-9)
    }

    fn is_waiting(&self) -> bool {
        self.waiting * 100 >= self.time * WAITING_PERCENT
    }
}

/// What is being found out.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Pages are packed.
    Packed(Sample),
    /// Plain pages are tried; packed ones had this rate, in bytes per second.
    Trial(Sample, f64),
    /// It is known which is better, for so many bytes more.
    Known { packed: bool, left: u64 },
}

/// Decides for one stream of pages.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    state: State,
}

impl Default for Packing {
    fn default() -> Self {
        Self {
            state: State::Packed(Sample::default()),
        }
    }
}

impl Packing {
    /// Whether the next pages are to be packed.
    pub fn is_packed(&self) -> bool {
        match self.state {
            State::Packed(_) => true,
            State::Trial(..) => false,
            State::Known { packed, .. } => packed,
        }
    }

    /// Pages of so many bytes (before they were packed) took so long, of which the stream made the sender wait for `waiting`.
    pub fn sent(&mut self, bytes: u64, time: Duration, waiting: Duration) {
        self.state = match self.state {
            State::Packed(mut sample) => {
                sample.add(bytes, time, waiting);
                match (sample.bytes >= WINDOW_BYTES, sample.is_waiting()) {
                    (false, _) => State::Packed(sample),
                    (true, true) => State::Packed(Sample::default()),
                    (true, false) => State::Trial(Sample::default(), sample.rate()),
                }
            }
            State::Trial(mut sample, packed) => {
                sample.add(bytes, time, waiting);
                let wins = sample.rate() * 100.0 > packed * f64::from(ADVANTAGE_PERCENT);
                match (
                    sample.bytes >= TRIAL_BYTES_MIN,
                    sample.bytes >= WINDOW_BYTES,
                    wins,
                ) {
                    (true, _, false) => known(true),
                    (_, true, true) => known(false),
                    _ => State::Trial(sample, packed),
                }
            }
            State::Known { packed, left } => match left.checked_sub(bytes) {
                Some(left) if left > 0 => State::Known { packed, left },
                _ => State::Packed(Sample::default()),
            },
        };
    }
}

fn known(packed: bool) -> State {
    State::Known {
        packed,
        left: BELIEVED_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// How many of so many bytes travel packed, over a link and with a packer of these rates, in pieces of a megabyte.
    fn packed_share(link: f64, packer: f64, ratio: f64, total: u64) -> f64 {
        let mut packing = Packing::default();
        let mut packed = 0;
        for _ in 0..total / MIB {
            let wire = MIB as f64 / link;
            let (work, wire) = match packing.is_packed() {
                true => (MIB as f64 / packer, wire * ratio),
                // Reading takes a while, too.
                false => (MIB as f64 / 5e9, wire),
            };
            packed += u64::from(packing.is_packed());
            let waiting = (wire - work).max(0.0);
            packing.sent(
                MIB,
                Duration::from_secs_f64(work + waiting),
                Duration::from_secs_f64(waiting),
            );
        }
        packed as f64 / (total / MIB) as f64
    }

    #[test]
    fn a_slow_link_gets_packed_pages() {
        assert_eq!(
            packed_share(119e6, 500e6, 0.6, 4 << 30),
            1.0,
            "the link limits it"
        );
        assert!(
            packed_share(119e6, 300e6, 0.1, 4 << 30) > 0.98,
            "the packer limits it, and wins"
        );
    }

    #[test]
    fn a_fast_link_gets_plain_ones() {
        assert!(packed_share(3e9, 500e6, 0.3, 8 << 30) < 0.1);
    }

    #[test]
    fn a_link_that_is_a_little_faster_than_the_packer_does_not_change_it() {
        assert!(packed_share(550e6, 500e6, 0.3, 8 << 30) > 0.9);
    }

    #[test]
    fn what_was_found_is_found_again_when_the_link_has_changed() {
        let mut packing = Packing::default();
        for _ in 0..100 {
            let time = Duration::from_millis(if packing.is_packed() { 4 } else { 1 });
            packing.sent(MIB, time, Duration::ZERO);
        }
        assert!(!packing.is_packed());
        for _ in 0..2000 {
            let time = Duration::from_millis(if packing.is_packed() { 4 } else { 9 });
            packing.sent(MIB, time, time / 2);
        }
        assert!(packing.is_packed());
    }
}
