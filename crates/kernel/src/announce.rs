//! Telling the neighbours where an address lives now: gratuitous ARP (RFC 5227, 3) and unsolicited neighbour advertisements
//! (RFC 4861, 7.2.6). Bridges and switches learn the new port from the same frames.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::error::{Error, Result};
use crate::netlink::Mac;
use crate::socket;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86DD;
const BROADCAST: Mac = [0xff; 6];
/// The link-layer form of ff02::1, all nodes (RFC 2464, 7).
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;

/// Announces from one interface. An announcement itself takes some microseconds; closing takes milliseconds (the kernel waits
/// until no CPU uses the socket).
#[derive(Debug)]
pub struct Announcer {
    socket: OwnedFd,
    interface: u32,
}

impl Announcer {
    /// For an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// CAP_NET_RAW is missing.
    pub fn open(interface: u32) -> Result<Self> {
        let socket = socket::create(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        Ok(Self { socket, interface })
    }

    /// Announces `address` with `mac`, from any thread.
    ///
    /// # Errors
    /// The interface is gone or switched off.
    pub fn announce(&self, mac: Mac, address: IpAddr) -> Result<()> {
        let frame = match address {
            IpAddr::V4(address) => arp_frame(mac, address),
            IpAddr::V6(address) => advertisement_frame(mac, address),
        };
        let sent = self.send(&frame);
        sent.map_err(|e| Error::call(format!("announce the address {address}"), e))
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: an all-zero sockaddr_ll is a valid one.
        let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = self.interface as i32;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&frame[..6]);
        // SAFETY: both pointers are valid for the lengths beside them.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                mem::size_of_val(&to) as libc::socklen_t,
            )
        };
        match sent {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Announces `address` with `mac` from the interface, in the calling thread's network namespace.
pub fn announce(interface: u32, mac: Mac, address: IpAddr) -> Result<()> {
    Announcer::open(interface)?.announce(mac, address)
}

/// An ARP request that asks for the sender's own address.
fn arp_frame(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]); // Ethernet, IPv4, their lengths, request
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn advertisement_frame(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0]; // advertisement, checksum, flag: override
    message.extend(address.octets());
    message.extend([2, 1]); // option: target link-layer address, 8 bytes
    message.extend(mac);
    let sum = icmpv6_checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [to.as_slice(), &from, &kind.to_be_bytes()].concat()
}

/// The sum over the pseudo-header and the message (RFC 8200, 8.1), whose checksum field is 0.
fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, ICMPV6]].concat();
    let words = pseudo.chunks(2).chain(message.chunks(2));
    let mut sum: u32 = words
        .map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp_frame_is_a_request_for_the_own_address() {
        let frame = arp_frame([2, 0, 0, 0, 0, 9], Ipv4Addr::new(10, 1, 2, 3));
        let golden = [
            "ffffffffffff",
            "020000000009",
            "0806", // Ethernet
            "0001",
            "0800",
            "06",
            "04",
            "0001", // RFC 826
            "020000000009",
            "0a010203",
            "000000000000",
            "0a010203",
        ];
        assert_eq!(hex(&frame), golden.concat());
    }

    #[test]
    fn advertisement_sums_to_all_ones() {
        let address: Ipv6Addr = "fd00::1:2".parse().unwrap();
        let frame = advertisement_frame([2, 0, 0, 0, 0, 9], address);
        // A receiver adds everything up, checksum included, and must find ffff: the complement is 0.
        assert_eq!(icmpv6_checksum(address, ALL_NODES, &frame[54..]), 0);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(hex(&frame[54..56]), "8800");
        assert_eq!(hex(&frame[58..62]), "20000000");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}
