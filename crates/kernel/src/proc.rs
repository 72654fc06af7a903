//! The text files of /proc that say what a process is (proc(5), Documentation/filesystems/proc.rst).

use std::fs;
use std::io;

use crate::error::{Error, Result};

/// The whole of `/proc/pid/file`. Names of processes may hold any byte: what is not UTF-8 is replaced.
pub fn text(pid: i32, file: &str) -> Result<String> {
    bytes(pid, file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The whole of `/proc/pid/file`, byte for byte.
pub fn bytes(pid: i32, file: &str) -> Result<Vec<u8>> {
    let path = format!("/proc/{pid}/{file}");
    fs::read(&path).map_err(|e| Error::call(format!("read {path}"), e))
}

fn malformed(pid: i32, file: &str, what: &str) -> Error {
    Error::other(format!(
        "/proc/{pid}/{file} does not show {what} as this version knows it"
    ))
}

/// The numbers of the entries of a directory, sorted; entries that are no numbers are left out.
fn numbers_in(path: &str) -> Result<Vec<i32>> {
    let fail = |e: io::Error| Error::call(format!("list {path}"), e);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Looks at the threads of a process until one shows all of them, or so often.
const LOOKS_MAX: usize = 16;

/// The threads of a process as one look shows them.
///
/// `/proc/pid/task` may lack a thread that lives: while a thread ends on which the listing stands, the one behind it is left
/// out (`proc_task_readdir` of fs/proc/base.c finds its place again by counting).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tasks {
    /// Their numbers in our PID namespace, sorted.
    pub tids: Vec<i32>,
    /// Every thread that there was before the look, and still is, has been seen. False when a thread has ended meanwhile.
    pub is_complete: bool,
}

impl Tasks {
    /// Looks once.
    pub fn look(pid: i32) -> Result<Self> {
        let before = Status::read(pid)?
            .number("Threads")
            .ok_or_else(|| malformed(pid, "status", "its number of threads"))?;
        let mut tids = numbers_in(&format!("/proc/{pid}/task"))?;
        tids.dedup();
        // Whoever is in the list was counted or is newer: with one that was counted and left out it is too short.
        let is_complete = tids.len() as u64 >= before;
        Ok(Self { tids, is_complete })
    }
}

/// Threads of a process in our PID namespace, sorted. All of them, unless they end all the time.
pub fn tasks(pid: i32) -> Result<Vec<i32>> {
    let mut tasks = Tasks::look(pid)?;
    for _ in 1..LOOKS_MAX {
        if tasks.is_complete {
            break;
        }
        tasks = Tasks::look(pid)?;
    }
    Ok(tasks.tids)
}

/// Open descriptors of a process, sorted.
pub fn descriptors(pid: i32) -> Result<Vec<i32>> {
    numbers_in(&format!("/proc/{pid}/fd"))
}

/// Children of all threads of a process (needs CONFIG_PROC_CHILDREN).
pub fn children(pid: i32) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    for tid in tasks(pid)? {
        let list = text(pid, &format!("task/{tid}/children"))?;
        all.extend(
            list.split_whitespace()
                .filter_map(|word| word.parse::<i32>().ok()),
        );
    }
    all.sort_unstable();
    Ok(all)
}

/// `/proc/pid/status`, or that of one of its threads: lines of `Key: value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status(String);

impl Status {
    /// Of a process (its leader).
    pub fn read(pid: i32) -> Result<Self> {
        text(pid, "status").map(Self)
    }

    /// Of a thread.
    pub fn of_thread(pid: i32, tid: i32) -> Result<Self> {
        text(pid, &format!("task/{tid}/status")).map(Self)
    }

    /// What stands behind `key:`.
    pub fn get(&self, key: &str) -> Option<&str> {
        field(&self.0, key)
    }

    /// The first number behind `key:`.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.split_whitespace().next()?.parse().ok()
    }

    /// The number behind `key:` in hexadecimal (signal sets, capabilities).
    pub fn hex(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.get(key)?, 16).ok()
    }

    /// All numbers behind `key:`.
    pub fn numbers(&self, key: &str) -> Vec<i64> {
        let value = self.get(key).unwrap_or("");
        value
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    }

    /// `NSpid`: the number of the task in each PID namespace from ours inwards.
    pub fn namespace_pids(&self) -> Vec<i64> {
        self.numbers("NSpid")
    }
}

