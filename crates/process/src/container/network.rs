//! Joining a workload's network to a bridge of the host, cutting it off and telling its neighbours.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_kernel::announce::Announcer;
use whimbrel_kernel::namespace::{self, in_network};
use whimbrel_kernel::netlink::{InterfaceAddress, Link, Netlink, Port, RouteEntry, Veth};

use super::{Address, Error, Identity, NetworkResources, NetworkSpec, Resources, Result, Route};

/// How long a new interface may take to become operational (the kernel looks once a second at most).
const OPERATIONAL_WAIT_MAX: Duration = Duration::from_secs(5);
/// The pauses between announcements, after the first one at the start.
pub const ANNOUNCE_PAUSES: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(500),
];
/// How often the lock is tried if the kernel opened the port again meanwhile.
const LOCK_TRIES_MAX: u32 = 5;

/// What the host offers to join to.
#[derive(Clone, Debug, Default)]
pub(super) struct HostNetwork {
    pub links: Vec<Link>,
    pub addresses: Vec<InterfaceAddress>,
    pub routes: Vec<RouteEntry>,
}

impl HostNetwork {
    pub fn read() -> Result<Self> {
        let mut net = Netlink::open()?;
        Ok(Self {
            links: net.links()?,
            addresses: net.addresses()?,
            routes: net.routes()?,
        })
    }

    fn bridges(&self) -> Vec<&Link> {
        self.links
            .iter()
            .filter(|link| link.kind.as_deref() == Some("bridge"))
            .collect()
    }

    /// The bridge that was asked for, else the one with an address in the workload's network, else the only one.
    pub fn choose_bridge(&self, wanted: Option<&str>, addresses: &[Address]) -> Result<&Link> {
        let bridges = self.bridges();
        if let Some(wanted) = wanted {
            return bridges.into_iter().find(|bridge| bridge.name == wanted).ok_or_else(|| {
                Error::refused(format!(
                    "this host has no bridge called {wanted}; make it with: ip link add name {wanted} type bridge && ip link set dev {wanted} up"
                ))
            });
        }
        let near: Vec<_> = bridges
            .iter()
            .copied()
            .filter(|bridge| self.is_near(bridge.index, addresses))
            .collect();
        match (near.as_slice(), bridges.as_slice()) {
            ([bridge], _) | ([], [bridge]) => Ok(bridge),
            ([], []) => Err(Error::refused(
                "this host has no bridge to join the workload's network to; make one with: ip link add name br0 type bridge && ip link set dev br0 up",
            )),
            _ => {
                let names: Vec<_> = bridges.iter().map(|bridge| bridge.name.as_str()).collect();
                Err(Error::refused(format!(
                    "this host has several bridges ({}); say which one with --bridge",
                    names.join(", ")
                )))
            }
        }
    }

    fn is_near(&self, bridge: u32, addresses: &[Address]) -> bool {
        self.own_addresses(bridge)
            .any(|own| addresses.iter().any(|address| address.contains(own)))
    }

    fn own_addresses(&self, bridge: u32) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses
            .iter()
            .filter(move |a| a.index == bridge)
            .map(|a| a.address)
    }

    /// Default routes for a new workload: over the gateway that the host itself uses behind the bridge, else over the bridge.
    pub fn default_routes(&self, bridge: u32, addresses: &[Address]) -> Vec<Route> {
        let gateways = |v4: bool| {
            let used = self
                .routes
                .iter()
                .filter(|route| route.destination.is_none() && route.index == bridge);
            let used = used.filter_map(|route| route.gateway);
            let mut candidates = used
                .chain(self.own_addresses(bridge))
                .filter(|ip| ip.is_ipv4() == v4);
            candidates.find(|ip| {
                addresses
                    .iter()
                    .any(|address| address.contains(*ip) && address.ip != *ip)
            })
        };
        let gateways = [gateways(true), gateways(false)].into_iter().flatten();
        gateways
            .map(|gateway| Route {
                destination: None,
                gateway: Some(gateway),
            })
            .collect()
    }
}

