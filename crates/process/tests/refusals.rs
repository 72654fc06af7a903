//! What cannot move is refused in one sentence that names it and says what to do, and the program runs on.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::process::Stdio;

use common::Program;
use whimbrel_kernel::{pidfd, socket};
use whimbrel_process::check::{check, CheckOptions};

fn sentence(pid: i32) -> String {
    let refusal = check(pid, &CheckOptions::default()).expect_err("not refused");
    let text = refusal.to_string();
    assert!(!text.contains('\n') && text.contains(": "), "{text}");
    text
}

/// Starts a program and expects the sentence about its process to hold these parts.
fn refused(program: &Program, parts: &[&str]) {
    program.has_written(1);
    let text = sentence(program.pid());
    assert!(text.contains(&program.pid().to_string()), "{text}");
    parts
        .iter()
        .for_each(|part| assert!(text.contains(part), "{part:?} is not in {text:?}"));
}

fn perl(script: &str, parts: &[&str]) {
    refused(&Program::perl(script, Stdio::null()), parts);
}

#[test]
fn each_kind_of_the_sample_program_has_its_sentence() {
    let kinds: [(&str, &[&str]); 10] = [
        ("io_uring", &["descriptor 3", "io_uring"]),
        ("inotify", &["descriptor 3", "inotify"]),
        ("tty", &["descriptor 3", "terminal /dev/ptmx"]),
        (
            "deleted-file",
            &["descriptor 3", "deleted file /tmp/whimbrel-deleted"],
        ),
        ("sysv-shm", &["mapping 0x", "System V shared memory"]),
        ("file-lock", &["descriptor 3", "lock on /tmp/whimbrel-locked"]),
        ("raw-socket", &["descriptor 3", "raw IP socket"]),
        ("netlink", &["descriptor 3", "netlink socket"]),
        ("child", &["child process", "(unsupported)"]),
        ("traced", &["is traced by process", "detach the debugger"]),
    ];
    for (kind, parts) in kinds {
        let program = Program::start("unsupported", &[kind]);
        refused(&program, parts);
        program.goes_on(1);
    }
}

#[test]
fn what_is_no_workload() {
    for (pid, part) in [
        (std::process::id() as i32, "is this very command"),
        (i32::MAX, "does not exist"),
        (-1, "does not exist"),
    ] {
        assert!(sentence(pid).contains(part), "{}", sentence(pid));
    }
    let program = Program::start("machinery", &[]);
    program.goes_on(1);
    let tasks = whimbrel_kernel::proc::tasks(program.pid()).unwrap();
    let text = sentence(*tasks.last().unwrap());
    assert!(
        text.contains("is a thread") && text.contains(&program.pid().to_string()),
        "{text}"
    );
    check(program.pid(), &CheckOptions::default()).unwrap();
}

#[test]
fn a_stopped_program_and_one_with_an_unawaited_child() {
    let program = Program::perl("", Stdio::null());
    program.has_written(1);
    let handle = pidfd::open(program.pid()).unwrap();
    pidfd::send_signal(std::os::fd::AsFd::as_fd(&handle), libc::SIGSTOP).unwrap();
    while whimbrel_kernel::proc::task_state(program.pid(), program.pid()) != Some('T') {
        std::thread::yield_now();
    }
    assert!(sentence(program.pid()).contains("is stopped by a signal"));
    let program = Program::perl("if (!fork) { POSIX::_exit(0) }", Stdio::null());
    program.has_written(1);
    // first it is seen alive
    while !sentence(program.pid()).contains("has the ended child") {
        std::thread::yield_now();
    }
}

#[test]
fn ends_of_pipes_and_sockets_outside() {
    let program = Program::perl("", Stdio::piped());
    refused(&program, &["descriptor 0", "pipe whose other end is outside"]);
    let (ours, theirs) = socket::pair(libc::SOCK_STREAM).unwrap();
    let program = Program::perl("", Stdio::from(theirs));
    refused(
        &program,
        &["descriptor 0", "unix socket whose other end is outside"],
    );
    drop(ours);
    perl(
        r#"socket(my $s, AF_UNIX, SOCK_STREAM, 0); bind($s, pack_sockaddr_un("\0whimbrel-refusal")); listen($s, 1); our $k = $s"#,
        &["unix socket with the name @whimbrel-refusal"],
    );
}

