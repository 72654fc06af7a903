//! The guardian of one migration: a process that a controller starts before it makes anything, and that cleans up if the
//! controller dies.
//!
//! The two are joined by a pipe. Its end without the word means that the controller died; then the guardian waits until nothing of
//! it is left (a tracer lets go of its tracees late in its death) before it acts on the journal.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use whimbrel_engine::guardian::{take_over, GuardianOptions};
use whimbrel_engine::journal::Role;
use whimbrel_engine::Error;
use whimbrel_kernel::namespace::terminate;
use whimbrel_kernel::spawn;
use whimbrel_process::container::{Identity, Registry};
use whimbrel_wire::MigrationId;

use crate::args::{End, GuardianArgs};
use crate::host;

/// What a controller says before it closes the pipe when it was not killed.
const SETTLED: &[u8] = b"settled";
/// How long a killed controller may take to disappear.
const DEATH_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long another process may keep the journal until it is left to that.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a guardian waits for the other end of a migration that is decided here: longer than most networks are away.
const SETTLE_FOR: Duration = Duration::from_secs(3600);
/// How long a guardian that only waits may take to make room.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The controller's side.
#[derive(Debug)]
pub struct Guardian {
    pipe: File,
}

impl Guardian {
    /// Starts the guardian of a migration. At the destination it inherits the listening socket, to answer questions.
    pub fn start(
        id: MigrationId,
        end: End,
        link_timeout: Duration,
        listener: Option<&TcpListener>,
    ) -> anyhow::Result<Self> {
        let (theirs, ours) = spawn::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("whimbrel")
            .arg("guardian")
            .arg(id.to_string())
            .arg(end.to_string());
        command.args(["--pipe", &theirs.as_raw_fd().to_string()]);
        command.args(["--controller", &std::process::id().to_string()]);
        command.args(["--link-timeout", &format!("{}us", link_timeout.as_micros())]);
        let mut setup = spawn::Setup::new().session().inherit(theirs.as_fd());
        if let Some(listener) = listener {
            let port = listener
                .local_addr()
                .context("cannot ask for the own address")?
                .port();
            command.args(["--listener", &listener.as_raw_fd().to_string()]);
            command.args(["--port", &port.to_string()]);
            setup = setup.inherit(listener.as_fd());
        }
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = setup.spawn(&mut command).context("cannot start the guardian")?;
        // It may outlive this migration (asking, answering), so somebody else has to wait for it.
        let reap = move || child.wait();
        thread::Builder::new()
            .name("guardian".to_owned())
            .spawn(reap)
            .context("cannot start a thread")?;
        Ok(Self { pipe: ours.into() })
    }

    /// The controller has done what it could: the guardian looks at what is left at once.
    pub fn release(mut self) {
        // If it is gone, the next command does its work.
        let _ = self.pipe.write_all(SETTLED);
    }
}

/// The guardian's own life.
pub fn run(args: &GuardianArgs) -> anyhow::Result<()> {
    let controller = Identity::of(args.controller).ok();
    let mut word = Vec::new();
    let pipe = File::from(spawn::inherited(args.pipe)?);
    let listener = args
        .listener
        .map(spawn::inherited)
        .transpose()?
        .map(TcpListener::from);
    // A controller says a few bytes at most.
    pipe.take(64)
        .read_to_end(&mut word)
        .context("cannot wait for the controller")?;
    if word != SETTLED {
        await_death(controller);
    }
    settle(args, listener.as_ref())
}

fn await_death(controller: Option<Identity>) {
    let deadline = Instant::now() + DEATH_WAIT_MAX;
    while controller.is_some_and(|controller| controller.is_alive()) && Instant::now() < deadline {
        thread::sleep(LOOK_EVERY);
    }
}

