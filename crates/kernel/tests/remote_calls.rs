//! Driving a stopped thread from outside.
#![allow(clippy::unwrap_used)]

mod puppet;

use std::time::Instant;

use puppet::{Puppet, PAGE};
use whimbrel_kernel::ptrace::{self, Stopped};
use whimbrel_kernel::remote::{find_gadget, Call, Remote};
use whimbrel_kernel::{maps, memory, proc};

fn gadget(pid: i32) -> u64 {
    find_gadget(pid, &maps::read(pid).unwrap()).unwrap()
}

/// Stops the process, lets `work` use its leader, puts everything back.
fn with_leader<T>(pid: i32, work: impl FnOnce(&mut Remote) -> T) -> T {
    let stopped = Stopped::stop(pid).unwrap();
    let mut remote = Remote::new(pid, pid, gadget(pid)).unwrap();
    let result = work(&mut remote);
    remote.restore().unwrap();
    ptrace::park(stopped.tids()).unwrap();
    stopped.detach();
    result
}

#[test]
fn single_calls_and_batches_run_inside_the_other_process() {
    let mut puppet = Puppet::new();
    let pid = puppet.pid;
    with_leader(pid, |remote| {
        assert_eq!(remote.call("getpid", libc::SYS_getpid, &[]).unwrap(), pid as u64);
        assert_eq!(
            remote.raw(libc::SYS_close, &[12345]).unwrap(),
            -i64::from(libc::EBADF)
        );
        remote.install(None).unwrap();
        assert_eq!(remote.call("getpid", libc::SYS_getpid, &[]).unwrap(), pid as u64);
        assert_eq!(
            remote.raw(libc::SYS_close, &[12345]).unwrap(),
            -i64::from(libc::EBADF)
        );
        let error = remote.call("close", libc::SYS_close, &[12345]).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EBADF));
        let mut calls = vec![Call::new("getppid", libc::SYS_getppid, &[]); 1000];
        remote.batch(&mut calls).unwrap();
        assert!(calls
            .iter()
            .all(|call| call.result == i64::from(std::process::id() as i32)));
        remote.uninstall().unwrap();
    });
    assert_eq!(
        puppet.call(libc::SYS_getpid, &[]),
        pid as u64,
        "it goes on as before"
    );
    assert!(
        !maps::read(pid).unwrap().iter().any(|vma| vma.prot == 7),
        "nothing is left behind"
    );
}

#[test]
fn a_batch_ends_at_the_first_call_that_fails_unless_it_may() {
    let puppet = Puppet::new();
    with_leader(puppet.pid, |remote| {
        remote.install(None).unwrap();
        let close = || Call::new("close", libc::SYS_close, &[12345]);
        let pid = || Call::new("getpid", libc::SYS_getpid, &[]);
        let mut calls = [pid(), close().may_fail(), pid(), close(), pid()];
        let error = remote.batch(&mut calls).unwrap_err();
        assert!(error.to_string().contains("close(0x3039"), "{error}");
        let results: Vec<i64> = calls.iter().map(|call| call.result).collect();
        let (pid, bad) = (i64::from(puppet.pid), -i64::from(libc::EBADF));
        assert_eq!(results, [pid, bad, pid, bad, -i64::from(libc::ENOSYS)]);
        remote.uninstall().unwrap();
    });
}

#[test]
fn a_call_takes_results_of_earlier_ones_as_arguments() {
    let mut puppet = Puppet::new();
    let buffer = puppet.map(PAGE);
    with_leader(puppet.pid, |remote| {
        remote.install(None).unwrap();
        memory::write(remote.pid(), buffer, b"hello").unwrap();
        let mut calls = [
            Call::new("eventfd", libc::SYS_eventfd2, &[7, 0]),
            Call::new("getpid", libc::SYS_getpid, &[]),
            Call::new("read", libc::SYS_read, &[0, buffer, 8]).arg_from(0, 0),
            Call::new("mmap", libc::SYS_mmap, &[0, PAGE, 3, 0x22, u64::MAX, 0]),
            Call::new("munmap", libc::SYS_munmap, &[0, PAGE]).arg_from(0, 3),
            Call::new("close", libc::SYS_close, &[0]).arg_from(0, 0),
        ];
        remote.batch(&mut calls).unwrap();
        assert_eq!(memory::read_u64(remote.pid(), buffer).unwrap(), 7);
        let mut wrong = [Call::new("close", libc::SYS_close, &[]).arg_from(0, 0)];
        assert!(remote
            .batch(&mut wrong)
            .unwrap_err()
            .to_string()
            .contains("not there yet"));
        remote.uninstall().unwrap();
    });
    assert_eq!(puppet.load(buffer), 7);
}

