//! The mappings of a process: `/proc/pid/maps` and `/proc/pid/smaps` (proc(5), Documentation/filesystems/proc.rst).

use crate::error::{Error, Result};
use crate::proc;

/// More mappings than any process has (`vm.max_map_count` is 65530 unless raised).
const MAPPINGS_MAX: usize = 1 << 20;
const DELETED: &str = " (deleted)";

/// What smaps tells of a mapping in its `VmFlags` line: a set of two-letter codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VmFlags(u64);

macro_rules! vm_flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $code:literal;)*) => {
        impl VmFlags {
            $($(#[$doc])* pub const $name: VmFlags = VmFlags(1 << $bit);)*
            fn from_code(code: &str) -> VmFlags {
                match code {
                    $($code => Self::$name,)*
                    _ => Self::UNKNOWN,
                }
            }
        }
    };
}

vm_flags! {
    /// Readable.
    READ = 0, "rd";
    /// Writable.
    WRITE = 1, "wr";
    /// Executable.
    EXEC = 2, "ex";
    /// Shared.
    SHARED = 3, "sh";
    /// May become readable.
    MAY_READ = 4, "mr";
    /// May become writable.
    MAY_WRITE = 5, "mw";
    /// May become executable.
    MAY_EXEC = 6, "me";
    /// May become shared.
    MAY_SHARE = 7, "ms";
    /// A stack that grows down (MAP_GROWSDOWN).
    GROWS_DOWN = 8, "gd";
    /// Page frames without a `struct page`.
    PFN_MAP = 9, "pf";
    /// Locked (mlock(2)).
    LOCKED = 10, "lo";
    /// Memory of a device.
    IO = 11, "io";
    /// MADV_SEQUENTIAL.
    SEQUENTIAL = 12, "sr";
    /// MADV_RANDOM.
    RANDOM = 13, "rr";
    /// MADV_DONTFORK.
    DONT_FORK = 14, "dc";
    /// Not to be enlarged by mremap(2).
    DONT_EXPAND = 15, "de";
    /// Counted against the commit limit.
    ACCOUNT = 16, "ac";
    /// MAP_NORESERVE.
    NO_RESERVE = 17, "nr";
    /// Pages of hugetlbfs.
    HUGETLB = 18, "ht";
    /// MAP_SYNC.
    SYNC = 19, "sf";
    /// Architecture's own (x86: unused).
    ARCH = 20, "ar";
    /// MADV_WIPEONFORK.
    WIPE_ON_FORK = 21, "wf";
    /// MADV_DONTDUMP.
    DONT_DUMP = 22, "dd";
    /// Soft-dirty: made or written since the marks were cleared.
    SOFT_DIRTY = 23, "sd";
    /// Mixed map.
    MIXED_MAP = 24, "mm";
    /// MADV_HUGEPAGE.
    HUGE_PAGE = 25, "hg";
    /// MADV_NOHUGEPAGE.
    NO_HUGE_PAGE = 26, "nh";
    /// MADV_MERGEABLE.
    MERGEABLE = 27, "mg";
    /// Registered with a userfaultfd for missing pages.
    UFFD_MISSING = 28, "um";
    /// Registered with a userfaultfd for write protection.
    UFFD_WP = 29, "uw";
    /// Registered with a userfaultfd for minor faults.
    UFFD_MINOR = 30, "ui";
    /// Sealed (mseal(2)).
    SEALED = 31, "sl";
    /// A shadow stack.
    SHADOW_STACK = 32, "ss";
    /// Locked on fault (MLOCK_ONFAULT).
    LOCK_ON_FAULT = 33, "lf";
    /// Droppable (getrandom's vdso state, MAP_DROPPABLE).
    DROPPABLE = 34, "dp";
    /// A code that this version does not know.
    UNKNOWN = 63, "";
}

impl VmFlags {
    /// No flags.
    pub const NONE: VmFlags = VmFlags(0);

    /// Whether all of `other` are set.
    pub fn has(self, other: VmFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    pub fn with(self, other: VmFlags) -> VmFlags {
        VmFlags(self.0 | other.0)
    }

    /// The set as a number whose meaning is this version's.
    pub fn bits(self) -> u64 {
        self.0
    }

    fn parse(codes: &str) -> VmFlags {
        codes
            .split_whitespace()
            .fold(VmFlags::NONE, |set, code| set.with(VmFlags::from_code(code)))
    }
}

/// One mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC`.
    pub prot: i32,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Device of the file, as `st_dev` (makedev(3)); 0 without one.
    pub dev: u64,
    /// Inode of the file; 0 without one.
    pub inode: u64,
    /// Path of the file, `[heap]` and the like, or empty. Newlines are themselves; what is not UTF-8 is replaced.
    pub path: String,
    /// The flags of smaps; empty when read from maps.
    pub flags: VmFlags,
    /// Bytes of it in huge pages (`AnonHugePages`); 0 when read from maps.
    pub huge_bytes: u64,
}

impl Vma {
    /// Bytes of address space.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it spans nothing (no mapping of a process does).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Part of the vdso: `[vdso]`, `[vvar]`, `[vvar_vclock]`. They come in any order, but always side by side.
    pub fn is_vdso_like(&self) -> bool {
        self.path == "[vdso]" || self.path.starts_with("[vvar")
    }

    /// Given by the kernel itself; neither tracked nor moved: the vdso, `[vsyscall]`, `[uprobes]`.
    pub fn is_special(&self) -> bool {
        self.is_vdso_like() || self.path == "[vsyscall]" || self.path == "[uprobes]"
    }

    /// Private memory without a file (heap, stacks).
    pub fn is_anonymous(&self) -> bool {
        !self.shared && self.inode == 0 && !self.is_special()
    }

    /// Mapping of something with an inode: a file, or shared memory.
    pub fn has_inode(&self) -> bool {
        self.inode != 0
    }

    /// Mapping of a memfd_create(2) object.
    pub fn is_memfd(&self) -> bool {
        self.inode != 0 && self.path.starts_with("/memfd:")
    }

    /// MAP_SHARED | MAP_ANONYMOUS memory (the kernel shows it as a deleted `/dev/zero`).
    pub fn is_shared_anonymous(&self) -> bool {
        self.shared && self.inode != 0 && self.path == "/dev/zero (deleted)"
    }

    /// System V shared memory (shmat(2)).
    pub fn is_sysv(&self) -> bool {
        self.inode != 0 && self.path.starts_with("/SYSV")
    }

    /// Whether the file has no name any more. A file that is really called so looks the same.
    pub fn is_deleted(&self) -> bool {
        self.inode != 0 && self.path.ends_with(DELETED)
    }

    /// The path of the file without the mark of a deleted one.
    pub fn file_path(&self) -> Option<&str> {
        let named = self.inode != 0 && self.path.starts_with('/');
        named.then(|| self.path.strip_suffix(DELETED).unwrap_or(&self.path))
    }
}

/// The mappings of a process, in order of address.
pub fn read(pid: i32) -> Result<Vec<Vma>> {
    parse_file(pid, "maps")
}

/// The same with their flags, from smaps. Slow, since the kernel walks all page tables for it: 31 ms with 2 GB resident.
pub fn read_with_flags(pid: i32) -> Result<Vec<Vma>> {
    parse_file(pid, "smaps")
}

fn parse_file(pid: i32, file: &str) -> Result<Vec<Vma>> {
    let bytes = proc::bytes(pid, file)?;
    let text = String::from_utf8_lossy(&bytes);
    parse(&text).map_err(|line| {
        Error::other(format!(
            "/proc/{pid}/{file} has a line that cannot be understood: {line}"
        ))
    })
}

/// Parses maps or smaps; the error is the line that makes no sense.
fn parse(text: &str) -> std::result::Result<Vec<Vma>, String> {
    let mut vmas: Vec<Vma> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if line.starts_with(|first: char| first.is_ascii_uppercase()) {
            if let Some(vma) = vmas.last_mut() {
                detail(vma, line);
            }
            continue;
        }
        let mut vma = parse_line(line).ok_or_else(|| line.to_string())?;
        // The kernel goes on after the last address that it has shown. A mapping of a running process that grew meanwhile begins
        // before that; only its new part counts.
        let shown = vmas.last().map_or(0, |last: &Vma| last.end);
        if vma.end <= shown || vmas.len() >= MAPPINGS_MAX {
            return Err(line.to_string());
        }
        if vma.start < shown {
            vma.offset += if vma.inode == 0 { 0 } else { shown - vma.start };
            vma.start = shown;
        }
        vmas.push(vma);
    }
    Ok(vmas)
}

