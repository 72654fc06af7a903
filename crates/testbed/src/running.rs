//! A command that runs in a host.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid, Signal};

use crate::error::{Doing, Error, Result};

/// Pause between two looks at something that nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Both outputs of a command, in the order in which they arrived.
#[derive(Debug, Default)]
struct Said {
    text: Mutex<Vec<u8>>,
    more: Condvar,
}

impl Said {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // Bytes are whole at any moment, so a panic elsewhere does not matter.
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.lock()).into_owned()
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its exit code, or `None` if a signal ended it.
    pub code: Option<i32>,
    /// Exit status in words.
    pub status: String,
    /// What it wrote to standard output and standard error.
    pub output: String,
}

impl Finished {
    /// Whether it ended with exit code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// A command that runs in a host. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    command: String,
    host: String,
    // nsenter(1): the parent of the command.
    entered: Child,
    said: Arc<Said>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn new(command: String, host: String, mut entered: Child) -> Self {
        let said = Arc::new(Said::default());
        let readers = [
            entered.stdout.take().map(|pipe| collect(pipe, Arc::clone(&said))),
            entered.stderr.take().map(|pipe| collect(pipe, Arc::clone(&said))),
        ];
        Self {
            command,
            host,
            entered,
            said,
            readers: readers.into_iter().flatten().collect(),
        }
    }

    /// The PID of the command itself, as the machine sees it (not the host).
    pub fn pid(&self) -> Result<u32> {
        let parent = self.entered.id();
        let children = format!("/proc/{parent}/task/{parent}/children");
        self.within(Duration::from_secs(10), "the start of its process", || {
            let children = fs::read_to_string(&children).ok()?;
            children.split_whitespace().next()?.parse().ok()
        })
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        self.said.so_far()
    }

    /// The other end of its standard input; `None` when taken already.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.entered.stdin.take()
    }

    /// Waits for a line of output that holds `part`, and gives that line. Gives up when the command has ended.
    pub fn line_with(&self, part: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut text = self.said.lock();
        loop {
            let found = String::from_utf8_lossy(&text);
            // Only whole lines: the rest of the last one may still be on its way.
            let whole = found.rfind('\n').map_or("", |end| &found[..end]);
            if let Some(line) = whole.lines().find(|line| line.contains(part)) {
                return Ok(line.to_string());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = self.readers.iter().all(JoinHandle::is_finished);
            if ended {
                return Err(self.ended_without(&format!("a line with \"{part}\""), found.into_owned()));
            }
            if left.is_zero() {
                return Err(self.late(&format!("a line with \"{part}\""), limit, found.into_owned()));
            }
            let waited = self
                .said
                .more
                .wait_timeout(text, left.min(LOOK_AGAIN))
                .unwrap_or_else(PoisonError::into_inner);
            text = waited.0;
        }
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        matches!(self.entered.try_wait(), Ok(Some(_)))
    }

    /// Waits for the end.
    pub fn wait(&mut self, limit: Duration) -> Result<Finished> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self
                .entered
                .try_wait()
                .doing(|| format!("cannot wait for `{}`", self.command))?;
            if let Some(status) = status {
                return Ok(self.finished(status));
            }
            if Instant::now() >= deadline {
                return Err(self.late("its end", limit, self.output()));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits for the end; anything but exit code 0 is an error.
    pub fn wait_success(&mut self, limit: Duration) -> Result<Finished> {
        let finished = self.wait(limit)?;
        if finished.success() {
            return Ok(finished);
        }
        let Finished { status, output, .. } = finished;
        Err(Error::Failed {
            command: self.command.clone(),
            host: self.host.clone(),
            status,
            output,
        })
    }

    /// Waits until the command has stopped itself with SIGSTOP. Gives up when it has ended instead.
    pub fn wait_stopped(&self, limit: Duration) -> Result<()> {
        let stat = format!("/proc/{}/stat", self.pid()?);
        let state = || {
            // "pid (name) state ...": the name may hold anything, so look behind its end. Gone is as dead as 'X'.
            let text = fs::read_to_string(&stat).unwrap_or_default();
            text.rsplit_once(") ")
                .and_then(|(_, rest)| rest.chars().next())
                .unwrap_or('X')
        };
        let last = self.within(limit, "its stop", || {
            Some(state()).filter(|state| "TXZ".contains(*state))
        })?;
        match last {
            'T' => Ok(()),
            _ => Err(self.ended_without("stopping itself", self.output())),
        }
    }

    /// Lets a stopped command go on.
    pub fn go_on(&self) -> Result<()> {
        // nsenter stops and continues with its child, so it is told as well.
        self.signal(self.pid()?, Signal::CONT)?;
        self.signal(self.entered.id(), Signal::CONT)
    }

    /// Interrupts the command as Ctrl-C does.
    pub fn interrupt(&self) -> Result<()> {
        self.signal(self.pid()?, Signal::INT)
    }

    /// Kills the command with SIGKILL, stopped or not, and waits for its end.
    pub fn kill(&mut self) -> Result<Finished> {
        self.signal(self.pid()?, Signal::KILL)?;
        self.signal(self.entered.id(), Signal::CONT)?;
        self.wait(Duration::from_secs(10))
    }

    fn signal(&self, pid: u32, signal: Signal) -> Result<()> {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        kill_process(pid, signal)
            .map_err(std::io::Error::from)
            .doing(|| format!("cannot send {signal:?} to `{}`", self.command))
    }

    fn finished(&mut self, status: ExitStatus) -> Finished {
        // A daemon may have inherited the pipes: what has arrived by now is all that is waited for then.
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
            thread::sleep(LOOK_AGAIN);
        }
        Finished {
            code: status.code(),
            status: status.to_string(),
            output: self.output(),
        }
    }

    /// Looks until there is an answer.
    fn within<T>(&self, limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = look() {
                return Ok(answer);
            }
            if Instant::now() >= deadline {
                return Err(self.late(what, limit, self.output()));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn ended_without(&self, what: &str, output: String) -> Error {
        let status = format!("it ended without {what}");
        Error::Failed {
            command: self.command.clone(),
            host: self.host.clone(),
            status,
            output,
        }
    }

    fn late(&self, what: &str, limit: Duration, seen: String) -> Error {
        Error::Late {
            what: format!("`{}` on {}: {what}", self.command, self.host),
            limit,
            seen,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.entered.try_wait() {
            let _ = self.kill();
            let _ = self.entered.kill();
            let _ = self.entered.wait();
        }
    }
}

/// Reads a pipe to its end.
fn collect(mut pipe: impl Read + Send + 'static, said: Arc<Said>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut piece) {
            let _ = said.lock().write_all(piece.get(..count).unwrap_or_default());
            said.more.notify_all();
        }
    })
}
