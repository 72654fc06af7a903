//! Stopping processes, whatever they do and whatever happens to us.
#![allow(clippy::unwrap_used)]

mod puppet;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use puppet::{Other, Puppet, CHURN, PAGE};
use whimbrel_kernel::ptrace::{self, Stop, Stopped};
use whimbrel_kernel::remote::{blank_landing, find_gadget, Call, Remote};
use whimbrel_kernel::{maps, memory, pidfd, proc, uffd};

/// System calls of a tracer at most, twice.
const STEPS_MAX: usize = 20_000;

/// A puppet with threads that count and check their registers, and the addresses of their words.
fn counting(threads: u64) -> (Puppet, Vec<u64>) {
    let mut puppet = Puppet::new();
    let page = puppet.map(PAGE);
    let words: Vec<u64> = (0..threads).map(|index| page + index * 64).collect();
    words.iter().for_each(|word| puppet.counter(*word));
    (puppet, words)
}

/// Everything goes on as if nobody had been there.
fn assert_unharmed(puppet: &mut Puppet, words: &[u64]) {
    let pid = puppet.pid;
    words.iter().for_each(|word| puppet.wait_growth(*word));
    for tid in proc::tasks(pid).unwrap() {
        let status = proc::Status::of_thread(pid, tid).unwrap();
        assert_eq!(status.get("SigBlk"), Some("0000000000000000"), "thread {tid}");
        assert_eq!(status.get("TracerPid"), Some("0"), "thread {tid}");
    }
}

fn remotes(stopped: &Stopped) -> Vec<Remote> {
    let gadget = find_gadget(stopped.pid(), &maps::read(stopped.pid()).unwrap()).unwrap();
    let remote = |tid: &i32| Remote::new(stopped.pid(), *tid, gadget).unwrap();
    stopped.tids().iter().map(remote).collect()
}

#[test]
fn a_stopped_process_stands_still_and_goes_on() {
    let (mut puppet, words) = counting(4);
    let stopped = Stopped::stop(puppet.pid).unwrap();
    assert_eq!(stopped.tids().len(), 5);
    assert_eq!(stopped.tids()[0], puppet.pid);
    let look = || -> Vec<u64> {
        words
            .iter()
            .map(|word| memory::read_u64(puppet.pid, *word).unwrap())
            .collect()
    };
    let before = look();
    for tid in stopped.tids() {
        assert_eq!(proc::task_state(puppet.pid, *tid), Some('t'));
    }
    assert_eq!(look(), before);
    stopped.detach();
    assert_unharmed(&mut puppet, &words);
}

/// The kernel's list leaves out the thread behind one that ends while it is listed.
#[test]
fn no_thread_is_missing_in_a_complete_list() {
    const PAIRS: u64 = 300;
    let pid = std::process::id() as i32;
    let small = || std::thread::Builder::new().stack_size(16 << 10);
    for _ in 0..30 {
        let (staying, stay) = std::sync::mpsc::channel::<i32>();
        let mut until = Vec::new();
        for index in 0..PAIRS {
            let end = Duration::from_micros(20_000 + index * 100);
            small().spawn(move || std::thread::sleep(end)).unwrap();
            let (go, gone) = std::sync::mpsc::channel::<()>();
            let staying = staying.clone();
            small()
                .spawn(move || {
                    // SAFETY: no pointer is passed.
                    staying.send(unsafe { libc::gettid() }).unwrap();
                    // ends with the sender
                    let _ = gone.recv();
                })
                .unwrap();
            until.push(go);
        }
        let stay: Vec<i32> = (0..PAIRS).map(|_| stay.recv().unwrap()).collect();
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_micros(20_000 + PAIRS * 100) {
            let tasks = proc::Tasks::look(pid).unwrap();
            let missing = stay.iter().find(|tid| tasks.tids.binary_search(tid).is_err());
            assert!(missing.is_none() || !tasks.is_complete, "{missing:?} is missing");
        }
    }
}

