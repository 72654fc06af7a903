//! TCP connections with data in both queues move from one network namespace into another one with the same address.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use common::{move_on, Journey, Program};
use whimbrel_kernel::namespace::{self, Kinds};
use whimbrel_kernel::netlink::{Netlink, Port, Veth};
use whimbrel_process::capture::RestartMemo;
use whimbrel_process::state::{FileKind, OpenFile, SocketDetail, TcpConnection};

const MAC: [u8; 6] = [0x02, 0x77, 0x68, 0x69, 0x6d, 0x01];
/// A lost packet is sent again within this time, several times.
const PATIENCE: Duration = Duration::from_secs(30);
const LINE: &str =
    "one hundred bytes of text that go to the server and come back with the number of the line before it\n";

/// A peer with a bridge, and two places with the same address.
struct Network {
    peer: OwnedFd,
    places: [OwnedFd; 2],
}

impl Network {
    fn new() -> Network {
        let network = Network {
            peer: new_namespace(),
            places: [new_namespace(), new_namespace()],
        };
        let mut peer = Netlink::open_in(network.peer.as_fd()).unwrap();
        peer.add_bridge("br0").unwrap();
        let bridge = peer.link("br0").unwrap().unwrap().index;
        peer.set_up(bridge, true).unwrap();
        peer.add_address(bridge, "10.99.0.2".parse().unwrap(), 24)
            .unwrap();
        for (place, port) in network.places.iter().zip(["p0", "p1"]) {
            let pair = Veth {
                name: port,
                peer_name: "eth0",
                peer_mac: MAC,
                peer_namespace: place.as_fd(),
                mtu: 1500,
            };
            peer.add_veth(&pair).unwrap();
            let port = peer.link(port).unwrap().unwrap().index;
            peer.set_master(port, bridge).unwrap();
            peer.set_up(port, true).unwrap();
            let mut inside = Netlink::open_in(place.as_fd()).unwrap();
            let eth0 = inside.link("eth0").unwrap().unwrap().index;
            inside.set_up(eth0, true).unwrap();
            inside
                .add_address(eth0, "10.99.0.1".parse().unwrap(), 24)
                .unwrap();
        }
        network.switch("p1", Port::Disabled);
        network
    }

    fn switch(&self, port: &str, to: Port) {
        let mut peer = Netlink::open_in(self.peer.as_fd()).unwrap();
        let index = peer.link(port).unwrap().unwrap().index;
        peer.set_port(index, to).unwrap();
    }

    fn place(&self, index: usize) -> BorrowedFd<'_> {
        self.places[index].as_fd()
    }

    fn connect(&self) -> TcpStream {
        let address: SocketAddr = "10.99.0.1:7000".parse().unwrap();
        let connect = || TcpStream::connect_timeout(&address, PATIENCE);
        let stream = namespace::in_network(self.peer.as_fd(), connect)
            .unwrap()
            .unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn new_namespace() -> OwnedFd {
    let make = || {
        namespace::unshare(Kinds::NETWORK).unwrap();
        OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
    };
    std::thread::spawn(make).join().unwrap()
}

/// Writes lines until neither end takes any more; the number of bytes that were taken.
fn fill(stream: &TcpStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (mut taken, mut refusals) = (0, 0);
    // the queues are full when nothing moves for a while
    while refusals < 50 {
        let rest = &LINE.as_bytes()[taken % LINE.len()..];
        match (&*stream).write(rest) {
            Ok(count) => (taken, refusals) = (taken + count, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refusals += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    taken
}

/// Reads so many replies, each of which must be the right one.
fn check_replies(reader: &mut impl BufRead, from: usize, count: usize) {
    for number in from..from + count {
        let mut reply = String::new();
        reader.read_line(&mut reply).unwrap();
        assert_eq!(reply, format!("{number} {LINE}"));
    }
}

fn ask(stream: &TcpStream, number: usize) {
    (&*stream).write_all(LINE.as_bytes()).unwrap();
    check_replies(&mut BufReader::new(stream), number, 1);
}

fn connection(file: &OpenFile) -> Option<&TcpConnection> {
    let FileKind::Socket(socket) = &file.kind else {
        return None;
    };
    if let SocketDetail::Tcp(connection) = &socket.detail {
        Some(connection)
    } else {
        None
    }
}

#[test]
fn connections_move_with_full_queues() {
    let network = Network::new();
    let mut program = Program::start_in("echo", &["7000"], Some(network.place(0)));
    program.goes_on(1);
    let quiet = network.connect();
    ask(&quiet, 0);
    let full = network.connect();
    let taken = fill(&full);
    assert!(taken > 100_000, "{taken}");

    let (cut, open) = (
        || network.switch("p0", Port::Disabled),
        || network.switch("p1", Port::Forwarding),
    );
    let journey = Journey {
        network: Some(network.place(1)),
        cut: Some(&cut),
        open: Some(&open),
    };
    let place = move_on(&mut program, None, &mut RestartMemo::default(), &journey);

    let moved = place.state.as_ref().unwrap();
    let connections: Vec<&TcpConnection> = moved.files.iter().filter_map(connection).collect();
    assert_eq!(connections.len(), 2);
    assert!(connections
        .iter()
        .any(|one| !one.receive_queue.is_empty() && !one.send_queue.is_empty() && one.unsent > 0));
    ask(&quiet, 1);
    let mut reader = BufReader::new(&full);
    check_replies(&mut reader, 0, taken / LINE.len());
    (&full).write_all(&LINE.as_bytes()[taken % LINE.len()..]).unwrap();
    check_replies(&mut reader, taken / LINE.len(), 1);
    // the listener has moved, too
    ask(&network.connect(), 0);
    program.goes_on(1);
    drop(place);
}

#[test]
fn both_ends_of_a_connection_in_one_process() {
    let places = [new_namespace(), new_namespace()];
    for place in &places {
        let mut inside = Netlink::open_in(place.as_fd()).unwrap();
        let loopback = inside.link("lo").unwrap().unwrap().index;
        inside.set_up(loopback, true).unwrap();
    }
    let script = "socket(my $l, PF_INET, SOCK_STREAM, 0); bind($l, pack_sockaddr_in(0, inet_aton('127.0.0.1'))) or die; listen($l, 5); \
                  socket(my $c, PF_INET, SOCK_STREAM, 0); connect($c, getsockname $l) or die; accept(my $s, $l) or die; \
                  my ($n, $m, $b) = (0, 0, ''); while (1) { syswrite($c, pack('N', $n++)); syswrite($c, pack('N', $n++)); \
                  sysread($s, $b, 4) == 4 && unpack('N', $b) == $m++ or print \"BAD\\n\"; print \"$m\\n\"; select(undef, undef, undef, 0.02) }";
    let mut program = Program::perl_in(script, Some(places[0].as_fd()));
    program.has_written(10);
    let journey = Journey {
        network: Some(places[1].as_fd()),
        ..Journey::default()
    };
    let place = move_on(&mut program, None, &mut RestartMemo::default(), &journey);
    program.goes_on(20);
    drop(place);
}
