//! How much may be under way: about what the link holds, so that replies do not queue behind the push.
//!
//! ```text
//!            |<------- round trip time, at best ------->|
//!  source ===[push][push][push]=======[push]=============> destination     in flight <= window
//!            ^ a reply joins here                                          window = bandwidth-delay product + a little
//! ```
//!
//! As in BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016): the bandwidth is the largest
//! delivery rate of the last round trips, since a rate can be measured too low in many ways and too high in none; the delay
//! is the shortest round trip of the last five seconds, since a queue only ever makes it longer. What is in flight beyond
//! their product waits in a queue. Unlike BBR there are neither paced bytes nor gain cycles: pieces are sent as
//! acknowledgements come in, and a window a quarter above the product finds more bandwidth by itself.
//!
//! | phase | window | left when |
//! |---|---|---|
//! | startup, unless the path is known | 2 products, so that the rate can double with each round trip | three round trips did not bring 25 % more |
//! | steady | 1.25 products and a piece | - |
//! | drain, every five seconds | half a product | there was no queue for a round trip, which gives the delay anew |
//!
//! Never less than two pieces, so that one is on the link while the other is acknowledged, and never more than the ceiling. When two
//! round trips in a row show a queue of more than a round trip the link has become slower, and the older rates are forgotten.
//!
//! The delay that a reply sees in steady state is a quarter of a round trip and one or two pieces; pieces are
//! sized by the link: half of a round trip, but between a quarter and half a millisecond.

use core::time::Duration;

use crate::estimate::time_for;
use crate::pages::PAGE_SIZE;

/// Pages of a piece before anything is known. The smallest: its own time on the link counts into the first round trip.
const PIECE_PAGES_START: u64 = 1;
/// Bytes under way before anything is known: 0.26 ms of a 1 Gbit/s link.
const WINDOW_START: u64 = 8 * PAGE_SIZE;
/// Pages of a piece at most: a megabyte, the largest frame.
pub const PIECE_PAGES_MAX: u64 = 256;
/// The time that a piece takes on the link at least: each piece costs both hosts system calls, packets and wake-ups, so that single pages keep
/// processors busy and links idle.
const PIECE_TIME_MIN: Duration = Duration::from_micros(250);
/// The time that a piece takes on the link at most.
const PIECE_TIME_MAX: Duration = Duration::from_micros(500);
/// How much the last piece says about how short pages are on the wire.
const SHARE_WEIGHT: f64 = 0.125;
/// Shorter than this pages are not believed to be: the next ones may be whole, and a reply waits behind them.
const SHARE_MIN: f64 = 0.125;
/// How long the shortest round trip is believed.
const ROUND_TRIP_FOR: Duration = Duration::from_secs(5);
/// A rate is forgotten after one to two times so many round trips.
const RATE_ROUNDS: u32 = 5;
/// And not before this: on a short path a few round trips are over in a moment in which a host was busy with something else.
const RATE_FOR: Duration = Duration::from_millis(100);
/// What looks like a queue for less than this may be a busy host.
const QUEUE_MIN: Duration = Duration::from_millis(2);
/// Round trips without growth that end the startup.
const PLATEAU_ROUNDS: u32 = 3;
/// Round trips in a row with a long queue that make the older rates forgotten. One may be a stall of the other end.
const QUEUE_ROUNDS: u32 = 2;

/// What is known of the path before anything was measured on it, from the rounds of pre-copy or the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Path {
    /// The shortest round trip.
    pub round_trip: Option<Duration>,
    /// Bytes per second.
    pub bandwidth: Option<u64>,
}

/// What is remembered of a piece that was sent, until it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    sent_at: Duration,
    /// When the piece was sent whose acknowledgement was the last one then: the rate is never above that of sending.
    acked_sent_at: Duration,
    acked_at: Duration,
    delivered: u64,
    /// There was nothing to send, so that what was delivered says little about the link.
    idle: bool,
}

/// The largest rate of this and the last few round trips.
#[derive(Clone, Copy, Debug, Default)]
struct RateMax {
    now: u64,
    before: u64,
    rounds: u32,
    since: Duration,
}

