//! The destination's listening socket: every connection proves itself here, and is led to whom it belongs.
//!
//! | connection | nothing is received | its migration is received | another one is |
//! |---|---|---|---|
//! | control | a new migration begins | refused | refused |
//! | bulk, faults, push | closed | joins it | closed |
//! | query | answered from the journals | ends it, and is answered | "undecided, ask again" |

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, sync_channel, Receiver, Sender, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use whimbrel_wire::{respond, write_message, Greeting, Key, Message, MigrationId, Sentence, StreamKind};

use crate::error::{Error, Result};
use crate::journal::{Journals, Role};
use crate::link::{lock, set_up, Cut, Event, Limited, HANDSHAKE_TIMEOUT};

/// Handshakes at the same time; strangers beyond that are turned away.
const HANDSHAKES_MAX: usize = 16;
/// Arrivals that nobody has looked at yet; more are turned away.
const ARRIVALS_MAX: usize = 64;
/// How long a new migration waits for the end of the one before.
const CLEARING_MAX: Duration = Duration::from_secs(1);
/// How often the accepting thread looks whether it should end.
const TICK_MS: i64 = 50;

/// A connection for whoever waits at the door.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A new migration. Its other streams will arrive as events.
    Control {
        stream: TcpStream,
        id: MigrationId,
        peer: String,
        visit: Visit,
    },
    /// What became of this migration?
    Query { stream: TcpStream, id: MigrationId },
    /// Somebody who was turned away, for the user.
    TurnedAway(Error),
}

/// What the migration that is being received hears of the door.
#[derive(Debug)]
pub(crate) struct Visit {
    pub events: Receiver<Event>,
    pub sender: Sender<Event>,
    pub cut: Cut,
}

/// A listening socket with its thread. Closes with the value.
#[derive(Debug)]
pub(crate) struct Door {
    shared: Arc<Shared>,
    pub arrivals: Receiver<Arrival>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    key: Key,
    journals: Journals,
    timeout: Duration,
    current: Mutex<Option<Current>>,
    /// Notified when `current` becomes `None`.
    left: Condvar,
    arrivals: SyncSender<Arrival>,
    handshakes: AtomicUsize,
    closed: AtomicBool,
}

/// The migration that is being received.
#[derive(Clone, Debug)]
struct Current {
    id: MigrationId,
    sender: Sender<Event>,
    cut: Cut,
}

