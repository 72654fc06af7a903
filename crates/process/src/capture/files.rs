//! The descriptor table of a frozen process and the open files behind it.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use whimbrel_kernel::socket::UnixDiag;
use whimbrel_kernel::{fd as kfd, pidfd, proc};

use super::sockets::{self, RepairedSocket, Site};
use super::{Error, Result};
use crate::descriptors::{self, Class, FileFacts, Listed};
use crate::refusal::{Refusal, Subject};
use crate::state::{
    Descriptor, FileId, FileKind, FileOwner, OpenFile, Pipe, Registration, SocketDetail, TimerFile,
};

/// A timer that expires more often than we can read it is off by a tick.
const TIMER_READINGS_MAX: u32 = 10;

/// What the capture of files needs to know about the process.
pub(crate) struct Scope<'a> {
    /// PID as we see it.
    pub pid: i32,
    /// See [`Site::own_network`].
    pub own_network: bool,
    /// Host TID to TID in the workload's namespace.
    pub inner_ids: &'a BTreeMap<i32, i32>,
    /// Asks about unix sockets in the workload's network namespace.
    pub diag: Option<&'a UnixDiag>,
}

impl Scope<'_> {
    /// A descriptor of the process.
    pub(crate) fn site(&self, fd: i32) -> Site {
        Site {
            pid: self.pid,
            fd,
            own_network: self.own_network,
        }
    }
}

/// All that was found.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub files: Vec<OpenFile>,
    pub pipes: Vec<Pipe>,
    pub descriptors: Vec<Descriptor>,
    /// Sockets that are in repair mode now.
    pub repaired: Vec<RepairedSocket>,
    /// For each timerfd (an index into `files`): `CLOCK_MONOTONIC` of ours when it was read.
    pub timers_read_at: Vec<(usize, u64)>,
}

/// An open file description with the first descriptor that refers to it.
struct Found {
    listed: Listed,
    class: Class,
    /// A duplicate of ours, where one is needed.
    duplicate: Option<OwnedFd>,
}

impl Found {
    fn fd(&self) -> Result<BorrowedFd<'_>> {
        let missing = || Error::Odd(format!("descriptor {} was not fetched", self.listed.fd));
        self.duplicate.as_ref().map(AsFd::as_fd).ok_or_else(missing)
    }
}

/// Captures the table. When it fails, sockets may be in repair mode: `repaired` has them.
pub(crate) fn capture(scope: &Scope<'_>, out: &mut Files) -> Result<()> {
    let process = pidfd::open(scope.pid)?;
    let listed = descriptors::list(scope.pid)?;
    let (found, table) = group(scope.pid, listed)?;
    let found = fetch(scope.pid, process.as_fd(), found)?;
    out.descriptors = table;
    for file in &found {
        repair(scope, file, out)?;
    }
    let by_number: HashMap<i32, &Found> = out
        .descriptors
        .iter()
        .filter_map(|d| Some((d.fd, found.get(d.file as usize)?)))
        .collect();
    let mut pipes = Pipes::default();
    for (index, file) in found.iter().enumerate() {
        let kind = match &file.class {
            Class::Pipe(inode) => FileKind::Pipe {
                pipe: pipes.add(scope.pid, *inode, file)?,
            },
            Class::Epoll => FileKind::Epoll(registrations(scope.pid, file, &by_number)?),
            Class::Timer => {
                let (timer, read_at) = timer(scope.pid, file)?;
                out.timers_read_at.push((index, read_at));
                FileKind::Timer(timer)
            }
            _ => kind(scope, file)?,
        };
        let owner = owner(scope, file)?;
        out.files.push(OpenFile {
            flags: file.listed.info.flags,
            owner,
            kind,
        });
    }
    out.pipes = pipes.finish(scope.pid)?;
    check_pairs(scope.pid, &found, &out.files)
}

/// Finds out which descriptors share a description. Only those with the same link, position and flags can.
fn group(pid: i32, listed: Vec<Listed>) -> Result<(Vec<Listed>, Vec<Descriptor>)> {
    let mut files: Vec<Listed> = Vec::new();
    let mut table = Vec::with_capacity(listed.len());
    let mut alike: HashMap<(String, i32, u64), Vec<usize>> = HashMap::new();
    for entry in listed {
        let key = (entry.link.clone(), entry.info.flags, entry.info.position);
        let candidates = alike.entry(key).or_default();
        let mut file = None;
        for candidate in candidates.iter() {
            let other = files.get(*candidate).map_or(-1, |file| file.fd);
            if kfd::same_file((pid, entry.fd), (pid, other))? {
                file = Some(*candidate);
                break;
            }
        }
        let (fd, close_on_exec) = (entry.fd, entry.info.close_on_exec);
        let file = file.unwrap_or_else(|| {
            candidates.push(files.len());
            files.push(entry);
            files.len() - 1
        });
        table.push(Descriptor {
            fd,
            close_on_exec,
            file: file as u32,
        });
    }
    Ok((files, table))
}

