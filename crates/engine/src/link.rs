//! Connections with time limits: the control stream with its reader thread, and how connections are made.
//!
//! A peer is alive as long as anything arrives on the control stream; each end sends a `Ping` when it has had nothing to say for
//! a quarter of the time limit. Reading and pinging are done by a thread of their own, so that a long step of the
//! migration (checking files, building threads) does not look like death.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use whimbrel_wire::{initiate, write_message, Key, Message, MessageDecoder, MigrationId, StreamKind};

use crate::error::{Error, Result};

/// A silent peer is given up after this, unless the user says otherwise.
pub const LINK_TIMEOUT: Duration = Duration::from_secs(10);
/// A handshake takes at most this, so that strangers cannot hold connections open.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The nice value of threads that serve page faults.
const NICE_OF_PAGERS: i32 = -10;
/// How often the reader thread looks around while nothing arrives.
const TICK: Duration = Duration::from_millis(100);

/// What reaches the thread that drives a migration.
#[derive(Debug)]
pub(crate) enum Event {
    /// The peer said something.
    Message(Message),
    /// The control stream is gone; nothing more comes from it.
    Lost(Error),
    /// The user cancelled. Told once.
    Cancelled,
    /// Destination: the bulk stream arrived, behind its handshake.
    Bulk(TcpStream),
    /// Destination: the source lost its control stream and asks on a new one.
    Queried(TcpStream),
    /// Destination: one of the two streams of post-copy arrived.
    Joined(StreamKind, TcpStream),
}

/// Connections that are shut down when the driving thread must notice something while it is blocked in one of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cut {
    streams: Arc<Mutex<(bool, Vec<TcpStream>)>>,
}

impl Cut {
    /// Adds a stream. One that comes after the cut is cut at once.
    pub fn add(&self, stream: &TcpStream) -> io::Result<()> {
        let stream = stream.try_clone()?;
        let mut streams = lock(&self.streams);
        if streams.0 {
            shut(&stream);
        }
        streams.1.push(stream);
        Ok(())
    }

    pub fn cut(&self) {
        let mut streams = lock(&self.streams);
        streams.0 = true;
        streams.1.iter().for_each(shut);
    }
}

/// An error only says that it is closed already.
pub(crate) fn shut(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Both);
}

/// For threads that others wait for with every page: they get a processor before those who compute (setpriority(2), of this thread alone).
/// Without the privilege they go on as they are.
pub(crate) fn hurry_thread() {
    let _ = rustix::process::setpriority_process(None, NICE_OF_PAGERS);
}

/// A panic in a thread that held the lock leaves nothing half done here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sending half of a control stream; its messages go whole, also from several threads.
#[derive(Clone, Debug)]
struct Speaker {
    stream: Arc<Mutex<TcpStream>>,
    spoke: Arc<Mutex<Instant>>,
}

impl Speaker {
    fn say(&self, message: &Message) -> whimbrel_wire::Result<()> {
        let mut stream = lock(&self.stream);
        write_message(&mut *stream, message)?;
        *lock(&self.spoke) = Instant::now();
        Ok(())
    }
}

/// What a control stream needs to know.
#[derive(Clone, Debug)]
pub(crate) struct LinkOptions {
    /// The peer's address, for messages.
    pub peer: String,
    /// When a silent peer is given up.
    pub timeout: Duration,
    /// The user's wish to stop.
    pub cancel: Arc<AtomicBool>,
    /// What else to shut down when the link is lost, the peer gives up or the user cancels.
    pub cut: Cut,
}

/// A control stream, behind its handshake. Ends with the value.
#[derive(Debug)]
pub(crate) struct ControlLink {
    speaker: Speaker,
    stream: TcpStream,
    peer: String,
    reader: Option<JoinHandle<()>>,
}

impl ControlLink {
    /// Starts the reader thread; what arrives goes to `events`.
    pub fn start(stream: TcpStream, options: LinkOptions, events: Sender<Event>) -> Result<Self> {
        set_up(&stream, options.timeout).map_err(|cause| socket("set up the control connection", cause))?;
        let clone = || {
            stream
                .try_clone()
                .map_err(|cause| socket("share the control connection", cause))
        };
        let speaker = Speaker {
            stream: Arc::new(Mutex::new(clone()?)),
            spoke: Arc::new(Mutex::new(Instant::now())),
        };
        let peer = options.peer.clone();
        let listener = Listener {
            speaker: speaker.clone(),
            stream: clone()?,
            options,
            events,
        };
        listener
            .stream
            .set_read_timeout(Some(TICK))
            .map_err(|cause| socket("set a time limit", cause))?;
        let reader = thread::Builder::new()
            .name("control".into())
            .spawn(|| listener.run())
            .map_err(Error::Thread)?;
        Ok(Self {
            speaker,
            stream,
            peer,
            reader: Some(reader),
        })
    }

    /// Sends a message.
    pub fn say(&self, message: &Message) -> Result<()> {
        self.speaker.say(message).map_err(|cause| Error::Link {
            peer: self.peer.clone(),
            cause,
        })
    }
}

