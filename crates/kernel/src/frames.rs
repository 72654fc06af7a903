//! Catching Ethernet frames for one host and sending them again later (packet(7)).
//!
//! A bridge drops the frames for a host behind a disabled port. A promiscuous packet socket on the bridge sees them all the
//! same: what arrives at another port goes up to the bridge's own interface whatever becomes of it at the port where it should
//! leave (`br_handle_frame_finish` of net/bridge/br_input.c), and what this host sends is seen when it enters the interface
//! (`PACKET_OUTGOING`). Caught frames wait in the socket's receive buffer: nobody has to run meanwhile, the buffer limits them,
//! and with the end of the process they are gone.
//!
//! A frame may be a segment of 64 KiB that the hardware or the receiver's kernel was to split, with a checksum that nobody has
//! computed yet. `struct virtio_net_hdr` (linux/virtio_net.h, `PACKET_VNET_HDR`) says so before each frame, and is
//! handed back when it is sent.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::{sock_filter, BPF_ABS, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};

use crate::error::{Error, Result};
use crate::fd::check;
use crate::netlink::Mac;
use crate::socket;

/// Size of the buffers for caught frames and for frames on their way out, in bytes of kernel memory. A small frame takes about
/// 1 KiB of it; the kernel doubles the number (socket(7)).
const BUFFER_BYTES: i32 = 4 << 20;
/// `struct virtio_net_hdr` without its later fields.
const HEADER_BYTES: usize = 10;
/// The longest frame: the longest IP packet behind an Ethernet header.
const FRAME_BYTES_MAX: usize = 14 + 65_536;
/// More frames than the buffer can hold: so many are sent again in one go while new ones arrive.
const FRAMES_MAX: u32 = 16_384;
const BROADCAST: Mac = [0xff; 6];
const ETHERTYPE_ARP: u32 = 0x0806;
const ETHERTYPE_IPV6: u32 = 0x86DD;
const ARP_REQUEST: u32 = 1;
const ICMPV6: u32 = 58;
const NEIGHBOUR_SOLICITATION: u32 = 135;
/// The link-layer addresses of IPv6 multicast begin with this (RFC 2464, 7).
const IPV6_MULTICAST: u32 = 0x3333;

/// Which frames are caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None.
    Nothing,
    /// Those for the host with this MAC address, and the questions for its address that go to everybody (ARP requests, IPv6
    /// neighbour solicitations). None that it sent itself, and none with a VLAN tag, which a packet socket takes off.
    For(Mac),
    /// The same without what this host sends: only what arrives from outside.
    ArrivingFor(Mac),
}

/// What became of the frames that were caught.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resent {
    /// Sent again.
    pub sent: u32,
    /// Lost: the interface did not take them, or they are of a kind that cannot be sent this way.
    pub lost: u32,
}

/// Catches frames on one interface.
#[derive(Debug)]
pub struct Catcher {
    socket: OwnedFd,
    interface: u32,
    mac: Mac,
}

impl Catcher {
    /// Makes the interface promiscuous, for as long as this lives, and catches [`Wanted::Nothing`] yet. `mac` is the interface's
    /// own. Works on the calling thread's network namespace. Closing takes some milliseconds (the kernel waits until no CPU
    /// uses the socket).
    ///
    /// # Errors
    /// CAP_NET_RAW is missing, or there is no such interface.
    pub fn open(interface: u32, mac: Mac) -> Result<Self> {
        let socket = socket::create(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        let catcher = Self {
            socket,
            interface,
            mac,
        };
        let fd = catcher.socket.as_fd();
        socket::set_option_int(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        for (forced, plain) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
        ] {
            // Beyond the host's limit only with CAP_NET_ADMIN.
            socket::set_option_int(fd, libc::SOL_SOCKET, forced, BUFFER_BYTES)
                .or_else(|_| socket::set_option_int(fd, libc::SOL_SOCKET, plain, BUFFER_BYTES))?;
        }
        catcher.select(Wanted::Nothing)?;
        catcher.bind()?;
        // struct packet_mreq
        let mut membership = [0u8; 16];
        membership[..4].copy_from_slice(&interface.to_ne_bytes());
        membership[4..6].copy_from_slice(&(libc::PACKET_MR_PROMISC as u16).to_ne_bytes());
        socket::set_option(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
        Ok(catcher)
    }

    fn bind(&self) -> Result<()> {
        let address = self.address(libc::ETH_P_ALL as u16);
        // SAFETY: the pointer is valid for the length beside it.
        let bound = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of_val(&address) as libc::socklen_t,
            )
        };
        check(bound.into(), || {
            format!("look at the frames of interface number {}", self.interface)
        })
        .map(drop)
    }

    fn address(&self, protocol: u16) -> libc::sockaddr_ll {
        // SAFETY: an all-zero sockaddr_ll is a valid one.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = self.interface as i32;
        address
    }

