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
use whimbrel_engine::destination::ANSWER_FOR;
use whimbrel_engine::guardian::{take_over, GuardianOptions};
use whimbrel_engine::journal::Role;
use whimbrel_engine::Error;
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
            command.args(["--listener", &listener.as_raw_fd().to_string()]);
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
        answer_for: ANSWER_FOR,
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
