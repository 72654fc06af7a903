//! Two hosts, the switch between them, and a client.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::inventory::Inventory;
use crate::network::{self, Traffic};

/// Address of host alpha.
pub const ALPHA: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// Address of host beta.
pub const BETA: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// Address of the client.
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));

/// Where both hosts see what [`Builder::shared`] gave them.
pub const SHARED: &str = "/srv/shared";

/// How the two hosts shall be.
#[derive(Clone, Debug)]
pub struct Builder {
    rate: Option<String>,
    one_network: bool,
    programs: Vec<PathBuf>,
    shared: Option<PathBuf>,
}

impl Builder {
    /// The rate of each host's link in each direction, as tc(8) writes it; 1 Gbit/s unless told otherwise.
    pub fn rate(mut self, rate: &str) -> Self {
        self.rate = Some(rate.to_string());
        self
    }

    /// Links as fast as the machine.
    pub fn unshaped(mut self) -> Self {
        self.rate = None;
        self
    }

    /// Beta lives in the network of alpha: loopback is their link. Both are [`ALPHA`] and 127.0.0.1 then.
    pub fn one_network(mut self) -> Self {
        self.one_network = true;
        self
    }

    /// Puts a program into `/usr/local/bin` of both hosts. A copy each: same content, another file.
    pub fn program(mut self, path: impl AsRef<Path>) -> Self {
        self.programs.push(path.as_ref().to_path_buf());
        self
    }

    /// Both hosts see this directory of the machine at [`SHARED`]: the same files, with working locks between the
    /// hosts, as on shared storage.
    pub fn shared(mut self, directory: impl AsRef<Path>) -> Self {
        self.shared = Some(directory.as_ref().to_path_buf());
        self
    }

    /// Makes them.
    pub fn build(self) -> Result<TwoHosts> {
        // Several pairs of hosts may exist at once.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let shared = self.shared.as_deref();
        let alpha = Host::whole("alpha", &format!("{count}-alpha"), None, shared)?;
        let neighbour = self.one_network.then_some(&alpha);
        let hosts = TwoHosts {
            beta: Host::whole("beta", &format!("{count}-beta"), neighbour, shared)?,
            alpha,
            client: Host::network_only("client")?,
            switch: Host::network_only("switch")?,
            one_network: self.one_network,
        };
        network::make_switch(&hosts.switch)?;
        self.connect(&hosts, &hosts.alpha, 1)?;
        if !self.one_network {
            self.connect(&hosts, &hosts.beta, 2)?;
        }
        network::lay_cable(&hosts.switch, &hosts.client)?;
        network::give_addresses(&hosts.client, 100, "eth0")?;
        for program in &self.programs {
            hosts.alpha.install(program)?;
            hosts.beta.install(program)?;
        }
        Ok(hosts)
    }

    fn connect(&self, hosts: &TwoHosts, host: &Host, number: u8) -> Result<()> {
        network::lay_cable(&hosts.switch, host)?;
        network::make_bridge(host, number)?;
        match &self.rate {
            Some(rate) => network::shape(&hosts.switch, host, rate),
            None => Ok(()),
        }
    }
}

/// Two hosts, the switch between them, and a client. All gone when dropped.
#[derive(Debug)]
pub struct TwoHosts {
    /// A whole host, at [`ALPHA`].
    pub alpha: Host,
    /// A whole host, at [`BETA`].
    pub beta: Host,
    /// A network namespace for clients, at [`CLIENT`]; its link is not shaped.
    pub client: Host,
    switch: Host,
    one_network: bool,
}

impl TwoHosts {
    /// Hosts as described in [`Builder`], with links of 1 Gbit/s.
    pub fn builder() -> Builder {
        Builder {
            rate: Some("1gbit".to_string()),
            one_network: false,
            programs: Vec::new(),
            shared: None,
        }
    }

    /// Where the one whole host reaches the other one.
    pub fn address_of(&self, host: &Host) -> IpAddr {
        if self.one_network {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else if host.name() == self.alpha.name() {
            ALPHA
        } else {
            BETA
        }
    }

    /// Cuts the cable of `host`: packets vanish in both directions, no carrier is lost.
    pub fn cut(&self, host: &Host) -> Result<()> {
        network::set_cut(&self.switch, host, true)
    }

    /// Mends what [`cut`](Self::cut) did.
    pub fn mend(&self, host: &Host) -> Result<()> {
        network::set_cut(&self.switch, host, false)
    }

    /// What the cable of `host` has carried so far, as the host sees it.
    pub fn traffic(&self, host: &Host) -> Result<Traffic> {
        self.traffic_of(host, "eth0")
    }

    /// What an interface of `host` has carried so far, such as `lo`.
    pub fn traffic_of(&self, host: &Host, interface: &str) -> Result<Traffic> {
        network::traffic(host, interface)
    }

    /// Everything that exists in both hosts: processes, links, addresses, routes, cgroups, mounts, temporary files.
    pub fn inventory(&self) -> Result<[Inventory; 2]> {
        Ok([Inventory::take(&self.alpha)?, Inventory::take(&self.beta)?])
    }

    /// Waits until everything is as it was `before`; what is not is told in the error.
    pub fn wait_as_before(&self, before: &[Inventory; 2], limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let now = self.inventory()?;
            let mut changes = String::new();
            for ((host, now), before) in [&self.alpha, &self.beta].iter().zip(&now).zip(before) {
                for change in now.changes_since(before) {
                    changes += &format!("{}: {change}\n", host.name());
                }
            }
            if changes.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::NotAsBefore(changes));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// An address with a port.
pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
