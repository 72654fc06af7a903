//! Which workloads there are on this host: a directory each, with its entry, its log and, when it has ended, how.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{de::DeserializeOwned, Deserialize, Serialize};

use super::{ContainerSpec, Error, Identity, Resources, Result};

/// Where everything of ours lives that ends with the machine.
const RUN_DIRECTORY: &str = "/run/whimbrel";
/// How often a directory that somebody else removes at the same time is made again.
const RESERVE_TRIES_MAX: u32 = 10;
const ENTRY: &str = "meta.json";
const EXIT: &str = "exit.json";
const LOG: &str = "log";
const TROUBLE: &str = "trouble";

/// What is known of one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its container.
    pub spec: ContainerSpec,
    /// What it consists of here.
    pub resources: Resources,
    /// How far it is.
    pub phase: Phase,
    /// The workload's first process, once there is one.
    pub process: Option<Identity>,
    /// The controller that made it. When it died before the container was complete, nobody else knows what it made.
    pub creator: Identity,
    /// When it began to run here, in seconds since 1970.
    pub since: u64,
    /// How it ended, if it has.
    #[serde(skip)]
    pub exit: Option<Exit>,
}

/// How far a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is on its way to here.
    Arriving,
    /// It runs here.
    Running,
    /// It has ended; its log is still here.
    Ended,
}

/// How a workload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// It returned this code.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
}

/// The workloads of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    root: PathBuf,
}

impl Registry {
    /// Of this host: below `/run/whimbrel`, or below `$WHIMBREL_RUN_DIR` if that is set.
    pub fn of_host() -> Self {
        Self {
            root: Self::run_directory().join("workloads"),
        }
    }

    /// In another directory.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Where everything of ours lives that ends with the machine: workloads, journals.
    pub fn run_directory() -> PathBuf {
        std::env::var_os("WHIMBREL_RUN_DIR").map_or_else(|| RUN_DIRECTORY.into(), PathBuf::from)
    }

