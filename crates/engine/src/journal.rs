//! What outlives a controller: one small file for each migration on a tmpfs.
//!
//! `<id>.<role>.json` is replaced by write and rename, so that a reader sees the old or the new record, never half of one. There is no
//! fsync: a crash of the host ends the workload anyway. `<id>.<role>.lock` is held with flock(2) by whoever acts on the migration, as
//! long as that process lives; a journal that nobody has locked is stale, and the next command recovers it.
//! Both files hold or guard the migration's key: mode 0600 in a directory of mode 0700.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use whimbrel_wire::{Key, MigrationId};

use crate::error::{Error, Result};
use crate::residual::ResidualOptions;

/// Where journals are if nothing else is said. Lost with a reboot, as the workloads are.
pub const DEFAULT_DIRECTORY: &str = "/run/whimbrel/journal";
/// Bytes in a journal at most: identities of processes, names of files.
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// How long a destination that gave up remembers it, with the key that a source needs for its question. A source asks every few seconds,
/// and whoever could not reach us for a day is no longer waited for: its operator decides.
pub const FENCED_MAX: Duration = Duration::from_secs(24 * 3600);

/// Listing looks at a lock by taking it for a moment; who wants it tries again for so long.
const LISTING_MAX: Duration = Duration::from_millis(100);

/// Which end of the migration the journal belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Where the workload comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Source => "source",
            Role::Destination => "destination",
        }
    }

    /// The role and the id in a journal's file name.
    fn parse(name: &str) -> Option<(MigrationId, Role)> {
        let (id, role) = name.strip_suffix(".json")?.split_once('.')?;
        let role = [Role::Source, Role::Destination]
            .into_iter()
            .find(|r| r.name() == role)?;
        Some((id.parse().ok()?, role))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far the migration got. What to do then is decided by `policy::switchover`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Both: under way; the workload is the source's.
    Active,
    /// Destination: complete, and the source may have offered. Otherwise like `Active`.
    Prepared,
    /// Source: the destination was told to start it; only its answer decides.
    Offered,
    /// Source: it runs at the destination, which still lacks pages: the frozen copy is kept for them.
    Serving,
    /// Source: it runs at the destination.
    Released,
    /// Source: it runs on here, and the destination may have to be told.
    Stayed,
    /// Destination: committed; it runs here.
    Started,
    /// Destination: it was not started here and never will be.
    Fenced,
}

/// A journal's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The migration.
    pub id: MigrationId,
    /// Whose journal it is.
    pub role: Role,
    /// How far it got.
    pub state: State,
    /// So that a later connection can prove itself.
    pub key: Key,
    /// Where the other end listens (at the source) or came from (at the destination).
    pub peer: String,
    /// The workload's name, for people.
    pub workload: String,
    /// What must be undone or finished; see [`crate::contract::Recover`].
    #[serde(with = "hex")]
    pub resources: Vec<u8>,
    /// Process that wrote it last.
    pub pid: u32,
    /// Source: how the pages are sent that follow after the switch-over.
    #[serde(default)]
    pub residual: Option<ResidualOptions>,
    /// Pages that the destination lacks although it runs, as of a moment ago; nothing if it lacks none.
    #[serde(default)]
    pub missing_pages: Option<u64>,
    /// Destination: where it listened, so that the source finds whoever goes on.
    #[serde(default)]
    pub listen: Option<String>,
}

impl Record {
    /// Nothing is left to be done: it was given up here, and is kept for a source that may ask.
    pub fn is_only_kept(&self) -> bool {
        self.state == State::Fenced && self.resources.is_empty()
    }
}

/// The directory of journals.
#[derive(Clone, Debug)]
pub struct Journals {
    directory: PathBuf,
}

/// One migration's journal, locked by this process.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    record: Record,
    /// Closing it gives the lock back. It is closed on exec(2); a child that only forks must not live on with it.
    _lock: File,
}

/// A journal as [`Journals::list`] saw it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its content.
    pub record: Record,
    /// True if nobody acts on it.
    pub stale: bool,
}

impl Default for Journals {
    fn default() -> Self {
        Self::new(DEFAULT_DIRECTORY)
    }
}

