//! QMP, the machine's monitor (docs/interop/qmp-spec.txt of QEMU): one line of JSON for each command, answer and event, over a
//! unix socket.
//!
//! A monitor talks to one client at a time. Who connects to one that is taken waits for its greeting in vain, which is
//! an error of its own here.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{json, Map, Value};

/// How long a monitor may take for its greeting.
const GREETING_MAX: Duration = Duration::from_secs(3);
/// How long a command may take unless told otherwise. A machine that is being paused waits for its disks.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// The longest line that is taken, in bytes.
const LINE_MAX: usize = 8 << 20;
/// Events that are kept until somebody asks for them; older ones are dropped.
const EVENTS_MAX: usize = 256;

/// What can go wrong with a monitor.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// It cannot be reached.
    #[error("cannot connect to the QEMU monitor {path}: {source}; give the unix socket of a monitor in control mode (-qmp unix:PATH,server=on,wait=off)")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not greet.
    #[error("the QEMU monitor {path} does not answer: somebody else is connected to it, or it is no monitor in control mode; start QEMU with a second one (-qmp unix:PATH,server=on,wait=off)")]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The connection was lost: QEMU has ended, or the connection was closed.
    #[error("the QEMU monitor {path} was lost ({what})")]
    Lost {
        /// The socket.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// A command took too long.
    #[error("the QEMU monitor {path} has not answered {command} for {seconds} s")]
    Late {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A command was refused.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// The class of the error (docs/interop/qmp-spec.txt), such as `GenericError` or `CommandNotFound`.
        class: String,
        /// What QEMU says.
        desc: String,
    },
    /// An answer is not what this command's answer looks like.
    #[error("QEMU's answer to {command} cannot be understood: {what}")]
    Strange {
        /// The command.
        command: String,
        /// What is wrong.
        what: String,
    },
}

type Result<T> = std::result::Result<T, QmpError>;

/// A connection to a machine's monitor.
#[derive(Debug)]
pub struct Qmp {
    path: PathBuf,
    stream: UnixStream,
    /// What has arrived and is no whole line yet.
    pending: Vec<u8>,
    /// How much of it was searched for the end of a line.
    searched: usize,
    events: VecDeque<Value>,
    next_id: u64,
    /// (major, minor, micro).
    version: (u32, u32, u32),
}

impl Qmp {
    /// Connects and ends the negotiation.
    pub fn connect(path: &Path) -> Result<Qmp> {
        let stream = connect(path).map_err(|source| QmpError::Connect {
            path: path.to_owned(),
            source,
        })?;
        let mut qmp = Qmp {
            path: path.to_owned(),
            stream,
            pending: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            next_id: 0,
            version: (0, 0, 0),
        };
        let silent = |error| match error {
            QmpError::Late { path, .. } => QmpError::Silent { path },
            other => other,
        };
        let deadline = Instant::now() + GREETING_MAX;
        let greeting = qmp.line("its greeting", deadline).map_err(silent)?;
        let number = |name: &str| greeting["QMP"]["version"]["qemu"][name].as_u64();
        let (Some(major), Some(minor), Some(micro)) = (number("major"), number("minor"), number("micro"))
        else {
            return Err(QmpError::Silent {
                path: path.to_owned(),
            });
        };
        qmp.version = (major as u32, minor as u32, micro as u32);
        qmp.execute("qmp_capabilities", json!({})).map_err(silent)?;
        Ok(qmp)
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The connection, to look who is at its other end.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The version of QEMU: (major, minor, micro).
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// Runs a command and gives what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_within(command, arguments, ANSWER_MAX)
    }

    /// As [`Qmp::execute`], for commands that may take long.
    pub fn execute_within(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<Value> {
        let id = self.send(command, arguments, &[])?;
        self.answer(command, id, limit)
    }

    /// A command that takes a descriptor (`getfd`, `add-fd`).
    pub fn execute_with_fd(&mut self, command: &str, arguments: Value, fd: BorrowedFd<'_>) -> Result<Value> {
        let id = self.send(command, arguments, &[fd])?;
        self.answer(command, id, ANSWER_MAX)
    }

    /// Sends a command and does not wait for what becomes of it.
    pub fn post(&mut self, command: &str, arguments: Value) -> Result<()> {
        self.send(command, arguments, &[]).map(drop)
    }

    /// A command of the monitor for people (HMP), and its output.
    pub fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        match answer {
            Value::String(text) => Ok(text),
            other => Err(QmpError::Strange {
                command: line.to_owned(),
                what: other.to_string(),
            }),
        }
    }

    /// Events that have arrived since this was asked before.
    pub fn take_events(&mut self) -> Vec<Value> {
        self.events.drain(..).collect()
    }

    fn send(&mut self, command: &str, arguments: Value, fds: &[BorrowedFd<'_>]) -> Result<u64> {
        self.next_id += 1;
        let id = self.next_id;
        let mut request = Map::new();
        request.insert("execute".into(), command.into());
        request.insert("id".into(), id.into());
        if arguments.as_object().is_some_and(|map| !map.is_empty()) {
            request.insert("arguments".into(), arguments);
        }
        let mut bytes = Value::Object(request).to_string().into_bytes();
        bytes.push(b'\n');
        let sent = match fds {
            [] => self.stream.write_all(&bytes),
            fds => self.send_with(&bytes, fds),
        };
        sent.map_err(|error| self.lost(&error.to_string()))?;
        Ok(id)
    }

    fn send_with(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors at once"));
        }
        let sent = sendmsg(
            &self.stream,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::empty(),
        )?;
        self.stream.write_all(bytes.get(sent..).unwrap_or_default())
    }

