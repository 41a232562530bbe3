//! The page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

use super::heat::{bounds, colour};
use super::weights::{BINS, POWERS};
use super::{AttentionMap, Report, Spread};
use crate::bench::kind_of;
use crate::page::{begin, data, end, escaped, picture, strip};

/// Most rows of the heat map that have a label of their own.
const LABELLED: usize = 64;

/// Write the page.
///
/// # Errors
/// What the system says.
pub fn write(out: &mut impl Write, report: &Report<'_>, pieces: &[String]) -> io::Result<()> {
    begin(out, &format!("{}: {}", report.model, report.prompt))?;
    writeln!(out, "<h1>{}</h1>", escaped(report.prompt))?;
    writeln!(out, "<p><code>{}</code>, {}</p>", escaped(report.model), escaped(report.settings))?;
    if !report.watched.frames.is_empty() {
        writeln!(out, "<div class=\"scroll\" tabindex=\"0\">")?;
        strip(out, "frames of the video", &report.watched.frames, report.watched.size)?;
        writeln!(out, "</div>")?;
    }
    flow(out, report)?;
    ranges(out, &report.watched.ranges)?;
    attention(out, &report.watched.attention, pieces)?;
    times(out, report)?;
    spreads(out, report)?;
    sensitivity(out, report)?;
    end(out)
}

/// Stages in boxes, each with the share of operations it takes.
fn flow(out: &mut impl Write, report: &Report<'_>) -> io::Result<()> {
    writeln!(out, "<h2>How tensors flow</h2>")?;
    for part in report.inspection.components.iter().filter(|part| part.runs > 0) {
        let (name, runs) = (part.component.replace('_', " "), part.runs);
        let times = if runs == 1 { "once".into() } else { format!("{runs} times") };
        let parameters = short(part.parameters);
        writeln!(out, "<h3>{name} <small>{times}, {parameters} parameters</small></h3>\n<ol class=\"flow\">")?;
        for row in part.stages.iter().filter(|row| row.depth == 0 && row.stage != "one block") {
            let shape = |shapes: &[Vec<usize>]| {
                let shown = |shape: &Vec<usize>| shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("×");
                shapes.iter().map(shown).collect::<Vec<_>>().join(" + ")
            };
            writeln!(
                out,
                "<li><b>{}</b><span>{} → {}</span><span>{} parameters, {:.1} % of operations</span>\
                 <div class=\"bar\" style=\"width:{:.1}%\"></div></li>",
                escaped(&row.stage),
                shape(&row.input),
                shape(&row.output),
                short(row.parameters),
                100.0 * row.share,
                100.0 * row.share
            )?;
        }
        writeln!(out, "</ol>")?;
    }
    Ok(())
}

/// 1.69 G
#[allow(clippy::cast_precision_loss)] // For people.
fn short(n: u64) -> String {
    let units = [(1e9, " G"), (1e6, " M"), (1e3, " k")];
    let found = units.into_iter().find(|(unit, _)| n as f64 >= *unit);
    found.map_or_else(|| n.to_string(), |(unit, name)| format!("{:.1}{name}", n as f64 / unit))
}

