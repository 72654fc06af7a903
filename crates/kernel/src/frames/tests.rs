use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;
use crate::namespace::in_network;
use crate::netlink::tests::{Pair, MAC};
use crate::netlink::{Netlink, Port};

const GUEST: &str = "10.9.0.2:5000";
const PATIENCE: Duration = Duration::from_secs(30);

/// A bridge with the guest at a port that can be disabled, and the guest's peers: the host itself, and a neighbour at another port.
struct Scene {
    pair: Pair,
    neighbour: OwnedFd,
    catcher: Catcher,
    /// Sees the same, after the catcher: the kernel serves the socket first that was opened last (`dev_add_pack`).
    observer: Catcher,
}

impl Scene {
    fn new() -> Self {
        let pair = Pair::new();
        pair.wait_operational();
        let neighbour = pair.add_neighbour();
        let observer = catcher(&pair);
        observer.select(Wanted::For(MAC)).unwrap();
        Self {
            neighbour,
            catcher: catcher(&pair),
            observer,
            pair,
        }
    }

    /// Waits for the next frame that has passed the bridge: sending does not mean that it has.
    fn next(&self) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; HEADER_BYTES + FRAME_BYTES_MAX];
        loop {
            if let Ok(length) = self.observer.receive(&mut buffer) {
                return buffer[HEADER_BYTES..length].to_vec();
            }
            assert!(Instant::now() < deadline, "no frame passes the bridge");
            std::thread::yield_now();
        }
    }

    /// What passed until now is not counted. Nobody listens at the port of the marker.
    fn forget(&self) {
        let marker = self.in_neighbour(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        marker.send_to(&[0; 1234], "10.9.0.2:5001").unwrap();
        while self.next().len() < 1234 {}
    }

    /// Both say the same.
    fn say(&self, peers: &[UdpSocket; 2], text: &str) {
        for peer in peers {
            peer.send(text.as_bytes()).unwrap();
            self.next();
        }
    }

    fn set_port(&self, port: Port) {
        self.pair.host().set_port(self.pair.port, port).unwrap();
    }

    fn resend(&self) -> Resent {
        let addresses = ["10.9.0.2", "fd09::2"].map(|address| address.parse().unwrap());
        self.catcher.resend(MAC, &addresses).unwrap()
    }

    fn in_guest<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(self.pair.guest.as_fd(), work)
    }

    fn in_neighbour<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(self.neighbour.as_fd(), work)
    }

    /// The guest's socket, and one of each peer that has talked to it already: nobody asks for a MAC address any more.
    fn acquainted(&self) -> (UdpSocket, [UdpSocket; 2]) {
        let guest = self.in_guest(|| UdpSocket::bind(GUEST).unwrap());
        guest.set_read_timeout(Some(PATIENCE)).unwrap();
        let peers = [self.pair.host.as_fd(), self.neighbour.as_fd()]
            .map(|peer| inside(peer, || UdpSocket::bind("0.0.0.0:0").unwrap()));
        for peer in &peers {
            peer.connect(GUEST).unwrap();
            peer.send(b"acquaintance").unwrap();
            assert_eq!(heard(&guest), "acquaintance");
        }
        self.forget();
        (guest, peers)
    }
}

fn inside<T: Send>(namespace: BorrowedFd, work: impl FnOnce() -> T + Send) -> T {
    in_network(namespace, work).unwrap()
}

fn catcher(pair: &Pair) -> Catcher {
    let bridge = pair.host().link("br").unwrap().unwrap();
    inside(pair.host.as_fd(), || {
        Catcher::open(bridge.index, bridge.mac.unwrap()).unwrap()
    })
}