    /// Waits for the answer to command `id`; what comes in between is kept (events) or was not waited for (other answers).
    fn answer(&mut self, command: &str, id: u64, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let mut line = self.line(command, deadline).map_err(|error| match error {
                QmpError::Late { path, command, .. } => QmpError::Late {
                    path,
                    command,
                    seconds: limit.as_secs(),
                },
                other => other,
            })?;
            if line.get("event").is_some() {
                if self.events.len() == EVENTS_MAX {
                    self.events.pop_front();
                }
                self.events.push_back(line);
                continue;
            }
            if line["id"].as_u64() != Some(id) {
                continue;
            }
            if let Some(error) = line.get("error") {
                let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    class: text("class"),
                    desc: text("desc"),
                });
            }
            return Ok(line["return"].take());
        }
    }

    fn line(&mut self, command: &str, deadline: Instant) -> Result<Value> {
        loop {
            if let Some(line) = self.whole_line() {
                return serde_json::from_slice(&line).map_err(|error| QmpError::Strange {
                    command: command.to_owned(),
                    what: error.to_string(),
                });
            }
            self.more(command, deadline)?;
        }
    }

    fn whole_line(&mut self) -> Option<Vec<u8>> {
        let fresh = self.pending.get(self.searched..).unwrap_or_default();
        let Some(at) = fresh.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.pending.len();
            return None;
        };
        let rest = self.pending.split_off(self.searched + at + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.pending, rest))
    }

    fn more(&mut self, command: &str, deadline: Instant) -> Result<()> {
        let late = || QmpError::Late {
            path: self.path.clone(),
            command: command.to_owned(),
            seconds: 0,
        };
        if self.pending.len() > LINE_MAX {
            return Err(self.lost("a line without end"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        let mut piece = [0; 16 << 10];
        let set = self.stream.set_read_timeout(Some(left));
        match set.and_then(|()| self.stream.read(&mut piece)) {
            Ok(0) => Err(self.lost("its connection was closed; has QEMU ended?")),
            Ok(bytes) => {
                self.pending
                    .extend_from_slice(piece.get(..bytes).unwrap_or_default());
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Err(late()),
            Err(e) => Err(self.lost(&e.to_string())),
        }
    }

    fn lost(&self, what: &str) -> QmpError {
        QmpError::Lost {
            path: self.path.clone(),
            what: what.to_owned(),
        }
    }
}

/// Paths of unix sockets are limited to 107 bytes; a longer one is reached through the descriptor of its directory.
fn connect(path: &Path) -> io::Result<UnixStream> {
    match UnixStream::connect(path) {
        Err(e) if e.kind() == ErrorKind::InvalidInput => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            let name = path.file_name().ok_or(e)?;
            let open = std::fs::File::open(directory)?;
            let number = std::os::fd::AsRawFd::as_raw_fd(&open);
            UnixStream::connect(Path::new(&format!("/proc/self/fd/{number}")).join(name))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":22},"package":""},"capabilities":["oob"]}}"#;

    /// A monitor that says `lines` after each request it reads.
    fn monitor(name: &str, answers: Vec<String>) -> PathBuf {
        let path = std::env::temp_dir().join(format!("whimbrel-qmp-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, "{GREETING}\r").unwrap();
            let mut reader = io::BufReader::new(stream.try_clone().unwrap());
            for answer in answers {
                let mut line = String::new();
                io::BufRead::read_line(&mut reader, &mut line).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        path
    }

    #[test]
    fn events_between_a_command_and_its_answer_are_kept() {
        let ok = r#"{"return":{},"id":1}"#.to_owned() + "\r\n";
        let stop = r#"{"event":"STOP","timestamp":{}}"#.to_owned()
            + "\r\n"
            + r#"{"return":{"status":"paused"},"id":2}"#
            + "\r\n";
        let path = monitor("events", vec![ok, stop]);
        let mut qmp = Qmp::connect(&path).unwrap();
        assert_eq!(qmp.version(), (7, 2, 22));
        assert_eq!(
            qmp.execute("query-status", json!({})).unwrap()["status"],
            "paused"
        );
        assert_eq!(qmp.take_events()[0]["event"], "STOP");
        let lost = qmp.execute("cont", json!({})).unwrap_err().to_string();
        assert!(lost.contains("was lost"), "{lost}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_refusal_names_the_command() {
        let ok = r#"{"return":{},"id":1}"#.to_owned() + "\n";
        let no = r#"{"id":2,"error":{"class":"CommandNotFound","desc":"The command x has not been found"}}"#
            .to_owned()
            + "\n";
        let path = monitor("refusal", vec![ok, no]);
        let mut qmp = Qmp::connect(&path).unwrap();
        let error = qmp.execute("x", json!({"a": 1})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "QEMU refused x: The command x has not been found"
        );
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn who_does_not_greet_is_no_free_monitor() {
        let path = std::env::temp_dir().join(format!("whimbrel-qmp-silent-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let _listener = UnixListener::bind(&path).unwrap();
        let error = Qmp::connect(&path).unwrap_err().to_string();
        assert!(error.contains("somebody else is connected"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = Qmp::connect(&path).unwrap_err().to_string();
        assert!(error.contains("cannot connect"), "{error}");
    }
}
