//! userfaultfd(2): tracking writes (asynchronous write protection, Linux 6.7) and serving missing pages of another process
//! (Documentation/admin-guide/mm/userfaultfd.rst). Our kernel headers are older, hence the definitions here.
//!
//! A userfaultfd belongs to the address space of the process that made it, so for another process one of its threads has to
//! make it: see [`inject`]. When the last descriptor is closed the tracking ends, and **threads that wait for a missing page read
//! zeros**.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::{Error, Result};
use crate::pidfd;
use crate::remote::{self, Remote};

/// Features that [`Uffd::api`] can ask for (`UFFD_FEATURE_*`).
pub mod feature {
    /// Write protection.
    pub const PAGEFAULT_FLAG_WP: u64 = 1;
    /// Events of fork(2).
    pub const EVENT_FORK: u64 = 1 << 1;
    /// Events of mremap(2).
    pub const EVENT_REMAP: u64 = 1 << 2;
    /// Events of madvise(2) MADV_DONTNEED and MADV_REMOVE.
    pub const EVENT_REMOVE: u64 = 1 << 3;
    /// Missing pages of hugetlbfs.
    pub const MISSING_HUGETLBFS: u64 = 1 << 4;
    /// Missing pages of shared memory.
    pub const MISSING_SHMEM: u64 = 1 << 5;
    /// Events of munmap(2).
    pub const EVENT_UNMAP: u64 = 1 << 6;
    /// Faults tell the thread.
    pub const THREAD_ID: u64 = 1 << 8;
    /// Minor faults of shared memory.
    pub const MINOR_SHMEM: u64 = 1 << 10;
    /// Write protection of shared memory and hugetlbfs.
    pub const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    /// Pages that were never touched can be protected; asynchronous tracking needs it.
    pub const WP_UNPOPULATED: u64 = 1 << 13;
    /// UFFDIO_POISON.
    pub const POISON: u64 = 1 << 14;
    /// Write faults are resolved by the kernel itself: tracking without a handler.
    pub const WP_ASYNC: u64 = 1 << 15;
    /// UFFDIO_MOVE.
    pub const MOVE: u64 = 1 << 16;
    /// All that tracking of writes needs.
    pub const TRACK_WRITES: u64 = PAGEFAULT_FLAG_WP | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED | WP_ASYNC;
}

/// What [`Uffd::register`] watches for (`UFFDIO_REGISTER_MODE_*`).
pub mod mode {
    /// Missing pages.
    pub const MISSING: u64 = 1;
    /// Writes.
    pub const WP: u64 = 2;
    /// Pages that are in the page cache but not mapped.
    pub const MINOR: u64 = 4;
}

/// `UFFD_USER_MODE_ONLY`: faults in the kernel are not served; needs no privilege.
pub const USER_MODE_ONLY: u64 = 1;
/// Copy or zero without waking the waiting thread (`UFFDIO_*_MODE_DONTWAKE`).
pub const DONT_WAKE: u64 = 1;
/// Copy write-protected (`UFFDIO_COPY_MODE_WP`).
pub const COPY_WP: u64 = 2;

/// The last page of the lower half, which nothing can be mapped to but the kernel takes as a place.
const NOWHERE: u64 = 0x7fff_ffff_e000;
const PAGE_BYTES: u64 = 4096;

