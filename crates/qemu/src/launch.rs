//! The destination's QEMU: started so that it waits for its state, with a monitor of our own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use whimbrel_kernel::identity::Identity;
use whimbrel_kernel::{pidfd, spawn};

use crate::arguments::{Arguments, BackendKind, Plan};
use crate::device_state::Settings;
use crate::error::{MachineError, Result};
use crate::machine::Machine;
use crate::pager::{self, PagerResources};
use crate::qmp::QmpError;
use crate::running::{file_name, is_qemu, pids};
use crate::source::kill;
use crate::spec::{decode, encode, MachineSpec};

/// How long QEMU may take until its monitor answers: it may allocate all of its memory before.
const START_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long whoever waits for its end waits at once.
const REAP_EVERY: Duration = Duration::from_secs(3600);
/// How much of QEMU's log an error shows, in bytes.
const LOG_TAIL: usize = 600;
/// Files in a machine's directory.
/// A directory that belongs to QEMU's user, if that is not root: only what QEMU makes lies there.
const OWN: &str = "qemu";
const MONITOR: &str = "qemu/monitor";
const QEMU_PID: &str = "qemu/pid";
/// A machine's directory, that of all machines, and that of whimbrel.
const PASSED: usize = 3;
const LOG: &str = "log";
const PID: &str = "pid";
const TROUBLE: &str = "trouble";
/// Ending of the list of memory files, beside the directory.
const LIST: &str = "files";
/// What becomes QEMU, or starts it.
const STARTERS: [&str; 2] = ["setpriv", "sh"];
/// Names of memory files begin with it.
const RAM_PREFIX: &str = "whimbrel-";

/// What is needed to start or discard a machine that arrives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineResources {
    /// Its directory, with monitor and log.
    pub directory: PathBuf,
    /// QEMU, once it was started.
    pub process: Option<Identity>,
    /// Files that its memory was in; they have no name any more when it is ready.
    pub ram_files: Vec<PathBuf>,
    /// It is to run.
    pub running: bool,
    /// The settings of its migration, to be put back.
    pub settings: Option<Settings>,
    /// Pages that come after its start.
    pub pager: Option<PagerResources>,
}

impl MachineResources {
    /// Nothing exists yet.
    pub fn new(directory: PathBuf) -> MachineResources {
        MachineResources {
            directory,
            process: None,
            ram_files: Vec::new(),
            running: false,
            settings: None,
            pager: None,
        }
    }

    /// The socket of our monitor.
    pub fn monitor(&self) -> PathBuf {
        self.directory.join(MONITOR)
    }

    /// QEMU's process as far as anybody knows: a controller may have died right after it had started it.
    fn process(&self) -> Option<Identity> {
        let known = self.process.or_else(|| self.noted()).filter(Identity::is_alive);
        known.or_else(|| self.unnoted())
    }

    fn note(&self, process: Identity) -> Result<()> {
        let path = self.directory.join(PID);
        let text = format!("{} {}\n", process.pid, process.start_time);
        fs::write(&path, text).map_err(MachineError::file("write", path))
    }

    fn noted(&self) -> Option<Identity> {
        let text = fs::read_to_string(self.directory.join(PID)).ok()?;
        let (pid, start_time) = text.trim().split_once(' ')?;
        Some(Identity {
            pid: pid.parse().ok()?,
            start_time: start_time.parse().ok()?,
        })
    }

    /// The monitor that we have named.
    fn is_ours(&self, arguments: &Arguments) -> bool {
        let monitor = self.monitor();
        let monitor = monitor.to_string_lossy();
        arguments
            .words()
            .iter()
            .any(|word| word.contains(monitor.as_ref()))
    }

    /// Of one that nobody came to note.
    fn unnoted(&self) -> Option<Identity> {
        let is_it = |pid: &i32| {
            let arguments = Arguments::of_process(*pid).ok();
            arguments.is_some_and(|arguments| {
                let starts = STARTERS.contains(&file_name(arguments.program()));
                self.is_ours(&arguments) && (starts || is_qemu(*pid, &arguments))
            })
        };
        let pid = pids().into_iter().find(is_it)?;
        Identity::of(pid).ok().filter(Identity::is_alive)
    }

    /// The list of memory files that have a name. It does not lie in the machine's directory, which may be another user's.
    fn list(&self) -> PathBuf {
        self.directory.with_extension(LIST)
    }

    /// Right before they are made: the journal is written only when QEMU answers.
    fn note_ram_files(&self) -> Result<()> {
        match self.ram_files.is_empty() {
            true => Ok(()),
            false => fs::write(self.list(), encode(&self.ram_files))
                .map_err(MachineError::file("write", self.list())),
        }
    }