impl Drop for ControlLink {
    fn drop(&mut self) {
        shut(&self.stream);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The reader thread.
struct Listener {
    speaker: Speaker,
    stream: TcpStream,
    options: LinkOptions,
    events: Sender<Event>,
}

impl Listener {
    fn run(mut self) {
        let lost = self.listen().err();
        self.options.cut.cut();
        if let Some(error) = lost {
            // Nobody hears it if the migration is over.
            let _ = self.events.send(Event::Lost(error));
        }
    }

    /// Ends well when nobody listens to the events any more.
    fn listen(&mut self) -> Result<()> {
        let mut decoder = MessageDecoder::default();
        let mut buffer = vec![0; 64 << 10];
        let mut heard = Instant::now();
        let mut cancelled = false;
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) if decoder.is_empty() => return Err(self.link_error(whimbrel_wire::Error::Closed)),
                Ok(0) => return Err(self.link_error(whimbrel_wire::Error::BrokenOff)),
                Ok(n) => {
                    heard = Instant::now();
                    decoder.push(&buffer[..n]);
                }
                Err(e) if is_pause(&e) => {}
                Err(e) => return Err(self.link_error(e.into())),
            }
            while let Some(message) = decoder.next_message().map_err(|e| self.link_error(e))? {
                if !self.pass_on(message) {
                    return Ok(());
                }
            }
            if !cancelled && self.options.cancel.load(Ordering::Relaxed) {
                cancelled = true;
                let _ = self.events.send(Event::Cancelled);
                self.options.cut.cut();
            }
            self.stay_alive(heard)?;
        }
    }

    /// False if nobody listens any more.
    fn pass_on(&self, message: Message) -> bool {
        let ends = matches!(message, Message::Abort(_) | Message::Refused(_));
        if message != Message::Ping && self.events.send(Event::Message(message)).is_err() {
            return false;
        }
        if ends {
            self.options.cut.cut();
        }
        true
    }

    fn stay_alive(&self, heard: Instant) -> Result<()> {
        let timeout = self.options.timeout;
        if heard.elapsed() > timeout {
            return Err(Error::Silent {
                peer: self.options.peer.clone(),
                silence: timeout,
            });
        }
        if lock(&self.speaker.spoke).elapsed() < timeout / 4 {
            return Ok(());
        }
        // If another thread is writing, the peer hears us anyway.
        let Ok(mut stream) = self.speaker.stream.try_lock() else {
            return Ok(());
        };
        *lock(&self.speaker.spoke) = Instant::now();
        // A peer that has closed may have said why: what it said is still to be read, and then its end.
        let _ = write_message(&mut *stream, &Message::Ping);
        Ok(())
    }

    fn link_error(&self, cause: whimbrel_wire::Error) -> Error {
        Error::Link {
            peer: self.options.peer.clone(),
            cause,
        }
    }
}

fn is_pause(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn socket(what: &str, cause: io::Error) -> Error {
    Error::Socket {
        what: what.into(),
        cause,
    }
}

/// Time limits on a socket that carries a migration: small messages at once, and neither a write nor unacknowledged
/// data (TCP_USER_TIMEOUT, tcp(7)) may wait longer than `timeout`.
pub(crate) fn set_up(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(timeout))?;
    let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, millis)?)
}

/// Connects to `address` (host:port, every address that the name has) and proves the key.
pub(crate) fn dial(
    address: &str,
    key: &Key,
    id: MigrationId,
    kind: StreamKind,
    timeout: Duration,
) -> Result<TcpStream> {
    let stream = connect(address, timeout).map_err(|cause| Error::Unreachable {
        address: address.to_owned(),
        cause,
    })?;
    let shaken = set_up(&stream, timeout)
        .map_err(whimbrel_wire::Error::from)
        .and_then(|()| {
            let mut limited = Limited::new(&stream, timeout.min(HANDSHAKE_TIMEOUT));
            initiate(&mut limited, key, id, kind)
        });
    shaken.map_err(|cause| Error::Handshake {
        peer: address.to_owned(),
        cause,
    })?;
    stream
        .set_read_timeout(None)
        .map_err(|cause| socket("take a time limit away", cause))?;
    Ok(stream)
}

fn connect(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// A stream whose whole conversation, not only each read, must end within a time.
pub(crate) struct Limited<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl<'a> Limited<'a> {
    pub fn new(stream: &'a TcpStream, time: Duration) -> Self {
        Self {
            stream,
            until: Instant::now() + time,
        }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        }
        Ok(left)
    }
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        match self.stream.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
            }
            other => other,
        }
    }
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left()?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Waits for one message on a stream without a reader thread.
pub(crate) fn hear(stream: &TcpStream, time: Duration) -> whimbrel_wire::Result<Message> {
    let mut limited = Limited::new(stream, time);
    let mut decoder = MessageDecoder::default();
    let mut buffer = [0; 4096];
    loop {
        match decoder.next_message()? {
            Some(Message::Ping) => {}
            Some(message) => return Ok(message),
            None => match limited.read(&mut buffer)? {
                0 => return Err(whimbrel_wire::Error::Closed),
                n => decoder.push(&buffer[..n]),
            },
        }
    }
}
