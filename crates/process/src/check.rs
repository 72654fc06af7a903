//! Everything that stands in the way of a move, found before anything is touched.
//!
//! The process runs on while it is looked at, so the capture of the frozen process repeats what may have changed.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use whimbrel_kernel::maps::{self, VmFlags, Vma};
use whimbrel_kernel::proc::{self, Stat, Status};
use whimbrel_kernel::{namespace, pidfd, socket};

use crate::capture::sockets::{self, Site};
use crate::capture::{self, files};
use crate::descriptors::{self, Class, FileFacts};
use crate::refusal::{Refusal, Subject};

/// `CS` of a thread in 32-bit compatibility mode.
pub(crate) const CODE_SEGMENT_32: u64 = 0x23;
/// Lines of `/proc/pid/status` that must be the same in every thread: we build a process with one identity.
const IDENTITY: [&str; 9] = [
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
];
/// Namespaces that threads may have of their own.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "uts"];

/// How strict the check is.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Whether the workload's addresses move along with it. By default that is so when it has another network
    /// namespace than we.
    pub own_network: Option<bool>,
}

/// Checks process `pid` and everything that it has open.
///
/// # Errors
/// The first thing that stands in the way.
pub fn check(pid: i32, options: &CheckOptions) -> Result<(), Refusal> {
    let leader = process(pid)?;
    threads(pid)?;
    relatives(pid, &leader)?;
    paths(pid)?;
    let mapped = maps::read_with_flags(pid).map_err(|error| unreadable(pid, &error))?;
    mappings(pid, &mapped)?;
    timers(pid)?;
    let own_network = options.own_network.map_or_else(|| has_own_network(pid), Ok)?;
    open_files(pid, own_network)
}

fn refuse(subject: Subject, what: impl Into<String>, cure: &str) -> Result<(), Refusal> {
    Err(Refusal::new(subject, what, cure))
}

fn unreadable(pid: i32, error: &dyn std::fmt::Display) -> Refusal {
    let what = format!("cannot be examined ({error})");
    Refusal::new(
        Subject::Process { pid },
        what,
        "run whimbrel as root, and see whether the process still runs",
    )
}

/// Whether the network namespace of `pid` is another one than ours.
///
/// # Errors
/// The process cannot be examined.
pub fn has_own_network(pid: i32) -> Result<bool, Refusal> {
    let of = |pid| proc::namespace(pid, "net").map_err(|error| unreadable(pid, &error));
    Ok(of(pid)? != of(std::process::id() as i32)?)
}

/// The process as a whole; gives the status of its leader.
fn process(pid: i32) -> Result<Status, Refusal> {
    let subject = Subject::Process { pid };
    if pid == std::process::id() as i32 {
        let what = "is this very command";
        return Err(Refusal::new(
            subject,
            what,
            "give the PID or the name of a workload (`whimbrel ps` lists them)",
        ));
    }
    if pid <= 0 || !Path::new(&format!("/proc/{pid}")).exists() {
        let what = "does not exist";
        return Err(Refusal::new(
            subject,
            what,
            "give the PID or the name of a workload (`whimbrel ps` lists them)",
        ));
    }
    let status = Status::read(pid).map_err(|error| unreadable(pid, &error))?;
    if status.number("Tgid") != Some(pid as u64) {
        let what = "is a thread and not a process";
        let leader = status.get("Tgid").unwrap_or("unknown").to_string();
        return Err(Refusal::new(
            subject,
            what,
            format!("give the PID of its process, {leader}"),
        ));
    }
    life(pid, &status)?;
    if status.namespace_pids().len() > 1 && status.namespace_pids().last() == Some(&1) {
        let what = "is the init process of its PID namespace";
        return Err(Refusal::new(
            subject,
            what,
            "give the PID of the process that it started",
        ));
    }
    Ok(status)
}

/// Whether it runs, with nobody holding it.
fn life(pid: i32, status: &Status) -> Result<(), Refusal> {
    let subject = Subject::Process { pid };
    if status.get("VmSize").is_none() && status.get("State").is_some_and(|state| !state.starts_with('Z')) {
        return refuse(subject, "is a thread of the kernel", "give the PID of a program");
    }
    match status.get("State").and_then(|state| state.chars().next()) {
        Some('Z' | 'X') => refuse(
            subject,
            "has ended and is only waiting for its parent",
            "there is nothing to move",
        ),
        Some('T') => refuse(
            subject,
            "is stopped by a signal",
            "let it continue first (kill -CONT)",
        ),
        _ => Ok(()),
    }
}

