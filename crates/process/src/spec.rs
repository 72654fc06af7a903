//! The description that travels first: what the destination must check and prepare.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use whimbrel_kernel::maps::Vma;
use whimbrel_kernel::proc;
use whimbrel_policy::PAGE_SIZE;

use crate::container::{self, log, ContainerSpec};
use crate::cpu::CpuFeatures;
use crate::descriptors::{self, Class, FileFacts};
use crate::files::{identify, FileSpec, Need};
use crate::layout::{Backing, Mapping};
use crate::vdso::KernelMappings;

/// Limits on what a peer may say.
const FILES_MAX: usize = 1 << 16;
const PROCESSES_MAX: usize = 1;
/// Memory that a destination keeps for itself, in bytes.
const RESERVE_BYTES: u64 = 64 << 20;

/// What the destination must check and prepare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The processes (today one).
    pub processes: Vec<ProcessSpec>,
    /// Files that both hosts must have.
    pub files: Vec<FileSpec>,
    /// What the source's processor offers.
    pub cpu: CpuFeatures,
    /// Bytes in a page at the source.
    pub page_bytes: u64,
    /// What the workload's clocks showed when this was written.
    pub clocks: container::Clocks,
    /// Namespaces, network, name.
    pub container: ContainerSpec,
    /// The workload's log so far.
    pub log: log::Chunk,
    /// Memory that the workload has now, in bytes.
    pub resident_bytes: u64,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// PID in the workload's namespace.
    pub pid: i32,
    /// The kernel's mappings at the source.
    pub kernel: KernelMappings,
}

