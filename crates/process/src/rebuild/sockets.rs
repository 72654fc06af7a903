//! Sockets, made by us in the network namespace of the workload.
//!
//! Listeners come first, while nothing occupies their ports; connections are bound in repair mode, which asks nobody. Every
//! connection stays in repair mode: whatever happens to the replica before the commit, its peer hears nothing.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use whimbrel_kernel::fd as kfd;
use whimbrel_kernel::socket::{self as sys, Negotiated, Queue, Repair};

use super::{Error, Result};
use crate::capture::sockets::{RepairedSocket, SO_BUF_LOCK};
use crate::state::{
    FileKind, OpenFile, Socket, SocketBuffers, SocketDetail, SocketOption, TcpConnection, UnixEnd,
};

/// More than any queue: what a queue costs the kernel is a multiple of its bytes.
const BUFFER_BYTES_MAX: usize = 256 << 20;

/// A made file: its index in the state, and our descriptor for it.
pub(super) type Made = (usize, OwnedFd);

/// Makes all sockets. Runs in the right network namespace.
pub(super) fn build(files: &[OpenFile]) -> Result<(Vec<Made>, Vec<RepairedSocket>)> {
    let mut sockets: Vec<(usize, &Socket)> = Vec::new();
    for (index, file) in files.iter().enumerate() {
        if let FileKind::Socket(socket) = &file.kind {
            sockets.push((index, socket));
        }
    }
    sockets.sort_by_key(|(index, socket)| (order(&socket.detail), *index));
    let mut made = Vec::with_capacity(sockets.len());
    let mut repaired = Vec::new();
    for (index, socket) in &sockets {
        let fd = match &socket.detail {
            SocketDetail::Unix(_) => continue,
            SocketDetail::Tcp(connection) => {
                let fd = connect(socket, connection)?;
                repaired.push(remember(&fd, socket)?);
                fd
            }
            _ => idle(socket)?,
        };
        made.push((*index, fd));
    }
    made.append(&mut pairs(&sockets)?);
    Ok((made, repaired))
}

fn order(detail: &SocketDetail) -> u8 {
    match detail {
        SocketDetail::Listen { .. } => 0,
        SocketDetail::Idle | SocketDetail::Udp => 1,
        SocketDetail::Tcp(_) => 2,
        SocketDetail::Unix(_) => 3,
    }
}

fn remember(fd: &OwnedFd, socket: &Socket) -> Result<RepairedSocket> {
    let reuse =
        |option: &&SocketOption| (option.level, option.name) == (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    let value = socket
        .options
        .iter()
        .find(reuse)
        .map_or(0, |option| option.value.first().copied().unwrap_or(0));
    // 2 is what the repair mode itself sets, in a socket that a dead controller had left in it
    Ok(RepairedSocket {
        inode: kfd::file_status(fd.as_fd())?.inode,
        reuse_address: value != 0,
    })
}

/// Everything but connections and pairs.
fn idle(socket: &Socket) -> Result<OwnedFd> {
    let fd = sys::create(socket.family, socket.kind, socket.protocol)?;
    set_options(fd.as_fd(), socket)?;
    set_buffers(fd.as_fd(), socket.buffers)?;
    if is_bound(&socket.local) {
        sys::bind(fd.as_fd(), &socket.local)?;
    }
    match &socket.detail {
        SocketDetail::Listen { backlog } => sys::listen(fd.as_fd(), *backlog as i32)?,
        SocketDetail::Udp if !socket.peer.is_empty() => sys::connect(fd.as_fd(), &socket.peer)?,
        _ => {}
    }
    Ok(fd)
}

/// Whether an internet address has a port or anything but the wildcard address.
fn is_bound(address: &[u8]) -> bool {
    // family, then port, (flow information,) address: all zero when it is not bound
    address
        .get(2..)
        .is_some_and(|rest| rest.iter().any(|byte| *byte != 0))
}

fn set_options(fd: BorrowedFd<'_>, socket: &Socket) -> Result<()> {
    let connection = matches!(socket.detail, SocketDetail::Tcp(_));
    for option in &socket.options {
        let id = (option.level, option.name);
        // the repair mode has its own idea of it until the end
        if connection && id == (libc::SOL_SOCKET, libc::SO_REUSEADDR) {
            continue;
        }
        if sys::option(fd, option.level, option.name, option.value.len().max(1))
            .is_ok_and(|now| now == option.value)
        {
            continue;
        }
        let set = sys::set_option(fd, option.level, option.name, &option.value);
        // an algorithm that this kernel lacks only changes the speed
        if id != (libc::IPPROTO_TCP, libc::TCP_CONGESTION) {
            set?;
        }
    }
    Ok(())
}

/// Sets the sizes, also where the system's limits are lower than at the source, and leaves to the kernel what the program left to it.
fn set_buffers(fd: BorrowedFd<'_>, buffers: SocketBuffers) -> Result<()> {
    let set = |name, value| sys::set_option_int(fd, libc::SOL_SOCKET, name, value);
    let half = |bytes: u32| (bytes / 2).min(i32::MAX as u32) as i32;
    set(libc::SO_SNDBUFFORCE, half(buffers.send))?;
    set(libc::SO_RCVBUFFORCE, half(buffers.receive))?;
    Ok(set(SO_BUF_LOCK, buffers.locked as i32 & 3)?)
}

/// Makes room for a queue while it is put back.
fn make_room(fd: BorrowedFd<'_>, bytes: usize) -> Result<()> {
    if bytes > BUFFER_BYTES_MAX {
        return Err(Error::Unfit(format!(
            "a socket with {bytes} bytes in a queue is more than any kernel keeps"
        )));
    }
    let room = (bytes * 2).max(1 << 20) as i32;
    sys::set_option_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room)?;
    Ok(sys::set_option_int(
        fd,
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        room,
    )?)
}