/// The largest magnitude of what each linear layer makes, step by step.
fn ranges(out: &mut impl Write, ranges: &BTreeMap<String, Vec<[f32; 2]>>) -> io::Result<()> {
    writeln!(out, "<h2>How large values become</h2>")?;
    let mut rows: Vec<_> = ranges.iter().filter(|(name, _)| name.ends_with("/Linear")).collect();
    rows.sort_by_key(|(name, _)| natural(name));
    let steps = rows.iter().map(|(_, row)| row.len()).max().unwrap_or(0);
    if steps == 0 {
        return writeln!(out, "<p>A bundle does not tell: give the checkpoint.</p>");
    }
    let magnitude = |[low, high]: [f32; 2]| low.abs().max(high.abs()).log10();
    let [low, high] = bounds(rows.iter().flat_map(|(_, row)| row.iter().map(|&range| magnitude(range))));
    let mut rgb = vec![];
    for (_, row) in &rows {
        rgb.extend(
            (0..steps).flat_map(|step| colour(row.get(step).map_or(f32::NAN, |&range| magnitude(range)), [low, high])),
        );
    }
    writeln!(
        out,
        "<p>The largest magnitude that each linear layer of the transformer makes: steps from left to right, layers from top to \
         bottom. Dark is {:.2}, bright {:.2}.</p>",
        10_f32.powf(low),
        10_f32.powf(high)
    )?;
    let cell = if rows.len() <= LABELLED { 13 } else { 5 };
    let (left, width) = (210, 620);
    let height = rows.len() * cell;
    let mut svg = format!(
        "<div class=\"scroll\" tabindex=\"0\"><svg class=\"wide\" viewBox=\"0 0 {width} {}\" role=\"img\" \
         aria-label=\"largest magnitude by layer and step\">\n",
        height + 18
    );
    let address = data([rows.len(), steps], &rgb)?;
    // Writing to a text does not fail.
    let _ = writeln!(
        svg,
        "<image x=\"{left}\" y=\"0\" width=\"{}\" height=\"{height}\" preserveAspectRatio=\"none\" href=\"{address}\"/>",
        width - left
    );
    let mut block = None;
    for (i, (name, _)) in rows.iter().enumerate() {
        let path = name.trim_end_matches("/Linear");
        let own = path.split('.').nth(1).filter(|_| path.starts_with("transformer_blocks."));
        let label = if rows.len() <= LABELLED {
            path.replace("transformer_blocks.", "")
        } else if own.is_some() && own != block {
            format!("block {}", own.unwrap_or_default())
        } else {
            String::new()
        };
        block = own.or(block);
        if !label.is_empty() && (rows.len() <= LABELLED || i % (3 * 8) == 0 || own.is_none()) {
            let y = i * cell + cell.max(10) - 2;
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>", left - 6, escaped(&label));
        }
    }
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\">step 1</text>", height + 14);
    let _ = writeln!(
        svg,
        "<text x=\"{width}\" y=\"{}\" text-anchor=\"end\">step {steps}</text>\n</svg></div>",
        height + 14
    );
    out.write_all(svg.as_bytes())
}

/// Names in the order of their numbers: block 2 before block 10.
fn natural(name: &str) -> (bool, Vec<(usize, String)>) {
    let parts = name.split('.').map(|part| (part.parse().unwrap_or(usize::MAX), part.to_string())).collect();
    // The blocks stand between what embeds and what makes the output.
    (name.starts_with("norm_out") || name.starts_with("proj_out"), parts)
}

fn attention(out: &mut impl Write, maps: &[AttentionMap], pieces: &[String]) -> io::Result<()> {
    writeln!(out, "<h2>Where the video looks at the text</h2>")?;
    if maps.is_empty() {
        return writeln!(out, "<p>A bundle does not tell: give the checkpoint.</p>");
    }
    writeln!(
        out,
        "<p>Halfway through the steps: for each piece of the text, how much each place of each latent frame attends to it. Each \
         column has its own scale, from none to the most.</p>"
    )?;
    for map in maps {
        let [.., columns] = map.size;
        let all = |maps: &[Vec<f32>]| bounds(maps.iter().flatten().copied())[1];
        let scales = [&map.mean, &map.head].map(|maps| [0.0, all(maps)]);
        writeln!(
            out,
            "<h3>block {} <small>at most {:.1} % and {:.1} %</small></h3>\n<div class=\"scroll\" tabindex=\"0\">\n<div class=\"map\">\
             <b></b><b>all heads</b><b>head {}, the sharpest</b>",
            map.block,
            100.0 * scales[0][1],
            100.0 * scales[1][1],
            map.sharpest
        )?;
        let zoom = (48 / columns.max(1)).max(1);
        for (i, piece) in pieces.iter().enumerate().take(map.mean.len()) {
            writeln!(out, "<span>{}</span>", escaped(&piece.replace('▁', " ")))?;
            for (maps, scale) in [&map.mean, &map.head].into_iter().zip(scales) {
                let (size, rgb) = frames_of(&maps[i], map.size, zoom, scale);
                picture(out, &format!("attention to {piece}"), size, 1, &rgb)?;
            }
        }
        writeln!(out, "</div></div>")?;
    }
    Ok(())
}

/// A map's frames side by side, each number `zoom` pixels wide and high: size and bytes.
fn frames_of(map: &[f32], [frames, rows, columns]: [usize; 3], zoom: usize, scale: [f32; 2]) -> ([usize; 2], Vec<u8>) {
    const GAP: usize = 3;
    let (height, across) = (rows * zoom, frames * (columns * zoom + GAP) - GAP);
    let mut rgb = vec![128; across * height * 3];
    for (place, &x) in map.iter().enumerate() {
        let (frame, row, column) = (place / (rows * columns), place / columns % rows, place % columns);
        let left = frame * (columns * zoom + GAP) + column * zoom;
        for (y, x_at) in (0..zoom).flat_map(|y| (0..zoom).map(move |x| (y, x))) {
            let at = ((row * zoom + y) * across + left + x_at) * 3;
            rgb[at..at + 3].copy_from_slice(&colour(x, scale));
        }
    }
    ([height, across], rgb)
}

