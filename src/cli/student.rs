//! `cogvx student`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args as ClapArgs, ValueEnum};
use indicatif::HumanBytes;
use serde_json::json;

use super::Answer;
use super::progress::Progress;
use super::prompts::Prompts;
use super::size::Size;
use crate::bundle::WeightsMode;
use crate::student::{self, Costs, LayerChoice, Options, Report, Runs};

/// Make a smaller checkpoint of a teacher's weights
///
/// The student is a checkpoint in diffusers' layout with fewer of the teacher's blocks (`--layers`, `--layer-map`), heads and with
/// them channels (`--heads`), channels of its feed-forwards (`--ffn`) and of its time embedding (`--time-embed`). What goes is chosen
/// by place and by the weights; with `--measure` by what running the teacher on prompts shows. `--heal` then refits the layers that
/// are left, in closed form. `--target-params` lists sizes. `--dump-targets` writes what a trainer needs to distil the student
/// without the teacher.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The checkpoint's folder
    teacher: PathBuf,
    /// The student's folder, which must not exist; it appears complete or not at all
    #[arg(short, long, required_unless_present_any = ["target_params", "dump_targets"])]
    output: Option<PathBuf>,
    /// Blocks [default: the teacher's]
    #[arg(long)]
    layers: Option<usize>,
    /// The teacher's blocks to keep, such as 0,2,5
    #[arg(long, value_delimiter = ',', conflicts_with = "layers")]
    layer_map: Option<Vec<usize>>,
    /// Attention heads; the model is as wide as all heads together [default: the teacher's]
    #[arg(long)]
    heads: Option<usize>,
    /// Channels of the feed-forwards [default: as many times the width as the teacher's]
    ///
    /// No configuration tells it, and diffusers loads only four times the width: others run in cogvx. `free` with
    /// `--target-params` lists half of that, too.
    #[arg(long, value_name = "N|free", value_parser = ffn)]
    ffn: Option<Ffn>,
    /// Channels of the time embedding, in which all modulations are linear [default: the teacher's]
    #[arg(long)]
    time_embed: Option<usize>,
    /// List sizes of about so many parameters (such as 0.5B, 800M) and, with an output, make the deepest of them
    #[arg(long, value_name = "N", value_parser = parameters, conflicts_with = "layer_map")]
    target_params: Option<u64>,
    /// Run the teacher on prompts and choose by what that shows
    #[arg(long)]
    measure: bool,
    /// Run the teacher on prompts and refit the student's linear layers to what it computes; measures, too
    #[arg(long)]
    heal: bool,
    /// Write what the teacher reads and predicts on prompts to this new folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "heal", "measure"])]
    dump_targets: Option<PathBuf>,
    /// With `--dump-targets`, blocks whose outputs are written, too
    #[arg(long, value_delimiter = ',', value_name = "BLOCKS", requires = "dump_targets")]
    features: Vec<usize>,
    #[command(flatten)]
    prompts: Prompts,
    /// How many videos the teacher makes; beyond the last prompt it begins anew, with other seeds
    #[arg(long, default_value_t = 8, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    samples: usize,
    /// Denoising steps
    #[arg(long, default_value_t = 25)]
    steps: usize,
    /// Guidance scale; up to 1 means none
    #[arg(long, default_value_t = 6.0)]
    guidance: f64,
    /// Seed of the first prompt's noise; the next one's is one greater
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    size: Size,
    /// Link the teacher's text encoder and VAE, or copy them
    #[arg(long, default_value = "auto")]
    weights: Weights,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Width of the feed-forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ffn {
    Channels(usize),
    Free,
}

