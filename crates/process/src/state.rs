//! Everything of a workload that travels beside its memory and its layout.
//!
//! Plain data with explicit fields, in the units that the fields name: no kernel structure travels as it lies in memory,
//! except where it is opaque to us as well (`siginfo`, extended registers, socket addresses), and those
//! are checked for their length when they are used. PIDs and TIDs are those of the workload's own PID namespace.

use serde::{Deserialize, Serialize};

/// The state of a workload: a tree of processes (today one) and the open files that they share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The processes, parents before their children.
    pub processes: Vec<ProcessState>,
    /// The open file descriptions; descriptors name them by their index.
    pub files: Vec<OpenFile>,
    /// The pipes that `files` name by their index.
    pub pipes: Vec<Pipe>,
    /// When the remaining times of all timers were read.
    pub clocks: Clocks,
}

/// Clocks in nanoseconds, as the workload sees them in its time namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
    /// `CLOCK_BOOTTIME`.
    pub boottime_ns: u64,
    /// `CLOCK_REALTIME`.
    pub realtime_ns: u64,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// PID in the workload's namespace.
    pub pid: i32,
    /// The threads, the leader first.
    pub threads: Vec<ThreadState>,
    /// The fields of `prctl(PR_SET_MM_MAP)` and the executable.
    pub memory: MemoryDescriptor,
    /// Signal handlers and what is pending for the process as a whole.
    pub signals: Signals,
    /// Interval timers (setitimer) and POSIX timers (timer_create).
    pub timers: Timers,
    /// Who the process is.
    pub credentials: Credentials,
    /// `(soft, hard)` for each `RLIMIT_*` from 0 on, `u64::MAX` for none.
    pub resource_limits: Vec<(u64, u64)>,
    /// Working directory, root and file mode mask.
    pub filesystem: Filesystem,
    /// Settings that fit nowhere else.
    pub attributes: Attributes,
    /// The descriptor table, ascending.
    pub descriptors: Vec<Descriptor>,
}

/// One thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadState {
    /// TID in the workload's namespace.
    pub tid: i32,
    /// The name shown by `ps` (`comm`), at most 15 bytes.
    pub name: Vec<u8>,
    /// General registers. An interrupted system call has been rewound where it must be issued again.
    pub registers: Registers,
    /// `NT_X86_XSTATE` in the layout of the source's CPU (XSAVE, standard format).
    #[serde(with = "mostly_zero")]
    pub extended_registers: Vec<u8>,
    /// Blocked signals, bit `n - 1` is signal `n`.
    pub signal_mask: u64,
    /// Signals pending for this thread, in order.
    pub pending: Vec<PendingSignal>,
    /// The alternate signal stack.
    pub signal_stack: SignalStack,
    /// Restartable sequences (rseq(2)), if the thread has registered one.
    pub rseq: Option<Rseq>,
    /// `(head, length)` of the list of robust futexes, in bytes.
    pub robust_list: (u64, u64),
    /// Where the kernel stores 0 when the thread ends (set_tid_address(2)).
    pub tid_address: u64,
    /// Scheduling policy and priority.
    pub scheduling: Scheduling,
    /// Timer slack in nanoseconds.
    pub timer_slack_ns: u64,
    /// The signal that is sent when the parent dies, 0 for none.
    pub parent_death_signal: i32,
}

/// General registers of x86-64, named as in `ptrace(PTRACE_GETREGS)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// One queued signal with its `siginfo_t` (128 bytes, see sigaction(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSignal {
    /// `siginfo_t` as the kernel gives it.
    pub siginfo: Vec<u8>,
}

/// `stack_t` of sigaltstack(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalStack {
    /// Lowest address.
    pub base: u64,
    /// `SS_DISABLE`, `SS_AUTODISARM`; `SS_ONSTACK` only tells where the thread is.
    pub flags: i32,
    /// Bytes.
    pub size: u64,
}

/// The registration of rseq(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    /// Address of `struct rseq`.
    pub address: u64,
    /// Its size in bytes.
    pub size: u32,
    /// The signature before each abort handler.
    pub signature: u32,
}

/// `struct sched_attr` of sched_setattr(2) and the CPUs of sched_setaffinity(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Scheduling {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime_ns: u64,
    pub deadline_ns: u64,
    pub period_ns: u64,
    /// The CPU mask in bytes; empty when the thread may use every CPU of the source.
    pub affinity: Vec<u8>,
}

/// Addresses of the parts of a program (proc(5), `/proc/pid/stat`) and its auxiliary vector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MemoryDescriptor {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// The auxiliary vector, pairs of (type, value).
    pub auxv: Vec<(u64, u64)>,
    /// What `/proc/pid/exe` shows.
    pub executable: String,
}

/// Signal handlers and the pending signals of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signals {
    /// Every signal whose action is not the default one.
    pub actions: Vec<SignalAction>,
    /// Signals pending for the process, in order.
    pub pending: Vec<PendingSignal>,
}

