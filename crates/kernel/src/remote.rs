//! System calls run by a stopped thread of another process.
//!
//! One by one: the thread steps over a `syscall` instruction that its process has anyway (in the vdso); about 15 us each.
//! In batches: a page of our own code in the process runs a table of calls and stops once at the end; hundreds of calls
//! for about 20 us. Its code is a plain loop, see [`BATCH_CODE`].
//!
//! Signals are blocked meanwhile, except SIGTRAP: the kernel resets the handler of a blocked SIGTRAP when it forces one.

use crate::error::{Error, Result};
use crate::ptrace::{self, Regs, Stop};
use crate::{maps, memory};

/// All signals but SIGTRAP (SIGKILL and SIGSTOP cannot be blocked anyway).
const MASK_WHILE_REMOTE: u64 = !(1 << (libc::SIGTRAP - 1));
/// Stops that may come before the one we wait for (stray event stops, group stops).
const STRAY_STOPS_MAX: usize = 64;
/// TF and RF would trap, DF would break string instructions of the kernel's return path.
const EFLAGS_CLEARED: u64 = 0x1_0500;

/// Bytes of the scratch area that [`Remote::install`] maps.
pub const SCRATCH_BYTES: u64 = 1 << 20;
/// Where free scratch memory begins, after the page of code.
const DATA_OFFSET: u64 = 4096;
/// The table of the batch lies in the last quarter of the area.
const TABLE_OFFSET: u64 = SCRATCH_BYTES / 4 * 3;
/// Bytes of one call in the table.
const ENTRY_BYTES: usize = 64;
/// Calls that fit in the table.
pub const BATCH_CALLS_MAX: usize = (SCRATCH_BYTES - TABLE_OFFSET) as usize / ENTRY_BYTES;

/// ```text
/// next: cmp  rbx, r12          rbx: this call   r12: end of the table
///       jae  done
///       mov  rax, [rbx]        low half: number, high half: 1 = go on after an error
///       mov  rdi, [rbx+8]      mov rsi, [rbx+16]   mov rdx, [rbx+24]
///       mov  r10, [rbx+32]     mov r8,  [rbx+40]   mov r9,  [rbx+48]
///       mov  eax, eax
///       syscall
///       mov  [rbx+56], rax
///       test dword [rbx+4], 1
///       jnz  skip
///       cmp  rax, -4095
///       jae  done
/// skip: add  rbx, 64
///       jmp  next
/// done: int3
/// ```
const BATCH_CODE: [u8; 64] = [
    0x4c, 0x39, 0xe3, // cmp rbx, r12
    0x73, 0x3a, // jae done
    0x48, 0x8b, 0x03, // mov rax, [rbx]
    0x48, 0x8b, 0x7b, 0x08, // mov rdi, [rbx+8]
    0x48, 0x8b, 0x73, 0x10, // mov rsi, [rbx+16]
    0x48, 0x8b, 0x53, 0x18, // mov rdx, [rbx+24]
    0x4c, 0x8b, 0x53, 0x20, // mov r10, [rbx+32]
    0x4c, 0x8b, 0x43, 0x28, // mov r8, [rbx+40]
    0x4c, 0x8b, 0x4b, 0x30, // mov r9, [rbx+48]
    0x89, 0xc0, // mov eax, eax
    0x0f, 0x05, // syscall
    0x48, 0x89, 0x43, 0x38, // mov [rbx+56], rax
    0xf7, 0x43, 0x04, 0x01, 0x00, 0x00, 0x00, // test dword [rbx+4], 1
    0x75, 0x08, // jnz skip
    0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, // cmp rax, -4095
    0x73, 0x06, // jae done
    0x48, 0x83, 0xc3, 0x40, // skip: add rbx, 64
    0xeb, 0xc1, // jmp next
    0xcc, // done: int3
];
/// Offset of the `syscall` instruction in [`BATCH_CODE`].
const GADGET_OFFSET: u64 = 34;
/// Offset after the `int3`: where the thread stands when the batch is done.
const DONE_OFFSET: u64 = 64;

