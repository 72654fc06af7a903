//! A program moves into a new PID namespace on the same machine: stopped, captured, rebuilt; and the program itself
//! checks that nothing but time has passed.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::time::Instant;

use common::{Destination, Program};
use whimbrel_kernel::{maps, ptrace, ptrace::Stopped};
use whimbrel_process::capture::{self, Input, Prefetch, RestartMemo};
use whimbrel_process::rebuild::{self, Target};

/// Moves `source` and lets the copy run; the source's process is killed.
fn move_once(program: &mut Program, pid: i32, memo: &mut RestartMemo) -> Destination {
    let prefetch = Prefetch::read(pid).unwrap();
    let stopped = Stopped::stop(pid).unwrap();
    let mappings = maps::read(pid).unwrap();
    let begin = Instant::now();
    let captured = capture::capture(Input {
        stopped: &stopped,
        mappings: &mappings,
        prefetch: &prefetch,
        memo,
    })
    .unwrap();
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
    program.kill_traced(&stopped);
    stopped.forget();
    for tid in &rebuilt.tids {
        ptrace::detach(*tid).unwrap();
    }
    destination
}

#[test]
fn every_mechanism_goes_on() {
    let mut program = Program::start("machinery", &[]);
    program.goes_on(3);
    let pid = program.pid();
    let _destination = move_once(&mut program, pid, &mut RestartMemo::default());
    program.goes_on(20);
}
