//! Sockets: options, addresses, queues, the repair mode of TCP and what the kernel tells about unix sockets.
//!
//! Sources: socket(7), tcp(7), unix(7), sock_diag(7), `Documentation/networking` of the kernel and linux/tcp.h for `TCP_REPAIR*`.
//! Everything works on descriptors of the calling process; those of another one are fetched with pidfd_getfd(2).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::{Error, Result};
use crate::fd::{check, ioctl_int, own};

const TCP_MAXSEG: i32 = 2;
/// Limits of `TCP_MAXSEG` (net/tcp.h of the kernel).
const TCP_MIN_MSS: u32 = 88;
const MAX_TCP_WINDOW: u32 = 32_767;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
const TCPOPT_MSS: u32 = 2;
const TCPOPT_WINDOW: u32 = 3;
const TCPOPT_SACK_PERMITTED: u32 = 4;
const TCPOPT_TIMESTAMP: u32 = 8;
/// `TCPI_OPT_TIMESTAMPS`.
pub const NEGOTIATED_TIMESTAMPS: u8 = 1;
/// `TCPI_OPT_SACK`.
pub const NEGOTIATED_SACK: u8 = 2;
/// `TCPI_OPT_WSCALE`.
pub const NEGOTIATED_WINDOW_SCALE: u8 = 4;
const SO_PEEK_OFF: i32 = 42;
const SO_GET_FILTER: i32 = 26;
const SIOCOUTQNSD: libc::c_ulong = 0x894B;
/// The kernel copies at most this much of an option (optlen of getsockopt(2)).
const OPTION_BYTES_MAX: usize = 512;
/// The largest datagram that we take from a queue; `net.core.wmem_max` is far below.
const PACKET_BYTES_MAX: usize = 16 << 20;
/// More packets than any unix socket can queue (`net.unix.max_dgram_qlen` is 10 to 512 in practice).
const PACKETS_MAX: usize = 65_536;

