//! The source after the switch-over: sends what the destination lacks until it lacks nothing.
//!
//! One thread decides (with [`Residual`]) and answers faults, one writes the push, one reads what the destination wants. Two
//! connections make a session; when one of them is lost, both are made anew, the destination names what it lacks, and it goes on.
//! The memory is that of the frozen process, so a session can begin in any process of this host at any time.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use whimbrel_policy::postcopy::{Answer, Event, Fault, Order, Path, PieceId, ThreadId};
use whimbrel_policy::{Page, PageRun, Pages, Sent, SpaceId, PAGE_SIZE};
use whimbrel_wire::{FaultTimes, Key, MigrationId, StreamKind, Wish, WishReader};

use crate::contract::PageStore;
use crate::destination_switch::NOTE_EVERY;
use crate::error::{Error, Result};
use crate::intake::page_run;
use crate::journal::Journal;
use crate::link::{dial, hurry_thread, lock, shut};
use crate::observer::micros;
use crate::residual::{summary, ResidualOptions, ResidualProgress};
use crate::send::{PageSender, Word};
use crate::summary::ResidualSummary;
use crate::trace::TracedResidual;

/// Wishes that are read and not looked at yet. More come only from a destination that wants to fill our memory.
const WISHES_MAX: usize = 1 << 20;
/// Runs of missing pages that a destination may name: a hole beside every page of 128 GiB.
const MISSING_RUNS_MAX: usize = 1 << 24;
/// The pauses between two attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often the thread that decides looks around.
const TICK: Duration = Duration::from_millis(100);

/// Where the destination is.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub address: String,
    pub key: Key,
    pub id: MigrationId,
    pub timeout: Duration,
}

/// The two connections of a session.
#[derive(Debug)]
pub(crate) struct Session {
    faults: TcpStream,
    push: TcpStream,
    /// The reading half of `faults`, with what it has read ahead.
    wishes: WishReader<TcpStream>,
}

impl Route {
    /// Connects both streams. The number only joins them to each other, and tells them from those of a session before.
    pub fn open(&self) -> Result<Session> {
        let bytes = MigrationId::random().map_or([0; 16], |id| id.0);
        let number = u16::from_le_bytes([bytes[0], bytes[1]]);
        let dial = |kind| dial(&self.address, &self.key, self.id, kind, self.timeout);
        let push = dial(StreamKind::Push(number))?;
        let faults = dial(StreamKind::Fault(number))?;
        let prepared = faults.set_read_timeout(Some(self.timeout));
        let wishes = prepared.and_then(|()| faults.try_clone()).map_err(socket)?;
        Ok(Session {
            faults,
            push,
            wishes: WishReader::new(wishes),
        })
    }
}

fn socket(cause: std::io::Error) -> Error {
    Error::Socket {
        what: "set up a connection".into(),
        cause,
    }
}

/// What reads the frozen memory, one for each thread that sends.
#[derive(Debug)]
pub(crate) struct Stores<S> {
    pub replies: S,
    pub push: S,
}

/// Where it stands.
#[derive(Clone, Debug, Default)]
struct Status {
    progress: ResidualProgress,
    summary: ResidualSummary,
    warnings: Vec<String>,
    done: bool,
    failed: Option<String>,
}

/// A server at work. Ends with the value.
#[derive(Debug)]
pub(crate) struct Server {
    status: Arc<Mutex<Status>>,
    /// Notified at the end.
    ended: Arc<Condvar>,
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

/// How the waiting for it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The destination lacks nothing.
    Done,
    /// It goes on.
    Going,
    /// The destination could not be reached for too long.
    GivenUp(String),
}

