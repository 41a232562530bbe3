//! `cogvx inspect`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use clap::{Args as ClapArgs, ValueEnum};
use comfy_table::{CellAlignment, Table};
use indicatif::HumanBytes;
use serde_json::json;

use super::gpu::Gpu;
use super::plan::operations;
use super::progress::Progress;
use super::size::Size;
use super::{Answer, open};
use crate::bench::{GroupTime, Part, Settings, by_kind, time};
use crate::blueprint::{Blueprint, by};
use crate::inspect::{Anatomy, Inspection, Kind, Row, Sizing, gpu, sizings};

/// See what a model is made of: shapes, parameters, operations and memory, stage by stage
///
/// Everything is worked out from configurations and the headers of weight files; nothing is run unless `--measure` says so.
/// Operations are those of matrix products, convolutions and attention, a multiplication and an addition being two: see
/// docs/inspect.md.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// A checkpoint, a bundle, the config.json of a component, or a model that `cogvx synth` knows by name, such as 2b
    model: String,
    /// Another one, side by side
    #[arg(long, value_name = "MODEL")]
    vs: Option<String>,
    #[command(flatten)]
    size: Size,
    /// Denoising steps of a whole run
    #[arg(long, default_value_t = 50)]
    steps: usize,
    /// Run this component and rank kinds of layers by their time, too
    #[arg(long, value_name = "COMPONENT", num_args = 0..=1, require_equals = true, default_missing_value = "transformer")]
    measure: Option<Component>,
    /// Threads of ONNX Runtime for `--measure` [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Component {
    Transformer,
    TextEncoder,
    VaeDecoder,
}

/// Kinds of layers in each ranking.
const RANKED: usize = 5;

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let size = args.size.asked();
    let look = |model: &str| Inspection::new(&Blueprint::open(model)?, size, args.steps).map_err(anyhow::Error::from);
    let inspection = look(&args.model)?;
    let other = args.vs.as_deref().map(look).transpose()?;
    let sizes = sizings(Blueprint::open(&args.model)?, size)?;
    let times = args.measure.map(|component| measure(args, component)).transpose()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut report = json!({"model": inspection, "sizes": sizes});
        if let Some(other) = &other {
            report["vs"] = json!(other);
        }
        if let Some(times) = &times {
            report["measured"] = json!(times);
        }
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(Answer::Done);
    }
    writeln!(out, "{}\n", heading(&inspection, args.steps))?;
    if let Some(other) = &other {
        writeln!(out, "{}\n", heading(other, args.steps))?;
        writeln!(out, "{}", side_by_side(&inspection, other))?;
        return Ok(Answer::Done);
    }
    writeln!(out, "{}", stages(&inspection))?;
    if !sizes.is_empty() {
        writeln!(out, "\n{}", precisions(&sizes))?;
    }
    writeln!(out, "\n{}", rankings(&inspection.kinds, times.as_deref()))?;
    Ok(Answer::Done)
}

/// What each kind of layer takes of a component's time.
fn measure(args: &Args, component: Component) -> anyhow::Result<Vec<GroupTime>> {
    let part = match component {
        Component::Transformer => Part::Transformer,
        Component::TextEncoder => Part::TextEncoder,
        Component::VaeDecoder => Part::VaeDecoder,
    };
    let opened = open(Path::new(&args.model), args.threads, &Gpu::default())?;
    let settings = Settings { size: args.size.asked(), repeat: 1, profile: true };
    let progress = Progress::steps(part.name(), 2);
    let timing = time(&opened.pipeline, part, settings, |run| {
        progress.step(run + 1, || format!("{}: run {run} of 1", part.name()));
    });
    progress.clear();
    Ok(by_kind(&timing?.nodes))
}

fn heading(inspection: &Inspection, steps: usize) -> String {
    let video = &inspection.video;
    let mut text = format!(
        "{}: {} is {} latents, {} video + {} text tokens\n{} parameters; {} for {steps} steps with guidance:",
        inspection.model,
        by(video.pixels),
        by(video.latents),
        grouped(video.tokens[1] as u64),
        grouped(video.tokens[0] as u64),
        grouped(inspection.parameters()),
        operations(inspection.flops()),
    );
    let whole = inspection.flops();
    let shares = inspection
        .components
        .iter()
        .filter(|part| part.runs > 0)
        .map(|part| format!("{} {}", part.component, percent(share(part.runs as u64 * part.flops, whole))));
    // Writing to a text does not fail.
    let _ = write!(text, " {}", shares.collect::<Vec<_>>().join(", "));
    text
}

