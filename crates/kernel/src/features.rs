//! What the running kernel can do: asked by trying, since distributions backport and leave out.

use crate::error::{Error, Result};
use crate::pagemap::{Pagemap, ScanArgs};
use crate::uffd::{feature, Uffd};

/// The first release that has asynchronous write protection and PAGEMAP_SCAN.
pub const RELEASE_MIN: (u32, u32) = (6, 7);

/// The release of the running kernel as it names itself.
pub fn release() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    let text = std::fs::read_to_string(path).map_err(|e| Error::call(format!("read {path}"), e))?;
    Ok(text.trim().to_string())
}

/// The first two numbers of a release: `6.18.5-cloud` is (6, 18).
pub fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Fails with one sentence unless writes of other processes can be tracked on this kernel (pre-copy needs it).
///
/// # Errors
/// The kernel is older than [`RELEASE_MIN`] or was built without it; or userfaultfd is not allowed to us (EPERM).
pub fn require_tracking() -> Result<()> {
    probe_write_protection()?;
    probe_scan()
}

/// Whether moved processes can have their numbers, and threads theirs (CONFIG_CHECKPOINT_RESTORE).
pub fn require_restore() -> Result<()> {
    let path = "/proc/self/map_files";
    match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(_) => Err(lacking(
            "rebuild processes",
            "CONFIG_CHECKPOINT_RESTORE",
            "is not built in",
        )),
    }
}

fn probe_write_protection() -> Result<()> {
    let uffd = match Uffd::new(0) {
        Err(error) if error.errno() == Some(libc::ENOSYS) => {
            return Err(lacking("track writes", "CONFIG_USERFAULTFD", "is not built in"))
        }
        other => other?,
    };
    uffd.api(feature::TRACK_WRITES)
        .map_err(|error| match error.errno() {
            Some(libc::EINVAL) => lacking("track writes", "userfaultfd with WP_ASYNC", "is missing"),
            _ => error,
        })
}

fn probe_scan() -> Result<()> {
    let pagemap = Pagemap::open(std::process::id() as i32)?;
    let page = 4096;
    match pagemap.scan(page..2 * page, ScanArgs::private_present(), &mut Vec::new()) {
        Err(error) if matches!(error.errno(), Some(libc::ENOTTY | libc::EINVAL)) => {
            Err(lacking("track writes", "PAGEMAP_SCAN", "is missing"))
        }
        other => other,
    }
}

fn lacking(goal: &str, what: &str, how: &str) -> Error {
    let (major, minor) = RELEASE_MIN;
    let release = release().unwrap_or_else(|_| "of unknown release".into());
    Error::other(format!(
        "this kernel ({release}) cannot {goal}: {what} {how}; Linux {major}.{minor} or newer is needed"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_all() {
        require_tracking().unwrap();
        require_restore().unwrap();
        assert!(numbers(&release().unwrap()).unwrap() >= RELEASE_MIN);
    }

    #[test]
    fn releases_of_distributions_are_understood() {
        assert_eq!(numbers("6.18.5-cloud-amd64"), Some((6, 18)));
        assert_eq!(numbers("6.7-rc1"), Some((6, 7)));
        assert_eq!(numbers("5.14.0+"), Some((5, 14)));
        assert_eq!(numbers("next"), None);
        assert_eq!(numbers(""), None);
    }

    #[test]
    fn a_refusal_names_the_release_and_what_is_needed() {
        let text = lacking("track writes", "PAGEMAP_SCAN", "is missing").to_string();
        assert!(
            text.contains(&release().unwrap()) && text.contains("6.7"),
            "{text}"
        );
    }
}
