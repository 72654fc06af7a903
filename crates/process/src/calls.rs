//! Many system calls at once inside a stopped thread, with the data that they read and write.
//!
//! A [`Plan`] is made first, as plain data; then it runs in one go. Its data lies in a scratch area of the thread's
//! address space: what the calls read is put there before, what they wrote is fetched after.

use whimbrel_kernel::error::{Error, Result};
use whimbrel_kernel::memory;
use whimbrel_kernel::remote::{Call, Remote};

/// A part of the target's memory that a plan may use for its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scratch {
    pub address: u64,
    pub bytes: u64,
}

impl Scratch {
    /// The whole area of a thread that drives its process.
    pub(crate) fn of(remote: &Remote) -> Result<Scratch> {
        let (address, bytes) = remote.scratch()?;
        Ok(Scratch { address, bytes })
    }

    /// Piece `index` of `count` equal ones, for threads that work at the same time.
    pub(crate) fn piece(self, index: usize, count: usize) -> Scratch {
        let bytes = self.bytes / count.max(1) as u64 / 8 * 8;
        Scratch {
            address: self.address + bytes * index as u64,
            bytes,
        }
    }
}

/// Calls to be made in order; the first one that fails ends the run, unless it may.
#[derive(Debug)]
pub(crate) struct Plan {
    scratch: Scratch,
    calls: Vec<Call>,
    data: Vec<u8>,
}

impl Plan {
    pub(crate) fn new(scratch: Scratch) -> Plan {
        Plan {
            scratch,
            calls: Vec::new(),
            data: Vec::new(),
        }
    }

    /// Adds a call; returns its index.
    pub(crate) fn call(&mut self, what: &str, number: i64, args: &[u64]) -> usize {
        self.calls.push(Call::new(what, number, args));
        self.calls.len() - 1
    }

    /// Adds a call that may fail.
    pub(crate) fn attempt(&mut self, what: &str, number: i64, args: &[u64]) -> usize {
        self.calls.push(Call::new(what, number, args).may_fail());
        self.calls.len() - 1
    }

    /// Puts bytes into the scratch area; returns their address there.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> u64 {
        let address = self.scratch.address + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        address
    }

    /// Numbers of 8 bytes.
    pub(crate) fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.put(&bytes)
    }

    /// A path or a name with its final zero.
    pub(crate) fn text(&mut self, text: &[u8]) -> u64 {
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.put(&bytes)
    }

    /// Room for a result.
    pub(crate) fn room(&mut self, bytes: usize) -> u64 {
        self.put(&vec![0; bytes])
    }

    /// How many calls are planned.
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether more than half of the scratch area is used: time to run this plan and to begin another.
    pub(crate) fn is_full(&self) -> bool {
        self.data.len() as u64 > self.scratch.bytes / 2
    }

    /// Runs everything.
    pub(crate) fn run(mut self, remote: &mut Remote) -> Result<Answers> {
        self.prepare(remote)?;
        remote.batch(&mut self.calls)?;
        self.fetch(remote)
    }

    /// Starts the calls in the table from entry `slot` on; the thread runs when this returns.
    pub(crate) fn start(&mut self, remote: &mut Remote, slot: usize) -> Result<()> {
        self.prepare(remote)?;
        remote.batch_start(&self.calls, slot)
    }

    /// Waits for what [`Plan::start`] started.
    pub(crate) fn finish(mut self, remote: &mut Remote, slot: usize) -> Result<Answers> {
        remote.batch_finish(&mut self.calls, slot)?;
        self.fetch(remote)
    }

    fn prepare(&self, remote: &Remote) -> Result<()> {
        if self.data.len() as u64 > self.scratch.bytes {
            let what = format!(
                "{} bytes do not fit into the scratch area of thread {}",
                self.data.len(),
                remote.tid()
            );
            return Err(Error::other(what));
        }
        if self.data.is_empty() {
            return Ok(());
        }
        memory::write(remote.pid(), self.scratch.address, &self.data)
    }

    fn fetch(mut self, remote: &Remote) -> Result<Answers> {
        if !self.data.is_empty() {
            memory::read(remote.pid(), self.scratch.address, &mut self.data)?;
        }
        let results = self.calls.iter().map(|call| call.result).collect();
        Ok(Answers {
            address: self.scratch.address,
            data: self.data,
            results,
        })
    }
}

/// What the calls returned and wrote.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    address: u64,
    data: Vec<u8>,
    results: Vec<i64>,
}

impl Answers {
    /// What call `index` returned, negative errno if it failed.
    pub(crate) fn result(&self, index: usize) -> i64 {
        self.results
            .get(index)
            .copied()
            .unwrap_or(-i64::from(libc::ENOSYS))
    }

    /// The 8 bytes at `address`, which [`Plan::room`] gave.
    pub(crate) fn word(&self, address: u64) -> u64 {
        self.bytes(address, 8).try_into().map_or(0, u64::from_ne_bytes)
    }

    /// So many bytes at `address`.
    pub(crate) fn bytes(&self, address: u64, count: usize) -> &[u8] {
        let at = address.wrapping_sub(self.address) as usize;
        at.checked_add(count)
            .and_then(|end| self.data.get(at..end))
            .unwrap_or_default()
    }

    /// The 4 bytes at `address`.
    pub(crate) fn half(&self, address: u64) -> u32 {
        self.bytes(address, 4).try_into().map_or(0, u32::from_ne_bytes)
    }
}