fn heard(socket: &UdpSocket) -> String {
    let mut buffer = [0; 2000];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// Everything that is there already.
fn heard_now(socket: &UdpSocket) -> usize {
    socket.set_nonblocking(true).unwrap();
    let count = std::iter::from_fn(|| socket.recv(&mut [0; 2000]).ok()).count();
    socket.set_nonblocking(false).unwrap();
    count
}

#[test]
fn frames_of_the_host_and_of_a_neighbour_wait_for_a_disabled_port() {
    let scene = Scene::new();
    let (guest, peers) = scene.acquainted();
    scene.catcher.select(Wanted::For(MAC)).unwrap();
    scene.set_port(Port::Disabled);
    peers[0].send(b"from the host").unwrap();
    peers[1].send(b"from the neighbour").unwrap();
    for _ in &peers {
        scene.next();
    }
    scene.set_port(Port::Forwarding);
    // Not even now: the bridge has dropped them.
    assert_eq!(heard_now(&guest), 0);
    assert_eq!(scene.resend(), Resent { sent: 2, lost: 0 });
    // As frames of the bridge: no switch may learn the neighbour's address from them.
    let bridge = scene.pair.host().link("br").unwrap().unwrap();
    for frame in [scene.next(), scene.next()] {
        assert_eq!(
            (&frame[..6], Some(&frame[6..12])),
            (&MAC[..], bridge.mac.as_ref().map(|mac| &mac[..]))
        );
    }
    assert_eq!(heard(&guest), "from the host");
    assert_eq!(heard(&guest), "from the neighbour");
    // Once each, and those of the catcher itself are not caught again.
    assert_eq!(scene.resend(), Resent::default());
    assert_eq!(heard_now(&guest), 0);
}

#[test]
fn nothing_is_caught_before_it_is_wanted_and_late_only_what_arrives() {
    let scene = Scene::new();
    let (guest, peers) = scene.acquainted();
    scene.say(&peers, "nothing");
    assert_eq!(scene.resend(), Resent::default());
    scene.catcher.select(Wanted::ArrivingFor(MAC)).unwrap();
    scene.say(&peers, "late");
    assert_eq!(scene.resend(), Resent { sent: 1, lost: 0 });
    scene.catcher.select(Wanted::Nothing).unwrap();
    scene.say(&peers, "nothing");
    assert_eq!(scene.resend(), Resent::default());
    let mut texts: Vec<String> = (0..7).map(|_| heard(&guest)).collect();
    texts.sort();
    assert_eq!(texts.concat(), "late".repeat(3) + &"nothing".repeat(4));
}

#[test]
fn what_the_guest_sends_itself_is_not_sent_back_to_it() {
    let scene = Scene::new();
    let (guest, peers) = scene.acquainted();
    scene.catcher.select(Wanted::For(MAC)).unwrap();
    let eth = Netlink::open_in(scene.pair.guest.as_fd())
        .unwrap()
        .link("eth0")
        .unwrap()
        .unwrap();
    scene.in_guest(|| {
        for address in ["10.9.0.2", "fd09::2"] {
            crate::announce::announce(eth.index, MAC, address.parse().unwrap()).unwrap();
        }
    });
    peers[1].set_read_timeout(Some(PATIENCE)).unwrap();
    guest
        .send_to(b"answer", ("10.9.0.3", peers[1].local_addr().unwrap().port()))
        .unwrap();
    // What came after the announcements has arrived.
    assert_eq!(heard(&peers[1]), "answer");
    assert_eq!(scene.resend(), Resent::default());
}

#[test]
fn a_question_for_its_address_reaches_the_guest_and_others_do_not() {
    let scene = Scene::new();
    scene.catcher.select(Wanted::For(MAC)).unwrap();
    scene.set_port(Port::Disabled);
    let peer = scene.in_neighbour(|| UdpSocket::bind("[::]:0").unwrap());
    for address in ["10.9.0.2", "fd09::2", "10.9.0.77", "fd09::77"] {
        let _ = peer.send_to(b"hello", (address, 5000));
    }
    // Both questions were asked, and are not asked again for a second.
    let deadline = Instant::now() + PATIENCE;
    let mut sent = 0;
    while sent < 2 {
        assert!(Instant::now() < deadline, "{sent} questions were caught");
        scene.set_port(Port::Forwarding);
        sent += scene.resend().sent;
        scene.set_port(Port::Disabled);
    }
    scene.set_port(Port::Forwarding);
    // The answers let what waits for them go out.
    let guest = scene.in_guest(|| UdpSocket::bind("[::]:5000").unwrap());
    guest.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.send_to(b"known", "10.9.0.2:5000").unwrap();
    assert!(["hello", "known"].contains(&heard(&guest).as_str()));
}

/// Segments that the client's TCP has sent again (`tcpi_total_retrans` of linux/tcp.h).
fn retransmitted(stream: &TcpStream) -> u32 {
    let info = socket::option(stream.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, 104).unwrap();
    u32::from_ne_bytes(info[100..104].try_into().unwrap())
}

/// From now on nobody in this namespace sends a segment again.
fn without_retransmission() {
    fs::write("/proc/sys/net/ipv4/tcp_early_retrans", "0").unwrap();
    let route = "route change 10.9.0.0/24 dev eth0 rto_min 60s";
    let changed = Command::new("ip").args(route.split(' ')).status().unwrap();
    assert!(changed.success());
}

#[test]
fn a_segment_that_is_longer_than_the_mtu_arrives_with_its_checksums() {
    let scene = Scene::new();
    let listener = scene.in_guest(|| TcpListener::bind(GUEST).unwrap());
    let mut client = scene.in_neighbour(|| {
        without_retransmission();
        TcpStream::connect(GUEST).unwrap()
    });
    let mut server = listener.accept().unwrap().0;
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"acquaintance").unwrap();
    server.read_exact(&mut [0; 12]).unwrap();
    scene.forget();
    scene.catcher.select(Wanted::For(MAC)).unwrap();
    scene.set_port(Port::Disabled);
    // No more than the client may send before it hears of the first segment (RFC 6928).
    let text: Vec<u8> = (0..12_000u32).map(|number| (number % 251) as u8).collect();
    client.write_all(&text).unwrap();
    let length = scene.next().len();
    assert!(length > 14 + 1400, "only {length} bytes");
    scene.set_port(Port::Forwarding);
    let resent = scene.resend();
    assert!(resent.sent > 0 && resent.lost == 0, "{resent:?}");
    let mut got = vec![0; text.len()];
    server.read_exact(&mut got).unwrap();
    assert!(got == text);
    assert_eq!(retransmitted(&client), 0);
}

#[test]
fn no_such_interface_is_an_error_that_names_it() {
    let sentence = Catcher::open(4711, MAC).unwrap_err().to_string();
    assert!(sentence.contains("4711"), "{sentence}");
}

#[test]
fn a_question_concerns_whoever_has_the_address() {
    let addresses: Vec<IpAddr> = ["10.9.0.2", "fd09::2"].map(|text| text.parse().unwrap()).to_vec();
    let mut request = [BROADCAST.as_slice(), &[0; 32], &[10, 9, 0, 2]].concat();
    assert!(concerns(&request, MAC, &addresses));
    request[41] = 3;
    assert!(!concerns(&request, MAC, &addresses));
    let asked: Ipv6Addr = "fd09::2".parse().unwrap();
    let solicitation = [&[0x33, 0x33][..], &[0; 60], &asked.octets()].concat();
    assert!(concerns(&solicitation, MAC, &addresses));
    assert!(!concerns(&solicitation[..70], MAC, &addresses));
    assert!(concerns(&MAC, MAC, &[]) && !concerns(&[], MAC, &addresses));
}