const UFFD_API: u64 = 0xaa;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)` and so on.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const UFFDIO_CONTINUE: libc::c_ulong = 0xc020_aa07;
/// `UFFDIO_WRITEPROTECT_MODE_WP`.
const WRITEPROTECT_ON: u64 = 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UffdioRange {
    start: u64,
    bytes: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioCopy {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    copied: i64,
}

/// Of UFFDIO_ZEROPAGE and UFFDIO_CONTINUE.
#[repr(C)]
struct UffdioFill {
    range: UffdioRange,
    mode: u64,
    filled: i64,
}

#[repr(C)]
struct UffdioWriteprotect {
    range: UffdioRange,
    mode: u64,
}

/// The size of its structure stands in bits 16 to 29 of a request.
const fn size_fits(request: libc::c_ulong, bytes: usize) -> bool {
    (request >> 16) as usize & 0x3fff == bytes
}
const _: () = assert!(size_fits(UFFDIO_API, size_of::<UffdioApi>()));
const _: () = assert!(size_fits(UFFDIO_REGISTER, size_of::<UffdioRegister>()));
const _: () = assert!(size_fits(UFFDIO_UNREGISTER, size_of::<UffdioRange>()));
const _: () = assert!(size_fits(UFFDIO_WAKE, size_of::<UffdioRange>()));
const _: () = assert!(size_fits(UFFDIO_COPY, size_of::<UffdioCopy>()));
const _: () = assert!(size_fits(UFFDIO_ZEROPAGE, size_of::<UffdioFill>()));
const _: () = assert!(size_fits(UFFDIO_CONTINUE, size_of::<UffdioFill>()));
const _: () = assert!(size_fits(UFFDIO_WRITEPROTECT, size_of::<UffdioWriteprotect>()));

/// How far a fill got before it was refused.
#[derive(Debug)]
pub struct Partial {
    /// Bytes that were filled.
    pub done: u64,
    /// Why not more. EAGAIN after some bytes: ask again for the rest to learn why. EAGAIN at once: an event is queued, read it
    /// first. EEXIST: the page is there already, wake its waiters. ENOENT: the range leaves its mapping, go on page by page; for a single page
    /// there is none, or it was moved away just now ([`Uffd::is_changing`] tells: mm/userfaultfd.c looks for the mapping first).
    /// ESRCH: the process has ended.
    pub error: Error,
}

/// A userfaultfd of some address space.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl Uffd {
    /// One for the calling process; `flags` 0 or [`USER_MODE_ONLY`]. [`Uffd::api`] comes next.
    pub fn new(flags: u64) -> Result<Self> {
        // SAFETY: no pointer is passed.
        let result = unsafe { libc::syscall(libc::SYS_userfaultfd, open_flags(flags)) };
        crate::fd::own(result, || "make a userfaultfd".into()).map(Self::from)
    }

    fn control<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: each caller passes the structure of the request, whose size is asserted above.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The first call on a new userfaultfd: asks for [`feature`]s. EINVAL: this kernel lacks one of them.
    pub fn api(&self, features: u64) -> Result<()> {
        let mut api = UffdioApi {
            api: UFFD_API,
            features,
            ioctls: 0,
        };
        self.control(UFFDIO_API, &mut api)
            .map_err(|e| Error::call(format!("use userfaultfd with features {features:#x}"), e))
    }

    /// Watches a range for [`mode`]s. Doing it again changes nothing.
    ///
    /// The range must be true to the maps at this moment: a stale one splits mappings, and the workload's own mremap(2) then fails.
    /// EBUSY: another userfaultfd has it. EINVAL: nothing mapped, or memory that cannot be watched.
    pub fn register(&self, start: u64, bytes: u64, mode: u64) -> Result<()> {
        let mut register = UffdioRegister {
            range: UffdioRange { start, bytes },
            mode,
            ioctls: 0,
        };
        self.control(UFFDIO_REGISTER, &mut register)
            .map_err(range_error("register", start, bytes))
    }

    /// Ends the watching of a range; waiting threads go on (and read zeros from missing pages).
    pub fn unregister(&self, start: u64, bytes: u64) -> Result<()> {
        let mut range = UffdioRange { start, bytes };
        self.control(UFFDIO_UNREGISTER, &mut range)
            .map_err(range_error("unregister", start, bytes))
    }

    /// Sets or takes away the write protection of a registered range.
    pub fn write_protect(&self, start: u64, bytes: u64, on: bool) -> Result<()> {
        let mode = if on { WRITEPROTECT_ON } else { 0 };
        let mut protect = UffdioWriteprotect {
            range: UffdioRange { start, bytes },
            mode,
        };
        self.control(UFFDIO_WRITEPROTECT, &mut protect)
            .map_err(range_error("write-protect", start, bytes))
    }

    /// Puts whole pages in place of missing ones, at once for each page; `mode` is 0, [`DONT_WAKE`], [`COPY_WP`].
    pub fn copy(&self, to: u64, pages: &[u8], mode: u64) -> std::result::Result<(), Partial> {
        let (from, bytes) = (pages.as_ptr() as u64, pages.len() as u64);
        let mut copy = UffdioCopy {
            to,
            from,
            bytes,
            mode,
            copied: 0,
        };
        let result = self.control(UFFDIO_COPY, &mut copy);
        partial("copy", to, bytes, copy.copied, result)
    }

    /// Puts pages of zeros in place of missing ones.
    pub fn zeropage(&self, start: u64, bytes: u64, mode: u64) -> std::result::Result<(), Partial> {
        self.fill(UFFDIO_ZEROPAGE, "zero", start, bytes, mode)
    }

    /// Maps pages that are in the page cache already (minor faults). EFAULT: there is a hole instead.
    pub fn continue_(&self, start: u64, bytes: u64, mode: u64) -> std::result::Result<(), Partial> {
        self.fill(UFFDIO_CONTINUE, "continue with", start, bytes, mode)
    }

    fn fill(
        &self,
        request: libc::c_ulong,
        verb: &'static str,
        start: u64,
        bytes: u64,
        mode: u64,
    ) -> std::result::Result<(), Partial> {
        let mut fill = UffdioFill {
            range: UffdioRange { start, bytes },
            mode,
            filled: 0,
        };
        let result = self.control(request, &mut fill);
        partial(verb, start, bytes, fill.filled, result)
    }

    /// Wakes the threads that wait for pages of the range.
    pub fn wake(&self, start: u64, bytes: u64) -> Result<()> {
        let mut range = UffdioRange { start, bytes };
        self.control(UFFDIO_WAKE, &mut range)
            .map_err(range_error("wake the waiters of", start, bytes))
    }

    /// Whether something that changes the address space is under way: its event waits to be read, or is about to be queued. While it
    /// is, what the events have told up to now need not be true; when it is not, it is exact. ESRCH: the process has ended.
    pub fn is_changing(&self) -> Result<bool> {
        // Asked before anything else, of a place where it can do nothing.
        match self.continue_(NOWHERE, PAGE_BYTES, 0) {
            Err(Partial { error, .. }) => match error.errno() {
                Some(libc::EAGAIN) => Ok(true),
                Some(libc::ESRCH) => Err(error),
                _ => Ok(false),
            },
            Ok(()) => Ok(false),
        }
    }

    /// Whether all of an aligned range of private anonymous memory is watched and one mapping. EAGAIN: [`Uffd::is_changing`]. False may also
    /// mean that it was moved away while we asked: ask [`Uffd::is_changing`] afterwards.
    pub fn is_registered(&self, start: u64, bytes: u64) -> Result<bool> {
        match self.continue_(start, bytes, 0) {
            // There is no page cache that a private page could be taken from.
            Ok(()) => Ok(true),
            Err(Partial { error, .. }) => match error.errno() {
                Some(libc::EINVAL) => Ok(true),
                Some(libc::ENOENT) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Reads what has happened, up to [`EVENTS_MAX`] events at once; empty when nothing is queued (the descriptor does not block).
    pub fn events(&self) -> Result<Vec<Event>> {
        let mut buffer = [0u8; EVENTS_MAX * EVENT_BYTES];
        // SAFETY: the buffer is live and of the length given.
        let result = unsafe { libc::read(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(Vec::new()),
                _ => Err(Error::call("read events of a userfaultfd", error)),
            };
        }
        let whole = buffer
            .chunks_exact(EVENT_BYTES)
            .take(result as usize / EVENT_BYTES);
        whole.map(parse_event).collect()
    }
}

fn open_flags(flags: u64) -> u64 {
    (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | flags
}

fn range_error(verb: &'static str, start: u64, bytes: u64) -> impl FnOnce(io::Error) -> Error {
    move |error| {
        Error::call(
            format!("{verb} {start:#x}-{:#x} (userfaultfd)", start.wrapping_add(bytes)),
            error,
        )
    }
}

fn partial(
    verb: &'static str,
    start: u64,
    bytes: u64,
    moved: i64,
    result: io::Result<()>,
) -> std::result::Result<(), Partial> {
    result.map_err(|error| Partial {
        // A negative count is the error once more, and means that nothing was done.
        done: u64::try_from(moved).unwrap_or(0),
        error: range_error(verb, start, bytes)(error),
    })
}

/// Events that one read takes.
pub const EVENTS_MAX: usize = 64;
/// `sizeof(struct uffd_msg)`.
const EVENT_BYTES: usize = 32;

/// What happened in the watched address space.
///
/// The order in which it is read is not the order in which it happened (`tests/missing_pages.rs` shows both, on Linux 6.18):
/// - Faults come first. A thread that touches a page that was just moved is told before the move that explains it. Until all
///   events are read every fill gives EAGAIN; then what to fill has to be decided anew.
/// - A move is told twice: [`Event::Remap`] when it was made, and later [`Event::Unmap`] of its old place. Meanwhile another
///   thread may have moved something else to that place, which is told before. So an unmapping counts only as far as
///   nothing that is watched lies there now.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for a page.
    Fault {
        /// Where, to the byte.
        address: u64,
        /// `UFFD_PAGEFAULT_FLAG_*`: 1 write, 2 write protection, 4 minor.
        flags: u64,
        /// The thread in its own PID namespace (0 without [`feature::THREAD_ID`]).
        thread: u32,
    },
    /// The process forked; the child's address space has this userfaultfd.
    Fork(Uffd),
    /// A range moved.
    Remap {
        /// From here …
        from: u64,
        /// … to there;
        to: u64,
        /// this long.
        bytes: u64,
    },
    /// The content of a range was dropped.
    Remove {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
    },
    /// A range was unmapped.
    Unmap {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
    },
}

fn parse_event(bytes: &[u8]) -> Result<Event> {
    let word = |index: usize| -> u64 {
        let bytes = bytes.iter().skip(index * 8).take(8);
        bytes.rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    match word(0) as u8 {
        0x12 => Ok(Event::Fault {
            flags: word(1),
            address: word(2),
            thread: word(3) as u32,
        }),
        0x13 => {
            let fd = word(1) as u32;
            crate::fd::own(i64::from(fd), || "take over the userfaultfd of a child".into())
                .map(|fd| Event::Fork(Uffd::from(fd)))
        }
        0x14 => Ok(Event::Remap {
            from: word(1),
            to: word(2),
            bytes: word(3),
        }),
        0x15 => Ok(Event::Remove {
            start: word(1),
            end: word(2),
        }),
        0x16 => Ok(Event::Unmap {
            start: word(1),
            end: word(2),
        }),
        other => Err(Error::other(format!(
            "a userfaultfd tells of an unknown event {other:#x}"
        ))),
    }
}

/// How a userfaultfd is made in another process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Injection {
    /// [`feature`]s.
    pub features: u64,
    /// 0 or [`USER_MODE_ONLY`].
    pub flags: u64,
    /// A descriptor of `/dev/userfaultfd` that the process has: for one that may not call userfaultfd(2) itself.
    pub device: Option<i32>,
    /// Leaves the descriptor open inside, so that nothing ends with us.
    pub keep: bool,
}

/// `USERFAULTFD_IOC_NEW` of `/dev/userfaultfd` (Linux 6.1).
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;

/// Makes a userfaultfd in the process `pid`: stops its leader for less than a millisecond, runs userfaultfd(2) there,
/// fetches the descriptor and closes it inside unless it is to be kept. The number that it has there comes with it.
pub fn inject(pid: i32, how: Injection) -> Result<(Uffd, i32)> {
    remote::with_leader(pid, |remote| make(remote, how))
}

/// The same by a thread that is stopped already.
pub fn inject_stopped(pid: i32, tid: i32, how: Injection) -> Result<(Uffd, i32)> {
    remote::with_stopped(pid, tid, |remote| make(remote, how))
}

fn make(remote: &mut Remote, how: Injection) -> Result<(Uffd, i32)> {
    let process = pidfd::open(remote.pid())?;
    let flags = open_flags(how.flags);
    let inside = match how.device {
        None => remote.call("userfaultfd", libc::SYS_userfaultfd, &[flags])?,
        Some(device) => {
            let args = [device as u64, USERFAULTFD_IOC_NEW, flags];
            remote.call("ioctl(USERFAULTFD_IOC_NEW)", libc::SYS_ioctl, &args)?
        }
    };
    let uffd = pidfd::getfd(process.as_fd(), inside as i32).map(Uffd::from);
    let ready = uffd.and_then(|uffd| uffd.api(how.features).map(|()| uffd));
    if ready.is_err() || !how.keep {
        remote.call("close", libc::SYS_close, &[inside])?;
    }
    Ok((ready?, inside as i32))
}

/// The same by a thread that is driven already: makes one there, fetches it, and closes it inside. [`Uffd::api`] comes next.
pub fn take_out(remote: &mut Remote, process: BorrowedFd<'_>, flags: u64) -> Result<Uffd> {
    let inside = remote.call("userfaultfd", libc::SYS_userfaultfd, &[open_flags(flags)])?;
    let fd = pidfd::getfd(process, inside as i32);
    remote.call("close", libc::SYS_close, &[inside])?;
    fd.map(Uffd::from)
}