/// What a signal does (`struct kernel_sigaction`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SignalAction {
    pub signal: i32,
    /// Address, or 0 (`SIG_DFL`), 1 (`SIG_IGN`).
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// The timers of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`: `(interval, value)` in microseconds.
    pub interval: [(u64, u64); 3],
    /// POSIX timers, ascending by id.
    pub posix: Vec<PosixTimer>,
}

/// One timer of timer_create(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// Its id in the process.
    pub id: i32,
    /// `CLOCK_*`.
    pub clock: i32,
    /// Signal number.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// `SIGEV_*` with `SIGEV_THREAD_ID` or-ed in.
    pub notify: i32,
    /// The thread that is told, 0 for the process.
    pub tid: i32,
    /// Interval in nanoseconds, 0 for none.
    pub interval_ns: u64,
    /// Nanoseconds until the next expiry, 0 when disarmed.
    pub remaining_ns: u64,
}

/// User, groups and capabilities; the same in every thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved, file system.
    pub uids: [u32; 4],
    /// Real, effective, saved, file system.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// `CapInh`.
    pub inheritable: u64,
    /// `CapPrm`.
    pub permitted: u64,
    /// `CapEff`.
    pub effective: u64,
    /// `CapBnd`.
    pub bounding: u64,
    /// `CapAmb`.
    pub ambient: u64,
    /// `SECBIT_*` of capabilities(7).
    pub securebits: u32,
    /// `prctl(PR_SET_NO_NEW_PRIVS)`.
    pub no_new_privs: bool,
}

/// Where paths begin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// Working directory.
    pub working_directory: String,
    /// File mode creation mask.
    pub umask: u32,
}

/// Settings of a process that fit nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// personality(2).
    pub personality: u32,
    /// `prctl(PR_GET_DUMPABLE)`.
    pub dumpable: u32,
    /// `/proc/pid/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `prctl(PR_SET_CHILD_SUBREAPER)`.
    pub child_subreaper: bool,
    /// `prctl(PR_SET_THP_DISABLE)`.
    pub thp_disabled: bool,
    /// `PR_SET_KEEPCAPS` is part of the securebits; this is the bit of `prctl(PR_SET_MDWE)`.
    pub memory_deny_write_execute: u32,
    /// Process group and session, 0 when they lie outside the workload's namespace.
    pub process_group: i32,
    /// See `process_group`.
    pub session: i32,
}

/// One entry of the descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number.
    pub fd: i32,
    /// `FD_CLOEXEC`.
    pub close_on_exec: bool,
    /// Index into [`State::files`].
    pub file: u32,
}

/// One open file description; several descriptors may share it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Access mode and status flags (`O_*` as in open(2)).
    pub flags: i32,
    /// Who gets SIGIO, and which signal instead.
    pub owner: Option<FileOwner>,
    /// What it is.
    pub kind: FileKind,
}

/// `fcntl(F_SETOWN_EX)` and `fcntl(F_SETSIG)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOwner {
    /// `F_OWNER_TID`, `F_OWNER_PID`, `F_OWNER_PGRP`.
    pub kind: i32,
    /// The thread, process or group.
    pub id: i32,
    /// The signal, 0 for SIGIO.
    pub signal: i32,
}

/// A device and an inode: the identity of a file or a shared memory object on the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// `st_dev` as stat(2) gives it.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// What an open file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file, a directory or a harmless device, opened again by its path.
    Path {
        /// Absolute path as the workload sees it.
        path: String,
        /// File position in bytes.
        position: u64,
    },
    /// A memory object whose pages travel with the memory.
    Memory {
        /// Which object.
        object: FileId,
        /// File position in bytes.
        position: u64,
    },
    /// One end of [`State::pipes`].
    Pipe {
        /// Index.
        pipe: u32,
    },
    /// eventfd(2).
    Event {
        /// Counter.
        count: u64,
        /// `EFD_SEMAPHORE`.
        semaphore: bool,
    },
    /// timerfd_create(2).
    Timer(TimerFile),
    /// signalfd(2): the signals it takes.
    Signal {
        /// Bit `n - 1` is signal `n`.
        mask: u64,
    },
    /// epoll(7) with its registrations.
    Epoll(Vec<Registration>),
    /// A socket.
    Socket(Box<Socket>),
}

/// The state of a timerfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerFile {
    /// `CLOCK_*`.
    pub clock: i32,
    /// Expirations not read yet.
    pub ticks: u64,
    /// Flags of the last timerfd_settime(2).
    pub settime_flags: i32,
    /// Nanoseconds.
    pub interval_ns: u64,
    /// Nanoseconds until the next expiry, 0 when disarmed.
    pub remaining_ns: u64,
}

/// One registration in an epoll set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The descriptor it was made with.
    pub fd: i32,
    /// `EPOLL*`.
    pub events: u32,
    /// What the program gets back.
    pub data: u64,
}

/// A pipe with both ends inside the workload, or with the other one closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Capacity in bytes.
    pub capacity: u32,
    /// What was written and not read. In packet mode (`O_DIRECT`) one entry per packet, else one entry.
    pub contents: Vec<Vec<u8>>,
}

