//! File descriptors: what is behind them, and how to make others that behave the same.
//!
//! Pipes, timers, kcmp(2), fcntl(2). Everything works on descriptors of the calling
//! process; those of another one are fetched with pidfd_getfd(2) (see `pidfd`).

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::error::{Error, Result};

const F_GETSIG: i32 = 11;
const F_GETOWN_EX: i32 = 16;
const KCMP_FILE: i32 = 0;
const KCMP_EPOLL_TFD: i32 = 7;
/// No pipe is larger than what /proc/sys/fs/pipe-max-size can be set to in practice.
const PIPE_BYTES_MAX: usize = 64 << 20;
/// A packet in a pipe is at most a page (pipe(2), `O_DIRECT`).
const PACKET_BYTES_MAX: usize = 4096;

/// Turns the -1 of a system call into an error about `what`.
pub(crate) fn check(result: i64, what: impl FnOnce() -> String) -> Result<i64> {
    if result < 0 {
        return Err(Error::call(what(), std::io::Error::last_os_error()));
    }
    Ok(result)
}

/// Takes over a descriptor that a system call just returned.
pub(crate) fn own(result: i64, what: impl FnOnce() -> String) -> Result<OwnedFd> {
    let fd = check(result, what)? as RawFd;
    // SAFETY: the kernel has just given us this descriptor and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Which resource kcmp(2) compares.
fn kcmp(kind: i32, pids: (i32, i32), first: u64, second: u64) -> Result<std::cmp::Ordering> {
    // SAFETY: kcmp only compares; for KCMP_EPOLL_TFD `second` is the address of a live slot.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, pids.0, pids.1, kind, first, second) };
    match check(result, || {
        format!("compare descriptors of processes {} and {}", pids.0, pids.1)
    })? {
        0 => Ok(std::cmp::Ordering::Equal),
        1 => Ok(std::cmp::Ordering::Less),
        // 3 means "different, order unknown"; no caller sorts, so either will do
        _ => Ok(std::cmp::Ordering::Greater),
    }
}

/// Whether two descriptors share one open file description (kcmp(2), `KCMP_FILE`).
pub fn same_file(first: (i32, RawFd), second: (i32, RawFd)) -> Result<bool> {
    let order = kcmp(KCMP_FILE, (first.0, second.0), first.1 as u64, second.1 as u64)?;
    Ok(order.is_eq())
}

/// Whether the `occurrence`-th registration made with the number `target` in the epoll set `epoll` of process `pid` is the file
/// that the descriptor `target` has now (kcmp(2), `KCMP_EPOLL_TFD`). `false` also when the number has been closed.
pub fn epoll_watches(pid: i32, epoll: RawFd, target: RawFd, occurrence: u32) -> Result<bool> {
    #[repr(C)]
    struct Slot {
        epoll: u32,
        target: u32,
        occurrence: u32,
    }
    let slot = Slot {
        epoll: epoll as u32,
        target: target as u32,
        occurrence,
    };
    match kcmp(
        KCMP_EPOLL_TFD,
        (pid, pid),
        target as u64,
        &slot as *const Slot as u64,
    ) {
        Ok(order) => Ok(order.is_eq()),
        Err(error) if matches!(error.errno(), Some(libc::EBADF | libc::ENOENT)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Status flags and access mode (`F_GETFL`).
pub fn status_flags(fd: BorrowedFd<'_>) -> Result<i32> {
    // SAFETY: F_GETFL takes no pointer.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    Ok(check(flags.into(), || {
        format!("read the status flags of descriptor {}", fd.as_raw_fd())
    })? as i32)
}

/// Sets the status flags that can be set later (`O_APPEND`, `O_ASYNC`, `O_DIRECT`, `O_NOATIME`, `O_NONBLOCK`).
pub fn set_status_flags(fd: BorrowedFd<'_>, flags: i32) -> Result<()> {
    // SAFETY: F_SETFL takes no pointer.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) };
    check(result.into(), || {
        format!("set the status flags {flags:#o} of descriptor {}", fd.as_raw_fd())
    })?;
    Ok(())
}

/// Who is told about I/O on a file (`F_SETOWN_EX`), and with which signal (`F_SETSIG`, 0 for SIGIO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// `F_OWNER_TID` (0), `F_OWNER_PID` (1) or `F_OWNER_PGRP` (2).
    pub kind: i32,
    /// The thread, process or group; 0 for nobody.
    pub id: i32,
    /// The signal.
    pub signal: i32,
}

