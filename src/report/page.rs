//! The page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

use super::heat::{bounds, colour};
use super::weights::{BINS, POWERS};
use super::{AttentionMap, Report, Spread};
use crate::bench::kind_of;
use crate::page::{begin, data, end, escaped, picture, strip};

/// Most rows of the heat map that have a label of their own, and most bars.
const LABELLED: usize = 64;
/// Layers of a block in the order in which they run.
const LAYERS: [&str; 8] = [
    "norm1.linear",
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "norm2.linear",
    "ff.net.0.proj",
    "ff.net.2",
];
/// Room for the labels of the heat map, and all of its width.
const LEFT: usize = 150;
const WIDTH: usize = 560;
/// Least height between two labels.
const LINE: usize = 12;

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
        // Counted with guidance, which a run may go without.
        let runs = if part.component == "transformer" { report.predictions } else { runs };
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
    let mut rows: Vec<_> = ranges.iter().filter_map(|(name, row)| Some((name.strip_suffix("/Linear")?, row))).collect();
    rows.sort_by_key(|(path, _)| place(path));
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
         bottom{}. Dark is {:.2}, bright {:.2}.</p>",
        if rows.len() <= LABELLED { String::new() } else { format!(", in each block {}", LAYERS.join(", ")) },
        10_f32.powf(low),
        10_f32.powf(high)
    )?;
    let cell = if rows.len() <= LABELLED { 13 } else { 4 };
    let height = rows.len() * cell;
    let mut svg = format!(
        "<div class=\"scroll\" tabindex=\"0\"><svg class=\"wide\" viewBox=\"0 0 {WIDTH} {}\" role=\"img\" \
         aria-label=\"largest magnitude by layer and step\">\n",
        height + 18
    );
    let address = data([rows.len(), steps], &rgb)?;
    // Writing to a text does not fail.
    let _ = writeln!(
        svg,
        "<image x=\"{LEFT}\" y=\"0\" width=\"{}\" height=\"{height}\" preserveAspectRatio=\"none\" href=\"{address}\"/>",
        WIDTH - LEFT
    );
    for (row, label) in labels(&rows.iter().map(|(path, _)| *path).collect::<Vec<_>>(), cell) {
        let y = row * cell + 10;
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>", LEFT - 6, escaped(&label));
    }
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">step 1</text>", height + 14);
    let _ = writeln!(
        svg,
        "<text x=\"{WIDTH}\" y=\"{}\" text-anchor=\"end\">step {steps}</text>\n</svg></div>",
        height + 14
    );
    out.write_all(svg.as_bytes())
}

/// Rows of the heat map that have a label, and what it says: all, or where they are too many the first of each block.
fn labels(paths: &[&str], cell: usize) -> Vec<(usize, String)> {
    let block = |path: &str| Some(path.strip_prefix("transformer_blocks.")?.split_once('.')?.0.to_string());
    if paths.len() <= LABELLED {
        return paths.iter().map(|path| path.replace("transformer_blocks.", "")).enumerate().collect();
    }
    let mut labels: Vec<(usize, String)> = vec![];
    let mut last = None;
    for (row, block) in paths.iter().enumerate().filter_map(|(row, path)| Some((row, block(path)?))) {
        let is_free = labels.last().is_none_or(|(above, _)| (row - above) * cell >= LINE);
        if last.as_ref() != Some(&block) && is_free {
            labels.push((row, format!("block {block}")));
        }
        last = Some(block);
    }
    labels
}

/// Where a layer stands in the order in which layers run: what embeds, the blocks by number, the head.
fn place(path: &str) -> (usize, usize, usize, &str) {
    if let Some((block, layer)) = path.strip_prefix("transformer_blocks.").and_then(|rest| rest.split_once('.')) {
        let at = LAYERS.iter().position(|name| *name == layer).unwrap_or(LAYERS.len());
        return (1, block.parse().unwrap_or(usize::MAX), at, layer);
    }
    let is_head = path.starts_with("norm_out") || path.starts_with("proj_out");
    (if is_head { 2 } else { 0 }, 0, 0, path)
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
            "<h3>block {} <small>head {} is the sharpest; at most {:.1} % in the mean of all heads, {:.1} % in this one</small></h3>\n\
             <div class=\"scroll high\" tabindex=\"0\">\n<div class=\"map\"><b></b><b>all heads</b><b>head {}</b>",
            map.block,
            map.sharpest,
            100.0 * scales[0][1],
            100.0 * scales[1][1],
            map.sharpest
        )?;
        let zoom = (48 / columns.max(1)).max(1);
        for (i, piece) in pieces.iter().enumerate().take(map.mean.len()) {
            let shown = if piece == "▁" { "␣".into() } else { piece.replace('▁', " ") };
            writeln!(out, "<span>{}</span>", escaped(&shown))?;
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
    let shown = times.iter().map(|t| (t.name.clone(), t.seconds, duration(t.seconds)));
    bars(out, &shown.collect::<Vec<_>>())
}

/// 2.31 ms, or 4.59 s
fn duration(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.2} ms", 1e3 * seconds) } else { format!("{seconds:.2} s") }
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

#[cfg(test)]
mod tests {
    use super::{labels, place};

    #[test]
    fn layers_are_in_the_order_in_which_they_run() {
        let mut paths = [
            "proj_out",
            "transformer_blocks.10.norm1.linear",
            "transformer_blocks.2.ff.net.2",
            "transformer_blocks.2.attn1.to_out.0",
            "transformer_blocks.2.attn1.to_q",
            "transformer_blocks.2.norm1.linear",
            "patch_embed.text_proj",
        ];
        let mut expected = paths;
        expected.reverse();
        paths.sort_by_key(|path| place(path));
        assert_eq!(paths, expected);
    }

    #[test]
    fn each_of_thirty_blocks_has_a_label() {
        let paths: Vec<_> =
            (0..30).flat_map(|i| super::LAYERS.map(|name| format!("transformer_blocks.{i}.{name}"))).collect();
        let paths: Vec<_> = ["patch_embed.text_proj"].into_iter().chain(paths.iter().map(String::as_str)).collect();
        let found = labels(&paths, 4);
        let expected: Vec<_> = (0..30).map(|i| (1 + 8 * i, format!("block {i}"))).collect();
        assert_eq!(found, expected);
        assert_eq!(labels(&paths[..3], 13)[1], (1, "0.norm1.linear".to_string()));
        // Where they would lie on each other, some have none.
        assert_eq!(labels(&paths, 1).len(), 15);
    }
}
