//! A running QEMU: its monitor, its process, and whether it can move.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use whimbrel_kernel::identity::Identity;
use whimbrel_kernel::maps::{self, VmFlags};
use whimbrel_kernel::proc;

use crate::arguments::{Arguments, Severity};
use crate::blocks::{self, Block, Blocks, Listed};
use crate::device_state::{knows_ignore_shared, Way, NAMED_SINCE};
use crate::error::{MachineError, Result};
use crate::qmp::{Qmp, QmpError};

/// The oldest release that we know.
pub const VERSION_MIN: (u32, u32, u32) = (7, 2, 0);
/// Firmware tables that QEMU makes anew by itself.
const MADE_ANEW: &str = "/rom@";
/// Firmware of a device, which QEMU loads from its own file.
const DEVICE_ROM: &str = ".rom";
/// QEMU may be busy with its disks.
const CONT_MAX: Duration = Duration::from_secs(60);
/// Between two attempts to have the disks.
const LOCK_AGAIN: Duration = Duration::from_millis(100);
/// What QEMU says of a file that another one has locked (block/file-posix.c).
const LOCKED: &str = "\" lock";
/// One feature word of a processor: which question of CPUID, which register, which bits.
pub type FeatureWords = BTreeMap<String, u64>;

/// A connection to a machine.
#[derive(Debug)]
pub struct Machine {
    /// Its monitor.
    pub qmp: Qmp,
    /// Its process.
    pub process: Identity,
}

/// What is known of a machine before it is touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// QEMU's release: (major, minor, micro).
    pub version: (u32, u32, u32),
    /// The machine's type with its version, such as `pc-q35-7.2`.
    pub machine: String,
    /// `tcg` or `kvm`.
    pub accelerator: String,
    /// The first processor's type, such as `qemu64-x86_64-cpu`.
    pub cpu: String,
    /// What that processor offers.
    pub features: FeatureWords,
    /// How many there are.
    pub cpus: u64,
}

impl Machine {
    /// Connects to the monitor and finds the process behind it.
    ///
    /// # Errors
    /// Nobody answers there, or it is a process of another PID namespace.
    pub fn attach(monitor: &Path) -> Result<Machine> {
        let qmp = Qmp::connect(monitor)?;
        let peer = socket_peercred(qmp.stream()).map_err(std::io::Error::from);
        let pid = peer
            .map_err(MachineError::file("look behind", monitor))?
            .pid
            .as_raw_nonzero()
            .get();
        let process = Identity::of(pid).map_err(|_| {
            MachineError::refused(format!(
                "the process behind {} is not visible here; call whimbrel in the PID namespace of QEMU or above it",
                monitor.display()
            ))
        })?;
        Ok(Machine { qmp, process })
    }

    /// Its PID.
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// What the monitor tells.
    pub fn facts(&mut self) -> Result<Facts> {
        let kind = self.property("/machine", "type")?;
        let machine = kind.as_str().unwrap_or_default();
        let kvm = self.qmp.execute("query-kvm", json!({}))?;
        let cpus = self.qmp.execute("query-cpus-fast", json!({}))?;
        let first = cpus[0]["qom-path"].as_str().unwrap_or_default().to_owned();
        let cpu = self.property(&first, "type")?;
        // Only x86 processors have them.
        let words = self.property(&first, "feature-words").unwrap_or(Value::Null);
        Ok(Facts {
            version: self.qmp.version(),
            machine: machine.strip_suffix("-machine").unwrap_or(machine).to_owned(),
            accelerator: if kvm["enabled"] == true { "kvm" } else { "tcg" }.to_owned(),
            cpu: cpu.as_str().unwrap_or_default().to_owned(),
            features: feature_words(&words),
            cpus: cpus.as_array().map_or(0, Vec::len) as u64,
        })
    }

    fn property(&mut self, path: &str, property: &str) -> Result<Value> {
        Ok(self
            .qmp
            .execute("qom-get", json!({ "path": path, "property": property }))?)
    }