/// Why the workload cannot live here.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It does not decode.
    #[error("the description of the workload cannot be decoded ({0}); both ends must run the same release of whimbrel")]
    Decode(#[from] postcard::Error),
    /// It says something impossible.
    #[error("the description of the workload makes no sense ({0}); this is a bug or an attack")]
    Nonsense(&'static str),
    /// This host lacks something.
    #[error("{0}")]
    Unfit(String),
    /// A file is missing or different.
    #[error(transparent)]
    File(#[from] crate::files::FileError),
    /// A file of /proc cannot be read.
    #[error("cannot read {path}: {source}")]
    Proc {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Spec {
    /// The bytes that travel.
    ///
    /// # Errors
    /// Never, as far as we know; the encoder's own.
    pub fn encode(&self) -> Result<Vec<u8>, SpecError> {
        Ok(postcard::to_stdvec(self)?)
    }

    /// Reads and checks what a peer sent, without looking at this host.
    ///
    /// # Errors
    /// Bytes that do not decode, and impossible descriptions.
    pub fn decode(bytes: &[u8]) -> Result<Spec, SpecError> {
        let spec: Spec = postcard::from_bytes(bytes)?;
        if spec.processes.len() != PROCESSES_MAX {
            return Err(SpecError::Nonsense("not one process"));
        }
        if spec.files.len() > FILES_MAX || spec.files.iter().any(|file| !file.path.starts_with('/')) {
            return Err(SpecError::Nonsense("its list of files"));
        }
        if spec
            .processes
            .iter()
            .any(|process| process.pid < 1 || !process.kernel.is_sane())
        {
            return Err(SpecError::Nonsense("a process"));
        }
        Ok(spec)
    }

    /// Checks that the workload can live on this host, whose files lie below `root`.
    ///
    /// # Errors
    /// The first thing that is missing, by name.
    pub fn check_host(&self, root: &Path) -> Result<(), SpecError> {
        if self.page_bytes != PAGE_SIZE {
            return Err(SpecError::Unfit(format!(
                "the source has pages of {} bytes and the destination of {PAGE_SIZE}; choose a destination of the same kind",
                self.page_bytes
            )));
        }
        let here = CpuFeatures::here().map_err(|source| proc_error("/proc/cpuinfo", source))?;
        if let Some(sentence) = self.cpu.missing(&here) {
            return Err(SpecError::Unfit(sentence));
        }
        self.check_memory()?;
        self.files.iter().try_for_each(|file| file.check(root))?;
        Ok(())
    }

    fn check_memory(&self) -> Result<(), SpecError> {
        let path = "/proc/meminfo";
        let text = std::fs::read_to_string(path).map_err(|source| proc_error(path, source))?;
        let available =
            proc::field(&text, "MemAvailable").and_then(|field| field.split(' ').next()?.parse::<u64>().ok());
        let (mib, needed) = (1 << 20, self.resident_bytes.saturating_add(RESERVE_BYTES));
        match available.map(|kib| kib * 1024) {
            Some(bytes) if bytes < needed => Err(SpecError::Unfit(format!(
                "the workload needs {} MiB of memory and the destination has {} MiB left; free some there",
                needed / mib,
                bytes / mib
            ))),
            _ => Ok(()),
        }
    }
}

fn proc_error(path: impl Into<PathBuf>, source: io::Error) -> SpecError {
    SpecError::Proc {
        path: path.into(),
        source,
    }
}

/// The files that the destination needs as well: what is mapped, what is open, the program itself. `made` are paths that the
/// destination makes by itself.
///
/// # Errors
/// A file that cannot be read.
pub fn needed_files(
    pid: i32,
    vmas: &[Vma],
    mappings: &[Mapping],
    made: &[PathBuf],
) -> Result<Vec<FileSpec>, SpecError> {
    let mut needed: BTreeMap<String, Seen> = BTreeMap::new();
    for (path, place) in open_files(pid)? {
        merge(&mut needed, path, place);
    }
    let ordinary = vmas.iter().filter(|vma| !vma.is_special());
    for (vma, mapping) in ordinary.zip(mappings) {
        if let Backing::File { path, .. } = &mapping.backing {
            let place = PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end));
            merge(&mut needed, path.clone(), (Need::Content, place));
        }
    }
    let root = PathBuf::from(format!("/proc/{pid}/cwd"));
    if let Ok(cwd) = proc::link(pid, "cwd") {
        merge(&mut needed, cwd, (Need::Presence, root));
    }
    needed.retain(|path, _| {
        !made.iter().any(|known| known.as_path() == Path::new(path)) && !is_generated(path)
    });
    let specs = needed.into_iter().map(|(path, (need, place))| {
        let identity = identify(&place, need).map_err(|source| proc_error(&place, source))?;
        Ok(FileSpec { path, identity })
    });
    specs.collect()
}

/// How much of a file must agree, and where it can be read at the source.
type Seen = (Need, PathBuf);

/// The stricter need wins.
fn merge(needed: &mut BTreeMap<String, Seen>, path: String, found: Seen) {
    let entry = needed.entry(path).or_insert_with(|| found.clone());
    if strictness(found.0) > strictness(entry.0) {
        *entry = found;
    }
}

fn strictness(need: Need) -> u8 {
    match need {
        Need::Presence => 0,
        Need::Size => 1,
        Need::Content => 2,
    }
}

/// Every kernel makes these.
fn is_generated(path: &str) -> bool {
    ["/proc", "/sys", "/dev"].iter().any(|root| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            && !path.starts_with("/dev/shm/")
    })
}

fn open_files(pid: i32) -> Result<Vec<(String, Seen)>, SpecError> {
    let unreadable = |error: whimbrel_kernel::error::Error| {
        proc_error(
            format!("/proc/{pid}/fd"),
            io::Error::from_raw_os_error(error.errno().unwrap_or(libc::EIO)),
        )
    };
    let mut found = Vec::new();
    for listed in descriptors::list(pid).map_err(unreadable)? {
        let class = descriptors::classify(pid, &listed, || FileFacts::read(pid, &listed));
        if !matches!(class, Ok(Class::Path)) {
            continue;
        }
        // A file that is written from several sides has no size that both hosts agree on.
        let need = match listed.info.flags {
            flags if flags & libc::O_APPEND != 0 => Need::Presence,
            flags if flags & libc::O_ACCMODE == libc::O_RDONLY => Need::Content,
            _ => Need::Size,
        };
        found.push((
            listed.link,
            (need, PathBuf::from(format!("/proc/{pid}/fd/{}", listed.fd))),
        ));
    }
    Ok(found)
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: i32) -> u64 {
    proc::Status::read(pid)
        .ok()
        .and_then(|status| status.number("VmRSS"))
        .unwrap_or(0)
        * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            processes: vec![ProcessSpec {
                pid: 7,
                kernel: KernelMappings::default(),
            }],
            files: vec![],
            cpu: CpuFeatures::here().unwrap(),
            page_bytes: PAGE_SIZE,
            clocks: container::Clocks {
                monotonic_ns: 1,
                boottime_ns: 2,
            },
            container: ContainerSpec::new(Some("x"), &["true".to_owned()]).unwrap(),
            log: log::Chunk::default(),
            resident_bytes: 0,
        }
    }

    #[test]
    fn it_survives_the_wire_and_nonsense_does_not() {
        let good = spec();
        assert_eq!(Spec::decode(&good.encode().unwrap()).unwrap(), good);
        let mut bad = spec();
        bad.processes.clear();
        assert!(Spec::decode(&bad.encode().unwrap()).is_err());
        let mut bad = spec();
        bad.processes[0].pid = 0;
        assert!(Spec::decode(&bad.encode().unwrap()).is_err());
        assert!(Spec::decode(&[0xff; 64]).is_err());
    }

    #[test]
    fn a_host_that_does_not_fit_is_told_why() {
        let sentence = |spec: Spec| spec.check_host(Path::new("/")).unwrap_err().to_string();
        assert!(sentence(Spec {
            page_bytes: 65536,
            ..spec()
        })
        .contains("pages of 65536 bytes"));
        assert!(sentence(Spec {
            resident_bytes: 1 << 50,
            ..spec()
        })
        .contains("MiB of memory"));
        spec().check_host(Path::new("/")).unwrap();
    }

    #[test]
    fn what_every_kernel_makes_is_not_compared() {
        assert!(is_generated("/proc/self/maps") && is_generated("/dev/null") && is_generated("/sys"));
        assert!(
            !is_generated("/processes/x") && !is_generated("/dev/shm/x") && !is_generated("/usr/bin/java")
        );
    }
}
