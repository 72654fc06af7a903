//! The destination after the switch-over: the workload runs, and what it lacks is fetched.
//!
//! One thread serves the pager (it tells the source of faults), and each of a session's two connections has one that places what
//! arrives. A session that is lost changes nothing for the workload but that its threads wait longer: the source connects anew, hears
//! what is missing, and goes on. What was told and not answered is told again.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use whimbrel_policy::postcopy::Fault;
use whimbrel_policy::PageRun;
use whimbrel_wire::{write_wishes, Bulk, BulkReader, FaultTimes, StreamKind, Wish};

use crate::contract::{News, Pager};
use crate::error::{Error, Result};
use crate::intake::page_run;
use crate::link::{hurry_thread, lock, shut};
use crate::send::wire_run;

/// How long one look at the pager may wait.
const LOOK: Duration = Duration::from_millis(50);
/// How often times are told.
const TIMES_EVERY: Duration = Duration::from_millis(200);
/// Wishes in one write.
const WISHES_AT_ONCE: usize = 4096;
/// Sentences that are kept for whoever asks.
const WARNINGS_MAX: usize = 16;

/// Fetches what a workload lacks. Its threads end with the value; the pager's keeper makes sure that the workload only waits then.
#[derive(Debug)]
pub(crate) struct Fetch<P: Pager> {
    shared: Arc<Shared<P>>,
    server: Option<JoinHandle<()>>,
    /// One half of a session whose other half has not arrived yet.
    half: Option<(StreamKind, TcpStream)>,
    /// Of the session, to be shut down.
    streams: Vec<TcpStream>,
    receivers: Vec<JoinHandle<()>>,
    sessions: u64,
}

#[derive(Debug)]
struct Shared<P> {
    pager: P,
    line: Mutex<Line>,
    timeout: Duration,
    complete: AtomicBool,
    stop: AtomicBool,
    warnings: Mutex<Vec<String>>,
    /// Why the workload had to be ended.
    given_up: Mutex<Option<String>>,
}

/// What wishes are written to.
#[derive(Debug)]
struct Line {
    stream: Option<TcpStream>,
    /// Which session's; receivers of an older one must not end it.
    session: u64,
    spoke: Instant,
    told_times: Instant,
}

impl<P: Pager> Fetch<P> {
    /// Serves the pager from now on. The source may come at any time ([`Fetch::join`]).
    pub fn start(pager: P, timeout: Duration) -> Result<Self> {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            pager,
            line: Mutex::new(Line {
                stream: None,
                session: 0,
                spoke: now,
                told_times: now,
            }),
            timeout,
            complete: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            warnings: Mutex::new(Vec::new()),
            given_up: Mutex::new(None),
        });
        let for_thread = Arc::clone(&shared);
        let server = thread::Builder::new()
            .name("pager".into())
            .spawn(move || for_thread.serve())
            .map_err(Error::Thread)?;
        Ok(Self {
            shared,
            server: Some(server),
            half: None,
            streams: Vec::new(),
            receivers: Vec::new(),
            sessions: 0,
        })
    }

    /// One connection of a session, behind its handshake. `first`: the source has said itself what is missing, and need not be told.
    pub fn join(&mut self, kind: StreamKind, stream: TcpStream, first: bool) -> Result<()> {
        match (self.half.take(), kind) {
            (Some((StreamKind::Push(a), push)), StreamKind::Fault(b)) if a == b => {
                self.begin(stream, push, first)
            }
            (Some((StreamKind::Fault(a), faults)), StreamKind::Push(b)) if a == b => {
                self.begin(faults, stream, first)
            }
            // The other half of what came before was lost.
            _ => {
                self.half = Some((kind, stream));
                Ok(())
            }
        }
    }

    fn begin(&mut self, faults: TcpStream, push: TcpStream, first: bool) -> Result<()> {
        self.end_session();
        self.sessions += 1;
        let socket = |cause| Error::Socket {
            what: "set up a connection".into(),
            cause,
        };
        // The source says something at least every quarter of it.
        faults
            .set_read_timeout(Some(self.shared.timeout))
            .map_err(socket)?;
        let writer = faults.try_clone().map_err(socket)?;
        self.streams = vec![
            faults.try_clone().map_err(socket)?,
            push.try_clone().map_err(socket)?,
        ];
        let told = self.shared.greet(writer, self.sessions, first);
        if let Err(error) = told {
            self.shared.hang_up(self.sessions, &error);
            return Ok(());
        }
        for (name, stream) in [("replies", faults), ("pushed", push)] {
            let (shared, session) = (Arc::clone(&self.shared), self.sessions);
            let receiver = thread::Builder::new()
                .name(name.into())
                .spawn(move || shared.receive(stream, session))
                .map_err(Error::Thread)?;
            self.receivers.push(receiver);
        }
        Ok(())
    }

    /// Everything that was received is placed afterwards.
    fn end_session(&mut self) {
        lock(&self.shared.line).stream = None;
        self.streams.drain(..).for_each(|stream| shut(&stream));
        for receiver in self.receivers.drain(..) {
            let _ = receiver.join();
        }
    }

    /// True if the workload lacks nothing any more, or has ended.
    pub fn is_complete(&self) -> bool {
        self.shared.complete.load(Ordering::Acquire)
    }

    /// How many pages are missing; nothing if none is.
    pub fn missing_pages(&self) -> Option<u64> {
        let missing = || self.shared.pager.missing_pages();
        (!self.is_complete()).then(missing)
    }

    /// How long faults took.
    pub fn times(&self) -> FaultTimes {
        self.shared.pager.times()
    }

    /// Why the workload had to be ended, if it had to: some of its pages could not be had.
    pub fn given_up(&self) -> Option<String> {
        lock(&self.shared.given_up).clone()
    }

    /// What the user should know, since this was asked before.
    pub fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.warnings))
    }
}

