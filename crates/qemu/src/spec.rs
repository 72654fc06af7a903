//! The description that travels first, and what the destination checks with it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use whimbrel_policy::PAGE_SIZE;

use crate::arguments::{Arguments, FileUse, NeededDevice, NeededFile, Severity};
use crate::blocks::{BLOCKS_MAX, BLOCK_BYTES_MAX};
use crate::device_state::Way;
use crate::error::{MachineError, Result};
use crate::machine::Facts;

/// What descriptions and journals of machines begin with, so that they are not taken for those of processes.
pub const KIND: &[u8] = b"QEMU";
/// Limits on what a peer may say.
const WORDS_MAX: usize = 4096;
const WORD_BYTES_MAX: usize = 64 << 10;
/// Memory that a destination keeps for itself, in bytes.
const RESERVE_BYTES: u64 = 64 << 20;

/// One memory block that we carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// The name by which both ends know it.
    pub name: String,
    /// Whole pages, in bytes.
    pub bytes: u64,
    /// Whether it lies in a shared file.
    pub shared: bool,
}

/// What the destination must check and prepare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// For people.
    pub name: String,
    /// What the source's monitor tells.
    pub facts: Facts,
    /// The source's command line.
    pub arguments: Vec<String>,
    /// Where relative paths begin.
    pub directory: PathBuf,
    /// User, group and other groups of the source's process.
    pub owner: (u32, u32, Vec<u32>),
    /// How the state of the devices comes.
    pub way: Way,
    /// In the order of their spaces.
    pub blocks: Vec<BlockSpec>,
    /// Whether the source holds locks on files of the machine while it runs.
    pub locks: bool,
    /// Memory in use, in bytes.
    pub resident_bytes: u64,
    /// The source's clock, in nanoseconds since 1970.
    pub realtime_ns: u64,
}

/// The state beside the memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// It ran, and is to run at the destination.
    pub running: bool,
    /// As QEMU wrote it.
    #[serde(with = "serde_bytes")]
    pub devices: Vec<u8>,
}

/// Encodes with the mark of the kind.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = KIND.to_vec();
    // Into a growing vector, of types that serde derives for: there is nothing that could fail.
    bytes.extend(postcard::to_stdvec(value).unwrap_or_default());
    bytes
}

/// The reverse; nothing if there is nothing.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<Option<T>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let body = bytes.strip_prefix(KIND).ok_or_else(|| {
        MachineError::unfit(format!(
            "{what} is not that of a virtual machine; both ends must run the same release of whimbrel"
        ))
    })?;
    postcard::from_bytes(body)
        .map(Some)
        .map_err(MachineError::decode(what))
}

/// Nanoseconds since 1970.
pub(crate) fn realtime_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl MachineSpec {
    /// Reads and checks what a peer sent, without looking at this host.
    ///
    /// # Errors
    /// Bytes that do not decode, and impossible descriptions.
    pub fn read(bytes: &[u8]) -> Result<MachineSpec> {
        let spec: Option<MachineSpec> = decode("the description", bytes)?;
        let nonsense = |what: &str| {
            MachineError::unfit(format!(
                "the description of the machine makes no sense ({what}); this is a bug or an attack"
            ))
        };
        let spec = spec.ok_or_else(|| nonsense("it is empty"))?;
        let words = &spec.arguments;
        if words.is_empty()
            || words.len() > WORDS_MAX
            || words
                .iter()
                .any(|word| word.len() > WORD_BYTES_MAX || word.contains('\0'))
        {
            return Err(nonsense("its command line"));
        }
        let odd = |block: &BlockSpec| block.bytes > BLOCK_BYTES_MAX || block.bytes % PAGE_SIZE != 0;
        if spec.blocks.is_empty() || spec.blocks.len() > BLOCKS_MAX || spec.blocks.iter().any(odd) {
            return Err(nonsense("its memory"));
        }
        Ok(spec)
    }

    /// Checks that its machine can be started from the source's command line here.
    ///
    /// # Errors
    /// The first thing that is missing or in the way, by name.
    pub fn check_host(&self) -> Result<()> {
        let arguments = Arguments::parse(self.arguments.clone());
        if let Some(unfit) = arguments
            .unfit()
            .iter()
            .find(|unfit| unfit.severity == Severity::Starts)
        {
            return Err(MachineError::refused(format!(
                "the destination cannot start the machine from its own command line: {unfit} (receive --vm-command)"
            )));
        }
        for needed in arguments.files() {
            self.check_file(&needed)?;
        }
        for device in arguments.devices() {
            self.check_device(&device)?;
        }
        // The monitor of an earlier move stays behind.
        let own = arguments.own_monitor();
        for socket in arguments
            .listening()
            .into_iter()
            .filter(|socket| Some(socket) != own.as_ref())
        {
            let path = self.absolute(&socket);
            if std::os::unix::net::UnixStream::connect(&path).is_ok() {
                return Err(MachineError::refused(format!(
                    "the socket {} that the machine makes is in use on the destination; end whoever has it, or move to another host",
                    path.display()
                )));
            }
            self.check_directory_of(&path)?;
        }
        Ok(())
    }

    /// Relative paths begin where the source's process works.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }

    fn check_file(&self, needed: &NeededFile) -> Result<()> {
        let path = self.absolute(&needed.path);
        let (looked_at, what) = match needed.usage {
            FileUse::Memory => (path.parent().unwrap_or(Path::new("/")), "the directory"),
            _ => (path.as_path(), "the file"),
        };
        let cure = match needed.usage {
            FileUse::Disk { .. } => {
                "a machine's disk must lie on storage that both hosts see, at the same path"
            }
            FileUse::Socket => "start the program that makes this socket there, too",
            FileUse::Start | FileUse::Memory | FileUse::Shared => "make it there, or copy it",
        };
        match std::fs::metadata(looked_at) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(MachineError::refused(format!(
                "the destination lacks {what} {}, which the machine uses ({}): {cure}",
                looked_at.display(),
                needed.option
            ))),
            Err(e) => Err(MachineError::file("look at", looked_at)(e)),
        }
    }

    fn check_directory_of(&self, path: &Path) -> Result<()> {
        let directory = path.parent().filter(|directory| !directory.is_dir());
        match directory {
            Some(directory) => Err(MachineError::refused(format!(
                "the destination has no directory {}, where the machine makes a socket; make it",
                directory.display()
            ))),
            None => Ok(()),
        }
    }

    fn check_device(&self, device: &NeededDevice) -> Result<()> {
        let (path, what) = match device {
            NeededDevice::Interface { name, .. } => (
                Path::new("/sys/class/net").join(name),
                format!("network interface {name}"),
            ),
            NeededDevice::Node { path, .. } => (path.clone(), format!("device {}", path.display())),
        };
        match path.exists() {
            true => Ok(()),
            false => Err(MachineError::refused(format!(
                "the destination lacks the {what}, which the machine uses; make it and connect it as on the source"
            ))),
        }
    }

    /// Checks that there is memory for it.
    ///
    /// # Errors
    /// There is not.
    pub fn check_memory(&self) -> Result<()> {
        let text =
            std::fs::read_to_string("/proc/meminfo").map_err(MachineError::file("read", "/proc/meminfo"))?;
        let available = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .map_or(u64::MAX, |kib| kib.saturating_mul(1024));
        if self.resident_bytes.saturating_add(RESERVE_BYTES) > available {
            return Err(MachineError::refused(format!(
                "the machine uses {} MiB of memory and the destination has {} MiB left; make room",
                self.resident_bytes >> 20,
                available >> 20
            )));
        }
        Ok(())
    }
}