/// States of a TCP socket (`TCP_*` of linux/tcp_states.h) as [`TcpInfo::state`] gives them.
pub mod tcp_state {
    #![allow(missing_docs)]
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// Makes a socket, close-on-exec.
pub fn create(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: socket takes no pointer.
    let result = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    own(result.into(), || {
        format!("make a socket of family {family}, type {kind}, protocol {protocol}")
    })
}

/// Makes a pair of connected unix sockets, close-on-exec.
pub fn pair(kind: i32) -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0i32; 2];
    // SAFETY: socketpair writes two ints.
    let result = unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) };
    check(result.into(), || "make a pair of unix sockets".to_string())?;
    // SAFETY: both descriptors are new and only ours.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Reads an option as bytes. `capacity` bytes are offered, what the kernel filled is returned.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32, capacity: usize) -> Result<Vec<u8>> {
    let mut value = vec![0u8; capacity.min(OPTION_BYTES_MAX)];
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: the buffer has `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &mut length,
        )
    };
    check(result.into(), || {
        format!("read option {level}/{name} of socket {}", fd.as_raw_fd())
    })?;
    value.truncate(length as usize);
    Ok(value)
}

/// Reads an option that is an int.
pub fn option_int(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32> {
    let mut value = 0i32;
    let mut length = 4;
    // SAFETY: the kernel writes at most `length` bytes, the size of an int.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &mut length) };
    check(result.into(), || {
        format!("read option {level}/{name} of socket {}", fd.as_raw_fd())
    })?;
    Ok(value)
}

/// Sets an option to these bytes.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<()> {
    // SAFETY: `value` is a live slice of the length given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    check(result.into(), || {
        format!(
            "set option {level}/{name} of socket {} to {value:?}",
            fd.as_raw_fd()
        )
    })?;
    Ok(())
}

/// Sets an option that is an int.
pub fn set_option_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// Number of instructions of the filter attached to a socket (`SO_ATTACH_FILTER`), 0 for none.
pub fn filter_length(fd: BorrowedFd<'_>) -> Result<usize> {
    let mut length: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel only tells how long the filter is.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_GET_FILTER,
            std::ptr::null_mut(),
            &mut length,
        )
    };
    match check(result.into(), || {
        format!("look for a filter on socket {}", fd.as_raw_fd())
    }) {
        Ok(_) => Ok(length as usize),
        // an eBPF program cannot be read back this way, which tells that there is one
        Err(error) if error.errno() == Some(libc::EACCES) => Ok(1),
        Err(error) => Err(error),
    }
}

type NameCall = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

fn address(fd: BorrowedFd<'_>, call: NameCall, what: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; std::mem::size_of::<libc::sockaddr_storage>()];
    let mut length = bytes.len() as libc::socklen_t;
    // SAFETY: the buffer has `length` bytes, large enough for every address.
    let result = unsafe { call(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), &mut length) };
    check(result.into(), || {
        format!("read the {what} address of socket {}", fd.as_raw_fd())
    })?;
    bytes.truncate(length as usize);
    Ok(bytes)
}

/// getsockname(2), a `struct sockaddr` in bytes.
pub fn local_address(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    address(fd, libc::getsockname, "local")
}

/// getpeername(2); none when the socket has no peer.
pub fn peer_address(fd: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    match address(fd, libc::getpeername, "peer") {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.errno(), Some(libc::ENOTCONN | libc::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn address_family(bytes: &[u8]) -> i32 {
    let family = bytes.get(..2).and_then(|b| b.try_into().ok());
    family.map_or(0, u16::from_ne_bytes).into()
}

/// The IP address of a `struct sockaddr`; one of IPv4 also where IPv6 wraps it. None for other families.
pub fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes.get(4..8)?).ok();
    let v6 = || <[u8; 16]>::try_from(bytes.get(8..24)?).ok();
    match address_family(bytes) {
        libc::AF_INET => Some(IpAddr::from(v4()?)),
        libc::AF_INET6 => Some(IpAddr::from(v6()?).to_canonical()),
        _ => None,
    }
}

/// `address:port` of a `struct sockaddr`, for messages.
pub fn describe_address(bytes: &[u8]) -> String {
    let port = bytes
        .get(2..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u16::from_be_bytes);
    match (address_family(bytes), ip_address(bytes)) {
        (_, Some(ip)) => SocketAddr::new(ip, port).to_string(),
        (libc::AF_UNIX, _) => {
            let name: Vec<u8> = bytes
                .iter()
                .skip(2)
                .map(|b| if *b == 0 { b'@' } else { *b })
                .collect();
            String::from_utf8_lossy(&name).trim_end_matches('@').to_string()
        }
        (family, _) => format!("an address of family {family}"),
    }
}

/// bind(2).
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    // SAFETY: `address` is a live slice of the length given.
    let result = unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as u32) };
    check(result.into(), || {
        format!("bind a socket to {}", describe_address(address))
    })?;
    Ok(())
}

/// connect(2).
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    // SAFETY: `address` is a live slice of the length given.
    let result = unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as u32) };
    check(result.into(), || {
        format!("connect a socket to {}", describe_address(address))
    })?;
    Ok(())
}

/// listen(2).
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> Result<()> {
    // SAFETY: listen takes no pointer.
    let result = unsafe { libc::listen(fd.as_raw_fd(), backlog) };
    check(result.into(), || format!("listen on socket {}", fd.as_raw_fd()))?;
    Ok(())
}

/// shutdown(2) with `SHUT_RD`, `SHUT_WR` or `SHUT_RDWR`.
pub fn shutdown(fd: BorrowedFd<'_>, how: i32) -> Result<()> {
    // SAFETY: shutdown takes no pointer.
    let result = unsafe { libc::shutdown(fd.as_raw_fd(), how) };
    check(result.into(), || format!("shut down socket {}", fd.as_raw_fd()))?;
    Ok(())
}

/// One send(2) that does not wait; returns how many bytes were taken.
pub fn send(fd: BorrowedFd<'_>, data: &[u8]) -> Result<usize> {
    // SAFETY: `data` is a live slice of the length given.
    let sent = unsafe {
        libc::send(
            fd.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    let sent = check(sent as i64, || {
        format!("put {} bytes into socket {}", data.len(), fd.as_raw_fd())
    })?;
    Ok(sent as usize)
}

/// Sends all of `data` in pieces, without waiting; fails when the buffer cannot take it.
pub fn send_all(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    const PIECE_BYTES: usize = 64 << 10;
    let mut rest = data;
    while !rest.is_empty() {
        let sent = send(fd, rest.get(..PIECE_BYTES).unwrap_or(rest))?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Looks at up to `bytes` bytes of the receive queue and leaves them there. Also tells `msg_flags` of recvmsg(2):
/// `MSG_TRUNC` when the packet is longer, `MSG_CTRUNC` when descriptors or credentials travel along.
/// None when nothing is there.
pub fn peek(fd: BorrowedFd<'_>, bytes: usize) -> Result<Option<(Vec<u8>, i32)>> {
    let mut buffer = vec![0u8; bytes];
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: bytes,
    };
    // SAFETY: `msghdr` is plain data for which zeros are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    // SAFETY: the message points to one live buffer and to no control buffer, so that no descriptor is installed.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    match check(got as i64, || {
        format!("look into the queue of socket {}", fd.as_raw_fd())
    }) {
        Ok(got) => {
            buffer.truncate(got as usize);
            Ok(Some((buffer, message.msg_flags)))
        }
        Err(error) if error.errno() == Some(libc::EAGAIN) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The packets in the receive queue of a unix datagram or seqpacket socket, left there. Each with its `msg_flags`.
/// Uses `SO_PEEK_OFF`, which is put back.
pub fn peek_packets(fd: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, i32)>> {
    let before = option_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF)?;
    let result = peek_each(fd);
    set_option_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, before)?;
    result
}

fn peek_each(fd: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, i32)>> {
    let mut packets = Vec::new();
    let (mut offset, mut capacity) = (0usize, 64 << 10);
    while packets.len() < PACKETS_MAX {
        set_option_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, offset as i32)?;
        let Some((data, flags)) = peek(fd, capacity)? else {
            return Ok(packets);
        };
        if flags & libc::MSG_TRUNC != 0 && capacity < PACKET_BYTES_MAX {
            capacity *= 4;
            continue;
        }
        // end of file of a closed seqpacket pair: nothing there, and not EAGAIN either
        if data.is_empty() && flags & libc::MSG_EOR == 0 {
            return Ok(packets);
        }
        offset += data.len();
        packets.push((data, flags));
    }
    Err(Error::other(format!(
        "more than {PACKETS_MAX} packets wait in socket {}",
        fd.as_raw_fd()
    )))
}

/// Bytes written and not acknowledged (`SIOCOUTQ`).
pub fn unacknowledged_bytes(fd: BorrowedFd<'_>) -> Result<usize> {
    ioctl_int(fd, libc::TIOCOUTQ, "count the unacknowledged bytes")
}

/// Bytes written and never sent (`SIOCOUTQNSD`).
pub fn unsent_bytes(fd: BorrowedFd<'_>) -> Result<usize> {
    ioctl_int(fd, SIOCOUTQNSD, "count the unsent bytes")
}

/// The part of `struct tcp_info` that a move needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// One of [`tcp_state`].
    pub state: u8,
    /// `TCPI_OPT_*`.
    pub negotiated: u8,
    /// Window scale of the peer.
    pub send_scale: u8,
    /// Our window scale.
    pub receive_scale: u8,
    /// Listening: connections that wait for accept(2).
    pub waiting: u32,
    /// Listening: the limit on `waiting`.
    pub backlog: u32,
}

/// `TCP_INFO`. The offsets are those of `struct tcp_info` in linux/tcp.h, which only grows at its end.
pub fn tcp_info(fd: BorrowedFd<'_>) -> Result<TcpInfo> {
    let bytes = option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, 104)?;
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let word = |at: usize| {
        bytes
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_ne_bytes)
    };
    Ok(TcpInfo {
        state: byte(0),
        negotiated: byte(5),
        send_scale: byte(6) & 15,
        receive_scale: byte(6) >> 4,
        waiting: word(24),
        backlog: word(28),
    })
}

/// Whether a TCP socket is in repair mode.
pub fn in_repair(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(option_int(fd, libc::IPPROTO_TCP, TCP_REPAIR)? != 0)
}

/// How a socket enters or leaves the repair mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing is sent from here on; closing it is silent. The kernel forgets `SO_REUSEADDR`.
    On,
    /// Leaves it and asks the peer with a window probe where it stands.
    Off,
    /// Leaves it and sends nothing.
    OffSilent,
}

/// `TCP_REPAIR`. Needs CAP_NET_ADMIN in the socket's network namespace.
pub fn set_repair(fd: BorrowedFd<'_>, repair: Repair) -> Result<()> {
    let value = match repair {
        Repair::On => 1,
        Repair::Off => 0,
        Repair::OffSilent => -1,
    };
    set_option_int(fd, libc::IPPROTO_TCP, TCP_REPAIR, value)
}

/// Which queue of a socket in repair mode is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// `TCP_NO_QUEUE`: send and receive fail.
    None,
    /// What has been received and not read.
    Receive,
    /// What has been written and not acknowledged.
    Send,
}

/// `TCP_REPAIR_QUEUE`.
pub fn select_queue(fd: BorrowedFd<'_>, queue: Queue) -> Result<()> {
    let value = match queue {
        Queue::None => 0,
        Queue::Receive => 1,
        Queue::Send => 2,
    };
    set_option_int(fd, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, value)
}

/// The sequence number at the end of the selected queue (`TCP_QUEUE_SEQ`).
pub fn queue_sequence(fd: BorrowedFd<'_>) -> Result<u32> {
    Ok(option_int(fd, libc::IPPROTO_TCP, TCP_QUEUE_SEQ)? as u32)
}

/// Sets the sequence number of the selected queue, which must be empty and unconnected.
pub fn set_queue_sequence(fd: BorrowedFd<'_>, sequence: u32) -> Result<()> {
    set_option_int(fd, libc::IPPROTO_TCP, TCP_QUEUE_SEQ, sequence as i32)
}

/// The maximum segment size in use (`TCP_MAXSEG`).
pub fn maximum_segment(fd: BorrowedFd<'_>) -> Result<u32> {
    Ok(option_int(fd, libc::IPPROTO_TCP, TCP_MAXSEG)? as u32)
}

/// Limits the segments of a connection that is still to be made (`TCP_MAXSEG`). Beyond what the option takes, the limit is the largest
/// that it does.
pub fn set_maximum_segment(fd: BorrowedFd<'_>, bytes: u32) -> Result<()> {
    let bytes = bytes.clamp(TCP_MIN_MSS, MAX_TCP_WINDOW) as i32;
    set_option_int(fd, libc::IPPROTO_TCP, TCP_MAXSEG, bytes)
}

/// What was negotiated in a connection's handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Bytes.
    pub mss: u32,
    /// `TCPI_OPT_*`.
    pub options: u8,
    /// Window scale of the peer.
    pub send_scale: u8,
    /// Our window scale.
    pub receive_scale: u8,
}

/// `TCP_REPAIR_OPTIONS`, for a socket that was connected in repair mode.
pub fn set_negotiated(fd: BorrowedFd<'_>, negotiated: Negotiated) -> Result<()> {
    let mut pairs = vec![(TCPOPT_MSS, negotiated.mss)];
    if negotiated.options & NEGOTIATED_WINDOW_SCALE != 0 {
        let scales = u32::from(negotiated.send_scale) | u32::from(negotiated.receive_scale) << 16;
        pairs.push((TCPOPT_WINDOW, scales));
    }
    if negotiated.options & NEGOTIATED_SACK != 0 {
        pairs.push((TCPOPT_SACK_PERMITTED, 0));
    }
    if negotiated.options & NEGOTIATED_TIMESTAMPS != 0 {
        pairs.push((TCPOPT_TIMESTAMP, 0));
    }
    let bytes: Vec<u8> = pairs
        .iter()
        .flat_map(|(code, value)| [code.to_ne_bytes(), value.to_ne_bytes()].concat())
        .collect();
    set_option(fd, libc::IPPROTO_TCP, TCP_REPAIR_OPTIONS, &bytes)
}

/// The clock of the connection's timestamps (`TCP_TIMESTAMP`), opaque.
pub fn timestamp(fd: BorrowedFd<'_>) -> Result<u32> {
    Ok(option_int(fd, libc::IPPROTO_TCP, TCP_TIMESTAMP)? as u32)
}

/// Lets the connection's timestamps go on from `timestamp`.
pub fn set_timestamp(fd: BorrowedFd<'_>, timestamp: u32) -> Result<()> {
    set_option_int(fd, libc::IPPROTO_TCP, TCP_TIMESTAMP, timestamp as i32)
}

/// `struct tcp_repair_window`: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
pub fn window(fd: BorrowedFd<'_>) -> Result<[u32; 5]> {
    let bytes = option(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, 20)?;
    let mut words = [0u32; 5];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = chunk.try_into().map_or(0, u32::from_ne_bytes);
    }
    Ok(words)
}

/// Sets what [`window`] reads.
pub fn set_window(fd: BorrowedFd<'_>, window: [u32; 5]) -> Result<()> {
    let bytes: Vec<u8> = window.iter().flat_map(|word| word.to_ne_bytes()).collect();
    set_option(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &bytes)
}

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_SHUTDOWN: u16 = 6;

/// What the kernel tells about one unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixInfo {
    /// Inode of the peer, 0 for none.
    pub peer: u64,
    /// `RCV_SHUTDOWN` (1), `SEND_SHUTDOWN` (2).
    pub shutdown: u8,
    /// The name it is bound to; begins with 0 in the abstract namespace.
    pub name: Vec<u8>,
    /// `TCP_LISTEN` (10), `TCP_ESTABLISHED` (1) or `TCP_CLOSE` (7), which unix sockets use as well.
    pub state: u8,
}

/// Asks the kernel about unix sockets of one network namespace (sock_diag(7)).
#[derive(Debug)]
pub struct UnixDiag {
    socket: OwnedFd,
}

impl UnixDiag {
    /// Opens the question channel in the network namespace of the calling thread.
    pub fn open() -> Result<UnixDiag> {
        Ok(UnixDiag {
            socket: create(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)?,
        })
    }

    /// What is known about the socket with this inode. ENOENT when there is none in this namespace.
    pub fn query(&self, inode: u64) -> Result<UnixInfo> {
        let inode = u32::try_from(inode)
            .map_err(|_| Error::other(format!("{inode} is not the inode of a socket")))?;
        send_all(self.socket.as_fd(), &unix_request(inode))?;
        let mut buffer = vec![0u8; 4096];
        // SAFETY: the buffer has the length given.
        let got = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        let got = check(got as i64, || format!("ask about unix socket {inode}"))?;
        buffer.truncate(got as usize);
        parse_unix_reply(&buffer).map_err(|errno| {
            Error::call(
                format!("ask about unix socket {inode}"),
                std::io::Error::from_raw_os_error(errno),
            )
        })
    }
}

/// `struct nlmsghdr` and `struct unix_diag_req` for one inode.
fn unix_request(inode: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    bytes.extend_from_slice(&40u32.to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[libc::AF_UNIX as u8, 0, 0, 0]);
    bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
    bytes.extend_from_slice(&inode.to_ne_bytes());
    bytes.extend_from_slice(&(UDIAG_SHOW_NAME | UDIAG_SHOW_PEER).to_ne_bytes());
    bytes.extend_from_slice(&[0xff; 8]);
    bytes
}

/// Reads `struct unix_diag_msg` and its attributes; the error is an errno.
fn parse_unix_reply(bytes: &[u8]) -> std::result::Result<UnixInfo, i32> {
    let word = |at: usize| {
        bytes
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_ne_bytes)
    };
    let half = |at: usize| {
        bytes
            .get(at..at + 2)
            .and_then(|b| b.try_into().ok())
            .map(u16::from_ne_bytes)
    };
    if half(4) == Some(NLMSG_ERROR) {
        return Err(word(16).map_or(libc::EBADMSG, |code| -(code as i32)));
    }
    let mut info = UnixInfo {
        state: *bytes.get(18).ok_or(libc::EBADMSG)?,
        ..UnixInfo::default()
    };
    let mut at = 32;
    while let (Some(length), Some(kind)) = (half(at), half(at + 2)) {
        let length = usize::from(length);
        if length < 4 {
            break;
        }
        let value = bytes.get(at + 4..at + length).ok_or(libc::EBADMSG)?;
        match kind {
            UNIX_DIAG_NAME => info.name = value.to_vec(),
            UNIX_DIAG_PEER => info.peer = word(at + 4).unwrap_or(0).into(),
            UNIX_DIAG_SHUTDOWN => info.shutdown = value.first().copied().unwrap_or(0),
            _ => {}
        }
        at += length.next_multiple_of(4);
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(fd: &OwnedFd) -> u64 {
        crate::fd::file_status(fd.as_fd()).unwrap().inode
    }

    #[test]
    fn the_ends_of_a_pair_name_each_other() {
        let diag = UnixDiag::open().unwrap();
        let (a, b) = pair(libc::SOCK_STREAM).unwrap();
        assert_eq!(diag.query(inode(&a)).unwrap().peer, inode(&b));
        assert_eq!(diag.query(inode(&b)).unwrap().peer, inode(&a));
        let number = inode(&b);
        shutdown(a.as_fd(), libc::SHUT_WR).unwrap();
        assert_eq!(diag.query(inode(&a)).unwrap().shutdown, 2);
        drop(b);
        assert_eq!(diag.query(inode(&a)).unwrap().peer, 0);
        assert_eq!(diag.query(number).unwrap_err().errno(), Some(libc::ENOENT));
    }

    #[test]
    fn packets_are_seen_with_their_borders_and_stay() {
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let (a, b) = pair(kind).unwrap();
            let long = vec![7u8; 100_000];
            let sent: [&[u8]; 3] = [b"one", &long, b"three"];
            sent.iter()
                .for_each(|packet| assert_eq!(send(a.as_fd(), packet).unwrap(), packet.len()));
            for _ in 0..2 {
                let seen = peek_packets(b.as_fd()).unwrap();
                let data: Vec<&[u8]> = seen.iter().map(|(data, _)| data.as_slice()).collect();
                assert_eq!(data, sent);
            }
            assert_eq!(crate::fd::read(b.as_fd(), 10).unwrap(), b"one");
        }
    }

    #[test]
    fn descriptors_in_flight_show_without_being_installed() {
        let (a, b) = pair(libc::SOCK_STREAM).unwrap();
        crate::fd::send_descriptors(a.as_fd(), &[a.as_fd()]).unwrap();
        let (data, flags) = peek(b.as_fd(), 10).unwrap().unwrap();
        assert_eq!((data.len(), flags & libc::MSG_CTRUNC != 0), (1, true));
    }

    #[test]
    fn a_connection_moves_into_a_second_socket_with_its_queues() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let server = OwnedFd::from(server);
        let info = tcp_info(server.as_fd()).unwrap();
        assert_eq!(info.state, tcp_state::ESTABLISHED);
        assert!(!in_repair(server.as_fd()).unwrap());
        set_repair(server.as_fd(), Repair::On).unwrap();
        assert!(in_repair(server.as_fd()).unwrap());
        select_queue(server.as_fd(), Queue::Send).unwrap();
        let sequence = queue_sequence(server.as_fd()).unwrap();
        assert_ne!(sequence, 0);
        assert!(window(server.as_fd()).unwrap()[3] > 0);
        set_repair(server.as_fd(), Repair::Off).unwrap();
        drop(client);
    }
}
