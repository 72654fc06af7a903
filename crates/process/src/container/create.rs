//! Making a container, and what the controller does with it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use whimbrel_kernel::freezer::Group;
use whimbrel_kernel::namespace::{self, ClockOffsets};
use whimbrel_kernel::netlink::Mac;
use whimbrel_kernel::{pidfd, proc, spawn};

use super::control::{Channel, Reply, Request, Run, Setup};
use super::network::{self, HostNetwork};
use super::registry::now;
use super::{
    random, random_hex, Address, ContainerSpec, Entry, Error, Identity, NetworkResources, NetworkSpec, Phase,
    Registry, Resources, Result,
};

/// How long init may take for an answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Name of the interface that a new workload sees.
const INTERFACE: &str = "eth0";

/// Choices of this host, which do not travel.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that becomes init when it is called with the arguments `init FD`.
    pub program: PathBuf,
    /// The bridge for the workload's network, if the user named one.
    pub bridge: Option<String>,
    /// Where the workloads of this host are listed.
    pub registry: Registry,
    /// Whether the network stays cut off until [`super::unlock`].
    pub locked: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            bridge: None,
            registry: Registry::of_host(),
            locked: false,
        }
    }
}

/// A command line to run.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// Program and arguments.
    pub arguments: Vec<OsString>,
    /// Environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory.
    pub directory: PathBuf,
}

/// A process of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its number in the controller's PID namespace.
    pub pid: i32,
    /// Its number in the container's PID namespace.
    pub namespace_pid: i32,
}

impl NetworkSpec {
    /// For a new workload with these addresses: a random MAC address; MTU and default routes as the bridge suggests.
    pub fn new(addresses: Vec<Address>, bridge: Option<&str>) -> Result<Self> {
        let host = HostNetwork::read()?;
        let bridge = host.choose_bridge(bridge, &addresses)?;
        Ok(Self {
            interface: INTERFACE.to_owned(),
            mac: random_mac()?,
            mtu: bridge.mtu,
            routes: host.default_routes(bridge.index, &addresses),
            addresses,
        })
    }
}

/// Locally administered, of one interface (IEEE 802-2014, 8.4).
fn random_mac() -> Result<Mac> {
    let mut mac: Mac = random()?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

/// A container whose names are chosen. Nothing of it exists yet, so that they can be written down before.
#[derive(Debug)]
pub struct Plan {
    spec: ContainerSpec,
    options: Options,
    resources: Resources,
}

impl Plan {
    /// Chooses, and refuses what cannot be made here.
    pub fn new(spec: &ContainerSpec, options: &Options) -> Result<Self> {
        spec.validate()?;
        options.registry.check_free(&spec.name)?;
        let tag = random_hex::<4>()?;
        let me = std::process::id() as i32;
        let network = spec
            .network
            .as_ref()
            .map(|network| plan_network(network, options, &tag))
            .transpose()?;
        let resources = Resources {
            name: spec.name.clone(),
            directory: options.registry.directory(&spec.name),
            group: Group::plan(me, &format!("whimbrel-{tag}"))?.path().to_owned(),
            init: None,
            network,
        };
        Ok(Self {
            spec: spec.clone(),
            options: options.clone(),
            resources,
        })
    }

    /// What will have to be removed if we die while it is made.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }
}

fn plan_network(spec: &NetworkSpec, options: &Options, tag: &str) -> Result<NetworkResources> {
    let host = HostNetwork::read()?;
    let bridge = host.choose_bridge(options.bridge.as_deref(), &spec.addresses)?;
    Ok(NetworkResources {
        port: format!("wh-{tag}"),
        bridge: bridge.name.clone(),
        interface: spec.interface.clone(),
        mac: spec.mac,
        addresses: spec.addresses.clone(),
    })
}

/// A container that exists. Dropping it ends it, unless [`Container::survive`] was called; what is left then is removed
/// by [`super::end`].
#[derive(Debug)]
pub struct Container {
    spec: ContainerSpec,
    registry: Registry,
    resources: Resources,
    control: Arc<Mutex<Channel>>,
}

/// PID 1 of a container as somebody who holds descriptors for whoever comes after a dead controller.
#[derive(Clone, Debug)]
pub struct Keeper {
    /// Only the container's own controller has it.
    control: Option<Arc<Mutex<Channel>>>,
    init: Identity,
}

impl Keeper {
    /// Of a container that somebody else has made.
    pub fn of(init: Identity) -> Keeper {
        Keeper { control: None, init }
    }

    /// Has a duplicate of `fd` kept; gives its number there. `None`: nobody can be asked.
    pub fn keep(&self, fd: BorrowedFd<'_>) -> Result<Option<i32>> {
        let Some(control) = &self.control else {
            return Ok(None);
        };
        let mut control = lock(control);
        say(&mut control, &Request::Keep)?;
        control.send_descriptor(fd)?;
        match receive(&mut control, "keep a descriptor")? {
            Reply::Kept { number } => Ok(Some(number)),
            other => Err(unexpected(&other)),
        }
    }

    /// Has one of them closed, if somebody can be asked.
    pub fn drop_one(&self, number: i32) -> Result<()> {
        let Some(control) = &self.control else {
            return Ok(());
        };
        let mut control = lock(control);
        say(&mut control, &Request::Drop { number })?;
        receive(&mut control, "close a descriptor").map(drop)
    }

    /// A duplicate of what is kept under this number.
    pub fn fetch(&self, number: i32) -> Result<OwnedFd> {
        let process = pidfd::open(self.init.pid)?;
        if !self.init.is_alive() {
            return Err(Error::Init("the container's init has ended".to_owned()));
        }
        Ok(pidfd::getfd(process.as_fd(), number)?)
    }

    /// Has all of them closed.
    pub fn drop_all(&self) -> Result<()> {
        let process = match pidfd::open(self.init.pid) {
            Ok(process) if self.init.is_alive() => process,
            _ => return Ok(()), // they went with it
        };
        match pidfd::send_signal(process.as_fd(), namespace::LET_GO) {
            Err(_) if !self.init.is_alive() => Ok(()),
            sent => Ok(sent?),
        }
    }
}

/// Nobody leaves a message half said.
fn lock(control: &Mutex<Channel>) -> MutexGuard<'_, Channel> {
    control.lock().unwrap_or_else(PoisonError::into_inner)
}