/// Numbers as bars, with what they are.
fn bars(out: &mut impl Write, bars: &[(String, f64, String)]) -> io::Result<()> {
    let most = bars.iter().map(|(_, n, _)| *n).fold(f64::MIN_POSITIVE, f64::max);
    writeln!(out, "<div class=\"bars\">")?;
    for (name, n, shown) in bars {
        writeln!(
            out,
            "<span>{}</span><div class=\"bar\" style=\"width:{:.2}%\"></div><span>{shown}</span>",
            escaped(name),
            100.0 * n / most
        )?;
    }
    writeln!(out, "</div>")
}

fn times(out: &mut impl Write, report: &Report<'_>) -> io::Result<()> {
    let Some(times) = report.times else { return Ok(()) };
    writeln!(out, "<h2>Where the time goes</h2>\n<p>One prediction of the transformer, by kind of layer.</p>")?;
    let mut times: Vec<_> = times.iter().collect();
    times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let shown = times.iter().map(|t| (t.name.clone(), t.seconds, format!("{:.2} ms", 1e3 * t.seconds)));
    bars(out, &shown.collect::<Vec<_>>())
}

/// Weights and activations of each kind of layer, by their magnitudes.
fn spreads(out: &mut impl Write, report: &Report<'_>) -> io::Result<()> {
    let mut read: BTreeMap<String, Spread> = BTreeMap::new();
    for (place, numbers) in &report.watched.activations {
        let path = place.rsplit_once('.').map_or("", |(path, _)| path);
        read.entry(kind_of(path).into()).or_default().add(numbers.iter().copied());
    }
    if report.weights.is_empty() && read.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<h2>How numbers are distributed</h2>\n<p>Shares of magnitudes, by kind of layer: <span class=\"mean\">weights</span>, and \
         <span class=\"worst\">what the layers read</span> in the last step.</p>\n<section class=\"charts\">"
    )?;
    let kinds: std::collections::BTreeSet<_> = report.weights.keys().chain(read.keys()).collect();
    for kind in kinds {
        let lines = [(report.weights.get(kind), "mean"), (read.get(kind), "worst")];
        let lines: Vec<_> = lines.into_iter().filter_map(|(spread, class)| Some((spread?.shares(), class))).collect();
        out.write_all(distribution(kind, &lines).as_bytes())?;
    }
    writeln!(out, "</section>")
}

/// Shares over powers of ten.
#[allow(clippy::cast_precision_loss)] // Few bins.
fn distribution(title: &str, lines: &[(Vec<f64>, &str)]) -> String {
    let (width, height, bottom) = (360.0, 130.0, 18.0);
    let most = lines.iter().flat_map(|(shares, _)| shares.iter().copied()).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = format!(
        "<figure>\n<figcaption>{}</figcaption>\n<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"distribution\">\n",
        escaped(title)
    );
    let x = |bin: f64| width * bin / BINS as f64;
    let [from, to] = POWERS;
    let mut power = from;
    while power <= to {
        let at = x((power - from) / (to - from) * BINS as f64);
        let anchor = if power <= from {
            "start"
        } else if power >= to {
            "end"
        } else {
            "middle"
        };
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{at:.1} 0V{}\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"{anchor}\">1e{power:.0}</text>",
            height - bottom,
            height - 4.0
        );
        power += 2.0;
    }
    for (shares, class) in lines {
        let mut path = String::new();
        for (i, share) in shares.iter().enumerate() {
            let y = (height - bottom) * (1.0 - 0.95 * share / most);
            let _ = write!(path, "{}{:.1} {y:.1}", if i == 0 { 'M' } else { 'L' }, x(i as f64 + 0.5));
        }
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"{path}\"/>");
    }
    svg + "</svg>\n</figure>\n"
}

fn sensitivity(out: &mut impl Write, report: &Report<'_>) -> io::Result<()> {
    let Some(ranking) = report.sensitivity else { return Ok(()) };
    writeln!(
        out,
        "<h2>What quantizing costs</h2>\n<p>Relative error of the latents with {} alone in {}.</p>",
        if ranking.groups.iter().any(|group| group.layers.len() > 1) { "each group of layers" } else { "each layer" },
        escaped(&ranking.scheme)
    )?;
    let shown = ranking.groups.iter().take(LABELLED).map(|g| (g.name.clone(), g.error, format!("{:.2e}", g.error)));
    bars(out, &shown.collect::<Vec<_>>())
}