#[test]
fn threads_that_come_and_go_do_not_escape() {
    let (mut puppet, words) = counting(1);
    puppet.begin(CHURN, &[20_000]);
    for _ in 0..200 {
        let _stopped = Stopped::stop(puppet.pid).unwrap();
        let running = |tid: &i32| !matches!(proc::task_state(puppet.pid, *tid), Some('t' | 'Z' | 'X') | None);
        let tasks = proc::tasks(puppet.pid).unwrap();
        assert_eq!(tasks.iter().find(|tid| running(tid)), None);
    }
    assert_eq!(puppet.reply(), 0);
    // those that end have their signals blocked
    while proc::tasks(puppet.pid).unwrap().len() > 2 {
        std::thread::yield_now();
    }
    assert_unharmed(&mut puppet, &words);
}

#[test]
fn a_killed_tracer_leaves_the_process_running() {
    let (mut puppet, words) = counting(3);
    let pid = puppet.pid;
    let (mut ready, mut tell) = std::io::pipe().unwrap();
    let tracer = Other::new(move || {
        let stopped = Stopped::stop(pid).unwrap();
        let mut remotes = remotes(&stopped);
        remotes
            .iter_mut()
            .for_each(|remote| assert!(remote.raw(libc::SYS_getpid, &[]).is_ok()));
        remotes.iter().for_each(|remote| remote.restore().unwrap());
        ptrace::park(stopped.tids()).unwrap();
        tell.write_all(b"!").unwrap();
        std::mem::forget(stopped);
    });
    ready.read_exact(&mut [0]).unwrap();
    assert_eq!(proc::task_state(pid, pid), Some('t'));
    drop(tracer);
    assert_unharmed(&mut puppet, &words);
}

#[test]
fn a_tracer_that_is_killed_while_a_batch_runs_leaves_the_process_running() {
    let (mut puppet, words) = counting(3);
    let pid = puppet.pid;
    let tracer = Other::new(move || {
        let stopped = Stopped::stop(pid).unwrap();
        let mut remotes = remotes(&stopped);
        let area = remotes[0].install(None).unwrap();
        let calls = [
            Call::new("poll", libc::SYS_poll, &[0, 0, 300]),
            Call::new("getpid", libc::SYS_getpid, &[]),
        ];
        // the leader last: when it waits, all do
        for (slot, remote) in remotes.iter_mut().enumerate().rev() {
            remote.share_scratch(area);
            remote.batch_start(&calls, slot * calls.len()).unwrap();
        }
        std::mem::forget(stopped);
    });
    puppet.wait_in_call(libc::SYS_poll);
    drop(tracer);
    assert_unharmed(&mut puppet, &words);
}

#[test]
fn a_sleep_goes_on_when_the_tracer_is_killed_while_a_batch_runs() {
    let mut puppet = Puppet::new();
    let pid = puppet.pid;
    let time = puppet.map(PAGE);
    puppet.store(time + 8, 400_000_000);
    puppet.begin_call(libc::SYS_nanosleep, &[time, 0]);
    puppet.wait_in_call(libc::SYS_nanosleep);
    let tracer = Other::new(move || {
        let stopped = Stopped::stop(pid).unwrap();
        let mut leader = remotes(&stopped).remove(0);
        leader.install(None).unwrap();
        leader
            .batch_start(&[Call::new("poll", libc::SYS_poll, &[0, 0, 100])], 0)
            .unwrap();
        std::mem::forget(stopped);
    });
    puppet.wait_in_call(libc::SYS_poll);
    drop(tracer);
    assert_eq!(puppet.reply(), 0);
}

#[test]
fn a_tracer_may_be_killed_at_any_moment_of_its_work() {
    let (mut puppet, words) = counting(2);
    let pid = puppet.pid;
    for round in 0..60u64 {
        let (mut ready, mut tell) = std::io::pipe().unwrap();
        let tracer = Other::new(move || {
            let stopped = Stopped::stop(pid).unwrap();
            work_for_ever(stopped, &mut tell);
        });
        ready.read_exact(&mut [0]).unwrap();
        // any moment will do; these are not multiples of anything
        std::thread::sleep(Duration::from_micros(round * 37));
        drop(tracer);
        assert_unharmed(&mut puppet, &words);
    }
}