fn ffn(text: &str) -> Result<Ffn, String> {
    match text {
        "free" => Ok(Ffn::Free),
        text => text.parse().map(Ffn::Channels).map_err(|_| "expected a number of channels, or free".into()),
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Weights {
    /// Link, and copy where the file system cannot
    Auto,
    Link,
    Copy,
}

/// A number such as `0.5B`, `800M` or `7300000`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Checked.
fn parameters(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.trim_end_matches(['B', 'b', 'M', 'm', 'K', 'k']) {
        digits if digits.len() + 1 == text.len() => (digits, &text[digits.len()..]),
        digits => (digits, &text[digits.len()..]),
    };
    let unit = match unit.to_ascii_uppercase().as_str() {
        "B" => 1e9,
        "M" => 1e6,
        "K" => 1e3,
        "" => 1.0,
        _ => return Err("expected a number such as 0.5B or 800M".into()),
    };
    let number: f64 = digits.parse().map_err(|_| "expected a number such as 0.5B or 800M")?;
    let found = (number * unit).round();
    if (1.0..1e15).contains(&found) { Ok(found as u64) } else { Err("expected a number from 1 to 10^15".into()) }
}

impl Args {
    fn options(&self) -> anyhow::Result<Options> {
        let layers = match (self.layers, &self.layer_map) {
            (Some(n), _) => LayerChoice::Count(n),
            (None, Some(map)) => LayerChoice::Map(map.clone()),
            (None, None) => LayerChoice::All,
        };
        let runs = self.heal || self.measure || self.dump_targets.is_some();
        let halves = self.ffn == Some(Ffn::Free);
        if halves && self.target_params.is_none() {
            bail!("`--ffn free`: expected `--target-params`, too, which says how large the student is to be");
        }
        Ok(Options {
            layers,
            heads: self.heads,
            ffn: self.ffn.and_then(|ffn| if let Ffn::Channels(channels) = ffn { Some(channels) } else { None }),
            halves,
            time_embed: self.time_embed,
            target: self.target_params,
            weights: match self.weights {
                Weights::Auto => WeightsMode::Auto,
                Weights::Link => WeightsMode::Link,
                Weights::Copy => WeightsMode::Copy,
            },
            runs: if runs { Some(self.runs()?) } else { None },
            heal: self.heal,
            threads: self.threads,
            stop: super::interrupt::asked(),
            started: super::interrupt::ends,
        })
    }

    fn runs(&self) -> anyhow::Result<Runs> {
        let prompts = self.prompts.cycled(self.samples, &[&self.teacher])?;
        let (seed, steps, guidance) = (self.seed, self.steps, self.guidance);
        Ok(Runs { prompts, seed, steps, guidance, size: self.size.asked() })
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let options = args.options()?;
    let progress = Progress::lines();
    let mut told = |what: &str| progress.message(what);
    let mut out = std::io::stdout().lock();
    if let Some(folder) = &args.dump_targets {
        let recording = student::dump(&args.teacher, folder, &args.features, &options, &mut told)?;
        progress.clear();
        let steps: usize = recording.runs.iter().map(|run| run.timesteps.len()).sum();
        if args.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&recording)?)?;
        } else {
            writeln!(out, "{}: {} prompts, {steps} predictions", folder.display(), recording.runs.len())?;
        }
        return Ok(Answer::Done);
    }
    let listed = match args.target_params {
        Some(_) => Some(student::options(&args.teacher, &options)?),
        None => None,
    };
    let report = match &args.output {
        Some(output) => Some(student::make(&args.teacher, output, &options, &mut told)?),
        None => None,
    };
    progress.clear();
    if args.json {
        let listed = listed
            .map(|(teacher, options, chosen)| json!({ "teacher": teacher, "options": options, "chosen": chosen }));
        writeln!(out, "{}", serde_json::to_string_pretty(&json!({ "sizes": listed, "student": report }))?)?;
        return Ok(Answer::Done);
    }
    if let Some((teacher, options, chosen)) = &listed {
        let rows = options.iter().enumerate().map(|(i, costs)| (if i == *chosen { "*" } else { "" }, costs));
        writeln!(out, "{}", sizes(teacher, rows))?;
    }
    match &report {
        Some(report) => show(&mut out, report)?,
        None if listed.is_none() => bail!("expected an output"),
        None => writeln!(out, "* is what --output makes")?,
    }
    Ok(Answer::Done)
}

fn show(out: &mut impl std::io::Write, report: &Report) -> std::io::Result<()> {
    writeln!(out, "{}", sizes(&report.teacher, [("student", &report.student)].into_iter()))?;
    let list = |layers: &[usize]| layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    writeln!(out, "blocks kept: {}", list(&report.layers))?;
    if !report.without.is_empty() {
        let errors: Vec<_> = report.without.iter().map(|error| format!("{error:.3}")).collect();
        writeln!(out, "error without each block alone: {}", errors.join(", "))?;
    }
    if report.time_error > 0.0 {
        writeln!(out, "error of the time embedding: {:.1e}", report.time_error)?;
    }
    if let Some([before, after]) = report.healed {
        writeln!(out, "error of predictions: {before:.4} cut, {after:.4} healed")?;
    }
    if !report.loads_in_diffusers {
        writeln!(out, "diffusers cannot load it: its feed-forwards are not four times as wide as the model")?;
    }
    writeln!(out, "{}", report.output.display())
}

/// The teacher and others. They should be as many times as fast as it as they take fewer operations.
fn sizes<'a>(teacher: &'a Costs, rows: impl Iterator<Item = (&'a str, &'a Costs)>) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let rows: Vec<_> = [("teacher", teacher)].into_iter().chain(rows).collect();
    let all_load = rows.iter().all(|(_, costs)| costs.loads_in_diffusers);
    let costs =
        ["", "layers", "heads", "ffn", "time embed", "parameters", "TFLOPs a step", "predicted speed", "in 16 bits"];
    table.set_header(costs.into_iter().chain((!all_load).then_some("")));
    for (name, costs) in rows {
        let Costs { shape, parameters, flops, bytes, loads_in_diffusers } = costs;
        let sizes = [shape.layers, shape.heads, shape.ffn, shape.time_embed].map(|n| n.to_string());
        let speed = format!("{:.2}x", teacher.flops / flops);
        let costs = [parameters.to_string(), format!("{:.3}", flops / 1e12), speed, HumanBytes(*bytes).to_string()];
        let note = if *loads_in_diffusers { "" } else { "cogvx only" };
        let note = (!all_load).then(|| note.to_string());
        table.add_row([name.to_string()].into_iter().chain(sizes).chain(costs).chain(note));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{Ffn, ffn, parameters};

    #[test]
    fn feed_forwards_are_a_number_or_free() {
        assert_eq!((ffn("480"), ffn("free")), (Ok(Ffn::Channels(480)), Ok(Ffn::Free)));
        assert!(ffn("half").is_err() && ffn("-1").is_err());
    }

    #[test]
    fn parameters_are_numbers_with_a_unit() {
        assert_eq!(parameters("0.5B"), Ok(500_000_000));
        assert_eq!(parameters("800m"), Ok(800_000_000));
        assert_eq!(parameters("7300000"), Ok(7_300_000));
        for wrong in ["", "B", "1BB", "-1B", "nan", "1e30", "half"] {
            assert!(parameters(wrong).is_err(), "{wrong}");
        }
    }
}