#[test]
fn a_connection_from_the_hosts_own_address() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "socket(our $s, PF_INET, SOCK_STREAM, 0); connect($s, pack_sockaddr_in({port}, inet_aton('127.0.0.1'))) or die"
    );
    perl(
        &script,
        &[
            &format!("TCP connection to 127.0.0.1:{port}"),
            "whimbrel run --ip",
        ],
    );
}

#[test]
fn files_and_places_that_others_lack() {
    let fifo = std::env::temp_dir().join(format!("whimbrel-fifo-{}", std::process::id()));
    let path = fifo.to_str().unwrap();
    perl(
        &format!("POSIX::mkfifo('{path}', 0600); open(our $f, '+<', '{path}') or die"),
        &["named pipe", path],
    );
    std::fs::remove_file(&fifo).unwrap();
    perl(
        &format!("mkdir '{path}'; chdir '{path}'; rmdir '{path}'"),
        &["which has been deleted", path],
    );
    let other = format!("{path}-2");
    perl(
        &format!("open(our $f, '>', '{path}'); open(my $g, '>', '{other}'); rename('{other}', '{path}'); link('{path}', '{other}')"),
        &["deleted file", path],
    );
    std::fs::remove_file(&fifo).unwrap();
    std::fs::remove_file(other).unwrap();
    // mq_open, then mq_unlink: a message queue looks like a file in the root
    let queue = format!(r#"my $n = "whimbrel-queue-{}\0"; "#, std::process::id());
    perl(
        &format!("{queue} my $q = syscall(240, $n, 0102, 0600, 0); $q >= 0 or die $!"),
        &["/whimbrel-queue-", "leads to another file"],
    );
    Program::perl(&format!("{queue} syscall(241, $n) == 0 or die $!"), Stdio::null()).has_written(1);
    perl("chroot '/usr' or die", &["its own root directory /usr"]);
}

#[test]
fn kernel_objects() {
    // perf_event_open of a software counter, userfaultfd, io_setup
    perl(
        r#"my $a = pack('LLQ', 1, 128, 0) . "\0" x 112; syscall(298, $a, 0, -1, -1, 0) >= 0 or die $!"#,
        &["performance counter"],
    );
    perl("syscall(323, 0) >= 0 or die", &["userfaultfd"]);
    perl(
        r#"my $c = pack('Q', 0); syscall(206, 16, $c) >= 0 or die"#,
        &["asynchronous I/O"],
    );
    // a seccomp filter that allows everything
    perl(
        "my $f = pack('SCCL', 6, 0, 0, 0x7fff0000); my $p = pack('S x6 P', 1, $f); \
         syscall(157, 38, 1, 0, 0, 0) == 0 or die; syscall(157, 22, 2, $p, 0, 0) == 0 or die $!",
        &["seccomp filter"],
    );
}

#[test]
fn an_epoll_set_that_watches_a_closed_descriptor() {
    let script = "pipe(our $r, our $w); my $e = syscall(291, 0); my $v = pack('LQ', 1, 5); \
                  my $d = POSIX::dup(fileno $r); syscall(233, $e, 1, $d, $v) == 0 or die $!; POSIX::close($d)";
    let program = Program::perl(script, Stdio::null());
    program.has_written(1);
    // only the frozen process can be judged
    let stopped = whimbrel_kernel::ptrace::Stopped::stop(program.pid()).unwrap();
    let error = common::try_capture(&stopped).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("epoll set that watches descriptor") && text.contains("after it was closed"),
        "{text}"
    );
    assert!(!error.is_transient());
    stopped.detach();
}

#[test]
fn a_listener_with_somebody_waiting_is_only_busy() {
    let program = Program::perl(
        "socket(our $s, PF_INET, SOCK_STREAM, 0); bind($s, pack_sockaddr_in(0, inet_aton('127.0.0.1'))); listen($s, 5); \
         my ($p) = unpack_sockaddr_in(getsockname $s); print \"$p\\n\"",
        Stdio::null(),
    );
    program.has_written(2);
    check(program.pid(), &CheckOptions::default()).unwrap();
    let port: u16 = program.lines()[0].parse().unwrap();
    let mut waiting = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let stopped = whimbrel_kernel::ptrace::Stopped::stop(program.pid()).unwrap();
    let error = common::try_capture(&stopped).unwrap_err();
    assert!(
        error.is_transient()
            && error
                .to_string()
                .contains("1 connections that wait to be accepted"),
        "{error}"
    );
    stopped.detach();
    waiting.write_all(b"still there").unwrap();
}
