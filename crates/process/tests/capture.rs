//! The state of real programs is captured, and they run on as if nothing had happened.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use whimbrel_kernel::maps;
use whimbrel_kernel::ptrace::Stopped;
use whimbrel_process::capture::{self, Captured, Input, Prefetch, RestartMemo};
use whimbrel_process::state::{FileKind, State};

/// Whoever runs the tests may have pipes open that programs inherit.
const CLOSE_OTHERS: &str =
    r#"for fd in /proc/self/fd/*; do n=${fd##*/}; ((n > 2)) && eval "exec $n>&-"; done; exec "$@""#;

/// A program with its output in a pipe of ours, which ends with the test.
struct Program {
    child: Child,
    log: std::path::PathBuf,
}

impl Program {
    fn start(name: &str, args: &[&str]) -> Program {
        let path = whimbrel_testbed::programs::c(name).unwrap();
        let log = std::env::temp_dir().join(format!("whimbrel-capture-{}-{name}", std::process::id()));
        let out = std::fs::File::create(&log).unwrap();
        let mut command = Command::new("bash");
        command
            .args(["-c", CLOSE_OTHERS, "bash"])
            .arg(path)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        Program {
            child: command.spawn().unwrap(),
            log,
        }
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn lines(&self) -> Vec<String> {
        let file = std::fs::File::open(&self.log).unwrap();
        BufReader::new(file).lines().map(|line| line.unwrap()).collect()
    }

    /// Waits until the program has written so many more lines, and none of them is a complaint.
    fn goes_on(&mut self, more: usize) {
        let wanted = self.lines().len() + more;
        while self.lines().len() < wanted {
            assert!(
                self.child.try_wait().unwrap().is_none(),
                "ended: {:?}",
                self.lines().last()
            );
            std::thread::yield_now();
        }
        let bad = self.lines().into_iter().find(|line| line.contains("BAD"));
        assert_eq!(bad, None);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}

fn capture_once(pid: i32, memo: &mut RestartMemo) -> Captured {
    let prefetch = Prefetch::read(pid).unwrap();
    let stopped = Stopped::stop(pid).unwrap();
    let mappings = maps::read(pid).unwrap();
    let begin = std::time::Instant::now();
    let captured = capture::capture(Input {
        stopped: &stopped,
        mappings: &mappings,
        prefetch: &prefetch,
        memo,
    })
    .unwrap();
    println!(
        "capture of {} threads: {:?}",
        stopped.tids().len(),
        begin.elapsed()
    );
    capture::leave_repair(pid, &captured.repaired).unwrap();
    stopped.detach();
    captured
}

fn count(state: &State, what: impl Fn(&FileKind) -> bool) -> usize {
    state.files.iter().filter(|file| what(&file.kind)).count()
}

#[test]
fn a_program_with_everything_runs_on_after_many_captures() {
    let mut program = Program::start("machinery", &[]);
    program.goes_on(3);
    let mut memo = RestartMemo::default();
    for _ in 0..20 {
        let captured = capture_once(program.pid(), &mut memo);
        let process = &captured.state.processes[0];
        assert!(process.threads.len() > 5);
        assert!(count(&captured.state, |kind| matches!(kind, FileKind::Epoll(_))) > 0);
        program.goes_on(1);
    }
    let captured = capture_once(program.pid(), &mut memo);
    let timers = &captured.state.processes[0].timers;
    assert!(
        timers.interval[0].1 > 0 && timers.posix.iter().any(|timer| timer.remaining_ns > 0),
        "{timers:?}"
    );
    program.goes_on(5);
}