fn fetch(pid: i32, process: BorrowedFd<'_>, listed: Vec<Listed>) -> Result<Vec<Found>> {
    let mut found = Vec::with_capacity(listed.len());
    for listed in listed {
        let class = descriptors::classify(pid, &listed, || FileFacts::read(pid, &listed))?;
        let asks_owner = listed.info.flags & libc::O_ASYNC != 0;
        let needed = asks_owner || matches!(class, Class::Pipe(_) | Class::Socket(_) | Class::Timer);
        let duplicate = if needed {
            Some(pidfd::getfd(process, listed.fd)?)
        } else {
            None
        };
        found.push(Found {
            listed,
            class,
            duplicate,
        });
    }
    Ok(found)
}

/// Every connection goes into repair mode before the first queue is read, so that none of them sends to another.
fn repair(scope: &Scope<'_>, file: &Found, out: &mut Files) -> Result<()> {
    let Class::Socket(inode) = file.class else {
        return Ok(());
    };
    if sockets::examine(file.fd()?, scope.site(file.listed.fd))?.is_connection() {
        out.repaired.push(sockets::enter_repair(file.fd()?, inode)?);
    }
    Ok(())
}

fn kind(scope: &Scope<'_>, file: &Found) -> Result<FileKind> {
    let info = &file.listed.info;
    let odd = || {
        Error::Odd(format!(
            "/proc/{}/fdinfo/{} cannot be understood",
            scope.pid, file.listed.fd
        ))
    };
    Ok(match &file.class {
        Class::Path => FileKind::Path {
            path: file.listed.link.clone(),
            position: info.position,
        },
        Class::Memory => FileKind::Memory {
            object: file_id(scope.pid, file.listed.fd)?,
            position: info.position,
        },
        Class::Event => {
            let (count, semaphore) = info.event().ok_or_else(odd)?;
            FileKind::Event { count, semaphore }
        }
        Class::Signal => FileKind::Signal {
            mask: info.signal_mask().ok_or_else(odd)?,
        },
        Class::Socket(inode) => {
            let socket = sockets::read(file.fd()?, scope.site(file.listed.fd), *inode, scope.diag)?;
            FileKind::Socket(Box::new(socket))
        }
        Class::Pipe(_) | Class::Epoll | Class::Timer => return Err(odd()),
    })
}

/// Device and inode of the file behind a descriptor, as in /proc/pid/maps.
pub(crate) fn file_id(pid: i32, fd: i32) -> Result<FileId> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let meta = std::fs::metadata(&path)
        .map_err(|error| whimbrel_kernel::error::Error::call(format!("examine {path}"), error))?;
    Ok(FileId {
        device: meta.dev(),
        inode: meta.ino(),
    })
}

/// Reads a timerfd again, together with the clock: the first reading is too old to be exact.
fn timer(pid: i32, file: &Found) -> Result<(TimerFile, u64)> {
    let fd = file.listed.fd;
    let odd = || Error::Odd(format!("/proc/{pid}/fdinfo/{fd} cannot be understood"));
    for reading in 1.. {
        let (interval_ns, remaining_ns) = kfd::timer(file.fd()?)?;
        let read_at = super::monotonic_ns()?;
        let info = descriptors::FdInfo::parse(proc::descriptor_info(pid, fd)?).ok_or_else(odd)?;
        let timer = info.timer().ok_or_else(odd)?;
        // it expired between both readings: its tick would be counted twice
        let torn = timer.remaining_ns == 0 && remaining_ns > 0;
        if !torn || reading == TIMER_READINGS_MAX {
            return Ok((
                TimerFile {
                    interval_ns,
                    remaining_ns,
                    ..timer
                },
                read_at,
            ));
        }
    }
    Err(odd())
}

fn owner(scope: &Scope<'_>, file: &Found) -> Result<Option<FileOwner>> {
    let Some(fd) = &file.duplicate else {
        return Ok(None);
    };
    let owner = kfd::owner(fd.as_fd())?;
    if owner.id == 0 && owner.signal == 0 {
        return Ok(None);
    }
    let id = scope.inner_ids.get(&owner.id).copied();
    let outside = || {
        let subject = Subject::Descriptor {
            pid: scope.pid,
            fd: file.listed.fd,
        };
        let what = format!("sends its signals to process {}, which does not move", owner.id);
        Refusal::new(subject, what, "let it send them to itself (F_SETOWN)")
    };
    let id = if owner.id == 0 { 0 } else { id.ok_or_else(outside)? };
    Ok(Some(FileOwner {
        kind: owner.kind,
        id,
        signal: owner.signal,
    }))
}

/// The registrations of an epoll set. One whose descriptor was closed while a duplicate keeps the file open cannot be made again.
fn registrations(pid: i32, file: &Found, by_number: &HashMap<i32, &Found>) -> Result<Vec<Registration>> {
    let fd = file.listed.fd;
    let read = file.listed.info.registrations();
    let read = read.ok_or_else(|| Error::Odd(format!("/proc/{pid}/fdinfo/{fd} cannot be understood")))?;
    let mut seen: HashMap<i32, u32> = HashMap::new();
    let mut registrations = Vec::with_capacity(read.len());
    for (registration, inode) in read {
        let occurrence = seen.entry(registration.fd).or_insert(0);
        let target = by_number.get(&registration.fd);
        if !target.is_some_and(|target| watches(pid, fd, registration.fd, inode, target, *occurrence)) {
            let what = format!(
                "is an epoll set that watches descriptor {} after it was closed",
                registration.fd
            );
            let subject = Subject::Descriptor { pid, fd };
            return Err(Refusal::new(subject, what, "remove it from the set before closing it").into());
        }
        *occurrence += 1;
        registrations.push(registration);
    }
    Ok(registrations)
}

