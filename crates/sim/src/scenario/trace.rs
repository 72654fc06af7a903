//! Accesses that were recorded.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Bytes of a file at most: 64 MiB.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Accesses at most: 64 MiB in memory.
const ACCESSES_MAX: usize = 2 << 20;

/// Accesses in time order: when since the beginning of the record, which page, and whether it was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Trace(pub std::sync::Arc<[(Duration, u64, bool)]>);

/// Reads a file of lines `seconds,page,r` or `seconds,page,w`. Empty lines and those that begin with `#` are left out.
pub(super) fn read(file: &Path) -> Result<Trace, String> {
    let show = file.display();
    let text = text(file).map_err(|why| format!("{show}: {why}"))?;
    parse(&text).map_err(|wrong| format!("{show}:{wrong}"))
}

/// A device, a pipe or a file that grows has no length to trust: no more is read than may be.
fn text(file: &Path) -> Result<String, String> {
    let error = |error: std::io::Error| error.to_string();
    // Before it is opened: to open a pipe waits for whoever writes to it.
    if !fs::metadata(file).map_err(error)?.is_file() {
        return Err("not a regular file".into());
    }
    let mut bytes = Vec::new();
    let open = File::open(file).map_err(error)?;
    open.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(error)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("longer than 64 MiB".into());
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8".into())
}

/// The number of the wrong line and what is wrong with it, if something is.
fn parse(text: &str) -> Result<Trace, String> {
    let mut accesses = Vec::new();
    let mut last = Duration::ZERO;
    for (line, number) in text.lines().map(str::trim).zip(1usize..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let access = access(line)
            .filter(|access| access.0 >= last)
            .ok_or_else(|| format!("{number}: not `seconds,page,r` or `seconds,page,w`, in time order"))?;
        if accesses.len() == ACCESSES_MAX {
            return Err(format!("{number}: more than {ACCESSES_MAX} accesses"));
        }
        last = access.0;
        accesses.push(access);
    }
    Ok(Trace(accesses.into()))
}

fn access(line: &str) -> Option<(Duration, u64, bool)> {
    let mut fields = line.split(',').map(str::trim);
    let at = Duration::try_from_secs_f64(fields.next()?.parse().ok()?).ok()?;
    let page = fields.next()?.parse().ok()?;
    let is_write = match fields.next()? {
        "r" => false,
        "w" => true,
        _ => return None,
    };
    fields.next().is_none().then_some((at, page, is_write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_accesses_in_time_order() {
        let trace = parse("# a record\n0.5, 3, r\n\n1,7,w\n").unwrap();
        let at = Duration::from_millis;
        assert_eq!(&trace.0[..], [(at(500), 3, false), (at(1000), 7, true)]);
        for (text, line) in [
            ("1,2,r\n0,2,r", 2),
            ("1,2", 1),
            ("1,2,x", 1),
            ("-1,2,r", 1),
            ("1,2,r,4", 1),
        ] {
            let wrong = parse(text).unwrap_err();
            assert!(wrong.starts_with(&format!("{line}: not ")), "{text}: {wrong}");
        }
    }

    #[test]
    fn only_so_many_accesses_are_kept() {
        let text = "0,0,r\n".repeat(ACCESSES_MAX);
        assert_eq!(parse(&text).unwrap().0.len(), ACCESSES_MAX);
        let wrong = parse(&(text + "0,0,r\n")).unwrap_err();
        assert!(wrong.contains("more than"), "{wrong}");
    }

    #[test]
    fn what_has_no_end_is_not_read() {
        for file in ["/dev/zero", "/"] {
            assert_eq!(read(Path::new(file)), Err(format!("{file}: not a regular file")));
        }
        let long = std::env::temp_dir().join(format!("whimbrel-trace-{}", std::process::id()));
        File::create(&long).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        let refused = read(&long).unwrap_err();
        fs::remove_file(&long).unwrap();
        assert!(refused.ends_with("longer than 64 MiB"), "{refused}");
    }
}