/// Batches, restores, parks, lets go and stops again, with an area that stays.
fn work_for_ever(mut stopped: Stopped, tell: &mut impl Write) {
    let pid = stopped.pid();
    let mut all = remotes(&stopped);
    let area = all[0].install(None).unwrap();
    loop {
        let mut calls = vec![Call::new("getppid", libc::SYS_getppid, &[]); 30];
        for (slot, remote) in all.iter_mut().enumerate() {
            remote.share_scratch(area);
            remote.batch_start(&calls, slot * 30).unwrap();
        }
        for (slot, remote) in all.iter_mut().enumerate() {
            remote.batch_finish(&mut calls, slot * 30).unwrap();
        }
        all.iter().for_each(|remote| remote.restore().unwrap());
        ptrace::park(stopped.tids()).unwrap();
        stopped.detach();
        let _ = tell.write_all(b"!");
        stopped = Stopped::stop(pid).unwrap();
        all = remotes(&stopped);
    }
}

/// Has another process do this, and kills it at the first step that it makes, at the second one, and so on: each beginning and
/// each end of a system call. How many there were.
fn kill_at_each_step(puppet: &mut Puppet, words: &[u64], work: fn(i32)) -> usize {
    let pid = puppet.pid;
    for steps in 0..STEPS_MAX {
        let (mut begin, mut tell) = UnixStream::pair().unwrap();
        let tracer = Other::new(move || {
            begin.read_exact(&mut [0]).unwrap();
            work(pid);
            // SAFETY: ends this process.
            unsafe { libc::_exit(0) }
        });
        ptrace::seize(tracer.0, 0).unwrap();
        ptrace::interrupt(tracer.0).unwrap();
        tell.write_all(b"!").unwrap();
        let mut stop = ptrace::wait(tracer.0).unwrap();
        for _ in 0..steps {
            if let Stop::Gone(status) = stop {
                assert_eq!(status, 0, "after {steps} steps");
                return steps;
            }
            ptrace::resume_to_syscall(tracer.0, 0).unwrap();
            stop = ptrace::wait(tracer.0).unwrap();
        }
        drop(tracer);
        assert_unharmed(puppet, words);
    }
    panic!("more than {STEPS_MAX} steps");
}

#[test]
fn a_tracer_may_be_killed_at_each_step_of_its_questions() {
    let (mut puppet, words) = counting(1);
    let steps = kill_at_each_step(&mut puppet, &words, ask);
    println!("killed at {steps} steps");
    assert!(steps > 100);
    let ours = vdso(std::process::id() as i32);
    let mut theirs = vdso(puppet.pid);
    blank_landing(&mut theirs);
    assert!(theirs == ours, "only a landing may be left");
    // whoever comes next takes it away
    ask(puppet.pid);
    assert!(vdso(puppet.pid) == ours);
    assert_unharmed(&mut puppet, &words);
}

#[test]
fn a_tracer_may_be_killed_at_each_step_while_a_userfaultfd_is_made() {
    let (mut puppet, words) = counting(1);
    let steps = kill_at_each_step(&mut puppet, &words, |pid| {
        drop(uffd::inject(pid, uffd::Injection::default()).unwrap())
    });
    println!("killed at {steps} steps");
    assert!(steps > 100);
}

/// All that a capture does with the threads of a process.
fn ask(pid: i32) {
    let stopped = Stopped::stop(pid).unwrap();
    let mut all = remotes(&stopped);
    let (leader, others) = all.split_first_mut().unwrap();
    assert!(leader.secure(&maps::read(pid).unwrap()).unwrap());
    let area = leader.install(None).unwrap();
    let mut calls = vec![Call::new("getppid", libc::SYS_getppid, &[]); 5];
    for (slot, other) in others.iter_mut().enumerate() {
        other.share_scratch(area);
        other.batch_start(&calls, slot * 5).unwrap();
    }
    leader.batch_start(&calls, 100).unwrap();
    leader.batch_finish(&mut calls, 100).unwrap();
    for (slot, other) in others.iter_mut().enumerate() {
        other.batch_finish(&mut calls, slot * 5).unwrap();
    }
    others.iter().for_each(|other| other.restore().unwrap());
    leader.uninstall().unwrap();
    all.iter().for_each(|remote| remote.restore().unwrap());
    ptrace::park(stopped.tids()).unwrap();
    stopped.detach();
}

fn vdso(pid: i32) -> Vec<u8> {
    let vmas = maps::read(pid).unwrap();
    let vdso = vmas.iter().find(|vma| vma.path == "[vdso]").unwrap();
    let mut image = vec![0; vdso.len() as usize];
    memory::read(pid, vdso.start, &mut image).unwrap();
    image
}

