//! Sockets of a frozen process.
//!
//! TCP connections are read in repair mode (`TCP_REPAIR`, linux/tcp.h). The network of the workload is cut before that: what arrives
//! after the queue was read would be acknowledged and lost. Entering the mode makes the kernel forget
//! `SO_REUSEADDR`, so that [`RepairedSocket`] remembers it for everybody who lets the socket live again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use whimbrel_kernel::socket::{self as sys, tcp_state, Queue, Repair, TcpInfo, UnixDiag};
use whimbrel_kernel::{fd as kfd, pidfd, proc};

use super::{Error, Result};
use crate::refusal::{Refusal, Subject};
use crate::state::{Socket, SocketBuffers, SocketDetail, SocketOption, TcpConnection, UnixEnd};

/// `SO_BUF_LOCK` (Linux 5.14).
pub(crate) const SO_BUF_LOCK: i32 = 72;
const TCP_ULP: i32 = 31;
/// No option that we carry is longer.
const OPTION_BYTES: usize = 16;
/// How often two readings of a connection may differ before we give up.
const READINGS_MAX: usize = 5;

/// Options of every socket: (level, name).
const GENERAL: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_MARK),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPING),
    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
    (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
];

/// Options of IPv4, which IPv6 sockets have as well.
const IP: &[(i32, i32)] = &[
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
];

const IPV6: &[(i32, i32)] = &[
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
];

/// Options that every IP socket shows, but only datagram sockets take: an accepted connection has values here that nobody
/// can set.
const IP_DATAGRAM: &[(i32, i32)] = &[
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
];

/// As [`IP_DATAGRAM`], for IPv6.
const IPV6_DATAGRAM: &[(i32, i32)] = &[
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
];

const TCP: &[(i32, i32)] = &[
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    (libc::IPPROTO_TCP, libc::TCP_INQ),
];

/// The little that decides whether a socket can move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Basics {
    pub family: i32,
    pub kind: i32,
    pub protocol: i32,
    pub tcp: Option<TcpInfo>,
}

impl Basics {
    fn is_tcp(&self) -> bool {
        self.tcp.is_some()
    }

    /// Whether it has sequence numbers and queues.
    pub(crate) fn is_connection(&self) -> bool {
        self.tcp
            .is_some_and(|tcp| !matches!(tcp.state, tcp_state::LISTEN | tcp_state::CLOSE))
    }
}

/// Where a socket was found and under which rules it may move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub pid: i32,
    pub fd: i32,
    /// The workload has a network namespace of its own, whose addresses move along.
    pub own_network: bool,
}

impl Site {
    fn refuse<T>(&self, what: impl Into<String>, cure: &str) -> Result<T> {
        let subject = Subject::Descriptor {
            pid: self.pid,
            fd: self.fd,
        };
        Err(Refusal::new(subject, what, cure).into())
    }

    fn busy<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(Error::Busy {
            subject: Subject::Descriptor {
                pid: self.pid,
                fd: self.fd,
            },
            what: what.into(),
        })
    }
}

/// Reads what kind of socket it is and refuses what cannot move. Changes nothing.
pub(crate) fn examine(fd: BorrowedFd<'_>, site: Site) -> Result<Basics> {
    let int = |name| sys::option_int(fd, libc::SOL_SOCKET, name);
    let (family, kind, protocol) = (
        int(libc::SO_DOMAIN)?,
        int(libc::SO_TYPE)?,
        int(libc::SO_PROTOCOL)?,
    );
    let tcp = match (family, kind, protocol) {
        (libc::AF_UNIX, ..) => None,
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => Some(sys::tcp_info(fd)?),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP) => None,
        _ => return site.refuse(format!("is {}", unusual(family, kind, protocol)), "close it"),
    };
    if sys::filter_length(fd)? > 0 {
        return site.refuse(
            "is a socket with a packet filter (SO_ATTACH_FILTER)",
            "detach the filter",
        );
    }
    let basics = Basics {
        family,
        kind,
        protocol,
        tcp,
    };
    examine_tcp(fd, site, &basics)?;
    Ok(basics)
}

