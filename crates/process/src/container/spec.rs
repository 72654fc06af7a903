//! The description of a container, which travels with the workload.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use whimbrel_kernel::namespace::hostname;
use whimbrel_kernel::netlink::{Mac, INTERFACE_NAME_MAX};

use super::{random_hex, Error, Result};

/// Most addresses and routes of one workload.
const NETWORK_ENTRIES_MAX: usize = 64;
/// Longest name of a workload in bytes.
const NAME_MAX: usize = 64;
/// Longest host name in bytes (man 2 sethostname).
const HOSTNAME_MAX: usize = 64;
/// The smallest packet that IPv4 hosts must accept (RFC 791) and the largest there is, in bytes.
const MTU: std::ops::RangeInclusive<u32> = 576..=65535;

/// What a workload needs around it, on any host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Stays the same wherever the workload moves: 16 hexadecimal digits.
    pub id: String,
    /// What the user calls it.
    pub name: String,
    /// Its command line, for display.
    pub command: Vec<String>,
    /// The name that its host seems to have.
    pub hostname: String,
    /// Its own network, if it has one.
    pub network: Option<NetworkSpec>,
    /// Where its output goes, at the source.
    pub log: Option<PathBuf>,
}

/// The network of a workload: one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Name of the interface that the workload sees.
    pub interface: String,
    /// Its MAC address, which moves along, so that the neighbours' tables stay right.
    pub mac: Mac,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Routes beside those that come with the addresses.
    pub routes: Vec<Route>,
}

/// An address with the length of its network's prefix; written `10.0.0.2/24` or `fd00::2/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the prefix.
    pub prefix: u8,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; `None` for everywhere (the default route).
    pub destination: Option<Address>,
    /// Over which neighbour; `None` for directly.
    pub gateway: Option<IpAddr>,
}

impl ContainerSpec {
    /// For a new workload on this host.
    pub fn new(name: Option<&str>, command: &[String]) -> Result<Self> {
        let id = random_hex::<8>()?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => default_name(command, &id),
        };
        let spec = Self {
            id,
            name,
            command: command.to_vec(),
            hostname: hostname()?,
            network: None,
            log: None,
        };
        spec.validate()?;
        Ok(spec)
    }

    /// For a process that was not started by `run`.
    pub fn of_process(pid: i32) -> Result<Self> {
        let path = PathBuf::from(format!("/proc/{pid}/cmdline"));
        let line = std::fs::read(&path).map_err(|e| Error::file("read", &path, e))?;
        let arguments = line
            .split(|&byte| byte == 0)
            .filter(|argument| !argument.is_empty());
        let command: Vec<String> = arguments
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect();
        Self::new(None, &command)
    }

    /// Refuses what cannot be, since a spec also comes from another host.
    pub fn validate(&self) -> Result<()> {
        if self.id.is_empty() || self.id.len() > 32 || !self.id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::refused("the workload's id is not hexadecimal"));
        }
        check_name(&self.name)?;
        if self.hostname.len() > HOSTNAME_MAX {
            return Err(Error::refused("the host name of the workload is too long"));
        }
        self.network.as_ref().map_or(Ok(()), NetworkSpec::validate)
    }
}

impl NetworkSpec {
    fn validate(&self) -> Result<()> {
        let name = &self.interface;
        let printable = name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        if name.is_empty()
            || name.len() > INTERFACE_NAME_MAX
            || !printable
            || name == "."
            || name == ".."
            || name == "lo"
        {
            return Err(Error::refused(format!(
                "{name:?} cannot be the name of a workload's network interface"
            )));
        }
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return Err(Error::refused(
                "the workload's MAC address is not one of a single interface",
            ));
        }
        if !MTU.contains(&self.mtu) {
            return Err(Error::refused(format!(
                "the workload's network has an impossible MTU of {} bytes",
                self.mtu
            )));
        }
        if self.addresses.is_empty() || self.addresses.len() + self.routes.len() > NETWORK_ENTRIES_MAX {
            return Err(Error::refused(format!(
                "a workload's network needs an address, and has {NETWORK_ENTRIES_MAX} addresses and routes at most"
            )));
        }
        let destinations = self.routes.iter().filter_map(|route| route.destination);
        self.addresses
            .iter()
            .copied()
            .chain(destinations)
            .try_for_each(Address::validate)
    }
}

impl Address {
    fn validate(self) -> Result<()> {
        if self.prefix <= if self.ip.is_ipv4() { 32 } else { 128 } {
            return Ok(());
        }
        Err(Error::refused(format!(
            "the prefix of the address {self} is too long"
        )))
    }

    /// Whether the other address is in the same network.
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.ip, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let different = u32::from(a) ^ u32::from(b);
                different
                    .checked_shr(32 - u32::from(self.prefix.min(32)))
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let different = u128::from(a) ^ u128::from(b);
                different
                    .checked_shr(128 - u32::from(self.prefix.min(128)))
                    .unwrap_or(0)
                    == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::refused(format!(
                "{text:?} is not an address with its prefix, like 10.0.0.2/24"
            ))
        };
        let (ip, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = Self {
            ip: ip.parse().map_err(|_| wrong())?,
            prefix: prefix.parse().map_err(|_| wrong())?,
        };
        address.validate()?;
        Ok(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// Names become names of directories, and are typed in shells. A number would be taken for a PID.
fn check_name(name: &str) -> Result<()> {
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let begins = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    let number = name.bytes().all(|b| b.is_ascii_digit());
    if plain && begins && !number && name.len() <= NAME_MAX {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{name:?} cannot be the name of a workload: take letters, digits, '.', '_' and '-' (at most {NAME_MAX}, not only digits)"
    )))
}

/// The program's own name and a piece of the id.
fn default_name(command: &[String], id: &str) -> String {
    let program = command
        .first()
        .and_then(|path| path.rsplit('/').next())
        .unwrap_or("");
    let plain: String = program
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(32)
        .collect();
    let program = if plain.is_empty() { "workload" } else { &plain };
    format!("{program}-{}", &id[..4])
}