/// Whether a registration is for the file that its descriptor has now. The inode of a socket is enough; others share
/// theirs, and are compared by the kernel, which takes time that grows with the set.
fn watches(pid: i32, epoll: i32, fd: i32, inode: u64, target: &Found, occurrence: u32) -> bool {
    if target.listed.info.inode != inode {
        return false;
    }
    let unique = matches!(target.class, Class::Socket(_));
    unique && occurrence == 0 || kfd::epoll_watches(pid, epoll, fd, occurrence).unwrap_or(false)
}

/// The pipes of a process, by their inode.
#[derive(Default)]
struct Pipes {
    order: Vec<u64>,
    ends: HashMap<u64, Ends>,
}

#[derive(Default)]
struct Ends {
    pipe: Pipe,
    index: u32,
    readers: usize,
    writers: usize,
    /// A descriptor to name in messages.
    fd: i32,
    /// poll(2) says that the other end is closed.
    other_closed: bool,
}

impl Pipes {
    fn add(&mut self, pid: i32, inode: u64, file: &Found) -> Result<u32> {
        let fd = file.fd()?;
        let flags = file.listed.info.flags;
        let next = self.order.len() as u32;
        if !self.ends.contains_key(&inode) {
            self.order.push(inode);
        }
        let ends = self.ends.entry(inode).or_insert_with(|| Ends {
            index: next,
            fd: file.listed.fd,
            ..Ends::default()
        });
        ends.pipe.capacity = kfd::pipe_capacity(fd)? as u32;
        let (reads, writes) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (1, 0),
            libc::O_WRONLY => (0, 1),
            _ => (1, 1),
        };
        if reads == 1 && ends.readers == 0 {
            ends.pipe.contents = kfd::pipe_contents(fd, flags & libc::O_DIRECT != 0)
                .map_err(|error| Error::Odd(format!("pipe {} of process {pid}: {error}", file.listed.fd)))?;
        }
        ends.readers += reads;
        ends.writers += writes;
        ends.other_closed |= kfd::poll_now(fd, 0)? & (libc::POLLHUP | libc::POLLERR) != 0;
        Ok(ends.index)
    }

    fn finish(mut self, pid: i32) -> Result<Vec<Pipe>> {
        let mut pipes = Vec::with_capacity(self.order.len());
        for inode in self.order {
            let ends = self.ends.remove(&inode).unwrap_or_default();
            if (ends.readers == 0 || ends.writers == 0) && !ends.other_closed {
                return Err(outside_pipe(pid, ends.fd).into());
            }
            pipes.push(ends.pipe);
        }
        Ok(pipes)
    }
}

/// Both ends of a unix pair must move, or the other one must be closed.
fn check_pairs(pid: i32, found: &[Found], files: &[OpenFile]) -> Result<()> {
    let inodes: Vec<u64> = found
        .iter()
        .filter_map(|file| {
            if let Class::Socket(inode) = file.class {
                Some(inode)
            } else {
                None
            }
        })
        .collect();
    for (file, open) in found.iter().zip(files) {
        let FileKind::Socket(socket) = &open.kind else {
            continue;
        };
        let SocketDetail::Unix(end) = &socket.detail else {
            continue;
        };
        if end.peer != 0 && !inodes.contains(&end.peer) {
            let site = Site {
                pid,
                fd: file.listed.fd,
                own_network: true,
            };
            return Err(sockets::outside_unix(site).into());
        }
    }
    Ok(())
}

/// Whether a pipe of a running process can move: the other end must be among its descriptors, or closed.
pub(crate) fn judge_pipe(
    pid: i32,
    fd: BorrowedFd<'_>,
    listed: &Listed,
    all: &[(&Listed, Class)],
) -> Result<()> {
    let class = Class::Pipe(listed.info.inode);
    let mode = |flags: i32| flags & libc::O_ACCMODE;
    let own = mode(listed.info.flags);
    let other_end = |(other, found): &(&Listed, Class)| *found == class && mode(other.info.flags) != own;
    let closed = kfd::poll_now(fd, 0)? & (libc::POLLHUP | libc::POLLERR) != 0;
    if own == libc::O_RDWR || closed || all.iter().any(other_end) {
        return Ok(());
    }
    Err(outside_pipe(pid, listed.fd).into())
}

fn outside_pipe(pid: i32, fd: i32) -> Refusal {
    let what = "is a pipe whose other end is outside of the workload";
    let cure = "start the program with its input and output redirected to files, as `whimbrel run` does";
    Refusal::new(Subject::Descriptor { pid, fd }, what, cure)
}
