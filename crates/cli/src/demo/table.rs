//! The table at the end of the demo.

use std::time::Duration;

/// One move, as the table shows it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its number under the plot.
    pub number: usize,
    /// The strategy's name.
    pub strategy: String,
    /// From where to where.
    pub direction: String,
    /// From the request until the source was free.
    pub total: Duration,
    /// The reported downtime.
    pub downtime: Duration,
    /// The longest that a client waited for a reply meanwhile.
    pub gap: Duration,
    /// Bytes sent.
    pub bytes: u64,
    /// Rounds of pre-copy; none for stop-copy.
    pub rounds: usize,
    /// Faults that waited for the network, if memory followed after the switch-over.
    pub faults: Option<u64>,
}

const HEADER: [&str; 9] = [
    "move",
    "strategy",
    "direction",
    "total",
    "downtime",
    "longest gap of a client",
    "sent",
    "rounds",
    "faults",
];

/// Columns as wide as their longest cell; the first three lean left, numbers lean right.
pub fn table(rows: &[Row]) -> String {
    let mut cells = vec![HEADER.map(str::to_string)];
    cells.extend(rows.iter().map(Row::cells));
    let width = |column: usize| {
        cells
            .iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; HEADER.len()] = std::array::from_fn(width);
    let line = |row: &[String; HEADER.len()]| {
        let cell = |(column, text): (usize, &String)| match column {
            0..=2 => format!("{text:<0$}", widths[column]),
            _ => format!("{text:>0$}", widths[column]),
        };
        row.iter()
            .enumerate()
            .map(cell)
            .collect::<Vec<_>>()
            .join("  ")
            .trim_end()
            .to_string()
            + "\n"
    };
    cells.iter().map(line).collect()
}

impl Row {
    fn cells(&self) -> [String; HEADER.len()] {
        [
            self.number.to_string(),
            self.strategy.clone(),
            self.direction.clone(),
            format!("{:.2} s", self.total.as_secs_f64()),
            milliseconds(self.downtime),
            milliseconds(self.gap),
            format!("{:.1} MB", self.bytes as f64 / 1e6),
            self.rounds.to_string(),
            self.faults
                .map_or_else(|| "-".to_string(), |faults| faults.to_string()),
        ]
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = Row {
            number: 1,
            strategy: "precopy".into(),
            direction: "alpha → beta".into(),
            total: Duration::from_millis(2345),
            downtime: Duration::from_micros(41_260),
            gap: Duration::from_millis(52),
            bytes: 212_345_678,
            rounds: 4,
            faults: None,
        };
        let text = table(&[row]);
        let expected = "\
move  strategy  direction      total  downtime  longest gap of a client      sent  rounds  faults
1     precopy   alpha → beta  2.35 s   41.3 ms                  52.0 ms  212.3 MB       4       -
";
        // 2.345 is not exact in binary: either way of rounding is right.
        assert_eq!(text.replace("2.34 s", "2.35 s"), expected);
    }
}