#[test]
fn a_process_that_was_stopped_by_a_signal_stays_stopped() {
    let (mut puppet, words) = counting(2);
    let pid = puppet.pid;
    let process = pidfd::open(pid).unwrap();
    use std::os::fd::AsFd;
    pidfd::send_signal(process.as_fd(), libc::SIGSTOP).unwrap();
    while proc::task_state(pid, pid) != Some('T') {
        std::thread::yield_now();
    }
    let stopped = Stopped::stop(pid).unwrap();
    assert_eq!(stopped.group_stop(), Some(libc::SIGSTOP));
    let mut remotes = remotes(&stopped);
    for remote in &mut remotes {
        assert_eq!(remote.raw(libc::SYS_getpid, &[]).unwrap(), i64::from(pid));
    }
    remotes.iter().for_each(|remote| remote.restore().unwrap());
    ptrace::park(stopped.tids()).unwrap();
    stopped.detach();
    for tid in proc::tasks(pid).unwrap() {
        while proc::task_state(pid, tid) != Some('T') {
            std::thread::yield_now();
        }
    }
    pidfd::send_signal(process.as_fd(), libc::SIGCONT).unwrap();
    assert_unharmed(&mut puppet, &words);
}

#[test]
fn what_cannot_be_stopped_is_told_in_one_sentence() {
    let gone = Stopped::stop(i32::MAX).unwrap_err();
    assert_eq!(gone.errno(), Some(libc::ENOENT));
    assert!(gone.to_string().contains("/proc/2147483647/"), "{gone}");
    let puppet = Puppet::new();
    let pid = puppet.pid;
    let (mut ready, mut tell) = std::io::pipe().unwrap();
    let _tracer = Other::new(move || {
        std::mem::forget(Stopped::stop(pid).unwrap());
        tell.write_all(b"!").unwrap();
    });
    ready.read_exact(&mut [0]).unwrap();
    let taken = Stopped::stop(pid).unwrap_err();
    assert_eq!(taken.errno(), Some(libc::EPERM));
    assert!(taken.to_string().contains(&pid.to_string()), "{taken}");
}

#[test]
fn a_thread_shows_its_registers_and_signals() {
    let mut puppet = Puppet::new();
    let pid = puppet.pid;
    let page = puppet.map(PAGE);
    puppet.store(page, 1 << (libc::SIGUSR1 - 1) | 1 << (libc::SIGUSR2 - 1));
    puppet.call(libc::SYS_rt_sigprocmask, &[0, page, 0, 8]);
    // SAFETY: no pointers.
    unsafe { libc::kill(pid, libc::SIGUSR1) };
    puppet.call(libc::SYS_tkill, &[pid as u64, libc::SIGUSR2 as u64]);
    let stopped = Stopped::stop(pid).unwrap();
    let numbers = |shared| -> Vec<i32> {
        let queued = ptrace::pending(pid, shared).unwrap();
        queued
            .iter()
            .map(|info| i32::from_ne_bytes(info[..4].try_into().unwrap()))
            .collect()
    };
    assert_eq!(
        (numbers(true), numbers(false)),
        (vec![libc::SIGUSR1], vec![libc::SIGUSR2])
    );
    assert_eq!(
        ptrace::sigmask(pid).unwrap(),
        1 << (libc::SIGUSR1 - 1) | 1 << (libc::SIGUSR2 - 1)
    );
    let xstate = ptrace::xstate(pid).unwrap();
    ptrace::set_xstate(pid, &xstate).unwrap();
    assert_eq!(ptrace::xstate(pid).unwrap(), xstate);
    assert_eq!(
        ptrace::set_xstate(pid, &xstate[..100]).unwrap_err().errno(),
        Some(libc::EINVAL)
    );
    let rseq = ptrace::rseq(pid).unwrap();
    assert!(
        rseq.pointer != 0 && rseq.size >= 20,
        "glibc registers one: {rseq:?}"
    );
    assert!(!ptrace::syscall_user_dispatch(pid).unwrap());
    let mut regs = ptrace::regs(pid).unwrap();
    regs.r12 ^= 1;
    ptrace::set_regs(pid, &regs).unwrap();
    assert_eq!(ptrace::regs(pid).unwrap().r12, regs.r12);
    stopped.kill().unwrap();
    puppet.was_reaped();
}