fn say(control: &mut Channel, request: &Request) -> Result<()> {
    control.send(request).map_err(|e| init_failed("speak to init", e))
}

impl Container {
    /// Makes what was planned, with its clocks ahead by `offsets`. On failure nothing is left.
    pub fn create(plan: Plan, offsets: Option<ClockOffsets>) -> Result<Self> {
        let resources = plan.resources.clone();
        plan.options.registry.reserve(&resources.name)?;
        // Listed before anything else is made, so that it is found if we die.
        let built = note(
            &plan.options.registry,
            &plan.spec,
            &resources,
            Phase::Arriving,
            None,
        );
        built.and_then(|()| Self::build(plan, offsets)).inspect_err(|_| {
            // The first failure is the one to tell; this one would only repeat it.
            let _ = super::end(&resources);
        })
    }

    fn build(plan: Plan, offsets: Option<ClockOffsets>) -> Result<Self> {
        let Plan {
            mut spec,
            options,
            mut resources,
        } = plan;
        Group::at(&resources.group).create()?;
        let (mut control, theirs) =
            Channel::pair().map_err(|e| init_failed("make the sockets for init", e))?;
        control
            .limit(ANSWER_WAIT_MAX)
            .map_err(|e| init_failed("limit the wait for init", e))?;
        let mut launcher = start_launcher(&options.program, &theirs)?;
        drop(theirs); // so that the end of init is the end of the connection
        let launched = launch(&mut control, &spec, &resources, offsets);
        if launched.is_err() {
            // It ends by itself when the connection does, but must be waited for.
            let _ = launcher.kill();
        }
        let waited = launcher
            .wait()
            .map_err(|e| init_failed("wait for the launcher of init", e));
        resources.init = Some(launched?);
        waited?;
        spec.log = Some(options.registry.log(&spec.name));
        let container = Self {
            spec,
            registry: options.registry,
            resources,
            control: Arc::new(Mutex::new(control)),
        };
        container.finish(options.locked)
    }

    fn finish(mut self, locked: bool) -> Result<Self> {
        match self.answer("begin")? {
            Reply::Ready => {}
            other => return Err(unexpected(&other)),
        }
        if let (Some(spec), Some(network), Some(init)) =
            (&self.spec.network, &self.resources.network, self.resources.init)
        {
            network::join(spec, network, init.pid, locked)?;
        }
        self.note(Phase::Arriving, None)?;
        Ok(self)
    }

    /// Its description; the log is where it is on this host.
    pub fn spec(&self) -> &ContainerSpec {
        &self.spec
    }

    /// What has to be removed in the end.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Its control group, which holds the workload but not init.
    pub fn group(&self) -> Group {
        Group::at(&self.resources.group)
    }

    /// The file that the workload's output is added to.
    pub fn log_path(&self) -> PathBuf {
        self.registry.log(&self.spec.name)
    }

    /// A namespace of init (and so of the workload); `kind` is a file name in /proc/PID/ns.
    pub fn namespace(&self, kind: &str) -> Result<OwnedFd> {
        let init = self.init()?;
        Ok(namespace::open(init.pid, kind)?)
    }

    /// Starts the workload.
    pub fn run(&mut self, command: &Command) -> Result<Started> {
        let bytes = |text: &OsString| text.clone().into_vec();
        let request = Request::Run(Run {
            arguments: command.arguments.iter().map(bytes).collect(),
            environment: command
                .environment
                .iter()
                .map(|(name, value)| (bytes(name), bytes(value)))
                .collect(),
            directory: command.directory.clone(),
            log: self.log_path(),
        });
        self.start(&request)
    }

