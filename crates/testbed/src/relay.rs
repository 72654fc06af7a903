//! A distance between two hosts: a TCP relay that holds everything back for a fixed time.
//!
//! One thread with one loop: what has come in is stamped with the time at which it is due, and written then. The thread lives
//! in the network of the host that it was started for, so traffic takes the wires that lead there.
//!
//! Only what is said is delayed, not the connecting: the relay accepts at once, and connects to its target at the same time. If the
//! target refuses, the connection is reset.

mod pair;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::error::{Doing, Result};
use crate::host::Host;
use pair::{Pair, Wanted};

/// How much more than the delay holds may wait in one direction of a connection; then the sender is slowed down.
const SLACK_BYTES: usize = 2 << 20;

/// The fastest link that the delay alone must not slow down, in bytes per second: 1 Gbit/s.
const FASTEST: f64 = 125e6;

/// A sleep is cut short by so much, and the rest is spent looking at the clock: a timer is a little late.
const SPIN: Duration = Duration::from_micros(50);

/// A relay with a delay. Dropping it resets its connections.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    counts: Arc<Counts>,
    // The channel, and what wakes the thread out of its sleep.
    orders: Mutex<(Sender<Asked>, UnixStream)>,
    thread: Option<JoinHandle<()>>,
}

/// What the relay has done and has.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    bytes: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Stall(Duration),
    Cut,
    Mend,
    End,
}

/// An order, and who waits until it is carried out.
struct Asked {
    order: Order,
    done: Sender<()>,
}

