//! Reading and writing the memory of another process: process_vm_readv(2), process_vm_writev(2) and `/proc/pid/mem`.
//!
//! process_vm_* obey the protection of a mapping and are fastest (7 GB/s a core). [`MemFile`] goes through protections, as a
//! debugger does: it reads PROT_NONE and writes read-only memory (private mappings get their own copy of the page).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::{Error, Result};

/// Entries of one vector that the kernel takes (`UIO_MAXIOV`).
pub const VECTOR_MAX: usize = 1024;

/// A part of an address space: (address, bytes).
pub type Span = (u64, usize);

/// Reads exactly `buffer.len()` bytes at `address`.
pub fn read(pid: i32, address: u64, buffer: &mut [u8]) -> Result<()> {
    let bytes = buffer.len();
    let got = readv(pid, &[(address, bytes)], buffer)?;
    whole("read", pid, address, got, bytes)
}

/// Writes all of `data` at `address`.
pub fn write(pid: i32, address: u64, data: &[u8]) -> Result<()> {
    let written = writev(pid, &[(address, data.len())], data)?;
    whole("write", pid, address, written, data.len())
}

fn whole(verb: &str, pid: i32, address: u64, done: usize, bytes: usize) -> Result<()> {
    if done == bytes {
        return Ok(());
    }
    Err(Error::call(
        format!("{verb} {bytes} bytes at {address:#x} of process {pid} (only {done} are accessible)"),
        io::Error::from_raw_os_error(libc::EFAULT),
    ))
}

/// Reads `spans` one after the other into `buffer`; returns the bytes read.
///
/// Fewer bytes than asked for mean that the byte after them is not accessible (unmapped, PROT_NONE): the caller knows from
/// the count which span that is. No bytes at all for that reason are `Ok(0)`, not an error.
///
/// # Errors
/// The process is gone (ESRCH), may not be read (EPERM), or the spans are longer than the buffer.
pub fn readv(pid: i32, spans: &[Span], buffer: &mut [u8]) -> Result<usize> {
    check_length("read", pid, spans, buffer.len())?;
    transfer("read", pid, spans, buffer.as_mut_ptr(), libc::process_vm_readv)
}

/// Writes `data` into `spans` one after the other; returns the bytes written. See [`readv`].
pub fn writev(pid: i32, spans: &[Span], data: &[u8]) -> Result<usize> {
    check_length("write", pid, spans, data.len())?;
    // The kernel only reads from the local vector of process_vm_writev.
    transfer(
        "write",
        pid,
        spans,
        data.as_ptr().cast_mut(),
        libc::process_vm_writev,
    )
}

fn check_length(verb: &str, pid: i32, spans: &[Span], buffer: usize) -> Result<()> {
    let wanted = spans.iter().try_fold(0usize, |sum, span| sum.checked_add(span.1));
    if wanted == Some(buffer) {
        return Ok(());
    }
    Err(Error::other(format!(
        "cannot {verb} memory of process {pid}: the spans and the buffer differ in length"
    )))
}

type Transfer = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> isize;

/// Both directions in batches of what one call takes. `local` must hold as many bytes as `spans` name.
fn transfer(verb: &str, pid: i32, spans: &[Span], local: *mut u8, call: Transfer) -> Result<usize> {
    let mut done = 0usize;
    for batch in spans.chunks(VECTOR_MAX) {
        let bytes: usize = batch.iter().map(|span| span.1).sum();
        let mut moved = 0usize;
        while moved < bytes {
            let remote = rest(batch, moved);
            let vector = libc::iovec {
                iov_base: local.wrapping_add(done + moved).cast(),
                iov_len: bytes - moved,
            };
            // SAFETY: the local vector lies in the caller's buffer (lengths were compared); remote addresses are the kernel's
            // to check.
            let result = unsafe { call(pid, &vector, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0) };
            if result <= 0 {
                let error = io::Error::last_os_error();
                if result == 0 || error.raw_os_error() == Some(libc::EFAULT) {
                    return Ok(done + moved);
                }
                let at = remote.first().map_or(0, |vector| vector.iov_base as u64);
                return Err(Error::call(
                    format!("{verb} memory of process {pid} at {at:#x}"),
                    error,
                ));
            }
            moved += result as usize;
        }
        done += bytes;
    }
    Ok(done)
}

/// What of `spans` is left after `skip` bytes, as the kernel wants it. One call moves at most 2 GiB, so there may be a rest.
fn rest(spans: &[Span], mut skip: usize) -> Vec<libc::iovec> {
    let mut vectors = Vec::with_capacity(spans.len());
    for &(address, bytes) in spans {
        let skipped = skip.min(bytes);
        skip -= skipped;
        if skipped < bytes {
            vectors.push(libc::iovec {
                iov_base: (address + skipped as u64) as *mut libc::c_void,
                iov_len: bytes - skipped,
            });
        }
    }
    vectors
}

/// A number of 8 bytes, in the byte order of the machine.
pub fn read_u64(pid: i32, address: u64) -> Result<u64> {
    read_array(pid, address).map(u64::from_ne_bytes)
}

/// A number of 4 bytes, in the byte order of the machine.
pub fn read_u32(pid: i32, address: u64) -> Result<u32> {
    read_array(pid, address).map(u32::from_ne_bytes)
}

/// So many bytes.
pub fn read_array<const N: usize>(pid: i32, address: u64) -> Result<[u8; N]> {
    let mut array = [0u8; N];
    read(pid, address, &mut array)?;
    Ok(array)
}

/// So many numbers of 8 bytes.
pub fn read_words<const N: usize>(pid: i32, address: u64) -> Result<[u64; N]> {
    let mut words = [0u64; N];
    let mut bytes = vec![0u8; N * 8];
    read(pid, address, &mut bytes)?;
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
    }
    Ok(words)
}

/// Numbers of 8 bytes, one after the other.
pub fn write_words(pid: i32, address: u64, words: &[u64]) -> Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    write(pid, address, &bytes)
}

/// `/proc/pid/mem`: memory whatever its protection. It stays with the address space that the process had when it was opened.
#[derive(Debug)]
pub struct MemFile {
    pid: i32,
    file: File,
}

impl MemFile {
    /// Opens the memory of a process (needs the right to ptrace it).
    pub fn open(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::call(format!("open {path}"), e))?;
        Ok(Self { pid, file })
    }

    /// Reads exactly `buffer.len()` bytes at `address`.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<()> {
        let bytes = buffer.len();
        self.file
            .read_exact_at(buffer, address)
            .map_err(|e| self.error("read", bytes, address, e))
    }

    /// Writes all of `data` at `address`.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        self.file
            .write_all_at(data, address)
            .map_err(|e| self.error("write", data.len(), address, e))
    }

    fn error(&self, verb: &str, bytes: usize, address: u64, source: io::Error) -> Error {
        let pid = self.pid;
        Error::call(
            format!("{verb} {bytes} bytes at {address:#x} of process {pid} (/proc/{pid}/mem)"),
            source,
        )
    }
}