impl Server {
    /// Serves the pages of `residual` from now on; in the first session these are exactly what the destination lacks. Without a
    /// session it is connected first, and then the destination says what it lacks (and without `residual` that alone counts).
    pub fn start<S: PageStore>(
        residual: Option<TracedResidual>,
        session: Option<Session>,
        route: Route,
        stores: Stores<S>,
        options: ResidualOptions,
    ) -> Result<Self> {
        let owed_bytes = residual
            .as_ref()
            .map_or(0, |residual| residual.owed_pages().saturating_mul(PAGE_SIZE));
        let status = Arc::new(Mutex::new(Status {
            progress: ResidualProgress {
                owed_bytes,
                ..ResidualProgress::default()
            },
            ..Status::default()
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(Condvar::new());
        let serving = Serving {
            residual,
            begun: Instant::now(),
            route,
            options,
            push_store: Some(stores.push),
            store: stores.replies,
            status: Arc::clone(&status),
            ended: Arc::clone(&ended),
            stop: Arc::clone(&stop),
            streams: Arc::clone(&streams),
            times: FaultTimes::default(),
            reconnects: 0,
            placed_before: 0,
            is_hurried: false,
        };
        let thread = thread::Builder::new()
            .name("serve".into())
            .spawn(move || serving.run(session))
            .map_err(Error::Thread)?;
        Ok(Self {
            status,
            ended,
            stop,
            streams,
            thread: Some(thread),
        })
    }

    /// How it goes, and what it wants the user to know.
    pub fn progress(&self) -> (ResidualProgress, Vec<String>) {
        let mut status = lock(&self.status);
        (status.progress.clone(), std::mem::take(&mut status.warnings))
    }

    /// Waits so long for its end.
    pub fn wait(&self, time: Duration) -> Waited {
        let going = |status: &mut Status| !status.done && status.failed.is_none();
        let waited = self.ended.wait_timeout_while(lock(&self.status), time, going);
        let (status, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        match (&status.failed, status.done) {
            (None, false) if is_over => Waited::GivenUp("a fault inside whimbrel: please report it".into()),
            (_, true) => Waited::Done,
            (Some(why), _) => Waited::GivenUp(why.clone()),
            _ => Waited::Going,
        }
    }

    /// What it has done so far.
    pub fn summary(&self) -> ResidualSummary {
        lock(&self.status).summary.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        lock(&self.streams).iter().for_each(shut);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// When the journal last said how many pages are missing.
#[derive(Debug, Default)]
pub(crate) struct Noted(Option<Instant>);

impl Noted {
    /// Says it, if that is due. Whoever lists the migrations reads it there.
    pub fn note(&mut self, journal: &mut Journal, progress: &ResidualProgress) {
        // A guardian does not know it before the destination has said it.
        let known = progress.owed_bytes > 0;
        if known && self.0.is_none_or(|at| at.elapsed() >= NOTE_EVERY) {
            self.0 = Some(Instant::now());
            // It only informs.
            let _ = journal.set_missing(Some(progress.owed_bytes / PAGE_SIZE));
        }
    }
}

/// What reaches the thread that decides.
enum Input {
    Wish(Wish),
    Pushed(PieceId, Sent),
    /// The session is of no use any more.
    Lost(Error),
}

/// How a session ended.
enum Over {
    Done,
    Stopped,
    Lost(Error),
}

struct Serving<S> {
    /// `None` until a destination has said what it lacks.
    residual: Option<TracedResidual>,
    begun: Instant,
    route: Route,
    options: ResidualOptions,
    store: S,
    /// Away with the thread that pushes.
    push_store: Option<S>,
    status: Arc<Mutex<Status>>,
    ended: Arc<Condvar>,
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    times: FaultTimes,
    reconnects: u32,
    /// Pages that were placed when the link was lost the last time.
    placed_before: u64,
    is_hurried: bool,
}

impl<S: PageStore> Serving<S> {
    fn run(mut self, first: Option<Session>) {
        hurry_thread();
        let mut next = first;
        loop {
            let over = match next.take() {
                Some(session) => self.session(session),
                None => Over::Lost(self.broken(whimbrel_wire::Error::Closed)),
            };
            match over {
                Over::Done => return self.end(None),
                Over::Stopped => return,
                // Another connection would not help.
                Over::Lost(error @ (Error::Workload(_) | Error::Internal(_) | Error::Thread(_))) => {
                    return self.end(Some(error.to_string()))
                }
                Over::Lost(error) => match self.reconnect(error) {
                    Ok(Some(session)) => next = Some(session),
                    Ok(None) => return self.end(None),
                    Err(why) => return self.end(Some(why)),
                },
            }
        }
    }

    fn end(&mut self, failed: Option<String>) {
        self.report();
        let mut status = lock(&self.status);
        status.done = failed.is_none();
        status.failed = failed;
        self.ended.notify_all();
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Until the session is lost, or nothing is missing.
    fn session(&mut self, session: Session) -> Over {
        let (faults, push) = (session.faults.try_clone(), session.push.try_clone());
        let over = match (faults, push) {
            (Ok(faults), Ok(push)) => self.converse(session, &faults, &push),
            (Err(cause), _) | (_, Err(cause)) => Over::Lost(socket(cause)),
        };
        lock(&self.streams).clear();
        over
    }

    fn converse(&mut self, session: Session, faults: &TcpStream, push: &TcpStream) -> Over {
        let (sender, inputs) = channel();
        let (jobs, orders) = channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let mut talk = Talk {
            queued: Arc::clone(&queued),
            sender: PageSender::new(session.faults, self.route.address.clone()).paced(),
            jobs,
            inputs,
            spoke: Instant::now(),
            reported: Instant::now(),
            hurried: false,
        };
        let threads = self.spawn((session.wishes, queued), session.push, orders, &sender);
        drop(sender);
        let over = match (&threads, self.remember(faults, push)) {
            (Ok(_), Ok(())) => self.talk(&mut talk),
            (_, Err(cause)) => Over::Lost(socket(cause)),
            (Err(_), _) => Over::Lost(Error::Internal("no threads".into())),
        };
        // Both threads end with their streams, and the one that pushes with its orders, too.
        shut(faults);
        shut(push);
        drop(talk);
        match threads {
            Ok((reader, pusher)) => {
                let _ = reader.join();
                self.push_store = pusher.join().ok();
                over
            }
            Err(error) => Over::Lost(error),
        }
    }

    /// For whoever wants it to stop at once.
    fn remember(&self, faults: &TcpStream, push: &TcpStream) -> std::io::Result<()> {
        let clones = vec![faults.try_clone()?, push.try_clone()?];
        if self.is_stopped() {
            clones.iter().for_each(shut);
        }
        *lock(&self.streams) = clones;
        Ok(())
    }

    fn spawn(
        &mut self,
        (wishes, queued): (WishReader<TcpStream>, Arc<AtomicUsize>),
        push: TcpStream,
        orders: Receiver<Job>,
        inputs: &Sender<Input>,
    ) -> Result<(JoinHandle<()>, JoinHandle<S>)> {
        let Some(store) = self.push_store.take() else {
            return Err(Error::Internal("the thread that pushes was lost".into()));
        };
        let peer = Peer {
            address: self.route.address.clone(),
            timeout: self.route.timeout,
        };
        let (for_reader, for_pusher) = (inputs.clone(), inputs.clone());
        let sender = PageSender::new(push, peer.address.clone()).paced();
        let pusher = thread::Builder::new()
            .name("push".into())
            .spawn(move || push_pages(store, sender, &orders, &for_pusher))
            .map_err(Error::Thread)?;
        let reader = thread::Builder::new()
            .name("wishes".into())
            .spawn(move || read_wishes(wishes, &queued, &peer, &for_reader))
            .map_err(Error::Thread)?;
        Ok((reader, pusher))
    }

    fn talk(&mut self, talk: &mut Talk) -> Over {
        loop {
            if self.is_stopped() {
                return Over::Stopped;
            }
            let carried_out = self.hurry(talk).and_then(|()| self.carry_out(talk));
            let until = match carried_out {
                Ok(Some(until)) => until,
                Ok(None) => return Over::Done,
                Err(error) => return Over::Lost(error),
            };
            if talk.reported.elapsed() >= TICK {
                talk.reported = Instant::now();
                self.report();
            }
            let wait = until.saturating_sub(self.now()).min(TICK);
            match talk.inputs.recv_timeout(wait) {
                Ok(input) => {
                    let mut next = Some(input);
                    while let Some(input) = next.take() {
                        match self.take_in(input, talk) {
                            Ok(()) => next = talk.inputs.try_recv().ok(),
                            Err(error) => return Over::Lost(error),
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Over::Lost(self.broken(whimbrel_wire::Error::Closed))
                }
            }
        }
    }

    fn broken(&self, cause: whimbrel_wire::Error) -> Error {
        Error::Link {
            peer: self.route.address.clone(),
            cause,
        }
    }

    /// After so long the workload is held, and all that is left comes at once.
    fn hurry(&mut self, talk: &mut Talk) -> Result<()> {
        let due = self
            .options
            .residual_max
            .is_some_and(|max| self.begun.elapsed() >= max);
        if !due {
            return Ok(());
        }
        let now = self.now();
        if let Some(residual) = self.residual.as_mut().filter(|_| !self.is_hurried) {
            residual.hurry(now);
            self.is_hurried = true;
        }
        if !std::mem::replace(&mut talk.hurried, true) {
            talk.say(Word::Hurry, None)?;
        }
        Ok(())
    }

    /// Everything that can be sent now. Until when there is nothing to do, unless something happens; `None` if all is done.
    fn carry_out(&mut self, talk: &mut Talk) -> Result<Option<Duration>> {
        loop {
            let now = self.now();
            let Some(residual) = &mut self.residual else {
                return Err(Error::Internal("nobody knows what is missing".into()));
            };
            match residual.poll(now) {
                Order::Reply { piece, run, .. } => self.reply(talk, piece, run)?,
                Order::Push { piece, runs } => {
                    if talk.jobs.send(Job { piece, runs }).is_err() {
                        return Err(self.broken(whimbrel_wire::Error::Closed));
                    }
                }
                Order::Wait { until } => {
                    talk.stay_alive(self.route.timeout / 4)?;
                    return Ok(Some(until.unwrap_or(Duration::MAX)));
                }
                Order::Done => return Ok(None),
            }
        }
    }

    fn reply(&mut self, talk: &mut Talk, piece: PieceId, run: PageRun) -> Result<()> {
        let sent = talk.sender.piece(&mut self.store, &[run], piece.0)?;
        talk.spoke = Instant::now();
        self.sent(talk, piece, sent)
    }

    fn sent(&mut self, talk: &mut Talk, piece: PieceId, sent: Sent) -> Result<()> {
        // A frozen process that cannot be read is gone: whoever waits for it must hear that.
        for run in &sent.failed {
            talk.say(Word::Refused, Some(*run))?;
        }
        if !sent.failed.is_empty() {
            self.warn("the frozen copy cannot be read any more (has it been ended?): unless the workload does not want its pages any more, the destination ends it".to_owned());
        }
        let event = Event::Sent {
            piece,
            wire_bytes: sent.wire_bytes,
            zero_pages: sent.zero.iter().map(|run| run.count).sum(),
            unreadable: sent.failed,
        };
        self.handle(event);
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        if let Some(residual) = &mut self.residual {
            residual.handle(now, event);
        }
    }

    fn take_in(&mut self, input: Input, talk: &mut Talk) -> Result<()> {
        match input {
            Input::Lost(error) => Err(error),
            Input::Pushed(piece, sent) => self.sent(talk, piece, sent),
            Input::Wish(wish) => {
                talk.queued.fetch_sub(1, Ordering::Relaxed);
                self.wish(wish, talk)
            }
        }
    }

    fn wish(&mut self, wish: Wish, talk: &mut Talk) -> Result<()> {
        match wish {
            Wish::Fault {
                space,
                page,
                thread,
                repeated,
            } => {
                let page = Page {
                    space: SpaceId(space),
                    number: page,
                };
                let fault = Fault {
                    page,
                    thread: ThreadId(thread),
                    repeated,
                };
                self.fault(fault, talk)
            }
            Wish::Acked(piece) => {
                self.handle(Event::Acked {
                    piece: PieceId(piece),
                });
                Ok(())
            }
            Wish::Gone(run) => {
                self.handle(Event::Gone {
                    runs: vec![page_run(run)],
                });
                Ok(())
            }
            Wish::Times(times) => {
                self.times = times;
                Ok(())
            }
            Wish::Ended => {
                self.nothing_is_wanted();
                Ok(())
            }
            Wish::Alive => Ok(()),
            // A list comes only once, before everything else.
            Wish::Missing(_) | Wish::Listed => Err(self.broken(damaged())),
        }
    }

    fn fault(&mut self, fault: Fault, talk: &mut Talk) -> Result<()> {
        let now = self.now();
        let Some(residual) = &mut self.residual else {
            return Ok(());
        };
        let one = PageRun {
            space: fault.page.space,
            first: fault.page.number,
            count: 1,
        };
        match residual.fault(now, fault) {
            Answer::Queued | Answer::OnItsWay => Ok(()),
            Answer::Settled => talk.say(Word::Settled, Some(one)),
            Answer::Unknown => {
                self.warn(format!(
                    "the destination asked for page {:#x} of space {}, which it does not lack: refused",
                    one.first, one.space.0
                ));
                talk.say(Word::Refused, Some(one))
            }
            Answer::Unreadable => talk.say(Word::Refused, Some(one)),
            Answer::Busy => Err(self.broken(whimbrel_wire::Error::Damaged {
                what: "more faults than a workload has threads",
            })),
        }
    }

    fn nothing_is_wanted(&mut self) {
        self.handle(Event::LinkBack {
            missing: Pages::new(),
        });
    }

    /// Looks for the destination until it answers. `None` if it lacks nothing.
    fn reconnect(&mut self, error: Error) -> Result<Option<Session>, String> {
        self.handle(Event::LinkLost);
        self.lost(Some(error.to_string()));
        let since = Instant::now();
        // A destination that takes connections but nothing else must not be hammered.
        let placed = self.placed_pages();
        let mut pause = match placed > std::mem::replace(&mut self.placed_before, placed) {
            true => Duration::ZERO,
            false => PAUSE_MIN,
        };
        let mut why = error;
        loop {
            if self.is_stopped() {
                return Err("stopped".to_owned());
            }
            if since.elapsed() >= self.options.reconnect_for {
                return Err(why.to_string());
            }
            thread::sleep(pause);
            pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            match self.route.open().and_then(|session| self.agree(session)) {
                Ok(session) => {
                    self.lost(None);
                    self.reconnects += 1;
                    return Ok(session);
                }
                Err(error) => {
                    self.lost(Some(error.to_string()));
                    why = error;
                }
            }
        }
    }

    fn placed_pages(&self) -> u64 {
        self.residual
            .as_ref()
            .map_or(0, |residual| residual.metrics().pages_placed)
    }

    /// Hears what the destination lacks. `None` if that is nothing.
    fn agree(&mut self, mut session: Session) -> Result<Option<Session>> {
        let stop = Arc::clone(&self.stop);
        let missing = missing(&mut session.wishes, || stop.load(Ordering::Relaxed))
            .map_err(|cause| self.broken(cause))?;
        match &self.residual {
            Some(_) => self.handle(Event::LinkBack { missing }),
            None => {
                let residual = TracedResidual::new(missing, &self.options, Path::default(), None);
                self.residual = Some(residual);
            }
        }
        let owed = self.residual.as_ref().map_or(0, |residual| residual.owed_pages());
        Ok((owed > 0).then_some(session))
    }

    fn warn(&self, sentence: String) {
        let mut status = lock(&self.status);
        // One that is said again and again is said once.
        if status.warnings.len() < 16 && !status.warnings.contains(&sentence) {
            status.warnings.push(sentence);
        }
    }

    fn lost(&mut self, why: Option<String>) {
        let mut status = lock(&self.status);
        if let (Some(why), None) = (&why, &status.progress.lost) {
            let sentence = format!("{why}: the workload waits where it lacks memory, until the link is back");
            status.warnings.push(sentence);
        }
        status.progress.lost = why;
    }

    fn report(&mut self) {
        let now = self.now();
        let Some(residual) = &self.residual else { return };
        let metrics = residual.metrics();
        let progress = ResidualProgress {
            elapsed_us: micros(now),
            pages_bytes: metrics.pages.saturating_mul(PAGE_SIZE),
            owed_bytes: residual.owed_pages().saturating_mul(PAGE_SIZE),
            sent_bytes: metrics.bytes_pushed.saturating_add(metrics.bytes_replied),
            send_rate: metrics.send_rate(now),
            network_faults: metrics.network_faults(),
            times: self.times.clone(),
            lost: None,
        };
        let summary = summary(
            residual.prepaging(),
            &metrics,
            now,
            self.times.clone(),
            self.reconnects,
        );
        let mut status = lock(&self.status);
        let lost = status.progress.lost.take();
        status.progress = ResidualProgress { lost, ..progress };
        status.summary = summary;
    }
}

/// What the deciding thread works with in one session.
struct Talk {
    sender: PageSender,
    jobs: Sender<Job>,
    inputs: Receiver<Input>,
    /// Wishes in `inputs`.
    queued: Arc<AtomicUsize>,
    spoke: Instant,
    reported: Instant,
    /// The destination was told to hold the workload.
    hurried: bool,
}

impl Talk {
    fn say(&mut self, word: Word, run: Option<PageRun>) -> Result<()> {
        self.spoke = Instant::now();
        self.sender.say(word, run)
    }

    fn stay_alive(&mut self, every: Duration) -> Result<()> {
        match self.spoke.elapsed() >= every {
            true => self.say(Word::Alive, None),
            false => Ok(()),
        }
    }
}

/// A push to be written.
struct Job {
    piece: PieceId,
    runs: Vec<PageRun>,
}

struct Peer {
    address: String,
    timeout: Duration,
}

fn push_pages<S: PageStore>(
    mut store: S,
    mut sender: PageSender,
    orders: &Receiver<Job>,
    inputs: &Sender<Input>,
) -> S {
    while let Ok(Job { piece, runs }) = orders.recv() {
        let (input, lost) = match sender.piece(&mut store, &runs, piece.0) {
            Ok(sent) => (Input::Pushed(piece, sent), false),
            Err(error) => (Input::Lost(error), true),
        };
        if inputs.send(input).is_err() || lost {
            break;
        }
    }
    store
}

/// The queue has a limit but never makes the reading wait: both ends may be writing to each other.
fn read_wishes(mut wishes: WishReader<TcpStream>, queued: &AtomicUsize, peer: &Peer, inputs: &Sender<Input>) {
    hurry_thread();
    let lost = loop {
        match wishes.next_wish() {
            Ok(Some(_)) if queued.fetch_add(1, Ordering::Relaxed) >= WISHES_MAX => {
                break peer.lost(whimbrel_wire::Error::Damaged {
                    what: "more wishes than anybody could have",
                })
            }
            Ok(Some(wish)) => {
                if inputs.send(Input::Wish(wish)).is_err() {
                    return;
                }
            }
            Ok(None) => break peer.lost(whimbrel_wire::Error::Closed),
            Err(cause) => break peer.lost(cause),
        }
    };
    let _ = inputs.send(Input::Lost(lost));
}

impl Peer {
    fn lost(&self, cause: whimbrel_wire::Error) -> Error {
        let peer = self.address.clone();
        match cause {
            whimbrel_wire::Error::Io(e) if is_late(&e) => Error::Silent {
                peer,
                silence: self.timeout,
            },
            cause => Error::Link { peer, cause },
        }
    }
}

fn is_late(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    )
}

/// The list of missing pages that a destination begins with when it was lost.
fn missing(
    wishes: &mut WishReader<TcpStream>,
    is_stopped: impl Fn() -> bool,
) -> whimbrel_wire::Result<Pages> {
    let mut missing = Pages::new();
    for _ in 0..MISSING_RUNS_MAX {
        if is_stopped() {
            return Err(whimbrel_wire::Error::Closed);
        }
        match wishes.next_wish()? {
            Some(Wish::Missing(run)) => missing.insert(page_run(run)).map_err(|_| damaged())?,
            Some(Wish::Listed) => return Ok(missing),
            Some(Wish::Ended) => return Ok(Pages::new()),
            // What is told meanwhile is told again after the list.
            Some(_) => {}
            None => return Err(whimbrel_wire::Error::Closed),
        }
    }
    Err(damaged())
}

fn damaged() -> whimbrel_wire::Error {
    whimbrel_wire::Error::Damaged {
        what: "the list of missing pages",
    }
}
