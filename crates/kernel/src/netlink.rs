//! Network interfaces of one network namespace, by rtnetlink (man 7 rtnetlink): pairs of veth, bridge ports,
//! addresses, routes. Blocking, one request at a time.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    DefaultNla, Emitable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP,
    NLM_F_EXCL, NLM_F_REQUEST,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};

use crate::error::{Error, Result};
use crate::namespace::in_network;

/// A MAC address.
pub type Mac = [u8; 6];

/// How often a dump that was interrupted by a change is begun again.
const DUMP_TRIES_MAX: u32 = 16;
/// The attribute of a bridge port that holds its state (linux/if_link.h).
const IFLA_BRPORT_STATE: u16 = 1;
/// Marks an attribute that consists of attributes (linux/netlink.h).
const NLA_F_NESTED: u16 = 1 << 15;
/// Longest name of an interface in bytes (IFNAMSIZ without the closing zero).
pub const INTERFACE_NAME_MAX: usize = 15;

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, unique in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is, if it is no hardware: `bridge`, `veth`, ...
    pub kind: Option<String>,
    /// Its MAC address, if it has one.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Whether somebody switched it on.
    pub up: bool,
    /// Whether it can carry packets now (RFC 2863: `up`).
    pub operational: bool,
    /// The number of the bridge that it is a port of.
    pub master: Option<u32>,
    /// If it is the port of a bridge: whether it forwards.
    pub port: Option<Port>,
}

/// What the port of a bridge does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Passes them on in both directions.
    Forwarding,
    /// Drops them in both directions.
    Disabled,
    /// Something that a spanning tree protocol decided.
    Other,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Number of the interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of the network's prefix in bits.
    pub prefix: u8,
}

/// An entry of the main routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// Destination and length of its prefix in bits, `None` for the default route.
    pub destination: Option<(IpAddr, u8)>,
    /// The next hop, `None` for what is reached directly.
    pub gateway: Option<IpAddr>,
    /// Number of the interface, 0 if there are several.
    pub index: u32,
}

/// A pair of virtual Ethernet interfaces to be made.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// Name of the end in this namespace.
    pub name: &'a str,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// MAC address of the other end.
    pub peer_mac: Mac,
    /// The network namespace of the other end.
    pub peer_namespace: BorrowedFd<'a>,
    /// Largest packet of both ends in bytes.
    pub mtu: u32,
}