/// A TCP connection, silent.
fn connect(socket: &Socket, connection: &TcpConnection) -> Result<OwnedFd> {
    let owned = sys::create(socket.family, socket.kind, socket.protocol)?;
    let fd = owned.as_fd();
    sys::set_repair(fd, Repair::On)?;
    set_options(fd, socket)?;
    let sequence = |queue, end: u32, length: usize| {
        sys::select_queue(fd, queue)?;
        sys::set_queue_sequence(fd, end.wrapping_sub(length as u32))
    };
    sequence(
        Queue::Receive,
        connection.receive_sequence,
        connection.receive_queue.len(),
    )?;
    sequence(Queue::Send, connection.send_sequence, connection.send_queue.len())?;
    // Before it connects, or it goes on with the segments of 536 bytes that a new socket begins with.
    sys::set_maximum_segment(fd, connection.mss)?;
    sys::bind(fd, &socket.local)?;
    sys::connect(fd, &socket.peer)?;
    sys::set_negotiated(
        fd,
        Negotiated {
            mss: connection.mss,
            options: connection.negotiated,
            send_scale: connection.window_scales.0,
            receive_scale: connection.window_scales.1,
        },
    )?;
    if connection.negotiated & sys::NEGOTIATED_TIMESTAMPS != 0 {
        sys::set_timestamp(fd, connection.timestamp)?;
    }
    fill(fd, connection)?;
    set_buffers(fd, socket.buffers)?;
    Ok(owned)
}

/// Puts the queues back. What was sent is queued in repair mode, as if it had been sent here. What was never sent is queued in
/// the ordinary way, behind a closed window: nothing leaves now, and the peer's answer to the probe when the connection is woken opens it.
fn fill(fd: BorrowedFd<'_>, connection: &TcpConnection) -> Result<()> {
    make_room(
        fd,
        connection.receive_queue.len().max(connection.send_queue.len()),
    )?;
    sys::select_queue(fd, Queue::Receive)?;
    sys::send_all(fd, &connection.receive_queue)?;
    sys::select_queue(fd, Queue::Send)?;
    let sent = connection
        .send_queue
        .len()
        .saturating_sub(connection.unsent as usize);
    let (sent, unsent) = connection.send_queue.split_at(sent);
    sys::send_all(fd, sent)?;
    let [update, peer_window, largest, ours, last] = connection.window;
    let peer_window = if unsent.is_empty() { peer_window } else { 0 };
    let window = [update, peer_window, largest, ours, last];
    sys::set_window(fd, window)?;
    if !unsent.is_empty() {
        sys::set_repair(fd, Repair::OffSilent)?;
        sys::send_all(fd, unsent)?;
    }
    if connection.send_closed {
        sys::shutdown(fd, libc::SHUT_WR)?;
    }
    if connection.receive_closed {
        sys::shutdown(fd, libc::SHUT_RD)?;
    }
    if !unsent.is_empty() {
        sys::set_repair(fd, Repair::On)?;
        // in between it may have chosen a window of its own, by buffers that are not the final ones
        sys::set_window(fd, window)?;
    }
    sys::select_queue(fd, Queue::None)?;
    Ok(())
}