    /// The directory of a workload.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The log of a workload.
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory(name).join(LOG)
    }

    /// All workloads, by name.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let names = match fs::read_dir(&self.root) {
            Ok(directory) => directory,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::file("list", &self.root, e)),
        };
        let mut entries = Vec::new();
        for name in names {
            let name = name.map_err(|e| Error::file("list", &self.root, e))?.file_name();
            if let Some(entry) = name.to_str().map(|name| self.get(name)).transpose()?.flatten() {
                entries.push(entry);
            }
        }
        entries.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        Ok(entries)
    }

    /// The workload with this name, if there is one.
    pub fn get(&self, name: &str) -> Result<Option<Entry>> {
        if name.contains('/') || name.starts_with('.') {
            return Ok(None); // no workload can be called so, and it would lead to another directory
        }
        let directory = self.directory(name);
        let Some(mut entry) = read_json::<Entry>(&directory.join(ENTRY))? else {
            return Ok(None);
        };
        let alive = entry
            .process
            .or(entry.resources.init)
            .is_some_and(|process| process.is_alive());
        // Before it has an init, only its creator knows what is to come.
        let begins = entry.resources.init.is_none() && entry.creator.is_alive();
        if !alive && !begins {
            entry.phase = Phase::Ended;
            entry.exit = read_json(&directory.join(EXIT))?;
        }
        Ok(Some(entry))
    }

    /// The running workload that has this name, or this process.
    pub fn find(&self, workload: &str) -> Result<Option<Entry>> {
        let Ok(pid) = workload.parse::<i32>() else {
            return self.get(workload);
        };
        let mut entries = self.list()?;
        entries.retain(|entry| entry.phase == Phase::Running);
        Ok(entries
            .into_iter()
            .find(|entry| entry.process.is_some_and(|process| process.pid == pid)))
    }

    /// Writes down a workload. Readers see the old entry or the new one, never half of it.
    pub fn put(&self, entry: &Entry) -> Result<()> {
        write_json(&self.directory(&entry.spec.name).join(ENTRY), entry)
    }

    /// Reserves the name for a new workload by making its directory with an empty log.
    pub fn reserve(&self, name: &str) -> Result<()> {
        self.check_free(name)?;
        let directory = self.directory(name);
        // The end of the last workload may remove the directories above at this moment.
        for _ in 0..RESERVE_TRIES_MAX {
            fs::create_dir_all(&self.root).map_err(|e| Error::file("make", &self.root, e))?;
            match fs::create_dir(&directory) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(taken(name)),
                Err(e) => return Err(Error::file("make", &directory, e)),
                Ok(()) => break,
            }
        }
        let log = self.log(name);
        fs::File::create_new(&log)
            .map(drop)
            .map_err(|e| Error::file("make", &log, e))
    }

    /// Refuses a name that a workload has which runs or arrives; forgets one that has ended.
    pub fn check_free(&self, name: &str) -> Result<()> {
        match self.get(name)? {
            Some(entry) if entry.phase == Phase::Ended => super::end(&entry.resources),
            Some(_) => Err(taken(name)),
            // A directory without an entry belongs to somebody who reserves the name right now, or died doing it.
            None if self.directory(name).exists() && !self.is_abandoned(name) => Err(taken(name)),
            None => self.remove_abandoned(name),
        }
    }

    /// Removes what controllers left that died while they made a container; its init, if there was one, has died with them.
    /// What was complete is not touched: a journal decides about that.
    pub fn sweep(&self) -> Result<()> {
        for entry in self.list()? {
            let entry_path = self.directory(&entry.spec.name).join(ENTRY);
            let noted = read_json::<Entry>(&entry_path)?.map(|noted| noted.phase);
            // `list` calls it ended, but it never ran: nobody wants its log.
            if noted == Some(Phase::Arriving) && entry.phase == Phase::Ended && entry.exit.is_none() {
                super::end(&entry.resources)?;
            }
        }
        Ok(())
    }

    /// Whether a directory without an entry is so old that whoever made it must be dead.
    fn is_abandoned(&self, name: &str) -> bool {
        let made = fs::metadata(self.directory(name)).and_then(|metadata| metadata.modified());
        made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age.as_secs() > 60))
    }

    fn remove_abandoned(&self, name: &str) -> Result<()> {
        let directory = self.directory(name);
        match fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &directory, e)),
            _ => Ok(()),
        }
    }
}

impl Entry {
    /// Why we ended it, if we did: one sentence.
    pub fn trouble(&self) -> Option<String> {
        fs::read_to_string(self.resources.directory.join(TROUBLE)).ok()
    }
}

/// Leaves a sentence about a workload that we have ended where its user will look for it. The first one stands.
pub fn note_trouble(resources: &Resources, sentence: &str) -> Result<()> {
    let path = resources.directory.join(TROUBLE);
    if path.exists() || !resources.directory.exists() {
        return Ok(());
    }
    fs::write(&path, sentence).map_err(|e| Error::file("write", &path, e))
}

/// Lists a workload that has arrived as running.
pub(super) fn note_running(directory: &Path) -> Result<()> {
    let path = directory.join(ENTRY);
    match read_json::<Entry>(&path)? {
        Some(entry) if entry.phase != Phase::Running => write_json(
            &path,
            &Entry {
                phase: Phase::Running,
                since: now(),
                ..entry
            },
        ),
        _ => Ok(()),
    }
}

/// Writes down in a workload's directory how it ended.
pub(super) fn note_exit(directory: &Path, exit: Exit) -> Result<()> {
    write_json(&directory.join(EXIT), &exit)
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn taken(name: &str) -> Error {
    Error::refused(format!(
        "a workload called {name} is here already; give this one another name, or stop that one"
    ))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None)
        }
        Err(e) => return Err(Error::file("read", path, e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| Error::file("read", path, e.into()))
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| Error::file("write", path, e.into()))?;
    let new = path.with_extension("new");
    fs::write(&new, text).map_err(|e| Error::file("write", &new, e))?;
    fs::rename(&new, path).map_err(|e| Error::file("write", path, e))
}
