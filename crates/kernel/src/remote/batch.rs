//! The scratch area: code that runs a table of system calls in one go.
//!
//! ```text
//! area   code    one page, the same for all threads
//!        data    memory for what the calls read and write; the callers divide it up
//!        table   entries of 64 bytes: number, flags, six arguments, result
//!        frames  one for each entry with which a batch begins: the thread's own registers, for the case that we die
//! ```
//!
//! A thread at work keeps its own stack pointer and does not touch its stack. It ends with a signal to itself that its tracer
//! sees and swallows. Without a tracer the signal does nothing, and the thread restores itself from its frame.

use std::arch::global_asm;

use super::{is_error, Remote, END_SIGNAL};
use crate::error::{Error, Result};
use crate::memory;
use crate::ptrace::{self, Regs, Stop};

/// Bytes of one call in the table.
const ENTRY_BYTES: usize = 64;
/// Calls that fit in the table.
pub const BATCH_CALLS_MAX: usize = 4096;
/// The entry behind the others serves single calls.
const SINGLE: usize = BATCH_CALLS_MAX;
const FRAME_BYTES: usize = 192;
/// Bytes of a frame that are not padding.
pub(super) const FRAME_BYTES_USED: usize = FRAME_TAIL.len() + 19 * 8;
/// Most arguments of a system call.
const ARGS_MAX: usize = 6;

const DATA_OFFSET: u64 = 4096;
const DATA_BYTES: u64 = (1 << 20) - DATA_OFFSET;
/// Threads are made with clone3(2) from here.
const CLONE_OFFSET: u64 = DATA_OFFSET + DATA_BYTES;
/// Bytes for the arguments of clone3(2).
pub(super) const CLONE_BYTES: u64 = 64 << 10;
const TABLE_OFFSET: u64 = CLONE_OFFSET + CLONE_BYTES;
const FRAMES_OFFSET: u64 = TABLE_OFFSET + (ENTRY_BYTES * (BATCH_CALLS_MAX + 1)).next_multiple_of(4096) as u64;
/// Bytes of address space that [`Remote::install`] maps. Only what is used gets memory.
pub const SCRATCH_BYTES: u64 =
    FRAMES_OFFSET + (FRAME_BYTES * (BATCH_CALLS_MAX + 1)).next_multiple_of(4096) as u64;

const MAY_FAIL: u32 = 1;
/// Bit 8 + n: argument n is the address of the number to pass.
const INDIRECT: u32 = 1 << 8;

// rbx: this entry, r12: end of the table, r15: the frame. Afterwards r14 holds the last result.
// The frame is drawn at `encode_frame`.
global_asm!(
    // The code generation units of this crate are separate objects, hence the names are global.
    ".pushsection .rodata",
    ".globl whimbrel_batch_begin",
    ".hidden whimbrel_batch_begin",
    ".globl whimbrel_batch_gadget",
    ".hidden whimbrel_batch_gadget",
    ".globl whimbrel_batch_end",
    ".hidden whimbrel_batch_end",
    ".globl whimbrel_batch_code_end",
    ".hidden whimbrel_batch_code_end",
    "whimbrel_batch_begin:",
    "1: cmp rbx, r12",
    "   jae 3f",
    "   mov rdi, [rbx+8]",
    "   mov rsi, [rbx+16]",
    "   mov rdx, [rbx+24]",
    "   mov r10, [rbx+32]",
    "   mov r8, [rbx+40]",
    "   mov r9, [rbx+48]",
    "   mov ebp, [rbx+4]",
    "   test ebp, 0x3f00",
    "   jz 2f",
    "   bt ebp, 8",
    "   jnc 11f",
    "   mov rdi, [rdi]",
    "11: bt ebp, 9",
    "   jnc 12f",
    "   mov rsi, [rsi]",
    "12: bt ebp, 10",
    "   jnc 13f",
    "   mov rdx, [rdx]",
    "13: bt ebp, 11",
    "   jnc 14f",
    "   mov r10, [r10]",
    "14: bt ebp, 12",
    "   jnc 15f",
    "   mov r8, [r8]",
    "15: bt ebp, 13",
    "   jnc 2f",
    "   mov r9, [r9]",
    "2: mov eax, [rbx]",
    "whimbrel_batch_gadget:",
    "   syscall",
    "   mov [rbx+56], rax",
    "   mov r14, rax",
    "   test ebp, 1",
    "   jnz 4f",
    "   cmp rax, -4095",
    "   jae 3f",
    "4: add rbx, 64",
    "   jmp 1b",
    // tgkill(getpid(), gettid(), END_SIGNAL)
    "3: mov eax, 39",
    "   syscall",
    "   mov r13, rax",
    "   mov eax, 186",
    "   syscall",
    "   mov rdi, r13",
    "   mov rsi, rax",
    "   mov edx, {end_signal}",
    "   mov eax, 234",
    "   syscall",
    "whimbrel_batch_end:",
    // Only without a tracer does a thread get here.
    "   lea rsp, [r15+32]",
    "   popfq",
    "   mov rsp, [r15+48]",
    // rt_sigprocmask(SIG_SETMASK, mask, NULL, 8); no instruction from here on may change the flags
    "   mov eax, 14",
    "   mov edi, 2",
    "   lea rsi, [r15+40]",
    "   mov edx, 0",
    "   mov r10d, 8",
    "   syscall",
    "   mov rax, [r15+56]",
    "   mov rbx, [r15+64]",
    "   mov rcx, [r15+72]",
    "   mov rdx, [r15+80]",
    "   mov rsi, [r15+88]",
    "   mov rdi, [r15+96]",
    "   mov rbp, [r15+104]",
    "   mov r8, [r15+112]",
    "   mov r9, [r15+120]",
    "   mov r10, [r15+128]",
    "   mov r11, [r15+136]",
    "   mov r12, [r15+144]",
    "   mov r13, [r15+152]",
    "   mov r14, [r15+160]",
    "   jmp r15",
    "whimbrel_batch_code_end:",
    ".popsection",
    end_signal = const END_SIGNAL,
);