fn threads(pid: i32) -> Result<(), Refusal> {
    let names = |tid: i32| -> Vec<Option<String>> {
        NAMESPACES
            .iter()
            .map(|kind| proc::link(pid, &format!("task/{tid}/ns/{kind}")).ok())
            .collect()
    };
    let leader = ThreadFacts::read(pid, pid).map_err(|error| unreadable(pid, &error))?;
    let expected = names(pid);
    for tid in proc::tasks(pid).map_err(|error| unreadable(pid, &error))? {
        // a thread that has ended meanwhile stands in nobody's way
        let Ok(facts) = ThreadFacts::read(pid, tid) else {
            continue;
        };
        facts.judge(pid, tid, &leader)?;
        let found = names(tid);
        let differs = NAMESPACES
            .iter()
            .zip(expected.iter().zip(&found))
            .find(|(_, (a, b))| b.is_some() && a != b);
        if let Some((kind, _)) = differs {
            let what = format!("is in another {kind} namespace than its process");
            return refuse(
                Subject::Thread { pid, tid },
                what,
                "run it as a process of its own",
            );
        }
    }
    Ok(())
}

/// What `/proc/pid/task/tid/status` says about a thread, read in one pass: there are many threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadFacts {
    /// TID in the innermost PID namespace.
    pub inner_id: Option<i32>,
    tracer: u64,
    filtered: bool,
    shadow_stack: bool,
    /// The lines of [`IDENTITY`].
    identity: String,
}

impl ThreadFacts {
    pub(crate) fn read(pid: i32, tid: i32) -> whimbrel_kernel::error::Result<ThreadFacts> {
        Ok(ThreadFacts::parse(&proc::text(
            pid,
            &format!("task/{tid}/status"),
        )?))
    }

    fn parse(text: &str) -> ThreadFacts {
        let mut facts = ThreadFacts::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            match key {
                "NSpid" => facts.inner_id = value.split_whitespace().last().and_then(|id| id.parse().ok()),
                "TracerPid" => facts.tracer = value.trim().parse().unwrap_or(0),
                "Seccomp" => facts.filtered = value.trim() != "0",
                "x86_Thread_features" => facts.shadow_stack = value.contains("shstk"),
                _ if IDENTITY.contains(&key) => {
                    facts.identity.push_str(line);
                    facts.identity.push('\n');
                }
                _ => {}
            }
        }
        facts
    }

    /// Refuses what one thread must not have; `leader` is the thread that the others are compared with.
    pub(crate) fn judge(&self, pid: i32, tid: i32, leader: &ThreadFacts) -> Result<(), Refusal> {
        let subject = Subject::Thread { pid, tid };
        if self.filtered {
            let cure = "start the program without its sandbox; filters cannot be moved yet";
            return refuse(subject, "has a seccomp filter", cure);
        }
        if self.shadow_stack {
            return refuse(
                subject,
                "uses a shadow stack",
                "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
            );
        }
        // the status names the thread that traces; it may be one of ours
        if self.tracer != 0 && !Path::new(&format!("/proc/self/task/{}", self.tracer)).exists() {
            return refuse(
                subject,
                format!("is traced by process {}", self.tracer),
                "detach the debugger first",
            );
        }
        let mut pairs = self.identity.lines().zip(leader.identity.lines());
        if let Some((line, _)) = pairs.find(|(own, leaders)| own != leaders) {
            let key = line.split(':').next().unwrap_or_default();
            let what = format!("has other credentials ({key}) than its process");
            return refuse(subject, what, "give all threads the same credentials");
        }
        Ok(())
    }
}

fn relatives(pid: i32, leader: &Status) -> Result<(), Refusal> {
    let subject = Subject::Process { pid };
    let children = proc::children(pid).map_err(|error| unreadable(pid, &error))?;
    if let Some(child) = children.first() {
        let stat = Stat::read(*child);
        let (name, zombie) = stat.map_or(("?".into(), false), |stat| (stat.name, stat.state == 'Z'));
        let what = if zombie {
            format!("has the ended child {child} ({name}) that it has not waited for")
        } else {
            format!(
                "has {} child processes, the first one is {child} ({name})",
                children.len()
            )
        };
        return refuse(
            subject,
            what,
            "wait until they have ended; trees of processes cannot be moved yet",
        );
    }
    let user = |pid| proc::namespace(pid, "user").map_err(|error| unreadable(pid, &error));
    if user(pid)? != user(std::process::id() as i32)? {
        let what = "is in another user namespace";
        return refuse(subject, what, "run whimbrel in the same user namespace");
    }
    if leader.number("Umask").is_none() && leader.get("Umask").is_none() {
        return refuse(
            subject,
            "shows no file mode mask in its status",
            "use a kernel with Linux 4.7 or later",
        );
    }
    Ok(())
}