    /// Without a name they go with whoever has them open.
    fn remove_ram_files(&self) -> Result<()> {
        let listed = fs::read(self.list()).unwrap_or_default();
        // One that was cut off was being written, and no file had been made.
        let listed = decode::<Vec<PathBuf>>("a list of files", &listed).ok().flatten();
        for file in self.ram_files.iter().chain(listed.iter().flatten()) {
            remove(fs::remove_file(file), file)?;
        }
        remove(fs::remove_file(self.list()), &self.list())
    }

    /// Leaves a sentence where the machine's user will look for it.
    pub fn note_trouble(&self, sentence: &str) -> Result<()> {
        let path = self.directory.join(TROUBLE);
        fs::write(&path, sentence).map_err(MachineError::file("write", path))
    }

    /// Ends QEMU and removes what belongs to it. Idempotent.
    pub fn discard(&self) -> Result<()> {
        if let Some(process) = self.process() {
            let pidfd = pidfd::open(process.pid)?;
            if process.is_alive() {
                kill(pidfd.as_fd(), process.pid)?;
            }
        }
        self.remove_ram_files()?;
        remove(fs::remove_dir_all(&self.directory), &self.directory)
    }
}

fn remove(removed: io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(MachineError::file("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Removes the directories of machines that have ended. Those that say why they had to be ended stay until the host is started anew.
///
/// # Errors
/// The directory of machines cannot be read.
pub fn sweep(machines: &Path) -> Result<()> {
    let entries = match fs::read_dir(machines) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(MachineError::file("read", machines)(e)),
    };
    for entry in entries.flatten() {
        let resources = MachineResources::new(entry.path());
        let is_noted = entry.path().join(PID).exists();
        let is_wanted = [TROUBLE, pager::MISSING]
            .iter()
            .any(|file| entry.path().join(file).exists());
        if is_noted && resources.process().is_none() && !is_wanted {
            remove(fs::remove_dir_all(entry.path()), &entry.path())?;
        }
    }
    Ok(())
}

/// Starts the machine that `spec` describes, by the user's `command` or from the source's own command line, and connects to its monitor.
/// `resources` say what exists even on failure.
///
/// # Errors
/// It does not start; what QEMU says about it is in the sentence.
pub fn start(spec: &MachineSpec, command: Option<&str>, resources: &mut MachineResources) -> Result<Machine> {
    let directory = resources.directory.clone();
    let own = directory.join(OWN);
    let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(&own);
    made.map_err(MachineError::file("make", &own))?;
    let (mut start, log) = match command {
        Some(command) => by_command(spec, command, resources)?,
        None => by_arguments(spec, resources)?,
    };
    resources.note_ram_files()?;
    let log_file = File::create(&log).map_err(MachineError::file("make", &log))?;
    let second = log_file.try_clone().map_err(MachineError::file("open", &log))?;
    start.stdin(Stdio::null()).stdout(log_file).stderr(second);
    let mut child = spawn::Setup::new().session().spawn(&mut start)?;
    if let Ok(process) = Identity::of(child.id() as i32) {
        resources.note(process)?;
    }
    let machine = connect(&mut child, resources, &log, command.is_some());
    reap(child)?;
    let machine = machine?;
    resources.process = Some(machine.process);
    resources.note(machine.process)?;
    resources.remove_ram_files()?;
    resources.ram_files.clear();
    Ok(machine)
}

/// It may outlive us, and somebody has to wait for it as long as it does not. Only when it has ended: whoever waits for a child takes what its
/// tracer waits for.
fn reap(mut child: Child) -> Result<()> {
    let Ok(process) = pidfd::open(child.id() as i32) else {
        // It has ended, and was waited for.
        return Ok(());
    };
    let wait = move || {
        while !pidfd::wait_exit(process.as_fd(), REAP_EVERY).unwrap_or(true) {}
        let _ = child.wait();
    };
    let thread = thread::Builder::new().name("machine".into()).spawn(wait);
    thread.map(drop).map_err(MachineError::file("start", "a thread"))
}

fn by_command(spec: &MachineSpec, command: &str, resources: &MachineResources) -> Result<(Command, PathBuf)> {
    let monitor = resources.monitor();
    let text = command.replace("{monitor}", &monitor.to_string_lossy());
    let mut start = Command::new("/bin/sh");
    start.args(["-c", &text]);
    start
        .env("WHIMBREL_MONITOR", &monitor)
        .env("WHIMBREL_MACHINE", &spec.name);
    Ok((start, resources.directory.join(LOG)))
}

/// Another user must get through to what is his. Nothing is listed, and what is secret is readable by root alone.
fn let_pass(directory: &Path) -> Result<()> {
    for one in directory.ancestors().take(PASSED) {
        let known = fs::metadata(one).map_err(MachineError::file("look at", one))?;
        let mode = known.permissions().mode();
        if mode & 0o011 != 0o011 {
            let passable = fs::Permissions::from_mode(mode | 0o011);
            fs::set_permissions(one, passable).map_err(MachineError::file("open", one))?;
        }
    }
    Ok(())
}

fn by_arguments(spec: &MachineSpec, resources: &mut MachineResources) -> Result<(Command, PathBuf)> {
    let arguments = Arguments::parse(spec.arguments.clone());
    let id = resources
        .directory
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut ram_files = BTreeMap::new();
    for backend in arguments
        .memory()
        .into_iter()
        .filter(|backend| backend.kind == BackendKind::File)
    {
        let Some(path) = backend
            .mem_path
            .map(|path| spec.absolute(&path))
            .filter(|path| !path.is_dir())
        else {
            continue;
        };
        let clean: String = backend.id.chars().filter(char::is_ascii_alphanumeric).collect();
        let parent = path.parent().unwrap_or(Path::new("/dev/shm"));
        ram_files.insert(backend.id, parent.join(format!("{RAM_PREFIX}{id}-{clean}")));
    }
    resources.ram_files = ram_files.values().cloned().collect();
    let plan = Plan {
        monitor: resources.monitor(),
        pid_file: resources.directory.join(QEMU_PID),
        ram_files,
    };
    let words = arguments.for_destination(&plan);
    let (user, group, groups) = &spec.owner;
    // One that gives its rights up by itself is started with ours.
    let by_itself = words
        .iter()
        .any(|word| matches!(word.trim_start_matches('-'), "runas" | "run-with"));
    let mut start = match (*user, by_itself) {
        (0, _) | (_, true) => Command::new(arguments.program()),
        _ => {
            let own = resources.directory.join(OWN);
            let owned = std::os::unix::fs::chown(&own, Some(*user), Some(*group));
            owned.map_err(MachineError::file("give away", own))?;
            let_pass(&resources.directory)?;
            let mut start = Command::new("setpriv");
            start
                .arg(format!("--reuid={user}"))
                .arg(format!("--regid={group}"));
            match groups.is_empty() {
                true => start.arg("--clear-groups"),
                false => {
                    let list: Vec<String> = groups.iter().map(u32::to_string).collect();
                    start.arg(format!("--groups={}", list.join(",")))
                }
            };
            start.arg("--").arg(arguments.program());
            start
        }
    };
    start.args(words.get(1..).unwrap_or_default());
    if spec.directory.is_dir() {
        start.current_dir(&spec.directory);
    }
    Ok((start, resources.directory.join(LOG)))
}

/// Waits until the monitor answers, or its process has ended without one.
fn connect(child: &mut Child, resources: &MachineResources, log: &Path, may_end: bool) -> Result<Machine> {
    let deadline = Instant::now() + START_MAX;
    loop {
        let ended = child.try_wait().map_err(MachineError::file("wait for", "QEMU"))?;
        match Machine::attach(&resources.monitor()) {
            Ok(machine) => return Ok(machine),
            Err(MachineError::Qmp(
                QmpError::Connect { .. } | QmpError::Silent { .. } | QmpError::Lost { .. },
            )) => {}
            Err(error) => return Err(error),
        }
        if let Some(status) = ended.filter(|status| !may_end || !status.success()) {
            return Err(MachineError::refused(format!(
                "the destination's QEMU did not start ({status}): {}",
                tail(log)
            )));
        }
        if Instant::now() >= deadline {
            return Err(MachineError::refused(format!(
                "the destination's QEMU has made no monitor at {} for {} s: {}",
                resources.monitor().display(),
                START_MAX.as_secs(),
                tail(log)
            )));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// The last that QEMU wrote, as one line.
pub(crate) fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let last = bytes
        .get(bytes.len().saturating_sub(LOG_TAIL)..)
        .unwrap_or_default();
    let text = String::from_utf8_lossy(last);
    let clean: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    match clean.is_empty() {
        true => "it wrote nothing".to_owned(),
        false => clean.join(" / "),
    }
}

/// The same of a machine.
pub(crate) fn log_tail(resources: &MachineResources) -> String {
    tail(&resources.directory.join(LOG))
}