/// What stands behind `key:` at the beginning of a line; the whole key has to match ("ID" is not in "ClockID").
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .map(str::trim)
}

/// `/proc/pid/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name, which may hold spaces and brackets.
    pub name: String,
    /// R, S, D, T (stopped), t (traced), Z …
    pub state: char,
    rest: Vec<String>,
}

impl Stat {
    /// Of a process.
    pub fn read(pid: i32) -> Result<Self> {
        Self::parse(&text(pid, "stat")?).ok_or_else(|| malformed(pid, "stat", "its fields"))
    }

    /// Of a thread.
    pub fn of_thread(pid: i32, tid: i32) -> Result<Self> {
        let file = format!("task/{tid}/stat");
        Self::parse(&text(pid, &file)?).ok_or_else(|| malformed(pid, &file, "its fields"))
    }

    fn parse(text: &str) -> Option<Self> {
        let (open, close) = (text.find('(')?, text.rfind(')')?);
        let mut words = text.get(close + 1..)?.split_whitespace();
        Some(Self {
            name: text.get(open + 1..close)?.to_string(),
            state: words.next()?.chars().next()?,
            rest: words.map(str::to_string).collect(),
        })
    }

    /// Field `number` as proc(5) counts (from 4 on).
    pub fn field(&self, number: usize) -> Option<&str> {
        self.rest.get(number.checked_sub(4)?).map(String::as_str)
    }

    /// A field as a number; negative ones in two's complement.
    pub fn number(&self, number: usize) -> Option<u64> {
        let word = self.field(number)?;
        word.parse::<u64>()
            .ok()
            .or_else(|| word.parse::<i64>().ok().map(|n| n as u64))
    }

    /// When the process began, in clock ticks since boot: with the number it names a process for ever.
    pub fn start_time_ticks(&self) -> Option<u64> {
        self.number(22)
    }
}

/// When process `pid` began, in clock ticks since boot; (pid, start time) is never reused.
pub fn start_time_ticks(pid: i32) -> Result<u64> {
    Stat::read(pid)?
        .start_time_ticks()
        .ok_or_else(|| malformed(pid, "stat", "its start time"))
}

/// Whether a task is running, a zombie …; `None` when there is no such thread any more.
pub fn task_state(pid: i32, tid: i32) -> Option<char> {
    Stat::of_thread(pid, tid).ok().map(|stat| stat.state)
}

/// One posix timer of `/proc/pid/timers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The number that timer_create(2) gave.
    pub id: i32,
    /// The signal it sends.
    pub signal: i32,
    /// `sigev_value` of its signal.
    pub value: u64,
    /// `SIGEV_SIGNAL`, `SIGEV_NONE`, `SIGEV_THREAD` (as the kernel knows them: 0, 1, 2).
    pub notify: i32,
    /// The thread that gets the signal (`SIGEV_THREAD_ID`), in our PID namespace.
    pub thread: Option<i32>,
    /// The clock it counts.
    pub clock: i32,
}

/// Posix timers of a process (needs CONFIG_CHECKPOINT_RESTORE).
pub fn timers(pid: i32) -> Result<Vec<Timer>> {
    parse_timers(&text(pid, "timers")?).ok_or_else(|| malformed(pid, "timers", "a timer"))
}

fn parse_timers(text: &str) -> Option<Vec<Timer>> {
    let mut timers: Vec<Timer> = Vec::new();
    for line in text.lines() {
        // "ClockID:" contains "ID:", so the whole key counts.
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        if key == "ID" {
            let id = value.parse().ok()?;
            timers.push(Timer {
                id,
                signal: 0,
                value: 0,
                notify: 0,
                thread: None,
                clock: 0,
            });
            continue;
        }
        let timer = timers.last_mut()?;
        match key {
            "signal" => {
                let (signal, data) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                timer.value = u64::from_str_radix(data.trim_start_matches("0x"), 16)
                    .ok()
                    .unwrap_or(0);
            }
            "notify" => {
                let (kind, target) = value.split_once('/')?;
                timer.notify = match kind {
                    "signal" => libc::SIGEV_SIGNAL,
                    "none" => libc::SIGEV_NONE,
                    "thread" => libc::SIGEV_THREAD,
                    _ => return None,
                };
                timer.thread = target.strip_prefix("tid.").map(str::parse).transpose().ok()?;
            }
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => {}
        }
    }
    Some(timers)
}

