//! Hears what a guest says on its serial line.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::vm::ticks::{Line, Record, Tick};

/// QEMU throws away what nobody hears, so that its socket is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A reader looks this often whether it shall end.
const LOOK_UP: Duration = Duration::from_millis(50);

/// This many lines are shown when something has not been heard.
const SHOWN: usize = 5;

/// Listens to a serial line in a thread of its own, from the moment when its socket exists until QEMU ends.
#[derive(Debug)]
pub struct Serial {
    path: PathBuf,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<Record>,
    more: Condvar,
    connected: AtomicBool,
    leave: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Record> {
        // The record is whole at any moment, so a panic elsewhere does not matter.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leaving(&self) -> bool {
        self.leave.load(Ordering::Relaxed)
    }
}

impl Serial {
    /// The serial line of the machine called `name` in `host`, which need not exist yet.
    pub fn of(host: &Host, name: &str) -> Self {
        Self::open(&host.path(format!("/run/{name}.ser")))
    }

    /// The serial line behind a socket, which need not exist yet.
    pub fn open(path: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let (target, theirs) = (path.to_path_buf(), Arc::clone(&shared));
        let reader = thread::spawn(move || {
            listen(&target, &theirs);
            theirs.more.notify_all();
        });
        Self {
            path: path.to_path_buf(),
            shared,
            reader: Some(reader),
        }
    }

    /// All that was heard so far.
    pub fn record(&self) -> Record {
        self.shared.lock().clone()
    }

    /// The whole lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.shared.lock().lines.clone()
    }

    /// The ticks so far.
    pub fn ticks(&self) -> Vec<Tick> {
        self.shared.lock().ticks()
    }

    /// Waits until the line is heard: what the guest says from then on is not lost.
    pub fn wait_connected(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.shared.connected.load(Ordering::Relaxed) {
            if Instant::now() >= deadline {
                return Err(Error::Late {
                    what: format!("{}: a connection", self.path.display()),
                    limit,
                    seen: "nothing".to_string(),
                });
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Waits for a tick such as this, from the first one on. Gives up when QEMU has ended.
    pub fn wait_tick(&self, wanted: impl Fn(&Tick) -> bool, limit: Duration) -> Result<Tick> {
        let tick = |line: &Line| Tick::parse(line.at, &line.text).filter(&wanted);
        self.wait_line("a certain tick", tick, limit)
    }

    /// Waits for a line of which `wanted` makes something, from the first one on. Gives up when QEMU has ended.
    pub fn wait_line<T>(
        &self,
        what: &str,
        wanted: impl Fn(&Line) -> Option<T>,
        limit: Duration,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut seen = 0;
        let mut heard = self.shared.lock();
        loop {
            let ended = self.reader.as_ref().is_none_or(JoinHandle::is_finished);
            let mut new = heard.lines.iter().skip(seen);
            if let Some(found) = new.find_map(&wanted) {
                return Ok(found);
            }
            seen = heard.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if ended || left.is_zero() {
                return Err(self.late(what, &heard, ended, limit));
            }
            let waited = self.shared.more.wait_timeout(heard, left.min(LOOK_UP));
            heard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn late(&self, what: &str, heard: &Record, ended: bool, limit: Duration) -> Error {
        let from = heard.lines.len().saturating_sub(SHOWN);
        let mut seen: Vec<&str> = heard.lines.iter().skip(from).map(|line| &*line.text).collect();
        seen.push(&heard.rest);
        seen.extend(ended.then_some("(QEMU has ended)"));
        Error::Late {
            what: format!("{}: {what}", self.path.display()),
            limit,
            seen: seen.join("\n"),
        }
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.shared.leave.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Connects as soon as possible and reads to the end.
fn listen(path: &Path, shared: &Shared) {
    let mut line = loop {
        match UnixStream::connect(path) {
            Ok(line) => break line,
            Err(_) if shared.leaving() => return,
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    };
    shared.connected.store(true, Ordering::Relaxed);
    if line.set_read_timeout(Some(LOOK_UP)).is_err() {
        return;
    }
    let mut piece = [0; 4096];
    while !shared.leaving() {
        match line.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => {
                let bytes = piece.get(..count).unwrap_or_default();
                shared.lock().hear(Instant::now(), bytes);
                shared.more.notify_all();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return,
        }
    }
}
