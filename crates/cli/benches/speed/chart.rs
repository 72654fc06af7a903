//! Lines over columns, as SVG.

/// How the numbers are spread over the height.
#[derive(Clone, Copy, PartialEq)]
pub enum Scale {
    Linear,
    Logarithmic,
}

/// A chart with a line for each series. What is not a number is left out.
pub struct Chart {
    pub title: String,
    pub bottom: String,
    pub columns: Vec<String>,
    pub series: Vec<(String, Vec<f64>)>,
    pub scale: Scale,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 340.0;

/// Around the lines, for the labels.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 55.0;

/// Told apart by people who see red and green alike (Okabe and Ito).
const COLOURS: [&str; 4] = ["#d55e00", "#0072b2", "#009e73", "#cc79a7"];

/// Lines across, about.
const GRID: f64 = 5.0;

impl Chart {
    pub fn svg(&self) -> String {
        let axis = Axis::of(self.series.iter().flat_map(|one| &one.1), self.scale);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        svg += &text(LEFT, TOP - 18.0, "start", "black", &self.title);
        svg += &text(
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 12.0,
            "middle",
            "black",
            &self.bottom,
        );
        for tick in axis.ticks() {
            let y = axis.y(tick);
            svg += &format!(
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\n",
                WIDTH - RIGHT
            );
            svg += &text(LEFT - 8.0, y + 4.0, "end", "black", &label(tick));
        }
        for (index, column) in self.columns.iter().enumerate() {
            svg += &text(self.x(index), HEIGHT - BOTTOM + 18.0, "middle", "black", column);
        }
        for (number, (name, values)) in self.series.iter().enumerate() {
            svg += &self.line(&axis, number, name, values);
        }
        svg + "</svg>\n"
    }

    fn x(&self, index: usize) -> f64 {
        let width = (WIDTH - LEFT - RIGHT) / self.columns.len().max(1) as f64;
        LEFT + width * (index as f64 + 0.5)
    }

    /// One line with its points, and its name at the right.
    fn line(&self, axis: &Axis, number: usize, name: &str, values: &[f64]) -> String {
        let colour = COLOURS[number % COLOURS.len()];
        let drawn = |value: &f64| value.is_finite() && (self.scale == Scale::Linear || *value > 0.0);
        let points: Vec<(f64, f64)> = values
            .iter()
            .enumerate()
            .filter(|(_, value)| drawn(value))
            .map(|(index, &value)| (self.x(index), axis.y(value)))
            .collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let mut svg = format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            path.join(" ")
        );
        for (x, y) in points {
            svg += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>\n");
        }
        let y = TOP + 16.0 * (number as f64 + 1.0);
        svg + &text(WIDTH - RIGHT + 14.0, y, "start", colour, name)
    }
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
    fn of<'a>(values: impl Iterator<Item = &'a f64>, scale: Scale) -> Self {
        let values = values.copied().filter(|value| value.is_finite() && *value > 0.0);
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