/// A stream for whatever is being fetched. A source that comes although nothing is missing hears that; who does not know says nothing.
pub(crate) fn join<P: Pager>(
    fetch: &mut Option<Fetch<P>>,
    nothing_is_missing: bool,
    kind: StreamKind,
    mut stream: TcpStream,
) -> Result<()> {
    match fetch {
        Some(fetch) => fetch.join(kind, stream, false),
        None if nothing_is_missing && matches!(kind, StreamKind::Fault(_)) => {
            write_wishes(&mut stream, &[Wish::Ended]).map_err(IntoLink::into_link)
        }
        None => Ok(()),
    }
}

impl<P: Pager> Drop for Fetch<P> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.end_session();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl<P: Pager> Shared<P> {
    /// The thread of the pager.
    fn serve(&self) {
        hurry_thread();
        while !self.stop.load(Ordering::Relaxed) {
            match self.complete.load(Ordering::Acquire) {
                // Whoever lost his last acknowledgements comes back and must find somebody.
                true => thread::sleep(LOOK),
                false => self.look(),
            }
            self.tell_regularly();
        }
    }

    fn look(&self) {
        let mut news = Vec::new();
        let served = self.pager.serve(LOOK, &mut |what| news.push(what));
        self.tell(&news);
        match served {
            Ok(true) if self.pager.missing_pages() > 0 => {}
            Ok(_) => self.complete(),
            Err(error) => {
                self.warn(format!("cannot serve the workload's missing pages: {error}"));
                thread::sleep(LOOK);
            }
        }
    }

    fn complete(&self) {
        if let Err(error) = self.pager.finish() {
            self.warn(error.to_string());
            thread::sleep(LOOK);
            return;
        }
        self.complete.store(true, Ordering::Release);
        // Also if every page was acknowledged: what was told before there was a connection is made good for.
        self.write(&[Wish::Times(self.pager.times()), Wish::Ended]);
    }

    fn tell_regularly(&self) {
        let mut wishes = Vec::new();
        {
            let mut line = lock(&self.line);
            if line.told_times.elapsed() >= TIMES_EVERY.min(self.timeout / 4) {
                line.told_times = Instant::now();
                wishes.push(Wish::Times(self.pager.times()));
            } else if line.spoke.elapsed() >= self.timeout / 4 {
                wishes.push(Wish::Alive);
            }
        }
        self.write(&wishes);
    }

    fn tell(&self, news: &[News]) {
        let wishes: Vec<Wish> = news.iter().map(wish).collect();
        self.write(&wishes);
    }

    /// Without a session it is not said: the next one begins with everything that is missing or waited for.
    fn write(&self, wishes: &[Wish]) {
        if wishes.is_empty() {
            return;
        }
        let mut line = lock(&self.line);
        let Some(stream) = &mut line.stream else { return };
        let written = wishes
            .chunks(WISHES_AT_ONCE)
            .try_for_each(|some| write_wishes(stream, some));
        match written {
            Ok(()) => line.spoke = Instant::now(),
            Err(_) => {
                // The receivers notice, and say why.
                shut(stream);
                line.stream = None;
            }
        }
    }

