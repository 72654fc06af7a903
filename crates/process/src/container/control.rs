//! What controller and init say to each other, over a pair of Unix sockets: a length of 4 bytes, then one message.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{de::DeserializeOwned, Deserialize, Serialize};
use whimbrel_kernel::fd;

/// Longest message in bytes: a command line with its environment, each limited by the kernel (man 2 execve).
const MESSAGE_MAX: usize = 8 << 20;

/// From the controller.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The first one.
    Setup(Setup),
    /// PID 1 is known to the controller: go on.
    Proceed,
    /// Start the workload.
    Run(Run),
    /// Make an idle child with this number, to become the workload.
    Stub { pid: i32 },
    /// Do not end with the controller any more.
    Survive,
    /// Keep the descriptor that comes behind this.
    Keep,
    /// Close a kept one.
    Drop { number: i32 },
}

/// How the namespaces are to be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// Offsets of the clocks (monotonic, boottime) in nanoseconds; `None` to leave them alone.
    pub offsets_ns: Option<(i64, i64)>,
    /// Whether the network is a new one.
    pub network: bool,
    /// The host's name.
    pub hostname: String,
    /// The directory for the note of how the workload ended.
    pub directory: PathBuf,
    /// The directory of the control group.
    pub group: PathBuf,
}

/// What to run and how.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Run {
    /// Program and arguments, as bytes.
    pub arguments: Vec<Vec<u8>>,
    /// Environment, as bytes.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory.
    pub directory: PathBuf,
    /// File that output and errors are added to.
    pub log: PathBuf,
}

/// From init.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// PID 1 exists; its number in the controller's PID namespace.
    Launched { pid: i32 },
    /// PID 1 takes requests.
    Ready,
    /// The child runs; its number in the container's PID namespace.
    Started { pid: i32 },
    /// The descriptor is kept under this number.
    Kept { number: i32 },
    /// It is done.
    Done,
    /// It failed: one sentence.
    Failed { sentence: String },
}

/// One end of the connection.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
}

impl Channel {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = UnixStream::pair()?;
        Ok((Self { stream: a }, Self { stream: b }))
    }

    /// The end that was inherited.
    pub fn inherited(fd: OwnedFd) -> Self {
        Self {
            stream: UnixStream::from(fd),
        }
    }

    /// Gives up when the other end is silent for so long.
    pub fn limit(&self, longest: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(longest))
    }

    pub fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
        if bytes.len() > MESSAGE_MAX {
            return Err(io::Error::other(format!(
                "the message has {} bytes, more than {MESSAGE_MAX}",
                bytes.len()
            )));
        }
        self.stream.write_all(&(bytes.len() as u32).to_le_bytes())?;
        self.stream.write_all(&bytes)
    }

    /// Sends a descriptor, behind the message that announces it.
    pub fn send_descriptor(&self, fd: BorrowedFd<'_>) -> whimbrel_kernel::error::Result<()> {
        fd::send_descriptors(self.stream.as_fd(), &[fd])
    }

    pub fn receive_descriptor(&self) -> whimbrel_kernel::error::Result<OwnedFd> {
        fd::receive_descriptor(self.stream.as_fd())
    }

    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MESSAGE_MAX {
            return Err(io::Error::other(format!(
                "the message has {length} bytes, more than {MESSAGE_MAX}"
            )));
        }
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        postcard::from_bytes(&bytes).map_err(io::Error::other)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