/// Reads the owner of a file.
pub fn owner(fd: BorrowedFd<'_>) -> Result<Owner> {
    let mut pair = [0i32; 2];
    let what = || format!("read the owner of descriptor {}", fd.as_raw_fd());
    // SAFETY: F_GETOWN_EX writes a `struct f_owner_ex`, two ints.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, pair.as_mut_ptr()) };
    check(result.into(), what)?;
    // SAFETY: F_GETSIG takes no pointer.
    let signal = check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) }.into(), what)? as i32;
    Ok(Owner {
        kind: pair[0],
        id: pair[1],
        signal,
    })
}

/// Opens `path` with exactly these flags; never creates, truncates or becomes the controlling terminal.
pub fn open(path: &str, flags: i32) -> Result<OwnedFd> {
    let name = CString::new(path).map_err(|_| Error::other(format!("path {path:?} contains a zero byte")))?;
    let flags = flags & !(libc::O_CREAT | libc::O_TRUNC | libc::O_EXCL) | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: `name` is a zero-terminated string that lives over the call.
    let result = unsafe { libc::open(name.as_ptr(), flags) };
    own(result.into(), || format!("open {path}"))
}

/// Moves the file position to `position` bytes from the start.
pub fn seek(fd: BorrowedFd<'_>, position: u64) -> Result<()> {
    // SAFETY: lseek takes no pointer.
    let result = unsafe { libc::lseek(fd.as_raw_fd(), position as i64, libc::SEEK_SET) };
    check(result, || {
        format!("set the position of descriptor {} to {position}", fd.as_raw_fd())
    })?;
    Ok(())
}

/// Device, inode and mode of an open file (fstat(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStatus {
    /// Major number of the device it lies on.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Inode.
    pub inode: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Device number of a device file.
    pub rdev: (u32, u32),
    /// Size in bytes.
    pub size: u64,
    /// Number of names; 0 when it has been deleted.
    pub links: u64,
}

/// fstat(2).
pub fn file_status(fd: BorrowedFd<'_>) -> Result<FileStatus> {
    // SAFETY: `stat` is plain data for which zeros are valid.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fstat writes one `stat`.
    let result = unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) };
    check(result.into(), || {
        format!("read the status of descriptor {}", fd.as_raw_fd())
    })?;
    Ok(FileStatus {
        major: libc::major(stat.st_dev),
        minor: libc::minor(stat.st_dev),
        inode: stat.st_ino,
        mode: stat.st_mode,
        rdev: (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)),
        size: stat.st_size as u64,
        links: stat.st_nlink,
    })
}

/// What poll(2) reports at once for `events`.
pub fn poll_now(fd: BorrowedFd<'_>, events: i16) -> Result<i16> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one pollfd, and it does not wait.
    let result = unsafe { libc::poll(&mut poll, 1, 0) };
    check(result.into(), || format!("poll descriptor {}", fd.as_raw_fd()))?;
    Ok(poll.revents)
}

/// Bytes that can be read (`FIONREAD`; for sockets `SIOCINQ`).
pub fn readable_bytes(fd: BorrowedFd<'_>) -> Result<usize> {
    ioctl_int(fd, libc::FIONREAD, "count the readable bytes")
}

/// An ioctl(2) that writes one non-negative int.
pub(crate) fn ioctl_int(fd: BorrowedFd<'_>, request: libc::c_ulong, what: &str) -> Result<usize> {
    let mut value = 0i32;
    // SAFETY: the requests that we pass write one int.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &mut value) };
    check(result.into(), || {
        format!("{what} of descriptor {}", fd.as_raw_fd())
    })?;
    Ok(value.max(0) as usize)
}

/// A pipe: (read end, write end), both close-on-exec, with `flags` on both.
pub fn pipe(flags: i32) -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0i32; 2];
    // SAFETY: pipe2 writes two ints.
    let result = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | flags) };
    check(result.into(), || "make a pipe".to_string())?;
    // SAFETY: both descriptors are new and only ours.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Capacity of a pipe in bytes.
pub fn pipe_capacity(fd: BorrowedFd<'_>) -> Result<usize> {
    // SAFETY: F_GETPIPE_SZ takes no pointer.
    let size = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETPIPE_SZ) };
    Ok(check(size.into(), || {
        format!("read the capacity of pipe {}", fd.as_raw_fd())
    })? as usize)
}

/// Sets the capacity of a pipe; the kernel rounds up to a power of two of pages.
pub fn set_pipe_capacity(fd: BorrowedFd<'_>, bytes: usize) -> Result<()> {
    if bytes > PIPE_BYTES_MAX {
        return Err(Error::other(format!(
            "a pipe of {bytes} bytes is larger than any pipe can be"
        )));
    }
    // SAFETY: F_SETPIPE_SZ takes no pointer.
    let size = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, bytes as libc::c_int) };
    check(size.into(), || {
        format!("set the capacity of a pipe to {bytes} bytes (see /proc/sys/fs/pipe-max-size)")
    })?;
    Ok(())
}

