//! What /proc tells about the descriptors of a process, and which kinds can move. Used by the check before a move and by
//! the capture of the frozen process alike.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use whimbrel_kernel::error::{Error, Result};
use whimbrel_kernel::proc::{self, field as value};

use crate::refusal::{Refusal, Subject};
use crate::state::{Registration, TimerFile};

/// Nobody needs more; a limit on what we read from /proc.
const DESCRIPTORS_MAX: usize = 1 << 20;
/// `/dev/null`, `zero`, `full`, `random`, `urandom`: (major, minor) of devices without state (Linux devices.txt).
const HARMLESS_DEVICES: [(u32, u32); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

/// One open descriptor as /proc shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    pub fd: i32,
    /// The target of `/proc/pid/fd/N`.
    pub link: String,
    pub info: FdInfo,
}

/// `/proc/pid/fdinfo/N` (proc(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FdInfo {
    /// Without `O_CLOEXEC`.
    pub flags: i32,
    pub close_on_exec: bool,
    pub position: u64,
    pub inode: u64,
    text: String,
}

impl FdInfo {
    pub(crate) fn parse(text: String) -> Option<FdInfo> {
        let flags = i32::from_str_radix(value(&text, "flags")?, 8).ok()?;
        let position = value(&text, "pos")?.parse().ok()?;
        let inode = value(&text, "ino")
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        let close_on_exec = flags & libc::O_CLOEXEC != 0;
        Some(FdInfo {
            flags: flags & !libc::O_CLOEXEC,
            close_on_exec,
            position,
            inode,
            text,
        })
    }

    /// Whether the process holds a lock or a lease through this descriptor.
    pub(crate) fn is_locked(&self) -> bool {
        self.text.lines().any(|line| line.starts_with("lock:"))
    }

    /// Counter and `EFD_SEMAPHORE` of an eventfd.
    pub(crate) fn event(&self) -> Option<(u64, bool)> {
        let count = u64::from_str_radix(value(&self.text, "eventfd-count")?, 16).ok()?;
        Some((count, value(&self.text, "eventfd-semaphore") == Some("1")))
    }

    /// The mask of a signalfd.
    pub(crate) fn signal_mask(&self) -> Option<u64> {
        u64::from_str_radix(value(&self.text, "sigmask")?, 16).ok()
    }

    /// The setting of a timerfd.
    pub(crate) fn timer(&self) -> Option<TimerFile> {
        Some(TimerFile {
            clock: value(&self.text, "clockid")?.parse().ok()?,
            ticks: value(&self.text, "ticks")?.parse().ok()?,
            settime_flags: i32::from_str_radix(value(&self.text, "settime flags")?, 8).ok()?,
            interval_ns: pair_ns(value(&self.text, "it_interval")?)?,
            remaining_ns: pair_ns(value(&self.text, "it_value")?)?,
        })
    }

    /// The registrations of an epoll set, each with the inode of its file.
    pub(crate) fn registrations(&self) -> Option<Vec<(Registration, u64)>> {
        self.text
            .lines()
            .filter(|line| line.starts_with("tfd:"))
            .map(registration)
            .collect()
    }
}

/// `tfd:  5 events:  19 data:  ff  pos:0 ino:61af sdev:7`
fn registration(line: &str) -> Option<(Registration, u64)> {
    let mut words = line.split_whitespace();
    let mut after = |key: &str| words.find(|word| *word == key).and_then(|_| words.next());
    let fd = after("tfd:")?.parse().ok()?;
    let events = u32::from_str_radix(after("events:")?, 16).ok()?;
    let data = u64::from_str_radix(after("data:")?, 16).ok()?;
    let inode = words.find_map(|word| word.strip_prefix("ino:"))?;
    Some((
        Registration { fd, events, data },
        u64::from_str_radix(inode, 16).ok()?,
    ))
}

/// `(seconds, nanoseconds)`
fn pair_ns(text: &str) -> Option<u64> {
    let (seconds, ns) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    seconds
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1_000_000_000)?
        .checked_add(ns.trim().parse().ok()?)
}

/// All descriptors of a process, ascending. Those that are closed while we look are left out.
pub(crate) fn list(pid: i32) -> Result<Vec<Listed>> {
    let numbers = proc::descriptors(pid)?;
    let mut listed = Vec::with_capacity(numbers.len());
    for fd in numbers.into_iter().take(DESCRIPTORS_MAX) {
        match look(pid, fd) {
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            found => listed.push(found?),
        }
    }
    Ok(listed)
}

fn look(pid: i32, fd: i32) -> Result<Listed> {
    let link = proc::link(pid, &format!("fd/{fd}"))?;
    let odd = || {
        Error::other(format!(
            "/proc/{pid}/fdinfo/{fd} is not in the form that is known"
        ))
    };
    let info = FdInfo::parse(proc::descriptor_info(pid, fd)?).ok_or_else(odd)?;
    Ok(Listed { fd, link, info })
}

/// What kind of file a descriptor refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Path,
    Memory,
    Pipe(u64),
    Socket(u64),
    Event,
    Timer,
    Signal,
    Epoll,
}

