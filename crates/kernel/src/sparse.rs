//! Files with holes and memory objects: where their data is (lseek(2), `SEEK_DATA`), how to punch holes into them
//! (fallocate(2)), and seals (fcntl(2), "File Sealing").

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::error::{Error, Result};

/// The ranges of `file` up to `size` that hold data, as (start, end) in bytes, ascending. Looking allocates nothing, while
/// reading a hole through a mapping would.
///
/// # Errors
/// What lseek(2) gives.
pub fn data_ranges(file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    data_ranges_in(file, 0..size)
}

/// The same for a part of the file; ranges are cut where the part ends.
///
/// # Errors
/// What lseek(2) gives.
pub fn data_ranges_in(file: &File, part: std::ops::Range<u64>) -> Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut at = part.start;
    while at < part.end {
        let Some(start) = seek(file, at, libc::SEEK_DATA)? else {
            break;
        };
        // There is always a hole at the end, but the file may have shrunk since.
        let Some(end) = seek(file, start, libc::SEEK_HOLE)? else {
            break;
        };
        let end = end.min(part.end);
        if start >= end {
            break;
        }
        ranges.push((start, end));
        at = end;
    }
    Ok(ranges)
}

/// `None` when there is no such place before the end of the file (`ENXIO`).
fn seek(file: &File, from: u64, whence: i32) -> Result<Option<u64>> {
    // SAFETY: lseek takes no pointer; the descriptor is open while `file` is borrowed.
    let place = unsafe { libc::lseek(file.as_raw_fd(), from as i64, whence) };
    match u64::try_from(place) {
        Ok(place) => Ok(Some(place)),
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            e => Err(Error::call("look for the data of a memory object", e)),
        },
    }
}

/// Makes `length` bytes from `start` on a hole: they read as zeros and take no memory.
///
/// # Errors
/// What fallocate(2) gives; `EOPNOTSUPP` on file systems without holes.
pub fn punch_hole(file: &File, start: u64, length: u64) -> Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes no pointer; the descriptor is open while `file` is borrowed.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, start as i64, length as i64) };
    if done < 0 {
        let what = format!("punch a hole of {length} bytes at {start} into a memory object");
        return Err(Error::call(what, io::Error::last_os_error()));
    }
    Ok(())
}

/// The seals of a memfd; files that cannot be sealed have none.
///
/// # Errors
/// What fcntl(2) gives.
pub fn seals(file: &File) -> Result<u32> {
    // SAFETY: F_GET_SEALS takes no argument; the descriptor is open while `file` is borrowed.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    match u32::try_from(seals) {
        Ok(seals) => Ok(seals),
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EINVAL) => Ok(0),
            e => Err(Error::call("read the seals of a memory object", e)),
        },
    }
}

/// Adds seals to a memfd. `F_SEAL_WRITE` needs that nothing maps it shared and writable.
///
/// # Errors
/// What fcntl(2) gives.
pub fn add_seals(file: &File, seals: u32) -> Result<()> {
    // SAFETY: F_ADD_SEALS takes a number; the descriptor is open while `file` is borrowed.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(()),
        _ => {
            let what = format!("give a memory object the seals {seals:#x}");
            Err(Error::call(what, io::Error::last_os_error()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn memory_object() -> File {
        // SAFETY: the name is a C string; the descriptor returned belongs to nobody else.
        unsafe {
            let fd = libc::memfd_create(c"sparse".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
            assert!(fd >= 0);
            File::from_raw_fd(fd)
        }
    }

    #[test]
    fn data_is_found_without_allocating_and_holes_are_punched() {
        let file = memory_object();
        file.set_len(1 << 20).unwrap();
        assert_eq!(data_ranges(&file, 1 << 20).unwrap(), []);
        file.write_all_at(&[1; 8192], 16384).unwrap();
        file.write_all_at(&[2; 1], (1 << 20) - 1).unwrap();
        let last = (1 << 20) - 4096;
        assert_eq!(
            data_ranges(&file, 1 << 20).unwrap(),
            [(16384, 24576), (last, 1 << 20)]
        );
        assert_eq!(file.metadata().unwrap().blocks(), 3 * 8);
        punch_hole(&file, 16384, 4096).unwrap();
        assert_eq!(
            data_ranges(&file, 1 << 20).unwrap(),
            [(20480, 24576), (last, 1 << 20)]
        );
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn seals_are_read_and_a_plain_file_has_none() {
        let file = memory_object();
        assert_eq!(seals(&file).unwrap(), 0);
        add_seals(&file, libc::F_SEAL_SHRINK as u32).unwrap();
        assert_eq!(seals(&file).unwrap(), libc::F_SEAL_SHRINK as u32);
        assert_eq!(seals(&File::open("/proc/self/exe").unwrap()).unwrap(), 0);
    }
}