/// What smaps tells about a mapping in a line of its own.
fn detail(vma: &mut Vma, line: &str) {
    if let Some(codes) = line.strip_prefix("VmFlags:") {
        vma.flags = VmFlags::parse(codes);
    } else if let Some(size) = line.strip_prefix("AnonHugePages:") {
        let kilobytes = size.trim().trim_end_matches(" kB").parse();
        vma.huge_bytes = kilobytes.map_or(0, |kilobytes: u64| kilobytes << 10);
    }
}

fn parse_line(line: &str) -> Option<Vma> {
    let mut parts = line.splitn(6, ' ');
    let (start, end) = parts.next()?.split_once('-')?;
    let permissions = parts.next()?.as_bytes();
    let hexadecimal = |word: &str| u64::from_str_radix(word, 16).ok();
    let offset = hexadecimal(parts.next()?)?;
    let (major, minor) = parts.next()?.split_once(':')?;
    let dev = libc::makedev(hexadecimal(major)? as u32, hexadecimal(minor)? as u32);
    let inode = parts.next()?.parse().ok()?;
    let path = unescape(parts.next().unwrap_or("").trim_start_matches(' '));
    let vma = Vma {
        start: hexadecimal(start)?,
        end: hexadecimal(end)?,
        prot: protection(permissions),
        shared: permissions.get(3) == Some(&b's'),
        offset,
        dev,
        inode,
        path,
        flags: VmFlags::NONE,
        huge_bytes: 0,
    };
    (vma.start < vma.end && permissions.len() == 4).then_some(vma)
}