/// Unix pairs. An end without a peer gets one that is closed again, so that its program finds the same end of file.
fn pairs(sockets: &[(usize, &Socket)]) -> Result<Vec<Made>> {
    let mut by_inode: HashMap<u64, (usize, &Socket, &UnixEnd)> = HashMap::new();
    for (index, socket) in sockets {
        if let SocketDetail::Unix(end) = &socket.detail {
            by_inode.insert(socket.inode, (*index, socket, end));
        }
    }
    let mut done: HashSet<u64> = HashSet::new();
    let mut made = Vec::with_capacity(by_inode.len());
    let mut inodes: Vec<u64> = by_inode.keys().copied().collect();
    inodes.sort_unstable();
    for inode in inodes {
        let Some((index, socket, end)) = by_inode.get(&inode).filter(|_| done.insert(inode)) else {
            continue;
        };
        let other = by_inode.get(&end.peer);
        if end.peer != 0 && other.is_none() {
            return Err(Error::Unfit(format!(
                "the other end of unix socket {inode} is not in the state"
            )));
        }
        done.insert(end.peer);
        let (first, second) = sys::pair(socket.kind)?;
        deliver(&second, &first, end)?;
        if let Some((other_index, other_socket, other_end)) = other {
            deliver(&first, &second, other_end)?;
            finish(&second, other_socket, other_end)?;
            finish(&first, socket, end)?;
            made.push((*other_index, second));
        } else {
            drop(second);
            finish(&first, socket, end)?;
        }
        made.push((*index, first));
    }
    Ok(made)
}

/// Sends what an end had received from its other end.
fn deliver(from: &OwnedFd, to: &OwnedFd, end: &UnixEnd) -> Result<()> {
    let bytes = end.received.iter().map(Vec::len).sum();
    make_room(from.as_fd(), bytes)?;
    make_room(to.as_fd(), bytes)?;
    for packet in &end.received {
        let sent = sys::send(from.as_fd(), packet)?;
        // only a stream may be split
        sys::send_all(from.as_fd(), packet.get(sent..).unwrap_or_default())?;
    }
    Ok(())
}