fn unusual(family: i32, kind: i32, protocol: i32) -> String {
    match (family, kind, protocol) {
        (libc::AF_NETLINK, ..) => "a netlink socket, which talks to this kernel".into(),
        (libc::AF_PACKET, ..) => "a packet socket, which is bound to an interface of this host".into(),
        (libc::AF_VSOCK, ..) => "a VM socket (AF_VSOCK)".into(),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => "a raw IP socket".into(),
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_MPTCP) => {
            "a multipath TCP socket (for Go programs set GODEBUG=multipathtcp=0)".into()
        }
        _ => format!("a socket of family {family}, type {kind}, protocol {protocol}"),
    }
}

fn examine_tcp(fd: BorrowedFd<'_>, site: Site, basics: &Basics) -> Result<()> {
    let Some(tcp) = basics.tcp else { return Ok(()) };
    let peer = || {
        sys::peer_address(fd)
            .ok()
            .flatten()
            .map_or("a peer".into(), |peer| sys::describe_address(&peer))
    };
    if matches!(tcp.state, tcp_state::SYN_SENT | tcp_state::SYN_RECV) {
        return site.busy(format!(
            "is a TCP connection to {} that is not established yet",
            peer()
        ));
    }
    if tcp.state != tcp_state::LISTEN {
        let upper = sys::option(fd, libc::IPPROTO_TCP, TCP_ULP, OPTION_BYTES)?;
        if upper.iter().any(|byte| *byte != 0) {
            let name = String::from_utf8_lossy(&upper).trim_end_matches('\0').to_string();
            return site.refuse(
                format!("is a TCP connection with kernel protocol {name}"),
                "switch kernel TLS off",
            );
        }
    }
    if basics.is_connection() && !site.own_network {
        return site.refuse(
            format!("is a TCP connection to {} from an address of this host", peer()),
            "start the workload with `whimbrel run --ip`, so that its address can move",
        );
    }
    Ok(())
}

/// A TCP socket that was put into repair mode, and what the kernel forgot about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairedSocket {
    /// The inode of the socket, which it keeps for its life.
    pub inode: u64,
    /// `SO_REUSEADDR` before.
    pub reuse_address: bool,
}

/// Puts a connection into repair mode.
pub(crate) fn enter_repair(fd: BorrowedFd<'_>, inode: u64) -> Result<RepairedSocket> {
    let reuse = sys::option_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    sys::set_repair(fd, Repair::On)?;
    Ok(RepairedSocket {
        inode,
        reuse_address: reuse == 1,
    })
}

/// Lets every TCP socket of process `pid` that is in repair mode live again: at the source when the workload stays, at
/// the destination when it starts (before its threads run, after its network is open). Works from outside, in any process
/// with the privilege; sockets that `repaired` does not know get `SO_REUSEADDR`, as servers' connections mostly have it.
/// Idempotent. Returns how many sockets were woken.
pub fn leave_repair(pid: i32, repaired: &[RepairedSocket]) -> Result<usize> {
    let process = pidfd::open(pid)?;
    let mut woken = 0;
    for (_, fd) in tcp_sockets(pid, process.as_fd())? {
        if sys::in_repair(fd.as_fd())? {
            wake(fd.as_fd(), repaired)?;
            woken += 1;
        }
    }
    Ok(woken)
}

/// The TCP sockets of a process as they are now, before any of them is in repair mode, each with a descriptor of it.
pub(crate) fn prefetch(pid: i32) -> Result<Vec<(i32, RepairedSocket)>> {
    let process = pidfd::open(pid)?;
    let mut known = Vec::new();
    for (number, fd) in tcp_sockets(pid, process.as_fd())? {
        let reuse = sys::option_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        let socket = RepairedSocket {
            inode: kfd::file_status(fd.as_fd())?.inode,
            reuse_address: reuse == 1,
        };
        known.push((number, socket));
    }
    Ok(known)
}

fn tcp_sockets(pid: i32, process: BorrowedFd<'_>) -> Result<Vec<(i32, OwnedFd)>> {
    let mut found = Vec::new();
    for number in proc::descriptors(pid)? {
        let link = proc::link(pid, &format!("fd/{number}"));
        if !link.is_ok_and(|link| link.starts_with("socket:[")) {
            continue;
        }
        // closed meanwhile, when the process runs
        let Ok(fd) = pidfd::getfd(process, number) else {
            continue;
        };
        if is_tcp(fd.as_fd())? {
            found.push((number, fd));
        }
    }
    Ok(found)
}

fn is_tcp(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(sys::option_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)? == libc::IPPROTO_TCP)
}

