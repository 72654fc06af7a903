use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::announce::announce;
use crate::namespace::{unshare, Kinds};

pub(crate) const MAC: Mac = [0x02, 0, 0, 0, 0, 0x77];

/// A network namespace that goes with the test.
fn namespace() -> OwnedFd {
    let inside = thread::spawn(|| {
        unshare(Kinds::NETWORK).unwrap();
        OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
    });
    inside.join().unwrap()
}

/// Makes a guest's interface and joins it to the bridge.
fn join(net: &mut Netlink, port: &str, guest: &OwnedFd, mac: Mac, addresses: [&str; 2]) -> u32 {
    net.add_veth(&Veth {
        name: port,
        peer_name: "eth0",
        peer_mac: mac,
        peer_namespace: guest.as_fd(),
        mtu: 1400,
    })
    .unwrap();
    let port = net.link(port).unwrap().unwrap().index;
    let bridge = net.link("br").unwrap().unwrap().index;
    net.set_master(port, bridge).unwrap();
    net.set_up(port, true).unwrap();
    let mut inside = Netlink::open_in(guest.as_fd()).unwrap();
    let eth = inside.link("eth0").unwrap().unwrap().index;
    inside.set_up(eth, true).unwrap();
    for (address, prefix) in addresses.into_iter().zip([24, 64]) {
        inside.add_address(eth, address.parse().unwrap(), prefix).unwrap();
    }
    port
}

fn wait_operational(net: &mut Netlink, port: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !net.link(port).unwrap().unwrap().operational {
        assert!(Instant::now() < deadline, "the port never came up");
        thread::yield_now();
    }
}

/// A host with a bridge at 10.9.0.1 and a guest at 10.9.0.2 joined to it.
pub(crate) struct Pair {
    pub host: OwnedFd,
    pub guest: OwnedFd,
    pub port: u32,
}

impl Pair {
    pub fn new() -> Self {
        let (host, guest) = (namespace(), namespace());
        let mut net = Netlink::open_in(host.as_fd()).unwrap();
        net.add_bridge("br").unwrap();
        let bridge = net.link("br").unwrap().unwrap();
        net.set_up(bridge.index, true).unwrap();
        net.add_address(bridge.index, "10.9.0.1".parse().unwrap(), 24)
            .unwrap();
        let port = join(&mut net, "port", &guest, MAC, ["10.9.0.2", "fd09::2"]);
        Self { host, guest, port }
    }

    pub fn host(&self) -> Netlink {
        Netlink::open_in(self.host.as_fd()).unwrap()
    }

    /// Another guest on the bridge, at 10.9.0.3.
    pub fn add_neighbour(&self) -> OwnedFd {
        let neighbour = namespace();
        let mac = [0x02, 0, 0, 0, 0, 0x78];
        join(
            &mut self.host(),
            "other",
            &neighbour,
            mac,
            ["10.9.0.3", "fd09::3"],
        );
        wait_operational(&mut self.host(), "other");
        neighbour
    }

    pub fn wait_operational(&self) {
        wait_operational(&mut self.host(), "port");
    }

