//! Real programs, and a destination on the same machine: a stub in a PID namespace of its own that gets the memory of the
//! source by the simplest way there is.

#![allow(clippy::unwrap_used, dead_code)] // helpers of tests; not every test uses all of them

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use whimbrel_kernel::maps::{self, Vma};
use whimbrel_kernel::memory::MemFile;
use whimbrel_kernel::pagemap::{Pagemap, ScanArgs};
use whimbrel_kernel::remote::{find_gadget, find_syscall, Remote, SCRATCH_BYTES};
use whimbrel_kernel::{memory, namespace, pidfd, ptrace};
use whimbrel_process::capture::{self, Captured, Input, Prefetch, RestartMemo};
use whimbrel_process::container::{self, Entry, Options, Phase, Registry};
use whimbrel_process::rebuild::{self, Target};
use whimbrel_process::state::{FileId, FileKind, Socket, SocketDetail, State, TcpConnection, ThreadState};
use whimbrel_process::{ProcessReplica, ProcessWorkload};

/// Whoever runs the tests may have pipes open that programs inherit.
const CLOSE_OTHERS: &str =
    r#"for fd in /proc/self/fd/*; do n=${fd##*/}; ((n > 2)) && eval "exec $n>&-"; done; exec "$@""#;
/// Nothing that we wait for takes longer on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);
const PAGE: u64 = 4096;
const TOP: u64 = 0x7fff_ffff_f000;

/// A host: a list of workloads of its own.
pub struct Host {
    pub registry: Registry,
    pub root: PathBuf,
}

