//! Making threads with chosen numbers in a stopped process.

use super::batch::CLONE_BYTES;
use super::{Call, Remote};
use crate::error::{Error, Result};
use crate::{memory, ptrace};

/// `struct clone_args` of clone3(2) up to `cgroup` (88 bytes), and one number behind it for `set_tid`.
const CLONE_ARGS_BYTES: u64 = 88;
const RECORD_BYTES: u64 = 96;
/// Threads of one batch.
const THREADS_MAX: usize = (CLONE_BYTES / RECORD_BYTES) as usize;
/// What makes a thread, as pthread_create(3) does; the kernel clears the memory word that `set_tid_address` names later.
const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

impl Remote {
    /// Makes one thread with each of the numbers `wanted` in the PID namespace of the process (clone3(2), `set_tid`, needs
    /// CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN there). Returns their numbers in our namespace, in the same order.
    ///
    /// Needs an installed area and [`ptrace::OPTION_TRACECLONE`] on this thread. The new threads are traced, stopped before
    /// their first instruction, and have this thread's registers of the moment, its mask and options: set their own.
    ///
    /// # Errors
    /// EEXIST: a number is in use. The threads made before the failure exist.
    pub fn spawn_threads(&mut self, wanted: &[i32]) -> Result<Vec<i32>> {
        let mut made = Vec::with_capacity(wanted.len());
        for part in wanted.chunks(THREADS_MAX) {
            self.born.clear();
            let mut calls = self.clone_calls(part)?;
            self.batch(&mut calls)?;
            if self.born.len() != part.len() {
                return Err(Error::other(format!(
                    "thread {} made {} threads, but {} were seen: the option TRACECLONE is missing",
                    self.tid,
                    part.len(),
                    self.born.len()
                )));
            }
            made.append(&mut self.born);
        }
        made.iter().try_for_each(|tid| ptrace::wait_born(*tid))?;
        Ok(made)
    }

    /// Makes one thread; see [`Remote::spawn_threads`].
    pub fn spawn_thread(&mut self, wanted: i32) -> Result<i32> {
        let made = self.spawn_threads(&[wanted])?;
        made.first()
            .copied()
            .ok_or_else(|| Error::other("no thread was made"))
    }

    /// Writes the records of clone3(2); returns the calls that use them.
    fn clone_calls(&self, wanted: &[i32]) -> Result<Vec<Call>> {
        let area = self.clone_area()?;
        let mut records = Vec::with_capacity(wanted.len() * RECORD_BYTES as usize);
        let mut calls = Vec::with_capacity(wanted.len());
        for (index, tid) in wanted.iter().enumerate() {
            let record = area + index as u64 * RECORD_BYTES;
            // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup, numbers
            let set_tid = record + CLONE_ARGS_BYTES;
            let words = [
                THREAD_FLAGS as u64,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                set_tid,
                1,
                0,
                *tid as u32 as u64,
            ];
            records.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            calls.push(Call::new(
                format!("clone3 of thread {tid}"),
                libc::SYS_clone3,
                &[record, CLONE_ARGS_BYTES],
            ));
        }
        memory::write(self.pid, area, &records)?;
        Ok(calls)
    }
}
