//! One host: its namespaces, and how to do something in it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use rustix::thread::{move_into_link_name_space, LinkNameSpaceType};

use crate::cgroup::Groups;
use crate::error::{Doing, Error, Result};
use crate::running::{Finished, Running};

/// Commands that only set something up are given this long.
const QUICK: Duration = Duration::from_secs(30);

/// Debian's own programs, not whatever the user's shell finds first.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Moves into the host's cgroups, then enters its namespaces and starts the command. Arguments: the entrances,
/// "--", nsenter(1) and its arguments.
const ENTER: &str = r#"while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@""#;

/// A host, or only a network namespace that plays a client or a switch.
#[derive(Debug)]
pub struct Host {
    name: String,
    // Declared before the groups: they can only be removed when all processes have gone.
    keeper: Keeper,
    groups: Option<Groups>,
}

/// The process that the namespaces belong to. Killed, with all that runs in them, when dropped.
#[derive(Debug)]
struct Keeper {
    unshare: Child,
    pid: u32,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // --kill-child: the death of unshare(1) is the death of PID 1, which is the death of the rest.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(groups) = &self.groups {
            groups.thaw();
        }
    }
}

impl Host {
    /// A whole host, in the network of `neighbour` if there is one. It sees the machine's directory `shared` at
    /// [`SHARED`](crate::SHARED).
    pub(crate) fn whole(
        name: &str,
        group: &str,
        neighbour: Option<&Host>,
        shared: Option<&Path>,
    ) -> Result<Self> {
        let groups = Groups::create(group)?;
        let mut command = enter(&groups);
        let network = match neighbour {
            Some(host) => {
                command.args(["nsenter", &format!("--net=/proc/{}/ns/net", host.pid())]);
                ""
            }
            None => "--net",
        };
        let unshare = "unshare --pid --fork --kill-child --mount --propagation private --uts --ipc --cgroup";
        command
            .args(unshare.split(' ').chain(network.split_terminator(' ')))
            .args(["/bin/bash", "-c", include_str!("host.sh"), "host.sh", name])
            .env("WHIMBREL_TESTBED_CGROUPS", groups.describe())
            .env("WHIMBREL_TESTBED_SHARED", shared.unwrap_or(Path::new("")));
        let keeper = start_keeper(command, name)?;
        Ok(Self {
            name: name.to_string(),
            keeper,
            groups: Some(groups),
        })
    }

    /// Only a network namespace (and a PID namespace, so that it ends with us).
    pub(crate) fn network_only(name: &str) -> Result<Self> {
        let script = r#"read -r pid _ < /proc/self/stat; echo "ready $pid"; while read -r _; do :; done"#;
        let mut command = clean("unshare");
        command.args([
            "--pid",
            "--fork",
            "--kill-child",
            "--net",
            "/bin/bash",
            "-c",
            script,
        ]);
        Ok(Self {
            name: name.to_string(),
            keeper: start_keeper(command, name)?,
            groups: None,
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The PID of its PID 1, as the machine sees it.
    pub(crate) fn pid(&self) -> u32 {
        self.keeper.pid
    }

    /// The names of the cgroups that were made in it.
    pub(crate) fn cgroups(&self) -> Vec<String> {
        self.groups.as_ref().map(Groups::below).unwrap_or_default()
    }

    /// Where the machine sees the file `path` of this host.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let inside = path.as_ref();
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Copies a program into the host, to `/usr/local/bin`, under the name that `program` ends with.
    pub fn install(&self, program: &Path) -> Result<()> {
        let name = program.file_name().unwrap_or(OsStr::new("program"));
        let target = self.path("/usr/local/bin").join(name);
        let copied =
            fs::create_dir_all(self.path("/usr/local/bin")).and_then(|()| fs::copy(program, &target));
        copied
            .map(drop)
            .doing(|| format!("cannot copy {} to {}", program.display(), target.display()))
    }

    /// A command to be run in the host. Its environment holds only PATH, HOME and LANG.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command<'_> {
        let words = words
            .into_iter()
            .map(|word| word.as_ref().to_os_string())
            .collect();
        Command {
            host: self,
            words,
            variables: Vec::new(),
        }
    }

    /// Runs a command that must succeed, and gives its output.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Finished> {
        self.command(words).spawn()?.wait_success(QUICK)
    }

    /// Connects from this host. The stream may be used anywhere afterwards.
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
        self.in_network(|| TcpStream::connect_timeout(&to, limit))?
            .doing(|| format!("cannot connect from {} to {to}", self.name))
    }

