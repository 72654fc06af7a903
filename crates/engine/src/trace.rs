//! Writes down what the decisions are told and what they decide, so that whoever doubts one can replay it
//! ([`whimbrel_policy::trace`]).
//!
//! The decisions are wrapped, and only the wrapper changes them: nothing reaches them that is not written down. Lines are made in
//! memory and go to the writer a MiB at a time. What is written between the freeze and the start is downtime, some 50 ns for each run
//! of pages that the last scan finds.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use whimbrel_policy::postcopy::{self, Answer, Fault, Residual};
use whimbrel_policy::trace::{Head, Line, Step, FORMAT, LINE_BYTES_MAX, TRACE_BYTES_MAX};
use whimbrel_policy::{Event, Migration, MigrationError, Order, Pages};

use crate::link::lock;
use crate::residual::ResidualOptions;

/// What is written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Where a trace is written to. Clones write to the same place.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Mutex<Book>>);

struct Book {
    /// `None` once nothing more is written.
    out: Option<Box<dyn Write + Send>>,
    /// Where a line is made.
    line: Vec<u8>,
    bytes_left: u64,
    /// The time of the last line.
    at_ns: u64,
    /// Why it ended before the migration.
    warning: Option<String>,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book")
            .field("bytes_left", &self.bytes_left)
            .field("warning", &self.warning)
            .finish_non_exhaustive()
    }
}

impl Trace {
    /// In a new file, or instead of what is in it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self::new(File::create(path)?))
    }

    /// To any writer. Writes are large and few.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self::limited(out, TRACE_BYTES_MAX)
    }

    fn limited(out: impl Write + Send + 'static, bytes_max: u64) -> Self {
        Self(Arc::new(Mutex::new(Book {
            out: Some(Box::new(BufWriter::with_capacity(BUFFER_BYTES, out))),
            line: Vec::new(),
            bytes_left: bytes_max,
            at_ns: 0,
            warning: None,
        })))
    }

    /// The first line.
    pub(crate) fn begin(&self, migration: &Migration, residual: &ResidualOptions) {
        let mut book = lock(&self.0);
        let Some(strategy) = migration.named() else {
            return book.give_up(format!(
                "no trace is written: {} cannot be replayed",
                migration.strategy()
            ));
        };
        book.write(&Head {
            format: FORMAT,
            whimbrel: env!("CARGO_PKG_VERSION").to_owned(),
            strategy,
            limits: *migration.limits(),
            hints: *migration.hints(),
            prepaging: residual.prepaging,
            residual_limits: residual.limits(),
        });
    }

    fn note(&self, now: Duration, step: Step<'_>) {
        let mut book = lock(&self.0);
        book.at_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        book.step(step);
    }

    /// The last line. Returns what the user should know.
    pub(crate) fn end(&self) -> Option<String> {
        let mut book = lock(&self.0);
        book.step(Step::End);
        let flushed = book.out.take().map_or(Ok(()), |mut out| out.flush());
        flushed.unwrap_or_else(|error| book.give_up(broken(&error)));
        book.warning.take()
    }
}

impl Book {
    fn step(&mut self, step: Step<'_>) {
        let at_ns = self.at_ns;
        self.write(&Line { at_ns, step });
    }

    fn write(&mut self, line: &impl Serialize) {
        if self.out.is_none() {
            return;
        }
        self.line.clear();
        let made = serde_json::to_writer(&mut self.line, line).map_err(io::Error::from);
        self.line.push(b'\n');
        let bytes = self.line.len() as u64;
        if bytes > self.bytes_left.min(LINE_BYTES_MAX) {
            return self.cut();
        }
        self.bytes_left -= bytes;
        if let Err(error) = made.and_then(|()| self.put()) {
            self.give_up(broken(&error));
        }
    }

    fn put(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), |out| out.write_all(&self.line))
    }

    /// The marker has its place beyond the limit.
    fn cut(&mut self) {
        self.bytes_left = u64::MAX;
        self.step(Step::Cut);
        let flushed = self.out.take().map_or(Ok(()), |mut out| out.flush());
        self.give_up(match flushed {
            Ok(()) => "the trace has become too long: it ends in the middle of the migration".to_owned(),
            Err(error) => broken(&error),
        });
    }

    /// Only the first reason counts.
    fn give_up(&mut self, why: String) {
        self.out = None;
        self.warning.get_or_insert(why);
    }
}

fn broken(error: &io::Error) -> String {
    format!("the trace is not complete, it cannot be written: {error}")
}

/// The decisions of the rounds.
#[derive(Debug)]
pub(crate) struct TracedMigration<'a> {
    migration: &'a mut Migration,
    trace: Option<Trace>,
}

impl<'a> TracedMigration<'a> {
    pub fn new(migration: &'a mut Migration, trace: Option<Trace>) -> Self {
        Self { migration, trace }
    }

    pub fn handle(&mut self, now: Duration, event: Event) -> Result<(), MigrationError> {
        let Some(trace) = &self.trace else {
            return self.migration.handle(now, event);
        };
        trace.note(now, Step::Event(Cow::Borrowed(&event)));
        let handled = self.migration.handle(now, event);
        if let Err(why) = handled {
            trace.note(now, Step::Refused(why.to_string().into()));
        }
        handled
    }

