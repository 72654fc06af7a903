//! Charts as SVG: lines over columns, over numbers or over time ([`Chart`]), and bars ([`Bars`]). Plain text without scripts and
//! without anything from elsewhere; light and dark pages show them in the colour of their text.

mod axis;
mod bars;
mod svg;

pub use axis::Scale;
pub use bars::{Bars, Part};
pub use svg::escaped;

use axis::{label, ticks, Axis};
use svg::{area, colour, drawing, path, rule, text, upright, Point, FAINT};

/// What is told from left to right.
#[derive(Clone, Debug, PartialEq)]
pub enum Across {
    /// Names; a point's place is the number of its column, from 0 on.
    Columns(Vec<String>),
    /// Numbers from the one to the other.
    Numbers(f64, f64),
}

/// How points are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// A line from one to the next.
    #[default]
    Line,
    /// A line from the bottom to each.
    Stems,
}

/// A line: its name, and its points. What is not a number is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// What stands beside the chart.
    pub name: String,
    /// Place and value.
    pub points: Vec<(f64, f64)>,
    /// How they are shown.
    pub shape: Shape,
}

impl Series {
    /// A line.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        let (name, shape) = (name.into(), Shape::Line);
        Self { name, points, shape }
    }

    /// A number for each column.
    pub fn of_columns(name: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let values = values.into_iter().enumerate();
        Self::new(name, values.map(|(index, value)| (index as f64, value)).collect())
    }
}

/// A moment that matters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mark {
    /// Its place.
    pub at: f64,
    /// What stands beside it; may be empty.
    pub name: String,
}

/// A chart with a line for each series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// What stands above.
    pub title: String,
    /// What is told from bottom to top, with its unit.
    pub left: String,
    /// What is told from left to right, with its unit.
    pub bottom: String,
    /// From where to where.
    pub across: Across,
    /// The lines.
    pub series: Vec<Series>,
    /// How values are spread over the height.
    pub scale: Scale,
    /// Upright lines.
    pub marks: Vec<Mark>,
    /// Shaded from the one place to the other.
    pub shades: Vec<(f64, f64)>,
}

impl Default for Across {
    fn default() -> Self {
        Across::Columns(Vec::new())
    }
}

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 340.0;

/// Around the lines, for the labels.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 55.0;

/// Names are cut after so many characters beside a chart, and below it.
const NAME_CHARS: usize = 16;
const COLUMN_CHARS: usize = 14;

/// Columns have no room for more names than this: some are left out.
const COLUMN_NAMES_MAX: usize = 8;

/// A narrower shade would not be seen, in pixels.
const SHADE_MIN: f64 = 1.5;

/// A time when nothing ran.
const SHADE: &str = "#d55e0044";

impl Chart {
    /// As a file of its own.
    pub fn svg(&self) -> String {
        svg::file(&self.inline())
    }

    /// As part of an HTML page.
    pub fn inline(&self) -> String {
        let values = self.series.iter().flat_map(|one| &one.points);
        let axis = Axis::of(values.map(|point| point.1), self.scale);
        let middle = ((LEFT + WIDTH - RIGHT) / 2.0, (TOP + HEIGHT - BOTTOM) / 2.0);
        let mut content = text((LEFT, TOP - 18.0), "start", &self.title);
        content += &text((middle.0, HEIGHT - 12.0), "middle", &self.bottom);
        content += &upright((20.0, middle.1), &self.left);
        for tick in axis.ticks() {
            let y = y(&axis, tick);
            content += &rule((LEFT, y), (WIDTH - RIGHT, y), FAINT);
            content += &text((LEFT - 8.0, y + 4.0), "end", &label(tick));
        }
        content += &self.below();
        content += &self.moments();
        for (number, one) in self.series.iter().enumerate() {
            content += &self.line(&axis, number, one);
        }
        drawing((WIDTH, HEIGHT), &self.title, &content)
    }

    /// The labels below.
    fn below(&self) -> String {
        let words = |x, words: &str| text((x, HEIGHT - BOTTOM + 18.0), "middle", words);
        let mut content = String::new();
        match &self.across {
            Across::Columns(columns) => {
                let step = columns.len().div_ceil(COLUMN_NAMES_MAX).max(1);
                for (index, column) in columns.iter().enumerate().step_by(step) {
                    content += &words(self.x(index as f64), &shortened(column, COLUMN_CHARS));
                }
            }
            Across::Numbers(low, high) => {
                for number in ticks(*low, *high) {
                    let x = self.x(number);
                    content += &rule((x, TOP), (x, HEIGHT - BOTTOM), FAINT);
                    content += &words(x, &label(number));
                }
            }
        }
        content
    }

