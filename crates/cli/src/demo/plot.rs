//! Latency over time, drawn with characters.

use std::time::Duration;

use super::client::Reply;

/// Rows of the plot for each power of ten.
const ROWS_PER_DECADE: usize = 2;

/// The bottom of the plot; what is faster shows as nothing.
const BOTTOM: Duration = Duration::from_micros(100);

/// Columns that the labels at the left take.
const MARGIN: usize = 9;

/// Eighths of a block, from none to full.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A time that is marked under the plot, with a short name.
#[derive(Clone, Debug)]
pub struct Span {
    /// What stands in the middle of it.
    pub name: String,
    /// Where it begins, since the demo began.
    pub start: Duration,
    /// Where it ends.
    pub end: Duration,
}

/// How the plot shall look.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Columns in all.
    pub width: usize,
    /// Whether Unicode blocks may be used.
    pub unicode: bool,
}

/// Draws the slowest reply of each column on a logarithmic scale. Empty without replies.
pub fn plot(replies: &[Reply], spans: &[Span], style: Style) -> String {
    let columns = style.width.saturating_sub(MARGIN + 1).max(10);
    let end = replies
        .iter()
        .map(|reply| reply.sent_at + reply.latency)
        .max()
        .unwrap_or_default();
    if end.is_zero() {
        return String::new();
    }
    let column =
        |at: Duration| ((at.as_secs_f64() / end.as_secs_f64() * columns as f64) as usize).min(columns - 1);
    let mut slowest = vec![Duration::ZERO; columns];
    for reply in replies {
        // A slow reply is slow for as long as it was awaited.
        for worst in &mut slowest[column(reply.sent_at)..=column(reply.sent_at + reply.latency)] {
            *worst = reply.latency.max(*worst);
        }
    }
    let decades = decades(slowest.iter().copied().max().unwrap_or_default());
    let heights: Vec<usize> = slowest.iter().map(|&latency| height(latency)).collect();
    let mut text = String::new();
    for row in (0..decades * ROWS_PER_DECADE).rev() {
        let bar = |&height: &usize| block(height.saturating_sub(row * 8).min(8), style.unicode);
        let line: String = heights.iter().map(bar).collect();
        text += &format!(
            "{:>MARGIN$}{}{}\n",
            label(row),
            if style.unicode { '┤' } else { '|' },
            line.trim_end()
        );
    }
    text += &format!(
        "{:>MARGIN$} {}\n",
        "moves",
        marks(spans, columns, column, style.unicode).trim_end()
    );
    let seconds = format!("{:.0} s", end.as_secs_f64());
    text + &format!("{:>MARGIN$} 0 s{seconds:>1$}\n", "", columns - 3)
}

/// Powers of ten from the bottom up to `slowest`, at least three.
fn decades(slowest: Duration) -> usize {
    let ratio = slowest.as_secs_f64() / BOTTOM.as_secs_f64();
    (ratio.max(1.0).log10().ceil() as usize).max(3)
}

/// Height of a bar in eighths of a row.
fn height(latency: Duration) -> usize {
    let ratio = latency.as_secs_f64() / BOTTOM.as_secs_f64();
    (ratio.max(1.0).log10() * (ROWS_PER_DECADE * 8) as f64) as usize
}

/// What a row with `eighths` of it filled shows.
fn block(eighths: usize, unicode: bool) -> char {
    match (unicode, eighths) {
        (true, eighths) => EIGHTHS.get(eighths).copied().unwrap_or('█'),
        (false, 0) => ' ',
        (false, 1..=4) => '.',
        (false, _) => '#',
    }
}

/// The latency at the bottom of a row, where a power of ten begins.
fn label(row: usize) -> String {
    if row % ROWS_PER_DECADE != 0 {
        return String::new();
    }
    let micros = BOTTOM.as_micros() * 10_u128.pow((row / ROWS_PER_DECADE) as u32);
    match micros {
        0..=999 => format!("{:.1} ms ", micros as f64 / 1000.0),
        1_000..=999_999 => format!("{} ms ", micros / 1000),
        _ => format!("{} s ", micros / 1_000_000),
    }
}

/// The line under the plot: `├─1─┤` for each span that is wide enough, at least its name.
fn marks(spans: &[Span], columns: usize, column: impl Fn(Duration) -> usize, unicode: bool) -> String {
    let (left, line, right) = if unicode {
        ('├', '─', '┤')
    } else {
        ('[', '-', ']')
    };
    let mut marks = vec![' '; columns];
    for span in spans {
        let (start, end) = (column(span.start), column(span.end));
        marks[start..=end].fill(line);
        marks[start] = left;
        marks[end] = right;
        let name: Vec<char> = span.name.chars().collect();
        let from = start + (end + 1 - start).saturating_sub(name.len()) / 2;
        marks
            .iter_mut()
            .skip(from)
            .zip(name)
            .for_each(|(mark, letter)| *mark = letter);
    }
    marks.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies() -> Vec<Reply> {
        let quick = |ms| Reply {
            sent_at: Duration::from_millis(ms),
            latency: Duration::from_micros(400),
        };
        let mut replies: Vec<_> = (0..400).map(|n| quick(n * 10)).collect();
        replies.push(Reply {
            sent_at: Duration::from_secs(2),
            latency: Duration::from_millis(500),
        });
        replies
    }

    #[test]
    fn a_slow_reply_stands_out() {
        let span = Span {
            name: "1".into(),
            start: Duration::from_millis(1500),
            end: Duration::from_millis(2600),
        };
        let text = plot(
            &replies(),
            &[span],
            Style {
                width: 50,
                unicode: false,
            },
        );
        // 0.5 s is 3.7 decades above 0.1 ms: 8 rows of which it fills 7.4.
        let expected = "
         |                    .....
   100 ms|                    #####
         |                    #####
    10 ms|                    #####
         |                    #####
     1 ms|                    #####
         |.........................................
   0.1 ms|#########################################
    moves                [----1-----]
          0 s                                   4 s
";
        let rows = |text: &str| {
            text.trim_matches('\n')
                .lines()
                .map(str::to_string)
                .collect::<Vec<_>>()
        };
        let (drawn, expected) = (rows(&text), rows(expected));
        assert_eq!(drawn.len(), expected.len(), "{text}");
        assert!(drawn[0].contains("....."), "{text}");
        assert!(drawn[7].matches('#').count() > 35, "{text}");
        assert_eq!(
            drawn[1].matches('#').count(),
            drawn[5].matches('#').count(),
            "{text}"
        );
        assert!(drawn[8].contains("1"), "{text}");
        assert!(drawn.iter().all(|line| line.chars().count() <= 50), "{text}");
    }

    #[test]
    fn draws_blocks_when_it_may_and_nothing_without_replies() {
        assert!(plot(
            &replies(),
            &[],
            Style {
                width: 50,
                unicode: true
            }
        )
        .contains('█'));
        assert_eq!(
            plot(
                &[],
                &[],
                Style {
                    width: 50,
                    unicode: true
                }
            ),
            ""
        );
    }

    #[test]
    fn a_span_at_the_very_end_fits() {
        let span = |start, end| Span {
            name: "12".into(),
            start: Duration::from_secs(start),
            end: Duration::from_secs(end),
        };
        let text = plot(
            &replies(),
            &[span(4, 5), span(9, 9)],
            Style {
                width: 12,
                unicode: true,
            },
        );
        assert!(text.contains("moves"), "{text}");
    }
}
