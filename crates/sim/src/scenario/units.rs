//! Sizes, rates, times and shares as people write them. Decimal prefixes are powers of 1000, binary ones (`KiB`) of 1024.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use whimbrel_policy::PAGE_SIZE;

use super::PAGES_MAX;

/// Bytes; more than 0 is not asked for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub u64);

/// Bytes per second, more than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate(pub u64);

/// A time span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub Duration);

/// A part of something: 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share(pub f64);

/// A multiple of something, 0 to 1000: `300%` is 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Multiple(pub f64);

/// Page accesses per second, more than 0. A rate in bytes counts a page for each 4096 of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Frequency(pub f64);

const MEMORY_SIZES: &str = "a memory has between 1 page and 256 GiB";
const SIZES: &str = "a size is a number with B, kB, MB, GB, KiB, MiB, GiB, TiB or pages, as in \"4GiB\"";
const RATES: &str =
    "a rate is a number with B/s, kB/s, MB/s, GB/s, KiB/s, MiB/s, GiB/s, kbit/s, Mbit/s or Gbit/s, as in \"1Gbit/s\"";
const TIMES: &str = "a time is a number with ns, us, ms, s, min or h, as in \"50ms\"";
const SHARES: &str = "must be between 0 and 1, or between 0% and 100%";
const MULTIPLES: &str = "must be between 0 and 1000, or between 0% and 100000%";
const FREQUENCIES: &str = "a rate of accesses is a rate of bytes as in \"50MB/s\" (a page for each 4096), or accesses as in \"1000/s\"";

/// 1 EiB: far above any limit, far below what overflows.
const SIZE_MAX: f64 = (1u64 << 60) as f64;
/// 8 Pbit/s.
const RATE_MAX: f64 = 1e15;
/// A month.
const TIME_MAX_S: f64 = 30.0 * 86_400.0;
/// An access each nanosecond.
const FREQUENCY_MAX: f64 = 1e9;

impl Size {
    /// Whole pages that it takes.
    pub fn pages(self) -> u64 {
        self.0.div_ceil(PAGE_SIZE)
    }
}

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | '_')))
        .unwrap_or(text.len());
    let number = text[..end].replace('_', "").parse().ok()?;
    Some((number, text[end..].trim()))
}

fn byte_unit(unit: &str) -> Option<f64> {
    Some(match unit {
        "" | "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KiB" => 1024.0,
        "MiB" => f64::from(1 << 20),
        "GiB" => f64::from(1 << 30),
        "TiB" => 1024.0 * f64::from(1 << 30),
        _ => return None,
    })
}

fn rate_unit(unit: &str) -> Option<f64> {
    let unit = unit.strip_suffix("/s")?;
    match unit {
        "bit" => Some(0.125),
        "kbit" => Some(125.0),
        "Mbit" => Some(125e3),
        "Gbit" => Some(125e6),
        _ => byte_unit(unit).filter(|_| !unit.is_empty()),
    }
}

fn size(text: &str) -> Result<Size, String> {
    let bytes = bytes(text)?;
    within(bytes, 0.0, SIZE_MAX, "a size must be between 0 and 1024 PiB").map(|bytes| Size(bytes as u64))
}

/// The size of a memory.
pub(super) fn memory_size<'de, D: Deserializer<'de>>(from: D) -> Result<Size, D::Error> {
    from.deserialize_any(Quantity {
        read: |text| {
            let bytes = bytes(text)?;
            let pages = (bytes / PAGE_SIZE as f64).ceil();
            within(pages, 1.0, PAGES_MAX as f64, MEMORY_SIZES).map(|_| Size(bytes as u64))
        },
        expected: SIZES,
    })
}

fn bytes(text: &str) -> Result<f64, String> {
    let (number, unit) = split(text).ok_or(SIZES)?;
    let scale = match unit {
        "pages" | "page" => PAGE_SIZE as f64,
        unit => byte_unit(unit).ok_or(SIZES)?,
    };
    Ok(number * scale)
}

