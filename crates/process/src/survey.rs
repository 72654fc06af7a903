//! From `/proc/pid/maps` to the layout that travels.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use whimbrel_kernel::error::Result as KernelResult;
use whimbrel_kernel::maps::{VmFlags, Vma};
use whimbrel_kernel::remote::blank_landing;
use whimbrel_kernel::{memory, proc};

use crate::layout::{Advice, AdviceSet, Backing, Mapping, ObjectKind, Span};
use crate::objects::{Found, Objects};
use crate::refusal::{Refusal, Subject};
use crate::state::FileId;
use crate::vdso::KernelMappings;

/// File systems that keep files in memory: what is in them cannot be on both hosts.
const MEMORY_FILE_SYSTEMS: [&str; 2] = ["tmpfs", "ramfs"];

/// What a mapping shows of what lies behind it.
#[derive(Debug)]
enum Class {
    Anonymous,
    File(String),
    Object(ObjectKind),
}

/// The flags of mappings, read from smaps a little earlier than the maps: smaps is too slow for a frozen process.
#[derive(Debug, Default)]
pub struct FlagTable {
    vmas: Vec<Vma>,
}

impl FlagTable {
    /// From what smaps showed.
    pub fn new(vmas: Vec<Vma>) -> FlagTable {
        FlagTable { vmas }
    }

    /// The flags of the mapping that lay where `vma` is now. A mapping that has grown, shrunk or been split kept them.
    fn find(&self, vma: &Vma) -> Option<VmFlags> {
        let from = self.vmas.partition_point(|old| old.end <= vma.start);
        let candidates = self.vmas.get(from..).unwrap_or_default();
        let overlapping = candidates.iter().take_while(|old| old.start < vma.end);
        let same = |old: &&Vma| old.shared == vma.shared && old.inode == vma.inode && old.dev == vma.dev;
        overlapping.into_iter().find(same).map(|old| old.flags)
    }

    /// Whether every mapping of `vmas` was there when the flags were read.
    pub fn covers(&self, vmas: &[Vma]) -> bool {
        vmas.iter()
            .all(|vma| vma.is_special() || self.find(vma).is_some())
    }

    /// Gives `vmas` their flags; those that are new have none.
    pub fn apply(&self, vmas: &mut [Vma]) {
        for vma in vmas {
            vma.flags = self.find(vma).unwrap_or_default();
        }
    }
}

/// The devices (`st_dev`) of the file systems in memory that process `pid` sees.
///
/// # Errors
/// Its mounts cannot be read.
pub fn memory_devices(pid: i32) -> KernelResult<HashSet<u64>> {
    Ok(proc::text(pid, "mountinfo")?
        .lines()
        .filter_map(memory_device)
        .collect())
}