impl RateMax {
    fn get(&self) -> u64 {
        self.now.max(self.before)
    }

    fn round(&mut self, now: Duration) {
        self.rounds += 1;
        if self.rounds >= RATE_ROUNDS && now.saturating_sub(self.since) >= RATE_FOR {
            *self = RateMax {
                now: 0,
                before: self.now,
                rounds: 0,
                since: now,
            };
        }
    }
}

/// What was seen in one round trip: from one acknowledgement to that of the first piece sent after it.
#[derive(Clone, Copy, Debug, Default)]
struct RoundTrip {
    /// It ends with the acknowledgement of a piece that was sent when so much had been delivered.
    end: u64,
    shortest: Option<Duration>,
    rate: u64,
    /// A piece of it was sent without being held back, so that its rate says little.
    idle: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Startup {
        rate: u64,
        plateau: u32,
    },
    Steady,
    /// Until the delivered bytes reach `until`, which is set when the queue is empty.
    Drain {
        until: Option<u64>,
        shortest: Option<Duration>,
    },
}

/// Keeps count of what is under way. Times are those that the caller passes in, and never go back.
#[derive(Clone, Debug)]
pub struct Pace {
    window_max: u64,
    in_flight: u64,
    delivered: u64,
    acked_at: Duration,
    acked_sent_at: Duration,
    /// What is sent until so much was delivered counts as idle.
    idle_until: u64,
    rate: RateMax,
    round_trip: Option<Duration>,
    round_trip_at: Duration,
    round: RoundTrip,
    queued_rounds: u32,
    /// What is left of a page's bytes on the wire, lately: pages of zeros and packed ones are short.
    share: f64,
    phase: Phase,
}

impl Pace {
    /// A pace on a path of which something may be known, with at most `window_max` bytes under way.
    pub fn new(window_max: u64, path: Path) -> Self {
        let is_known = path.round_trip.is_some() && path.bandwidth.is_some();
        Pace {
            window_max,
            in_flight: 0,
            delivered: 0,
            acked_at: Duration::ZERO,
            acked_sent_at: Duration::ZERO,
            idle_until: 0,
            rate: RateMax {
                now: path.bandwidth.unwrap_or(0),
                ..RateMax::default()
            },
            round_trip: path.round_trip,
            round_trip_at: Duration::ZERO,
            round: RoundTrip::default(),
            queued_rounds: 0,
            share: 1.0,
            phase: match is_known {
                true => Phase::Steady,
                false => Phase::Startup { rate: 0, plateau: 0 },
            },
        }
    }

    /// Bytes under way: sent, not acknowledged.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Bytes per second that the link has shown.
    pub fn bandwidth(&self) -> Option<u64> {
        Some(self.rate.get()).filter(|&rate| rate > 0)
    }

    /// The shortest round trip.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Bytes that may be under way.
    pub fn window(&self) -> u64 {
        let piece = self.expected_bytes(self.piece_pages());
        let product = self.product().unwrap_or(WINDOW_START / 2);
        let wanted = match self.phase {
            Phase::Startup { .. } => product.saturating_mul(2),
            Phase::Steady => product.saturating_add(product / 4).saturating_add(piece),
            Phase::Drain { .. } => product / 2,
        };
        wanted.min(self.window_max).max(2 * piece)
    }

    /// What so many pages will have on the wire, in bytes.
    pub fn expected_bytes(&self, pages: u64) -> u64 {
        (pages as f64 * PAGE_SIZE as f64 * self.share.max(SHARE_MIN)) as u64
    }