fn settle(args: &GuardianArgs, listener: Option<&TcpListener>) -> anyhow::Result<()> {
    let role = match args.end {
        End::Source => Role::Source,
        End::Destination => Role::Destination,
    };
    let never = AtomicBool::new(false);
    let options = GuardianOptions {
        link_timeout: args.link_timeout,
        ask_for: None,
        force_here: false,
        listener,
        answer_for: SETTLE_FOR,
        follow: true,
        cancel: &never,
    };
    let deadline = Instant::now() + BUSY_WAIT_MAX;
    loop {
        match take_over(&host::journals(), args.id, role, &host::recover(), &options) {
            Err(Error::Busy { .. }) if Instant::now() < deadline => thread::sleep(LOOK_EVERY),
            Err(Error::Busy { .. }) => return Ok(()),
            other => {
                // The controller may have died before the journal could say what it was making.
                Registry::of_host().sweep()?;
                return other.map(drop).context("cannot settle the migration");
            }
        }
    }
}

/// Ends the guardians of this host that hold a listening socket with this port to answer questions, so that a new `receive` can have
/// it, which answers them from the journals. Whether there was one.
pub fn make_room(port: u16) -> anyhow::Result<bool> {
    let journals = host::journals();
    // One that fetches the pages of a workload has more to do than to answer.
    let is_idle = |id| !matches!(journals.read(id, Role::Destination), Ok(Some(record)) if record.missing_pages.is_some());
    let waiting = all_processes()?.filter(|pid| {
        Waiting::read(*pid).is_some_and(|w| w.is_only_waiting(port) && w.id.is_none_or(is_idle))
    });
    let guardians: Vec<Identity> = waiting.flat_map(Identity::of).collect();
    guardians.iter().for_each(|guardian| terminate(guardian.pid));
    let deadline = Instant::now() + ROOM_WAIT_MAX;
    while guardians.iter().any(Identity::is_alive) && Instant::now() < deadline {
        thread::sleep(LOOK_EVERY);
    }
    Ok(!guardians.is_empty())
}

fn all_processes() -> anyhow::Result<impl Iterator<Item = i32>> {
    let entries = std::fs::read_dir("/proc").context("cannot list the processes")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// A guardian as its command line shows it.
#[derive(Debug, PartialEq, Eq)]
struct Waiting {
    id: Option<MigrationId>,
    port: u16,
    controller: i32,
}

impl Waiting {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?)
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let words: Vec<&str> = line
            .split(|&byte| byte == 0)
            .flat_map(std::str::from_utf8)
            .collect();
        let after = |name| Some(*words.get(words.iter().position(|word| *word == name)? + 1)?);
        if !words.starts_with(&["whimbrel", "guardian"]) {
            return None;
        }
        Some(Self {
            id: after("guardian")?.parse().ok(),
            port: after("--port")?.parse().ok()?,
            controller: after("--controller")?.parse().ok()?,
        })
    }

    /// Its controller is gone.
    fn is_only_waiting(&self, port: u16) -> bool {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.controller));
        let alive = Identity::of(self.controller).is_ok_and(|controller| controller.is_alive());
        self.port == port && !(alive && name.is_ok_and(|name| name.trim_end() == "whimbrel"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guardian_is_known_by_its_command_line() {
        let line = "whimbrel guardian 0a destination --pipe 9 --controller 665 --listener 3 --port 7440";
        let words = |line: &str| line.replace(' ', "\0").into_bytes();
        assert_eq!(
            Waiting::parse(&words(line)),
            Some(Waiting {
                id: None,
                port: 7440,
                controller: 665
            })
        );
        assert_eq!(
            Waiting::parse(&words("whimbrel guardian 0a source --pipe 9 --controller 665")),
            None
        );
        assert_eq!(
            Waiting::parse(&words("less whimbrel guardian --controller 665 --port 7440")),
            None
        );
        assert_eq!(Waiting::parse(b""), None);
    }

    #[test]
    fn a_guardian_whose_controller_lives_is_left_alone() {
        let gone = Waiting {
            id: None,
            port: 1,
            controller: i32::MAX,
        };
        assert!(gone.is_only_waiting(1) && !gone.is_only_waiting(2));
    }
}