/// The executable, the root and the working directory.
fn paths(pid: i32) -> Result<(), Refusal> {
    let subject = Subject::Process { pid };
    let link = |name| proc::link(pid, name).map_err(|error| unreadable(pid, &error));
    let root = link("root")?;
    if root != "/" {
        return refuse(
            subject,
            format!("has its own root directory {root} (chroot)"),
            "run whimbrel inside that root",
        );
    }
    for name in ["exe", "cwd"] {
        let path = link(name)?;
        if path.ends_with(" (deleted)") {
            let what = format!(
                "uses {}, which has been deleted",
                path.trim_end_matches(" (deleted)")
            );
            return refuse(subject, what, "put it back and start the program again");
        }
    }
    let mut head = [0u8; 5];
    let read = File::open(format!("/proc/{pid}/exe")).and_then(|mut file| file.read_exact(&mut head));
    read.map_err(|error| unreadable(pid, &error))?;
    // e_ident[EI_CLASS] of elf(5): 1 is ELFCLASS32
    if head == *b"\x7fELF\x01" {
        return refuse(
            subject,
            "is a 32-bit program",
            "use a 64-bit build of the program",
        );
    }
    Ok(())
}

/// What none of the mappings may be. Also for the mappings of the frozen process.
///
/// # Errors
/// The first mapping that cannot move.
pub fn mappings(pid: i32, mapped: &[Vma]) -> Result<(), Refusal> {
    // the kernel's own mappings look like a device's
    let ours = |vma: &&Vma| !vma.is_vdso_like() && vma.path != "[vsyscall]";
    for vma in mapped.iter().filter(ours) {
        if let Some((what, cure)) = obstacle(vma) {
            let subject = Subject::Mapping {
                pid,
                start: vma.start,
                end: vma.end,
            };
            return refuse(subject, what, cure);
        }
    }
    Ok(())
}

fn obstacle(vma: &Vma) -> Option<(String, &'static str)> {
    let path = &vma.path;
    let flags = vma.flags;
    let deleted = path.ends_with(" (deleted)");
    let found = if flags.has(VmFlags::HUGETLB) {
        (
            "is made of reserved huge pages (hugetlbfs)",
            "use transparent huge pages instead",
        )
    } else if path.starts_with("/[aio]") {
        (
            "belongs to asynchronous I/O (io_setup)",
            "let the program use threads for its I/O",
        )
    } else if path.starts_with("/SYSV") {
        ("is System V shared memory", "let the program use mmap or memfd")
    } else if path.starts_with("anon_inode:") || path.starts_with("[uprobes") {
        (
            "belongs to a kernel object",
            "start the program without that feature",
        )
    } else if path.starts_with("/dev/") && !path.starts_with("/dev/zero") && !path.starts_with("/dev/shm/") {
        ("is a device", "start the program without that device")
    } else if path.starts_with("/secretmem") {
        (
            "is secret memory, which cannot be read",
            "start the program without memfd_secret",
        )
    } else if flags.has(VmFlags::SHADOW_STACK) {
        (
            "is a shadow stack",
            "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
        )
    } else if flags.has(VmFlags::IO) || flags.has(VmFlags::PFN_MAP) {
        ("is memory of a device", "start the program without that device")
    } else if deleted && !vma.shared && !path.starts_with("/memfd:") && !path.starts_with("/dev/zero") {
        (
            "is a file that has been deleted or replaced",
            "start the program again, so that it uses the present file",
        )
    } else {
        return None;
    };
    // without a path the words say it all
    let name = if path.is_empty() {
        String::new()
    } else {
        format!(" ({path})")
    };
    Some((format!("{}{name}", found.0), found.1))
}

fn timers(pid: i32) -> Result<(), Refusal> {
    let timers = proc::timers(pid).map_err(|error| unreadable(pid, &error))?;
    match timers.iter().find(|timer| timer.clock < 0) {
        // negative numbers are CPU clocks of other processes or clocks of devices (clock_getcpuclockid(3))
        Some(timer) => refuse(
            Subject::Process { pid },
            format!(
                "has timer {} on clock {}, which is another process's or a device's",
                timer.id, timer.clock
            ),
            "let it use CLOCK_MONOTONIC",
        ),
        None => Ok(()),
    }
}

