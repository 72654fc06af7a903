//! Real programs, and a destination on the same machine: a stub in a PID namespace of its own that gets the memory of the
//! source by the simplest way there is.

#![allow(clippy::unwrap_used, dead_code)] // helpers of tests; not every test uses all of them

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use whimbrel_kernel::maps::{self, Vma};
use whimbrel_kernel::memory::MemFile;
use whimbrel_kernel::pagemap::{Pagemap, ScanArgs};
use whimbrel_kernel::remote::{find_gadget, find_syscall, Remote, SCRATCH_BYTES};
use whimbrel_kernel::{memory, namespace, pidfd, ptrace};
use whimbrel_process::state::FileId;

/// Whoever runs the tests may have pipes open that programs inherit.
const CLOSE_OTHERS: &str =
    r#"for fd in /proc/self/fd/*; do n=${fd##*/}; ((n > 2)) && eval "exec $n>&-"; done; exec "$@""#;
/// Nothing that we wait for takes longer on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PAGE: u64 = 4096;
const TOP: u64 = 0x7fff_ffff_f000;

/// A program that writes to a file and ends with the test.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    pub fn start(name: &str, args: &[&str]) -> Program {
        let path = whimbrel_testbed::programs::c(name).unwrap();
        let unique = format!(
            "whimbrel-{}-{name}-{}",
            std::process::id(),
            args.join("-").replace('/', "_")
        );
        let log = std::env::temp_dir().join(unique);
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new("setsid");
        command
            .args(["bash", "-c", CLOSE_OTHERS, "bash"])
            .arg(path)
            .args(args);
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        Program {
            child: command.spawn().unwrap(),
            log,
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        text.lines().map(str::to_string).collect()
    }

    /// Waits until the program has written so many more lines, and none of them is a complaint.
    pub fn goes_on(&self, more: usize) {
        let wanted = self.lines().len() + more;
        let begin = Instant::now();
        while self.lines().len() < wanted {
            assert!(
                begin.elapsed() < PATIENCE,
                "stands still after {:?}",
                self.lines().last()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.lines().into_iter().find(|line| line.contains("BAD")), None);
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_file(&self.log);
    }
}

/// A stub, with its init, both children of this process. Belongs to the thread that made it (its tracer).
pub struct Destination {
    pub init: i32,
    pub stopped: Option<ptrace::Stopped>,
    pub remote: Remote,
    pub last_gadget: u64,
    pub objects: HashMap<FileId, File>,
}

fn children() -> Vec<i32> {
    let path = format!("/proc/self/task/{}/children", thread_id());
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}