extern "C" {
    #[link_name = "whimbrel_batch_begin"]
    static CODE: u8;
    #[link_name = "whimbrel_batch_gadget"]
    static CODE_GADGET: u8;
    #[link_name = "whimbrel_batch_end"]
    static CODE_DONE: u8;
    #[link_name = "whimbrel_batch_code_end"]
    static CODE_END: u8;
}

/// Bytes from the beginning of the code to a label in it.
fn offset_of(label: *const u8) -> u64 {
    label as u64 - &raw const CODE as u64
}

fn code() -> &'static [u8] {
    let bytes = offset_of(&raw const CODE_END) as usize;
    // SAFETY: the two labels enclose constant bytes in one section of our own program.
    unsafe { std::slice::from_raw_parts(&raw const CODE, bytes) }
}

/// What a thread runs whose tracer is gone; r15 points to its frame. Does not depend on where it lies.
pub(super) fn code_without_tracer() -> &'static [u8] {
    let done = offset_of(&raw const CODE_DONE) as usize;
    code().get(done..).unwrap_or_default()
}

/// `mov r15, [rip+17]; jmp [rip+3]`: begins a frame, since the last two registers have nowhere else to come from.
const FRAME_TAIL: [u8; 16] = [
    0x4c, 0x8b, 0x3d, 17, 0, 0, 0, 0xff, 0x25, 3, 0, 0, 0, 0xcc, 0xcc, 0xcc,
];

/// What gives a thread its own state back without a tracer: tail, rip, r15, flags, mask, rsp, rax, rbx, rcx, rdx, rsi, rdi,
/// rbp, r8 to r14; 8 bytes each.
pub(super) fn encode_frame(regs: &Regs, mask: u64) -> Vec<u8> {
    let (rip, rax) = restarted(regs);
    let words = [
        rip,
        regs.r15,
        regs.eflags,
        mask,
        regs.rsp,
        rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
    ];
    let mut frame = FRAME_TAIL.to_vec();
    frame.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    frame
}

/// Where a thread goes on whose system call was interrupted by our stop, as the kernel does it (arch/x86/kernel/signal.c,
/// `arch_do_signal_or_restart`): (rip, rax).
fn restarted(regs: &Regs) -> (u64, u64) {
    const ERESTARTSYS: i64 = -512;
    const ERESTARTNOHAND: i64 = -514;
    const ERESTART_RESTARTBLOCK: i64 = -516;
    if (regs.orig_rax as i64) < 0 {
        return (regs.rip, regs.rax);
    }
    match regs.rax as i64 {
        ERESTARTNOHAND..=ERESTARTSYS => (regs.rip.wrapping_sub(2), regs.orig_rax),
        ERESTART_RESTARTBLOCK => (regs.rip.wrapping_sub(2), libc::SYS_restart_syscall as u64),
        _ => (regs.rip, regs.rax),
    }
}