/// Lets one connection live again.
pub(crate) fn wake(fd: BorrowedFd<'_>, repaired: &[RepairedSocket]) -> Result<()> {
    let inode = kfd::file_status(fd)?.inode;
    let reuse = repaired
        .iter()
        .find(|known| known.inode == inode)
        .is_none_or(|known| known.reuse_address);
    sys::set_repair(fd, Repair::Off)?;
    sys::set_option_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse.into())?;
    Ok(())
}

/// The state of one socket. Connections must be in repair mode already.
pub(crate) fn read(fd: BorrowedFd<'_>, site: Site, inode: u64, diag: Option<&UnixDiag>) -> Result<Socket> {
    let basics = examine(fd, site)?;
    let mut socket = Socket {
        family: basics.family,
        kind: basics.kind,
        protocol: basics.protocol,
        inode,
        local: sys::local_address(fd)?,
        peer: sys::peer_address(fd)?.unwrap_or_default(),
        options: read_options(fd, &basics),
        buffers: read_buffers(fd)?,
        detail: SocketDetail::Idle,
    };
    socket.detail = match basics.tcp {
        None if basics.family == libc::AF_UNIX => read_unix(fd, site, inode, diag, &socket)?,
        None => read_udp(fd, site)?,
        Some(tcp) if tcp.state == tcp_state::LISTEN => read_listener(site, tcp)?,
        Some(tcp) if tcp.state == tcp_state::CLOSE => SocketDetail::Idle,
        Some(tcp) => SocketDetail::Tcp(Box::new(read_settled(fd, site, tcp)?)),
    };
    Ok(socket)
}

fn read_options(fd: BorrowedFd<'_>, basics: &Basics) -> Vec<SocketOption> {
    let datagram = basics.kind == libc::SOCK_DGRAM;
    let wanted = [
        (true, GENERAL),
        (basics.family != libc::AF_UNIX, IP),
        (basics.family != libc::AF_UNIX && datagram, IP_DATAGRAM),
        (basics.family == libc::AF_INET6, IPV6),
        (basics.family == libc::AF_INET6 && datagram, IPV6_DATAGRAM),
        (basics.is_tcp(), TCP),
    ];
    let lists = wanted
        .into_iter()
        .filter_map(|(wanted, list)| wanted.then_some(list));
    let each = lists.flatten();
    // an option that this kernel does not know cannot have been set by the program
    each.filter_map(|&(level, name)| {
        let value = sys::option(fd, level, name, OPTION_BYTES).ok()?;
        Some(SocketOption { level, name, value })
    })
    .collect()
}

fn read_buffers(fd: BorrowedFd<'_>) -> Result<SocketBuffers> {
    let int = |name| sys::option_int(fd, libc::SOL_SOCKET, name).map(|value| value.max(0) as u32);
    Ok(SocketBuffers {
        send: int(libc::SO_SNDBUF)?,
        receive: int(libc::SO_RCVBUF)?,
        locked: int(SO_BUF_LOCK)?,
    })
}

fn read_udp(fd: BorrowedFd<'_>, site: Site) -> Result<SocketDetail> {
    if kfd::poll_now(fd, libc::POLLIN)? & libc::POLLIN != 0 {
        return site.busy("is a UDP socket with packets that have not been read");
    }
    Ok(SocketDetail::Udp)
}

fn read_listener(site: Site, tcp: TcpInfo) -> Result<SocketDetail> {
    if tcp.waiting > 0 {
        return site.busy(format!(
            "is a listener with {} connections that wait to be accepted",
            tcp.waiting
        ));
    }
    Ok(SocketDetail::Listen { backlog: tcp.backlog })
}

/// Reads a connection until two readings agree: a packet that was being processed when the network was cut may
/// still arrive in the queue.
fn read_settled(fd: BorrowedFd<'_>, site: Site, tcp: TcpInfo) -> Result<TcpConnection> {
    let mut last = read_connection(fd, tcp)?;
    for _ in 0..READINGS_MAX {
        let again = read_connection(fd, sys::tcp_info(fd)?)?;
        if agree(&last, &again) {
            return Ok(again);
        }
        last = again;
    }
    site.busy("is a TCP connection whose queues keep changing although the network is cut")
}

/// Whether nothing moved between two readings; only the clock of the timestamps may go on.
fn agree(first: &TcpConnection, second: &TcpConnection) -> bool {
    first.receive_sequence == second.receive_sequence
        && first.send_sequence == second.send_sequence
        && first.receive_queue.len() == second.receive_queue.len()
        && first.send_queue.len() == second.send_queue.len()
        && (first.unsent, first.receive_closed, first.send_closed)
            == (second.unsent, second.receive_closed, second.send_closed)
}