    /// Listens in this host. The listener may be used anywhere afterwards.
    pub fn listen(&self, at: SocketAddr) -> Result<TcpListener> {
        self.in_network(|| TcpListener::bind(at))?
            .doing(|| format!("cannot listen on {} at {at}", self.name))
    }

    /// Does something in a thread that has entered the host's network namespace. Sockets stay where they were made.
    pub fn in_network<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T> {
        let enter = self.network_entrance()?;
        let entered = || -> io::Result<T> {
            enter()?;
            Ok(action())
        };
        let outcome = thread::scope(|scope| scope.spawn(entered).join());
        outcome
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
            .doing(|| format!("cannot work in the network of {}", self.name))
    }

    /// What moves the thread that calls it into the host's network namespace, for good.
    pub(crate) fn network_entrance(&self) -> Result<impl FnOnce() -> io::Result<()> + Send + 'static> {
        let path = format!("/proc/{}/ns/net", self.pid());
        let namespace = fs::File::open(&path).doing(|| format!("cannot open {path}"))?;
        Ok(move || {
            let network = Some(LinkNameSpaceType::Network);
            Ok(move_into_link_name_space(namespace.as_fd(), network)?)
        })
    }

    /// Runs a network tool of the machine in the host's network namespace alone (PIDs in its arguments are those of
    /// the machine) and gives its output.
    pub(crate) fn network_tool(&self, line: &str) -> Result<String> {
        let run = || {
            clean("/usr/bin/env")
                .args(line.split_whitespace())
                .stdin(Stdio::null())
                .output()
        };
        let output = self.in_network(run)?.doing(|| format!("cannot start `{line}`"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        Err(Error::Failed {
            command: line.to_string(),
            host: self.name.clone(),
            status: output.status.to_string(),
            output: said + &String::from_utf8_lossy(&output.stderr),
        })
    }

    fn namespaces(&self) -> &'static [&'static str] {
        match self.groups {
            Some(_) => &["--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup"],
            // With a PID namespace the command is a child of nsenter(1): `Running` counts on it.
            None => &["--net", "--pid"],
        }
    }
}

/// A command that is going to run in a host.
#[derive(Debug)]
pub struct Command<'a> {
    host: &'a Host,
    words: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
}

impl Command<'_> {
    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables
            .push((name.as_ref().to_os_string(), value.as_ref().to_os_string()));
        self
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Running> {
        let words: Vec<_> = self.words.iter().map(|word| word.to_string_lossy()).collect();
        let line = words.join(" ");
        let mut command = match &self.host.groups {
            Some(groups) => enter(groups),
            None => clean("/usr/bin/env"),
        };
        command
            .args(["nsenter", "--target", &self.host.pid().to_string()])
            .args(self.host.namespaces());
        command.arg("--").args(&self.words).envs(self.variables);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command
            .spawn()
            .doing(|| format!("cannot start `{line}` on {}", self.host.name))?;
        Ok(Running::new(line, self.host.name.clone(), child))
    }

    /// Runs it to its end, whatever that is.
    pub fn finish(self, limit: Duration) -> Result<Finished> {
        self.spawn()?.wait(limit)
    }
}

/// A command with a clean environment.
fn clean(program: &str) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8");
    command
}

/// A command that starts inside of the groups; the program and its arguments are still to be added.
fn enter(groups: &Groups) -> std::process::Command {
    let mut command = clean("/bin/sh");
    command
        .args(["-c", ENTER, "enter"])
        .args(groups.entrances())
        .arg("--");
    command
}

/// Starts the process that holds the namespaces and waits until it has made them.
fn start_keeper(mut command: std::process::Command, name: &str) -> Result<Keeper> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut unshare = command
        .spawn()
        .doing(|| format!("cannot start unshare(1) for host {name}"))?;
    let mut line = String::new();
    if let Some(stdout) = unshare.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .doing(|| format!("cannot hear from host {name}"))?;
    }
    if let Some(pid) = line
        .strip_prefix("ready ")
        .and_then(|pid| pid.trim().parse().ok())
    {
        return Ok(Keeper { unshare, pid });
    }
    let mut said = String::new();
    if let Some(mut stderr) = unshare.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    let status = unshare
        .wait()
        .map_or_else(|error| error.to_string(), |status| status.to_string());
    Err(Error::Failed {
        command: "unshare".to_string(),
        host: name.to_string(),
        status,
        output: line + &said,
    })
}