/// One call of a batch.
#[derive(Clone, Debug)]
pub struct Call {
    /// For errors.
    pub what: String,
    /// Number of the system call.
    pub number: i64,
    /// Up to six arguments.
    pub args: [u64; ARGS_MAX],
    /// Go on when it fails; the result tells.
    pub may_fail: bool,
    /// What the kernel returned (-errno on failure); -ENOSYS if the batch ended before it.
    pub result: i64,
    /// (argument, earlier call whose result it is).
    from: Vec<(usize, usize)>,
}

impl Call {
    /// A call that must succeed.
    pub fn new(what: impl Into<String>, number: i64, args: &[u64]) -> Self {
        let mut padded = [0; ARGS_MAX];
        for (to, from) in padded.iter_mut().zip(args) {
            *to = *from;
        }
        Self {
            what: what.into(),
            number,
            args: padded,
            may_fail: false,
            result: -i64::from(libc::ENOSYS),
            from: Vec::new(),
        }
    }

    /// The same, but its failure does not end the batch.
    pub fn may_fail(mut self) -> Self {
        self.may_fail = true;
        self
    }

    /// Its argument number `argument` (from 0) is what call number `earlier` of the same batch returned.
    pub fn arg_from(mut self, argument: usize, earlier: usize) -> Self {
        self.from.push((argument, earlier));
        self
    }
}