/// Which FINs a state implies: (the peer's was received, ours was queued, ours was acknowledged).
fn fins(state: u8) -> (bool, bool, bool) {
    match state {
        tcp_state::FIN_WAIT1 => (false, true, false),
        tcp_state::FIN_WAIT2 => (false, true, true),
        tcp_state::CLOSE_WAIT => (true, false, false),
        tcp_state::CLOSING | tcp_state::LAST_ACK => (true, true, false),
        _ => (false, false, false),
    }
}

fn read_connection(fd: BorrowedFd<'_>, tcp: TcpInfo) -> Result<TcpConnection> {
    let (fin_received, fin_queued, fin_acknowledged) = fins(tcp.state);
    let fin_pending = usize::from(fin_queued && !fin_acknowledged);
    sys::select_queue(fd, Queue::Receive)?;
    let receive_sequence = sys::queue_sequence(fd)?;
    let receive_queue = peek_queue(fd, kfd::readable_bytes(fd)?)?;
    sys::select_queue(fd, Queue::Send)?;
    let send_sequence = sys::queue_sequence(fd)?.wrapping_sub(fin_queued.into());
    let send_queue = peek_queue(fd, sys::unacknowledged_bytes(fd)?.saturating_sub(fin_pending))?;
    // the FIN is the last to be sent: as long as it is unsent it counts among the unsent bytes
    let unsent = sys::unsent_bytes(fd)?;
    let unsent = if unsent > 0 {
        unsent.saturating_sub(fin_pending)
    } else {
        0
    };
    sys::select_queue(fd, Queue::None)?;
    Ok(TcpConnection {
        receive_closed: fin_received || kfd::poll_now(fd, libc::POLLRDHUP)? & libc::POLLRDHUP != 0,
        send_closed: fin_queued,
        receive_sequence,
        send_sequence,
        unsent: unsent.min(send_queue.len()) as u32,
        receive_queue,
        send_queue,
        mss: sys::maximum_segment(fd)?,
        negotiated: tcp.negotiated,
        window_scales: (tcp.send_scale, tcp.receive_scale),
        timestamp: sys::timestamp(fd)?,
        window: sys::window(fd)?,
    })
}

fn peek_queue(fd: BorrowedFd<'_>, bytes: usize) -> Result<Vec<u8>> {
    if bytes == 0 {
        return Ok(Vec::new());
    }
    let data = sys::peek(fd, bytes)?.map(|(data, _)| data).unwrap_or_default();
    if data.len() != bytes {
        return Err(Error::Odd(format!(
            "{} of {bytes} bytes of a TCP queue could be read",
            data.len()
        )));
    }
    Ok(data)
}

/// Judges a socket of a running process.
pub(crate) fn judge(
    fd: BorrowedFd<'_>,
    site: Site,
    inode: u64,
    diag: &UnixDiag,
    inodes: &[u64],
) -> Result<()> {
    let basics = examine(fd, site)?;
    if basics.family != libc::AF_UNIX {
        return Ok(());
    }
    refuse_named(fd, site)?;
    let peer = diag.query(inode)?.peer;
    if peer != 0 && !inodes.contains(&peer) {
        return Err(outside_unix(site).into());
    }
    Ok(())
}

/// The other end of a pair does not move.
pub(crate) fn outside_unix(site: Site) -> Refusal {
    let subject = Subject::Descriptor {
        pid: site.pid,
        fd: site.fd,
    };
    Refusal::new(
        subject,
        "is a unix socket whose other end is outside of the workload",
        "close the connection",
    )
}

/// sa_family alone is the address of a socket without a name.
fn refuse_named(fd: BorrowedFd<'_>, site: Site) -> Result<()> {
    let names = [
        sys::local_address(fd)?,
        sys::peer_address(fd)?.unwrap_or_default(),
    ];
    match names.iter().find(|name| name.len() > 2) {
        Some(name) => site.refuse(
            format!("is a unix socket with the name {}", sys::describe_address(name)),
            "close it; only socket pairs can be moved yet",
        ),
        None => Ok(()),
    }
}

