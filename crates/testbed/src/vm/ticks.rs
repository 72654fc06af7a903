//! What a guest says about itself, and what a move did to it.

use std::time::Instant;

/// A whole line of a serial line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When its end arrived.
    pub at: Instant,
    /// The line without its end.
    pub text: String,
}

/// All that was heard so far.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Whole lines, in order.
    pub lines: Vec<Line>,
    /// What came behind the last of them: the beginning of a line.
    pub rest: String,
}

/// One line of the workload. `tests/guest/README.md` says what is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// When it arrived.
    pub at: Instant,
    /// Its number; the first is 0.
    pub seq: u64,
    /// Pages written.
    pub pages: u64,
    /// A checksum of all that was written, in hexadecimal.
    pub checksum: u64,
    /// Pages that did not hold what was written to them last.
    pub errors: u64,
    /// How many times the whole disk was read.
    pub disk_passes: u64,
    /// Blocks of the disk that were not as at the first time.
    pub disk_errors: u64,
    /// Another one after each boot.
    pub boot: String,
    /// CLOCK_MONOTONIC in seconds.
    pub monotonic: f64,
    /// CLOCK_REALTIME in seconds.
    pub real: f64,
    /// The longest time between two rounds of the loop that prints, since the last tick, in ms of the guest.
    pub gap_ms: f64,
    /// The same of the threads that write.
    pub writers_gap_ms: f64,
}

impl Tick {
    /// Reads a line; `None` if it is anything but a whole tick.
    pub fn parse(at: Instant, line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        if words.next()? != "T" {
            return None;
        }
        let seq = words.next()?.parse().ok()?;
        let mut value = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        let tick = Self {
            at,
            seq,
            pages: value("n")?.parse().ok()?,
            checksum: u64::from_str_radix(value("chk")?, 16).ok()?,
            errors: value("err")?.parse().ok()?,
            disk_passes: value("disk")?.parse().ok()?,
            disk_errors: value("derr")?.parse().ok()?,
            boot: value("boot")?.to_string(),
            monotonic: value("t")?.parse().ok()?,
            real: value("real")?.parse().ok()?,
            gap_ms: value("gap")?.parse().ok()?,
            // Numbers end with a digit behind the point: "1" of "10.0" would be a number as well.
            writers_gap_ms: value("wgap")?.parse().ok().filter(|_| has_one_decimal(line))?,
        };
        words.next().is_none().then_some(tick)
    }
}

fn has_one_decimal(line: &str) -> bool {
    line.rsplit_once('.').is_some_and(|(_, digits)| digits.len() == 1)
}

impl Record {
    /// Takes in what has arrived at `at`.
    pub(crate) fn hear(&mut self, at: Instant, bytes: &[u8]) {
        self.rest += &String::from_utf8_lossy(bytes);
        while let Some((line, rest)) = self.rest.split_once('\n') {
            let text = line.trim_end_matches('\r').to_string();
            self.rest = rest.to_string();
            self.lines.push(Line { at, text });
        }
    }

    /// The whole ticks.
    pub fn ticks(&self) -> Vec<Tick> {
        let parse = |line: &Line| Tick::parse(line.at, &line.text);
        self.lines.iter().filter_map(parse).collect()
    }

    /// This, and what was heard at another place from then on. A line that was cut in two becomes one again.
    pub fn joined(&self, later: &Record) -> Record {
        let mut all = self.clone();
        for (index, line) in later.lines.iter().enumerate() {
            let before = if index == 0 {
                std::mem::take(&mut all.rest)
            } else {
                String::new()
            };
            let text = before.trim_end_matches('\r').to_string() + &line.text;
            all.lines.push(Line { at: line.at, text });
        }
        all
    }
}

/// What a move did to a guest that has seen nothing of it but a pause. One line may be lost on the way: that was also seen when QEMU itself
/// moved a machine. None may come twice, and the guest's clock may not go back.
///
/// # Errors
/// A sentence with the first two ticks of which one does not follow the other.
pub fn sound(source: &Record, destination: &Record) -> Result<Gap, String> {
    let seen = gap(source, destination).ok_or("no tick from one of the ends")?;
    let all = source.joined(destination).ticks();
    let broken: Vec<&[Tick]> = all.windows(2).filter(|pair| !follows(pair)).collect();
    let lost = |pair: &[Tick]| matches!(pair, [a, b] if b.seq == a.seq + 2 && b.boot == a.boot && b.monotonic >= a.monotonic);
    match broken.as_slice() {
        _ if seen.errors > 0 => Err(format!("the guest has found wrong content: {:?}", all.last())),
        [] => Ok(seen),
        [pair] if lost(pair) => {
            eprintln!("one line of the serial line was lost: {pair:?}");
            Ok(seen)
        }
        [pair, ..] => Err(format!("a tick does not follow the one before: {pair:?}")),
    }
}