/// The facts of stat(2) that decide about a file with a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileFacts {
    pub mode: u32,
    pub links: u64,
    pub device: (u32, u32),
    /// The path leads to this very file.
    pub named: bool,
}

impl FileFacts {
    /// Of the file behind a descriptor of process `pid`.
    pub(crate) fn read(pid: i32, listed: &Listed) -> io::Result<FileFacts> {
        let meta = fs::metadata(format!("/proc/{pid}/fd/{}", listed.fd))?;
        let rdev = meta.rdev();
        Ok(FileFacts {
            mode: meta.mode(),
            links: meta.nlink(),
            device: (libc::major(rdev), libc::minor(rdev)),
            named: is_named(pid, &listed.link, &meta),
        })
    }
}

/// Whether the path still leads to the file, as the process sees it. Not so for a message queue, or a file under a mount that
/// was made later. Files of /proc and /sys are made anew for whoever looks.
fn is_named(pid: i32, path: &str, file: &fs::Metadata) -> bool {
    let ephemeral = path.starts_with("/proc/") || path.starts_with("/sys/");
    let same = |other: fs::Metadata| (other.dev(), other.ino()) == (file.dev(), file.ino());
    ephemeral || fs::symlink_metadata(format!("/proc/{pid}/root{path}")).is_ok_and(same)
}

/// Decides about one descriptor from its link; a file with a path needs its `facts`.
pub(crate) fn classify(
    pid: i32,
    listed: &Listed,
    facts: impl FnOnce() -> io::Result<FileFacts>,
) -> std::result::Result<Class, Refusal> {
    let refuse = |what: String, cure: &str| {
        Err(Refusal::new(
            Subject::Descriptor { pid, fd: listed.fd },
            what,
            cure,
        ))
    };
    if listed.info.is_locked() {
        return refuse(
            format!("holds a lock on {}", listed.link),
            "let the program release the file lock",
        );
    }
    if let Some(class) = class_of_link(&listed.link) {
        return Ok(class);
    }
    if !listed.link.starts_with('/') {
        return refuse(
            special(&listed.link),
            "close it, or start the program without that feature",
        );
    }
    if listed.link.starts_with("/secretmem") {
        return refuse(
            "is secret memory (memfd_secret), which cannot be read".into(),
            "close it",
        );
    }
    match facts() {
        Ok(facts) => match obstacle(&listed.link, facts) {
            Some((what, cure)) => refuse(what, cure),
            None => Ok(Class::Path),
        },
        Err(error) => refuse(
            format!("refers to {}, which cannot be examined ({error})", listed.link),
            "close it",
        ),
    }
}

fn class_of_link(link: &str) -> Option<Class> {
    let number = |prefix: &str| link.strip_prefix(prefix)?.strip_suffix(']')?.parse().ok();
    match link {
        "anon_inode:[eventfd]" => Some(Class::Event),
        "anon_inode:[timerfd]" => Some(Class::Timer),
        "anon_inode:[signalfd]" => Some(Class::Signal),
        "anon_inode:[eventpoll]" => Some(Class::Epoll),
        _ if link.starts_with("/memfd:") => Some(Class::Memory),
        _ => number("pipe:[")
            .map(Class::Pipe)
            .or_else(|| number("socket:[").map(Class::Socket)),
    }
}

/// Words for what is neither a path nor one of the kinds that can move.
fn special(link: &str) -> String {
    let name = link
        .strip_prefix("anon_inode:")
        .unwrap_or(link)
        .trim_matches(['[', ']']);
    let what = match name {
        "io_uring" => "an io_uring ring, whose state is inside the kernel",
        "inotify" => "an inotify watch list, which cannot be moved yet",
        "fanotify" => "a fanotify group",
        "perf_event" => "a performance counter (perf_event_open)",
        "userfaultfd" => "a userfaultfd",
        "pidfd" => "a handle on a process (pidfd)",
        "kvm-vm" => "a virtual machine (KVM)",
        _ if name.starts_with("kvm-") => "a part of a virtual machine (KVM)",
        _ => return format!("is {link}, which cannot be moved"),
    };
    format!("is {what}")
}