impl Journals {
    /// Journals in `directory`, which is made when the first one is written.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a new journal and locks it. [`Error::Busy`] if another process acts on this migration, or if it is known already.
    pub fn create(&self, record: Record) -> Result<Journal> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(failed(&self.directory, "made"))?;
        let lock = self
            .lock(record.id, record.role)?
            .ok_or(Error::Busy { id: record.id })?;
        if self.read(record.id, record.role)?.is_some() {
            return Err(Error::Busy { id: record.id });
        }
        let mut journal = Journal {
            directory: self.directory.clone(),
            record,
            _lock: lock,
        };
        journal.write()?;
        Ok(journal)
    }

    /// Locks the journal of `id`. `None` if there is none; [`Error::Busy`] if another process acts on it.
    pub fn open(&self, id: MigrationId, role: Role) -> Result<Option<Journal>> {
        // Without a look first, asking for an unknown id would leave a lock file behind.
        if self.read(id, role)?.is_none() {
            return Ok(None);
        }
        let lock = self.lock(id, role)?.ok_or(Error::Busy { id })?;
        match self.read(id, role)? {
            Some(record) => Ok(Some(Journal {
                directory: self.directory.clone(),
                record,
                _lock: lock,
            })),
            None => {
                remove(&lock_path(&self.directory, id, role))?;
                Ok(None)
            }
        }
    }

    /// The record of `id` as it is now, whoever holds it.
    pub fn read(&self, id: MigrationId, role: Role) -> Result<Option<Record>> {
        let path = record_path(&self.directory, id, role);
        let mut text = Vec::new();
        match File::open(&path) {
            Ok(file) => file
                .take(RECORD_BYTES_MAX)
                .read_to_end(&mut text)
                .map_err(failed(&path, "read"))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(&path, "read")(e)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| failed(&path, "understood")(e.into()))
    }

    /// All journals, in order of their ids.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(&self.directory, "listed")(e)),
        };
        let mut found: Vec<(MigrationId, Role)> = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed(&self.directory, "listed"))?.file_name();
            found.extend(name.to_str().and_then(Role::parse));
        }
        found.sort_unstable();
        let mut listed = Vec::new();
        for (id, role) in found {
            let stale = !self.is_locked(id, role)?;
            listed.extend(self.read(id, role)?.map(|record| Listed { record, stale }));
        }
        Ok(listed)
    }

    /// The journals that nobody acts on.
    pub fn stale(&self) -> Result<Vec<Record>> {
        Ok(self
            .list()?
            .into_iter()
            .filter(|l| l.stale)
            .map(|l| l.record)
            .collect())
    }

    /// Removes the records of migrations that were given up here longer ago than `age`; see [`FENCED_MAX`].
    pub fn forget_fenced(&self, age: Duration) -> Result<()> {
        for record in self.stale()? {
            if !record.is_only_kept() || self.age(&record)? <= age {
                continue;
            }
            match self.open(record.id, record.role) {
                Ok(Some(journal)) if journal.record.is_only_kept() => journal.remove()?,
                // Settled meanwhile, or being settled.
                Ok(_) | Err(Error::Busy { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The time since it was written; none if it is gone, or if the clock was set back.
    fn age(&self, record: &Record) -> Result<Duration> {
        let path = record_path(&self.directory, record.id, record.role);
        match fs::metadata(&path).and_then(|metadata| metadata.modified()) {
            Ok(written) => Ok(written.elapsed().unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Duration::ZERO),
            Err(e) => Err(failed(&path, "looked at")(e)),
        }
    }

    /// `None` if another process has it.
    fn lock(&self, id: MigrationId, role: Role) -> Result<Option<File>> {
        let path = lock_path(&self.directory, id, role);
        let begun = Instant::now();
        while begun.elapsed() < LISTING_MAX {
            let file = private()
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(failed(&path, "opened"))?;
            if !flock(&path, &file, FlockOperation::NonBlockingLockExclusive)? {
                // Perhaps somebody only lists; that is over in a moment.
                std::thread::sleep(LISTING_MAX / 50);
                continue;
            }
            // Whoever settles a migration removes the lock file while holding it. Who waited with the removed one in hand
            // holds a lock that nobody else looks at, so the file must still be the one in the directory.
            let ours = file.metadata().map_err(failed(&path, "looked at"))?.ino();
            if fs::metadata(&path).is_ok_and(|m| m.ino() == ours) {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    fn is_locked(&self, id: MigrationId, role: Role) -> Result<bool> {
        let path = lock_path(&self.directory, id, role);
        match File::open(&path) {
            // Two that list at once do not disturb each other.
            Ok(file) => Ok(!flock(&path, &file, FlockOperation::NonBlockingLockShared)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(failed(&path, "opened")(e)),
        }
    }
}

impl Journal {
    /// The content.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Changes the state. On success it is what any other process will read.
    pub fn set_state(&mut self, state: State) -> Result<()> {
        self.change(|record| record.state = state)
    }

    /// Source: pages may follow after the switch-over, in this way. Said before the offer, so that whoever takes over knows.
    pub fn set_residual(&mut self, options: ResidualOptions) -> Result<()> {
        self.change(|record| record.residual = Some(options))
    }

    /// Nothing follows after all.
    pub fn forget_residual(&mut self) -> Result<()> {
        match self.record.residual {
            Some(_) => self.change(|record| record.residual = None),
            None => Ok(()),
        }
    }

    /// How many pages the destination lacks; cheap if that was said before.
    pub fn set_missing(&mut self, pages: Option<u64>) -> Result<()> {
        if self.record.missing_pages == pages {
            return Ok(());
        }
        self.change(|record| record.missing_pages = pages)
    }

    /// Changes the resources; cheap if they are the same.
    pub fn set_resources(&mut self, resources: Vec<u8>) -> Result<()> {
        if self.record.resources == resources {
            return Ok(());
        }
        self.change(|record| record.resources = resources)
    }

    /// Destination: complete, with these resources, but for so many pages. In one write, as it is part of the downtime.
    pub fn set_prepared(&mut self, resources: Vec<u8>, missing_pages: Option<u64>) -> Result<()> {
        self.change(|record| {
            record.state = State::Prepared;
            record.missing_pages = missing_pages;
            record.resources = resources;
        })
    }

    /// Destination: given up, and nothing is left of it.
    pub fn set_fenced(&mut self) -> Result<()> {
        if self.record.is_only_kept() {
            return Ok(());
        }
        self.change(|record| {
            record.state = State::Fenced;
            record.resources = Vec::new();
        })
    }

    /// The migration is settled. The lock's file goes with it.
    pub fn remove(&self) -> Result<()> {
        remove(&record_path(&self.directory, self.record.id, self.record.role))?;
        remove(&lock_path(&self.directory, self.record.id, self.record.role))
    }

    fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let before = self.record.clone();
        change(&mut self.record);
        // Whoever asks us must hear what the next process would read.
        self.write().inspect_err(|_| self.record = before)
    }

    fn write(&mut self) -> Result<()> {
        self.record.pid = std::process::id();
        let path = record_path(&self.directory, self.record.id, self.record.role);
        let new = path.with_extension("new");
        let text = serde_json::to_vec(&self.record).map_err(|e| failed(&path, "written")(e.into()))?;
        let mut file = private()
            .create(true)
            .truncate(true)
            .open(&new)
            .map_err(failed(&new, "written"))?;
        file.write_all(&text).map_err(failed(&new, "written"))?;
        fs::rename(&new, &path).map_err(failed(&path, "replaced"))
    }
}

/// False if another process has it.
fn flock(path: &Path, file: &File, operation: FlockOperation) -> Result<bool> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(failed(path, "locked")(e.into())),
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn record_path(directory: &Path, id: MigrationId, role: Role) -> PathBuf {
    directory.join(format!("{id}.{role}.json"))
}

fn lock_path(directory: &Path, id: MigrationId, role: Role) -> PathBuf {
    directory.join(format!("{id}.{role}.lock"))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(path, "removed")(e)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |cause| Error::Journal { path, what, cause }
}

/// Bytes as hexadecimal digits, for JSON.
mod hex {
    use serde::{de::Error, Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
        let text: String = bytes
            .iter()
            .flat_map(|b| [digit(b >> 4), digit(b & 15)])
            .collect();
        serializer.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let value = |digit: u8| char::from(digit).to_digit(16).map(|d| d as u8);
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(value(*high)? << 4 | value(*low)?),
            _ => None,
        };
        text.as_bytes()
            .chunks(2)
            .map(|pair| byte(pair).ok_or_else(|| D::Error::custom("not hexadecimal")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory of its own for each test, removed at the end.
    struct Scratch(Journals);

    impl Scratch {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("whimbrel-journal-test-{}-{number}", std::process::id());
            Self(Journals::new(std::env::temp_dir().join(name)))
        }

        fn files(&self) -> usize {
            fs::read_dir(&self.0.directory).unwrap().count()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.directory);
        }
    }

    fn record(id: u8) -> Record {
        Record {
            id: MigrationId([id; 16]),
            role: Role::Source,
            state: State::Active,
            key: Key::from_bytes([3; 16]),
            peer: "192.0.2.1:7440".into(),
            workload: "shop".into(),
            resources: vec![0, 255, 16],
            pid: 0,
            residual: None,
            missing_pages: None,
            listen: None,
        }
    }

    #[test]
    fn what_is_written_is_read_and_removed() {
        let scratch = Scratch::new();
        let mut journal = scratch.0.create(record(1)).unwrap();
        journal.set_state(State::Offered).unwrap();
        journal.set_resources(vec![9]).unwrap();
        drop(journal);
        let journal = scratch
            .0
            .open(MigrationId([1; 16]), Role::Source)
            .unwrap()
            .unwrap();
        let expected = Record {
            state: State::Offered,
            resources: vec![9],
            pid: std::process::id(),
            ..record(1)
        };
        assert_eq!(*journal.record(), expected);
        journal.remove().unwrap();
        assert!(scratch
            .0
            .open(MigrationId([1; 16]), Role::Source)
            .unwrap()
            .is_none());
        assert_eq!(scratch.files(), 0);
    }

    #[test]
    fn only_one_acts_on_a_migration() {
        let scratch = Scratch::new();
        let journal = scratch.0.create(record(1)).unwrap();
        drop(scratch.0.create(record(2)).unwrap());
        assert!(matches!(
            scratch.0.open(MigrationId([1; 16]), Role::Source),
            Err(Error::Busy { .. })
        ));
        assert!(matches!(scratch.0.create(record(1)), Err(Error::Busy { .. })));
        let stale: Vec<_> = scratch.0.list().unwrap().iter().map(|l| l.stale).collect();
        assert_eq!(stale, [false, true]);
        assert!(
            scratch
                .0
                .create(Record {
                    role: Role::Destination,
                    ..record(1)
                })
                .is_ok(),
            "the other end"
        );
        drop(journal);
        assert!(
            matches!(scratch.0.create(record(1)), Err(Error::Busy { .. })),
            "known already"
        );
        assert_eq!(scratch.0.stale().unwrap().len(), 3);
        assert!(scratch
            .0
            .open(MigrationId([1; 16]), Role::Source)
            .unwrap()
            .is_some());
    }

    #[test]
    fn only_what_was_given_up_long_ago_is_forgotten() {
        let hour = Duration::from_secs(3600);
        let scratch = Scratch::new();
        let kept = |id, state, resources, hours| {
            let journal = scratch
                .0
                .create(Record {
                    role: Role::Destination,
                    state,
                    resources,
                    ..record(id)
                })
                .unwrap();
            let path = record_path(&scratch.0.directory, MigrationId([id; 16]), Role::Destination);
            let written = std::time::SystemTime::now() - hour * hours;
            File::open(path).unwrap().set_modified(written).unwrap();
            journal
        };
        drop(kept(1, State::Fenced, vec![], 3));
        drop(kept(2, State::Fenced, vec![], 1));
        drop(kept(3, State::Fenced, vec![2], 3));
        drop(kept(4, State::Started, vec![], 3));
        drop(kept(5, State::Prepared, vec![], 3));
        let answering = kept(6, State::Fenced, vec![], 3);
        scratch.0.forget_fenced(2 * hour).unwrap();
        let left = || -> Vec<u8> {
            let listed = scratch.0.list().unwrap();
            listed.iter().map(|l| l.record.id.0[0]).collect()
        };
        assert_eq!(left(), [2, 3, 4, 5, 6]);
        drop(answering);
        scratch.0.forget_fenced(2 * hour).unwrap();
        assert_eq!(left(), [2, 3, 4, 5]);
        assert_eq!(scratch.files(), 8);
    }

    #[test]
    fn what_was_given_up_names_no_resources() {
        let scratch = Scratch::new();
        let mut journal = scratch.0.create(record(1)).unwrap();
        journal.set_prepared(vec![7], None).unwrap();
        assert!(!journal.record().is_only_kept());
        journal.set_fenced().unwrap();
        let read = scratch
            .0
            .read(MigrationId([1; 16]), Role::Source)
            .unwrap()
            .unwrap();
        assert!(read.is_only_kept());
    }

    #[test]
    fn nobody_else_may_read_the_key() {
        let scratch = Scratch::new();
        let _journal = scratch.0.create(record(1)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&scratch.0.directory), 0o700);
        for entry in fs::read_dir(&scratch.0.directory).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
    }

    #[test]
    fn a_lock_on_a_removed_file_is_worth_nothing() {
        let scratch = Scratch::new();
        let first = scratch.0.create(record(1)).unwrap();
        fs::remove_file(lock_path(
            &scratch.0.directory,
            MigrationId([1; 16]),
            Role::Source,
        ))
        .unwrap();
        let second = scratch
            .0
            .open(MigrationId([1; 16]), Role::Source)
            .unwrap()
            .unwrap();
        drop(first);
        assert!(matches!(
            scratch.0.open(MigrationId([1; 16]), Role::Source),
            Err(Error::Busy { .. })
        ));
        drop(second);
    }

    #[test]
    fn asking_for_an_unknown_migration_leaves_nothing_behind() {
        let scratch = Scratch::new();
        drop(scratch.0.create(record(1)).unwrap());
        let files = scratch.files();
        assert!(scratch
            .0
            .open(MigrationId([7; 16]), Role::Source)
            .unwrap()
            .is_none());
        assert_eq!(scratch.files(), files);
    }

    #[test]
    fn a_damaged_journal_is_named() {
        let scratch = Scratch::new();
        drop(scratch.0.create(record(1)).unwrap());
        let path = record_path(&scratch.0.directory, MigrationId([1; 16]), Role::Source);
        fs::write(&path, b"{\"id\":").unwrap();
        let error = scratch
            .0
            .open(MigrationId([1; 16]), Role::Source)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(path.to_str().unwrap()) && error.contains("understood"),
            "{error}"
        );
    }
}
