//! The first process of a container: the same binary, called with the arguments `init FD`.
//!
//! It begins as a launcher outside, with one thread: leaves for new namespaces, forks PID 1 and ends. PID 1 does what the
//! controller asks for, reaps, notes how the workload ended, and ends with it.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Stdio};

use whimbrel_kernel::freezer::Group;
use whimbrel_kernel::namespace::{self, Children, ClockOffsets, Ended, Fork, Kinds};
use whimbrel_kernel::spawn;

use super::control::{Channel, Reply, Request, Run, Setup};
use super::registry::note_exit;
use super::{Error, Exit, Result};

/// What the shell uses for a command that a signal ended.
const SIGNAL_EXIT_BASE: i32 = 128;

/// Runs as launcher and as PID 1. `fd` is the inherited end of the connection to the controller. Returns the exit code of
/// whichever of the two it is.
pub fn main(fd: RawFd) -> i32 {
    let mut control = match spawn::inherited(fd) {
        Ok(fd) => Channel::inherited(fd),
        Err(_) => return 1, // nobody to tell
    };
    launch(&mut control).unwrap_or_else(|e| {
        // If the controller is gone as well, nobody is left to tell.
        let _ = control.send(&Reply::Failed {
            sentence: e.to_string(),
        });
        1
    })
}

fn launch(control: &mut Channel) -> Result<i32> {
    let Request::Setup(setup) = receive(control)? else {
        return Err(Error::Init(
            "the first request to init was not the setup".to_owned(),
        ));
    };
    let kinds = Kinds::PID.and(Kinds::MOUNT).and(Kinds::TIME).and(Kinds::UTS);
    namespace::unshare(if setup.network {
        kinds.and(Kinds::NETWORK)
    } else {
        kinds
    })?;
    if let Some((monotonic_ns, boottime_ns)) = setup.offsets_ns {
        ClockOffsets {
            monotonic_ns,
            boottime_ns,
        }
        .apply()?;
    }
    let (gate, opener) = spawn::pipe()?;
    match namespace::fork()? {
        Fork::Parent(pid) => {
            send(control, &Reply::Launched { pid })?;
            let proceed = receive(control).map(|_| 0);
            drop(opener);
            proceed
        }
        Fork::Child => {
            drop(opener);
            await_end(gate);
            Init::begin(control, setup)?.serve(control)
        }
    }
}

/// Until the launcher has ended only one process may read from the connection.
fn await_end(gate: OwnedFd) {
    // Whatever is read, or not: the launcher is done.
    let _ = std::fs::File::from(gate).read(&mut [0]);
}

/// PID 1.
struct Init {
    setup: Setup,
    children: Children,
    /// The workload's first process.
    main: Option<i32>,
    /// Whether the end of the controller is not the end of everything.
    survives: bool,
    /// Held for whoever comes after a dead controller; nothing here reads them.
    kept: Vec<OwnedFd>,
}

impl Init {
    fn begin(control: &mut Channel, setup: Setup) -> Result<Self> {
        namespace::new_session()?;
        namespace::private_proc()?;
        namespace::set_hostname(&setup.hostname)?;
        let children = Children::watch()?;
        send(control, &Reply::Ready)?;
        Ok(Self {
            setup,
            children,
            main: None,
            survives: false,
            kept: Vec::new(),
        })
    }

    fn serve(mut self, control: &mut Channel) -> Result<i32> {
        let mut connected = true;
        loop {
            if let Some(ended) = self.reap() {
                return Ok(self.finish(ended));
            }
            let readable = self
                .children
                .wait_or_readable(connected.then_some(control.as_fd()))?;
            if self.children.let_go() {
                self.kept.clear();
            }
            if readable {
                let answered = match control.receive() {
                    Ok(request) => self.answer(control, request),
                    Err(e) => Err(Error::Init(e.to_string())),
                };
                match answered {
                    Ok(()) => {}
                    Err(_) if self.survives => connected = false,
                    Err(_) => return Ok(1),
                }
            }
        }
    }

