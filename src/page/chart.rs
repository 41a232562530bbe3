//! Line charts as SVG.

use std::fmt::Write as _;

/// Size of a chart in its own units.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 220.0;
/// Room for the labels.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 34.0;

/// A line with a name.
pub(crate) struct Line {
    pub name: &'static str,
    pub class: &'static str,
    pub values: Vec<f64>,
}

/// Numbers over steps or frames. What is infinite, or not positive on a logarithmic axis, is left out.
pub(crate) struct Chart<'a> {
    pub title: &'static str,
    /// What the horizontal axis counts.
    pub across: &'static str,
    /// Where it begins to count.
    pub first: usize,
    pub is_logarithmic: bool,
    /// Lines behind the named ones.
    pub faint: Vec<&'a [f64]>,
    pub lines: Vec<Line>,
}

impl Chart<'_> {
    /// The chart in a figure.
    pub fn svg(&self) -> String {
        let title = self.title;
        let all = self.faint.iter().copied().chain(self.lines.iter().map(|line| line.values.as_slice()));
        let shown: Vec<f64> = all.clone().flatten().filter_map(|&value| self.height(value)).collect();
        let count = all.map(<[f64]>::len).max().unwrap_or(0);
        let mut svg = format!("<figure>\n<figcaption>{title}</figcaption>\n");
        if shown.is_empty() {
            return svg + "<p>No difference to show.</p>\n</figure>\n";
        }
        let ticks = ticks(
            shown.iter().copied().fold(f64::INFINITY, f64::min),
            shown.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            self.is_logarithmic,
        );
        let [low, high] = [ticks[0], ticks[ticks.len() - 1]];
        let y = |height: f64| TOP + (HEIGHT - TOP - BOTTOM) * (high - height) / (high - low);
        let x = |i: usize| LEFT + (WIDTH - LEFT - RIGHT) * fraction(i, count);
        let path = |values: &[f64]| {
            let (mut path, mut is_drawing) = (String::new(), false);
            for (i, value) in values.iter().enumerate() {
                let height = self.height(*value);
                if let Some(height) = height {
                    let _ = write!(path, "{}{:.1} {:.1}", if is_drawing { 'L' } else { 'M' }, x(i), y(height));
                }
                is_drawing = height.is_some();
            }
            path
        };
        let _ = writeln!(svg, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">");
        for tick in &ticks {
            let (at, label) = (y(*tick), self.label(*tick));
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                WIDTH - RIGHT,
                LEFT - 5.0,
                at + 4.0
            );
        }
        for i in marks(count) {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x(i),
                HEIGHT - BOTTOM + 15.0,
                i + self.first
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, WIDTH - RIGHT),
            HEIGHT - 4.0,
            self.across
        );
        for values in &self.faint {
            let _ = writeln!(svg, "<path class=\"faint\" d=\"{}\"/>", path(values));
        }
        for Line { class, values, .. } in &self.lines {
            let _ = writeln!(svg, "<path class=\"{class}\" d=\"{}\"/>", path(values));
        }
        svg += "</svg>\n<p class=\"legend\">";
        for Line { name, class, .. } in &self.lines {
            let _ = write!(svg, "<span class=\"{class}\">{name}</span> ");
        }
        if !self.faint.is_empty() {
            svg += "<span class=\"faint\">each video</span>";
        }
        svg + "</p>\n</figure>\n"
    }

    /// How high a value lies, if it is shown.
    fn height(&self, value: f64) -> Option<f64> {
        let height = if self.is_logarithmic { value.log10() } else { value };
        height.is_finite().then_some(height)
    }

    fn label(&self, tick: f64) -> String {
        if self.is_logarithmic { format!("1e{tick:.0}") } else { format!("{tick}") }
    }
}

/// Where the `i`-th of `count` lies, from 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "few steps or frames")]
fn fraction(i: usize, count: usize) -> f64 {
    if count < 2 { 0.5 } else { i as f64 / (count - 1) as f64 }
}

/// Which of `count` places have a label: some six.
fn marks(count: usize) -> impl Iterator<Item = usize> {
    (0..count).step_by(count.div_ceil(6).max(1))
}

/// Round numbers from at most `low` to at least `high`; powers of ten, by their exponents, where `is_logarithmic`.
fn ticks(low: f64, high: f64, is_logarithmic: bool) -> Vec<f64> {
    let span = (high - low).max(1e-9);
    let power = 10_f64.powf((span / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| span / step <= 4.0);
    let step = step.unwrap_or(10.0 * power);
    let step = if is_logarithmic { step.ceil() } else { step };
    let begin = (low / step).floor();
    let end = (high / step).ceil().max(begin + 1.0);
    // Rounded, for 0.30000000000000004 is no label.
    let round = |tick: f64| (tick / step * 1e3).round() / 1e3 * step;
    let mut ticks = vec![];
    let mut n = begin;
    while n <= end {
        ticks.push(format!("{:.9}", round(n * step)).parse().unwrap_or(n * step));
        n += 1.0;
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_take_in_all_values() {
        assert_eq!(ticks(43.2, 58.9, false), [40.0, 45.0, 50.0, 55.0, 60.0]);
        assert_eq!(ticks(0.1, 0.4, false), [0.1, 0.2, 0.3, 0.4]);
        assert_eq!(ticks(-4.3, -1.2, true), [-5.0, -4.0, -3.0, -2.0, -1.0]);
        assert_eq!(ticks(50.0, 50.0, false).first(), Some(&50.0));
        assert!(ticks(50.0, 50.0, false).len() == 2);
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        let faint = vec![1.0, f64::INFINITY, 2.0, 3.0];
        let chart = |faint: Vec<&[f64]>| {
            Chart { title: "T", across: "frame", first: 0, is_logarithmic: false, faint, lines: vec![] }.svg()
        };
        let svg = chart(vec![&faint]);
        let line = svg.lines().find(|line| line.contains("class=\"faint\" d")).expect("a line");
        assert_eq!((line.matches('M').count(), line.matches('L').count()), (2, 1), "{line}");
        assert!(!svg.contains("inf") && !svg.contains("NaN"), "{svg}");
        assert!(chart(vec![&[f64::INFINITY]]).contains("No difference"));
    }
}
