//! The few shapes that charts are made of. Words are escaped here and nowhere else.

use std::fmt::Write;

/// What is neither text nor data.
pub(super) const FAINT: &str = "#88888855";

/// Told apart by people who see red and green alike (Okabe and Ito); the last is grey, since black is not seen on a dark page.
const COLOURS: [&str; 7] = [
    "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f",
];

/// Of a line or a part.
pub(super) fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// A place.
pub(super) type Point = (f64, f64);

/// A straight line.
pub(super) fn rule(from: Point, to: Point, colour: &str) -> String {
    format!(
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>\n",
        from.0, from.1, to.0, to.1
    )
}

/// A rectangle with a text for who points at it.
pub(super) fn area(corner: Point, size: Point, colour: &str, hint: &str) -> String {
    let ((x, y), (width, height), hint) = (corner, size, escaped(hint));
    format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"><title>{hint}</title></rect>\n"
    )
}

/// Words in the colour of the page's text.
pub(super) fn text(at: Point, anchor: &str, words: &str) -> String {
    let ((x, y), words) = (at, escaped(words));
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

/// Words from bottom to top.
pub(super) fn upright(at: Point, words: &str) -> String {
    let ((x, y), words) = (at, escaped(words));
    format!(
        "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"middle\">{words}</text>\n"
    )
}

/// A drawing of this size: part of a page, in the page's colour.
pub(super) fn drawing(size: Point, name: &str, content: &str) -> String {
    let ((width, height), name) = (size, escaped(name));
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{name}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"currentColor\">\n{content}</svg>\n"
    )
}

/// The same as a file of its own, black on white.
pub(super) fn file(drawing: &str) -> String {
    let head = "<svg xmlns=\"http://www.w3.org/2000/svg\" color=\"black\" style=\"background:white\"";
    drawing.replacen("<svg", head, 1)
}

/// As text or between double quotes, in HTML and SVG. Characters that neither may hold become spaces.
pub fn escaped(words: &str) -> String {
    let mut safe = String::with_capacity(words.len());
    for character in words.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            control if control.is_control() || is_noncharacter(control) => safe.push(' '),
            other => safe.push(other),
        }
    }
    safe
}

fn is_noncharacter(character: char) -> bool {
    let code = character as u32;
    code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code)
}

/// A path through these points.
pub(super) fn path(points: &[Point]) -> String {
    let mut path = String::new();
    for (number, (x, y)) in points.iter().enumerate() {
        let command = if number == 0 { 'M' } else { 'L' };
        // Writing to a string does not fail.
        let _ = write!(path, "{command}{x:.1} {y:.1}");
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_cannot_become_markup() {
        assert_eq!(
            escaped("<b a=\"1\" c='2'>&\u{1b}\u{fffe}ü"),
            "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;  ü"
        );
    }
}
