//! `cogvx calibrate`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args as ClapArgs;
use cogvx_calibration::table::{Run, Table};

use super::progress::Progress;
use super::{Answer, open_with, prompts};
use crate::calibrate::{Keep, fingerprint, observe, save};
use crate::export::ExportOptions;

/// Rows taken at each place in each step.
const ROWS_A_STEP: usize = 16;

/// See what the layers of a checkpoint read, for quantization
///
/// Runs the float model on prompts and writes a table: the least and greatest number of each feature that each linear
/// layer reads, by ranges of denoising steps, and a sample of what it reads. `cogvx export --quantize SCHEME --calibration TABLE`
/// uses it. The table is written after each prompt; `--resume` goes on with one.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The checkpoint's folder
    checkpoint: PathBuf,
    /// The table (a safetensors file)
    #[arg(short, long)]
    output: PathBuf,
    /// Prompts, one a line [default: CHECKPOINT/prompts.txt, or a set that comes with cogvx]
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// How many of the prompts are run
    #[arg(long, default_value_t = 8)]
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
    /// Frames [default: the checkpoint's]
    #[arg(long)]
    frames: Option<usize>,
    /// Rows of pixels [default: the checkpoint's]
    #[arg(long)]
    height: Option<usize>,
    /// Columns of pixels [default: the checkpoint's]
    #[arg(long)]
    width: Option<usize>,
    /// Ranges that the steps are divided into
    #[arg(long, default_value_t = 4, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64))]
    ranges: usize,
    /// Rows kept of what each layer reads
    #[arg(long, default_value_t = 256, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=65536))]
    rows: usize,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
    /// Go on with the table at the output
    #[arg(long)]
    resume: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let mut prompts = prompts::read(args.prompts.as_deref(), &[&args.checkpoint])?;
    prompts.truncate(args.samples.max(1));
    let checkpoint = fingerprint(&args.checkpoint, &[])?;
    let mut table = Table { checkpoint: checkpoint.clone(), ranges: args.ranges, ..Table::default() };
    if args.output.exists() {
        if !args.resume {
            bail!("`{}`: expected nothing there, found a file: `--resume` goes on with it", args.output.display());
        }
        table = Table::open(&args.output)?;
        table.check(&args.output, &checkpoint)?;
        if table.ranges != args.ranges {
            bail!("`--ranges`: expected {} as in `{}`, found {}", table.ranges, args.output.display(), args.ranges);
        }
    }
    let options = ExportOptions { observe: Some(ROWS_A_STEP), ..ExportOptions::default() };
    let (opened, report) = open_with(&args.checkpoint, args.threads, options)?;
    let pipeline = &opened.pipeline;
    table.layers = report.observed;
    let keep = Keep { ranges: args.ranges, rows: args.rows };
    let runs: Vec<_> =
        prompts.iter().zip(args.seed..).map(|(prompt, seed)| run_of(args, pipeline, prompt, seed)).collect();
    let left: Vec<_> = runs.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let left: Vec<_> = left.into_iter().filter(|run| !table.runs.contains(run)).collect();
    let progress = Progress::steps("calibrating", left.len() * args.steps);
    for (i, run) in left.iter().enumerate() {
        observe(pipeline, &mut table, run, keep, |step, steps| {
            progress.step(i * args.steps + step, || format!("prompt {}/{}, step {step}/{steps}", i + 1, left.len()));
        })?;
        save(&table, &args.output)?;
    }
    progress.clear();
    let (places, layers) = (table.places.len(), table.layers.len());
    let output = args.output.display();
    writeln!(
        std::io::stdout(),
        "{output}: {} prompts, {layers} layers that read at {places} places",
        table.runs.len()
    )?;
    Ok(Answer::Done)
}

fn run_of(args: &Args, pipeline: &crate::pipeline::Pipeline, prompt: &str, seed: u64) -> anyhow::Result<Run> {
    let request = pipeline.request(prompt)?;
    let size = [
        args.frames.unwrap_or(request.frames),
        args.height.unwrap_or(request.height),
        args.width.unwrap_or(request.width),
    ];
    Ok(Run { prompt: prompt.into(), seed, steps: args.steps, guidance: args.guidance, size })
}
