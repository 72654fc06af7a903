//! What a real migration recorded, decided again: the same is told to the same decisions at the same times, and they must decide
//! the same, in the same order.
//!
//! A trace comes from outside. It is read line by line, with limits on everything, and none can make this panic.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::Serialize;
use whimbrel_policy::fact::Fact;
use whimbrel_policy::postcopy::Residual;
use whimbrel_policy::strategy::Named;
use whimbrel_policy::trace::{Head, Line, Step, FORMAT, LINE_BYTES_MAX, TRACE_BYTES_MAX};
use whimbrel_policy::{Event, Migration, PageRun};

/// Pages that all events of a trace name, at most, so that no set outgrows this machine's memory: 16 TiB in four passes.
const PAGES_MAX: u64 = 1 << 34;
/// Characters of a decision that are shown.
const SHOWN_CHARS_MAX: usize = 240;

/// A trace whose decisions are all as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The version of whimbrel that recorded it.
    pub whimbrel: String,
    /// How it decided.
    pub strategy: Named,
    /// What it was told.
    pub events: u64,
    /// Orders and answers, each the same as the recorded one.
    pub decisions: u64,
    /// Whether the trace holds all that its recorder saw. It may have become too long, or the recorder may have been killed.
    pub is_complete: bool,
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replayed {
            strategy,
            events,
            decisions,
            ..
        } = self;
        write!(
            f,
            "{strategy}: {events} events, {decisions} decisions, all as recorded"
        )?;
        match self.is_complete {
            true => Ok(()),
            false => f.write_str("; the trace ends before the migration"),
        }
    }
}

/// The first decision that is not the recorded one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Which line of the trace, from 1.
    pub line: u64,
    /// When, on the clock of that part of the migration.
    pub at: Duration,
    /// What the trace says, as there; of a long one the part where they differ.
    pub recorded: String,
    /// What was decided now.
    pub decided: String,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Divergence {
            line,
            at,
            recorded,
            decided,
        } = self;
        write!(
            f,
            "line {line}, at {at:?}: recorded was {recorded}, decided is {decided}"
        )
    }
}

