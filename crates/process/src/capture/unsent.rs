//! What a workload's connections had not sent when its network was cut.
//!
//! The kernel goes on sending for stopped threads: by timers (pacing, loss probes), and for acknowledgements that were under way. Behind
//! a closed bridge port that goes nowhere, but counts as sent. Captured like that it would wait at the destination for a
//! retransmission timeout, which for a new socket without a measured round trip is one to three seconds. So it is captured as not sent.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use whimbrel_kernel::socket as sys;
use whimbrel_kernel::{fd as kfd, pidfd};

use crate::state::{FileKind, OpenFile, SocketDetail};

/// A socket in a table of descriptors: (number, inode).
pub(crate) type Numbered = (i32, u64);

/// Bytes that were not sent, an unsent FIN included, by the inode of the socket. Only connections that leave the workload.
#[derive(Debug, Default)]
pub(crate) struct Unsent(HashMap<u64, usize>);

impl Unsent {
    /// Looks at these TCP sockets of a stopped process whose network has just been cut. What cannot be seen is left out.
    pub fn note(pid: i32, known: &[Numbered]) -> Self {
        let Ok(process) = pidfd::open(pid) else {
            return Self::default();
        };
        let mut open = Vec::with_capacity(known.len());
        for (number, inode) in known {
            let Ok(fd) = pidfd::getfd(process.as_fd(), *number) else {
                continue;
            };
            // At once: each microsecond counts. Listening sockets have no answer.
            let unsent = sys::unsent_bytes(fd.as_fd()).unwrap_or(0);
            if kfd::file_status(fd.as_fd()).is_ok_and(|status| status.inode == *inode) {
                open.push((*inode, fd, unsent));
            }
        }
        if open.iter().all(|(_, _, unsent)| *unsent == 0) {
            return Self::default();
        }
        Self(leaving(&open))
    }

    /// Corrects what was captured.
    pub fn apply(&self, file: &mut OpenFile) {
        let FileKind::Socket(socket) = &mut file.kind else {
            return;
        };
        let (Some(unsent), SocketDetail::Tcp(connection)) = (self.0.get(&socket.inode), &mut socket.detail)
        else {
            return;
        };
        // Threads are stopped: a FIN that is queued now was queued then, and behind all data.
        let bytes = unsent.saturating_sub(connection.send_closed.into());
        let queued = connection.send_queue.len();
        connection.unsent = (connection.unsent as usize).max(bytes).min(queued) as u32;
    }
}

/// Without connections from the workload to itself: the cut does not part their ends, so what was sent has arrived.
fn leaving(open: &[(u64, OwnedFd, usize)]) -> HashMap<u64, usize> {
    let own: HashSet<IpAddr> = open
        .iter()
        .filter_map(|(_, fd, _)| sys::ip_address(&sys::local_address(fd.as_fd()).ok()?))
        .collect();
    let leaves = |fd: &OwnedFd| {
        let peer = sys::peer_address(fd.as_fd()).ok().flatten();
        let peer = peer.and_then(|peer| sys::ip_address(&peer));
        peer.is_some_and(|peer| !peer.is_loopback() && !own.contains(&peer))
    };
    let with_data = open.iter().filter(|(_, fd, unsent)| *unsent > 0 && leaves(fd));
    with_data.map(|(inode, _, unsent)| (*inode, *unsent)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_connection_of_the_workload_to_itself_is_left_as_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        sys::set_option_int(server.as_fd(), libc::IPPROTO_TCP, libc::TCP_CORK, 1).unwrap();
        server.write_all(b"held back").unwrap();
        assert_eq!(sys::unsent_bytes(server.as_fd()).unwrap(), 9);
        let numbered = |socket: &dyn AsFd| {
            let fd = socket.as_fd();
            (fd.as_raw_fd(), kfd::file_status(fd).unwrap().inode)
        };
        let known = [numbered(&listener), numbered(&server)];
        let noted = Unsent::note(std::process::id() as i32, &known);
        assert!(noted.0.is_empty(), "{noted:?}");
    }
}