/// A line of mountinfo (proc(5)): `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`
fn memory_device(line: &str) -> Option<u64> {
    let (before, after) = line.split_once(" - ")?;
    let kind = after.split(' ').next()?;
    if !MEMORY_FILE_SYSTEMS.contains(&kind) {
        return None;
    }
    let (major, minor) = before.split(' ').nth(2)?.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Whether a file belongs to a JVM that shows its counters in it: made anew wherever the JVM runs.
fn is_hsperfdata(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let is_number = parts
        .next()
        .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
    is_number
        && parts
            .next()
            .is_some_and(|directory| directory.starts_with("hsperfdata_"))
}

fn classify(pid: i32, vma: &Vma, memory_devices: &HashSet<u64>) -> Result<Class, Refusal> {
    let refuse = |what: String, cure: &str| {
        Err(Refusal::new(
            Subject::Mapping {
                pid,
                start: vma.start,
                end: vma.end,
            },
            what,
            cure,
        ))
    };
    if vma.flags.has(VmFlags::SEALED) {
        return refuse(
            "is sealed (mseal)".into(),
            "start the program with GLIBC_TUNABLES=glibc.rtld.seal=0",
        );
    }
    if vma.is_shared_anonymous() || (vma.shared && vma.path.starts_with("[anon_shmem:")) {
        return Ok(Class::Object(ObjectKind::SharedAnonymous));
    }
    let Some(path) = vma.file_path() else {
        return Ok(Class::Anonymous);
    };
    if let Some(name) = path.strip_prefix("/memfd:").filter(|_| vma.is_memfd()) {
        return Ok(Class::Object(ObjectKind::Memfd {
            name: name.to_owned(),
            seals: 0,
        }));
    }
    let path = path.to_owned();
    match (vma.shared, vma.is_deleted()) {
        (false, _) if path == "/dev/zero" => Ok(Class::Anonymous),
        (false, true) => refuse(
            format!("is the file {path}, which was deleted or replaced"),
            "start the program again, so that it uses the present file",
        ),
        (true, true) => Ok(Class::Object(ObjectKind::Unlinked { path })),
        (true, false) if may_write(vma) => {
            if is_hsperfdata(&path) || memory_devices.contains(&vma.dev) {
                return Ok(Class::Object(ObjectKind::CarriedFile {
                    path,
                    mode: 0o600,
                    uid: 0,
                    gid: 0,
                }));
            }
            refuse(
                format!(
                    "shares writes with the file {path} (MAP_SHARED), which the destination would not see"
                ),
                "let the program write to files in another way, or keep the file in /dev/shm",
            )
        }
        _ => Ok(Class::File(path)),
    }
}

/// Whether a shared mapping can ever be written through. Flags that are not known yet do not count.
fn may_write(vma: &Vma) -> bool {
    vma.flags.has(VmFlags::MAY_WRITE) || vma.prot & libc::PROT_WRITE != 0
}

fn id_of(vma: &Vma) -> FileId {
    FileId {
        device: vma.dev,
        inode: vma.inode,
    }
}

/// What the survey needs to know about the workload beside its maps.
#[derive(Debug)]
pub struct Surveyor {
    pid: i32,
    memory_devices: HashSet<u64>,
}

impl Surveyor {
    /// For process `pid`.
    ///
    /// # Errors
    /// Its mounts cannot be read.
    pub fn new(pid: i32) -> KernelResult<Surveyor> {
        Ok(Surveyor {
            pid,
            memory_devices: memory_devices(pid)?,
        })
    }

    /// The shared objects behind the mappings and among the descriptors, each once.
    ///
    /// # Errors
    /// A mapping that cannot move.
    pub fn objects(&self, vmas: &[Vma]) -> Result<Vec<Found>, Refusal> {
        let mut found = BTreeMap::new();
        for vma in vmas.iter().filter(|vma| !vma.is_special()) {
            if let Class::Object(kind) = classify(self.pid, vma, &self.memory_devices)? {
                let place = format!("/proc/{}/map_files/{:x}-{:x}", self.pid, vma.start, vma.end);
                let id = id_of(vma);
                found.entry(id).or_insert(Found {
                    id,
                    kind,
                    place: PathBuf::from(place),
                });
            }
        }
        for (id, object) in self.memfds() {
            found.entry(id).or_insert(object);
        }
        Ok(found.into_values().collect())
    }

    /// Memfds that are open; what is closed while we look is not there.
    fn memfds(&self) -> HashMap<FileId, Found> {
        let numbers = proc::descriptors(self.pid).unwrap_or_default();
        numbers
            .into_iter()
            .filter_map(|fd| self.memfd(fd))
            .map(|found| (found.id, found))
            .collect()
    }

    fn memfd(&self, fd: i32) -> Option<Found> {
        let link = proc::link(self.pid, &format!("fd/{fd}")).ok()?;
        let name = link
            .strip_prefix("/memfd:")?
            .strip_suffix(" (deleted)")?
            .to_owned();
        let id = crate::capture::files::file_id(self.pid, fd).ok()?;
        let place = PathBuf::from(format!("/proc/{}/fd/{fd}", self.pid));
        Some(Found {
            id,
            kind: ObjectKind::Memfd { name, seals: 0 },
            place,
        })
    }

    /// The mappings of the layout; `objects` knows the spaces of the shared objects.
    ///
    /// # Errors
    /// A mapping that cannot move.
    pub fn mappings(&self, vmas: &[Vma], objects: &Objects) -> Result<Vec<Mapping>, Refusal> {
        let ordinary = vmas.iter().filter(|vma| !vma.is_special());
        ordinary.map(|vma| self.mapping(vma, objects)).collect()
    }

    fn mapping(&self, vma: &Vma, objects: &Objects) -> Result<Mapping, Refusal> {
        let writable = vma.shared && may_write(vma);
        let backing = match classify(self.pid, vma, &self.memory_devices)? {
            Class::Anonymous => Backing::Anonymous,
            Class::File(path) => Backing::File {
                path,
                offset: vma.offset,
                writable,
            },
            Class::Object(_) => match objects.space(id_of(vma)) {
                Some(space) => Backing::Object {
                    space,
                    offset: vma.offset,
                    writable,
                },
                None => Backing::Anonymous, // cannot be: the objects come from the same maps
            },
        };
        let has = |flag| vma.flags.has(flag);
        Ok(Mapping {
            span: Span {
                start: vma.start,
                end: vma.end,
            },
            protection: vma.prot as u8,
            shared: vma.shared,
            backing,
            grows_down: has(VmFlags::GROWS_DOWN),
            no_reserve: has(VmFlags::NO_RESERVE),
            droppable: has(VmFlags::DROPPABLE),
            locked: has(VmFlags::LOCKED),
            advice: advice(vma.flags),
            name: anonymous_name(&vma.path),
        })
    }
}

fn advice(flags: VmFlags) -> AdviceSet {
    let pairs = [
        (VmFlags::HUGE_PAGE, Advice::HugePage),
        (VmFlags::NO_HUGE_PAGE, Advice::NoHugePage),
        (VmFlags::DONT_FORK, Advice::DontFork),
        (VmFlags::DONT_DUMP, Advice::DontDump),
        (VmFlags::WIPE_ON_FORK, Advice::WipeOnFork),
        (VmFlags::MERGEABLE, Advice::Mergeable),
        (VmFlags::SEQUENTIAL, Advice::Sequential),
        (VmFlags::RANDOM, Advice::Random),
    ];
    let set = AdviceSet::default();
    pairs
        .iter()
        .fold(set, |set, (flag, advice)| set.with(*advice, flags.has(*flag)))
}

/// `[anon:NAME]` or `[anon_shmem:NAME]` (PR_SET_VMA_ANON_NAME).
fn anonymous_name(path: &str) -> Option<String> {
    let inner = path
        .strip_prefix("[anon:")
        .or_else(|| path.strip_prefix("[anon_shmem:"))?;
    inner.strip_suffix(']').map(str::to_owned)
}

/// The kernel's own mappings in process `pid`, with the code.
///
/// # Errors
/// The code cannot be read.
pub fn kernel_mappings(pid: i32, vmas: &[Vma]) -> KernelResult<KernelMappings> {
    let special = vmas.iter().filter(|vma| vma.is_vdso_like());
    let mappings = special
        .map(|vma| {
            (
                vma.path.clone(),
                Span {
                    start: vma.start,
                    end: vma.end,
                },
            )
        })
        .collect();
    let mut found = KernelMappings {
        mappings,
        image: Vec::new(),
    };
    if let Some(vdso) = found.vdso() {
        found.image = vec![0; vdso.len() as usize];
        memory::read(pid, vdso.start, &mut found.image)?;
        blank_landing(&mut found.image);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(start: u64, end: u64, path: &str) -> Vma {
        let inode = u64::from(path.starts_with('/')) * 77;
        Vma {
            start,
            end,
            path: path.into(),
            inode,
            dev: inode,
            ..Vma::default()
        }
    }

    fn surveyor() -> Surveyor {
        Surveyor {
            pid: 1,
            memory_devices: HashSet::from([1]),
        }
    }

    #[test]
    fn flags_follow_a_mapping_that_grew_and_one_that_was_split() {
        let flagged = Vma {
            flags: VmFlags::NO_RESERVE,
            ..vma(0x4000, 0x8000, "")
        };
        let table = FlagTable::new(vec![vma(0x1000, 0x2000, "/a"), flagged]);
        let mut now = [
            vma(0x1000, 0x2000, "/a"),
            vma(0x3000, 0x6000, ""),
            vma(0x6000, 0x8000, ""),
        ];
        assert!(table.covers(&now));
        table.apply(&mut now);
        assert!(!now[0].flags.has(VmFlags::NO_RESERVE));
        assert!(now[1].flags.has(VmFlags::NO_RESERVE) && now[2].flags.has(VmFlags::NO_RESERVE));
        assert!(!table.covers(&[vma(0x9000, 0xa000, "")]));
        assert!(
            !table.covers(&[vma(0x1000, 0x2000, "")]),
            "another mapping in its place"
        );
    }

    #[test]
    fn what_lies_behind_a_mapping_is_told_from_its_name() {
        let shared = |path| Vma {
            shared: true,
            prot: 3,
            ..vma(0x1000, 0x2000, path)
        };
        let class = |vma: &Vma| classify(1, vma, &HashSet::from([5]));
        assert!(matches!(class(&vma(0, 1, "[heap]")), Ok(Class::Anonymous)));
        assert!(matches!(class(&vma(0, 1, "/dev/zero")), Ok(Class::Anonymous)));
        assert!(matches!(class(&vma(0, 1, "/bin/true")), Ok(Class::File(path)) if path == "/bin/true"));
        let kind = |vma: &Vma| match class(vma) {
            Ok(Class::Object(kind)) => kind,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(&shared("/dev/zero (deleted)")), ObjectKind::SharedAnonymous);
        let memfd = ObjectKind::Memfd {
            name: "x".into(),
            seals: 0,
        };
        assert_eq!(kind(&shared("/memfd:x (deleted)")), memfd);
        assert_eq!(
            kind(&shared("/a (deleted)")),
            ObjectKind::Unlinked { path: "/a".into() }
        );
        let carried = |path: &str| ObjectKind::CarriedFile {
            path: path.into(),
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        assert_eq!(
            kind(&shared("/tmp/hsperfdata_root/42")),
            carried("/tmp/hsperfdata_root/42")
        );
        assert_eq!(
            kind(&Vma {
                dev: 5,
                ..shared("/dev/shm/x")
            }),
            carried("/dev/shm/x")
        );
    }

    #[test]
    fn refusals_name_the_mapping_and_the_file() {
        let shared = Vma {
            shared: true,
            prot: 3,
            ..vma(0x1000, 0x2000, "/data/base.mdb")
        };
        let sentence = surveyor().objects(&[shared]).unwrap_err().to_string();
        assert!(
            sentence.contains("0x1000-0x2000") && sentence.contains("/data/base.mdb"),
            "{sentence}"
        );
        let sentence = surveyor()
            .objects(&[vma(0x1000, 0x2000, "/lib/x.so (deleted)")])
            .unwrap_err()
            .to_string();
        assert!(
            sentence.contains("/lib/x.so") && sentence.contains("deleted"),
            "{sentence}"
        );
    }

    #[test]
    fn memory_file_systems_are_found_in_mountinfo() {
        let line = "31 22 0:27 / /dev/shm rw,nosuid - tmpfs tmpfs rw";
        assert_eq!(memory_device(line), Some(libc::makedev(0, 27)));
        assert_eq!(
            memory_device("36 35 98:0 / /mnt rw shared:1 - ext4 /dev/root rw"),
            None
        );
        assert_eq!(memory_device("nonsense"), None);
    }

    #[test]
    fn our_own_mappings_are_understood() {
        let me = std::process::id() as i32;
        let vmas = whimbrel_kernel::maps::read_with_flags(me).unwrap();
        let surveyor = Surveyor::new(me).unwrap();
        let mut objects = Objects::default();
        objects.update(&surveyor.objects(&vmas).unwrap()).unwrap();
        let mappings = surveyor.mappings(&vmas, &objects).unwrap();
        assert!(mappings.iter().any(|m| m.grows_down), "the stack");
        let kernel = kernel_mappings(me, &vmas).unwrap();
        assert!(kernel.is_sane() && kernel.is_like(&kernel));
        assert!(crate::vdso::syscall_instruction(&kernel.image).is_some());
    }
}