/// Every descriptor, as far as it can be judged while the process runs.
fn open_files(pid: i32, own_network: bool) -> Result<(), Refusal> {
    let process = pidfd::open(pid).map_err(|error| unreadable(pid, &error))?;
    let listed = descriptors::list(pid).map_err(|error| unreadable(pid, &error))?;
    let diag = unix_diag(pid).map_err(|error| unreadable(pid, &error))?;
    let mut found = Vec::new();
    for entry in &listed {
        let class = descriptors::classify(pid, entry, || FileFacts::read(pid, entry))?;
        found.push((entry, class));
    }
    let inodes: Vec<u64> = found
        .iter()
        .filter_map(|(_, class)| {
            if let Class::Socket(inode) = class {
                Some(*inode)
            } else {
                None
            }
        })
        .collect();
    for (entry, class) in &found {
        let (Class::Socket(_) | Class::Pipe(_)) = class else {
            continue;
        };
        // closed meanwhile
        let Ok(fd) = pidfd::getfd(process.as_fd(), entry.fd) else {
            continue;
        };
        let judged = match class {
            Class::Socket(inode) => sockets::judge(
                fd.as_fd(),
                Site {
                    pid,
                    fd: entry.fd,
                    own_network,
                },
                *inode,
                &diag,
                &inodes,
            ),
            _ => files::judge_pipe(pid, fd.as_fd(), entry, &found),
        };
        settle(pid, judged)?;
    }
    Ok(())
}

/// What passes by itself is no reason to refuse.
fn settle(pid: i32, judged: capture::Result<()>) -> Result<(), Refusal> {
    match judged {
        Ok(()) | Err(capture::Error::Busy { .. }) => Ok(()),
        Err(capture::Error::Refused(refusal)) => Err(refusal),
        Err(other) => Err(unreadable(pid, &other)),
    }
}

/// A channel for questions about unix sockets in the network namespace of `pid`.
pub(crate) fn unix_diag(pid: i32) -> capture::Result<socket::UnixDiag> {
    let network = namespace::open(pid, "net")?;
    Ok(namespace::in_network(network.as_fd(), socket::UnixDiag::open)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(path: &str, shared: bool, flags: VmFlags) -> String {
        let vma = Vma {
            start: 0x1000,
            end: 0x3000,
            inode: 1,
            path: path.into(),
            shared,
            flags,
            ..Vma::default()
        };
        mappings(9, &[vma]).map_or_else(|refusal| refusal.to_string(), |()| String::new())
    }

    #[test]
    fn threads_that_differ_are_named() {
        let text = "Name:\tx\nNSpid:\t70\t7\nTracerPid:\t0\nUid:\t0\t0\t0\t0\nCapEff:\t00ff\nSeccomp:\t0\n";
        let leader = ThreadFacts::parse(text);
        assert_eq!(leader.inner_id, Some(7));
        leader.judge(9, 70, &leader).unwrap();
        for (from, to, part) in [
            ("CapEff:\t00ff", "CapEff:\t0000", "other credentials (CapEff)"),
            ("Uid:\t0", "Uid:\t5", "other credentials (Uid)"),
            ("Seccomp:\t0", "Seccomp:\t2", "seccomp filter"),
            (
                "Seccomp:\t0",
                "Seccomp:\t0\nx86_Thread_features:\tshstk",
                "shadow stack",
            ),
            ("TracerPid:\t0", "TracerPid:\t1", "traced by process 1"),
        ] {
            let refusal = ThreadFacts::parse(&text.replace(from, to))
                .judge(9, 70, &leader)
                .unwrap_err()
                .to_string();
            assert!(
                refusal.starts_with("thread 70 of process 9 ") && refusal.contains(part),
                "{refusal}"
            );
        }
    }

    #[test]
    fn mappings_that_move() {
        for (path, shared) in [
            ("", false),
            ("[heap]", false),
            ("/usr/lib/libc.so.6", false),
            ("/memfd:x (deleted)", false),
            ("/dev/zero (deleted)", true),
            ("/dev/shm/x", true),
            ("/tmp/hsperfdata_root/7 (deleted)", true),
        ] {
            assert_eq!(judged(path, shared, VmFlags::LOCKED), "", "{path}");
        }
    }

    #[test]
    fn mappings_that_stay_have_their_sentences() {
        for (path, flags, part) in [
            ("/dev/hugepages/x", VmFlags::HUGETLB, "hugetlbfs"),
            ("/[aio] (deleted)", VmFlags::NONE, "asynchronous I/O"),
            ("/SYSV00000000 (deleted)", VmFlags::NONE, "System V"),
            ("anon_inode:[perf_event]", VmFlags::NONE, "kernel object"),
            ("/dev/dri/card0", VmFlags::NONE, "is a device (/dev/dri/card0)"),
            ("/secretmem (deleted)", VmFlags::NONE, "secret memory"),
            ("", VmFlags::SHADOW_STACK, "shadow stack"),
            ("", VmFlags::PFN_MAP, "memory of a device"),
            (
                "/usr/lib/old.so (deleted)",
                VmFlags::NONE,
                "deleted or replaced (/usr/lib/old.so (deleted))",
            ),
        ] {
            let text = judged(path, false, flags);
            assert!(
                text.starts_with("mapping 0x1000-0x3000 of process 9 ") && text.contains(part),
                "{text}"
            );
        }
    }
}
