//! A process whose main thread does what a test tells it: loads, stores and system calls, one by one.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Words of an order: kind, then arguments.
const ORDER_WORDS: usize = 8;
const CALL: u64 = 1;
const STORE: u64 = 2;
const LOAD: u64 = 3;
const THREAD: u64 = 4;
pub const FORK: u64 = 5;
/// Makes so many threads that end at once.
pub const CHURN: u64 = 6;

pub const PAGE: u64 = 4096;
/// No order takes longer.
const REPLY_MAX_MS: i32 = 60_000;

/// Makes a second thread that takes orders.
const TWIN: u64 = 7;

/// Ends with the thread that made it at the latest.
pub struct Puppet {
    pub pid: i32,
    orders: File,
    replies: File,
    twin: Option<[OwnedFd; 4]>,
    reaped: bool,
}

/// A second thread of a puppet that does what it is told.
pub struct Twin {
    orders: File,
    replies: File,
}

impl Twin {
    /// Begins a system call without waiting for its end.
    pub fn begin_call(&mut self, number: i64, args: &[u64]) {
        let mut order = [0u64; ORDER_WORDS];
        (order[0], order[1]) = (CALL, number as u64);
        order[2..2 + args.len()].copy_from_slice(args);
        self.send(order);
    }

    /// Begins to read a word.
    pub fn begin_load(&mut self, address: u64) {
        let mut order = [0u64; ORDER_WORDS];
        (order[0], order[1]) = (LOAD, address);
        self.send(order);
    }

    fn send(&mut self, order: [u64; ORDER_WORDS]) {
        let bytes: Vec<u8> = order.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.orders.write_all(&bytes).unwrap();
    }

    /// Waits for the answer.
    pub fn reply(&mut self) -> i64 {
        let mut reply = [0u8; 8];
        self.replies.read_exact(&mut reply).unwrap();
        i64::from_ne_bytes(reply)
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors, which are ours afterwards.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

impl Puppet {
    pub fn new() -> Puppet {
        let (orders_out, orders_in) = pipe();
        let (replies_out, replies_in) = pipe();
        let ((twin_orders_out, twin_orders_in), (twin_replies_out, twin_replies_in)) = (pipe(), pipe());
        // SAFETY: the child only makes system calls and never returns.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: no pointer is passed.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            dance(orders_out.as_raw_fd(), replies_in.as_raw_fd());
        }
        Puppet {
            pid,
            orders: File::from(orders_in),
            replies: File::from(replies_out),
            twin: Some([twin_orders_out, twin_replies_in, twin_orders_in, twin_replies_out]),
            reaped: false,
        }
    }

    /// Makes a second thread, once.
    pub fn twin(&mut self) -> Twin {
        let [orders_out, replies_in, orders_in, replies_out] = self.twin.take().unwrap();
        let fds = [orders_out.as_raw_fd() as u64, replies_in.as_raw_fd() as u64];
        self.begin(TWIN, &fds);
        assert_eq!(self.reply(), 0);
        Twin {
            orders: File::from(orders_in),
            replies: File::from(replies_out),
        }
    }

    /// Gives an order without waiting for its end.
    pub fn begin(&mut self, kind: u64, args: &[u64]) {
        let mut order = [0u64; ORDER_WORDS];
        order[0] = kind;
        order[1..=args.len()].copy_from_slice(args);
        let bytes: Vec<u8> = order.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.orders.write_all(&bytes).unwrap();
    }

    /// Waits for the end of the last order.
    pub fn reply(&mut self) -> i64 {
        let mut reply = [0; 8];
        let mut fd = libc::pollfd {
            fd: self.replies.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live record.
        let ready = unsafe { libc::poll(&mut fd, 1, REPLY_MAX_MS) };
        if ready != 1 || self.replies.read_exact(&mut reply).is_err() {
            let was = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
            // SAFETY: no pointer is passed; it is our child and has not been waited for.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            let status = self.wait();
            panic!("the puppet does not reply; wait status {status:#x}, before that: {was:?}");
        }
        i64::from_ne_bytes(reply)
    }

    /// A system call: its result, or minus the error number.
    pub fn try_call(&mut self, number: i64, args: &[u64]) -> i64 {
        self.begin_call(number, args);
        self.reply()
    }

    pub fn begin_call(&mut self, number: i64, args: &[u64]) {
        let mut words = vec![number as u64];
        words.extend(args);
        self.begin(CALL, &words);
    }

    pub fn call(&mut self, number: i64, args: &[u64]) -> u64 {
        let result = self.try_call(number, args);
        assert!(
            result >= 0,
            "call {number} in the puppet: {}",
            std::io::Error::from_raw_os_error(-result as i32)
        );
        result as u64
    }

    pub fn store(&mut self, address: u64, value: u64) {
        self.begin(STORE, &[address, value]);
        self.reply();
    }

    pub fn load(&mut self, address: u64) -> u64 {
        self.begin(LOAD, &[address]);
        self.reply() as u64
    }

    /// A thread that counts up the word at `address` for ever, keeping the count in registers.
    pub fn counter(&mut self, address: u64) {
        self.begin(THREAD, &[address]);
        assert_eq!(self.reply(), 0);
    }

    /// Private anonymous memory.
    pub fn map(&mut self, bytes: u64) -> u64 {
        self.map_at(0, bytes, 0)
    }

    pub fn map_at(&mut self, address: u64, bytes: u64, flags: i32) -> u64 {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        self.call(
            libc::SYS_mmap,
            &[address, bytes, prot as u64, flags as u64, u64::MAX, 0],
        )
    }

    /// A memfd of some bytes, mapped shared: (descriptor, address).
    pub fn map_memfd(&mut self, name_at: u64, bytes: u64) -> (u64, u64) {
        let fd = self.call(libc::SYS_memfd_create, &[name_at, 0]);
        self.call(libc::SYS_ftruncate, &[fd, bytes]);
        (fd, self.map_fd(fd, bytes))
    }

    pub fn map_fd(&mut self, fd: u64, bytes: u64) -> u64 {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        self.call(
            libc::SYS_mmap,
            &[0, bytes, prot as u64, libc::MAP_SHARED as u64, fd, 0],
        )
    }

    /// Writes one word into each of `pages` pages.
    pub fn touch(&mut self, address: u64, pages: u64) {
        for page in 0..pages {
            self.store(address + page * PAGE, page + 1);
        }
    }

    /// Waits until the word at `address` has grown by something.
    pub fn wait_growth(&mut self, address: u64) {
        let begin = self.load(address);
        while self.load(address) == begin {
            std::thread::yield_now();
        }
    }

    /// Waits until the main thread is in this system call.
    pub fn wait_in_call(&self, number: i64) {
        let path = format!("/proc/{}/syscall", self.pid);
        let prefix = format!("{number} ");
        while !std::fs::read_to_string(&path).unwrap().starts_with(&prefix) {
            std::thread::yield_now();
        }
    }

    /// The test has waited for its end itself.
    pub fn was_reaped(&mut self) {
        self.reaped = true;
    }

    /// How the process ended.
    pub fn wait(&mut self) -> i32 {
        let mut status = 0;
        // SAFETY: a live int.
        assert_eq!(unsafe { libc::waitpid(self.pid, &mut status, 0) }, self.pid);
        self.reaped = true;
        status
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: no pointer is passed; it is our child and has not been waited for.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            self.wait();
        }
    }
}

extern "C" fn count(address: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: the test gave an address of mapped memory. The loop keeps values in many registers, which must not change.
    unsafe {
        std::arch::asm!(
            "mov r8, 0x1111", "mov r9, 0x2222", "mov r10, 0x3333", "mov rcx, 0x4444", "mov r11, 0x5555",
            "2: inc qword ptr [{0}]",
            "cmp r8, 0x1111", "jne 3f", "cmp r9, 0x2222", "jne 3f", "cmp r10, 0x3333", "jne 3f",
            "cmp rcx, 0x4444", "jne 3f", "cmp r11, 0x5555", "jne 3f",
            "jmp 2b",
            "3: ud2",
            in(reg) address, out("r8") _, out("r9") _, out("r10") _, out("rcx") _, out("r11") _,
        );
    }
    address
}

extern "C" fn dance_too(fds: *mut libc::c_void) -> *mut libc::c_void {
    dance((fds as u64 >> 32) as i32, fds as i32)
}

extern "C" fn nothing(argument: *mut libc::c_void) -> *mut libc::c_void {
    argument
}

/// Makes a thread that ends at once; does not wait for it.
fn short_thread() -> i32 {
    // SAFETY: the handle is live, and the thread is detached once.
    unsafe {
        let mut thread = std::mem::zeroed();
        match libc::pthread_create(&mut thread, std::ptr::null(), nothing, std::ptr::null_mut()) {
            0 => libc::pthread_detach(thread),
            // no room for a moment
            libc::EAGAIN => 0,
            error => error,
        }
    }
}

/// Sleeps until the parent, which should be `parent`, dies.
fn sleep_with(parent: i32, expected: i32) -> ! {
    // SAFETY: no pointers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // it may have died before we asked to be told
        while parent == expected && libc::getppid() == expected {
            libc::pause();
        }
        libc::_exit(0)
    }
}