fn protection(permissions: &[u8]) -> i32 {
    let bit = |at: usize, letter: u8, bit: i32| {
        if permissions.get(at) == Some(&letter) {
            bit
        } else {
            0
        }
    };
    bit(0, b'r', libc::PROT_READ) | bit(1, b'w', libc::PROT_WRITE) | bit(2, b'x', libc::PROT_EXEC)
}

/// The kernel writes a newline in a path as `\012` and nothing else in another way.
fn unescape(path: &str) -> String {
    path.replace("\\012", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ODD: &str = "\
00400000-00452000 r-xp 00001000 08:02 173521                             /usr/bin/a b  c\n\
Size:                328 kB\n\
VmFlags: rd ex mr mw me zz \n\
7f0000000000-7f0000001000 rw-s 00000000 00:01 1025                       /memfd:x y (deleted)\n\
VmFlags: rd wr sh mr mw me ms sd\n\
7f0000002000-7f0000003000 ---p 00000000 00:00 0 \n\
VmFlags: mr mw me nr hg um\n\
7f0000004000-7f0000005000 r--p 00000000 fe:10 7                          /tmp/new\\012line (deleted)\n\
7ffff7fbf000-7ffff7fc3000 r--p 00000000 00:00 0                          [vvar]\n\
7ffff7fc3000-7ffff7fc5000 r--p 00000000 00:00 0                          [vvar_vclock]\n\
7ffff7fc5000-7ffff7fc7000 r-xp 00000000 00:00 0                          [vdso]\n\
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

    fn odd(index: usize) -> Vma {
        parse(ODD).unwrap().get(index).unwrap().clone()
    }

    #[test]
    fn paths_keep_their_spaces_and_newlines() {
        assert_eq!(odd(0).path, "/usr/bin/a b  c");
        assert_eq!(odd(3).file_path(), Some("/tmp/new\nline"));
        assert!(odd(3).is_deleted());
        assert_eq!((libc::major(odd(3).dev), libc::minor(odd(3).dev)), (0xfe, 0x10));
    }

    #[test]
    fn flags_are_sets_and_unknown_ones_are_told() {
        let flags = odd(0).flags;
        assert!(flags.has(VmFlags::READ.with(VmFlags::EXEC)) && flags.has(VmFlags::UNKNOWN));
        assert!(odd(2).flags.has(VmFlags::UFFD_MISSING) && !odd(2).flags.has(VmFlags::UNKNOWN));
        assert!(odd(2).flags.has(VmFlags::NO_RESERVE) && !odd(2).flags.has(VmFlags::READ));
    }

    #[test]
    fn kinds_are_told_apart() {
        assert!(odd(1).is_memfd() && odd(1).shared && !odd(1).is_anonymous());
        assert!(odd(2).is_anonymous() && odd(2).prot == 0);
        assert_eq!(
            (4..8).map(|i| odd(i).is_vdso_like()).collect::<Vec<_>>(),
            [true, true, true, false]
        );
        assert!(odd(7).is_special());
        assert_eq!(odd(4).file_path(), None);
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_panic() {
        for line in [
            "x",
            "1-",
            "2-1 r--p 0 0:0 0",
            "1-2 r--p",
            "1-2 r- 0 0:0 0 ",
            "1-2 r--p 0 00 0",
            "-",
            "é-é é é é é",
        ] {
            assert_eq!(parse(line), Err(line.to_string()));
        }
        assert!(
            parse("1000-2000 r--p 0 0:0 0\n0-1000 r--p 0 0:0 0").is_err(),
            "out of order"
        );
    }

    #[test]
    fn a_mapping_that_grew_while_we_read_counts_from_where_we_were() {
        let vmas = parse("1000-3000 rw-p 0 0:0 0\n2000-5000 rw-p 7000 1:2 9 /a\n").unwrap();
        assert_eq!(
            (vmas[1].start, vmas[1].end, vmas[1].offset),
            (0x3000, 0x5000, 0x8000)
        );
    }

    #[test]
    fn our_own_mappings_agree_in_both_files() {
        let me = std::process::id() as i32;
        let here = ODD.as_ptr() as u64;
        for vmas in [read(me).unwrap(), read_with_flags(me).unwrap()] {
            assert!(vmas.iter().any(|vma| vma.path == "[vdso]"));
            assert!(vmas.iter().any(|vma| vma.start <= here && here < vma.end));
        }
        let unknown: Vec<Vma> = read_with_flags(me).unwrap();
        assert!(
            unknown.iter().all(|vma| !vma.flags.has(VmFlags::UNKNOWN)),
            "this kernel has a flag we do not know"
        );
    }
}