    /// How it runs: `running`, `paused`, `postmigrate` …
    pub fn status(&mut self) -> Result<String> {
        let status = self.qmp.execute("query-status", json!({}))?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> Result<bool> {
        let status = self.qmp.execute("query-status", json!({}))?;
        Ok(status["running"] == true)
    }

    /// Lets it run. Its disks may still be those of the machine that it was to move to, for as long as that does not know better: they are
    /// asked for up to `patience`.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn go_on(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match self.qmp.execute_within("cont", json!({}), CONT_MAX) {
                Ok(_) => return Ok(()),
                Err(QmpError::Refused { desc, .. }) if desc.contains(LOCKED) && Instant::now() < deadline => {
                    thread::sleep(LOCK_AGAIN);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How the state of its devices is to be written. The main memory decides: if it is shared, QEMU can leave it out by itself, the newest releases
    /// only if it has a name.
    ///
    /// # Errors
    /// The monitor fails.
    pub fn way(&mut self) -> Result<Way> {
        let placed = blocks::find(&mut self.qmp, self.process.pid)?.placed;
        let by_name = self.qmp.version() >= NAMED_SINCE;
        let arguments = Arguments::of_process(self.pid()).ok();
        let has_name = arguments.is_some_and(|arguments| {
            let mut backends = arguments.memory().into_iter();
            backends.any(|backend| backend.mem_path.is_some())
        });
        let main = placed.iter().max_by_key(|block| block.bytes);
        let fits = main.is_some_and(Block::is_shared) && (!by_name || has_name);
        Ok(match fits && knows_ignore_shared(&mut self.qmp)? {
            true => Way::IgnoreShared,
            false => Way::DevicesOnly,
        })
    }

    /// The memory that we carry.
    ///
    /// # Errors
    /// Memory that cannot be moved.
    pub fn memory(&mut self, way: Way) -> Result<Vec<Block>> {
        let Blocks { placed, unplaced } = blocks::find(&mut self.qmp, self.process.pid)?;
        let all: Vec<Block> = match way {
            Way::IgnoreShared => placed.into_iter().filter(Block::is_shared).collect(),
            Way::DevicesOnly => {
                let hidden = self.hidden(&placed, unplaced)?;
                placed.into_iter().chain(hidden).collect()
            }
        };
        if let Some(huge) = all
            .iter()
            .find(|block| block.page_bytes != whimbrel_policy::PAGE_SIZE)
        {
            return Err(MachineError::refused(format!(
                "memory block {} of the machine lies in huge pages of {} bytes (hugetlbfs), which cannot be tracked; start it with ordinary memory and transparent huge pages",
                huge.name, huge.page_bytes
            )));
        }
        match all.is_empty() {
            true => Err(MachineError::refused(
                "the machine has no memory that could be found",
            )),
            false => Ok(all),
        }
    }

    /// Blocks that the guest does not see just now, by the size of their mapping.
    fn hidden(&self, placed: &[Block], unplaced: Vec<Listed>) -> Result<Vec<Block>> {
        let vmas = maps::read(self.pid())?;
        let mut found = Vec::new();
        for listed in unplaced {
            if listed.name.starts_with(MADE_ANEW) {
                continue;
            }
            let alike: Vec<u64> = vmas
                .iter()
                .filter(|vma| vma.len() == listed.total && vma.is_anonymous() && !vma.shared)
                .map(|vma| vma.start)
                .filter(|start| {
                    !placed
                        .iter()
                        .chain(&found)
                        .any(|block| block.span().contains(start))
                })
                .collect();
            match alike.as_slice() {
                [host] => found.push(blocks::open(self.pid(), &vmas, listed, *host)?),
                _ if listed.name.ends_with(DEVICE_ROM) => {}
                _ => {
                    return Err(MachineError::refused(format!(
                        "nobody knows where memory block {} of the machine lies while the guest does not use it; start the machine with its RAM in a shared file \
                         (-object memory-backend-file,id=ram,share=on,mem-path=/dev/shm/NAME,size=SIZE -machine memory-backend=ram)",
                        listed.name
                    )))
                }
            }
        }
        Ok(found)
    }

    /// Everything that stands in its way, found without touching it. What was looked at on the way: how its state is to be written, and the
    /// memory that we carry.
    ///
    /// # Errors
    /// The first thing.
    pub fn check(&mut self) -> Result<(Way, Vec<Block>)> {
        let (major, minor, micro) = self.qmp.version();
        if (major, minor, micro) < VERSION_MIN {
            let (want_major, want_minor, _) = VERSION_MIN;
            return Err(MachineError::refused(format!(
                "this is QEMU {major}.{minor}.{micro}, and whimbrel knows releases from {want_major}.{want_minor} on; start the machine with a newer one"
            )));
        }
        self.check_status()?;
        self.check_arguments()?;
        self.check_blockers()?;
        let way = self.way()?;
        let blocks = self.memory(way)?;
        self.check_watchers(&blocks)?;
        Ok((way, blocks))
    }

    fn check_status(&mut self) -> Result<()> {
        let status = self.status()?;
        let migration = self.qmp.execute("query-migrate", json!({}))?;
        let migration = migration["status"].as_str().unwrap_or("none");
        if !matches!(migration, "none" | "completed" | "failed" | "cancelled") {
            return Err(MachineError::refused(format!(
                "the machine is already being migrated by QEMU itself (its state is \"{migration}\"); wait for its end or cancel it (migrate_cancel)"
            )));
        }
        match status.as_str() {
            "running" | "paused" | "prelaunch" | "postmigrate" => Ok(()),
            "inmigrate" => Err(MachineError::refused(
                "the machine waits for a migration that comes in; there is nothing to move yet",
            )),
            other => Err(MachineError::refused(format!(
                "the machine is neither running nor paused: QEMU calls its state \"{other}\"; see to that first"
            ))),
        }
    }

    fn check_arguments(&self) -> Result<()> {
        let arguments = Arguments::of_process(self.pid()).map_err(MachineError::file(
            "read",
            format!("/proc/{}/cmdline", self.pid()),
        ))?;
        let unfit = arguments.unfit();
        match unfit.iter().find(|unfit| unfit.severity == Severity::Moves) {
            Some(unfit) => Err(MachineError::refused(format!("the machine cannot move: {unfit}"))),
            None => Ok(()),
        }
    }

    /// What QEMU itself says of why it cannot.
    fn check_blockers(&mut self) -> Result<()> {
        let migration = self.qmp.execute("query-migrate", json!({}))?;
        let reasons: Vec<&str> = migration["blocked-reasons"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !reasons.is_empty() {
            return Err(MachineError::refused(format!(
                "QEMU says that the machine cannot move: {}",
                reasons.join("; ")
            )));
        }
        // Also what came to it after its start.
        let devices = self.qmp.execute("query-chardev", json!({}))?;
        let vhost = devices.as_array().into_iter().flatten().find(|device| {
            let label = device["label"].as_str().unwrap_or_default();
            label.contains("vhost-user")
        });
        match vhost {
            Some(device) => Err(MachineError::refused(format!(
                "device {} lets another process write the machine's memory (vhost-user), which nobody can track; use an ordinary virtio device instead",
                device["label"]
            ))),
            None => Ok(()),
        }
    }

    /// Only one userfaultfd can watch a mapping.
    fn check_watchers(&self, blocks: &[Block]) -> Result<()> {
        let vmas = maps::read_with_flags(self.pid())?;
        let watched = VmFlags::UFFD_MISSING
            .with(VmFlags::UFFD_WP)
            .with(VmFlags::UFFD_MINOR);
        for block in blocks {
            let span = block.span();
            let taken = vmas.iter().any(|vma| {
                vma.start < span.end && span.start < vma.end && vma.flags.bits() & watched.bits() != 0
            });
            if taken {
                return Err(MachineError::refused(format!(
                    "memory block {} of the machine is watched by another userfaultfd (a snapshot in the background, or another migration); wait for its end",
                    block.name
                )));
            }
        }
        Ok(())
    }

    /// Files of the machine on which its process holds a lock.
    pub fn locked_files(&self) -> Result<Vec<String>> {
        locked_files(self.pid())
    }
}

/// Files on which a process holds a lock of the kind that QEMU takes (open file description locks).
pub fn locked_files(pid: i32) -> Result<Vec<String>> {
    let mut locked = Vec::new();
    for fd in proc::descriptors(pid)? {
        // One that is closed meanwhile has no locks.
        let info = proc::descriptor_info(pid, fd).unwrap_or_default();
        if info
            .lines()
            .any(|line| line.starts_with("lock:") && line.contains("OFDLCK"))
        {
            locked.extend(proc::link(pid, &format!("fd/{fd}")));
        }
    }
    locked.sort();
    locked.dedup();
    Ok(locked)
}

fn feature_words(words: &Value) -> FeatureWords {
    let word = |word: &Value| {
        let leaf = word["cpuid-input-eax"].as_u64()?;
        let sub = word["cpuid-input-ecx"].as_u64().unwrap_or(0);
        let register = word["cpuid-register"].as_str()?;
        Some((
            format!("CPUID {leaf:#x}.{sub} {register}"),
            word["features"].as_u64()?,
        ))
    };
    words.as_array().into_iter().flatten().filter_map(word).collect()
}

/// The features that `source` has and `destination` lacks, a sentence.
pub fn missing_features(source: &FeatureWords, destination: &FeatureWords) -> Option<String> {
    let lacking: Vec<String> = source
        .iter()
        .filter_map(|(word, bits)| {
            let lacking = bits & !destination.get(word).copied().unwrap_or(0);
            (lacking != 0).then(|| format!("{word} {lacking:#x}"))
        })
        .collect();
    (!lacking.is_empty()).then(|| lacking.join(", "))
}

/// Who a process belongs to: its user, its group, its other groups.
pub fn owner(pid: i32) -> Result<(u32, u32, Vec<u32>)> {
    let status = proc::Status::read(pid)?;
    let first = |key: &str| status.numbers(key).first().copied().unwrap_or(0) as u32;
    let groups = status
        .numbers("Groups")
        .iter()
        .map(|group| *group as u32)
        .collect();
    Ok((first("Uid"), first("Gid"), groups))
}

/// The directory that a process works in.
pub fn directory(pid: i32) -> Result<std::path::PathBuf> {
    let path = format!("/proc/{pid}/cwd");
    fs::read_link(&path).map_err(MachineError::file("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_are_lacking_are_named() {
        let words = json!([
            { "cpuid-input-eax": 1, "cpuid-register": "EDX", "features": 3 },
            { "cpuid-input-eax": 7, "cpuid-input-ecx": 0, "cpuid-register": "EBX", "features": 0x20 },
        ]);
        let source = feature_words(&words);
        assert_eq!(missing_features(&source, &source), None);
        let mut less = source.clone();
        less.insert("CPUID 0x7.0 EBX".into(), 0);
        assert_eq!(
            missing_features(&source, &less).as_deref(),
            Some("CPUID 0x7.0 EBX 0x20")
        );
        assert_eq!(missing_features(&less, &source), None);
    }
}
