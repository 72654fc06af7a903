//! Times and sizes as people say them. Sizes are powers of 1000.

use std::fmt;

/// Seconds. Shown as `31.2 ms` or `1.25 s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Time(pub f64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_finite() {
            return f.write_str("-");
        }
        match (self.0 * 1e6).round() {
            us if us < 1000.0 => write!(f, "{us:.0} us"),
            us if us < 99_950.0 => write!(f, "{:.1} ms", us / 1e3),
            us if us < 999_500.0 => write!(f, "{:.0} ms", us / 1e3),
            us => write!(f, "{:.2} s", us / 1e6),
        }
    }
}

/// Bytes. Shown as `4.1 kB` or `1.07 GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b @ 0..=999 => write!(f, "{b} B"),
            b @ 1000..=999_949 => write!(f, "{:.1} kB", b as f64 / 1e3),
            b @ 999_950..=999_949_999 => write!(f, "{:.1} MB", b as f64 / 1e6),
            b => write!(f, "{:.2} GB", b as f64 / 1e9),
        }
    }
}

/// A share of 1. Shown as `12.5 %`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(pub f64);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} %", self.0 * 100.0)
    }
}

/// One unit for a whole axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unit {
    /// What numbers are divided by.
    pub size: f64,
    /// What it is called.
    pub name: &'static str,
}

impl Unit {
    /// For bytes up to so many.
    pub(super) fn of_bytes(bytes_max: f64) -> Self {
        Self::fitting(&[(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")], bytes_max)
    }

    /// For seconds up to so many.
    pub(super) fn of_seconds(seconds_max: f64) -> Self {
        Self::fitting(&[(1.0, "s"), (1e-3, "ms"), (1e-6, "us")], seconds_max)
    }

    /// The largest that the number reaches, else the smallest.
    fn fitting(units: &[(f64, &'static str)], number: f64) -> Self {
        let reached = units.iter().find(|(size, _)| number >= *size).or(units.last());
        let (size, name) = reached.copied().unwrap_or((1.0, ""));
        Self { size, name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_said_in_units_that_fit() {
        let times = [0.0, 0.000_999, 0.0312, 0.099_96, 0.9996, 61.0, f64::NAN];
        let times = times.map(|time| Time(time).to_string());
        assert_eq!(
            times,
            ["0 us", "999 us", "31.2 ms", "100 ms", "1.00 s", "61.00 s", "-"]
        );
        let sizes = [999, 4096, 999_960, 2_500_000, 1_073_741_824].map(|size| Bytes(size).to_string());
        assert_eq!(sizes, ["999 B", "4.1 kB", "1.0 MB", "2.5 MB", "1.07 GB"]);
        assert_eq!(Share(0.125).to_string(), "12.5 %");
    }

    #[test]
    fn an_axis_has_one_unit() {
        assert_eq!(Unit::of_bytes(2.5e6).name, "MB");
        assert_eq!(Unit::of_seconds(0.02).name, "ms");
        assert_eq!(Unit::of_seconds(0.0).name, "us");
    }
}