impl Host {
    pub fn new(test: &str) -> Host {
        let root = std::env::temp_dir().join(format!("whimbrel-moves-{}-{test}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        Host {
            registry: Registry::at(&root),
            root,
        }
    }

    pub fn replica(&self) -> ProcessReplica {
        let test = std::env::current_exe().unwrap();
        let program = test.ancestors().nth(2).unwrap().join("examples/init");
        let missing = "build it with: cargo build -p whimbrel-process --examples";
        assert!(program.exists(), "{} is missing; {missing}", program.display());
        let registry = self.registry.clone();
        ProcessReplica::new(Options {
            program,
            registry,
            ..Options::default()
        })
    }

    /// The one workload that runs here.
    pub fn entry(&self) -> Entry {
        let mut entries = self.registry.list().unwrap();
        entries.retain(|entry| entry.phase == Phase::Running);
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries.remove(0)
    }

    /// The directory goes with the last workload.
    pub fn is_empty(&self) {
        assert_eq!(fs::read_dir(&self.root).map_or(0, Iterator::count), 0);
    }

    pub fn source(&self) -> ProcessWorkload {
        let entry = self.entry();
        ProcessWorkload::new(entry.process.unwrap().pid, Some(&entry)).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for entry in self.registry.list().unwrap_or_default() {
            let _ = container::end(&entry.resources);
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// A program that writes to a file and ends with the test.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    pub fn start(name: &str, args: &[&str]) -> Program {
        Program::start_in(name, args, None)
    }

    /// Starts it in a network namespace.
    pub fn start_in(name: &str, args: &[&str], network: Option<BorrowedFd<'_>>) -> Program {
        let path = whimbrel_testbed::programs::c(name).unwrap();
        let mut words = vec![path.to_str().unwrap()];
        words.extend(args);
        Program::run(&words, Stdio::null(), network)
    }

    /// Starts a Perl script; every Debian has the interpreter.
    pub fn perl(script: &str, input: Stdio) -> Program {
        Program::run(&["/usr/bin/perl", "-e", &perl(script)], input, None)
    }

    /// The same in a network namespace.
    pub fn perl_in(script: &str, network: Option<BorrowedFd<'_>>) -> Program {
        Program::run(&["/usr/bin/perl", "-e", &perl(script)], Stdio::null(), network)
    }

    pub fn run(words: &[&str], input: Stdio, network: Option<BorrowedFd<'_>>) -> Program {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("whimbrel-program-{}-{count}", std::process::id()));
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new("setsid");
        command.args(["bash", "-c", CLOSE_OTHERS, "bash"]).args(words);
        command.stdin(input).stdout(out.try_clone().unwrap()).stderr(out);
        let child = match network {
            Some(network) => namespace::in_network(network, || command.spawn())
                .unwrap()
                .unwrap(),
            None => command.spawn().unwrap(),
        };
        Program { child, log }
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
        self.has_written(self.lines().len() + more);
    }

    /// Waits until the program has written so many lines in all, and none of them is a complaint.
    pub fn has_written(&self, wanted: usize) {
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

fn perl(script: &str) -> String {
    let begin = "use strict; use warnings; use Socket; use POSIX (); $| = 1; sub done { print \"ready\\n\"; sleep 1000 } ";
    format!("{begin} {script}; done()")
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
    /// What it was built from.
    pub state: Option<State>,
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
    /// Makes a process `pid` in a new PID namespace, and in the network namespace `network`.
    pub fn new(pid: i32, network: Option<BorrowedFd<'_>>) -> Destination {
        // a thread whose children go elsewhere cannot make threads any more
        let (init, stub) = match network {
            Some(network) => namespace::in_network(network, || spawn_in_new_namespace(pid)).unwrap(),
            None => std::thread::spawn(move || spawn_in_new_namespace(pid))
                .join()
                .unwrap(),
        };
        let stopped = ptrace::Stopped::stop_leader(stub).unwrap();
        let gadget = find_gadget(stub, &maps::read(stub).unwrap()).unwrap();
        let remote = Remote::new(stub, stub, gadget).unwrap();
        Destination {
            init,
            stopped: Some(stopped),
            remote,
            last_gadget: gadget,
            objects: HashMap::new(),
            state: None,
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

pub fn try_capture(stopped: &ptrace::Stopped) -> capture::Result<Captured> {
    capture_with(stopped, &mut RestartMemo::default())
}

fn capture_with(stopped: &ptrace::Stopped, memo: &mut RestartMemo) -> capture::Result<Captured> {
    let pid = stopped.pid();
    let prefetch = Prefetch::read(pid)?;
    let mappings = maps::read(pid)?;
    capture::capture(Input {
        stopped,
        mappings: &mappings,
        prefetch: &prefetch,
        memo,
    })
}

pub fn capture_stopped(stopped: &ptrace::Stopped, memo: &mut RestartMemo) -> Captured {
    capture_with(stopped, memo).unwrap()
}

/// How a program moves.
#[derive(Default)]
pub struct Journey<'a> {
    /// The network namespace at the other end.
    pub network: Option<BorrowedFd<'a>>,
    /// Cuts the network, when every thread has stopped.
    pub cut: Option<&'a dyn Fn()>,
    /// Opens it at the other end.
    pub open: Option<&'a dyn Fn()>,
}

/// Moves the program on; what it was before has ended when this returns.
pub fn move_on(
    program: &mut Program,
    before: Option<Destination>,
    memo: &mut RestartMemo,
    journey: &Journey<'_>,
) -> Destination {
    let pid = before.as_ref().map_or(program.pid(), Destination::pid);
    let stopped = ptrace::Stopped::stop(pid).unwrap();
    journey.cut.iter().for_each(|cut| cut());
    let begin = Instant::now();
    let captured = capture_stopped(&stopped, memo);
    let capture_time = begin.elapsed();
    let mut destination = Destination::new(captured.state.processes[0].pid, journey.network);
    destination.copy(pid);
    let begin = Instant::now();
    let objects = &destination.objects;
    let mut target = Target {
        remote: &mut destination.remote,
        last_gadget: destination.last_gadget,
        network: journey.network,
        object: &|id| objects.get(&id).map(std::os::fd::AsFd::as_fd),
    };
    let last_gadget = target.last_gadget;
    let mut built = rebuild::build(&mut target, &captured.state).unwrap();
    let repaired = std::mem::take(&mut built.repaired);
    let tids = rebuild::finish(target.remote, last_gadget, &captured.state, built).unwrap();
    println!(
        "{} threads: capture {capture_time:?}, rebuild {:?}",
        tids.len(),
        begin.elapsed()
    );
    stopped.kill().unwrap();
    match before {
        Some(before) => drop(before),
        None => program.kill(),
    }
    let born = destination.stopped.as_mut().unwrap();
    born.add(&tids[1..]);
    let again = capture_stopped(born, &mut RestartMemo::default());
    agree(captured.state.clone(), again.state);
    destination.state = Some(captured.state);
    journey.open.iter().for_each(|open| open());
    capture::leave_repair(destination.pid(), &repaired).unwrap();
    destination.let_go();
    destination
}

/// Both states are the same but for the numbers of inodes and the time that has passed.
fn agree(before: State, after: State) {
    let (before, after) = (plain(before), plain(after));
    let (left, right) = (&before.processes[0], &after.processes[0]);
    assert_eq!(left.threads.len(), right.threads.len());
    for (left, right) in left.threads.iter().zip(&right.threads) {
        let differs = left
            .extended_registers
            .iter()
            .zip(&right.extended_registers)
            .position(|(a, b)| a != b);
        assert_eq!(differs, None, "extended registers of thread {}", left.tid);
        let readable = |thread: &ThreadState| ThreadState {
            extended_registers: Vec::new(),
            ..thread.clone()
        };
        assert_eq!(readable(left), readable(right), "thread {}", left.tid);
    }
    assert_eq!(before.files.len(), after.files.len());
    for (index, (left, right)) in before.files.iter().zip(&after.files).enumerate() {
        if let (FileKind::Socket(left), FileKind::Socket(right)) = (&left.kind, &right.kind) {
            same_socket(left, right);
        }
        assert!(left == right, "file {index}: {left:?} {right:?}");
    }
    assert_eq!(left.memory, right.memory);
    assert_eq!(left.signals, right.signals);
    assert_eq!(left.timers, right.timers);
    assert_eq!(left.credentials, right.credentials);
    assert_eq!(left.resource_limits, right.resource_limits);
    assert_eq!(left.attributes, right.attributes);
    assert_eq!(left.filesystem, right.filesystem);
    assert_eq!(left.descriptors, right.descriptors);
    assert!(before == after);
}

/// Names what differs, without printing megabytes.
fn same_socket(left: &Socket, right: &Socket) {
    let bare = |socket: &Socket| Socket {
        options: Vec::new(),
        detail: SocketDetail::Idle,
        ..socket.clone()
    };
    assert_eq!(bare(left), bare(right));
    for (left, right) in left.options.iter().zip(&right.options) {
        assert_eq!(left, right);
    }
    if let (SocketDetail::Tcp(left), SocketDetail::Tcp(right)) = (&left.detail, &right.detail) {
        assert!(left.receive_queue == right.receive_queue && left.send_queue == right.send_queue);
        let bare = |connection: &TcpConnection| {
            let empty = Vec::new();
            TcpConnection {
                receive_queue: empty.clone(),
                send_queue: empty,
                ..connection.clone()
            }
        };
        assert_eq!(bare(left), bare(right));
    }
}

/// Without what differs between two captures of the same state.
fn plain(mut state: State) -> State {
    state.clocks = Default::default();
    let mut ranks: HashMap<u64, u64> = HashMap::new();
    let mut rank = |inode: u64| {
        if inode == 0 {
            0
        } else {
            let next = ranks.len() as u64 + 1;
            *ranks.entry(inode).or_insert(next)
        }
    };
    for file in &mut state.files {
        match &mut file.kind {
            FileKind::Socket(socket) => {
                socket.inode = rank(socket.inode);
                // set in units of two bytes
                socket.buffers.receive &= !1;
                match &mut socket.detail {
                    SocketDetail::Unix(end) => end.peer = rank(end.peer),
                    SocketDetail::Tcp(connection) => {
                        // the clock goes on; a closed window stands for the peer's until it answers; the peer's FIN is only its end
                        // of file here
                        connection.timestamp = 0;
                        connection.window[1] = 0;
                        // looking into a full queue makes the kernel choose our window again
                        connection.window[3] = 0;
                    }
                    _ => {}
                }
                // what the repair mode makes of SO_REUSEADDR
                let repaired = matches!(socket.detail, SocketDetail::Tcp(_));
                socket
                    .options
                    .retain(|option| !(repaired && (option.level, option.name) == (1, libc::SO_REUSEADDR)));
            }
            FileKind::Memory { object, .. } => *object = Default::default(),
            // the kernel orders them by their addresses
            FileKind::Epoll(registrations) => registrations.sort_by_key(|registration| registration.fd),
            FileKind::Timer(timer) => {
                // armed by its deadline; it may expire meanwhile
                timer.remaining_ns = timer.remaining_ns.min(1);
                timer.ticks = 0;
                timer.settime_flags = 0;
            }
            _ => {}
        }
    }
    for process in &mut state.processes {
        // one whose signal waits to be delivered stands still until then
        process
            .timers
            .interval
            .iter_mut()
            .for_each(|(_, value)| *value = 0);
        process
            .timers
            .posix
            .iter_mut()
            .for_each(|timer| timer.remaining_ns = timer.remaining_ns.min(1));
        process.attributes.process_group = 0;
        process.attributes.session = 0;
        // timers may fire meanwhile
        process.signals.pending.clear();
        process
            .threads
            .iter_mut()
            .for_each(|thread| thread.pending.clear());
    }
    state
}
