//! Bars from left to right, each of parts.

use super::axis::{label, Axis};
use super::svg::{area, colour, drawing, rule, text, FAINT};
use super::{shortened, Scale};

/// A part of each bar, in a colour of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    /// What it is.
    pub name: String,
    /// Its size in each bar, from the top one on. What is not a number above 0 is not drawn.
    pub values: Vec<f64>,
}

/// One bar for each name, made of parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bars {
    /// What stands above.
    pub title: String,
    /// What is told from left to right, with its unit.
    pub bottom: String,
    /// Of the bars.
    pub names: Vec<String>,
    /// What each bar says at its end.
    pub sums: Vec<String>,
    /// From left to right.
    pub parts: Vec<Part>,
}

const WIDTH: f64 = 720.0;
const LEFT: f64 = 260.0;
const RIGHT: f64 = 80.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 45.0;

/// From one bar to the next, and how thick it is.
const ROW: f64 = 20.0;
const THICK: f64 = 14.0;

/// Names are cut after so many characters.
const NAME_CHARS: usize = 38;

/// From one name of a part to the next.
const LEGEND: f64 = 110.0;

impl Bars {
    /// As part of an HTML page.
    pub fn inline(&self) -> String {
        let sums = (0..self.names.len()).map(|row| self.sizes(row).sum());
        let axis = Axis::of(sums, Scale::Linear);
        let foot = TOP + ROW * self.names.len() as f64;
        let mut content = text((0.0, 16.0), "start", &self.title);
        content += &text(
            ((LEFT + WIDTH - RIGHT) / 2.0, foot + 36.0),
            "middle",
            &self.bottom,
        );
        for tick in axis.ticks() {
            let x = x(&axis, tick);
            content += &rule((x, TOP), (x, foot), FAINT);
            content += &text((x, foot + 16.0), "middle", &label(tick));
        }
        content += &self.legend();
        for row in 0..self.names.len() {
            content += &self.bar(&axis, row);
        }
        drawing((WIDTH, foot + BOTTOM), &self.title, &content)
    }

    /// The sizes of a bar's parts.
    fn sizes(&self, row: usize) -> impl Iterator<Item = f64> + '_ {
        let values = self.parts.iter().map(move |part| part.values.get(row));
        values.map(|value| {
            value
                .copied()
                .filter(|size| size.is_finite())
                .unwrap_or(0.0)
                .max(0.0)
        })
    }

    fn bar(&self, axis: &Axis, row: usize) -> String {
        let (name, top) = (&self.names[row], TOP + ROW * row as f64);
        let base = top + 12.0;
        let mut content = text((LEFT - 8.0, base), "end", &shortened(name, NAME_CHARS));
        let mut begun = 0.0;
        for (number, size) in self.sizes(row).enumerate() {
            let (from, to) = (x(axis, begun), x(axis, begun + size));
            if size > 0.0 {
                let hint = format!("{name}: {}", self.parts[number].name);
                content += &area((from, top), (to - from, THICK), colour(number), &hint);
            }
            begun += size;
        }
        let sum = self.sums.get(row).map_or("", String::as_str);
        content + &text((x(axis, begun) + 6.0, base), "start", sum)
    }

    /// The names of the parts, if there is more than one.
    fn legend(&self) -> String {
        let parts = self.parts.iter().enumerate().filter(|_| self.parts.len() > 1);
        let one = |(number, part): (usize, &Part)| {
            let left = LEFT + LEGEND * number as f64;
            let box_ = area((left, TOP - 22.0), (10.0, 10.0), colour(number), &part.name);
            box_ + &text((left + 14.0, TOP - 13.0), "start", &part.name)
        };
        parts.map(one).collect()
    }
}

fn x(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.part(value) * (WIDTH - LEFT - RIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_one_after_the_other() {
        let part = |name: &str, values: &[f64]| Part {
            name: name.to_owned(),
            values: values.to_vec(),
        };
        let bars = Bars {
            names: vec!["one".into(), "<two>".into()],
            sums: vec!["4 s".into()],
            parts: vec![part("copy", &[3.0, 2.0]), part("frozen", &[1.0, f64::NAN])],
            ..Bars::default()
        };
        let svg = bars.inline();
        // 380 pixels of width from 260 on are 4 s.
        assert!(
            svg.contains("x=\"260.0\" y=\"48.0\" width=\"285.0\" height=\"14.0\""),
            "{svg}"
        );
        assert!(svg.contains("x=\"545.0\" y=\"48.0\" width=\"95.0\""), "{svg}");
        assert!(svg.contains("y=\"68.0\" width=\"190.0\""), "{svg}");
        assert!(svg.contains("&lt;two&gt;") && !svg.contains("NaN"), "{svg}");
    }
}