fn rate(text: &str) -> Result<Rate, String> {
    let (number, unit) = split(text).ok_or(RATES)?;
    let scale = rate_unit(unit).ok_or(RATES)?;
    if number <= 0.0 {
        return Err("a rate must be positive".into());
    }
    within(
        number * scale,
        1.0,
        RATE_MAX,
        "a rate must be between 1 B/s and 1000 TB/s",
    )
    .map(|rate| Rate(rate as u64))
}

fn time(text: &str) -> Result<Time, String> {
    let (number, unit) = split(text).ok_or(TIMES)?;
    let scale = match unit {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        "" if number == 0.0 => 1.0,
        _ => return Err(TIMES.into()),
    };
    within(
        number * scale,
        0.0,
        TIME_MAX_S,
        "a time must be between 0 and 30 days",
    )
    .map(|seconds| Time(Duration::from_nanos((seconds * 1e9).round() as u64)))
}

fn part(text: &str, max: f64, allowed: &str) -> Result<f64, String> {
    let (number, unit) = split(text).ok_or(allowed)?;
    let scale = match unit {
        "" => 1.0,
        "%" => 0.01,
        _ => return Err(allowed.into()),
    };
    within(number * scale, 0.0, max, allowed)
}

fn frequency(text: &str) -> Result<Frequency, String> {
    let (number, unit) = split(text).ok_or(FREQUENCIES)?;
    let scale = match unit {
        "/s" => 1.0,
        unit => rate_unit(unit).ok_or(FREQUENCIES)? / PAGE_SIZE as f64,
    };
    if number <= 0.0 {
        return Err("a rate must be positive".into());
    }
    within(
        number * scale,
        1e-6,
        FREQUENCY_MAX,
        "a rate must be at most 1000000000 accesses a second",
    )
    .map(Frequency)
}

fn within(number: f64, min: f64, max: f64, otherwise: &str) -> Result<f64, String> {
    match (min..=max).contains(&number) {
        true => Ok(number),
        false => Err(otherwise.into()),
    }
}

/// Reads text, and numbers as if they were text.
struct Quantity<T> {
    read: fn(&str) -> Result<T, String>,
    expected: &'static str,
}

impl<T> Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&format!("{number:.12}"))
    }
}

macro_rules! quantity {
    ($name:ident, $read:expr, $expected:expr) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(Quantity {
                    read: $read,
                    expected: $expected,
                })
            }
        }
    };
}

quantity!(Size, size, SIZES);
quantity!(Rate, rate, RATES);
quantity!(Time, time, TIMES);
quantity!(Share, |text| part(text, 1.0, SHARES).map(Share), SHARES);
quantity!(
    Multiple,
    |text| part(text, 1000.0, MULTIPLES).map(Multiple),
    MULTIPLES
);
quantity!(Frequency, frequency, FREQUENCIES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_what_they_are_everywhere() {
        assert_eq!(size("4GiB"), Ok(Size(4 << 30)));
        assert_eq!(size("1.5 kB"), Ok(Size(1500)));
        assert_eq!(size("3 pages").map(Size::pages), Ok(3));
        assert_eq!(rate("1Gbit/s"), Ok(Rate(125_000_000)));
        assert_eq!(rate("2MiB/s"), Ok(Rate(2 << 20)));
        assert_eq!(time("1.5ms"), Ok(Time(Duration::from_micros(1500))));
        assert_eq!(time("2min"), Ok(Time(Duration::from_secs(120))));
        assert_eq!(part("20%", 1.0, SHARES), Ok(0.2));
        assert_eq!(frequency("4096kB/s"), Ok(Frequency(1000.0)));
        assert_eq!(frequency("7/s"), Ok(Frequency(7.0)));
    }

    #[test]
    fn what_cannot_be_says_what_can() {
        assert_eq!(rate("-5MB/s"), Err("a rate must be positive".into()));
        assert_eq!(rate("5MB"), Err(RATES.into()));
        assert_eq!(time("5"), Err(TIMES.into()));
        assert_eq!(part("1.5", 1.0, SHARES), Err(SHARES.into()));
        for text in ["", "nan", "GiB", "1e400B", "--1B", "9999999999999999999999B"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
