//! The state of real programs is captured, and they run on as if nothing had happened.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use common::Program;
use whimbrel_kernel::ptrace::Stopped;
use whimbrel_process::capture::{self, RestartMemo};
use whimbrel_process::state::{FileKind, State};

fn count(state: &State, what: impl Fn(&FileKind) -> bool) -> usize {
    state.files.iter().filter(|file| what(&file.kind)).count()
}

#[test]
fn a_program_with_everything_runs_on_after_many_captures() {
    let program = Program::start("machinery", &[]);
    program.goes_on(3);
    let mut memo = RestartMemo::default();
    for _ in 0..20 {
        let stopped = Stopped::stop(program.pid()).unwrap();
        let captured = common::capture_stopped(&stopped, &mut memo);
        capture::leave_repair(program.pid(), &captured.repaired).unwrap();
        stopped.detach();
        let process = &captured.state.processes[0];
        assert!(process.threads.len() > 5);
        assert!(count(&captured.state, |kind| matches!(kind, FileKind::Epoll(_))) > 0);
        let timers = &process.timers;
        assert!(
            timers.interval[0].0 > 0 && timers.posix.iter().any(|timer| timer.remaining_ns > 0),
            "{timers:?}"
        );
        program.goes_on(1);
    }
    program.goes_on(5);
}