/// The entries of `calls` for a table at `table`.
fn encode(calls: &[Call], table: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(calls.len() * ENTRY_BYTES);
    for (index, call) in calls.iter().enumerate() {
        let mut flags = if call.may_fail { MAY_FAIL } else { 0 };
        let mut args = call.args;
        for &(argument, earlier) in &call.from {
            let Some(arg) = args.get_mut(argument).filter(|_| earlier < index) else {
                let what = &call.what;
                return Err(Error::other(format!(
                    "call {index} ({what}) of a batch uses a result that is not there yet"
                )));
            };
            *arg = table + (earlier * ENTRY_BYTES + ENTRY_BYTES - 8) as u64;
            flags |= INDIRECT << argument;
        }
        bytes.extend_from_slice(&(call.number as u32).to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend(args.iter().flat_map(|arg| arg.to_le_bytes()));
        bytes.extend_from_slice(&call.result.to_le_bytes());
    }
    Ok(bytes)
}

impl Remote {
    /// Maps the scratch area of [`SCRATCH_BYTES`] (at `at` if given, which must be free; else where the kernel likes) and puts
    /// the code into it.
    pub fn install(&mut self, at: Option<u64>) -> Result<u64> {
        let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        if at.is_some() {
            flags |= libc::MAP_FIXED_NOREPLACE;
        }
        let prot = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
        let args = [at.unwrap_or(0), SCRATCH_BYTES, prot, flags as u64, u64::MAX, 0];
        self.scratch = None;
        let address = self.call("mmap of the scratch area", libc::SYS_mmap, &args)?;
        memory::write(self.pid, address, code())?;
        self.scratch = Some(address);
        Ok(address)
    }

    /// Uses the scratch area that another thread of the same process has installed.
    pub fn share_scratch(&mut self, address: u64) {
        self.scratch = Some(address);
    }

    /// Single calls without an area use the area's own `syscall` instruction from now on (the vdso may be moved then).
    pub fn use_scratch_gadget(&mut self) -> Result<()> {
        let gadget = self.installed()? + offset_of(&raw const CODE_GADGET);
        self.set_gadget(gadget);
        Ok(())
    }

    /// Where the scratch area lies, for [`Remote::share_scratch`] of other threads.
    pub fn installed(&self) -> Result<u64> {
        self.scratch
            .ok_or_else(|| Error::other(format!("no scratch area in process {}", self.pid)))
    }

    /// Start and bytes of the scratch memory that callers may use.
    pub fn scratch(&self) -> Result<(u64, u64)> {
        Ok((self.installed()? + DATA_OFFSET, DATA_BYTES))
    }

    /// Where the arguments of clone3(2) go.
    pub(super) fn clone_area(&self) -> Result<u64> {
        Ok(self.installed()? + CLONE_OFFSET)
    }

    /// Unmaps the scratch area, by a single call at the gadget, which must not lie in it.
    pub fn uninstall(&mut self) -> Result<()> {
        let address = self.installed()?;
        self.scratch = None;
        let unmapped = self.call(
            "munmap of the scratch area",
            libc::SYS_munmap,
            &[address, SCRATCH_BYTES],
        );
        if unmapped.is_err() {
            self.scratch = Some(address);
        }
        unmapped.map(drop)
    }

    /// Runs the calls one after the other, in as many batches as they need. Ends at the first that fails, unless it may.
    /// None of them may block for long.
    ///
    /// # Errors
    /// The failed call with its arguments; the thread ended; [`Call::arg_from`] across the limit of [`BATCH_CALLS_MAX`].
    pub fn batch(&mut self, calls: &mut [Call]) -> Result<()> {
        for part in calls.chunks_mut(BATCH_CALLS_MAX) {
            self.batch_start(part, 0)?;
            self.batch_finish(part, 0)?;
        }
        Ok(())
    }

    /// Starts a batch whose table begins at entry `slot` and does not wait for its end, so that several threads of a process
    /// can work at the same time. Their parts of the table must not overlap.
    pub fn batch_start(&mut self, calls: &[Call], slot: usize) -> Result<()> {
        if slot.saturating_add(calls.len()) > BATCH_CALLS_MAX {
            return Err(Error::other(format!(
                "a batch of {} calls at entry {slot} is too large",
                calls.len()
            )));
        }
        self.start(calls, slot)
    }

    fn start(&mut self, calls: &[Call], slot: usize) -> Result<()> {
        let base = self.installed()?;
        let table = table_at(base, slot);
        let frame = base + FRAMES_OFFSET + (slot * FRAME_BYTES) as u64;
        let mut bytes = encode(calls, table)?;
        let table_bytes = bytes.len();
        bytes.extend(encode_frame(&self.regs, self.mask));
        let spans = [(frame, bytes.len() - table_bytes), (table, table_bytes)];
        bytes.rotate_left(table_bytes);
        if memory::writev(self.pid, &spans, &bytes)? != bytes.len() {
            return Err(Error::other(format!(
                "the scratch area of process {} is gone",
                self.pid
            )));
        }
        let mut regs = self.base_regs();
        regs.rip = base;
        regs.rbx = table;
        regs.r12 = table + table_bytes as u64;
        regs.r15 = frame;
        self.set_out(&regs)?;
        ptrace::resume(self.tid, 0)
    }

    /// Waits for a batch and fills in the results.
    pub fn batch_finish(&mut self, calls: &mut [Call], slot: usize) -> Result<()> {
        let end = self.wait_end("a batch of system calls")?;
        self.collect(calls, table_at(self.installed()?, slot), end.rbx)
    }

    /// Waits for the end of what [`Remote::start`] started.
    fn wait_end(&mut self, what: &str) -> Result<Regs> {
        let done = self.installed()? + offset_of(&raw const CODE_DONE);
        let tid = self.tid;
        self.wait_for(what, ptrace::resume, |stop| {
            Ok(stop == Stop::Signal(END_SIGNAL) && ptrace::regs(tid)?.rip == done)
        })?;
        ptrace::regs(self.tid)
    }

    /// One call through the area; its result comes in a register.
    pub(super) fn raw_in_area(&mut self, number: i64, args: &[u64]) -> Result<i64> {
        let call = Call::new(String::new(), number, args);
        self.start(std::slice::from_ref(&call), SINGLE)?;
        Ok(self.wait_end(&format!("system call {number}"))?.r14 as i64)
    }

    fn collect(&mut self, calls: &mut [Call], table: u64, stopped_at: u64) -> Result<()> {
        let mut bytes = vec![0; calls.len() * ENTRY_BYTES];
        memory::read(self.pid, table, &mut bytes)?;
        for (call, entry) in calls.iter_mut().zip(bytes.chunks_exact(ENTRY_BYTES)) {
            if let Some((_, result)) = entry.split_last_chunk::<8>() {
                call.result = i64::from_le_bytes(*result);
            }
        }
        let done = (stopped_at.saturating_sub(table) as usize) / ENTRY_BYTES;
        self.calls += done as u64;
        match calls.get(done) {
            Some(call) if is_error(call.result) => Err(self.failed(&call.what, &call.args, call.result)),
            Some(call) => Err(Error::other(format!(
                "thread {} ended a batch before {}",
                self.tid, call.what
            ))),
            None => Ok(()),
        }
    }
}

fn table_at(base: u64, slot: usize) -> u64 {
    base + TABLE_OFFSET + (slot * ENTRY_BYTES) as u64
}