    /// From now on catches these. What was caught before stays.
    pub fn select(&self, wanted: Wanted) -> Result<()> {
        let mut instructions = program(wanted);
        let program = libc::sock_fprog {
            len: instructions.len() as u16,
            filter: instructions.as_mut_ptr(),
        };
        // SAFETY: the program points to live instructions of the length beside them, which the kernel copies.
        let attached = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                mem::size_of_val(&program) as libc::socklen_t,
            )
        };
        check(attached.into(), || {
            format!("choose the frames of interface number {}", self.interface)
        })
        .map(drop)
    }

    /// Sends what was caught on to the host with the MAC address `to`. Questions are only sent on if they ask for one of `addresses`.
    /// The interface itself is named as the sender: the real one's MAC address would teach switches that it lives here.
    /// Never waits.
    ///
    /// # Errors
    /// The interface went down. Frames that are lost are counted.
    pub fn resend(&self, to: Mac, addresses: &[IpAddr]) -> Result<Resent> {
        let mut resent = Resent::default();
        let mut buffer = vec![0; HEADER_BYTES + FRAME_BYTES_MAX];
        for _ in 0..FRAMES_MAX {
            let length = match self.receive(&mut buffer) {
                Ok(length) => length,
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    Some(libc::EINTR) => continue,
                    // It is of a kind that the header cannot describe, and gone from the buffer.
                    Some(libc::EINVAL) => {
                        resent.lost += 1;
                        continue;
                    }
                    _ => {
                        let what = format!("read the frames of interface number {}", self.interface);
                        return Err(Error::call(what, e));
                    }
                },
            };
            let Some(message) = buffer.get_mut(..length) else {
                resent.lost += 1; // longer than any
                continue;
            };
            let frame = message.get_mut(HEADER_BYTES..).unwrap_or_default();
            if !concerns(frame, to, addresses) {
                continue;
            }
            readdress(frame, self.mac, to);
            match self.send(message) {
                Ok(()) => resent.sent += 1,
                Err(_) => resent.lost += 1,
            }
        }
        Ok(resent)
    }

    /// The length is the frame's with its header, even if the buffer is shorter.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer is valid for the length beside it.
        let got = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            )
        };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// `message` is a frame with its header.
    fn send(&self, message: &[u8]) -> io::Result<()> {
        let at = HEADER_BYTES + 12;
        let ethertype = message.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
        let to = self.address(ethertype.map_or(0, u16::from_be_bytes));
        // SAFETY: both pointers are valid for the lengths beside them.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                libc::MSG_DONTWAIT,
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

/// Gives a frame another sender and another receiver.
fn readdress(frame: &mut [u8], from: Mac, to: Mac) {
    if let Some(addresses) = frame.get_mut(..12) {
        addresses[..6].copy_from_slice(&to);
        addresses[6..].copy_from_slice(&from);
    }
}

/// Whether a frame is for the host with this MAC address, or asks everybody for one of its addresses.
fn concerns(frame: &[u8], mac: Mac, addresses: &[IpAddr]) -> bool {
    let field = |at: usize, length: usize| frame.get(at..at + length).unwrap_or_default();
    if field(0, 6) == mac {
        return true;
    }
    // The address asked for: RFC 826; RFC 4861, 4.3 behind the headers of Ethernet and IPv6.
    let asked = match field(0, 6) == BROADCAST {
        true => <[u8; 4]>::try_from(field(38, 4)).map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
        false => <[u8; 16]>::try_from(field(62, 16)).map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
    };
    asked.is_ok_and(|address| addresses.contains(&address))
}

/// A comparison of a packet filter: so many bytes (`BPF_W` 4, `BPF_H` 2, `BPF_B` 1) of the frame at this place have this value.
type Test = (u32, u32, u32);

/// The filter for a choice, in the instructions of the classic packet filter (Documentation/networking/filter.rst). A place beyond the
/// end of the frame ends the program, and the frame is not taken.
fn program(wanted: Wanted) -> Vec<sock_filter> {
    const TAKE: u32 = u32::MAX;
    const LEAVE: u32 = 0;
    // Places that are not in the frame but beside it.
    let beside = |what: i32| (libc::SKF_AD_OFF + what) as u32;
    let packet_type = beside(libc::SKF_AD_PKTTYPE);
    let tagged = beside(libc::SKF_AD_VLAN_TAG_PRESENT);

    let (mac, arriving) = match wanted {
        Wanted::Nothing => return vec![give(LEAVE)],
        Wanted::For(mac) => (mac, false),
        Wanted::ArrivingFor(mac) => (mac, true),
    };
    let mut program = when(&[(BPF_B, tagged, 1)], LEAVE);
    if arriving {
        let outgoing = u32::from(libc::PACKET_OUTGOING);
        program.extend(when(&[(BPF_B, packet_type, outgoing)], LEAVE));
    }
    program.extend(when(&is_mac(6, mac), LEAVE));
    program.extend(when(&is_mac(0, mac), TAKE));
    let [high, low] = is_mac(0, BROADCAST);
    let arp = [high, low, (BPF_H, 12, ETHERTYPE_ARP), (BPF_H, 20, ARP_REQUEST)];
    program.extend(when(&arp, TAKE));
    let solicitation = [
        (BPF_H, 0, IPV6_MULTICAST),
        (BPF_H, 12, ETHERTYPE_IPV6),
        (BPF_B, 20, ICMPV6),
        (BPF_B, 54, NEIGHBOUR_SOLICITATION),
    ];
    program.extend(when(&solicitation, TAKE));
    program.push(give(LEAVE));
    program
}

fn is_mac(at: u32, mac: Mac) -> [Test; 2] {
    let [a, b, c, d, e, f] = mac;
    let (high, low) = (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f]));
    [(BPF_W, at, high), (BPF_H, at + 4, low.into())]
}

/// Gives `verdict` if all tests hold, and goes on behind it if not.
fn when(tests: &[Test], verdict: u32) -> Vec<sock_filter> {
    let mut block = Vec::with_capacity(2 * tests.len() + 1);
    for (index, (size, at, value)) in tests.iter().enumerate() {
        let behind = 2 * (tests.len() - index) - 1;
        block.push(instruction(BPF_LD | BPF_ABS | size, *at, 0));
        block.push(instruction(BPF_JMP | BPF_JEQ | BPF_K, *value, behind as u8));
    }
    block.push(give(verdict));
    block
}

fn give(verdict: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, verdict, 0)
}

fn instruction(code: u32, k: u32, jump_if_false: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: jump_if_false,
        k,
    }
}

#[cfg(test)]
mod tests;