/// The auxiliary vector (getauxval(3)): pairs of kind and value, without the final null.
pub fn auxiliary_vector(pid: i32) -> Result<Vec<(u64, u64)>> {
    let bytes = bytes(pid, "auxv")?;
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|chunk| {
            chunk
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        })
        .collect();
    Ok(words
        .chunks_exact(2)
        .filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)))
        .take_while(|pair| pair.0 != 0)
        .collect())
}

/// `/proc/pid/fdinfo/fd`.
pub fn descriptor_info(pid: i32, fd: i32) -> Result<String> {
    text(pid, &format!("fdinfo/{fd}"))
}

/// Where `/proc/pid/link` points to (`exe`, `cwd`, `root`, `fd/3` …), as text.
pub fn link(pid: i32, link: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{link}");
    let target = fs::read_link(&path).map_err(|e| Error::call(format!("read the link {path}"), e))?;
    Ok(target.to_string_lossy().into_owned())
}

/// What identifies a namespace of a process: `kind` is `pid`, `mnt`, `net`, `time`, `user`, `uts`, `ipc`, `cgroup`
/// (or `pid_for_children` …); the text holds the inode number.
pub fn namespace(pid: i32, kind: &str) -> Result<String> {
    link(pid, &format!("ns/{kind}"))
}

/// Offsets of CLOCK_MONOTONIC and CLOCK_BOOTTIME in the time namespace of a process' children, in nanoseconds
/// (time_namespaces(7)).
pub fn clock_offsets_ns(pid: i32) -> Result<(i64, i64)> {
    let text = text(pid, "timens_offsets")?;
    let offset = |name: &str| -> Option<i64> {
        let line = text
            .lines()
            .find(|line| line.split_whitespace().next() == Some(name))?;
        let mut words = line.split_whitespace().skip(1);
        let seconds: i64 = words.next()?.parse().ok()?;
        let nanoseconds: i64 = words.next()?.parse().ok()?;
        seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
    };
    offset("monotonic")
        .zip(offset("boottime"))
        .ok_or_else(|| malformed(pid, "timens_offsets", "the clock offsets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timers_clock_is_not_its_number() {
        let text = "ID: 3\nsignal: 34/0x7f0011223344\nnotify: signal/tid.77\nClockID: 1\n\
                    ID: 4\nsignal: 14/0\nnotify: none/pid.70\nClockID: -6\n";
        let timers = parse_timers(text).unwrap();
        let first = Timer {
            id: 3,
            signal: 34,
            value: 0x7f00_1122_3344,
            notify: libc::SIGEV_SIGNAL,
            thread: Some(77),
            clock: 1,
        };
        assert_eq!(timers.first(), Some(&first));
        assert_eq!(
            timers.get(1).map(|t| (t.id, t.notify, t.clock)),
            Some((4, libc::SIGEV_NONE, -6))
        );
        assert_eq!(parse_timers("what: is this\n"), None);
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = Stat::parse("7 (a) b (c) S 1 7 7 0 -1 4194560").unwrap();
        assert_eq!((stat.name.as_str(), stat.state), ("a) b (c", 'S'));
        assert_eq!((stat.number(4), stat.number(8)), (Some(1), Some(u64::MAX)));
        assert_eq!(Stat::parse("7 (a"), None);
    }

    #[test]
    fn we_see_ourselves() {
        let me = std::process::id() as i32;
        assert!(tasks(me).unwrap().contains(&me));
        assert_eq!(
            Status::read(me).unwrap().namespace_pids().first(),
            Some(&i64::from(me))
        );
        assert!(start_time_ticks(me).unwrap() > 0);
        let page_bytes = auxiliary_vector(me)
            .unwrap()
            .into_iter()
            .find(|pair| pair.0 == libc::AT_PAGESZ);
        assert_eq!(page_bytes.map(|pair| pair.1), Some(4096));
        assert!(namespace(me, "pid").unwrap().starts_with("pid:["));
        assert!(clock_offsets_ns(me).is_ok());
        assert!(descriptors(me).unwrap().contains(&0));
        assert_eq!(tasks(i32::MAX).unwrap_err().errno(), Some(libc::ENOENT));
    }

    #[test]
    fn keys_match_as_a_whole() {
        assert_eq!(field("ClockID: 1\nID: 2\n", "ID"), Some("2"));
        assert_eq!(field("ClockID: 1\n", "ID"), None);
    }
}