/// Copies what is in a pipe without taking it out (tee(2)). In packet mode each packet is one entry.
pub fn pipe_contents(read_end: BorrowedFd<'_>, packets: bool) -> Result<Vec<Vec<u8>>> {
    let bytes = readable_bytes(read_end)?.min(PIPE_BYTES_MAX);
    if bytes == 0 {
        return Ok(Vec::new());
    }
    let (copy_out, copy_in) = pipe(libc::O_NONBLOCK | if packets { libc::O_DIRECT } else { 0 })?;
    // tee needs as many slots as the source has used, whatever their fill
    set_pipe_capacity(borrow(&copy_in), pipe_capacity(read_end)?)?;
    // SAFETY: tee takes descriptors only.
    let copied = unsafe {
        libc::tee(
            read_end.as_raw_fd(),
            copy_in.as_raw_fd(),
            bytes,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    let copied = check(copied as i64, || {
        format!("copy the contents of pipe {}", read_end.as_raw_fd())
    })?;
    if copied as usize != bytes {
        return Err(Error::other(format!(
            "only {copied} of {bytes} bytes of a pipe could be copied"
        )));
    }
    let mut contents = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let piece = read(borrow(&copy_out), if packets { PACKET_BYTES_MAX } else { left })?;
        if piece.is_empty() {
            break;
        }
        left -= piece.len().min(left);
        contents.push(piece);
    }
    Ok(if packets {
        contents
    } else {
        vec![contents.concat()]
    })
}

fn borrow(fd: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}

/// One read(2) of at most `bytes`.
pub fn read(fd: BorrowedFd<'_>, bytes: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0u8; bytes];
    // SAFETY: the buffer has `bytes` bytes.
    let got = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), bytes) };
    let got = check(got as i64, || format!("read descriptor {}", fd.as_raw_fd()))?;
    buffer.truncate(got as usize);
    Ok(buffer)
}

/// Writes all of `data` with as many write(2) as it takes.
pub fn write_all(fd: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
    let mut rest = data;
    while !rest.is_empty() {
        // SAFETY: `rest` is a live slice.
        let put = unsafe { libc::write(fd.as_raw_fd(), rest.as_ptr().cast(), rest.len()) };
        let put = check(put as i64, || {
            format!("write {} bytes to descriptor {}", rest.len(), fd.as_raw_fd())
        })?;
        rest = rest.get(put as usize..).unwrap_or_default();
    }
    Ok(())
}

/// Interval and time until the next expiry of a timerfd, in nanoseconds (timerfd_gettime(2)). A periodic one that has expired and was not
/// read stands still in the kernel until it is asked this: it goes on afterwards, and its ticks are up to date.
pub fn timer(fd: BorrowedFd<'_>) -> Result<(u64, u64)> {
    // SAFETY: itimerspec is plain data for which zeros are valid.
    let mut spec: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one itimerspec.
    let result = unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &mut spec) };
    check(result.into(), || format!("read timerfd {}", fd.as_raw_fd()))?;
    let ns = |time: libc::timespec| {
        (time.tv_sec as u64)
            .saturating_mul(1_000_000_000)
            .saturating_add(time.tv_nsec as u64)
    };
    Ok((ns(spec.it_interval), ns(spec.it_value)))
}

