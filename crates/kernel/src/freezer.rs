//! Freezing a process by its control group, so that it stays frozen whoever dies: version 2 (`cgroup.freeze`, kernel
//! document admin-guide/cgroup-v2) or version 1 (`freezer.state`, admin-guide/cgroup-v1/freezer-subsystem).
//!
//! A group is a directory below the one that the process is in already, so that limits set there still hold. It is
//! known by its path alone: whoever cleans up after a dead controller needs nothing else. What is gone already
//! is not an error for `thaw`, `dismiss` and `processes`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long the kernel may take to freeze a group: a thread in an uninterruptible wait (a dead NFS server) never gets there.
pub const FREEZE_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long the last processes of a group may take to disappear after they were killed.
const EMPTY_WAIT_MAX: Duration = Duration::from_secs(5);
/// First and longest pause between two looks.
const PAUSE: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(2));

/// The version of the control group hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `freezer.state` of a hierarchy with the freezer controller.
    V1,
    /// `cgroup.freeze`, Linux 5.2.
    V2,
}

impl Version {
    /// Those that this kernel may have, the better one first: frozen processes of version 2 can be killed.
    pub const ALL: [Version; 2] = [Version::V2, Version::V1];

    fn control(self) -> &'static str {
        match self {
            Version::V1 => "freezer.state",
            Version::V2 => "cgroup.freeze",
        }
    }

    fn order(self, freeze: bool) -> &'static str {
        match (self, freeze) {
            (Version::V1, true) => "FROZEN",
            (Version::V1, false) => "THAWED",
            (Version::V2, true) => "1",
            (Version::V2, false) => "0",
        }
    }
}

/// A control group made to freeze what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    path: PathBuf,
    version: Version,
}

impl Group {
    /// Where the group called `name` for the process will be: below the group in which it is now. Makes nothing.
    pub fn plan(pid: i32, name: &str) -> Result<Self> {
        for version in Version::ALL {
            if let Some(group) = Self::plan_version(version, pid, name)? {
                return Ok(group);
            }
        }
        Err(Error::other(
            "no control group freezer is mounted; mount one with: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ))
    }

    /// As [`Group::plan`], in one version of the hierarchy; `None` if that is not mounted.
    pub fn plan_version(version: Version, pid: i32, name: &str) -> Result<Option<Self>> {
        let mounts = read("/proc/self/mountinfo".as_ref())?;
        let Some(mount) = mounts.lines().find_map(|line| parse_mount(line, version)) else {
            return Ok(None);
        };
        let member = read(format!("/proc/{pid}/cgroup").as_ref())?;
        let below = member
            .lines()
            .find_map(|line| parse_member(line, version))
            .unwrap_or("/");
        let parent = mount.directory(below);
        Ok(Some(Self {
            path: parent.join(name),
            version,
        }))
    }

    /// The group at this path, whether it exists or not.
    pub fn at(path: &Path) -> Self {
        // The parent of a version 1 group, be it the root, has this file; nothing in version 2 has.
        let parent = path.parent().unwrap_or(path);
        let old = parent.join("notify_on_release").exists();
        Self {
            path: path.to_owned(),
            version: if old { Version::V1 } else { Version::V2 },
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the group, empty and thawed.
    pub fn create(&self) -> Result<()> {
        fs::create_dir(&self.path).map_err(|e| self.failed("make", e))
    }

    /// Moves the process with all its threads into the group.
    pub fn add(&self, pid: i32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string()).map_err(|e| {
            Error::call(
                format!(
                    "move process {pid} into the control group {}",
                    self.path.display()
                ),
                e,
            )
        })
    }

    /// The file to which a process writes `0` to move itself into the group.
    pub fn members_file(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// The processes in the group, as the caller's PID namespace numbers them.
    pub fn processes(&self) -> Result<Vec<i32>> {
        match fs::read_to_string(self.members_file()) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(e) if gone(&e) => Ok(Vec::new()),
            Err(e) => Err(self.failed("list", e)),
        }
    }

    /// Freezes everything in the group and returns when all of it is frozen. On failure it is thawed.
    pub fn freeze(&self) -> Result<()> {
        self.order(true)?;
        let reached = wait_until(FREEZE_WAIT_MAX, || self.is_frozen());
        if !matches!(reached, Ok(true)) {
            self.thaw()?;
        }
        if reached? {
            return Ok(());
        }
        Err(Error::other(format!(
            "the control group {} did not freeze within {} s; one of its threads waits in the kernel for a device or a file server",
            self.path.display(),
            FREEZE_WAIT_MAX.as_secs()
        )))
    }

    /// Begins to freeze the group. A thread that waits in the kernel stops when its wait is over.
    pub fn freeze_soon(&self) -> Result<()> {
        self.order(true)
    }

    /// Lets everything in the group run again.
    pub fn thaw(&self) -> Result<()> {
        match self.order(false) {
            Err(_) if !self.path.exists() => Ok(()),
            other => other,
        }
    }

    /// Whether everything in the group is frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        match self.version {
            Version::V1 => Ok(read(&self.path.join("freezer.state"))?.trim() == "FROZEN"),
            Version::V2 => Ok(read(&self.path.join("cgroup.events"))?
                .lines()
                .any(|line| line == "frozen 1")),
        }
    }

    /// Thaws, moves what is in the group back to where it came from, and removes the group.
    pub fn dismiss(&self) -> Result<()> {
        self.thaw()?;
        let parent = Self {
            path: self.path.parent().unwrap_or(&self.path).to_owned(),
            version: self.version,
        };
        wait_until(EMPTY_WAIT_MAX, || {
            for pid in self.processes()? {
                // One that died meanwhile cannot be moved; the next look no longer shows it.
                if let Err(e) = parent.add(pid) {
                    if e.errno() != Some(libc::ESRCH) {
                        return Err(e);
                    }
                }
            }
            self.try_remove()
        })?;
        self.remove()
    }

    /// Thaws and removes the group, whose processes are dead or dying.
    pub fn remove(&self) -> Result<()> {
        self.thaw()?;
        if wait_until(EMPTY_WAIT_MAX, || self.try_remove())? {
            return Ok(());
        }
        Err(Error::other(format!(
            "the control group {} cannot be removed: the processes {:?} are still in it",
            self.path.display(),
            self.processes()?
        )))
    }

    fn try_remove(&self) -> Result<bool> {
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(true),
            Err(e) if gone(&e) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            Err(e) => Err(self.failed("remove", e)),
        }
    }