/// Makes the workload's interface in the network namespace of `init` and joins it to the bridge; cut off if `locked`.
pub(super) fn join(spec: &NetworkSpec, to: &NetworkResources, init: i32, locked: bool) -> Result<()> {
    let namespace = namespace::open(init, "net")?;
    let mut host = Netlink::open()?;
    let bridge = find(&mut host, &to.bridge)?;
    host.add_veth(&Veth {
        name: &to.port,
        peer_name: &spec.interface,
        peer_mac: spec.mac,
        peer_namespace: namespace.as_fd(),
        mtu: spec.mtu,
    })?;
    let port = find(&mut host, &to.port)?;
    host.set_master(port.index, bridge.index)?;
    host.set_up(port.index, true)?;
    furnish(spec, &mut Netlink::open_in(namespace.as_fd())?)?;
    if locked {
        await_operational(&mut host, &to.port)?;
        set_port(&mut host, &to.port, Port::Disabled)?;
    }
    Ok(())
}

/// Switches the interfaces inside on and gives them addresses and routes.
fn furnish(spec: &NetworkSpec, inside: &mut Netlink) -> Result<()> {
    let loopback = find(inside, "lo")?;
    inside.set_up(loopback.index, true)?;
    let interface = find(inside, &spec.interface)?;
    inside.set_up(interface.index, true)?;
    for address in &spec.addresses {
        inside.add_address(interface.index, address.ip, address.prefix)?;
    }
    for route in &spec.routes {
        let destination = route
            .destination
            .map(|destination| (destination.ip, destination.prefix));
        inside.add_route(&RouteEntry {
            destination,
            gateway: route.gateway,
            index: interface.index,
        })?;
    }
    Ok(())
}

pub(super) fn find(net: &mut Netlink, name: &str) -> Result<Link> {
    net.link(name)?
        .ok_or_else(|| Error::refused(format!("the network interface {name} is gone")))
}