/// Whether a tick is the next one, of the same boot, and not earlier by the guest's clock.
fn follows(pair: &[Tick]) -> bool {
    matches!(pair, [a, b] if b.seq == a.seq + 1 && b.boot == a.boot && b.monotonic >= a.monotonic)
}

/// What a move did to a guest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gap {
    /// Between the last tick from the source and the first from the destination, in ms.
    pub ms: f64,
    /// The same as the guest saw it, by its CLOCK_MONOTONIC.
    pub guest_ms: f64,
    /// Whether every tick came exactly once, all of the same boot, and the guest's clock never went back.
    pub contiguous: bool,
    /// Errors in memory and on the disk that the guest has found by its last tick.
    pub errors: u64,
}

/// Compares what was heard at the source and then at the destination; `None` if there is no tick from either.
/// A line may begin at the source and end at the destination.
pub fn gap(source: &Record, destination: &Record) -> Option<Gap> {
    let all = source.joined(destination).ticks();
    let first = source.ticks().len();
    let (before, after) = (all.get(first.checked_sub(1)?)?, all.get(first)?);
    let last = all.last()?;
    Some(Gap {
        ms: after.at.duration_since(before.at).as_secs_f64() * 1e3,
        guest_ms: (after.monotonic - before.monotonic) * 1e3,
        contiguous: all.windows(2).all(follows),
        errors: last.errors + last.disk_errors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64) -> String {
        format!(
            "T {seq} n=5 chk=00ff err=0 disk=1 derr=0 boot=abcd1234 t={seq}.5 real=1.5 gap=1.0 wgap=10.5\r\n"
        )
    }

    fn heard(pieces: &[&str]) -> Record {
        let mut record = Record::default();
        for piece in pieces {
            record.hear(Instant::now(), piece.as_bytes());
        }
        record
    }

    fn contiguous(source: &str, destination: &str) -> bool {
        gap(&heard(&[source]), &heard(&[destination])).unwrap().contiguous
    }

    #[test]
    fn a_tick_is_whole_or_none() {
        let text = line(7);
        let whole = text.trim_end();
        assert_eq!(Tick::parse(Instant::now(), whole).unwrap().seq, 7);
        for end in 0..whole.len() {
            assert_eq!(Tick::parse(Instant::now(), &whole[..end]), None, "{end}");
        }
    }

    #[test]
    fn a_line_cut_anywhere_by_the_move_is_one_line() {
        let (before, cut, after) = (line(1), line(2), line(3));
        for at in 0..=cut.len() {
            let (head, tail) = cut.split_at(at);
            assert!(
                contiguous(&(before.clone() + head), &(tail.to_string() + &after)),
                "{at}"
            );
        }
    }

    #[test]
    fn one_line_may_be_lost_and_none_come_twice() {
        let sound =
            |source: &str, destination: &str| sound(&heard(&[source]), &heard(&[destination])).is_ok();
        assert!(sound(&line(1), &line(2)) && sound(&line(1), &line(3)));
        assert!(!sound(&line(1), &line(4)) && !sound(&line(1), &(line(3) + &line(5))));
        assert!(!sound(&line(1), &(line(1) + &line(2))), "twice");
        assert!(!sound(&line(1), &line(2).replace("err=0", "err=1")));
    }

    #[test]
    fn lost_and_repeated_ticks_are_found() {
        assert!(!contiguous(&line(1), &line(3)), "lost");
        assert!(!contiguous(&line(1), &(line(1) + &line(2))), "twice");
        assert!(
            !contiguous(&(line(1) + "T 2 n="), &(line(3) + &line(4))),
            "lost the end"
        );
        assert!(
            !contiguous(&line(1), &("00ff err=0\r\n".to_string() + &line(3))),
            "lost the beginning"
        );
        let again = line(2).replace("abcd", "dcba");
        assert!(!contiguous(&line(1), &again), "another boot");
        assert!(gap(&heard(&[&line(1)]), &Record::default()).is_none());
    }
}
