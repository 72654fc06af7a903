//! Times and rates as people write them.

use std::time::Duration;

/// `50ms`, `1.5s`, `800us`, `2min`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; write it like 50ms, 1.5s or 2min");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let seconds = match unit.as_str() {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "min" | "m" => number * 60.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// Bytes per second: `1gbit`, `100mbit/s` (as tc writes it), `100MB/s`, `12MiB/s`.
pub fn rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a rate; write it like 1gbit, 250mbit or 100MB/s");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let unit = unit.strip_suffix("/s").unwrap_or(&unit);
    let bytes = match unit {
        "bit" | "bps" => 0.125,
        "kbit" | "kbps" => 125.0,
        "mbit" | "mbps" => 125e3,
        "gbit" | "gbps" => 125e6,
        "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        _ => return Err(wrong()),
    };
    let rate = number * bytes;
    // Slower than this no migration would ever end; faster than that no counter holds.
    if (1000.0..1e18).contains(&rate) {
        Ok(rate as u64)
    } else {
        Err(format!("{text:?} is not a useful rate"))
    }
}

/// The number and the unit in small letters.
fn split(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration(" 1.5 s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("800us"), Ok(Duration::from_micros(800)));
        assert_eq!(duration("2min"), Ok(Duration::from_secs(120)));
        for wrong in [
            "",
            "50",
            "ms",
            "-1s",
            "1h30",
            "1.2.3s",
            "99999999999999999999999s",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(rate("1gbit"), Ok(125_000_000));
        assert_eq!(rate("250mbit/s"), Ok(31_250_000));
        assert_eq!(rate("100MB/s"), Ok(100_000_000));
        assert_eq!(rate("1MiB/s"), Ok(1_048_576));
        assert_eq!(rate("8kbit"), Ok(1000));
        for wrong in ["", "100", "fast", "0gbit", "1bit", "1e9gbit", "-5mbit", "1gb/h"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