/// One call of a batch.
#[derive(Clone, Debug)]
pub struct Call {
    /// For errors.
    pub what: String,
    /// Number of the system call.
    pub number: i64,
    /// Up to six arguments.
    pub args: [u64; 6],
    /// Go on when it fails; the result tells.
    pub may_fail: bool,
    /// What the kernel returned (-errno on failure); -ENOSYS if the batch ended before it.
    pub result: i64,
}

impl Call {
    /// A call that must succeed.
    pub fn new(what: impl Into<String>, number: i64, args: &[u64]) -> Self {
        let mut padded = [0; 6];
        for (to, from) in padded.iter_mut().zip(args) {
            *to = *from;
        }
        Self {
            what: what.into(),
            number,
            args: padded,
            may_fail: false,
            result: -i64::from(libc::ENOSYS),
        }
    }

    /// The same, but its failure does not end the batch.
    pub fn may_fail(mut self) -> Self {
        self.may_fail = true;
        self
    }
}

/// Is this return value of a system call an error?
pub fn is_error(result: i64) -> bool {
    (-4095..0).contains(&result)
}

/// Finds a `syscall` instruction in the vdso of a process.
pub fn find_gadget(pid: i32, vmas: &[maps::Vma]) -> Result<u64> {
    let vdso = vmas.iter().find(|vma| vma.path == "[vdso]").ok_or_else(|| {
        Error::other(format!(
            "process {pid} has no vdso: it cannot be driven from outside"
        ))
    })?;
    let mut text = vec![0; (vdso.end - vdso.start) as usize];
    memory::read(pid, vdso.start, &mut text)?;
    find_syscall(&text)
        .map(|offset| vdso.start + offset)
        .ok_or_else(|| Error::other(format!("the vdso of process {pid} has no syscall instruction")))
}

/// Offset of the first `syscall` instruction in code.
pub fn find_syscall(code: &[u8]) -> Option<u64> {
    code.windows(2)
        .position(|pair| pair == [0x0f, 0x05])
        .map(|at| at as u64)
}

/// A stopped thread that runs system calls for us. Its own registers and mask come back with [`Remote::restore`].
#[derive(Debug)]
pub struct Remote {
    pid: i32,
    tid: i32,
    gadget: u64,
    scratch: Option<u64>,
    regs: Regs,
    mask: u64,
    calls: u64,
}

impl Remote {
    /// Takes over thread `tid` of process `pid`, which is stopped; `gadget` is the address of a `syscall` instruction there.
    pub fn new(pid: i32, tid: i32, gadget: u64) -> Result<Self> {
        let regs = ptrace::regs(tid)?;
        let mask = ptrace::sigmask(tid)?;
        ptrace::set_sigmask(tid, MASK_WHILE_REMOTE)?;
        Ok(Self {
            pid,
            tid,
            gadget,
            scratch: None,
            regs,
            mask,
            calls: 0,
        })
    }

