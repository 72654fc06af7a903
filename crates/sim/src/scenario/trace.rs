//! Accesses that were recorded.

use std::path::Path;
use std::time::Duration;

/// Bytes of a file at most.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Accesses in time order: when since the beginning of the record, which page, and whether it was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Trace(pub std::sync::Arc<[(Duration, u64, bool)]>);

/// Reads a file of lines `seconds,page,r` or `seconds,page,w`. Empty lines and those that begin with `#` are left out.
pub(super) fn read(file: &Path) -> Result<Trace, String> {
    let show = file.display();
    let length = std::fs::metadata(file).map_err(|e| format!("{show}: {e}"))?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("{show} is longer than a gigabyte"));
    }
    let text = std::fs::read_to_string(file).map_err(|e| format!("{show}: {e}"))?;
    parse(&text)
        .map_err(|line| format!("{show}:{line}: not `seconds,page,r` or `seconds,page,w`, in time order"))
}

/// The number of the wrong line, if one is.
fn parse(text: &str) -> Result<Trace, usize> {
    let mut accesses = Vec::new();
    let mut last = Duration::ZERO;
    for (line, number) in text.lines().map(str::trim).zip(1usize..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let access = access(line).filter(|access| access.0 >= last).ok_or(number)?;
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
            assert_eq!(parse(text), Err(line), "{text}");
        }
    }
}
