//! One connection that is relayed: two sockets, and what waits in either direction.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::sockopt;

/// How much is read at once: no more than is copied while nothing else could become due.
pub(super) const PIECE: usize = 64 << 10;

/// What the loop shall wait for.
pub(super) struct Wanted {
    /// Of each socket.
    pub flags: [PollFlags; 2],
    /// When the next piece is due.
    pub due: Option<Instant>,
}

/// A connection. Its two sockets are called 0, that of the one who connected, and 1.
pub(super) struct Pair {
    sockets: [TcpStream; 2],
    /// What has come from each socket and waits for the other one.
    waiting: [Waiting; 2],
    /// A socket has failed, or the reset of a peer has been passed on.
    broken: bool,
}

/// What waits in one direction.
#[derive(Default)]
struct Waiting {
    items: VecDeque<(Instant, Item)>,
    bytes: usize,
    /// How much of the first item has been written.
    written: usize,
    /// The sender has said all.
    read_all: bool,
    /// The receiver's buffer is full.
    blocked: bool,
    /// The receiver has been told the end.
    over: bool,
}

enum Item {
    Bytes(Vec<u8>),
    End,
    Reset,
}

impl Pair {
    pub fn new(near: TcpStream, far: TcpStream) -> io::Result<Self> {
        for socket in [&near, &far] {
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
        }
        Ok(Self {
            sockets: [near, far],
            waiting: Default::default(),
            broken: false,
        })
    }

    pub fn socket(&self, side: usize) -> &TcpStream {
        &self.sockets[side]
    }

    pub fn is_over(&self) -> bool {
        self.broken || self.said_all()
    }

    /// Both ends have said all, and been told so.
    fn said_all(&self) -> bool {
        self.waiting.iter().all(|waiting| waiting.over)
    }

    /// What may be read if at most `limit` bytes may wait, and what must be written.
    pub fn wanted(&self, limit: usize) -> Wanted {
        let flags = [0, 1].map(|side| {
            let (from, to) = (&self.waiting[side], &self.waiting[1 - side]);
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !from.read_all && from.bytes < limit);
            flags.set(PollFlags::OUT, to.blocked);
            flags
        });
        let waiting = self.waiting.iter().filter(|waiting| !waiting.blocked);
        let due = waiting
            .filter_map(|waiting| waiting.items.front())
            .map(|item| item.0);
        Wanted {
            flags,
            due: due.min(),
        }
    }

    /// Reads what has come, and remembers who can be written to again.
    pub fn take_in(&mut self, events: [PollFlags; 2], delay: Duration, scratch: &mut [u8]) {
        let bad = PollFlags::ERR | PollFlags::HUP;
        for (side, events) in events.into_iter().enumerate() {
            if events.intersects(PollFlags::OUT | bad) {
                self.waiting[1 - side].blocked = false;
            }
            let waiting = &mut self.waiting[side];
            if !events.intersects(PollFlags::IN | bad) || waiting.read_all {
                continue;
            }
            let item = match (&self.sockets[side]).read(scratch) {
                Ok(0) => Item::End,
                Ok(count) => Item::Bytes(scratch.get(..count).unwrap_or_default().to_vec()),
                Err(error) if is_later(&error) => continue,
                Err(_) => Item::Reset,
            };
            match &item {
                Item::Bytes(bytes) => waiting.bytes += bytes.len(),
                Item::End | Item::Reset => waiting.read_all = true,
            }
            waiting.items.push_back((Instant::now() + delay, item));
        }
    }

    /// Writes what is due, as far as the receivers take it, and gives how many bytes that was.
    pub fn write_what_is_due(&mut self) -> u64 {
        let mut bytes = 0;
        for (waiting, to) in self.waiting.iter_mut().zip([&self.sockets[1], &self.sockets[0]]) {
            match waiting.write_what_is_due(to) {
                Ok(written) => bytes += written,
                Err(_) => self.broken = true,
            }
        }
        bytes
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // What ended well may still have bytes in the kernel's buffers, which a reset would lose.
        if !self.said_all() {
            for socket in &self.sockets {
                let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
            }
        }
    }
}

impl Waiting {
    /// Fails when the connection must be reset.
    fn write_what_is_due(&mut self, mut to: &TcpStream) -> io::Result<u64> {
        let mut total = 0;
        while let Some((due, item)) = self.items.front().filter(|_| !self.blocked) {
            if *due > Instant::now() {
                break;
            }
            let rest = match item {
                Item::Bytes(bytes) => bytes.get(self.written..).unwrap_or_default(),
                Item::End => {
                    to.shutdown(Shutdown::Write)?;
                    self.over = true;
                    &[]
                }
                Item::Reset => return Err(ErrorKind::ConnectionReset.into()),
            };
            match rest.len() {
                0 => drop(self.items.pop_front()),
                left => match to.write(rest) {
                    Ok(count) => {
                        total += count as u64;
                        self.bytes -= count;
                        self.written = if count == left { 0 } else { self.written + count };
                        if count == left {
                            self.items.pop_front();
                        }
                    }
                    Err(error) if is_later(&error) => self.blocked = true,
                    Err(error) => return Err(error),
                },
            }
        }
        Ok(total)
    }
}

/// Whether a socket only asks for patience.
fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