impl Door {
    /// Accepts from now on. `key` is what a new migration must prove.
    pub fn open(listener: &TcpListener, key: Key, journals: Journals, timeout: Duration) -> Result<Self> {
        let socket = |cause| Error::Socket {
            what: "listen".into(),
            cause,
        };
        // The socket is shared with the guardian: neither may block in accept(2) on a connection that the other took.
        listener.set_nonblocking(true).map_err(socket)?;
        let listener = listener.try_clone().map_err(socket)?;
        let (sender, arrivals) = sync_channel(ARRIVALS_MAX);
        let shared = Arc::new(Shared {
            key,
            journals,
            timeout,
            current: Mutex::new(None),
            left: Condvar::new(),
            arrivals: sender,
            handshakes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("door".into())
            .spawn(move || accept_all(&listener, &for_thread))
            .map_err(Error::Thread)?;
        Ok(Self {
            shared,
            arrivals,
            thread: Some(thread),
        })
    }

    /// The migration that arrived last is over: the next one may come.
    pub fn leave(&self) {
        self.shared.leave();
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.closed.load(Ordering::Relaxed) {
        let Some((stream, peer)) = accept_soon(listener) else {
            continue;
        };
        if shared.handshakes.fetch_add(1, Ordering::Relaxed) >= HANDSHAKES_MAX {
            shared.handshakes.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let for_thread = Arc::clone(shared);
        let greet = move || {
            for_thread.greet(stream, peer);
            for_thread.handshakes.fetch_sub(1, Ordering::Relaxed);
        };
        if thread::Builder::new()
            .name("greeting".into())
            .spawn(greet)
            .is_err()
        {
            shared.handshakes.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Waits a moment for a connection.
pub(crate) fn accept_soon(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    let tick = Timespec {
        tv_sec: 0,
        tv_nsec: TICK_MS * 1_000_000,
    };
    if !matches!(poll(&mut fds, Some(&tick)), Ok(1..)) {
        return None;
    }
    match listener.accept() {
        Ok(accepted) => Some(accepted),
        Err(e) => {
            // Out of descriptors, say: poll would come back at once, again and again.
            if e.kind() != io::ErrorKind::WouldBlock {
                thread::sleep(Duration::from_millis(TICK_MS as u64));
            }
            None
        }
    }
}

/// The responder's half of the handshake on an accepted connection.
pub(crate) fn greet(
    stream: &TcpStream,
    timeout: Duration,
    key_of: impl FnOnce(MigrationId, StreamKind) -> Option<Key>,
) -> whimbrel_wire::Result<Greeting> {
    stream.set_nonblocking(false)?;
    set_up(stream, timeout)?;
    let greeting = respond(&mut Limited::new(stream, timeout.min(HANDSHAKE_TIMEOUT)), key_of)?;
    stream.set_read_timeout(None)?;
    Ok(greeting)
}

impl Shared {
    fn leave(&self) {
        *lock(&self.current) = None;
        self.left.notify_all();
    }

    fn greet(&self, stream: TcpStream, peer: SocketAddr) {
        let peer = peer.to_string();
        match greet(&stream, self.timeout, |id, kind| self.key_of(id, kind)) {
            Ok(greeting) => self.lead(stream, greeting, peer),
            Err(cause) => self.arrive(Arrival::TurnedAway(Error::Handshake { peer, cause })),
        }
    }

    /// A journal's key counts for its migration, so that questions can be proved after this program was started anew.
    fn key_of(&self, id: MigrationId, kind: StreamKind) -> Option<Key> {
        match kind {
            StreamKind::Control => Some(self.key.clone()),
            StreamKind::Bulk(0) | StreamKind::Fault(_) | StreamKind::Push(_) => lock(&self.current)
                .as_ref()
                .filter(|current| current.id == id)
                .map(|_| self.key.clone()),
            StreamKind::Query => {
                let journal = self.journals.read(id, Role::Destination).ok().flatten();
                Some(journal.map_or_else(|| self.key.clone(), |record| record.key))
            }
            _ => None,
        }
    }

    fn lead(&self, mut stream: TcpStream, greeting: Greeting, peer: String) {
        let id = greeting.id;
        let current = match greeting.kind {
            StreamKind::Control => return self.lead_control(stream, id, peer),
            _ => lock(&self.current).clone(),
        };
        match (greeting.kind, current) {
            (StreamKind::Bulk(_), Some(current)) if current.id == id => {
                let _ = current.sender.send(Event::Bulk(stream));
            }
            (kind @ (StreamKind::Fault(_) | StreamKind::Push(_)), Some(current)) if current.id == id => {
                let _ = current.sender.send(Event::Joined(kind, stream));
            }
            (StreamKind::Query, Some(current)) if current.id == id => {
                let _ = current.sender.send(Event::Queried(stream));
                current.cut.cut();
            }
            (StreamKind::Query, None) => self.arrive(Arrival::Query { stream, id }),
            (StreamKind::Query, Some(_)) => {
                let _ = write_message(&mut stream, &Message::Undecided);
            }
            _ => {}
        }
    }

    fn lead_control(&self, mut stream: TcpStream, id: MigrationId, peer: String) {
        let (sender, events) = channel();
        let visit = Visit {
            events,
            sender: sender.clone(),
            cut: Cut::default(),
        };
        // A source that was refused may try again before its first attempt is cleared away.
        let waited = self
            .left
            .wait_timeout_while(lock(&self.current), CLEARING_MAX, |current| current.is_some());
        let (mut current, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if current.is_some() {
            drop(current);
            let busy = "another migration is being received there just now: try again when it is over";
            let _ = write_message(&mut stream, &Message::Refused(Sentence::new(busy)));
            return;
        }
        *current = Some(Current {
            id,
            sender,
            cut: visit.cut.clone(),
        });
        drop(current);
        self.arrive(Arrival::Control {
            stream,
            id,
            peer,
            visit,
        });
    }

    fn arrive(&self, arrival: Arrival) {
        if let Err(full) = self.arrivals.try_send(arrival) {
            let (std::sync::mpsc::TrySendError::Full(arrival)
            | std::sync::mpsc::TrySendError::Disconnected(arrival)) = full;
            if let Arrival::Control { .. } = arrival {
                self.leave();
            }
        }
    }
}