#[test]
fn every_argument_of_a_call_can_be_an_earlier_result() {
    let mut puppet = Puppet::new();
    let target = puppet.map(PAGE);
    with_leader(puppet.pid, |remote| {
        remote.install(None).unwrap();
        // lseek(2) of a memfd returns the offset that it was given, a failed close(2) has -9
        let memfd = remote
            .call("memfd", libc::SYS_memfd_create, &[target, 0])
            .unwrap();
        let number = |value: u64| Call::new("lseek", libc::SYS_lseek, &[memfd, value, 0]);
        let bad = Call::new("close", libc::SYS_close, &[54321]).may_fail();
        let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
        let mut calls = vec![
            number(target),
            number(PAGE),
            number(3),
            number(anonymous),
            bad,
            number(0),
        ];
        let mut map = Call::new("mmap", libc::SYS_mmap, &[]);
        for argument in 0..6 {
            map = map.arg_from(argument, argument);
        }
        calls.push(map);
        remote.batch(&mut calls).unwrap();
        assert_eq!(calls[6].result as u64, target);
        remote.call("close", libc::SYS_close, &[memfd]).unwrap();
        remote.uninstall().unwrap();
    });
}

#[test]
fn several_threads_run_batches_at_the_same_time() {
    let mut puppet = Puppet::new();
    let words = puppet.map(PAGE);
    (0..8).for_each(|index| puppet.counter(words + 8 * index));
    let stopped = Stopped::stop(puppet.pid).unwrap();
    let gadget = gadget(puppet.pid);
    let remote = |tid: &i32| Remote::new(puppet.pid, *tid, gadget).unwrap();
    let mut remotes: Vec<Remote> = stopped.tids().iter().map(remote).collect();
    let area = remotes[0].install(None).unwrap();
    let mut calls = vec![vec![Call::new("gettid", libc::SYS_gettid, &[]); 20]; remotes.len()];
    for (index, remote) in remotes.iter_mut().enumerate() {
        remote.share_scratch(area);
        remote.batch_start(&calls[index], index * 20).unwrap();
    }
    for (index, remote) in remotes.iter_mut().enumerate() {
        remote.batch_finish(&mut calls[index], index * 20).unwrap();
        assert!(calls[index]
            .iter()
            .all(|call| call.result == i64::from(remote.tid())));
    }
    remotes[0].uninstall().unwrap();
    remotes.iter().for_each(|remote| remote.restore().unwrap());
    ptrace::park(stopped.tids()).unwrap();
    stopped.detach();
    (0..8).for_each(|index| puppet.wait_growth(words + 8 * index));
}

#[test]
fn threads_are_made_with_the_numbers_that_were_asked_for() {
    let mut puppet = Puppet::new();
    let mut stopped = Stopped::stop(puppet.pid).unwrap();
    stopped
        .options(ptrace::OPTION_TRACECLONE | ptrace::OPTION_EXITKILL)
        .unwrap();
    let mut remote = Remote::new(puppet.pid, puppet.pid, gadget(puppet.pid)).unwrap();
    remote.install(None).unwrap();
    let highest: i32 = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let wanted: Vec<i32> = (1..=40).map(|index| highest - 2000 - 3 * index).collect();
    assert_eq!(remote.spawn_threads(&wanted).unwrap(), wanted);
    stopped.add(&wanted);
    let mut tasks = wanted.clone();
    tasks.push(puppet.pid);
    tasks.sort_unstable();
    assert_eq!(proc::tasks(puppet.pid).unwrap(), tasks);
    assert_eq!(
        remote.spawn_thread(wanted[0]).unwrap_err().errno(),
        Some(libc::EEXIST)
    );
    let mut born = Remote::new(puppet.pid, wanted[7], gadget(puppet.pid)).unwrap();
    assert_eq!(
        born.call("gettid", libc::SYS_gettid, &[]).unwrap(),
        wanted[7] as u64
    );
    stopped.kill().unwrap();
    puppet.was_reaped();
}

#[test]
fn the_action_of_sigtrap_survives_remote_calls() {
    for handler in [libc::SIG_IGN as u64, 0x1000, 0] {
        let mut puppet = Puppet::new();
        let action = puppet.map(PAGE);
        // struct kernel_sigaction: handler, flags, restorer, mask
        const SA_RESTORER: u64 = 0x0400_0000;
        puppet.store(action, handler);
        puppet.store(action + 8, SA_RESTORER);
        puppet.call(libc::SYS_rt_sigaction, &[libc::SIGTRAP as u64, action, 0, 8]);
        with_leader(puppet.pid, |remote| {
            remote.call("getpid", libc::SYS_getpid, &[]).unwrap();
            remote.install(None).unwrap();
            remote.call("getpid", libc::SYS_getpid, &[]).unwrap();
            remote
                .batch(&mut [Call::new("getpid", libc::SYS_getpid, &[])])
                .unwrap();
            remote.uninstall().unwrap();
        });
        puppet.call(libc::SYS_rt_sigaction, &[libc::SIGTRAP as u64, 0, action, 8]);
        assert_eq!(puppet.load(action), handler);
    }
}