    /// How the workload ended, if it has. As long as the controller may still look for its number, nothing is reaped.
    fn reap(&mut self) -> Option<Ended> {
        if !self.survives {
            return None;
        }
        loop {
            let (pid, ended) = self.children.reap()?;
            if Some(pid) == self.main {
                return Some(ended);
            }
        }
    }

    fn answer(&mut self, control: &mut Channel, request: Request) -> Result<()> {
        let reply = match self.carry_out(control, request) {
            Ok(reply) => reply,
            Err(e) => Reply::Failed {
                sentence: e.to_string(),
            },
        };
        send(control, &reply)
    }

    fn carry_out(&mut self, control: &Channel, request: Request) -> Result<Reply> {
        match request {
            Request::Run(_) | Request::Stub { .. } if self.main.is_some() => {
                Err(Error::Init("the container has its workload already".to_owned()))
            }
            Request::Run(run) => self.run(&run),
            Request::Stub { pid } => self.stub(pid),
            Request::Survive => {
                self.survives = true;
                Ok(Reply::Done)
            }
            Request::Keep => {
                let fd = control.receive_descriptor()?;
                let number = fd.as_raw_fd();
                self.kept.push(fd);
                Ok(Reply::Kept { number })
            }
            Request::Drop { number } => {
                self.kept.retain(|fd| fd.as_raw_fd() != number);
                Ok(Reply::Done)
            }
            Request::Setup(_) | Request::Proceed => {
                Err(Error::Init("the container is set up already".to_owned()))
            }
        }
    }

    fn run(&mut self, run: &Run) -> Result<Reply> {
        let mut command = command(run)?;
        let members = self.group().members_file();
        let child = spawn::Setup::new()
            .session()
            .group(&members)?
            .spawn(&mut command)?;
        Ok(self.started(child.id() as i32))
    }

    fn stub(&mut self, pid: i32) -> Result<Reply> {
        namespace::spawn_idle(pid)?;
        self.group().add(pid)?;
        Ok(self.started(pid))
    }

    fn started(&mut self, pid: i32) -> Reply {
        self.main = Some(pid);
        Reply::Started { pid }
    }

    fn group(&self) -> Group {
        Group::at(&self.setup.group)
    }

    /// The workload has ended. What it left running ends with the namespace, which ends with us.
    fn finish(self, ended: Ended) -> i32 {
        namespace::kill_all_others();
        let (exit, code) = match ended {
            Ended::Exited(code) => (Exit::Exited(code), code),
            Ended::Killed(signal) => (Exit::Killed(signal), SIGNAL_EXIT_BASE + signal),
        };
        // Neither can be told to anybody from here; the next command finds what is left.
        let _ = note_exit(&self.setup.directory, exit);
        let _ = self.group().remove();
        code
    }
}

fn command(run: &Run) -> Result<Command> {
    let text = |bytes: &Vec<u8>| OsString::from_vec(bytes.clone());
    let Some((program, arguments)) = run.arguments.split_first() else {
        return Err(Error::Init("there is no command to run".to_owned()));
    };
    let log = open_log(&run.log)?;
    let errors = log
        .try_clone()
        .map_err(|e| Error::file("open the log", &run.log, e))?;
    let mut command = Command::new(text(program));
    command
        .args(arguments.iter().map(text))
        .current_dir(&run.directory)
        .env_clear();
    command.envs(
        run.environment
            .iter()
            .map(|(name, value)| (text(name), text(value))),
    );
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    Ok(command)
}

fn open_log(path: &Path) -> Result<std::fs::File> {
    OpenOptions::new()
        .append(true)
        .open(path)
        .map_err(|e| Error::file("open the log", path, e))
}

fn send(control: &mut Channel, reply: &Reply) -> Result<()> {
    control
        .send(reply)
        .map_err(|e| Error::Init(format!("init cannot speak to its controller: {e}")))
}

fn receive(control: &mut Channel) -> Result<Request> {
    control
        .receive()
        .map_err(|e| Error::Init(format!("init cannot hear its controller: {e}")))
}