    /// True if a piece of so many bytes may be pushed now. A piece may always follow when nothing is under way.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.in_flight == 0 || self.in_flight.saturating_add(bytes) <= self.window()
    }

    /// Pages of the next piece: what the link carries in half a round trip, but at least in a quarter and at most in half a
    /// millisecond.
    pub fn piece_pages(&self) -> u64 {
        let (Some(rate), Some(round_trip)) = (self.bandwidth(), self.round_trip) else {
            return PIECE_PAGES_START;
        };
        let time = (round_trip / 2).clamp(PIECE_TIME_MIN, PIECE_TIME_MAX);
        let pages = bytes_in(rate, time) as f64 / PAGE_SIZE as f64 / self.share.max(SHARE_MIN);
        (pages as u64).clamp(1, PIECE_PAGES_MAX)
    }

    /// Pages of a reply at most: what the link carries in a round trip, or in half a millisecond if that is longer, so that
    /// a reply does not hold up the next one for much longer than it takes anyway. `None` while the bandwidth is not known: single pages that
    /// go to and fro make every link look slow.
    pub fn reply_pages(&self) -> Option<u64> {
        if matches!(self.phase, Phase::Startup { .. }) {
            return None;
        }
        let pages = bytes_in(self.bandwidth()?, self.round_trip?.max(PIECE_TIME_MAX)) / PAGE_SIZE;
        Some(pages.max(1))
    }

    /// A piece is sent.
    pub fn sent(&mut self, now: Duration, bytes: u64) -> Mark {
        if self.in_flight == 0 {
            // What lies between the last acknowledgement and now was idle time.
            self.acked_at = now;
            self.acked_sent_at = now;
        }
        self.in_flight = self.in_flight.saturating_add(bytes);
        Mark {
            sent_at: now,
            acked_sent_at: self.acked_sent_at,
            acked_at: self.acked_at,
            delivered: self.delivered,
            idle: self.delivered < self.idle_until,
        }
    }

    /// A piece that was `assumed` to have so many bytes has `bytes`.
    pub fn corrected(&mut self, assumed: u64, bytes: u64) {
        let share = (bytes as f64 / assumed.max(1) as f64).min(1.0);
        // Pages of zeros lie together: after them the next pieces are whole. Believed too late, each would be many times too long, and with
        // that much under way nothing could follow before it has arrived.
        self.share = share.max(self.share * (1.0 - SHARE_WEIGHT) + share * SHARE_WEIGHT);
        self.in_flight = self.in_flight.saturating_sub(assumed).saturating_add(bytes);
    }

    /// There was room for more, and nothing to send: what is under way says little about the link.
    pub fn idle(&mut self) {
        self.idle_until = self.delivered.saturating_add(self.in_flight).saturating_add(1);
    }

    /// A piece is acknowledged, with the bytes that it has after corrections.
    pub fn acked(&mut self, now: Duration, mark: &Mark, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.delivered = self.delivered.saturating_add(bytes);
        self.acked_at = now;
        self.acked_sent_at = mark.sent_at;
        self.take_round_trip(now, now.saturating_sub(mark.sent_at));
        self.take_rate(now, mark);
        if mark.delivered >= self.round.end {
            self.end_round(now);
        }
        self.drain(now);
    }

    fn take_round_trip(&mut self, now: Duration, time: Duration) {
        let shorter = |known: Option<Duration>| Some(known.map_or(time, |known| known.min(time)));
        self.round.shortest = shorter(self.round.shortest);
        if let Phase::Drain {
            until: Some(_),
            shortest,
        } = &mut self.phase
        {
            *shortest = shorter(*shortest);
        }
        if self.round_trip.is_none_or(|known| time <= known) {
            self.round_trip = Some(time);
            self.round_trip_at = now;
        }
    }

    fn take_rate(&mut self, now: Duration, mark: &Mark) {
        let acking = now.saturating_sub(mark.acked_at);
        let sending = mark.sent_at.saturating_sub(mark.acked_sent_at);
        let bytes = self.delivered - mark.delivered;
        let rate = (bytes as f64 / acking.max(sending).as_secs_f64().max(1e-9)) as u64;
        // Idle samples are too low, not too high: they take nothing away from a maximum.
        self.rate.now = self.rate.now.max(rate);
        self.round.rate = self.round.rate.max(rate);
        self.round.idle |= mark.idle;
    }

    fn end_round(&mut self, now: Duration) {
        let round = self.round;
        self.round = RoundTrip {
            end: self.delivered,
            ..RoundTrip::default()
        };
        if round.idle {
            return;
        }
        self.queued_rounds = if self.is_queued(&round) {
            self.queued_rounds + 1
        } else {
            0
        };
        if self.queued_rounds >= QUEUE_ROUNDS {
            self.queued_rounds = 0;
            self.rate = RateMax {
                now: round.rate,
                since: now,
                ..RateMax::default()
            };
        } else {
            self.rate.round(now);
        }
        if let Phase::Startup { rate, plateau } = self.phase {
            let now = self.rate.get();
            let grew = now >= rate.saturating_add(rate / 4);
            let plateau = if grew { 0 } else { plateau + 1 };
            self.phase = match plateau {
                PLATEAU_ROUNDS.. => Phase::Steady,
                _ => Phase::Startup {
                    rate: rate.max(now),
                    plateau,
                },
            };
        }
    }

    /// True if even the piece that fared best in a round trip waited for longer than a round trip and two pieces, and than a busy host
    /// would make it wait.
    fn is_queued(&self, round: &RoundTrip) -> bool {
        let (Some(shortest), Some(round_trip)) = (round.shortest, self.round_trip) else {
            return false;
        };
        let piece = time_for(self.piece_pages() * PAGE_SIZE, self.rate.get());
        let queue = round_trip.saturating_add(piece.saturating_mul(2)).max(QUEUE_MIN);
        shortest > round_trip.saturating_add(queue)
    }

    /// Once in a while nothing may wait, or the shortest round trip would be that with a queue.
    fn drain(&mut self, now: Duration) {
        match self.phase {
            Phase::Steady if now.saturating_sub(self.round_trip_at) > ROUND_TRIP_FOR => {
                self.phase = Phase::Drain {
                    until: None,
                    shortest: None,
                };
            }
            Phase::Drain { until: None, .. } if self.in_flight <= self.window() => {
                self.phase = Phase::Drain {
                    until: Some(self.delivered.saturating_add(self.in_flight).saturating_add(1)),
                    shortest: None,
                };
            }
            Phase::Drain {
                until: Some(until),
                shortest: Some(shortest),
            } if self.delivered >= until => {
                self.round_trip = Some(shortest);
                self.round_trip_at = now;
                self.phase = Phase::Steady;
            }
            _ => {}
        }
    }

    /// The bandwidth-delay product, in bytes.
    fn product(&self) -> Option<u64> {
        Some(bytes_in(self.bandwidth()?, self.round_trip?))
    }
}