fn finish(fd: &OwnedFd, socket: &Socket, end: &UnixEnd) -> Result<()> {
    set_options(fd.as_fd(), socket)?;
    set_buffers(fd.as_fd(), socket.buffers)?;
    // RCV_SHUTDOWN (1) and SEND_SHUTDOWN (2)
    let how = match end.shutdown & 3 {
        1 => libc::SHUT_RD,
        2 => libc::SHUT_WR,
        3 => libc::SHUT_RDWR,
        _ => return Ok(()),
    };
    Ok(sys::shutdown(fd.as_fd(), how)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::sockets::{enter_repair, read, wake, Site};
    use crate::capture::unsent::Unsent;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::time::Duration;
    use whimbrel_kernel::namespace::{unshare, Kinds};
    use whimbrel_kernel::netlink::Netlink;

    const SITE: Site = Site {
        pid: 9,
        fd: 3,
        own_network: true,
    };

    fn pair(address: &str) -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server.into())
    }

    /// A connection between 10.1.1.2 and 10.1.1.1: the server's peer has another address than itself.
    fn strangers() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind("10.1.1.1:0").unwrap();
        let there = sys::local_address(listener.as_fd()).unwrap();
        let mut here = there.clone();
        here[2..8].copy_from_slice(&[0, 0, 10, 1, 1, 2]);
        let client = sys::create(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        sys::bind(client.as_fd(), &here).unwrap();
        sys::connect(client.as_fd(), &there).unwrap();
        let client = TcpStream::from(client);
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        (client, listener.accept().unwrap().0.into())
    }

    /// Moves the calling thread into a network of its own.
    fn own_network() {
        unshare(Kinds::NETWORK).unwrap();
        let mut net = Netlink::open().unwrap();
        let loopback = net.link("lo").unwrap().unwrap().index;
        net.set_up(loopback, true).unwrap();
        for address in ["10.1.1.1", "10.1.1.2"] {
            net.add_address(loopback, address.parse().unwrap(), 32).unwrap();
        }
    }

    /// All that was sent has arrived.
    fn settle(fd: &impl AsFd) {
        while sys::unacknowledged_bytes(fd.as_fd()).unwrap() > 0 {
            std::thread::yield_now();
        }
    }

    /// Captures a connection, ends it without a word, and makes it again in the same place. Both states must agree.
    fn again(fd: OwnedFd) -> (TcpStream, TcpConnection) {
        again_as(fd, |_| ())
    }

    /// The same with a state that was corrected.
    fn again_as(fd: OwnedFd, correct: impl FnOnce(&mut OpenFile)) -> (TcpStream, TcpConnection) {
        let inode = kfd::file_status(fd.as_fd()).unwrap().inode;
        let before = enter_repair(fd.as_fd(), inode).unwrap();
        let socket = read(fd.as_fd(), SITE, inode, None).unwrap();
        drop(fd);
        let mut file = OpenFile {
            flags: libc::O_RDWR,
            owner: None,
            kind: FileKind::Socket(Box::new(socket)),
        };
        correct(&mut file);
        let FileKind::Socket(socket) = file.kind.clone() else {
            panic!("{file:?}")
        };
        let (mut made, mut repaired) = build(&[file]).unwrap();
        let fd = made.pop().unwrap().1;
        repaired[0].reuse_address = before.reuse_address;
        let rebuilt = read(fd.as_fd(), SITE, inode, None).unwrap();
        assert_eq!(
            (&rebuilt.local, &rebuilt.peer, rebuilt.buffers),
            (&socket.local, &socket.peer, socket.buffers)
        );
        for (left, right) in socket.options.iter().zip(&rebuilt.options) {
            assert!(
                left == right || left.name == libc::SO_REUSEADDR,
                "{left:?} {right:?}"
            );
        }
        let SocketDetail::Tcp(connection) = socket.detail else {
            panic!("{:?}", socket.detail)
        };
        wake(fd.as_fd(), &repaired).unwrap();
        let reuse = sys::option_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap();
        assert_eq!(reuse == 1, before.reuse_address);
        (TcpStream::from(fd), *connection)
    }

    fn talk(client: &mut TcpStream, server: &mut TcpStream) {
        say(client, server);
        say(server, client);
    }

    fn say(from: &mut TcpStream, to: &mut TcpStream) {
        from.write_all(b"some words").unwrap();
        let mut got = [0; 10];
        to.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"some words");
    }

    #[test]
    fn connections_of_every_family_go_on() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (mut client, server) = pair(address);
            let (mut server, _) = again(server);
            talk(&mut client, &mut server);
        }
        // an IPv4 client of a listener for both
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let server = OwnedFd::from(listener.accept().unwrap().0);
        let (mut server, _) = again(server);
        talk(&mut client, &mut server);
    }

    #[test]
    fn queues_and_options_are_the_same() {
        let (mut client, server) = pair("127.0.0.1:0");
        for (level, name, value) in [
            (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 12_345),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::SOL_SOCKET, libc::SO_SNDBUF, 30_000),
            (libc::IPPROTO_IP, libc::IP_TOS, 16),
        ] {
            sys::set_option_int(server.as_fd(), level, name, value).unwrap();
        }
        sys::set_option(
            server.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            &[1, 0, 0, 0, 9, 0, 0, 0],
        )
        .unwrap();
        client.write_all(b"not read yet").unwrap();
        settle(&client);
        let (mut server, state) = again(server);
        assert_eq!(state.receive_queue, b"not read yet");
        let mut got = [0; 12];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"not read yet");
        talk(&mut client, &mut server);
    }

    #[test]
    fn what_was_never_sent_arrives() {
        let (mut client, server) = pair("127.0.0.1:0");
        let mut server = TcpStream::from(server);
        server.set_nonblocking(true).unwrap();
        let mut written = Vec::new();
        // the client does not read: the tail stays here
        while let Ok(count) = server.write(&[written.len() as u8; 10_000]) {
            written.extend(vec![written.len() as u8; count]);
        }
        // an acknowledgement that finds nobody is answered by a reset: nothing may be on its way
        let bytes = |count: whimbrel_kernel::error::Result<usize>| count.unwrap();
        while bytes(sys::unacknowledged_bytes(server.as_fd())) != bytes(sys::unsent_bytes(server.as_fd())) {
            std::thread::yield_now();
        }
        let (server, state) = again(server.into());
        assert!(state.unsent > 0 && !state.send_queue.is_empty());
        let mut got = vec![0; written.len()];
        client.read_exact(&mut got).unwrap();
        assert!(got == written);
        drop(server);
    }

    /// A field of `struct tcp_info` (linux/tcp.h).
    fn tcp_info(fd: &impl AsFd, at: usize) -> u32 {
        let info = sys::option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, 104).unwrap();
        u32::from_ne_bytes(info[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn segments_are_as_long_as_before() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            sys::set_maximum_segment(listener.as_fd(), 1234).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let server = OwnedFd::from(listener.accept().unwrap().0);
            let before = tcp_info(&server, 16);
            // without the option for timestamps, if there is one
            assert!((1234 - 12..=1234).contains(&before), "{before}");
            let (mut server, _) = again(server);
            assert_eq!(tcp_info(&server, 16), before);
            talk(&mut client, &mut server);
        }
    }

    #[test]
    fn what_was_counted_as_sent_behind_the_cut_is_sent_at_once() {
        own_network();
        let (mut client, server) = strangers();
        // held back by the kernel: written when the network is cut, not sent
        let cork = |on| sys::set_option_int(server.as_fd(), libc::IPPROTO_TCP, libc::TCP_CORK, on).unwrap();
        cork(1);
        sys::send_all(server.as_fd(), b"last words").unwrap();
        let inode = kfd::file_status(server.as_fd()).unwrap().inode;
        let noted = Unsent::note(std::process::id() as i32, &[(server.as_raw_fd(), inode)]);
        // in this mode the kernel counts as sent what it does not send
        sys::set_repair(server.as_fd(), Repair::On).unwrap();
        sys::select_queue(server.as_fd(), Queue::Send).unwrap();
        cork(0);
        assert_eq!(sys::unsent_bytes(server.as_fd()).unwrap(), 0);
        let (server, state) = again_as(server, |file| noted.apply(file));
        assert_eq!(
            (state.unsent, state.send_queue.as_slice()),
            (10, &b"last words"[..])
        );
        let mut words = [0; 10];
        client.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"last words");
        // not by a timer
        assert_eq!(tcp_info(&server, 100), 0);
    }

    #[test]
    fn a_peer_that_has_finished_is_still_answered() {
        let (mut client, server) = pair("127.0.0.1:0");
        client.write_all(b"last words").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        settle(&client);
        let (mut server, state) = again(server);
        assert!(state.receive_closed && !state.send_closed);
        let mut words = String::new();
        server.read_to_string(&mut words).unwrap();
        assert_eq!(words, "last words");
        server.write_all(b"answer").unwrap();
        drop(server);
        words.clear();
        client.read_to_string(&mut words).unwrap();
        assert_eq!(words, "answer");
    }

    #[test]
    fn an_end_that_has_finished_still_reads() {
        let (mut client, server) = pair("127.0.0.1:0");
        sys::send_all(server.as_fd(), b"all there is").unwrap();
        sys::shutdown(server.as_fd(), libc::SHUT_WR).unwrap();
        settle(&server);
        let (mut server, state) = again(server);
        assert!(state.send_closed && !state.receive_closed);
        let mut words = String::new();
        client.read_to_string(&mut words).unwrap();
        assert_eq!(words, "all there is");
        client.write_all(b"and more").unwrap();
        drop(client);
        words.clear();
        server.read_to_string(&mut words).unwrap();
        assert_eq!(words, "and more");
    }

    #[test]
    fn pairs_have_their_packets_their_ends_and_their_silence() {
        let diag = sys::UnixDiag::open().unwrap();
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let (a, b) = sys::pair(kind).unwrap();
            sys::send(a.as_fd(), b"one").unwrap();
            sys::send(a.as_fd(), b"two").unwrap();
            sys::send(b.as_fd(), b"back").unwrap();
            sys::shutdown(b.as_fd(), libc::SHUT_WR).unwrap();
            let capture = |fd: &OwnedFd| {
                let inode = kfd::file_status(fd.as_fd()).unwrap().inode;
                let socket = read(fd.as_fd(), SITE, inode, Some(&diag)).unwrap();
                OpenFile {
                    flags: libc::O_RDWR,
                    owner: None,
                    kind: FileKind::Socket(Box::new(socket)),
                }
            };
            let files = [capture(&a), capture(&b)];
            let (mut made, _) = build(&files).unwrap();
            made.sort_by_key(|(index, _)| *index);
            let [(_, a), (_, b)] = <[Made; 2]>::try_from(made).unwrap();
            let first: &[u8] = if kind == libc::SOCK_STREAM {
                b"onetwo"
            } else {
                b"one"
            };
            assert_eq!(kfd::read(b.as_fd(), 100).unwrap(), first);
            assert_eq!(kfd::read(a.as_fd(), 100).unwrap(), b"back");
            assert!(sys::send(b.as_fd(), b"no").is_err());
            drop(a);
            if kind != libc::SOCK_DGRAM {
                let alone = [capture(&b)];
                let (made, _) = build(&alone).unwrap();
                let hang_up = libc::POLLHUP;
                assert_eq!(kfd::poll_now(made[0].1.as_fd(), 0).unwrap() & hang_up, hang_up);
            }
        }
    }
}