    /// Begins a session: what is missing, and who waits. Nobody else speaks meanwhile.
    fn greet(&self, mut stream: TcpStream, session: u64, first: bool) -> whimbrel_wire::Result<()> {
        let mut line = lock(&self.line);
        if !first {
            let missing = self.pager.missing();
            for some in missing.chunks(WISHES_AT_ONCE) {
                let some: Vec<Wish> = some.iter().map(|run| Wish::Missing(wire_run(*run))).collect();
                write_wishes(&mut stream, &some)?;
            }
            write_wishes(&mut stream, &[Wish::Listed])?;
        }
        let waiting: Vec<Wish> = self.pager.waiting().iter().map(fault).collect();
        write_wishes(&mut stream, &waiting)?;
        line.stream = Some(stream);
        line.session = session;
        line.spoke = Instant::now();
        Ok(())
    }

    /// The thread of one connection.
    fn receive(&self, stream: TcpStream, session: u64) {
        hurry_thread();
        let mut reader = BulkReader::new(stream);
        let over = loop {
            match reader.next_bulk() {
                Ok(Some(bulk)) => {
                    if let Err(error) = self.take(bulk) {
                        break error;
                    }
                }
                Ok(None) => break whimbrel_wire::Error::Closed.into_link(),
                Err(cause) => break cause.into_link(),
            }
        };
        self.hang_up(session, &over);
    }

    fn take(&self, bulk: Bulk<'_>) -> Result<()> {
        match bulk {
            Bulk::Pages(run, data) => self.place(page_run(run), Some(data)),
            Bulk::Zero(run) => self.place(page_run(run), None),
            Bulk::Barrier(piece) => {
                // With the last acknowledgement the source has what it wants: what there is to tell goes before it.
                match self.pager.missing_pages() {
                    0 => self.write(&[Wish::Times(self.pager.times()), Wish::Acked(piece)]),
                    _ => self.write(&[Wish::Acked(piece)]),
                }
                Ok(())
            }
            Bulk::Settled(run) => self.pager.look_again(page_run(run)).map_err(Error::workload),
            Bulk::Refused(run) => self.refused(page_run(run)),
            Bulk::Hurry => self.pager.pause().map_err(Error::workload),
            Bulk::Alive => Ok(()),
            Bulk::Layout(_)
            | Bulk::State(_)
            | Bulk::Drop(_)
            | Bulk::Missing(_)
            | Bulk::Padding(_)
            | Bulk::Enough => Err(Error::Unexpected {
                got: "a frame of the time before the switch-over",
                expected: "pages",
            }),
        }
    }

    fn place(&self, run: PageRun, data: Option<&[u8]>) -> Result<()> {
        let mut news = Vec::new();
        let placed = self.pager.place(run, data, &mut |what| news.push(what));
        self.tell(&news);
        placed.map_err(Error::workload)
    }

    /// The source will never send them: the workload cannot go on if it still wants one.
    fn refused(&self, run: PageRun) -> Result<()> {
        let end = run.first.saturating_add(run.count);
        let wanted = self.pager.missing().iter().any(|missing| {
            missing.space == run.space
                && missing.first < end
                && run.first < missing.first.saturating_add(missing.count)
        });
        if !wanted {
            return Ok(());
        }
        let sentence = format!(
            "the source cannot send page {:#x} any more (is its frozen copy gone?); the workload was ended before it could read wrong memory",
            run.first
        );
        // The first page that could not be had is as good a reason as any other.
        lock(&self.given_up).get_or_insert_with(|| sentence.clone());
        self.pager.give_up(&sentence).map_err(Error::workload)
    }

    fn hang_up(&self, session: u64, why: &impl std::fmt::Display) {
        let mut line = lock(&self.line);
        if line.session == session && line.stream.is_some() {
            if let Some(stream) = line.stream.take() {
                shut(&stream);
            }
            drop(line);
            if !self.complete.load(Ordering::Acquire) && !self.stop.load(Ordering::Relaxed) {
                self.warn(format!(
                    "{why}; {} pages of the workload are still at the source: it waits where it needs them, until the source is back",
                    self.pager.missing_pages()
                ));
            }
        }
    }

    fn warn(&self, sentence: String) {
        let mut warnings = lock(&self.warnings);
        if warnings.len() < WARNINGS_MAX && !warnings.contains(&sentence) {
            warnings.push(sentence);
        }
    }
}

/// A broken stream as an error of this crate.
trait IntoLink {
    fn into_link(self) -> Error;
}

impl IntoLink for whimbrel_wire::Error {
    fn into_link(self) -> Error {
        Error::Link {
            peer: "the source".into(),
            cause: self,
        }
    }
}

fn wish(news: &News) -> Wish {
    match news {
        News::Fault(told) => fault(told),
        News::Gone(run) => Wish::Gone(wire_run(*run)),
    }
}

fn fault(fault: &Fault) -> Wish {
    Wish::Fault {
        space: fault.page.space.0,
        page: fault.page.number,
        thread: fault.thread.0,
        repeated: fault.repeated,
    }
}
