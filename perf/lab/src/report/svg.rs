//! Plots as inline SVG: bars, and lines over an axis that counts in powers of ten.

use std::fmt::Write as _;

use crate::results::number;

const WIDTH: f64 = 720.0;
const COLOURS: [&str; 10] = [
    "#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f", "#57534e",
    "#1e3a8a",
];

/// A named series: points, or one bar for each of its values.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Text as it stands in HTML and SVG.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Horizontal bars, each with its value; the longest fills the width.
pub(crate) fn bars(rows: &[(String, f64)], unit: &str) -> String {
    const ROW: f64 = 26.0;
    const NAMES: f64 = 150.0;
    const VALUES: f64 = 130.0;
    let greatest = rows.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let height = ROW * rows.len() as f64 + 8.0;
    let mut svg = open(height);
    for (index, (name, value)) in rows.iter().enumerate() {
        let y = 4.0 + ROW * index as f64;
        let width = ((WIDTH - NAMES - VALUES) * value / greatest).max(1.0);
        let colour = colour(index);
        let middle = y + 17.0;
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            r#"<text x="{:.0}" y="{middle:.0}" text-anchor="end">{}</text><rect x="{NAMES}" y="{:.0}" width="{width:.1}" height="18" fill="{colour}"/><text x="{:.0}" y="{middle:.0}">{} {}</text>"#,
            NAMES - 8.0,
            escape(name),
            y + 3.0,
            NAMES + width + 6.0,
            number(*value),
            escape(unit),
        );
    }
    svg + "</svg>"
}

/// Lines with points. The horizontal axis counts in powers of ten; the vertical one too where values differ by more than
/// twenty times, and begins at zero else.
pub(crate) fn lines(series: &[Series], across: &str, up: &str) -> String {
    const HEIGHT: f64 = 300.0;
    const LEFT: f64 = 70.0;
    const RIGHT: f64 = 160.0;
    const BOTTOM: f64 = 44.0;
    const TOP: f64 = 12.0;
    let all = || series.iter().flat_map(|series| &series.points).copied();
    let range = |of: fn((f64, f64)) -> f64| {
        let least = all().map(of).fold(f64::INFINITY, f64::min);
        (least, all().map(of).fold(f64::NEG_INFINITY, f64::max))
    };
    let (x_axis, (low, high)) = (Axis::powers(range(|point| point.0)), range(|point| point.1));
    let y_axis = if low > 0.0 && high / low > 20.0 { Axis::powers((low, high)) } else { Axis::plain(high) };
    let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * x_axis.share(value);
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * y_axis.share(value);
    let mut svg = open(HEIGHT);
    let mut put = |part: String| svg.push_str(&part);
    for tick in y_axis.ticks() {
        put(format!(
            r##"<line x1="{LEFT}" x2="{:.0}" y1="{at:.1}" y2="{at:.1}" stroke="#ddd"/><text x="{:.0}" y="{:.1}" text-anchor="end">{}</text>"##,
            WIDTH - RIGHT,
            LEFT - 6.0,
            y(tick) + 4.0,
            number(tick),
            at = y(tick),
        ));
    }
    for tick in x_axis.ticks() {
        let below = HEIGHT - BOTTOM + 16.0;
        put(format!(r#"<text x="{:.1}" y="{below}" text-anchor="middle">{}</text>"#, x(tick), number(tick)));
    }
    put(format!(
        r#"<text x="{:.0}" y="{:.0}" text-anchor="middle">{}</text><text transform="translate(14 {:.0}) rotate(-90)" text-anchor="middle">{}</text>"#,
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0,
        escape(across),
        (HEIGHT - BOTTOM) / 2.0,
        escape(up),
    ));
    for (index, series) in series.iter().enumerate() {
        let colour = colour(index);
        let path: Vec<_> =
            series.points.iter().map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py))).collect();
        put(format!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            path.join(" ")
        ));
        for (px, py) in &series.points {
            put(format!(r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#, x(*px), y(*py)));
        }
        let legend = TOP + 8.0 + 18.0 * index as f64;
        put(format!(
            r#"<rect x="{:.0}" y="{:.0}" width="12" height="12" fill="{colour}"/><text x="{:.0}" y="{:.0}">{}</text>"#,
            WIDTH - RIGHT + 14.0,
            legend - 10.0,
            WIDTH - RIGHT + 32.0,
            legend,
            escape(&series.name),
        ));
    }
    svg + "</svg>"
}

/// What an axis spans.
enum Axis {
    /// From zero to this.
    Plain(f64),
    /// Between two powers of ten.
    Powers(f64, f64),
}

impl Axis {
    fn plain(high: f64) -> Self {
        let magnitude = 10_f64.powf(high.max(1e-9).log10().floor());
        let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
        let top = steps.into_iter().map(|step| step * magnitude).find(|top| *top >= high);
        Self::Plain(top.unwrap_or(high))
    }

    fn powers((low, high): (f64, f64)) -> Self {
        let (low, high) = (low.log10().floor(), high.log10().ceil());
        Self::Powers(low, high.max(low + 1.0))
    }

    /// Where a value lies, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        match self {
            Self::Plain(high) => value / high,
            Self::Powers(low, high) => (value.log10() - low) / (high - low),
        }
    }

    fn ticks(&self) -> Vec<f64> {
        match self {
            Self::Plain(high) => (0..=5_u8).map(|tick| high * f64::from(tick) / 5.0).collect(),
            Self::Powers(low, high) => {
                let mut power = *low;
                let mut ticks = Vec::new();
                while power <= *high {
                    ticks.push(10_f64.powf(power));
                    power += 1.0;
                }
                ticks
            }
        }
    }
}

fn colour(index: usize) -> &'static str {
    COLOURS.iter().cycle().nth(index).copied().unwrap_or("#000")
}

fn open(height: f64) -> String {
    format!(
        r#"<svg viewBox="0 0 {WIDTH} {height:.0}" width="{WIDTH}" font-family="sans-serif" font-size="12" role="img">"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_text() {
        let svg = bars(&[("<script>&\"".to_owned(), 1.0)], "<b>");
        assert!(
            svg.contains("&lt;script&gt;&amp;&quot;") && !svg.contains("<script>") && !svg.contains("<b>")
        );
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let svg = bars(&[("a".to_owned(), 50.0), ("b".to_owned(), 100.0)], "ns");
        assert!(svg.contains(r#"width="220.0""#) && svg.contains(r#"width="440.0""#), "{svg}");
    }

    #[test]
    fn lines_stay_inside_the_plot() {
        let points = vec![(1.0, 3.0), (1000.0, 900.0), (50_000.0, 40.0)];
        let svg = lines(&[Series { name: "weir".to_owned(), points }], "services", "ns");
        let circles: Vec<(f64, f64)> = svg
            .split("<circle cx=\"")
            .skip(1)
            .map(|part| {
                let (cx, rest) = part.split_once('"').unwrap();
                let cy = rest.split_once("cy=\"").unwrap().1.split_once('"').unwrap().0;
                (cx.parse().unwrap(), cy.parse().unwrap())
            })
            .collect();
        assert_eq!(circles.len(), 3);
        assert!(
            circles.iter().all(|(x, y)| (70.0..=560.0).contains(x) && (12.0..=256.0).contains(y)),
            "{circles:?}"
        );
        assert!(circles[0].0 < circles[1].0 && circles[1].1 < circles[0].1, "right is more, up is more");
    }
}