/// Why a trace is not one of a migration that was decided like this.
#[derive(Debug, thiserror::Error)]
pub enum NotReplayed {
    /// It cannot be read.
    #[error("cannot read the trace: {0}")]
    Unread(#[from] io::Error),
    /// It says something that no recorder writes.
    #[error("line {line} of the trace: {what}")]
    Malformed {
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// Another decision.
    #[error("{0}")]
    Divergence(Divergence),
}

/// Replays a trace.
///
/// # Errors
/// [`NotReplayed::Divergence`] at the first decision that is another one.
pub fn replay(trace: impl BufRead) -> Result<Replayed, NotReplayed> {
    let mut lines = Lines::new(trace);
    let Some(head) = lines.next::<Head>()? else {
        return Err(lines.wrong("there is none"));
    };
    if head.format != FORMAT {
        let what = format!("format {} is not known here, only {FORMAT}", head.format);
        return Err(lines.wrong(what));
    }
    let mut replay = Replay::new(head);
    while let Some(line) = lines.next::<Line>()? {
        let at = line.at();
        replay.step(line).map_err(|fault| match fault {
            Fault::Malformed(what) => lines.wrong(what),
            Fault::Other { recorded, decided } => NotReplayed::Divergence(Divergence {
                line: lines.number,
                at,
                recorded,
                decided,
            }),
        })?;
    }
    Ok(Replayed {
        strategy: replay.head.strategy,
        whimbrel: replay.head.whimbrel,
        events: replay.events,
        decisions: replay.decisions,
        is_complete: replay.ending == Some(true),
    })
}

/// The lines of a trace. A piece of a line at the end, as a recorder leaves it that was killed, is left out.
struct Lines<R> {
    trace: R,
    line: Vec<u8>,
    number: u64,
    bytes: u64,
}

impl<R: BufRead> Lines<R> {
    fn new(trace: R) -> Self {
        Self {
            trace,
            line: Vec::new(),
            number: 0,
            bytes: 0,
        }
    }

    fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, NotReplayed> {
        self.line.clear();
        self.number += 1;
        let mut some = (&mut self.trace).take(LINE_BYTES_MAX + 1);
        let bytes = some.read_until(b'\n', &mut self.line)? as u64;
        self.bytes += bytes;
        if bytes > LINE_BYTES_MAX || self.bytes > TRACE_BYTES_MAX + LINE_BYTES_MAX {
            return Err(self.wrong("longer than any that is recorded"));
        }
        if self.line.last() != Some(&b'\n') {
            return Ok(None);
        }
        let read = serde_json::from_slice(&self.line);
        read.map(Some).map_err(|error| self.wrong(error.to_string()))
    }

    fn wrong(&self, what: impl Into<String>) -> NotReplayed {
        NotReplayed::Malformed {
            line: self.number,
            what: what.into(),
        }
    }
}

/// Why a line is not replayed.
enum Fault {
    Malformed(String),
    Other { recorded: String, decided: String },
}

impl From<&str> for Fault {
    fn from(what: &str) -> Self {
        Fault::Malformed(what.to_owned())
    }
}

/// The decisions, as far as they were replayed.
struct Replay {
    head: Head,
    migration: Migration,
    /// Why the last event was not taken in.
    refused: Option<String>,
    residual: Option<Residual>,
    last: Duration,
    pages: u64,
    events: u64,
    decisions: u64,
    /// True if nothing is missing.
    ending: Option<bool>,
}

impl Replay {
    fn new(head: Head) -> Self {
        Self {
            migration: Migration::new(head.strategy.build(), head.limits, head.hints),
            head,
            refused: None,
            residual: None,
            last: Duration::ZERO,
            pages: 0,
            events: 0,
            decisions: 0,
            ending: None,
        }
    }

    fn step(&mut self, line: Line<'_>) -> Result<(), Fault> {
        let now = line.at();
        if self.ending.is_some() {
            return Err("something follows the end".into());
        }
        if !matches!(line.step, Step::Serve { .. }) && now < self.last {
            return Err("time runs backwards".into());
        }
        self.last = now;
        self.refusal(&line.step)?;
        match line.step {
            Step::Refused(_) => {}
            Step::End => self.ending = Some(true),
            Step::Cut => self.ending = Some(false),
            step @ (Step::Event(_) | Step::Order(_) | Step::Serve { .. }) => self.round(now, step)?,
            step => self.residue(now, step)?,
        }
        Ok(())
    }

    /// An event that was not taken in is followed by the error, and no other is.
    fn refusal(&mut self, step: &Step<'_>) -> Result<(), Fault> {
        match (self.refused.take(), step) {
            (None, Step::Refused(why)) => Err(differ(why, "taken in")),
            (None, _) => Ok(()),
            (Some(decided), Step::Refused(why)) => self.same(decided.as_str(), &**why),
            (Some(decided), _) => Err(differ("taken in", &decided)),
        }
    }

    /// What a [`Migration`] saw.
    fn round(&mut self, now: Duration, step: Step<'_>) -> Result<(), Fault> {
        if self.residual.is_some() {
            return Err("the rounds are over".into());
        }
        match step {
            Step::Event(event) => {
                self.pages = self.pages.saturating_add(pages_of(&event));
                if self.pages > PAGES_MAX {
                    return Err("more pages than any host has".into());
                }
                self.events += 1;
                let handled = self.migration.handle(now, event.into_owned());
                self.refused = handled.err().map(|why| why.to_string());
                Ok(())
            }
            Step::Order(recorded) => {
                let decided = self.migration.poll(now);
                self.same(&decided, &*recorded)
            }
            Step::Serve { pages, path } => {
                if self.migration.residual() != &*pages {
                    return Err(differ(&*pages, self.migration.residual()));
                }
                let (order, limits) = (self.head.prepaging.order(), self.head.residual_limits);
                self.residual = Some(Residual::new(now, pages.into_owned(), order, limits, path));
                self.decisions += 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What a [`Residual`] saw.
    fn residue(&mut self, now: Duration, step: Step<'_>) -> Result<(), Fault> {
        let residual = self.residual.as_mut();
        let residual = residual.ok_or("the rounds are not over yet")?;
        match step {
            Step::Fault {
                fault,
                answer: recorded,
            } => {
                let decided = residual.fault(fault);
                self.events += 1;
                return self.same(&decided, &recorded);
            }
            Step::Ordered(recorded) => {
                let decided = residual.poll(now);
                return self.same(&decided, &*recorded);
            }
            Step::Aim { thread, page } => residual.aim(thread, page),
            Step::Hurry => residual.hurry(),
            Step::Told(event) => residual.handle(now, event.into_owned()),
            _ => {}
        }
        self.events += 1;
        Ok(())
    }

    fn same<T: PartialEq + Serialize + ?Sized>(&mut self, decided: &T, recorded: &T) -> Result<(), Fault> {
        if decided != recorded {
            return Err(differ(recorded, decided));
        }
        self.decisions += 1;
        Ok(())
    }
}

/// Pages of an event from which sets are made. Those that are only taken away may be very long runs.
fn pages_of(event: &Event) -> u64 {
    let count = |runs: &[PageRun]| {
        runs.iter()
            .fold(0u64, |pages, run| pages.saturating_add(run.count))
    };
    let fact = |pages: u64, fact: &Fact| pages.saturating_add(fact.run.count);
    match event {
        Event::Scanned(scan) => [&scan.written, &scan.urgent]
            .into_iter()
            .chain(&scan.present)
            .fold(0u64, |pages, runs| pages.saturating_add(count(runs))),
        Event::Sent(sent) => [&sent.zero, &sent.rewritten, &sent.failed]
            .into_iter()
            .fold(0u64, |pages, runs| pages.saturating_add(count(runs))),
        Event::Facts(facts) => facts.iter().fold(0, fact),
        Event::Fetched(runs) => count(runs),
        _ => 0,
    }
}

/// Both as a trace says them, cut around the first difference.
fn differ(recorded: &(impl Serialize + ?Sized), decided: &(impl Serialize + ?Sized)) -> Fault {
    // What came out of JSON goes into it.
    let text = |value: serde_json::Result<String>| value.unwrap_or_default();
    let recorded = text(serde_json::to_string(recorded));
    let decided = text(serde_json::to_string(decided));
    let alike = recorded.chars().zip(decided.chars());
    let alike = alike
        .take_while(|(recorded, decided)| recorded == decided)
        .count();
    Fault::Other {
        recorded: shown(&recorded, alike),
        decided: shown(&decided, alike),
    }
}

fn shown(text: &str, from: usize) -> String {
    let length = text.chars().count();
    if length <= SHOWN_CHARS_MAX {
        return text.to_owned();
    }
    let first = from
        .saturating_sub(SHOWN_CHARS_MAX / 2)
        .min(length - SHOWN_CHARS_MAX);
    let part: String = text.chars().skip(first).take(SHOWN_CHARS_MAX).collect();
    let before = if first > 0 { "..." } else { "" };
    let after = if first + SHOWN_CHARS_MAX < length {
        "..."
    } else {
        ""
    };
    format!("{before}{part}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use whimbrel_policy::postcopy::{self, Limits, Path, PieceId, ThreadId};
    use whimbrel_policy::{Hints, Limits as Goals};
    use whimbrel_policy::{Order, Page, PostCopy, Scan, Sent, SpaceId};

    /// A migration that stops the workload first: two pages, one of them zero. By hand, from the definition of orders and events.
    const STOPPED: &str = r#"{"format":1,"whimbrel":"0.1.0","strategy":"stopcopy","limits":{"downtime_max":{"secs":0,"nanos":50000000},"rounds_max":30,"traffic_percent_max":300,"bandwidth_max":null},"hints":{"memory_pages":0,"state_bytes":524288,"fixed_cost":{"secs":0,"nanos":20000000},"bandwidth":null},"prepaging":{"bubbling":{"pivots_max":16}},"residual_limits":{"bandwidth_max":null,"reply_pages_max":16,"window_max":33554432}}
{"at_ns":1000,"step":{"order":"freeze"}}
{"at_ns":2000,"step":{"event":"frozen"}}
{"at_ns":2000,"step":{"order":"capture"}}
{"at_ns":3000,"step":{"event":{"captured":{"state_bytes":77}}}}
{"at_ns":3000,"step":{"order":"scan-last"}}
{"at_ns":4000,"step":{"event":{"scanned":{"written":[],"lost":[],"present":[[0,10,2]],"urgent":[]}}}}
{"at_ns":4000,"step":{"order":{"send":{"runs":[[0,10,2]],"skip_rewritten":false}}}}
{"at_ns":5000,"step":{"event":{"sent":{"zero":[[0,11,1]],"rewritten":[],"failed":[],"wire_bytes":4200,"page_bytes":4096,"busy":{"secs":0,"nanos":900}}}}}
{"at_ns":5000,"step":{"order":"hand-over"}}
{"at_ns":5000,"step":"end"}
"#;

    fn replayed(text: &str) -> Result<Replayed, NotReplayed> {
        replay(text.as_bytes())
    }

    fn divergence(text: &str) -> Divergence {
        match replayed(text) {
            Err(NotReplayed::Divergence(divergence)) => divergence,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_is_decided_in_the_same_order() {
        let replayed = replayed(STOPPED).unwrap();
        assert_eq!((replayed.events, replayed.decisions), (4, 5));
        assert_eq!(
            replayed.to_string(),
            "stopcopy: 4 events, 5 decisions, all as recorded"
        );
        assert!(replayed.is_complete);
    }

    #[test]
    fn another_order_is_found_at_its_line() {
        let found = divergence(&STOPPED.replace(r#""runs":[[0,10,2]]"#, r#""runs":[[0,10,1]]"#));
        assert_eq!((found.line, found.at), (8, Duration::from_nanos(4000)));
        assert_eq!(
            found.to_string(),
            r#"line 8, at 4µs: recorded was {"send":{"runs":[[0,10,1]],"skip_rewritten":false}}, "#
                .to_owned()
                + r#"decided is {"send":{"runs":[[0,10,2]],"skip_rewritten":false}}"#
        );
        // Something else was told: it shows with the next order.
        let found = divergence(&STOPPED.replace(r#""present":[[0,10,2]]"#, r#""present":[[0,10,3]]"#));
        assert_eq!(found.line, 8);
    }

    #[test]
    fn what_was_refused_is_refused_again() {
        let late = r#"{"at_ns":2000,"step":{"event":"frozen"}}"#;
        let twice = STOPPED.replace(late, &format!("{late}\n{late}"));
        let found = divergence(&twice);
        assert_eq!((found.line, found.recorded.as_str()), (5, "\"taken in\""));
        let why = r#"{"at_ns":2000,"step":{"refused":"the event Frozen does not belong into the phase capture of a migration"}}"#;
        let refused = STOPPED.replace(late, &format!("{late}\n{late}\n{why}"));
        assert_eq!(replayed(&refused).unwrap().decisions, 6);
        let (first, rest) = STOPPED.split_once(late).unwrap();
        let found = divergence(&format!("{first}{late}\n{why}{rest}"));
        assert_eq!((found.line, found.decided.as_str()), (4, "\"taken in\""));
    }

    #[test]
    fn one_that_was_cut_is_replayed_as_far_as_it_goes() {
        let line_ends: Vec<_> = STOPPED.match_indices('\n').map(|(at, _)| at + 1).collect();
        for end in line_ends[0]..STOPPED.len() {
            let replayed = replayed(&STOPPED[..end]).unwrap();
            assert!(!replayed.is_complete, "{end}");
            let lines = line_ends.iter().filter(|&&at| at <= end).count() as u64;
            assert_eq!(replayed.events + replayed.decisions, lines - 1);
        }
        let full = STOPPED.replace(r#""end""#, r#""cut""#);
        assert!(!replayed(&full).unwrap().is_complete);
    }

    #[test]
    fn what_no_recorder_writes_is_an_error_with_its_line() {
        let wrong = |from: &str, to: &str| match replayed(&STOPPED.replacen(from, to, 1)) {
            Err(NotReplayed::Malformed { line, what }) => (line, what),
            other => panic!("{other:?}"),
        };
        assert_eq!(wrong(r#""format":1"#, r#""format":2"#).0, 1);
        assert_eq!(wrong("freeze", "froze").0, 2);
        assert_eq!(
            wrong(r#""at_ns":3000"#, r#""at_ns":1"#),
            (5, "time runs backwards".into())
        );
        assert_eq!(wrong(r#""event":"frozen""#, r#""told":"link-lost""#).0, 3);
        let many = wrong(
            "[[0,10,2]]",
            &format!("[{}]", vec!["[0,0,1073741824]"; 17].join(",")),
        );
        assert_eq!(many, (7, "more pages than any host has".into()));
        assert!(matches!(
            replayed(&format!("{STOPPED}{{\"at_ns\":5000,\"step\":\"end\"}}\n")),
            Err(NotReplayed::Malformed { line: 12, .. })
        ));
        assert!(matches!(
            replayed(""),
            Err(NotReplayed::Malformed { line: 1, .. })
        ));
    }

    #[test]
    fn long_decisions_are_shown_where_they_differ() {
        let long = |last: u64| (0..1000).chain([last]).collect::<Vec<u64>>();
        let Fault::Other { recorded, decided } = differ(&long(7), &long(8)) else {
            panic!("malformed")
        };
        assert!(recorded.ends_with("999,7]") && decided.ends_with("999,8]"));
        assert!(recorded.starts_with("...") && recorded.len() < 300);
    }

    fn run(first: u64, count: u64) -> PageRun {
        PageRun {
            space: SpaceId(0),
            first,
            count,
        }
    }

    /// Writes what the decisions see, one millisecond after the other.
    struct Pen(String, u64);

    impl Pen {
        fn write(&mut self, step: Step<'_>) -> Duration {
            self.1 += 1_000_000;
            let line = Line { at_ns: self.1, step };
            self.0 += &serde_json::to_string(&line).unwrap();
            self.0.push('\n');
            line.at()
        }

        fn next(&self) -> Duration {
            Duration::from_nanos(self.1 + 1_000_000)
        }

        fn handle(&mut self, migration: &mut Migration, event: Event) {
            let now = self.write(Step::Event(std::borrow::Cow::Borrowed(&event)));
            migration.handle(now, event).unwrap();
        }

        fn tell(&mut self, residual: &mut Residual, event: postcopy::Event) {
            let now = self.write(Step::Told(std::borrow::Cow::Borrowed(&event)));
            residual.handle(now, event);
        }
    }

    /// A post-copy migration with a lost link, a refused fault and a hurry in it.
    fn lazily() -> String {
        let text = STOPPED.lines().next().unwrap().replace("stopcopy", "postcopy") + "\n";
        let mut pen = Pen(text, 0);
        let mut migration = Migration::new(Box::new(PostCopy), Goals::default(), Hints::default());
        loop {
            let order = migration.poll(pen.next());
            pen.write(Step::Order(std::borrow::Cow::Borrowed(&order)));
            let scan = Scan {
                written: vec![run(0, 900)],
                present: (order == Order::ScanLast).then(|| vec![run(0, 900)]),
                urgent: vec![run(5, 2)],
                ..Scan::default()
            };
            let event = match order {
                Order::Scan | Order::ScanLast => Event::Scanned(scan),
                Order::Send { .. } => Event::Sent(Sent::default()),
                Order::Freeze => Event::Frozen,
                Order::Capture => Event::Captured { state_bytes: 9 },
                Order::HandOver => break,
                _ => continue,
            };
            pen.handle(&mut migration, event);
        }
        let (pages, path) = (migration.residual().clone(), Path::default());
        let step = Step::Serve {
            pages: std::borrow::Cow::Borrowed(&pages),
            path,
        };
        pen.1 = 0;
        let now = pen.write(step);
        let order = postcopy::Named::Bubbling { pivots_max: 16 }.order();
        let mut residual = Residual::new(now, pages, order, Limits::default(), path);
        serve(&mut pen, &mut residual);
        pen.write(Step::End);
        pen.0
    }

    fn serve(pen: &mut Pen, residual: &mut Residual) {
        for turn in 0u64.. {
            let fault = postcopy::Fault {
                page: Page::from((0, turn * 37 % 950)),
                thread: ThreadId(turn as u32 % 3),
                repeated: turn % 5 == 0,
            };
            let answer = residual.fault(fault);
            pen.write(Step::Fault { fault, answer });
            let order = residual.poll(pen.next());
            pen.write(Step::Ordered(std::borrow::Cow::Borrowed(&order)));
            match order {
                postcopy::Order::Reply { piece, .. } | postcopy::Order::Push { piece, .. } => {
                    sent(pen, residual, piece);
                }
                postcopy::Order::Wait { .. } => {}
                postcopy::Order::Done => break,
            }
            if turn == 3 {
                pen.tell(residual, postcopy::Event::LinkLost);
                let missing = residual_pages(residual);
                pen.tell(residual, postcopy::Event::LinkBack { missing });
            }
            if turn == 6 {
                residual.hurry();
                pen.write(Step::Hurry);
            }
        }
    }

    fn residual_pages(residual: &Residual) -> whimbrel_policy::Pages {
        let owed = residual.owed_pages();
        whimbrel_policy::Pages::from_runs(&[run(900 - owed, owed)]).unwrap()
    }

    fn sent(pen: &mut Pen, residual: &mut Residual, piece: PieceId) {
        let event = postcopy::Event::Sent {
            piece,
            wire_bytes: 4000,
            zero_pages: 0,
            unreadable: Vec::new(),
        };
        pen.tell(residual, event);
        pen.tell(residual, postcopy::Event::Acked { piece });
    }

    #[test]
    fn what_follows_after_the_switch_over_is_replayed_too() {
        let text = lazily();
        let replayed = replayed(&text).unwrap();
        assert!(replayed.is_complete && replayed.decisions > 20, "{replayed:?}");
        let found = divergence(&text.replacen(
            r#"{"serve":{"pages":[[0,0,5]"#,
            r#"{"serve":{"pages":[[0,0,4]"#,
            1,
        ));
        assert!(text
            .lines()
            .nth(found.line as usize - 1)
            .unwrap()
            .contains("serve"));
        let found = divergence(&text.replacen("\"queued\"", "\"settled\"", 1));
        assert!(text
            .lines()
            .nth(found.line as usize - 1)
            .unwrap()
            .contains("queued"));
    }

    /// One number of a line becomes another.
    fn with_number(line: &str, which: usize, number: u64) -> String {
        let digits = |c: char| c.is_ascii_digit();
        let starts: Vec<_> = (0..line.len())
            .filter(|&at| line[at..].starts_with(digits) && !line[..at].ends_with(digits))
            .collect();
        let Some(&start) = starts.get(which % starts.len().max(1)) else {
            return line.to_owned();
        };
        let end = line[start..]
            .find(|c| !digits(c))
            .map_or(line.len(), |end| start + end);
        format!("{}{number}{}", &line[..start], &line[end..])
    }

    proptest! {
        #[test]
        fn whatever_is_in_it_replaying_does_not_panic(
            changes in prop::collection::vec((any::<usize>(), any::<usize>(), 0u8..4, prop_oneof![
                Just(u64::MAX), Just(1u64 << 63), Just(u64::from(u32::MAX)), 0u64..1000, any::<u64>(),
            ]), 1..12),
            lazy in any::<bool>(),
        ) {
            let text = if lazy { lazily() } else { STOPPED.to_owned() };
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            for (at, which, how, number) in changes {
                let at = at % lines.len();
                match how {
                    0 => lines.insert(at, lines[which % lines.len()].clone()),
                    1 if lines.len() > 1 => drop(lines.remove(at)),
                    _ => lines[at] = with_number(&lines[at], which, number),
                }
            }
            let _ = replayed(&(lines.join("\n") + "\n"));
        }

        #[test]
        fn nor_does_any_text(text in ".*", bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = replay(&bytes[..]);
            let head = STOPPED.lines().next().unwrap();
            let _ = replayed(&format!("{head}\n{text}\n"));
        }
    }
}