/// Another process that runs `work` until it is killed. Ends with the thread that made it.
pub struct Other(pub i32);

impl Other {
    pub fn new(work: impl FnOnce()) -> Other {
        // SAFETY: the child allocates, which glibc allows after a fork out of many threads; it never returns.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: no pointers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            work();
            loop {
                // SAFETY: no pointers.
                unsafe { libc::pause() };
            }
        }
        Other(pid)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // SAFETY: our child, not yet waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// The life of the child. Allocates nothing, since it was forked out of a process with many threads.
fn dance(orders: i32, replies: i32) -> ! {
    let mut order = [0u64; ORDER_WORDS];
    loop {
        // SAFETY: reads into a live array; what the orders say to load and store is what tests have mapped.
        let reply = unsafe {
            if libc::read(orders, order.as_mut_ptr().cast(), ORDER_WORDS * 8) != (ORDER_WORDS * 8) as isize {
                libc::_exit(0);
            }
            let [kind, a, b, c, d, e, f, g] = order;
            match kind {
                CALL => match libc::syscall(a as i64, b, c, d, e, f, g) {
                    -1 => -i64::from(*libc::__errno_location()),
                    result => result,
                },
                STORE => {
                    (a as *mut u64).write_volatile(b);
                    0
                }
                LOAD => (a as *const u64).read_volatile() as i64,
                CHURN => (0..a).map(|_| i64::from(short_thread())).sum(),
                TWIN => {
                    let mut thread = std::mem::zeroed();
                    let fds = (a << 32 | b) as *mut libc::c_void;
                    i64::from(libc::pthread_create(
                        &mut thread,
                        std::ptr::null(),
                        dance_too,
                        fds,
                    ))
                }
                FORK => match libc::fork() {
                    0 => sleep_with(libc::getppid(), a as i32),
                    child => i64::from(child),
                },
                _ => {
                    let mut thread = std::mem::zeroed();
                    i64::from(libc::pthread_create(
                        &mut thread,
                        std::ptr::null(),
                        count,
                        a as *mut libc::c_void,
                    ))
                }
            }
        };
        // SAFETY: writes from a live value.
        unsafe { libc::write(replies, (&raw const reply).cast(), 8) };
    }
}