    pub fn poll(&mut self, now: Duration) -> Order {
        let order = self.migration.poll(now);
        if let Some(trace) = &self.trace {
            trace.note(now, Step::Order(Cow::Borrowed(&order)));
        }
        order
    }
}

impl Deref for TracedMigration<'_> {
    type Target = Migration;

    fn deref(&self) -> &Migration {
        self.migration
    }
}

/// The decisions after the switch-over.
#[derive(Debug)]
pub(crate) struct TracedResidual {
    residual: Residual,
    trace: Option<Trace>,
}

impl TracedResidual {
    /// A residual phase that begins at time zero.
    pub fn new(pages: Pages, options: &ResidualOptions, path: postcopy::Path, trace: Option<Trace>) -> Self {
        if let Some(trace) = &trace {
            let pages = Cow::Borrowed(&pages);
            trace.note(Duration::ZERO, Step::Serve { pages, path });
        }
        let (order, limits) = (options.prepaging.order(), options.limits());
        Self {
            residual: Residual::new(Duration::ZERO, pages, order, limits, path),
            trace,
        }
    }

    fn note<'a>(&self, now: Duration, step: impl FnOnce() -> Step<'a>) {
        if let Some(trace) = &self.trace {
            trace.note(now, step());
        }
    }

    pub fn fault(&mut self, now: Duration, fault: Fault) -> Answer {
        let answer = self.residual.fault(fault);
        self.note(now, || Step::Fault { fault, answer });
        answer
    }

    pub fn handle(&mut self, now: Duration, event: postcopy::Event) {
        self.note(now, || Step::Told(Cow::Borrowed(&event)));
        self.residual.handle(now, event);
    }

    pub fn poll(&mut self, now: Duration) -> postcopy::Order {
        let order = self.residual.poll(now);
        self.note(now, || Step::Ordered(Cow::Borrowed(&order)));
        order
    }

    pub fn hurry(&mut self, now: Duration) {
        self.residual.hurry();
        self.note(now, || Step::Hurry);
    }
}

impl Deref for TracedResidual {
    type Target = Residual;

    fn deref(&self) -> &Residual {
        &self.residual
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_policy::{Hints, Limits, StopCopy};

    /// A file that can be read while somebody else writes it, and that is full after so many bytes.
    #[derive(Clone)]
    struct Shared(Arc<Mutex<Vec<u8>>>, usize);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut file = lock(&self.0);
            if file.len() + bytes.len() > self.1 {
                return Err(io::Error::other("no space left"));
            }
            file.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn file(bytes_max: usize) -> Shared {
        Shared(Arc::default(), bytes_max)
    }

    fn lines(file: &Shared) -> Vec<String> {
        let text = String::from_utf8(lock(&file.0).clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Polls so often, and says what the user is told.
    fn polled(trace: &Trace, times: usize) -> Option<String> {
        let mut migration = Migration::new(Box::new(StopCopy), Limits::default(), Hints::default());
        trace.begin(&migration, &ResidualOptions::default());
        let mut traced = TracedMigration::new(&mut migration, Some(trace.clone()));
        for ns in 0..times {
            assert_eq!(traced.poll(Duration::from_nanos(ns as u64)), Order::Freeze);
        }
        trace.end()
    }

    #[test]
    fn orders_that_repeat_are_written_each_time_and_the_end_at_last() {
        let file = file(usize::MAX);
        assert_eq!(polled(&Trace::new(file.clone()), 2), None);
        let lines = lines(&file);
        assert!(lines[0].starts_with(r#"{"format":1,"#) && lines[0].contains(r#""strategy":"stopcopy""#));
        let steps = [
            r#"{"at_ns":0,"step":{"order":"freeze"}}"#,
            r#"{"at_ns":1,"step":{"order":"freeze"}}"#,
            r#"{"at_ns":1,"step":"end"}"#,
        ];
        assert_eq!(lines[1..], steps);
    }

    #[test]
    fn one_that_becomes_too_long_ends_with_a_marker_and_a_warning() {
        let file = file(usize::MAX);
        let warning = polled(&Trace::limited(file.clone(), 1000), 100).unwrap();
        assert!(warning.contains("too long"), "{warning}");
        let lines = lines(&file);
        let (last, before) = lines.split_last().unwrap();
        assert!(last.ends_with(r#""step":"cut"}"#), "{last}");
        let bytes: usize = before.iter().map(|line| line.len() + 1).sum();
        assert!((900..=1000).contains(&bytes), "{bytes} bytes");
    }

    #[test]
    fn a_full_disk_is_a_warning() {
        let warning = polled(&Trace::new(file(10)), 100).unwrap();
        assert!(warning.contains("no space left"), "{warning}");
    }

    #[test]
    fn what_was_refused_is_written_too() {
        let file = file(usize::MAX);
        let trace = Trace::new(file.clone());
        let mut migration = Migration::new(Box::new(StopCopy), Limits::default(), Hints::default());
        let mut traced = TracedMigration::new(&mut migration, Some(trace.clone()));
        assert!(traced
            .handle(Duration::ZERO, Event::Captured { state_bytes: 1 })
            .is_err());
        trace.end();
        let lines = lines(&file);
        assert!(lines[0].contains("captured") && lines[1].contains("refused") && lines[2].contains("end"));
    }
}
