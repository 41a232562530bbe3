//! `cogvx sensitivity`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args as ClapArgs, ValueEnum};
use ndarray::ArrayD;

use super::export::{Observer, Quantize};
use super::loras::Loras;
use super::progress::Progress;
use super::prompts::Prompts;
use super::size::Size;
use super::{Answer, open_with};
use crate::calibrate::fingerprint;
use crate::export::{ExportOptions, LayerChoice};
use crate::pipeline::{self, Pipeline, Prompt};
use crate::sensitivity::{self, Ranking, rank};

/// Rank layers by what quantizing them costs
///
/// Quantizes each group of layers alone, makes the latents of some prompts with it, and compares them with those of the float
/// model. `cogvx export --quantize int8 --sensitivity FILE --max-loss X` keeps the worst in float until the rest loses at most X.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The checkpoint's folder
    checkpoint: PathBuf,
    /// How the layers are quantized
    #[arg(long)]
    quantize: Quantize,
    /// What `cogvx calibrate` saw of the checkpoint
    #[arg(long, value_name = "TABLE")]
    calibration: Option<PathBuf>,
    /// How the range of features is chosen where they have one scale
    #[arg(long, default_value = "min-max", requires = "calibration")]
    observer: Observer,
    /// What is quantized together
    #[arg(long, default_value = "kind")]
    by: By,
    #[command(flatten)]
    runs: Runs,
    #[command(flatten)]
    loras: Loras,
    /// The ranking as a JSON file
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// What is run to see what quantizing does.
#[derive(ClapArgs)]
struct Runs {
    #[command(flatten)]
    prompts: Prompts,
    /// How many of the prompts are run
    #[arg(long, default_value_t = Self::default().samples)]
    samples: usize,
    /// Denoising steps
    #[arg(long, default_value_t = Self::default().steps)]
    steps: usize,
    /// Guidance scale; up to 1 means none
    #[arg(long, default_value_t = Self::default().guidance)]
    guidance: f64,
    /// Seed of the first prompt's noise; the next one's is one greater
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    size: Size,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
}

impl Default for Runs {
    fn default() -> Self {
        Self {
            prompts: Prompts::default(),
            samples: 2,
            steps: 10,
            guidance: 6.0,
            seed: 0,
            size: Size::default(),
            threads: 0,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// The same layer of all blocks
    Kind,
    /// All layers of a block
    Block,
    /// Each layer
    Layer,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let options = ExportOptions {
        quantize: Some(args.quantize.scheme()),
        calibration: args.calibration.clone(),
        observer: args.observer.clip(),
        loras: args.loras.parse()?,
        ..ExportOptions::default()
    };
    let by = match args.by {
        By::Kind => sensitivity::By::Kind,
        By::Block => sensitivity::By::Block,
        By::Layer => sensitivity::By::Layer,
    };
    let ranking = ranked(&args.checkpoint, &options, by, &args.runs)?;
    if let Some(output) = &args.output {
        super::write_beside(output, serde_json::to_string_pretty(&ranking)?.as_bytes())?;
    }
    writeln!(std::io::stdout(), "{}", table(&ranking))?;
    Ok(Answer::Done)
}

/// The ranking that `cogvx sensitivity` makes unless told otherwise, of a checkpoint that would be exported with `options`, from
/// these images.
pub(super) fn by_default(checkpoint: &Path, options: &ExportOptions, images: &[PathBuf]) -> anyhow::Result<Ranking> {
    let runs = Runs { prompts: Prompts::of_images(images), ..Runs::default() };
    ranked(checkpoint, options, sensitivity::By::Kind, &runs)
}

/// Rank what `options` quantize, by what the CPU computes.
fn ranked(checkpoint: &Path, options: &ExportOptions, by: sensitivity::By, runs: &Runs) -> anyhow::Result<Ranking> {
    let scheme = options.quantize.context("a scheme")?;
    let prompts = runs.prompts.first(runs.samples, &[checkpoint])?;
    let float = || ExportOptions { loras: options.loras.clone(), ..ExportOptions::default() };
    let quantized = |layers| ExportOptions {
        quantize: options.quantize,
        calibration: options.calibration.clone(),
        observer: options.observer,
        layers,
        ..float()
    };
    let (opened, _) = open_with(checkpoint, runs.threads, float())?;
    opened.pipeline.check_prompts(&prompts, runs.size.asked())?;
    let exact = latents(runs, &opened.pipeline, &prompts)?;
    let (_, report) = super::export_aside(checkpoint, quantized(LayerChoice::All))?;
    let progress = Progress::steps("ranking", sensitivity::groups(&report.quantized, by).len());
    let run = |layers: &[String]| -> anyhow::Result<_> {
        let (opened, _) = open_with(checkpoint, runs.threads, quantized(LayerChoice::Only(layers.to_vec())))?;
        latents(runs, &opened.pipeline, &prompts)
    };
    let names = [scheme.name(), &fingerprint(checkpoint, &options.loras)?];
    let ranking = rank(names, (&report.quantized, by), &exact, run, |done, groups| {
        progress.step(done, || format!("group {done}/{groups}"));
    })?;
    progress.clear();
    Ok(ranking)
}

/// The latents of each prompt.
fn latents(runs: &Runs, pipeline: &Pipeline, prompts: &[Prompt]) -> anyhow::Result<Vec<ArrayD<f32>>> {
    let mut all = vec![];
    for (prompt, seed) in prompts.iter().zip(runs.seed..) {
        let mut request = pipeline.request_of(prompt, runs.size.asked())?;
        (request.seed, request.steps, request.guidance) = (seed, runs.steps, runs.guidance);
        all.push(pipeline.latents(&request, &mut Unobserved)?);
    }
    Ok(all)
}

struct Unobserved;

impl pipeline::Observer for Unobserved {
    fn frames(&mut self, _: ArrayD<f32>, _: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

fn table(ranking: &Ranking) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["quantized alone", "layers", "error of the latents"]);
    for group in &ranking.groups {
        table.add_row([group.name.clone(), group.layers.len().to_string(), format!("{:.2e}", group.error)]);
    }
    table.add_row(["all".into(), String::new(), format!("{:.2e}", ranking.all)]);
    table
}