/// Until then the kernel may still have an event to work off, at which it opens the port.
fn await_operational(net: &mut Netlink, name: &str) -> Result<()> {
    let deadline = Instant::now() + OPERATIONAL_WAIT_MAX;
    loop {
        if find(net, name)?.operational {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::refused(format!(
                "the network interface {name} did not become operational; is its bridge switched on?"
            )));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn set_port(net: &mut Netlink, name: &str, wanted: Port) -> Result<()> {
    let link = find(net, name)?;
    match link.port == Some(wanted) {
        true => Ok(()),
        false => set_port_of(net, &link, wanted),
    }
}

/// Sets it, and looks whether it stays so.
fn set_port_of(net: &mut Netlink, link: &Link, wanted: Port) -> Result<()> {
    let name = &link.name;
    for _ in 0..LOCK_TRIES_MAX {
        net.set_port(link.index, wanted)?;
        if find(net, name)?.port == Some(wanted) {
            return Ok(());
        }
    }
    Err(Error::refused(format!(
        "the bridge port {name} does not stay {wanted:?}; is a spanning tree protocol managing it?"
    )))
}

/// What it takes to cut a workload off, had ready: the workload stands still meanwhile.
#[derive(Debug)]
pub struct Lock {
    net: Netlink,
    port: Link,
}

impl Lock {
    /// `None` for a workload without a network of its own.
    pub fn prepare(resources: &Resources) -> Result<Option<Self>> {
        let Some(network) = &resources.network else {
            return Ok(None);
        };
        let mut net = Netlink::open()?;
        let port = find(&mut net, &network.port)?;
        Ok(Some(Self { net, port }))
    }

    /// Cuts the workload off: no packet reaches it, none leaves it, and nobody is told. Idempotent.
    pub fn close(&mut self) -> Result<()> {
        set_port_of(&mut self.net, &self.port, Port::Disabled)
    }
}

/// Joins it again. Idempotent.
pub fn unlock(resources: &Resources) -> Result<()> {
    match &resources.network {
        Some(network) => set_port(&mut Netlink::open()?, &network.port, Port::Forwarding),
        None => Ok(()),
    }
}

/// Tells bridges and neighbours once that the workload's addresses are here now. To be repeated: frames get lost.
pub fn announce(resources: &Resources) -> Result<()> {
    match Introduction::prepare(resources)? {
        Some(introduction) => introduction.announce(),
        None => Ok(()),
    }
}

/// The first announcement of a workload that was cut off. It belongs before the source hears that the workload has started, so that
/// what the source sends after it finds the way here; what it needs is opened before, since the workload waits.
#[derive(Debug)]
pub struct Introduction {
    network: NetworkResources,
    interface: u32,
    net: Netlink,
    announcer: Announcer,
}

impl Introduction {
    /// `None` for a workload without a network of its own, or one that is gone.
    pub fn prepare(resources: &Resources) -> Result<Option<Self>> {
        let (Some(network), Some(init)) = (&resources.network, resources.init.filter(Identity::is_alive))
        else {
            return Ok(None);
        };
        let namespace = namespace::open(init.pid, "net")?;
        in_network(namespace.as_fd(), || {
            let mut net = Netlink::open()?;
            let interface = find(&mut net, &network.interface)?.index;
            Ok(Some(Self {
                network: network.clone(),
                interface,
                net,
                announcer: Announcer::open(interface)?,
            }))
        })?
    }

    /// To be called when the network is open, and before anything is sent.
    pub fn make(&mut self) -> Result<()> {
        let forgotten = self.net.forget_unresolved(self.interface);
        self.announce()?;
        Ok(forgotten.map(drop)?)
    }

    fn announce(&self) -> Result<()> {
        let addresses = &self.network.addresses;
        let announced = addresses
            .iter()
            .try_for_each(|address| self.announcer.announce(self.network.mac, address.ip));
        Ok(announced?)
    }
}

/// Repeats [`announce`] while the neighbours may still be busy learning. Takes [`ANNOUNCE_PAUSES`] in all.
pub fn announce_repeatedly(resources: &Resources) -> Result<()> {
    if resources.network.is_none() {
        return Ok(());
    }
    ANNOUNCE_PAUSES.iter().try_for_each(|pause| {
        thread::sleep(*pause);
        announce(resources)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: Some(kind.to_owned()),
            mac: None,
            mtu: 1500,
            up: true,
            operational: true,
            master: None,
            port: None,
        }
    }

    fn host(bridges: &[(u32, &str, Option<&str>)]) -> HostNetwork {
        let addresses = bridges.iter().filter_map(|(index, _, address)| {
            Some(InterfaceAddress {
                index: *index,
                address: (*address)?.parse().unwrap(),
                prefix: 24,
            })
        });
        HostNetwork {
            addresses: addresses.collect(),
            links: bridges
                .iter()
                .map(|(index, name, _)| link(*index, name, "bridge"))
                .collect(),
            routes: Vec::new(),
        }
    }

    fn wanted() -> Vec<Address> {
        vec!["10.1.0.2/24".parse().unwrap()]
    }

    #[test]
    fn the_bridge_in_the_same_network_is_chosen() {
        let host = host(&[(1, "a", Some("10.0.0.1")), (2, "b", Some("10.1.0.1"))]);
        assert_eq!(host.choose_bridge(None, &wanted()).unwrap().name, "b");
        assert_eq!(host.choose_bridge(Some("a"), &wanted()).unwrap().name, "a");
    }

    #[test]
    fn the_only_bridge_is_chosen_and_several_are_refused_by_name() {
        assert_eq!(
            host(&[(1, "a", None)])
                .choose_bridge(None, &wanted())
                .unwrap()
                .name,
            "a"
        );
        let sentence = |host: HostNetwork, name| host.choose_bridge(name, &wanted()).unwrap_err().to_string();
        assert!(sentence(host(&[(1, "a", None), (2, "b", None)]), None).contains("(a, b)"));
        assert!(sentence(host(&[]), None).contains("ip link add name br0"));
        assert!(sentence(host(&[(1, "a", None)]), Some("c")).contains("no bridge called c"));
    }

    #[test]
    fn the_default_route_is_the_hosts_own_gateway_or_the_bridge() {
        let mut host = host(&[(2, "b", Some("10.1.0.1"))]);
        let over = |ip: &str| {
            vec![Route {
                destination: None,
                gateway: Some(ip.parse().unwrap()),
            }]
        };
        assert_eq!(host.default_routes(2, &wanted()), over("10.1.0.1"));
        let gateway = Some("10.1.0.254".parse().unwrap());
        host.routes.push(RouteEntry {
            destination: None,
            gateway,
            index: 2,
        });
        assert_eq!(host.default_routes(2, &wanted()), over("10.1.0.254"));
        assert!(host
            .default_routes(2, &["10.7.0.2/24".parse().unwrap()])
            .is_empty());
    }
}