    /// Makes the process that will become the workload: idle, without file descriptors, all signals blocked, with this
    /// number in the container's PID namespace.
    pub fn spawn_stub(&mut self, namespace_pid: i32) -> Result<Started> {
        if namespace_pid < 2 {
            return Err(Error::refused(format!(
                "the process has the number {namespace_pid} in its PID namespace, which init has to have at the destination"
            )));
        }
        self.start(&Request::Stub { pid: namespace_pid })
    }

    fn start(&mut self, request: &Request) -> Result<Started> {
        self.say(request)?;
        match self.answer("start a process")? {
            Reply::Started { pid } => {
                let started = Started {
                    pid: self.host_pid(pid)?,
                    namespace_pid: pid,
                };
                self.note(Phase::Arriving, Some(started.pid))?;
                Ok(started)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Among the children of init, which reaps none before [`Container::survive`], the one with this number inside.
    fn host_pid(&self, namespace_pid: i32) -> Result<i32> {
        let init = self.init()?;
        let inside = |pid: &i32| namespace_pid_of(*pid) == Some(namespace_pid);
        proc::children(init.pid)?.into_iter().find(inside).ok_or_else(|| {
            Error::Init(format!(
                "process {namespace_pid} of the container is gone; somebody killed its init"
            ))
        })
    }

    fn init(&self) -> Result<Identity> {
        self.resources
            .init
            .ok_or_else(|| Error::Init("the container has no init".to_owned()))
    }

    /// From here on the container outlives us.
    pub fn survive(&mut self) -> Result<()> {
        // Somebody else may have a descriptor kept at the same time.
        let mut control = lock(&self.control);
        say(&mut control, &Request::Survive)?;
        match receive(&mut control, "outlive its controller")? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Lists the workload as running here.
    pub fn note_running(&self, pid: i32) -> Result<()> {
        self.note(Phase::Running, Some(pid))
    }

    fn note(&self, phase: Phase, pid: Option<i32>) -> Result<()> {
        note(&self.registry, &self.spec, &self.resources, phase, pid)
    }

    fn say(&mut self, request: &Request) -> Result<()> {
        say(&mut lock(&self.control), request)
    }

    fn answer(&mut self, what: &str) -> Result<Reply> {
        receive(&mut lock(&self.control), what)
    }

    /// Its PID 1, to keep descriptors.
    pub fn keeper(&self) -> Result<Keeper> {
        Ok(Keeper {
            control: Some(self.control.clone()),
            init: self.init()?,
        })
    }
}

fn note(
    registry: &Registry,
    spec: &ContainerSpec,
    resources: &Resources,
    phase: Phase,
    pid: Option<i32>,
) -> Result<()> {
    registry.put(&Entry {
        spec: spec.clone(),
        resources: resources.clone(),
        phase,
        process: pid.map(Identity::of).transpose()?,
        creator: Identity::of(std::process::id() as i32)?,
        since: now(),
        exit: None,
    })
}

fn start_launcher(program: &Path, theirs: &Channel) -> Result<Child> {
    let mut command = std::process::Command::new(program);
    command
        .arg0("whimbrel")
        .arg("init")
        .arg(theirs.as_fd().as_raw_fd().to_string());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/");
    Ok(spawn::Setup::new()
        .inherit(theirs.as_fd())
        .session()
        .spawn(&mut command)?)
}

/// Has the namespaces made. Init exists when this returns, and waits until its launcher has ended.
fn launch(
    control: &mut Channel,
    spec: &ContainerSpec,
    resources: &Resources,
    offsets: Option<ClockOffsets>,
) -> Result<Identity> {
    let setup = Setup {
        offsets_ns: offsets.map(|offsets| (offsets.monotonic_ns, offsets.boottime_ns)),
        network: spec.network.is_some(),
        hostname: spec.hostname.clone(),
        directory: resources.directory.clone(),
        group: resources.group.clone(),
    };
    control
        .send(&Request::Setup(setup))
        .map_err(|e| init_failed("speak to init", e))?;
    match receive(control, "make the namespaces")? {
        Reply::Launched { pid } => {
            let init = Identity::of(pid)?;
            control
                .send(&Request::Proceed)
                .map_err(|e| init_failed("speak to init", e))?;
            Ok(init)
        }
        other => Err(unexpected(&other)),
    }
}

fn receive(control: &mut Channel, what: &str) -> Result<Reply> {
    match control.receive() {
        Ok(Reply::Failed { sentence }) => Err(Error::Init(sentence)),
        Ok(reply) => Ok(reply),
        Err(e) => Err(init_failed(&format!("have init {what}"), e)),
    }
}

fn init_failed(what: &str, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            Error::Init(format!("cannot {what}: it has ended"))
        }
        io::ErrorKind::WouldBlock => Error::Init(format!(
            "cannot {what}: no answer in {} s",
            ANSWER_WAIT_MAX.as_secs()
        )),
        _ => Error::Init(format!("cannot {what}: {e}")),
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::Init(format!("init answered {reply:?}, which was not the question"))
}

/// The number that a process has in its innermost PID namespace.
fn namespace_pid_of(pid: i32) -> Option<i32> {
    let numbers = proc::Status::read(pid).ok()?.namespace_pids();
    numbers.last().and_then(|&number| i32::try_from(number).ok())
}