/// Sends `fds` over a unix socket (`SCM_RIGHTS`, at most 253) with one byte of data.
pub fn send_descriptors(socket: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> Result<()> {
    if fds.is_empty() || fds.len() > DESCRIPTORS_PER_MESSAGE {
        return Err(Error::other(format!(
            "{} descriptors do not fit into one message",
            fds.len()
        )));
    }
    let payload = 4 * fds.len();
    let header = std::mem::size_of::<libc::cmsghdr>();
    let mut control = vec![0u64; (header + payload).div_ceil(8)];
    let message_length = header + payload;
    let mut bytes = Vec::with_capacity(message_length);
    bytes.extend_from_slice(&message_length.to_ne_bytes());
    bytes.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    bytes.extend_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    fds.iter()
        .for_each(|fd| bytes.extend_from_slice(&fd.as_raw_fd().to_ne_bytes()));
    for (word, chunk) in control.iter_mut().zip(bytes.chunks(8)) {
        let mut eight = [0u8; 8];
        eight[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(eight);
    }
    let data = [0u8];
    let mut vector = libc::iovec {
        iov_base: data.as_ptr() as *mut _,
        iov_len: 1,
    };
    // SAFETY: `msghdr` is plain data for which zeros are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = message_length;
    // SAFETY: the message points to a live byte and to a control buffer of `msg_controllen` bytes.
    let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
    check(result as i64, || format!("send {} descriptors", fds.len()))?;
    Ok(())
}

/// The descriptor that comes with the next byte of a stream ([`send_descriptors`] of one). Waits as long as the socket does.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let header = std::mem::size_of::<libc::cmsghdr>();
    let mut control = [0u64; 4];
    let mut data = [0u8];
    let mut vector = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: `msghdr` is plain data for which zeros are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // Room for one descriptor: the kernel closes what does not fit.
    message.msg_controllen = header + 4;
    // SAFETY: the message points to a live byte and to a control buffer of at least `msg_controllen` bytes.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
    check(result as i64, || "receive a descriptor".into())?;
    // A cmsghdr: its length, then level and type; then the number.
    let [length, kind, number, _] = control;
    let rights = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
    if message.msg_controllen < header + 4 || length != (header + 4) as u64 || kind != rights {
        return Err(Error::other(
            "no descriptor came with a message that announced one",
        ));
    }
    own(i64::from(number as u32), || "receive a descriptor".into())
}

/// Waits until one of `fds` can be read, at most `longest`. Which ones can; none after an interruption.
pub fn wait_readable(fds: &[BorrowedFd<'_>], longest: std::time::Duration) -> Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let limit = libc::timespec {
        tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: longest.subsec_nanos().into(),
    };
    // SAFETY: the records and the limit are live; no signal mask is given.
    let result = unsafe {
        let count = polled.len() as libc::nfds_t;
        libc::ppoll(polled.as_mut_ptr(), count, &limit, std::ptr::null())
    };
    match check(i64::from(result), || "wait for descriptors".into()) {
        Err(error) if error.errno() == Some(libc::EINTR) => Ok(vec![false; fds.len()]),
        Err(error) => Err(error),
        Ok(_) => Ok(polled.iter().map(|one| one.revents != 0).collect()),
    }
}

/// `SCM_MAX_FD` of the kernel.
pub const DESCRIPTORS_PER_MESSAGE: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn pipe_contents_stay_in_the_pipe() {
        let (out, input) = pipe(0).unwrap();
        write_all(input.as_fd(), b"abc").unwrap();
        write_all(input.as_fd(), b"defg").unwrap();
        assert_eq!(
            pipe_contents(out.as_fd(), false).unwrap(),
            vec![b"abcdefg".to_vec()]
        );
        assert_eq!(read(out.as_fd(), 100).unwrap(), b"abcdefg");
    }

    #[test]
    fn packets_of_a_pipe_keep_their_borders() {
        let (out, input) = pipe(libc::O_DIRECT).unwrap();
        write_all(input.as_fd(), b"abc").unwrap();
        write_all(input.as_fd(), b"defg").unwrap();
        assert_eq!(
            pipe_contents(out.as_fd(), true).unwrap(),
            vec![b"abc".to_vec(), b"defg".to_vec()]
        );
        assert_eq!(read(out.as_fd(), 100).unwrap(), b"abc");
    }

    #[test]
    fn a_full_pipe_is_copied_whole() {
        let (out, input) = pipe(libc::O_NONBLOCK).unwrap();
        let data: Vec<u8> = (0..65536u32).map(|n| (n % 251) as u8).collect();
        write_all(input.as_fd(), &data).unwrap();
        assert_eq!(pipe_contents(out.as_fd(), false).unwrap(), vec![data]);
    }

    #[test]
    fn same_file_tells_a_duplicate_from_a_second_open() {
        let me = std::process::id() as i32;
        let first = open("/dev/null", libc::O_RDONLY).unwrap();
        let duplicate = first.try_clone().unwrap();
        let second = open("/dev/null", libc::O_RDONLY).unwrap();
        let of = |fd: &OwnedFd| (me, fd.as_raw_fd());
        assert!(same_file(of(&first), of(&duplicate)).unwrap());
        assert!(!same_file(of(&first), of(&second)).unwrap());
    }

    #[test]
    fn descriptors_travel_over_a_unix_socket() {
        let (a, b) = crate::socket::pair(libc::SOCK_DGRAM).unwrap();
        let (event, _) = pipe(0).unwrap();
        send_descriptors(a.as_fd(), &[event.as_fd(), event.as_fd()]).unwrap();
        assert_eq!(read(b.as_fd(), 10).unwrap(), [0]);
        assert!(send_descriptors(a.as_fd(), &[]).is_err());
        send_descriptors(a.as_fd(), &[event.as_fd()]).unwrap();
        let received = receive_descriptor(b.as_fd()).unwrap();
        let me = std::process::id() as i32;
        assert!(same_file((me, received.as_raw_fd()), (me, event.as_raw_fd())).unwrap());
        crate::socket::send(a.as_fd(), b"x").unwrap();
        assert!(receive_descriptor(b.as_fd()).is_err());
    }
}