fn read_unix(
    fd: BorrowedFd<'_>,
    site: Site,
    inode: u64,
    diag: Option<&UnixDiag>,
    socket: &Socket,
) -> Result<SocketDetail> {
    let diag = diag.ok_or_else(|| Error::Odd("unix sockets cannot be examined without sock_diag".into()))?;
    let info = diag.query(inode)?;
    refuse_named(fd, site)?;
    if info.peer == 0 && info.state == tcp_state::CLOSE && info.shutdown == 0 {
        return Ok(SocketDetail::Idle);
    }
    let received = read_unix_queue(fd, site, socket.kind)?;
    Ok(SocketDetail::Unix(UnixEnd {
        peer: info.peer,
        shutdown: info.shutdown,
        received,
    }))
}

fn read_unix_queue(fd: BorrowedFd<'_>, site: Site, kind: i32) -> Result<Vec<Vec<u8>>> {
    let (packets, bytes) = if kind == libc::SOCK_STREAM {
        let bytes = kfd::readable_bytes(fd)?;
        let piece = if bytes > 0 { sys::peek(fd, bytes)? } else { None };
        (piece.into_iter().collect(), bytes)
    } else {
        let packets = sys::peek_packets(fd)?;
        let bytes = packets.iter().map(|(data, _): &(Vec<u8>, i32)| data.len()).sum();
        (packets, bytes)
    };
    let seen: usize = packets.iter().map(|(data, _)| data.len()).sum();
    if packets.iter().any(|(_, flags)| flags & libc::MSG_CTRUNC != 0) || seen != bytes {
        return site.refuse(
            "is a unix socket with descriptors or credentials in flight",
            "let the program receive them",
        );
    }
    Ok(packets.into_iter().map(|(data, _)| data).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn site(own_network: bool) -> Site {
        Site {
            pid: 9,
            fd: 3,
            own_network,
        }
    }

    fn sentence<T>(result: Result<T>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn sockets_that_stay_have_their_sentences() {
        let cases = [
            (libc::AF_NETLINK, libc::SOCK_RAW, 0, "netlink"),
            (libc::AF_PACKET, libc::SOCK_RAW, 0, "packet socket"),
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP, "raw IP"),
        ];
        for (family, kind, protocol, part) in cases {
            let fd = sys::create(family, kind, protocol).unwrap();
            let text = sentence(examine(fd.as_fd(), site(true)));
            assert!(
                text.starts_with("descriptor 3 of process 9 is a") && text.contains(part),
                "{text}"
            );
        }
    }

    #[test]
    fn a_connection_of_the_hosts_own_address_is_refused() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = OwnedFd::from(std::net::TcpStream::connect(address).unwrap());
        let text = sentence(examine(client.as_fd(), site(false)));
        assert!(
            text.contains(&address.to_string()) && text.contains("whimbrel run --ip"),
            "{text}"
        );
        assert!(examine(client.as_fd(), site(true)).unwrap().is_connection());
        let waiting = OwnedFd::from(listener);
        assert!(sentence(read(waiting.as_fd(), site(true), 1, None)).contains("1 connections that wait"));
    }

    #[test]
    fn a_pair_is_read_with_its_packets_and_a_name_is_refused() {
        let diag = UnixDiag::open().unwrap();
        let (a, b) = sys::pair(libc::SOCK_SEQPACKET).unwrap();
        sys::send(a.as_fd(), b"one").unwrap();
        sys::send(a.as_fd(), b"two").unwrap();
        let inode = |fd: &OwnedFd| kfd::file_status(fd.as_fd()).unwrap().inode;
        let socket = read(b.as_fd(), site(true), inode(&b), Some(&diag)).unwrap();
        let end = UnixEnd {
            peer: inode(&a),
            shutdown: 0,
            received: vec![b"one".to_vec(), b"two".to_vec()],
        };
        assert_eq!(socket.detail, SocketDetail::Unix(end));
        kfd::send_descriptors(a.as_fd(), &[a.as_fd()]).unwrap();
        assert!(sentence(read(b.as_fd(), site(true), inode(&b), Some(&diag))).contains("in flight"));
        let named = sys::create(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        sys::bind(named.as_fd(), b"\x01\0\0whimbrel-state-test").unwrap();
        let text = sentence(read(named.as_fd(), site(true), inode(&named), Some(&diag)));
        assert!(text.contains("@whimbrel-state-test"), "{text}");
    }

    #[test]
    fn unread_udp_is_waited_for() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        let fd = OwnedFd::from(socket);
        let error = read(fd.as_fd(), site(true), 1, None).unwrap_err();
        assert!(error.is_transient(), "{error}");
    }
}