fn bytes_in(rate: u64, time: Duration) -> u64 {
    (rate as f64 * time.as_secs_f64()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::vec::Vec;

    const MBIT: u64 = 1_000_000 / 8;
    const GBIT: u64 = 1000 * MBIT;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn one_whole_piece_ends_what_pages_of_zeros_have_taught() {
        let path = Path {
            round_trip: Some(us(200)),
            bandwidth: Some(100_000_000),
        };
        let mut pace = Pace::new(1 << 20, path);
        let pages = pace.piece_pages();
        let bytes = pages * PAGE_SIZE;
        (0..50).for_each(|_| pace.corrected(bytes, 24));
        assert!(pace.piece_pages() > 4 * pages);
        pace.corrected(bytes, bytes);
        assert_eq!(pace.piece_pages(), pages);
    }

    /// A link with one queue: from each time on it has this rate (bytes per second, 0 for a stall) and round trip.
    struct Link(Vec<(Duration, u64, Duration)>);

    impl Link {
        fn steady(rate: u64, round_trip: Duration) -> Self {
            Link(Vec::from([(Duration::ZERO, rate, round_trip)]))
        }

        /// When `bytes` have left the queue that begin to leave at `at`, and when they are acknowledged.
        fn carry(&self, mut at: Duration, bytes: u64) -> (Duration, Duration) {
            let mut left = bytes as f64;
            for (index, &(_, rate, round_trip)) in self.0.iter().enumerate() {
                let end = self.0.get(index + 1).map_or(Duration::MAX, |next| next.0);
                if at >= end {
                    continue;
                }
                let possible = (end - at).as_secs_f64() * rate as f64;
                if left <= possible {
                    at += Duration::from_secs_f64(left / rate as f64);
                    return (at, at + round_trip);
                }
                left -= possible;
                at = end;
            }
            unreachable!("the last rate has no end");
        }
    }

    /// What was seen in a slice of time.
    #[derive(Debug, Default, Clone, Copy)]
    struct Seen {
        carried: u64,
        /// The longest that a reply would have waited for what was pushed before. Looked at after each piece: it is longest then.
        queue_max: Duration,
    }

    /// Pushes as hard as it may for so many slices.
    fn push(link: &Link, pace: &mut Pace, slice: Duration, slices: usize) -> Vec<Seen> {
        let mut acks: VecDeque<(Duration, Mark, u64)> = VecDeque::new();
        let mut all = std::vec![Seen::default(); slices];
        let (mut now, mut free_at) = (Duration::ZERO, Duration::ZERO);
        loop {
            let Some(seen) = all.get_mut((now.as_nanos() / slice.as_nanos()) as usize) else {
                return all;
            };
            let bytes = pace.piece_pages() * PAGE_SIZE;
            if pace.has_room(bytes) {
                let mark = pace.sent(now, bytes);
                let (free, acked) = link.carry(free_at.max(now), bytes);
                free_at = free;
                acks.push_back((acked, mark, bytes));
                seen.queue_max = seen.queue_max.max(free_at - now);
                continue;
            }
            let (at, mark, bytes) = acks.pop_front().unwrap();
            now = now.max(at);
            seen.carried += bytes;
            pace.acked(now, &mark, bytes);
        }
    }

    fn percent(seen: &Seen, rate: u64, slice: Duration) -> f64 {
        seen.carried as f64 * 100.0 / (rate as f64 * slice.as_secs_f64())
    }

    fn piece_time(pace: &Pace, rate: u64) -> Duration {
        time_for(pace.piece_pages() * PAGE_SIZE, rate)
    }

    #[test]
    fn the_link_is_full_and_replies_do_not_wait() {
        for rate in [10 * MBIT, 100 * MBIT, GBIT, 10 * GBIT, 40 * GBIT] {
            for round_trip in [us(50), us(200), us(1000), us(5000), us(50_000)] {
                let mut pace = Pace::new(1 << 30, Path::default());
                let slice = secs(1).max(round_trip * 30);
                let all = push(&Link::steady(rate, round_trip), &mut pace, slice, 3);
                let piece = piece_time(&pace, rate);
                let what = std::format!("{} Mbit/s, {round_trip:?}, piece {piece:?}: {all:?}", rate / MBIT);
                assert!(
                    all[1..].iter().all(|seen| percent(seen, rate, slice) >= 95.0),
                    "{what}"
                );
                // Where a page takes longer than the round trip, one is on the link and one behind it.
                let pieces = if piece <= round_trip { piece } else { piece * 2 };
                assert!(
                    all[1..].iter().all(|seen| seen.queue_max <= round_trip + pieces),
                    "{what}"
                );
                // While it looks for the bandwidth it may go wrong by a round trip, or by what it begins with.
                let begin = (round_trip + pieces * 2).max(time_for(WINDOW_START, rate));
                assert!(all[0].queue_max <= begin, "{what}");
            }
        }
    }

    #[test]
    fn a_path_that_is_known_is_full_from_the_start() {
        for rate in [GBIT, 10 * GBIT] {
            let path = Path {
                round_trip: Some(us(50_000)),
                bandwidth: Some(rate),
            };
            let mut pace = Pace::new(1 << 30, path);
            let slice = us(500_000);
            let all = push(&Link::steady(rate, us(50_000)), &mut pace, slice, 2);
            // The first acknowledgement takes a round trip.
            assert!(
                percent(&all[0], rate, slice) >= 88.0 && percent(&all[1], rate, slice) >= 95.0,
                "{all:?}"
            );
            // All of the window goes out at once.
            assert!(
                all[0].queue_max <= us(63_000) && all[1].queue_max <= us(13_000),
                "{all:?}"
            );
        }
    }

    #[test]
    fn the_ceiling_holds() {
        let mut pace = Pace::new(1 << 20, Path::default());
        let all = push(&Link::steady(GBIT, us(50_000)), &mut pace, secs(1), 3);
        // 1 MiB for each round trip.
        assert!((19 << 20..=21 << 20).contains(&all[2].carried), "{all:?}");
    }

    #[test]
    fn it_follows_a_link_that_becomes_slower_and_faster() {
        for round_trip in [us(200), us(5000), us(20_000)] {
            let of = |second, rate| (secs(second), rate, round_trip);
            let link = Link(Vec::from([of(0, GBIT), of(4, 100 * MBIT), of(8, GBIT)]));
            let mut pace = Pace::new(1 << 30, Path::default());
            let all = push(&link, &mut pace, secs(1), 12);
            // The second in which it changes and the one after it are given to it.
            for (second, rate) in [
                (2, GBIT),
                (6, 100 * MBIT),
                (7, 100 * MBIT),
                (10, GBIT),
                (11, GBIT),
            ] {
                let seen = &all[second];
                assert!(
                    percent(seen, rate, secs(1)) >= 90.0,
                    "{round_trip:?}, second {second}: {all:?}"
                );
                let bound = round_trip + us(1000);
                assert!(
                    seen.queue_max <= bound,
                    "{round_trip:?}, second {second}: {all:?}"
                );
            }
        }
    }

    #[test]
    fn after_a_stall_of_seconds_it_goes_on_as_before() {
        for round_trip in [us(200), us(20_000)] {
            let of = |second, rate| (secs(second), rate, round_trip);
            let link = Link(Vec::from([of(0, GBIT), of(2, 0), of(5, GBIT)]));
            let mut pace = Pace::new(1 << 30, Path::default());
            let all = push(&link, &mut pace, secs(1), 8);
            for second in [1, 5, 6, 7] {
                assert!(
                    percent(&all[second], GBIT, secs(1)) >= 90.0,
                    "{round_trip:?}, second {second}: {all:?}"
                );
            }
            assert!(
                all[6..].iter().all(|seen| seen.queue_max <= round_trip + us(500)),
                "{all:?}"
            );
        }
    }

    #[test]
    fn its_own_queue_is_not_taken_for_distance() {
        let mut pace = Pace::new(1 << 30, Path::default());
        let all = push(&Link::steady(GBIT, us(5000)), &mut pace, secs(1), 40);
        assert!(
            all[1..].iter().all(|seen| percent(seen, GBIT, secs(1)) >= 97.0),
            "{all:?}"
        );
        assert!(all[1..].iter().all(|seen| seen.queue_max <= us(5000)), "{all:?}");
        assert!(pace.round_trip().unwrap() <= us(6000), "{:?}", pace.round_trip());
    }

    #[test]
    fn a_longer_way_is_found_out_and_believed() {
        let of = |second, round_trip| (secs(second), GBIT, round_trip);
        let link = Link(Vec::from([of(0, us(1000)), of(3, us(20_000))]));
        let mut pace = Pace::new(1 << 30, Path::default());
        let all = push(&link, &mut pace, secs(1), 14);
        assert!(
            (us(20_000)..us(22_000)).contains(&pace.round_trip().unwrap()),
            "{:?}",
            pace.round_trip()
        );
        assert!(
            all[11..].iter().all(|seen| percent(seen, GBIT, secs(1)) >= 90.0),
            "{all:?}"
        );
    }

    #[test]
    fn pauses_of_the_pusher_say_nothing_about_the_link() {
        let mut pace = Pace::new(1 << 30, Path::default());
        let link = Link::steady(GBIT, us(5000));
        push(&link, &mut pace, secs(1), 2);
        let window = pace.window();
        // What was left under way, and then a page every ten milliseconds for four seconds.
        let mut now = secs(3);
        let left = pace.in_flight();
        let mark = pace.sent(secs(2), 0);
        pace.acked(now, &mark, left);
        for _ in 0..400 {
            pace.idle();
            let mark = pace.sent(now, PAGE_SIZE);
            pace.acked(link.carry(now, PAGE_SIZE).1, &mark, PAGE_SIZE);
            now += us(10_000);
        }
        assert!(
            pace.window() >= window * 9 / 10,
            "{} after {window}",
            pace.window()
        );
    }
}