/// Why a file with a path cannot be opened again elsewhere.
fn obstacle(path: &str, facts: FileFacts) -> Option<(String, &'static str)> {
    let terminal = matches!(facts.device.0, 4 | 5 | 136..=143);
    match facts.mode & libc::S_IFMT {
        libc::S_IFCHR if HARMLESS_DEVICES.contains(&facts.device) => None,
        libc::S_IFCHR if terminal => Some((
            format!("is the terminal {path}"),
            "start the program with its input and output redirected, as `whimbrel run` does",
        )),
        libc::S_IFCHR => Some((format!("is the device {path}"), "close the device")),
        libc::S_IFBLK => Some((format!("is the block device {path}"), "close the device")),
        libc::S_IFIFO => Some((
            format!("is the named pipe {path}"),
            "close it; only pipes without a name move",
        )),
        _ if facts.links == 0 || path.ends_with(" (deleted)") => Some((
            format!("is the deleted file {}", path.trim_end_matches(" (deleted)")),
            "close it, or keep the file's name while the program uses it",
        )),
        _ if !facts.named => Some((
            format!("is {path}, a name that leads to another file now"),
            "close it, or put the file back under its name",
        )),
        libc::S_IFREG | libc::S_IFDIR => None,
        _ => Some((format!("is {path}, a file of an unknown type"), "close it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(link: &str, extra: &str) -> Listed {
        let info = FdInfo::parse(format!(
            "pos:\t5\nflags:\t02000002\nmnt_id:\t1\nino:\t77\n{extra}"
        ))
        .unwrap();
        Listed {
            fd: 3,
            link: link.into(),
            info,
        }
    }

    fn sentence(link: &str, mode: u32, links: u64, device: (u32, u32)) -> String {
        let result = classify(9, &listed(link, ""), || {
            Ok(FileFacts {
                mode,
                links,
                device,
                named: true,
            })
        });
        result.map_or_else(|refusal| refusal.to_string(), |class| format!("{class:?}"))
    }

    #[test]
    fn fdinfo_is_read_field_by_field() {
        let listed = listed("/tmp/x", "lock:\t1: FLOCK  ADVISORY  WRITE 1 00:01:2 0 EOF\n");
        assert_eq!(
            (listed.info.flags, listed.info.close_on_exec),
            (libc::O_RDWR, true)
        );
        assert_eq!((listed.info.position, listed.info.inode), (5, 77));
        assert!(listed.info.is_locked());
        let timer = "clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (2, 5)\nit_interval: (0, 7)\n";
        let timer = FdInfo::parse(format!("pos: 0\nflags: 02\n{timer}"))
            .unwrap()
            .timer()
            .unwrap();
        assert_eq!(
            (timer.ticks, timer.remaining_ns, timer.interval_ns),
            (3, 2_000_000_005, 7)
        );
    }

    #[test]
    fn registrations_are_read_in_order() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t16\nino:\t1\ntfd:        5 events:       19 data:         ffffffff000005  pos:0 ino:61af sdev:7\n";
        let read = FdInfo::parse(text.into()).unwrap().registrations().unwrap();
        assert_eq!(
            read,
            [(
                Registration {
                    fd: 5,
                    events: 0x19,
                    data: 0xff_ffff_ff00_0005
                },
                0x61af
            )]
        );
        let broken = "pos:\t0\nflags:\t02\ntfd: x\n";
        assert!(FdInfo::parse(broken.into()).unwrap().registrations().is_none());
    }

    #[test]
    fn kinds_that_move() {
        for (link, class) in [
            ("pipe:[12]", Class::Pipe(12)),
            ("socket:[13]", Class::Socket(13)),
            ("anon_inode:[eventpoll]", Class::Epoll),
            ("/memfd:name (deleted)", Class::Memory),
        ] {
            assert_eq!(classify(9, &listed(link, ""), || unreachable!()).unwrap(), class);
        }
        assert_eq!(sentence("/var/log/x", libc::S_IFREG | 0o644, 1, (0, 0)), "Path");
        assert_eq!(sentence("/dev/null", libc::S_IFCHR, 1, (1, 3)), "Path");
    }

    #[test]
    fn each_kind_that_stays_has_its_sentence() {
        let cases = [
            (
                sentence("/tmp/x (deleted)", libc::S_IFREG, 0, (0, 0)),
                "deleted file /tmp/x",
            ),
            (
                sentence("/dev/pts/3", libc::S_IFCHR, 1, (136, 3)),
                "terminal /dev/pts/3",
            ),
            (
                sentence("/dev/kvm", libc::S_IFCHR, 1, (10, 232)),
                "device /dev/kvm",
            ),
            (
                sentence("/tmp/fifo", libc::S_IFIFO, 1, (0, 0)),
                "named pipe /tmp/fifo",
            ),
            (sentence("/dev/sda", libc::S_IFBLK, 1, (8, 0)), "block device"),
            (sentence("anon_inode:[io_uring]", 0, 1, (0, 0)), "io_uring"),
            (sentence("anon_inode:inotify", 0, 1, (0, 0)), "inotify"),
            (
                sentence("anon_inode:[perf_event]", 0, 1, (0, 0)),
                "performance counter",
            ),
            (sentence("anon_inode:kvm-vcpu:0", 0, 1, (0, 0)), "virtual machine"),
            (sentence("anon_inode:[bpf-map]", 0, 1, (0, 0)), "bpf-map"),
            (sentence("/secretmem (deleted)", 0, 1, (0, 0)), "secret memory"),
        ];
        for (text, part) in cases {
            assert!(
                text.starts_with("descriptor 3 of process 9 ") && text.contains(part),
                "{text}"
            );
        }
        let locked = classify(9, &listed("/tmp/x", "lock:\t1: POSIX\n"), || unreachable!()).unwrap_err();
        assert!(locked.to_string().contains("holds a lock on /tmp/x"), "{locked}");
    }
}