/// A connection to the kernel's tables of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens the tables of the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Self::connect().map_err(|e| Error::call("open a netlink socket", e))
    }

    /// Opens the tables of another network namespace.
    pub fn open_in(namespace: BorrowedFd) -> Result<Self> {
        in_network(namespace, Self::open)?
    }

    fn connect() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All interfaces.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump("list the network interfaces", request)?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(parse_link(message)),
                _ => None,
            })
            .collect())
    }

    /// The interface with this name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let what = format!("look up the network interface {name}");
        match self.exchange(&what, RouteNetlinkMessage::GetLink(message), NLM_F_ACK) {
            Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(parse_link(message)),
                _ => None,
            })),
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The addresses of all interfaces.
    pub fn addresses(&mut self) -> Result<Vec<InterfaceAddress>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump("list the addresses", request)?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => parse_address(message),
                _ => None,
            })
            .collect())
    }

    /// The unicast routes of the main table.
    pub fn routes(&mut self) -> Result<Vec<RouteEntry>> {
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let answers = self.dump("list the routes", request)?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => parse_route(message),
                _ => None,
            })
            .collect())
    }

    /// Makes a bridge, switched off and without ports.
    pub fn add_bridge(&mut self, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.create(
            &format!("make the bridge {name}"),
            RouteNetlinkMessage::NewLink(message),
        )
    }

    /// Makes a pair of veth, both ends switched off. It goes with either of its ends or of their namespaces.
    pub fn add_veth(&mut self, pair: &Veth) -> Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(pair.peer_name.to_owned()),
            LinkAttribute::Address(pair.peer_mac.to_vec()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::NetNsFd(pair.peer_namespace.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(pair.name.to_owned()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.create(
            &format!("make the interface {}", pair.name),
            RouteNetlinkMessage::NewLink(message),
        )
    }

    /// Removes an interface; one that is gone already is no error.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let request = RouteNetlinkMessage::DelLink(link_message(index));
        match self.order(&format!("remove the interface number {index}"), request) {
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Makes the interface a port of a bridge.
    pub fn set_master(&mut self, index: u32, bridge: u32) -> Result<()> {
        let mut message = link_message(index);
        message.attributes.push(LinkAttribute::Controller(bridge));
        let what = format!("make the interface number {index} a port of the bridge number {bridge}");
        self.order(&what, RouteNetlinkMessage::SetLink(message))
    }

    /// Switches the interface on or off.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<()> {
        let mut message = link_message(index);
        message.header.change_mask = LinkFlags::Up;
        if up {
            message.header.flags = LinkFlags::Up;
        }
        let what = format!(
            "switch the interface number {index} {}",
            if up { "on" } else { "off" }
        );
        self.order(&what, RouteNetlinkMessage::SetLink(message))
    }

    /// Lets the port of a bridge forward, or drop all packets in both directions (the network lock). The kernel itself
    /// opens a disabled port again at any event of the interface (carrier, another `ip link set`), so lock it when it is
    /// operational and look at it afterwards.
    pub fn set_port(&mut self, index: u32, port: Port) -> Result<()> {
        let state = match port {
            Port::Forwarding => BridgePortState::Forwarding,
            Port::Disabled | Port::Other => BridgePortState::Disabled,
        };
        let mut message = link_message(index);
        message.header.interface_family = AddressFamily::Bridge;
        message.attributes.push(port_attribute(state));
        let what = format!("set the bridge port number {index} to {port:?}");
        self.order(&what, RouteNetlinkMessage::SetLink(message))
    }

    /// Gives the interface an address. It is used at once, without asking the network for duplicates (RFC 4862, 5.4): at a
    /// migration the other holder of the address is the source, which is cut off.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
            AddressAttribute::Flags(AddressFlags::Nodad),
        ];
        let what = format!("add the address {address}/{prefix}");
        self.create(&what, RouteNetlinkMessage::NewAddress(message))
    }

    /// Adds a route to the main table.
    pub fn add_route(&mut self, route: &RouteEntry) -> Result<()> {
        let what = match (route.destination, route.gateway) {
            (Some((address, prefix)), _) => format!("add the route to {address}/{prefix}"),
            (None, Some(gateway)) => format!("add the default route over {gateway}"),
            (None, None) => "add a default route".to_owned(),
        };
        self.create(&what, RouteNetlinkMessage::NewRoute(route_message(route)))
    }

    /// Forgets every neighbour of the interface whose MAC address is still being asked for, with the packets that wait for it, and
    /// returns how many. While the interface was cut off the questions were lost, and the kernel asks again only
    /// after a second (`retrans_time_ms`, man 7 arp); forgotten, it asks at the next packet.
    pub fn forget_unresolved(&mut self, index: u32) -> Result<usize> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let mut forgotten = 0;
        for answer in self.dump("list the neighbours", request)? {
            let RouteNetlinkMessage::NewNeighbour(neighbour) = answer else {
                continue;
            };
            let unresolved = matches!(
                neighbour.header.state,
                NeighbourState::Incomplete | NeighbourState::Failed
            );
            if neighbour.header.ifindex == index && unresolved {
                self.forget(neighbour)?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    fn forget(&mut self, mut neighbour: NeighbourMessage) -> Result<()> {
        neighbour
            .attributes
            .retain(|attribute| matches!(attribute, NeighbourAttribute::Destination(_)));
        match self.order("forget a neighbour", RouteNetlinkMessage::DelNeighbour(neighbour)) {
            // It was resolved or collected meanwhile.
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// A request that makes something which must not exist yet.
    fn create(&mut self, what: &str, request: RouteNetlinkMessage) -> Result<()> {
        self.exchange(what, request, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .map(drop)
    }

    /// A request that changes something.
    fn order(&mut self, what: &str, request: RouteNetlinkMessage) -> Result<()> {
        self.exchange(what, request, NLM_F_ACK).map(drop)
    }

    /// A request for a whole table. The kernel marks an answer during which the table changed: ask again.
    fn dump(&mut self, what: &str, request: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_TRIES_MAX {
            match self.exchange(what, request.clone(), NLM_F_DUMP) {
                Err(e) if e.errno() == Some(libc::EINTR) => {}
                other => return other,
            }
        }
        Err(Error::call(what, io::Error::from_raw_os_error(libc::EINTR)))
    }

    /// Sends one request and collects its answers.
    fn exchange(
        &mut self,
        what: &str,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket
            .send(&buffer, 0)
            .and_then(|_| self.collect())
            .map_err(|e| Error::call(what, e))
    }

    /// Reads answers to the last request up to the one that ends it.
    fn collect(&mut self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (message.header.length as usize)
                    .next_multiple_of(4)
                    .min(rest.len());
                rest = &rest[length..];
                if message.header.sequence_number != self.sequence {
                    continue; // the rest of an answer that was given up
                }
                interrupted |= message.header.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                    NetlinkPayload::Done(_) if interrupted => {
                        return Err(io::Error::from_raw_os_error(libc::EINTR))
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// The state of a port by way of the bridge's own handler: the one of `ip link set type bridge_slave` sends an event of the
/// interface afterwards, at which the kernel opens the port again.
fn port_attribute(state: BridgePortState) -> LinkAttribute {
    let nested = DefaultNla::new(IFLA_BRPORT_STATE, vec![state.into()]);
    let mut value = vec![0; nested.buffer_len()];
    nested.emit(&mut value);
    LinkAttribute::Other(DefaultNla::new(libc::IFLA_PROTINFO | NLA_F_NESTED, value))
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn route_message(route: &RouteEntry) -> RouteMessage {
    let mut message = RouteMessage::default();
    let any = route.gateway.or(route.destination.map(|(address, _)| address));
    message.header.address_family = any.map_or(AddressFamily::Inet, family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if route.gateway.is_some() {
        RouteScope::Universe
    } else {
        RouteScope::Link
    };
    if let Some((address, prefix)) = route.destination {
        message.header.destination_prefix_length = prefix;
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
    }
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    message.attributes.push(RouteAttribute::Oif(route.index));
    message
}

fn parse_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        operational: false,
        master: None,
        port: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name.clone(),
            LinkAttribute::Address(mac) => link.mac = Mac::try_from(mac.as_slice()).ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::OperState(state) => link.operational = *state == State::Up,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| parse_info(info, &mut link)),
            _ => {}
        }
    }
    link
}

fn parse_info(info: &LinkInfo, link: &mut Link) {
    match info {
        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
        LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
            link.port = attributes.iter().find_map(|attribute| match attribute {
                InfoBridgePort::State(BridgePortState::Forwarding) => Some(Port::Forwarding),
                InfoBridgePort::State(BridgePortState::Disabled) => Some(Port::Disabled),
                InfoBridgePort::State(_) => Some(Port::Other),
                _ => None,
            });
        }
        _ => {}
    }
}

fn parse_address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let mut local = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    // On a point to point link `Address` is the other end; elsewhere both are the same, and IPv6 has only `Address`.
    let address = local.or(address)?;
    Some(InterfaceAddress {
        index: message.header.index,
        address,
        prefix: message.header.prefix_len,
    })
}

fn parse_route(message: &RouteMessage) -> Option<RouteEntry> {
    if message.header.table != RouteHeader::RT_TABLE_MAIN || message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = RouteEntry {
        destination: None,
        gateway: None,
        index: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                route.destination = ip(to).map(|address| (address, message.header.destination_prefix_length));
            }
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::Oif(index) => route.index = *index,
            _ => {}
        }
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;