    /// What is shaded and marked.
    fn moments(&self) -> String {
        let mut content = String::new();
        for &(from, to) in &self.shades {
            let (x, width) = (self.x(from), (self.x(to) - self.x(from)).max(SHADE_MIN));
            content += &area((x, TOP), (width, HEIGHT - TOP - BOTTOM), SHADE, "");
        }
        for mark in &self.marks {
            let x = self.x(mark.at);
            content += &rule((x, TOP), (x, HEIGHT - BOTTOM), "#888888");
            content += &text((x - 4.0, TOP + 12.0), "end", &mark.name);
        }
        content
    }

    fn x(&self, place: f64) -> f64 {
        let part = match &self.across {
            Across::Columns(columns) => (place + 0.5) / columns.len().max(1) as f64,
            Across::Numbers(low, high) if high > low => (place - low) / (high - low),
            Across::Numbers(..) => 0.5,
        };
        LEFT + (WIDTH - LEFT - RIGHT) * part
    }

    /// One line with its points, and its name at the right.
    fn line(&self, axis: &Axis, number: usize, one: &Series) -> String {
        let colour = colour(number);
        let points = one.points.iter().filter(|point| axis.holds(point.1));
        let points: Vec<Point> = points.map(|&(x, value)| (self.x(x), y(axis, value))).collect();
        let columns = matches!(self.across, Across::Columns(_));
        let width = if columns { 2.0 } else { 1.5 };
        let drawn = match one.shape {
            Shape::Line => path(&points),
            Shape::Stems => points
                .iter()
                .map(|&(x, y)| path(&[(x, HEIGHT - BOTTOM), (x, y)]))
                .collect(),
        };
        let mut content =
            format!("<path d=\"{drawn}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\n");
        for (x, y) in points.iter().filter(|_| columns) {
            content += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>\n");
        }
        let (x, y) = (WIDTH - RIGHT + 8.0, TOP + 16.0 * (number as f64 + 1.0));
        content += &rule((x, y - 4.0), (x + 10.0, y - 4.0), colour);
        content + &text((x + 14.0, y), "start", &shortened(&one.name, NAME_CHARS))
    }
}

fn y(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.part(value) * (HEIGHT - TOP - BOTTOM)
}

/// At most so many characters; the end is kept, since names of a sweep differ there.
fn shortened(name: &str, chars_max: usize) -> String {
    match name.chars().count() {
        count if count <= chars_max => name.to_owned(),
        count => format!(
            "…{}",
            name.chars().skip(count - chars_max + 1).collect::<String>()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(across: Across, points: Vec<(f64, f64)>) -> Chart {
        Chart {
            title: "a < b".to_owned(),
            across,
            series: vec![Series::new("x & y", points)],
            ..Chart::default()
        }
    }

    #[test]
    fn points_are_where_they_belong() {
        // 400 pixels of width from 80 on, 245 of height up from 285.
        let svg = chart(
            Across::Numbers(0.0, 10.0),
            vec![(0.0, 0.0), (5.0, 2.0), (10.0, 1.0)],
        )
        .inline();
        assert!(svg.contains("M80.0 285.0L280.0 40.0L480.0 162.5"), "{svg}");
        let svg = chart(Across::Columns(vec!["a".into(), "b".into()]), vec![(0.0, 1.0)]).inline();
        assert!(svg.contains("cx=\"180.0\" cy=\"40.0\""), "{svg}");
    }

    #[test]
    fn a_file_of_its_own_has_a_name_space_and_a_part_of_a_page_has_none() {
        let chart = chart(Across::Numbers(0.0, 1.0), vec![(0.0, 1.0)]);
        assert!(chart
            .svg()
            .starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
        assert!(!chart.inline().contains("xmlns"));
        assert!(chart.inline().contains("a &lt; b") && chart.inline().contains("x &amp; y"));
    }

    #[test]
    fn no_number_spoils_the_drawing() {
        let wild = vec![(0.0, f64::NAN), (1.0, f64::INFINITY), (2.0, -1.0), (3.0, 5e-324)];
        for across in [
            Across::Columns(Vec::new()),
            Across::Numbers(1.0, 1.0),
            Across::Numbers(0.0, 3.0),
        ] {
            for scale in [Scale::Linear, Scale::Logarithmic] {
                let chart = Chart {
                    scale,
                    ..chart(across.clone(), wild.clone())
                };
                let svg = chart.inline();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }

    #[test]
    fn long_names_keep_their_ends() {
        assert_eq!(shortened("précis", 6), "précis");
        assert_eq!(shortened("link.rate=100", 9), "…rate=100");
    }
}