    fn order(&self, freeze: bool) -> Result<()> {
        self.write(self.version.control(), self.version.order(freeze))
            .map_err(|e| self.failed(if freeze { "freeze" } else { "thaw" }, e))
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        // Not fs::write: that would create a missing file, for which cgroupfs has a misleading EACCES.
        let mut file = fs::OpenOptions::new().write(true).open(self.path.join(file))?;
        io::Write::write_all(&mut file, text.as_bytes())
    }

    fn failed(&self, verb: &str, e: io::Error) -> Error {
        Error::call(format!("{verb} the control group {}", self.path.display()), e)
    }
}

fn gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::call(format!("read {}", path.display()), e))
}

/// Looks until `done` says so, at most that long. Returns what it said last.
fn wait_until(longest: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + longest;
    let mut pause = PAUSE.0;
    while !done()? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
    Ok(true)
}

/// A mounted hierarchy: which of its directories is seen where.
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
}

impl Mount<'_> {
    /// Where the group `below` (as in /proc/PID/cgroup) is seen; the mount point itself for one outside of it.
    fn directory(&self, below: &str) -> PathBuf {
        let relative = if below.starts_with("/..") {
            None
        } else {
            Path::new(below).strip_prefix(self.root).ok()
        };
        Path::new(self.point).join(relative.unwrap_or(Path::new("")))
    }
}

/// One line of /proc/PID/mountinfo, if it mounts a hierarchy that can freeze (man 5 proc).
fn parse_mount(line: &str, version: Version) -> Option<Mount<'_>> {
    let (fields, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    let (kind, _source, options) = (filesystem.next()?, filesystem.next()?, filesystem.next()?);
    let fits = match version {
        Version::V1 => kind == "cgroup" && options.split(',').any(|option| option == "freezer"),
        Version::V2 => kind == "cgroup2",
    };
    let mut fields = fields.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    fits.then_some(Mount { root, point })
}

/// The path in one line of /proc/PID/cgroup, if it is of the hierarchy that can freeze (man 7 cgroups).
fn parse_member(line: &str, version: Version) -> Option<&str> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let fits = match version {
        Version::V1 => controllers.split(',').any(|controller| controller == "freezer"),
        Version::V2 => number == "0" && controllers.is_empty(),
    };
    fits.then_some(path)
}

#[cfg(test)]
mod tests;
