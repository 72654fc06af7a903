//! Lines over columns or over time, as SVG.

use std::fs;
use std::path::Path;

/// Where the charts go.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/results");

/// How the numbers are spread over the height.
#[derive(Clone, Copy, PartialEq)]
pub enum Scale {
    Linear,
    Logarithmic,
}

/// What is told from left to right.
pub enum Across {
    /// Names; a point's place is the number of its column.
    Columns(Vec<String>),
    /// Numbers from the one to the other; there are too many points to show each, and 0 is marked with this word.
    Numbers(f64, f64, &'static str),
}

/// A line: its name, and its points. What is not a number is left out.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// A number for each column.
    pub fn of_columns(name: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let values = values.into_iter().enumerate();
        Self {
            name: name.to_string(),
            points: values.map(|(index, value)| (index as f64, value)).collect(),
        }
    }
}

/// A chart with a line for each series.
pub struct Chart {
    pub title: String,
    /// What is told from bottom to top, with its unit.
    pub left: String,
    pub bottom: String,
    pub across: Across,
    pub series: Vec<Series>,
    pub scale: Scale,
}

/// Writes it to a file of the results.
pub fn save(file: &str, chart: &Chart) {
    fs::create_dir_all(RESULTS).unwrap();
    fs::write(Path::new(RESULTS).join(file), chart.svg()).unwrap();
    println!("graph: bench/results/{file}");
}

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 340.0;

/// Around the lines, for the labels.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 55.0;

/// Told apart by people who see red and green alike (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
];

/// Lines across, about.
const GRID: f64 = 5.0;

impl Chart {
    pub fn svg(&self) -> String {
        let values = self.series.iter().flat_map(|one| &one.points);
        let axis = Axis::of(values.map(|point| point.1), self.scale);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        svg += &text(LEFT, TOP - 18.0, "start", "black", &self.title);
        let (middle, height) = ((LEFT + WIDTH - RIGHT) / 2.0, (TOP + HEIGHT - BOTTOM) / 2.0);
        svg += &text(middle, HEIGHT - 12.0, "middle", "black", &self.bottom);
        svg += &format!(
            "<text transform=\"translate(20 {height:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
            self.left
        );
        for tick in axis.ticks() {
            let y = axis.y(tick);
            svg += &rule((LEFT, y), (WIDTH - RIGHT, y), "#dddddd");
            svg += &text(LEFT - 8.0, y + 4.0, "end", "black", &label(tick));
        }
        svg += &self.across();
        for (number, one) in self.series.iter().enumerate() {
            svg += &self.line(&axis, number, one);
        }
        svg + "</svg>\n"
    }

    /// The labels below.
    fn across(&self) -> String {
        let below = |x, words: &str| text(x, HEIGHT - BOTTOM + 18.0, "middle", "black", words);
        match &self.across {
            Across::Columns(columns) => {
                let label = |(index, column): (usize, &String)| below(self.x(index as f64), column);
                columns.iter().enumerate().map(label).collect()
            }
            Across::Numbers(low, high, zero) => {
                let mut svg = String::new();
                for number in low.ceil() as i32..=high.floor() as i32 {
                    let x = self.x(f64::from(number));
                    svg += &rule((x, TOP), (x, HEIGHT - BOTTOM), "#dddddd");
                    svg += &below(x, &number.to_string());
                }
                let x = self.x(0.0);
                svg += &rule((x, TOP), (x, HEIGHT - BOTTOM), "#777777");
                svg + &text(x - 4.0, TOP + 12.0, "end", "#777777", zero)
            }
        }
    }

    fn x(&self, place: f64) -> f64 {
        let part = match &self.across {
            Across::Columns(columns) => (place + 0.5) / columns.len().max(1) as f64,
            Across::Numbers(low, high, _) => (place - low) / (high - low),
        };
        LEFT + (WIDTH - LEFT - RIGHT) * part
    }

    /// One line with its points, and its name at the right.
    fn line(&self, axis: &Axis, number: usize, one: &Series) -> String {
        let colour = COLOURS[number % COLOURS.len()];
        let drawn = |value: f64| value.is_finite() && (self.scale == Scale::Linear || value > 0.0);
        let points = one.points.iter().filter(|point| drawn(point.1));
        let points: Vec<(f64, f64)> = points.map(|&(x, y)| (self.x(x), axis.y(y))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let columns = matches!(self.across, Across::Columns(_));
        let width = if columns { 2.0 } else { 1.0 };
        let mut svg = format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\n",
            path.join(" ")
        );
        for (x, y) in points.iter().filter(|_| columns) {
            svg += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>\n");
        }
        let (x, y) = (WIDTH - RIGHT + 14.0, TOP + 16.0 * (number as f64 + 1.0));
        svg += &rule((x, y - 4.0), (x + 16.0, y - 4.0), colour);
        svg + &text(x + 22.0, y, "start", colour, &one.name)
    }
}

/// A straight line.
fn rule(from: (f64, f64), to: (f64, f64), colour: &str) -> String {
    format!(
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>\n",
        from.0, from.1, to.0, to.1
    )
}

/// Without the digits that no binary number has.
fn label(tick: f64) -> String {
    ((tick * 1e6).round() / 1e6).to_string()
}

fn text(x: f64, y: f64, anchor: &str, colour: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>\n")
}

/// From the lowest to the highest number.
struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, scale: Scale) -> Self {
        let values = values.filter(|value| value.is_finite() && *value > 0.0);
        let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let high = if high > 0.0 { high } else { 1.0 };
        let (low, high) = match scale {
            Scale::Linear => (0.0, high),
            Scale::Logarithmic => {
                let decade = |value: f64, round: fn(f64) -> f64| 10_f64.powf(round(value.log10()));
                let low = decade(low.min(high), f64::floor);
                (low, decade(high, f64::ceil).max(low * 10.0))
            }
        };
        Self { low, high, scale }
    }

    fn y(&self, value: f64) -> f64 {
        let part = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value / self.low).log10() / (self.high / self.low).log10(),
        };
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }

    /// Round numbers: multiples of 1, 2 or 5 times a power of ten, or the powers of ten themselves.
    fn ticks(&self) -> Vec<f64> {
        if self.scale == Scale::Logarithmic {
            let decades = (self.high / self.low).log10().round() as i32;
            return (0..=decades).map(|power| self.low * 10_f64.powi(power)).collect();
        }
        let rough = (self.high - self.low) / GRID;
        let power = 10_f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = steps.into_iter().find(|&step| step >= rough).unwrap_or(rough);
        let count = (self.high / step) as u32;
        (0..=count).map(|number| f64::from(number) * step).collect()
    }
}
