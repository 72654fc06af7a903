//! Finishing or undoing a migration knowing nothing but what was journalled. The controllers do the same things with the same
//! functions.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{de::DeserializeOwned, Serialize};
use whimbrel_engine::{Left, Recover};
use whimbrel_kernel::freezer::Group;

use crate::capture;
use crate::container::{self, Identity, Introduction};
use crate::pager::{PagerError, ProcessPager};
use crate::replica::ReplicaResources;
use crate::source::{self, SourceError, SourceResources};
use crate::state::FileId;
use crate::store::{CopyStore, MemoryStore};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The journal holds something else.
    #[error("what the journal says about the workload cannot be decoded ({0}); was it written by another release of whimbrel?")]
    Decode(#[from] postcard::Error),
    /// At the source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// At the destination.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// Sockets.
    #[error(transparent)]
    Capture(#[from] capture::Error),
    /// Pages that come after the start.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// A system call failed.
    #[error(transparent)]
    Kernel(#[from] whimbrel_kernel::error::Error),
}

type Result<T> = std::result::Result<T, RecoverError>;

/// Cleans up after dead controllers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessRecover;

/// The bytes for the journal.
pub(crate) fn encode<T: Serialize>(resources: &T) -> Vec<u8> {
    // Into a growing vector, of types that serde derives for: there is nothing that could fail.
    postcard::to_stdvec(resources).unwrap_or_default()
}

/// Nothing was noted: nothing was made.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(postcard::from_bytes(bytes)?))
}

impl Recover for ProcessRecover {
    type Error = RecoverError;
    type Store = CopyStore;
    type Pager = ProcessPager;

    fn stays(&self, resources: &[u8]) -> Result<()> {
        let Some(resources) = decode::<SourceResources>(resources)? else {
            return Ok(());
        };
        if resources.process.is_alive() {
            capture::leave_repair(resources.process.pid, &resources.sockets)?;
        }
        if let Some(container) = &resources.container {
            container::unlock(container)?;
        }
        Ok(thaw(&resources)?)
    }

    fn moved(&self, resources: &[u8]) -> Result<()> {
        match decode::<SourceResources>(resources)? {
            Some(resources) => Ok(end(&resources)?),
            None => Ok(()),
        }
    }

    fn store(&self, resources: &[u8]) -> Result<CopyStore> {
        let process = decode::<SourceResources>(resources)?.map(|resources| resources.process);
        let Some(process) = process.filter(Identity::is_alive) else {
            return Ok(CopyStore(None));
        };
        // It may have ended before it is opened, and something else have got its number.
        match MemoryStore::open(process.pid) {
            Ok(store) if process.is_alive() => Ok(CopyStore(Some(store))),
            Err(error) if process.is_alive() => Err(error.into()),
            _ => Ok(CopyStore(None)),
        }
    }

    fn pager(&self, resources: &[u8]) -> Result<Left<ProcessPager>> {
        let Some(resources) = decode::<ReplicaResources>(resources)? else {
            return Ok(Left::Nothing);
        };
        match (&resources.pager, resources.process) {
            (Some(pager), Some(process)) => Ok(ProcessPager::recover(pager, process, &resources.container)?),
            _ => Ok(Left::Nothing),
        }
    }

    fn discard(&self, resources: &[u8]) -> Result<()> {
        match decode::<ReplicaResources>(resources)? {
            Some(resources) => discard(&resources),
            None => Ok(()),
        }
    }

    fn start(&self, resources: &[u8]) -> Result<()> {
        match decode::<ReplicaResources>(resources)? {
            Some(resources) => start(&resources),
            None => Ok(()),
        }
    }
}

/// Source: the freezer lets it go. Idempotent.
pub(crate) fn thaw(resources: &SourceResources) -> std::result::Result<(), SourceError> {
    let group = Group::at(&resources.group);
    match resources.own_group {
        true if resources.group.exists() => Ok(group.dismiss()?),
        true => Ok(()),
        false => Ok(group.thaw()?),
    }
}

/// Source: the copy ends, with everything around it. Idempotent.
pub(crate) fn end(resources: &SourceResources) -> std::result::Result<(), SourceError> {
    match &resources.container {
        Some(container) => container::end(container)?,
        None => {
            let group = Group::at(&resources.group);
            source::kill(resources.process, || Ok(group.thaw()?))?;
            if resources.group.exists() {
                // What the process has left behind in it (a daemon of its own) goes back.
                group.dismiss()?;
            }
        }
    }
    remove_files(&resources.carried);
    Ok(())
}

/// Destination: nothing has started and never will. Idempotent.
pub(crate) fn discard(resources: &ReplicaResources) -> Result<()> {
    container::end(&resources.container)?;
    remove_files(&resources.carried);
    Ok(())
}

/// Destination: it runs, is announced and listed. Idempotent.
pub(crate) fn start(resources: &ReplicaResources) -> Result<()> {
    // The workload waits, and what fails here is tried again when it runs.
    let mut introduction = Introduction::prepare(&resources.container).ok().flatten();
    wake(resources, introduction.as_mut())?;
    Ok(container::note_started(&resources.container)?)
}

/// Destination: it runs. Idempotent. The network first and where it is now, then its connections, then its threads.
pub(crate) fn wake(resources: &ReplicaResources, introduction: Option<&mut Introduction>) -> Result<()> {
    container::unlock(&resources.container)?;
    if let Some(introduction) = introduction {
        // The neighbours are told again in any case, and who does that reports a failure.
        let _ = introduction.make();
    }
    if let Some(process) = resources.process.filter(|process| process.is_alive()) {
        capture::leave_repair(process.pid, &resources.repaired)?;
    }
    Ok(Group::at(&resources.container.group)
        .thaw()
        .map_err(container::Error::from)?)
}

/// Removes the files that are still the ones that were noted.
fn remove_files(files: &[(PathBuf, FileId)]) {
    for (path, id) in files {
        let same = fs::symlink_metadata(path).is_ok_and(|m| m.dev() == id.device && m.ino() == id.inode);
        if same {
            // A file that stays behind does no harm, and its directory may be gone already.
            let _ = fs::remove_file(path);
        }
    }
}