/// The thread's own number.
fn thread_id() -> i32 {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

impl Destination {
    /// Makes a process `pid` in a new PID namespace.
    pub fn new(pid: i32) -> Destination {
        // a thread whose children go elsewhere cannot make threads any more
        let (init, stub) = std::thread::spawn(move || spawn_in_new_namespace(pid))
            .join()
            .unwrap();
        let stopped = ptrace::Stopped::stop_leader(stub).unwrap();
        let gadget = find_gadget(stub, &maps::read(stub).unwrap()).unwrap();
        let remote = Remote::new(stub, stub, gadget).unwrap();
        Destination {
            init,
            stopped: Some(stopped),
            remote,
            last_gadget: gadget,
            objects: HashMap::new(),
        }
    }

    pub fn pid(&self) -> i32 {
        self.remote.pid()
    }

    /// Lets it run.
    pub fn let_go(&mut self) {
        self.stopped.take().unwrap().detach();
    }

    /// Empties the stub and gives it the mappings and the memory of the stopped process `source`.
    pub fn copy(&mut self, source: i32) {
        let wanted = maps::read(source).unwrap();
        let own = maps::read(self.pid()).unwrap();
        let hole = hole(&wanted, &own, 2 * SCRATCH_BYTES);
        self.remote.install(Some(hole)).unwrap();
        self.remote.use_scratch_gadget().unwrap();
        self.forget_rseq();
        let parked = hole + SCRATCH_BYTES;
        self.move_vdso(&own, &wanted, parked, hole);
        for vma in wanted.iter().filter(|vma| !vma.is_special()) {
            self.map(source, vma);
        }
        self.fill(source, &wanted);
        for vma in wanted.iter().filter(|vma| !vma.is_special()) {
            let args = [vma.start, vma.len(), vma.prot as u64];
            self.remote.call("mprotect", libc::SYS_mprotect, &args).unwrap();
        }
    }

    fn forget_rseq(&mut self) {
        let rseq = ptrace::rseq(self.pid()).unwrap();
        if rseq.pointer != 0 {
            let args = [rseq.pointer, rseq.size.into(), 1, rseq.signature.into()];
            self.remote.call("rseq", libc::SYS_rseq, &args).unwrap();
        }
    }

    /// Parks the vdso, unmaps everything else, and puts the vdso where the source has it.
    fn move_vdso(&mut self, own: &[Vma], wanted: &[Vma], parked: u64, hole: u64) {
        let vdso: Vec<&Vma> = own.iter().filter(|vma| vma.is_vdso_like()).collect();
        let first = vdso[0].start;
        let end = parked + vdso.last().unwrap().end - first;
        for vma in &vdso {
            let args = [vma.start, vma.len(), vma.len(), 3, parked + vma.start - first];
            self.remote.call("mremap", libc::SYS_mremap, &args).unwrap();
        }
        for (from, to) in [(PAGE * 16, hole), (end, TOP)] {
            self.remote
                .call("munmap", libc::SYS_munmap, &[from, to - from])
                .unwrap();
        }
        for vma in &vdso {
            let to = wanted.iter().find(|other| other.path == vma.path).unwrap();
            let args = [parked + vma.start - first, vma.len(), vma.len(), 3, to.start];
            self.remote.call("mremap", libc::SYS_mremap, &args).unwrap();
        }
        let text = wanted.iter().find(|vma| vma.path == "[vdso]").unwrap();
        let mut code = vec![0; text.len() as usize];
        memory::read(self.pid(), text.start, &mut code).unwrap();
        self.last_gadget = text.start + find_syscall(&code).unwrap();
    }

    fn map(&mut self, source: i32, vma: &Vma) {
        let file = if vma.shared && (vma.is_memfd() || vma.is_deleted()) {
            let id = FileId {
                device: vma.dev,
                inode: vma.inode,
            };
            if !self.objects.contains_key(&id) {
                let copy = self.copy_object(source, vma);
                self.objects.insert(id, copy);
            }
            let object = &self.objects[&id];
            Some(format!("/proc/{}/fd/{}", std::process::id(), object.as_raw_fd()))
        } else {
            (vma.inode != 0).then(|| vma.path.clone())
        };
        let kind = if vma.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        let anonymous = if file.is_none() { libc::MAP_ANONYMOUS } else { 0 };
        let flags = (kind | anonymous | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE) as u64;
        let fd = file.map_or(u64::MAX, |path| self.open(&path, vma.shared));
        let protection = (libc::PROT_READ
            | if vma.shared || fd == u64::MAX {
                libc::PROT_WRITE
            } else {
                0
            }) as u64;
        let args = [vma.start, vma.len(), protection, flags, fd, vma.offset];
        self.remote.call("mmap", libc::SYS_mmap, &args).unwrap();
        if fd != u64::MAX {
            self.remote.call("close", libc::SYS_close, &[fd]).unwrap();
        }
    }

    /// A memory object of ours with the content of the one that `vma` maps.
    fn copy_object(&mut self, source: i32, vma: &Vma) -> File {
        let original = File::open(format!("/proc/{source}/map_files/{:x}-{:x}", vma.start, vma.end)).unwrap();
        let (address, _) = self.remote.scratch().unwrap();
        memory::write(self.pid(), address, b"copy\0").unwrap();
        let fd = self
            .remote
            .call("memfd_create", libc::SYS_memfd_create, &[address, 3])
            .unwrap();
        let stub = pidfd::open(self.pid()).unwrap();
        let copy = File::from(pidfd::getfd(stub.as_fd(), fd as i32).unwrap());
        let mut bytes = vec![0; original.metadata().unwrap().len() as usize];
        original.read_exact_at(&mut bytes, 0).unwrap();
        copy.write_all_at(&bytes, 0).unwrap();
        copy
    }

    fn open(&mut self, path: &str, write: bool) -> u64 {
        let (address, _) = self.remote.scratch().unwrap();
        let mut name = path.as_bytes().to_vec();
        name.push(0);
        memory::write(self.pid(), address, &name).unwrap();
        let flags = if write { libc::O_RDWR } else { libc::O_RDONLY };
        self.remote
            .call(
                "openat",
                libc::SYS_openat,
                &[libc::AT_FDCWD as u64, address, flags as u64, 0],
            )
            .unwrap()
    }

    /// Copies what the source has of its own in private mappings.
    fn fill(&mut self, source: i32, wanted: &[Vma]) {
        let (from, to) = (MemFile::open(source).unwrap(), MemFile::open(self.pid()).unwrap());
        let pagemap = Pagemap::open(source).unwrap();
        for vma in wanted.iter().filter(|vma| !vma.is_special() && !vma.shared) {
            let mut found = Vec::new();
            pagemap
                .scan(vma.start..vma.end, ScanArgs::private_present(), &mut found)
                .unwrap();
            for region in &found {
                let mut bytes = vec![0; region.len() as usize];
                from.read(region.start, &mut bytes).unwrap();
                to.write(region.start, &bytes).unwrap();
            }
        }
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if let Some(stopped) = self.stopped.take() {
            let _ = stopped.kill();
        }
        // the end of init ends everything in the namespace
        let init = pidfd::open(self.init).unwrap();
        pidfd::send_signal(init.as_fd(), libc::SIGKILL).unwrap();
        // it waits for the others, whose parent is this process
        for pid in [self.pid(), self.init] {
            while !matches!(ptrace::wait(pid), Ok(ptrace::Stop::Gone(_)) | Err(_)) {}
        }
    }
}

fn spawn_in_new_namespace(pid: i32) -> (i32, i32) {
    namespace::unshare(namespace::Kinds::PID).unwrap();
    namespace::spawn_idle(1).unwrap();
    let init = new_child(&[]);
    namespace::spawn_idle(pid).unwrap();
    (init, new_child(&[init]))
}

fn new_child(before: &[i32]) -> i32 {
    children().into_iter().find(|pid| !before.contains(pid)).unwrap()
}

/// A gap of `bytes` in both address spaces.
fn hole(first: &[Vma], second: &[Vma], bytes: u64) -> u64 {
    let mut at = 0x1000_0000u64;
    loop {
        let end = at + bytes;
        let hit = first
            .iter()
            .chain(second)
            .filter(|vma| vma.start < end && at < vma.end)
            .map(|vma| vma.end)
            .max();
        match hit {
            Some(next) => at = next,
            None => return at,
        }
    }
}