    /// The thread.
    pub fn tid(&self) -> i32 {
        self.tid
    }
    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid
    }
    /// How many calls have run.
    pub fn calls(&self) -> u64 {
        self.calls
    }
    /// The registers that it had when it was taken over.
    pub fn regs(&self) -> &Regs {
        &self.regs
    }
    /// The mask that it had when it was taken over.
    pub fn mask(&self) -> u64 {
        self.mask
    }
    /// From now on single calls use the `syscall` instruction at `gadget`.
    pub fn set_gadget(&mut self, gadget: u64) {
        self.gadget = gadget;
    }

    /// Puts registers and mask back. The thread stays stopped.
    pub fn restore(&self) -> Result<()> {
        ptrace::set_regs(self.tid, &self.regs)?;
        ptrace::set_sigmask(self.tid, self.mask)
    }

    fn call_regs(&self, number: i64, args: &[u64]) -> Regs {
        let arg = |index: usize| args.get(index).copied().unwrap_or(0);
        let mut regs = self.regs;
        regs.rip = self.gadget;
        regs.rax = number as u64;
        // Not in a system call: the kernel must not rewind anything for a restart.
        regs.orig_rax = u64::MAX;
        regs.eflags &= !EFLAGS_CLEARED;
        (regs.rdi, regs.rsi, regs.rdx) = (arg(0), arg(1), arg(2));
        (regs.r10, regs.r8, regs.r9) = (arg(3), arg(4), arg(5));
        regs
    }

    /// Runs one call; the result is what the kernel returned, negative errno on failure.
    pub fn raw(&mut self, number: i64, args: &[u64]) -> Result<i64> {
        ptrace::set_regs(self.tid, &self.call_regs(number, args))?;
        self.calls += 1;
        for _ in 0..STRAY_STOPS_MAX {
            ptrace::step(self.tid)?;
            if self.wait_trap(&format!("system call {number}"))? {
                let regs = ptrace::regs(self.tid)?;
                if regs.rip == self.gadget + 2 {
                    return Ok(regs.rax as i64);
                }
            }
        }
        Err(Error::other(format!(
            "thread {} does not get through system call {number}",
            self.tid
        )))
    }

    /// Runs one call that must succeed.
    pub fn call(&mut self, what: &str, number: i64, args: &[u64]) -> Result<u64> {
        let result = self.raw(number, args)?;
        if is_error(result) {
            return Err(self.failed(what, args, result));
        }
        Ok(result as u64)
    }

    fn failed(&self, what: &str, args: &[u64], result: i64) -> Error {
        let args: Vec<String> = args.iter().map(|arg| format!("{arg:#x}")).collect();
        let what = format!("run {what}({}) in thread {}", args.join(", "), self.tid);
        Error::call(what, std::io::Error::from_raw_os_error(-result as i32))
    }

    /// Waits for the SIGTRAP of a step or of the batch's end; `false` after a stop that means nothing to us.
    fn wait_trap(&self, what: &str) -> Result<bool> {
        match ptrace::wait(self.tid)? {
            Stop::Signal(libc::SIGTRAP) => Ok(true),
            Stop::Event { .. } | Stop::Clone => Ok(false),
            other => Err(Error::other(format!(
                "thread {} of process {} stopped with {other:?} in {what}",
                self.tid, self.pid
            ))),
        }
    }

    /// Maps the scratch area of [`SCRATCH_BYTES`] (at `at` if given, which must be free; else where the kernel likes) and puts
    /// the batch code into it.
    pub fn install(&mut self, at: Option<u64>) -> Result<u64> {
        let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        if at.is_some() {
            flags |= libc::MAP_FIXED_NOREPLACE;
        }
        let prot = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
        let args = [at.unwrap_or(0), SCRATCH_BYTES, prot, flags as u64, u64::MAX, 0];
        let address = self.call("mmap of the scratch area", libc::SYS_mmap, &args)?;
        memory::write(self.pid, address, &BATCH_CODE)?;
        self.scratch = Some(address);
        Ok(address)
    }

    /// Uses the scratch area that another thread of the same process has installed.
    pub fn share_scratch(&mut self, address: u64) {
        self.scratch = Some(address);
    }

    /// Single calls go through the scratch area's own `syscall` instruction from now on (the vdso may be moved then).
    pub fn use_scratch_gadget(&mut self) -> Result<()> {
        self.gadget = self.installed()? + GADGET_OFFSET;
        Ok(())
    }

    /// Where the scratch area lies, for [`Remote::share_scratch`] of other threads.
    pub fn installed(&self) -> Result<u64> {
        self.scratch
            .ok_or_else(|| Error::other(format!("no scratch area in process {}", self.pid)))
    }

    /// Start and size of the scratch memory that callers may use between code and table.
    pub fn scratch(&self) -> Result<(u64, u64)> {
        Ok((self.installed()? + DATA_OFFSET, TABLE_OFFSET - DATA_OFFSET))
    }

    /// Unmaps the scratch area; single calls need another gadget by then.
    pub fn uninstall(&mut self) -> Result<()> {
        let address = self.installed()?;
        self.call(
            "munmap of the scratch area",
            libc::SYS_munmap,
            &[address, SCRATCH_BYTES],
        )?;
        self.scratch = None;
        Ok(())
    }

    /// Runs the calls one after the other, in as many batches as they need. Ends at the first that fails, unless it may.
    /// None of them may block for long or make a thread.
    pub fn batch(&mut self, calls: &mut [Call]) -> Result<()> {
        for part in calls.chunks_mut(BATCH_CALLS_MAX) {
            self.batch_start(part, 0)?;
            self.batch_finish(part, 0)?;
        }
        Ok(())
    }

    /// Starts a batch whose table begins at entry `slot` (so that several threads of a process can share the area) and
    /// does not wait for its end.
    pub fn batch_start(&mut self, calls: &[Call], slot: usize) -> Result<()> {
        let base = self.installed()?;
        if slot + calls.len() > BATCH_CALLS_MAX {
            return Err(Error::other(format!(
                "a batch of {} calls is too large",
                calls.len()
            )));
        }
        let table = base + TABLE_OFFSET + (slot * ENTRY_BYTES) as u64;
        memory::write(self.pid, table, &encode(calls))?;
        let mut regs = self.call_regs(0, &[]);
        regs.rip = base;
        regs.rbx = table;
        regs.r12 = table + (calls.len() * ENTRY_BYTES) as u64;
        ptrace::set_regs(self.tid, &regs)?;
        ptrace::resume(self.tid, 0)
    }

    /// Waits for a batch and fills in the results.
    pub fn batch_finish(&mut self, calls: &mut [Call], slot: usize) -> Result<()> {
        let base = self.installed()?;
        let mut strays = 0;
        while !self.wait_trap("a batch of system calls")? {
            strays += 1;
            if strays > STRAY_STOPS_MAX {
                return Err(Error::other(format!(
                    "thread {} does not get through a batch",
                    self.tid
                )));
            }
            ptrace::resume(self.tid, 0)?;
        }
        let regs = ptrace::regs(self.tid)?;
        if regs.rip != base + DONE_OFFSET {
            return Err(Error::other(format!(
                "thread {} left the batch at {:#x}",
                self.tid, regs.rip
            )));
        }
        let table = base + TABLE_OFFSET + (slot * ENTRY_BYTES) as u64;
        self.collect(calls, table, regs.rbx)
    }

    fn collect(&mut self, calls: &mut [Call], table: u64, stopped_at: u64) -> Result<()> {
        let mut bytes = vec![0; calls.len() * ENTRY_BYTES];
        memory::read(self.pid, table, &mut bytes)?;
        for (call, entry) in calls.iter_mut().zip(bytes.chunks_exact(ENTRY_BYTES)) {
            let mut result = [0; 8];
            result.copy_from_slice(&entry[56..]);
            call.result = i64::from_le_bytes(result);
        }
        let done = (stopped_at.saturating_sub(table) as usize) / ENTRY_BYTES;
        self.calls += done as u64;
        match calls.get(done) {
            Some(call) => Err(self.failed(&call.what, &call.args, call.result)),
            None => Ok(()),
        }
    }
}

fn encode(calls: &[Call]) -> Vec<u8> {
    let mut table = Vec::with_capacity(calls.len() * ENTRY_BYTES);
    for call in calls {
        table.extend_from_slice(&(call.number as u32).to_le_bytes());
        table.extend_from_slice(&u32::from(call.may_fail).to_le_bytes());
        for arg in call.args {
            table.extend_from_slice(&arg.to_le_bytes());
        }
        table.extend_from_slice(&call.result.to_le_bytes());
    }
    table
}