fn plain<const N: usize>(header: [&str; N], left: usize) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    for i in left..N {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn stages(inspection: &Inspection) -> Table {
    let mut table = plain(["stage", "reads", "makes", "parameters", "operations", "activations", "share"], 3);
    for part in &inspection.components {
        let idle = if part.runs == 0 { ", for videos to start from" } else { "" };
        table.add_row([
            format!("{}{idle}", part.component),
            String::new(),
            String::new(),
            grouped(part.parameters),
            operations(part.flops),
            HumanBytes(part.bytes).to_string(),
            format!("peak {}", HumanBytes(part.peak)),
        ]);
        for row in &part.stages {
            table.add_row([
                label(row),
                shapes(&row.input),
                shapes(&row.output),
                grouped(row.parameters),
                operations(row.flops),
                HumanBytes(row.bytes).to_string(),
                percent(row.share),
            ]);
        }
    }
    table
}

fn label(row: &Row) -> String {
    format!("{:width$}{}", "", row.stage, width = 2 * (row.depth + 1))
}

fn shapes(shapes: &[Vec<usize>]) -> String {
    let shown = |shape: &Vec<usize>| shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
    shapes.iter().map(shown).collect::<Vec<_>>().join(" + ")
}

/// Stages of both with the change; those that only one has are blank in the other's columns.
fn side_by_side(ours: &Inspection, theirs: &Inspection) -> Table {
    let header = ["stage", "parameters", "vs", "change", "operations", "vs", "change", "activations", "vs", "change"];
    let mut table = plain(header, 1);
    let mut add = |label: String, a: Option<[u64; 3]>, b: Option<[u64; 3]>| {
        let mut cells = vec![label];
        let shown: [fn(u64) -> String; 3] = [grouped, operations, |n| HumanBytes(n).to_string()];
        for (i, show) in shown.into_iter().enumerate() {
            let [a, b] = [a, b].map(|numbers| numbers.map(|numbers| numbers[i]));
            cells.extend([a, b].map(|n| n.map(show).unwrap_or_default()));
            cells.push(a.zip(b).map(|(a, b)| change(a, b)).unwrap_or_default());
        }
        table.add_row(cells);
    };
    for (a, b) in ours.components.iter().zip(&theirs.components) {
        let numbers = |part: &Anatomy| Some([part.parameters, part.flops, part.bytes]);
        add(a.component.into(), numbers(a), numbers(b));
        let find = |rows: &[Row], like: &Row| {
            let same = |row: &&Row| generic(&row.stage) == generic(&like.stage) && row.depth == like.depth;
            rows.iter().find(same).map(|row| [row.parameters, row.flops, row.bytes])
        };
        for row in &a.stages {
            add(label(row), find(&a.stages, row), find(&b.stages, row));
        }
        for row in b.stages.iter().filter(|row| find(&a.stages, row).is_none()) {
            add(label(row), None, find(&b.stages, row));
        }
    }
    let sums = |of: &Inspection| {
        let bytes = of.components.iter().map(|part| part.bytes).sum();
        Some([of.parameters(), of.flops(), bytes])
    };
    add("whole run".into(), sums(ours), sums(theirs));
    table
}

/// A stage's name without its numbers: `all 30 blocks` and `all 15 blocks` are the same stage.
fn generic(stage: &str) -> String {
    let numbered = stage.strip_prefix("all ").is_some_and(|rest| rest.ends_with(" blocks"));
    if numbered { "all blocks".into() } else { stage.split(" of ").next().unwrap_or_default().into() }
}

fn precisions(sizes: &[Sizing]) -> Table {
    let header = ["precision", "text encoder", "transformer", "VAE decoder", "peak", "GPU", "least", "GPU "];
    let mut table = plain(header, 1);
    for size in sizes {
        let bytes = |n: u64| HumanBytes(n).to_string();
        let card = |n: u64| gpu(n).map_or("none".into(), |gib| format!("{gib} GB"));
        let [text, transformer, vae] = size.weights.map(bytes);
        table.add_row([
            size.precision.to_string(),
            text,
            transformer,
            vae,
            bytes(size.peak),
            card(size.peak),
            bytes(size.least),
            card(size.least),
        ]);
    }
    table
}

fn rankings(kinds: &[Kind], times: Option<&[GroupTime]>) -> Table {
    let mut table = plain(["most", "1", "2", "3", "4", "5"], RANKED + 1);
    let mut add = |what: &str, numbers: Vec<(&str, f64)>| {
        let whole: f64 = numbers.iter().map(|(_, n)| n).sum();
        let mut numbers = numbers;
        numbers.sort_by(|a, b| b.1.total_cmp(&a.1));
        let shown = numbers.iter().take(RANKED).filter(|(_, n)| *n > 0.0);
        let shown = shown.map(|(name, n)| format!("{name} {}", percent(n / whole)));
        table.add_row([what.to_string()].into_iter().chain(shown));
    };
    #[allow(clippy::cast_precision_loss)] // Shares.
    let of = |number: fn(&Kind) -> u64| kinds.iter().map(|k| (k.name.as_str(), number(k) as f64)).collect();
    add("parameters", of(|kind| kind.parameters));
    add("operations", of(|kind| kind.flops));
    add("activations", of(|kind| kind.bytes));
    if let Some(times) = times {
        add("time", times.iter().map(|group| (group.name.as_str(), group.seconds)).collect());
    }
    table
}

/// 1694318144 as 1,694,318,144.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[allow(clippy::cast_precision_loss)] // A share.
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn change(a: u64, b: u64) -> String {
    if a == b {
        return "=".into();
    }
    if a == 0 { "new".into() } else { format!("{:+.1} %", 100.0 * (share(b, a) - 1.0)) }
}