/// A socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// `AF_*`.
    pub family: i32,
    /// `SOCK_*` without flags.
    pub kind: i32,
    /// `IPPROTO_*`.
    pub protocol: i32,
    /// Its inode at the source: the identity of a pair's ends.
    pub inode: u64,
    /// `struct sockaddr` as getsockname(2) gives it.
    pub local: Vec<u8>,
    /// `struct sockaddr` of the peer, empty for none.
    pub peer: Vec<u8>,
    /// Options to be set again.
    pub options: Vec<SocketOption>,
    /// Sizes of its buffers.
    pub buffers: SocketBuffers,
    /// What depends on the protocol.
    pub detail: SocketDetail,
}

/// One option of setsockopt(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// `SOL_*` or `IPPROTO_*`.
    pub level: i32,
    /// `SO_*` …
    pub name: i32,
    /// As getsockopt(2) gave it.
    pub value: Vec<u8>,
}

/// `SO_SNDBUF`, `SO_RCVBUF` (bytes as getsockopt(2) gives them) and `SO_BUF_LOCK`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketBuffers {
    /// Send buffer in bytes, as accounted by the kernel (twice what the program asked for).
    pub send: u32,
    /// Receive buffer, likewise.
    pub receive: u32,
    /// Bit 0: the program set the send buffer; bit 1: the receive buffer.
    pub locked: u32,
}

/// What depends on the protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketDetail {
    /// Neither connected nor listening; bound if its address has a port.
    #[default]
    Idle,
    /// A listening TCP socket.
    Listen {
        /// Of listen(2).
        backlog: u32,
    },
    /// An established TCP connection.
    Tcp(Box<TcpConnection>),
    /// A UDP socket.
    Udp,
    /// One end of socketpair(2).
    Unix(UnixEnd),
}

/// What `TCP_REPAIR` gives of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpConnection {
    /// The peer has closed its direction (end of file after the receive queue).
    pub receive_closed: bool,
    /// We have closed ours.
    pub send_closed: bool,
    /// The next sequence number that we expect, after the receive queue and the peer's FIN.
    pub receive_sequence: u32,
    /// Sequence number after the send queue, without our FIN.
    pub send_sequence: u32,
    /// Received and not read.
    #[serde(with = "serde_bytes")]
    pub receive_queue: Vec<u8>,
    /// Written and not acknowledged.
    #[serde(with = "serde_bytes")]
    pub send_queue: Vec<u8>,
    /// The tail of the send queue that was never sent, in bytes.
    pub unsent: u32,
    /// Maximum segment size that was negotiated.
    pub mss: u32,
    /// `TCPI_OPT_*` of the handshake.
    pub negotiated: u8,
    /// Window scale of the peer and of ours.
    pub window_scales: (u8, u8),
    /// `TCP_TIMESTAMP`.
    pub timestamp: u32,
    /// `struct tcp_repair_window`: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    pub window: [u32; 5],
}

/// One end of a pair of unix sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixEnd {
    /// Inode of the other end at the source, 0 when it is closed.
    pub peer: u64,
    /// `RCV_SHUTDOWN` (1) and `SEND_SHUTDOWN` (2).
    pub shutdown: u8,
    /// What it has received: one entry per packet, for streams one entry.
    pub received: Vec<Vec<u8>>,
}

/// Bytes that end with many zeros, which do not travel: of the 11 KiB that a CPU with AMX gives for a thread most have never been used.
mod mostly_zero {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    /// More than any CPU has.
    const BYTES_MAX: u32 = 64 << 10;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        (
            bytes.len() as u32,
            Bytes::new(bytes.get(..used).unwrap_or_default()),
        )
            .serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let (length, used) = <(u32, ByteBuf)>::deserialize(deserializer)?;
        let mut bytes = used.into_vec();
        if length > BYTES_MAX || bytes.len() > length as usize {
            return Err(D::Error::custom("an impossible number of bytes"));
        }
        bytes.resize(length as usize, 0);
        Ok(bytes)
    }

    #[cfg(test)]
    mod tests {
        use proptest::prelude::*;

        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Held(#[serde(with = "super")] Vec<u8>);

        proptest! {
            #[test]
            fn zeros_at_the_end_come_back(bytes in proptest::collection::vec(0u8..3, 0..50), zeros in 0usize..5000) {
                let mut bytes = bytes;
                bytes.resize(bytes.len() + zeros, 0);
                let held = Held(bytes);
                let travels = postcard::to_stdvec(&held).unwrap();
                prop_assert!(travels.len() < 60);
                prop_assert_eq!(postcard::from_bytes::<Held>(&travels).unwrap(), held);
            }
        }

        #[test]
        fn lengths_that_cannot_be_are_refused() {
            for (length, used) in [(super::BYTES_MAX + 1, 0), (3, 4)] {
                let bytes = postcard::to_stdvec(&(length, vec![1u8; used])).unwrap();
                assert!(postcard::from_bytes::<Held>(&bytes).is_err());
            }
        }
    }
}