impl Relay {
    /// Listens in the network of `host` at `listen` (port 0: any) and connects to `target` from there. `delay` is that of one
    /// direction: half of what it adds to a round trip.
    pub fn start(host: &Host, listen: SocketAddr, target: SocketAddr, delay: Duration) -> Result<Self> {
        let listener = host.listen(listen)?;
        let address = listener
            .local_addr()
            .doing(|| format!("cannot see where {listen} listens"))?;
        let (wake, awakened) = UnixStream::pair().doing(|| "cannot make a pair of sockets".to_string())?;
        let ready = listener
            .set_nonblocking(true)
            .and(awakened.set_nonblocking(true))
            .and(wake.set_nonblocking(true));
        ready.doing(|| "cannot make sockets that do not block".to_string())?;
        let (orders, obeyed) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let forwarder = Forwarder {
            address,
            target,
            delay,
            listener: Some(listener),
            pairs: Vec::new(),
            orders: obeyed,
            awakened,
            stalled_until: None,
            counts: Arc::clone(&counts),
            scratch: vec![0; pair::PIECE],
        };
        let enter = host.network_entrance()?;
        let thread = thread::spawn(move || {
            // Outside of its network it would reach nothing; its connections are reset then, which says enough.
            if enter().is_ok() {
                forwarder.run();
            }
        });
        Ok(Self {
            address,
            counts,
            orders: Mutex::new((orders, wake)),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Acquire)
    }

    /// Bytes that it has passed on so far, in both directions. A connection that is gone is counted in full.
    pub fn forwarded(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }

    /// Passes nothing on for so long, or until [`mend`](Self::mend). Connections stay; new ones wait.
    pub fn stall(&self, time: Duration) {
        self.order(Order::Stall(time));
    }

    /// Resets all connections, and refuses new ones until [`mend`](Self::mend). What was under way is lost.
    pub fn cut(&self) {
        self.order(Order::Cut);
    }

    /// Ends a cut and a stall.
    pub fn mend(&self) {
        self.order(Order::Mend);
    }

    /// Returns when it is done.
    fn order(&self, order: Order) {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, wait) = mpsc::channel();
        // A thread that has ended cannot be told, nor need it be.
        if orders.0.send(Asked { order, done }).is_ok() {
            let _ = (&orders.1).write(&[0]);
            let _ = wait.recv();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What runs in the thread.
struct Forwarder {
    address: SocketAddr,
    target: SocketAddr,
    delay: Duration,
    /// None while cut.
    listener: Option<TcpListener>,
    pairs: Vec<Pair>,
    orders: Receiver<Asked>,
    awakened: UnixStream,
    stalled_until: Option<Instant>,
    counts: Arc<Counts>,
    scratch: Vec<u8>,
}

impl Forwarder {
    fn run(mut self) {
        // A sleep ends when it should, and the scheduler prefers us to the workload: a wire does not wait for a CPU.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let _ = rustix::process::setpriority_process(None, -20);
        while self.obey() {
            let stalled = self.stalled_until.is_some();
            if !stalled {
                self.write_what_is_due();
            }
            let wanted: Vec<Wanted> = match stalled {
                true => Vec::new(),
                false => self.pairs.iter().map(|pair| pair.wanted(self.limit())).collect(),
            };
            let events = self.wait(&wanted);
            if !stalled && self.stalled_until.is_none() {
                self.take_in(&events);
            }
        }
    }

    /// How much may wait in one direction of a connection.
    fn limit(&self) -> usize {
        (FASTEST * self.delay.as_secs_f64()) as usize + SLACK_BYTES
    }

    /// Carries out orders. False if it is to end.
    fn obey(&mut self) -> bool {
        if self.stalled_until.is_some_and(|until| Instant::now() >= until) {
            self.stalled_until = None;
        }
        // Before the orders are looked at: whoever gives one wakes us after that.
        let _ = (&self.awakened).read(&mut [0; 64]);
        while let Ok(Asked { order, done }) = self.orders.try_recv() {
            match order {
                Order::Stall(time) => self.stalled_until = Instant::now().checked_add(time),
                Order::Cut => {
                    self.listener = None;
                    self.keep(|_| false);
                }
                Order::Mend => {
                    self.stalled_until = None;
                    self.listener = self.listener.take().or_else(|| listen_again(self.address));
                }
                Order::End => return false,
            }
            // Whoever gave the order may have gone.
            let _ = done.send(());
        }
        true
    }

    fn keep(&mut self, wanted: impl FnMut(&Pair) -> bool) {
        self.pairs.retain(wanted);
        self.counts.connections.store(self.pairs.len(), Ordering::Release);
    }

    fn write_what_is_due(&mut self) {
        let bytes: u64 = self.pairs.iter_mut().map(Pair::write_what_is_due).sum();
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.keep(|pair| !pair.is_over());
    }

    /// Sleeps until a socket is ready or something is due. The events of the pairs, in order.
    fn wait(&self, wanted: &[Wanted]) -> Vec<[PollFlags; 2]> {
        let due = wanted.iter().filter_map(|wanted| wanted.due).min();
        let due = due.into_iter().chain(self.stalled_until).min();
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left.saturating_sub(SPIN)).ok());
        let mut sockets = vec![PollFd::new(&self.awakened, PollFlags::IN)];
        let listens = self.stalled_until.is_none();
        if let Some(listener) = self.listener.as_ref().filter(|_| listens) {
            sockets.push(PollFd::new(listener, PollFlags::IN));
        }
        let own = sockets.len();
        // A socket from which nothing is wanted is left out: else its end would be told again and again.
        let mut asked = Vec::new();
        for (index, (pair, wanted)) in self.pairs.iter().zip(wanted).enumerate() {
            for (side, &flags) in wanted
                .flags
                .iter()
                .enumerate()
                .filter(|(_, flags)| !flags.is_empty())
            {
                sockets.push(PollFd::new(pair.socket(side), flags));
                asked.push((index, side));
            }
        }
        let mut events = vec![[PollFlags::empty(); 2]; wanted.len()];
        // An interrupted sleep is one that was too short.
        let _ = poll(&mut sockets, timeout.as_ref());
        for (socket, (index, side)) in sockets.iter().skip(own).zip(asked) {
            if let Some(pair) = events.get_mut(index) {
                pair[side] = socket.revents();
            }
        }
        events
    }

    fn take_in(&mut self, events: &[[PollFlags; 2]]) {
        for (pair, events) in self.pairs.iter_mut().zip(events) {
            pair.take_in(*events, self.delay, &mut self.scratch);
        }
        while let Some(Ok((near, _))) = self.listener.as_ref().map(TcpListener::accept) {
            if let Ok(pair) = connect(self.target).and_then(|far| Pair::new(near, far)) {
                self.pairs.push(pair);
            }
        }
        self.keep(|pair| !pair.is_over());
    }
}

/// Begins to connect. A connection that fails shows when it is used.
fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

/// After a cut. Connections that were reset leave nothing behind that could keep the address.
fn listen_again(address: SocketAddr) -> Option<TcpListener> {
    let listener = TcpListener::bind(address).ok()?;
    listener.set_nonblocking(true).ok()?;
    Some(listener)
}
