//! The descriptor table.
//!
//! Pipes and sockets are made by us and sent to the stub over a unix socket; everything else is made by the stub itself. All of it first
//! gets numbers above those that the workload uses, and is then put where it belongs.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use whimbrel_kernel::error;
use whimbrel_kernel::fd as kfd;
use whimbrel_kernel::remote::Remote;
use whimbrel_kernel::{namespace, pidfd};

use super::sockets::{self, Made};
use super::timers::{deadline, specification};
use super::{plan, run_if_full, Error, Result, Target};
use crate::calls::Plan;
use crate::capture::RepairedSocket;
use crate::state::{Clocks, FileKind, OpenFile, Pipe, ProcessState, Registration, State, TimerFile};

const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;
/// `TFD_IOC_SET_TICKS` of linux/timerfd.h.
const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
/// What `F_SETFL` can change (fcntl(2)).
const SETTABLE: i32 = libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK;
/// What a pipe is opened again with.
const PIPE_FLAGS: i32 = libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_DIRECT;
/// `struct cmsghdr` and the descriptors behind it.
const CONTROL_HEADER_BYTES: usize = 16;

/// Fills the empty descriptor table of the stub.
pub(super) fn build(
    target: &mut Target<'_>,
    state: &State,
    process: &ProcessState,
    age_ns: u64,
) -> Result<Vec<RepairedSocket>> {
    check_indices(state, process)?;
    let (mut made, repaired) = match target.network {
        Some(network) => namespace::in_network(network, || sockets::build(&state.files))??,
        None => sockets::build(&state.files)?,
    };
    made.extend(pipes(state)?);
    made.extend(objects(target, &state.files)?);
    target
        .remote
        .call("close_range", libc::SYS_close_range, &[0, u32::MAX.into(), 0])?;
    let mut numbers = transfer(target.remote, &made)?;
    drop(made);
    create(target.remote, state, age_ns, &mut numbers)?;
    place(target.remote, state, process, &numbers)?;
    watch(target.remote, state, process)?;
    Ok(repaired)
}