    /// Sends a datagram from the host to the guest; whether it arrives.
    fn reaches(&self, from_guest: bool) -> bool {
        let (sender, receiver) = if from_guest {
            (&self.guest, &self.host)
        } else {
            (&self.host, &self.guest)
        };
        let address = if from_guest {
            Ipv4Addr::new(10, 9, 0, 1)
        } else {
            Ipv4Addr::new(10, 9, 0, 2)
        };
        let bind = |address| std::net::UdpSocket::bind((address, 5000)).unwrap();
        let ear = in_network(receiver.as_fd(), || bind(address)).unwrap();
        ear.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mouth = in_network(sender.as_fd(), || std::net::UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        mouth.send_to(b"hello", (address, 5000)).unwrap();
        ear.recv(&mut [0; 8]).is_ok()
    }
}

#[test]
fn a_guest_on_a_bridge_is_what_was_asked_for() {
    let pair = Pair::new();
    pair.wait_operational();
    let link = pair.host().link("port").unwrap().unwrap();
    assert_eq!(link.kind.as_deref(), Some("veth"));
    assert_eq!(link.port, Some(Port::Forwarding));
    assert_eq!(
        pair.host()
            .links()
            .unwrap()
            .iter()
            .filter(|l| l.kind.as_deref() == Some("bridge"))
            .count(),
        1
    );
    let mut inside = Netlink::open_in(pair.guest.as_fd()).unwrap();
    let eth = inside.link("eth0").unwrap().unwrap();
    assert_eq!((eth.mac, eth.mtu, eth.up), (Some(MAC), 1400, true));
    let gateway = RouteEntry {
        destination: None,
        gateway: Some("10.9.0.1".parse().unwrap()),
        index: eth.index,
    };
    inside.add_route(&gateway).unwrap();
    assert!(inside.routes().unwrap().contains(&gateway));
    let v6 = InterfaceAddress {
        index: eth.index,
        address: "fd09::2".parse().unwrap(),
        prefix: 64,
    };
    assert!(inside.addresses().unwrap().contains(&v6));
    assert!(pair.reaches(true) && pair.reaches(false));
}

#[test]
fn a_disabled_port_cuts_both_directions_and_can_be_opened_again() {
    let pair = Pair::new();
    pair.wait_operational();
    assert!(pair.reaches(true) && pair.reaches(false));
    pair.host().set_port(pair.port, Port::Disabled).unwrap();
    assert_eq!(
        pair.host().link("port").unwrap().unwrap().port,
        Some(Port::Disabled)
    );
    assert!(!pair.reaches(true));
    assert!(!pair.reaches(false));
    pair.host().set_port(pair.port, Port::Forwarding).unwrap();
    assert!(pair.reaches(true) && pair.reaches(false));
}

#[test]
fn both_announcements_are_seen_on_the_bridge() {
    let pair = Pair::new();
    pair.wait_operational();
    let mut inside = Netlink::open_in(pair.guest.as_fd()).unwrap();
    let eth = inside.link("eth0").unwrap().unwrap().index;
    for address in ["10.9.0.2", "fd09::2"] {
        let address: IpAddr = address.parse().unwrap();
        in_network(pair.guest.as_fd(), || announce(eth, MAC, address))
            .unwrap()
            .unwrap();
    }
}

#[test]
fn a_neighbour_that_could_not_be_asked_is_forgotten() {
    let pair = Pair::new();
    pair.wait_operational();
    pair.host().set_port(pair.port, Port::Disabled).unwrap();
    assert!(!pair.reaches(true));
    let mut inside = Netlink::open_in(pair.guest.as_fd()).unwrap();
    let eth = inside.link("eth0").unwrap().unwrap().index;
    assert_eq!(inside.forget_unresolved(eth + 1).unwrap(), 0);
    assert_eq!(inside.forget_unresolved(eth).unwrap(), 1);
    assert_eq!(inside.forget_unresolved(eth).unwrap(), 0);
}

#[test]
fn what_is_not_there_is_none_and_removing_it_is_no_error() {
    let host = namespace();
    let mut net = Netlink::open_in(host.as_fd()).unwrap();
    assert_eq!(net.link("nothing").unwrap(), None);
    net.delete_link(4711).unwrap();
    let e = net.set_up(4711, true).unwrap_err();
    assert_eq!(e.errno(), Some(libc::ENODEV));
    assert!(e.to_string().contains("4711"), "{e}");
}

#[test]
fn a_name_that_is_taken_is_an_error_that_names_it() {
    let host = namespace();
    let mut net = Netlink::open_in(host.as_fd()).unwrap();
    net.add_bridge("br").unwrap();
    let e = net.add_bridge("br").unwrap_err();
    assert!(e.to_string().contains("bridge br"), "{e}");
    assert_eq!(e.errno(), Some(libc::EEXIST));
}
