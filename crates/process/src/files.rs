//! Files that both hosts must have: pages of a file mapping that nobody has written are not sent, and open files are
//! opened again by their paths, so the destination's files must be the same.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Files up to this many bytes are compared by content; reading more would take longer than it is worth.
const HASHED_BYTES_MAX: u64 = 1 << 30;

/// A file as the source sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Absolute path as the workload sees it.
    pub path: String,
    /// What must be equal at the destination.
    pub identity: Identity,
}

/// What makes two files the same for us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// Every byte.
    Content {
        /// Bytes.
        size: u64,
        /// BLAKE3 of the content.
        hash: [u8; 32],
    },
    /// Too big to read: size and time of the last change.
    Change {
        /// Bytes.
        size: u64,
        /// Nanoseconds since 1970.
        modified_ns: i128,
    },
    /// A file that the workload may write: its size.
    Size {
        /// Bytes.
        size: u64,
    },
    /// It only has to be there (directories, devices).
    Presence,
}

/// Why a file cannot stand in for the source's.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Missing or unreadable here.
    #[error("{path}, which the workload uses, cannot be opened at the destination ({source}); install the same file there")]
    Missing {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Present, but another one.
    #[error("{path}, which the workload uses, is not the same file at the destination ({difference}); install the same version there")]
    Different {
        /// The file.
        path: String,
        /// What differs.
        difference: String,
    },
}

/// How much of a file must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The content (mapped or read only).
    Content,
    /// The size (open for writing).
    Size,
    /// Nothing but the name.
    Presence,
}

/// The identity of the file that can be opened at `opened` (which may be a path below `/proc`).
///
/// # Errors
/// What opening and reading give.
pub fn identify(opened: &Path, need: Need) -> io::Result<Identity> {
    let metadata = fs::metadata(opened)?;
    if need == Need::Presence || !metadata.is_file() {
        return Ok(Identity::Presence);
    }
    let size = metadata.len();
    if need == Need::Size {
        return Ok(Identity::Size { size });
    }
    if size > HASHED_BYTES_MAX {
        let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        return Ok(Identity::Change { size, modified_ns });
    }
    let (size, hash) = hash(opened)?;
    Ok(Identity::Content { size, hash })
}

/// Reads to the end: the size is that of what was hashed, also when the file grows meanwhile.
fn hash(path: &Path) -> io::Result<(u64, [u8; 32])> {
    let mut file = File::open(path)?.take(HASHED_BYTES_MAX + 1);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((size, *hasher.finalize().as_bytes())),
            Ok(count) => {
                hasher.update(buffer.get(..count).unwrap_or_default());
                size += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

impl FileSpec {
    /// Checks that the file below `root` is the same.
    ///
    /// # Errors
    /// It is missing, or differs.
    pub fn check(&self, root: &Path) -> Result<(), FileError> {
        let need = match self.identity {
            Identity::Content { .. } | Identity::Change { .. } => Need::Content,
            Identity::Size { .. } => Need::Size,
            Identity::Presence => Need::Presence,
        };
        let here = identify(&root.join(self.path.trim_start_matches('/')), need);
        let here = here.map_err(|source| FileError::Missing {
            path: self.path.clone(),
            source,
        })?;
        match explain(&self.identity, &here) {
            None => Ok(()),
            Some(difference) => Err(FileError::Different {
                path: self.path.clone(),
                difference,
            }),
        }
    }
}

impl Identity {
    fn size(&self) -> Option<u64> {
        match self {
            Identity::Content { size, .. } | Identity::Change { size, .. } | Identity::Size { size } => {
                Some(*size)
            }
            Identity::Presence => None,
        }
    }
}

/// What differs between the source's file and ours, in words.
fn explain(there: &Identity, here: &Identity) -> Option<String> {
    if there == here {
        return None;
    }
    Some(match (there.size(), here.size()) {
        (Some(a), Some(b)) if a != b => format!("{b} bytes instead of {a}"),
        (Some(_), Some(_)) => "same size, other content".to_owned(),
        _ => "another kind of file".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("whimbrel-files-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn the_same_content_is_the_same_file_and_another_is_named() {
        let path = scratch("same", b"content");
        let name = path.to_str().unwrap().to_owned();
        let spec = FileSpec {
            path: name.clone(),
            identity: identify(&path, Need::Content).unwrap(),
        };
        spec.check(Path::new("/")).unwrap();

        fs::write(&path, b"CONTENT").unwrap();
        let sentence = spec.check(Path::new("/")).unwrap_err().to_string();
        assert!(
            sentence.contains(&name) && sentence.contains("same size, other content"),
            "{sentence}"
        );

        fs::write(&path, b"longer content").unwrap();
        let sentence = spec.check(Path::new("/")).unwrap_err().to_string();
        assert!(sentence.contains("14 bytes instead of 7"), "{sentence}");

        fs::remove_file(&path).unwrap();
        let sentence = spec.check(Path::new("/")).unwrap_err().to_string();
        assert!(
            sentence.contains(&name) && sentence.contains("cannot be opened"),
            "{sentence}"
        );
    }

    #[test]
    fn a_file_open_for_writing_only_has_to_be_as_long() {
        let path = scratch("size", b"abc");
        let spec = FileSpec {
            path: path.to_str().unwrap().to_owned(),
            identity: identify(&path, Need::Size).unwrap(),
        };
        fs::write(&path, b"xyz").unwrap();
        spec.check(Path::new("/")).unwrap();
        fs::write(&path, b"xyzw").unwrap();
        assert!(spec.check(Path::new("/")).is_err());
        fs::remove_file(&path).unwrap();
    }
}