/// The state comes from outside: every index must be one.
fn check_indices(state: &State, process: &ProcessState) -> Result<()> {
    for descriptor in &process.descriptors {
        if descriptor.fd < 0 || descriptor.file as usize >= state.files.len() {
            let (fd, file) = (descriptor.fd, descriptor.file);
            return Err(Error::Unfit(format!(
                "descriptor {fd} of the state refers to file {file}, which it lacks"
            )));
        }
    }
    for file in &state.files {
        match file.kind {
            FileKind::Pipe { pipe } if pipe as usize >= state.pipes.len() => {
                return Err(Error::Unfit(format!(
                    "the state refers to pipe {pipe}, which it lacks"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Pipes with their contents.
fn pipes(state: &State) -> Result<Vec<Made>> {
    let mut made = Vec::new();
    for (number, pipe) in state.pipes.iter().enumerate() {
        let (out, input) = make_pipe(pipe)?;
        let mut unused = [Some(out.try_clone()), Some(input.try_clone())];
        for (index, file) in state.files.iter().enumerate() {
            if !matches!(file.kind, FileKind::Pipe { pipe } if pipe as usize == number) {
                continue;
            }
            let reads = file.flags & libc::O_ACCMODE == libc::O_RDONLY;
            let writes = file.flags & libc::O_ACCMODE == libc::O_WRONLY;
            let [reader, writer] = &mut unused;
            // every end after the first one was opened by its path in /proc, and so is ours
            let end = if reads {
                reader.take()
            } else {
                writer.take_if(|_| writes)
            };
            let fd = match end {
                Some(end) => end.map_err(|source| error::Error::call("duplicate a pipe", source))?,
                None => reopen(
                    if reads { out.as_fd() } else { input.as_fd() },
                    file.flags & PIPE_FLAGS,
                )?,
            };
            kfd::set_status_flags(fd.as_fd(), file.flags & SETTABLE)?;
            made.push((index, fd));
        }
    }
    Ok(made)
}

fn make_pipe(pipe: &Pipe) -> Result<(OwnedFd, OwnedFd)> {
    // a pipe in packet mode gets its borders from the flag of the end that writes
    let packets = if pipe.contents.len() > 1 {
        libc::O_DIRECT
    } else {
        0
    };
    let (out, input) = kfd::pipe(libc::O_NONBLOCK | packets)?;
    kfd::set_pipe_capacity(out.as_fd(), pipe.capacity as usize)?;
    for piece in &pipe.contents {
        kfd::write_all(input.as_fd(), piece)?;
    }
    Ok((out, input))
}

/// Another open file description of the same file.
fn reopen(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    Ok(kfd::open(&format!("/proc/self/fd/{}", fd.as_raw_fd()), flags)?)
}

/// Descriptors of shared memory objects, whose pages are there already.
fn objects(target: &Target<'_>, files: &[OpenFile]) -> Result<Vec<Made>> {
    let mut made = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let FileKind::Memory { object, position } = file.kind else {
            continue;
        };
        let missing = || {
            Error::Unfit(format!(
                "the memory object {} of the state did not arrive",
                object.inode
            ))
        };
        let fd = reopen((target.object)(object).ok_or_else(missing)?, file.flags)?;
        kfd::seek(fd.as_fd(), position)?;
        made.push((index, fd));
    }
    Ok(made)
}

/// Sends our descriptors to the stub; gives their numbers there by file.
fn transfer(stub: &mut Remote, made: &[Made]) -> Result<HashMap<usize, u64>> {
    let mut numbers = HashMap::with_capacity(made.len());
    if made.is_empty() {
        return Ok(numbers);
    }
    let mut calls = plan(stub)?;
    let ends = calls.room(8);
    let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
    calls.call(
        "socketpair",
        libc::SYS_socketpair,
        &[libc::AF_UNIX as u64, kind, 0, ends],
    );
    let answers = calls.run(stub)?;
    let (ours, theirs) = (answers.half(ends) as i32, answers.half(ends + 4));
    let process = pidfd::open(stub.pid())?;
    let channel = pidfd::getfd(process.as_fd(), ours)?;
    for chunk in made.chunks(kfd::DESCRIPTORS_PER_MESSAGE) {
        let fds: Vec<BorrowedFd<'_>> = chunk.iter().map(|(_, fd)| fd.as_fd()).collect();
        kfd::send_descriptors(channel.as_fd(), &fds)?;
        let received = receive(stub, theirs, chunk.len())?;
        numbers.extend(
            chunk
                .iter()
                .zip(received)
                .map(|((index, _), number)| (*index, u64::from(number))),
        );
    }
    let mut calls = plan(stub)?;
    for end in [ours as u64, theirs.into()] {
        calls.call("close", libc::SYS_close, &[end]);
    }
    calls.run(stub)?;
    Ok(numbers)
}

/// One recvmsg(2) in the stub.
fn receive(stub: &mut Remote, socket: u32, count: usize) -> Result<Vec<u32>> {
    let mut calls = plan(stub)?;
    let byte = calls.room(1);
    let vector = calls.words(&[byte, 1]);
    let control_bytes = CONTROL_HEADER_BYTES + 4 * count;
    let control = calls.room(control_bytes);
    // struct msghdr: name, its length, vector, its count, control, its length, flags
    let message = calls.words(&[0, 0, vector, 1, control, control_bytes as u64, 0]);
    let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
    calls.call("recvmsg", libc::SYS_recvmsg, &[socket.into(), message, flags]);
    let answers = calls.run(stub)?;
    let length = answers.word(control) as usize;
    if length != control_bytes {
        return Err(Error::Unfit(format!(
            "the stub received {length} bytes of descriptors instead of {control_bytes}"
        )));
    }
    let at = |index: usize| control + (CONTROL_HEADER_BYTES + 4 * index) as u64;
    Ok((0..count).map(|index| answers.half(at(index))).collect())
}

/// Everything that the stub makes itself.
fn create(stub: &mut Remote, state: &State, age_ns: u64, numbers: &mut HashMap<usize, u64>) -> Result<()> {
    let mut calls = plan(stub)?;
    let mut planned: Vec<(usize, usize)> = Vec::new();
    for (index, file) in state.files.iter().enumerate() {
        if let Some(call) = plan_file(&mut calls, file) {
            planned.push((index, call));
        }
        if calls.is_full() {
            let answers = std::mem::replace(&mut calls, plan(stub)?).run(stub)?;
            numbers.extend(
                planned
                    .drain(..)
                    .map(|(index, call)| (index, answers.result(call) as u64)),
            );
        }
    }
    let answers = calls.run(stub)?;
    numbers.extend(
        planned
            .into_iter()
            .map(|(index, call)| (index, answers.result(call) as u64)),
    );
    set_up(stub, state, age_ns, numbers)
}

fn plan_file(calls: &mut Plan, file: &OpenFile) -> Option<usize> {
    let cloexec = libc::O_CLOEXEC as u64;
    Some(match &file.kind {
        FileKind::Path { path, .. } => {
            let name = calls.text(path.as_bytes());
            let never = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;
            let flags = file.flags & !never | libc::O_CLOEXEC | libc::O_NOCTTY;
            let args = [libc::AT_FDCWD as u64, name, flags as u32 as u64, 0];
            calls.call(&format!("open of {path}"), libc::SYS_openat, &args)
        }
        FileKind::Event { count, semaphore } => {
            let semaphore = if *semaphore { libc::EFD_SEMAPHORE as u64 } else { 0 };
            // the call takes 32 bits; larger counts are written below
            let initial = u32::try_from(*count).unwrap_or(0);
            calls.call(
                "eventfd2",
                libc::SYS_eventfd2,
                &[initial.into(), cloexec | semaphore],
            )
        }
        FileKind::Signal { mask } => {
            let mask = calls.words(&[*mask]);
            calls.call("signalfd4", libc::SYS_signalfd4, &[u64::MAX, mask, 8, cloexec])
        }
        FileKind::Timer(timer) => calls.call(
            "timerfd_create",
            libc::SYS_timerfd_create,
            &[timer.clock as u64, cloexec],
        ),
        FileKind::Epoll(_) => calls.call("epoll_create1", libc::SYS_epoll_create1, &[cloexec]),
        FileKind::Memory { .. } | FileKind::Pipe { .. } | FileKind::Socket(_) => return None,
    })
}

/// Positions, timers, flags, owners.
fn set_up(stub: &mut Remote, state: &State, age_ns: u64, numbers: &HashMap<usize, u64>) -> Result<()> {
    let mut calls = plan(stub)?;
    for (index, file) in state.files.iter().enumerate() {
        let Some(&fd) = numbers.get(&index) else { continue };
        match &file.kind {
            FileKind::Path { path, position } if *position != 0 => {
                let what = format!("lseek in {path}");
                calls.call(&what, libc::SYS_lseek, &[fd, *position, libc::SEEK_SET as u64]);
            }
            FileKind::Event { count, .. } if *count > u32::MAX.into() => {
                let count = calls.words(&[*count]);
                calls.call("write to an eventfd", libc::SYS_write, &[fd, count, 8]);
            }
            FileKind::Timer(timer) => arm(&mut calls, fd, timer, state.clocks, age_ns),
            _ => {}
        }
        set_flags(&mut calls, fd, file);
        calls = run_if_full(calls, stub)?;
    }
    calls.run(stub)?;
    Ok(())
}

fn set_flags(calls: &mut Plan, fd: u64, file: &OpenFile) {
    if let Some(owner) = file.owner {
        let pair = [owner.kind, owner.id]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect::<Vec<u8>>();
        let pair = calls.put(&pair);
        calls.call("fcntl F_SETOWN_EX", libc::SYS_fcntl, &[fd, F_SETOWN_EX, pair]);
        calls.call(
            "fcntl F_SETSIG",
            libc::SYS_fcntl,
            &[fd, F_SETSIG, owner.signal as u64],
        );
    }
    let flags = file.flags & SETTABLE;
    // a path has been opened with its flags, all but this one
    let opened = matches!(file.kind, FileKind::Path { .. }) && flags & libc::O_ASYNC == 0;
    if flags != 0 && !opened {
        calls.call(
            "fcntl F_SETFL",
            libc::SYS_fcntl,
            &[fd, libc::F_SETFL as u64, flags as u64],
        );
    }
}

fn arm(calls: &mut Plan, fd: u64, timer: &TimerFile, read_at: Clocks, age_ns: u64) {
    let asked = (timer.settime_flags & (libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET)) as u64;
    let by_wall_clock = timer.clock == libc::CLOCK_REALTIME && asked & libc::TFD_TIMER_ABSTIME as u64 != 0;
    let (flags, value_ns) = match timer.remaining_ns {
        0 => (0, 0),
        // a program that waits for a time of day wants it by the clock of the machine that it is on
        remaining if by_wall_clock => (asked, read_at.realtime_ns.saturating_add(remaining)),
        remaining => deadline(timer.clock, remaining, read_at, age_ns),
    };
    let address = calls.words(&specification(timer.interval_ns, value_ns));
    calls.call(
        "timerfd_settime",
        libc::SYS_timerfd_settime,
        &[fd, flags, address, 0],
    );
    if timer.ticks > 0 {
        let ticks = calls.words(&[timer.ticks]);
        calls.call(
            "ioctl TFD_IOC_SET_TICKS",
            libc::SYS_ioctl,
            &[fd, TFD_IOC_SET_TICKS, ticks],
        );
    }
}

/// The first of so many numbers in a row that neither the workload uses nor the files have now.
fn staging(process: &ProcessState, numbers: &HashMap<usize, u64>) -> u64 {
    let used = process
        .descriptors
        .iter()
        .map(|descriptor| descriptor.fd.max(0) as u64);
    used.chain(numbers.values().copied())
        .max()
        .map_or(0, |highest| highest + 1)
}

/// Moves every file to its descriptors.
fn place(
    stub: &mut Remote,
    state: &State,
    process: &ProcessState,
    numbers: &HashMap<usize, u64>,
) -> Result<()> {
    let base = staging(process, numbers);
    let mut calls = plan(stub)?;
    let mut staged = Vec::with_capacity(state.files.len());
    for index in 0..state.files.len() {
        let missing = || Error::Unfit(format!("file {index} of the state was not made"));
        let fd = *numbers.get(&index).ok_or_else(missing)?;
        staged.push(calls.call(
            "fcntl F_DUPFD",
            libc::SYS_fcntl,
            &[fd, libc::F_DUPFD_CLOEXEC as u64, base],
        ));
        calls_limit(&calls)?;
    }
    let answers = calls.run(stub)?;
    let mut calls = plan(stub)?;
    if base > 0 {
        calls.call("close_range", libc::SYS_close_range, &[0, base - 1, 0]);
    }
    for descriptor in &process.descriptors {
        let staged = staged
            .get(descriptor.file as usize)
            .map_or(-1, |call| answers.result(*call));
        let flags = if descriptor.close_on_exec {
            libc::O_CLOEXEC as u64
        } else {
            0
        };
        let what = format!("dup3 to descriptor {}", descriptor.fd);
        calls.call(
            &what,
            libc::SYS_dup3,
            &[staged as u64, descriptor.fd as u64, flags],
        );
    }
    calls.call("close_range", libc::SYS_close_range, &[base, u32::MAX.into(), 0]);
    calls.run(stub)?;
    Ok(())
}

/// The batch runs in several parts when it must; this is only a limit on what a peer can make us do.
fn calls_limit(calls: &Plan) -> Result<()> {
    const DESCRIPTORS_MAX: usize = 1 << 20;
    if calls.len() > DESCRIPTORS_MAX {
        return Err(Error::Unfit(format!(
            "the state has more than {DESCRIPTORS_MAX} files"
        )));
    }
    Ok(())
}

/// Registrations of epoll sets; all descriptors are in their places.
fn watch(stub: &mut Remote, state: &State, process: &ProcessState) -> Result<()> {
    let mut calls = plan(stub)?;
    for (index, file) in state.files.iter().enumerate() {
        let FileKind::Epoll(registrations) = &file.kind else {
            continue;
        };
        // one descriptor of the set is as good as another
        let Some(set) = process.descriptors.iter().find(|d| d.file as usize == index) else {
            continue;
        };
        for Registration { fd, events, data } in registrations {
            // struct epoll_event is packed on x86-64: 4 and 8 bytes
            let mut event = events.to_ne_bytes().to_vec();
            event.extend_from_slice(&data.to_ne_bytes());
            let event = calls.put(&event);
            let args = [set.fd as u64, libc::EPOLL_CTL_ADD as u64, *fd as u64, event];
            calls.call(
                &format!("epoll_ctl of descriptor {fd}"),
                libc::SYS_epoll_ctl,
                &args,
            );
            calls = run_if_full(calls, stub)?;
        }
    }
    calls.run(stub)?;
    Ok(())
}
