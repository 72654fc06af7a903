//! A program moves into a new PID namespace on the same machine: stopped, captured, rebuilt; and the program itself
//! checks that nothing but time has passed. The rebuilt process is captured again before it runs: both states must agree.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::collections::HashMap;
use std::time::Instant;

use common::{Destination, Program};
use whimbrel_kernel::maps;
use whimbrel_kernel::ptrace::Stopped;
use whimbrel_process::capture::{self, Captured, Input, Prefetch, RestartMemo};
use whimbrel_process::rebuild::{self, Target};
use whimbrel_process::state::{FileKind, SocketDetail, State};

fn capture_stopped(stopped: &Stopped, memo: &mut RestartMemo) -> Captured {
    let pid = stopped.pid();
    let prefetch = Prefetch::read(pid).unwrap();
    let mappings = maps::read(pid).unwrap();
    capture::capture(Input {
        stopped,
        mappings: &mappings,
        prefetch: &prefetch,
        memo,
    })
    .unwrap()
}

/// Moves the program on; what it was before has ended when this returns.
fn move_on(program: &mut Program, before: Option<Destination>, memo: &mut RestartMemo) -> Destination {
    let pid = before.as_ref().map_or(program.pid(), Destination::pid);
    let stopped = Stopped::stop(pid).unwrap();
    let begin = Instant::now();
    let captured = capture_stopped(&stopped, memo);
    let capture_time = begin.elapsed();
    let mut destination = Destination::new(captured.state.processes[0].pid);
    destination.copy(pid);
    let begin = Instant::now();
    let objects = &destination.objects;
    let mut target = Target {
        remote: &mut destination.remote,
        last_gadget: destination.last_gadget,
        network: None,
        object: &|id| objects.get(&id).map(std::os::fd::AsFd::as_fd),
    };
    let rebuilt = rebuild::rebuild(&mut target, &captured.state).unwrap();
    println!(
        "{} threads: capture {capture_time:?}, rebuild {:?}",
        rebuilt.tids.len(),
        begin.elapsed()
    );
    stopped.kill().unwrap();
    match before {
        Some(before) => drop(before),
        None => program.kill(),
    }
    let born = destination.stopped.as_mut().unwrap();
    born.add(&rebuilt.tids[1..]);
    let again = capture_stopped(born, &mut RestartMemo::default());
    agree(captured.state, again.state);
    capture::leave_repair(destination.pid(), &rebuilt.repaired).unwrap();
    destination.let_go();
    destination
}

/// Both states are the same but for the numbers of inodes and the time that has passed.
fn agree(before: State, after: State) {
    let (before, after) = (plain(before), plain(after));
    let (left, right) = (&before.processes[0], &after.processes[0]);
    assert_eq!(left.threads.len(), right.threads.len());
    for (left, right) in left.threads.iter().zip(&right.threads) {
        assert_eq!(left, right, "thread {}", left.tid);
    }
    assert_eq!(before.files.len(), after.files.len());
    for (index, (left, right)) in before.files.iter().zip(&after.files).enumerate() {
        assert_eq!(left, right, "file {index}");
    }
    assert_eq!(left.memory, right.memory);
    assert_eq!(left.signals, right.signals);
    assert_eq!(left.timers, right.timers);
    assert_eq!(left.credentials, right.credentials);
    assert_eq!(left.resource_limits, right.resource_limits);
    assert_eq!(left.attributes, right.attributes);
    assert_eq!(left.filesystem, right.filesystem);
    assert_eq!(left.descriptors, right.descriptors);
    assert!(before == after);
}

/// Without what differs between two captures of the same state.
fn plain(mut state: State) -> State {
    state.clocks = Default::default();
    let mut ranks: HashMap<u64, u64> = HashMap::new();
    let mut rank = |inode: u64| {
        if inode == 0 {
            0
        } else {
            let next = ranks.len() as u64 + 1;
            *ranks.entry(inode).or_insert(next)
        }
    };
    for file in &mut state.files {
        match &mut file.kind {
            FileKind::Socket(socket) => {
                socket.inode = rank(socket.inode);
                match &mut socket.detail {
                    SocketDetail::Unix(end) => end.peer = rank(end.peer),
                    SocketDetail::Tcp(connection) => {
                        // the clock goes on; a closed window stands for the peer's until it answers; the peer's FIN is only its end
                        // of file here
                        connection.timestamp = 0;
                        connection.window[1] = 0;
                    }
                    _ => {}
                }
                // what the repair mode makes of SO_REUSEADDR
                let repaired = matches!(socket.detail, SocketDetail::Tcp(_));
                socket
                    .options
                    .retain(|option| !(repaired && (option.level, option.name) == (1, libc::SO_REUSEADDR)));
            }
            FileKind::Memory { object, .. } => *object = Default::default(),
            // the kernel orders them by their addresses
            FileKind::Epoll(registrations) => registrations.sort_by_key(|registration| registration.fd),
            FileKind::Timer(timer) => {
                // armed by its deadline; it may expire meanwhile
                timer.remaining_ns = timer.remaining_ns.min(1);
                timer.ticks = 0;
                timer.settime_flags = 0;
            }
            _ => {}
        }
    }
    for process in &mut state.processes {
        // one whose signal waits to be delivered stands still until then
        process
            .timers
            .interval
            .iter_mut()
            .for_each(|(_, value)| *value = 0);
        process
            .timers
            .posix
            .iter_mut()
            .for_each(|timer| timer.remaining_ns = timer.remaining_ns.min(1));
        process.attributes.process_group = 0;
        process.attributes.session = 0;
        // timers may fire meanwhile
        process.signals.pending.clear();
        process
            .threads
            .iter_mut()
            .for_each(|thread| thread.pending.clear());
    }
    state
}

#[test]
fn every_mechanism_goes_on_over_ten_moves() {
    let mut program = Program::start("machinery", &[]);
    program.goes_on(3);
    let mut place = None;
    let mut memo = RestartMemo::default();
    for _ in 0..10 {
        place = Some(move_on(&mut program, place.take(), &mut memo));
        program.goes_on(3);
    }
    program.goes_on(10);
}