/// Runs remote calls while the puppet is in a blocking system call; its result must be as if nobody had been there.
fn disturbed(number: i64, args: impl Fn(&mut Puppet) -> Vec<u64>, end: impl Fn(&mut Puppet)) -> i64 {
    let mut puppet = Puppet::new();
    let args = args(&mut puppet);
    puppet.begin_call(number, &args);
    puppet.wait_in_call(number);
    with_leader(puppet.pid, |remote| {
        remote.call("getpid", libc::SYS_getpid, &[]).unwrap();
        remote.install(None).unwrap();
        remote
            .batch(&mut vec![Call::new("getpid", libc::SYS_getpid, &[]); 10])
            .unwrap();
        remote.uninstall().unwrap();
    });
    end(&mut puppet);
    puppet.reply()
}

#[test]
fn an_interrupted_nanosleep_goes_on_after_remote_calls() {
    let args = |puppet: &mut Puppet| {
        let time = puppet.map(PAGE);
        puppet.store(time + 8, 200_000_000);
        vec![time, 0]
    };
    let begin = Instant::now();
    assert_eq!(disturbed(libc::SYS_nanosleep, args, |_| ()), 0);
    assert!(begin.elapsed().as_millis() >= 200, "it slept its whole time");
}

#[test]
fn an_interrupted_poll_goes_on_after_remote_calls() {
    assert_eq!(disturbed(libc::SYS_poll, |_| vec![0, 0, 200], |_| ()), 0);
}

#[test]
fn an_interrupted_futex_wait_times_out_after_remote_calls() {
    let args = |puppet: &mut Puppet| {
        let page = puppet.map(PAGE);
        puppet.store(page + 8 + 8, 200_000_000);
        vec![page, libc::FUTEX_WAIT as u64, 0, page + 8]
    };
    assert_eq!(
        disturbed(libc::SYS_futex, args, |_| ()),
        -i64::from(libc::ETIMEDOUT)
    );
}

#[test]
fn an_interrupted_read_goes_on_after_remote_calls() {
    let pipe = |puppet: &mut Puppet| {
        let page = puppet.map_at(0x7000_0000, PAGE, libc::MAP_FIXED_NOREPLACE);
        puppet.call(libc::SYS_pipe2, &[page, 0]);
        let ends = puppet.load(page);
        vec![ends & 0xffff_ffff, page + 64, 8]
    };
    let feed = |puppet: &mut Puppet| {
        let ends = memory::read_u64(puppet.pid, 0x7000_0000).unwrap();
        let path = format!("/proc/{}/fd/{}", puppet.pid, ends >> 32);
        std::fs::write(path, b"12345").unwrap();
    };
    assert_eq!(disturbed(libc::SYS_read, pipe, feed), 5);
}

#[test]
fn a_signal_that_comes_meanwhile_waits_for_the_end() {
    let mut puppet = Puppet::new();
    let (pid, page) = (puppet.pid, puppet.map(PAGE));
    with_leader(pid, |remote| {
        remote.install(None).unwrap();
        // SAFETY: no pointer is passed.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        remote
            .batch(&mut vec![Call::new("getpid", libc::SYS_getpid, &[]); 10])
            .unwrap();
        memory::write(pid, page, &[1]).unwrap();
        assert_eq!(ptrace::pending(pid, true).unwrap().len(), 1);
        remote.uninstall().unwrap();
    });
    let status = puppet.wait();
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGTERM);
}

#[test]
fn a_thread_that_dies_in_a_call_is_named() {
    let mut puppet = Puppet::new();
    let _stopped = Stopped::stop(puppet.pid).unwrap();
    let mut remote = Remote::new(puppet.pid, puppet.pid, gadget(puppet.pid)).unwrap();
    let error = remote.raw(libc::SYS_exit_group, &[3]).unwrap_err().to_string();
    assert!(
        error.contains(&puppet.pid.to_string()) && error.contains("exited with status 3"),
        "{error}"
    );
    puppet.was_reaped();
}

/// Not a test of speed: prints what the calls cost.
#[test]
fn costs() {
    let mut puppet = Puppet::new();
    let words = puppet.map(PAGE);
    (0..34).for_each(|_| puppet.counter(words));
    let begin = Instant::now();
    let stopped = Stopped::stop(puppet.pid).unwrap();
    println!("stop of {} threads: {:?}", stopped.tids().len(), begin.elapsed());
    let mut remote = Remote::new(puppet.pid, puppet.pid, gadget(puppet.pid)).unwrap();
    let mut time = |name: &str, work: &mut dyn FnMut(&mut Remote)| {
        let begin = Instant::now();
        work(&mut remote);
        println!("{name}: {:?}", begin.elapsed());
    };
    let single = &mut |remote: &mut Remote| {
        (0..100).for_each(|_| assert!(remote.raw(libc::SYS_getpid, &[]).is_ok()));
    };
    time("100 single calls at the gadget", single);
    time("install", &mut |remote| assert!(remote.install(None).is_ok()));
    time("100 single calls in the area", single);
    for _ in 0..3 {
        time("batch of 640", &mut |remote| {
            remote
                .batch(&mut vec![Call::new("", libc::SYS_getppid, &[]); 640])
                .unwrap();
        });
    }
    time("uninstall", &mut |remote| remote.uninstall().unwrap());
    remote.restore().unwrap();
    let begin = Instant::now();
    ptrace::park(stopped.tids()).unwrap();
    println!("park: {:?}", begin.elapsed());
}
