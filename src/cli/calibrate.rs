//! `cogvx calibrate`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use clap::Args as ClapArgs;
use cogvx_calibration::table::{MOST_RANGES, MOST_ROWS, Run, Table};

use super::loras::Loras;
use super::progress::Progress;
use super::prompts::Prompts;
use super::size::Size;
use super::{Answer, open_with};
use crate::calibrate::{Keep, fingerprint, observe, save, vae_fingerprint};
use crate::export::{ExportOptions, Lora};
use crate::picture;
use crate::pipeline::{Pipeline, Prompt, is_bundle};

/// Rows taken at each place in each step.
const ROWS_A_STEP: usize = 16;

/// See what the layers of a checkpoint read, for quantization
///
/// Runs the float model on prompts and writes a table: the least and greatest number of each feature that each linear
/// layer reads, by ranges of denoising steps, and a sample of what it reads. `cogvx export --quantize SCHEME --calibration TABLE`
/// uses it. The table is written after each prompt; `--resume` goes on with one, and `--merge` puts tables together that were
/// made with other prompts, images or seeds.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The checkpoint's folder
    checkpoint: PathBuf,
    /// The table (a safetensors file)
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    prompts: Prompts,
    /// How many of the prompts are run
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
    /// Decode what comes of each prompt, too: `cogvx export --quantize-vae` needs to know what the VAE reads
    #[arg(long, conflicts_with = "merge")]
    vae: bool,
    /// Ranges that the steps are divided into
    #[arg(long, default_value_t = 4, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=MOST_RANGES as u64))]
    ranges: usize,
    /// Rows kept of what each layer reads
    #[arg(long, default_value_t = 256, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=MOST_ROWS as u64))]
    rows: usize,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
    #[command(flatten)]
    loras: Loras,
    /// Go on with the table at the output
    #[arg(long)]
    resume: bool,
    /// Run nothing: write what this table and the others given have seen of the checkpoint
    #[arg(long = "merge", value_name = "TABLE", conflicts_with_all = ["prompts", "image", "samples", "steps", "ranges"])]
    merge: Vec<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    if is_bundle(&args.checkpoint) {
        let path = args.checkpoint.display();
        bail!("`{path}`: expected a checkpoint, found a bundle: calibrate the checkpoint that it was exported from");
    }
    let loras = args.loras.parse()?;
    let checkpoint = fingerprint(&args.checkpoint, &loras)?;
    let output = args.output.display();
    let mut table = None;
    if args.output.exists() {
        if !args.resume {
            bail!("`{output}`: expected nothing there, found a file: `--resume` goes on with it");
        }
        let old = open_table(&args.output, &checkpoint)?;
        if old.ranges != args.ranges && args.merge.is_empty() {
            bail!("`--ranges`: expected {} as in `{output}`, found {}", old.ranges, args.ranges);
        }
        table = Some(old);
    }
    for path in &args.merge {
        let other = open_table(path, &checkpoint)?;
        match &mut table {
            Some(table) => table.merge(&other, args.rows).map_err(|e| anyhow!("`{}`: {e}", path.display()))?,
            None => table = Some(other),
        }
    }
    let mut table = table.unwrap_or_else(|| Table { checkpoint, ranges: args.ranges, ..Table::default() });
    if args.merge.is_empty() {
        let prompts = args.prompts.first(args.samples, &[&args.checkpoint])?;
        calibrate(args, &prompts, loras, &mut table)?;
    } else {
        save(&table, &args.output)?;
    }
    let (prompts, places, layers) = (table.runs.len(), table.places.len(), table.layers.len());
    let decoded = match table.runs.iter().filter(|run| run.vae).count() {
        0 => "the VAE was not seen".to_string(),
        decoded => format!("{decoded} prompts decoded"),
    };
    writeln!(
        std::io::stdout(),
        "{output}: {prompts} prompts, {layers} layers that read at {places} places, {decoded}"
    )?;
    Ok(Answer::Done)
}

/// The table at `path`, found to be of the checkpoint with this fingerprint.
fn open_table(path: &Path, checkpoint: &str) -> anyhow::Result<Table> {
    let table = Table::open(path)?;
    table.check(path, checkpoint)?;
    Ok(table)
}

/// Run the prompts that `table` has not seen, and write it after each.
fn calibrate(args: &Args, prompts: &[Prompt], loras: Vec<Lora>, table: &mut Table) -> anyhow::Result<()> {
    let options = ExportOptions { observe: Some(ROWS_A_STEP), loras, ..ExportOptions::default() };
    let (opened, report) = open_with(&args.checkpoint, args.threads, options)?;
    let pipeline = &opened.pipeline;
    pipeline.check_prompts(prompts, args.size.asked())?;
    table.layers = report.observed;
    if args.vae {
        let vae = vae_fingerprint(&args.checkpoint)?;
        if table.vae.is_some() {
            table.check_vae(&args.output, &vae)?;
        }
        table.vae = Some(vae);
    }
    let keep = Keep { ranges: args.ranges, rows: args.rows };
    let runs = prompts.iter().zip(args.seed..);
    let runs = runs.map(|(prompt, seed)| Ok((run_of(args, pipeline, prompt, seed)?, prompt.image.as_deref())));
    let runs = runs.collect::<anyhow::Result<Vec<_>>>()?;
    let left: Vec<_> = runs.into_iter().filter(|(run, _)| !table.runs.iter().any(|old| old.covers(run))).collect();
    let progress = Progress::steps("calibrating", left.len() * args.steps);
    for (i, (run, image)) in left.iter().enumerate() {
        observe(pipeline, table, (run, *image), keep, |step, steps| {
            progress.step(i * args.steps + step, || format!("prompt {}/{}, step {step}/{steps}", i + 1, left.len()));
        })?;
        save(table, &args.output)?;
    }
    progress.clear();
    Ok(())
}

fn run_of(args: &Args, pipeline: &Pipeline, prompt: &Prompt, seed: u64) -> anyhow::Result<Run> {
    let mut request = pipeline.request(&prompt.text)?;
    args.size.apply(&mut request);
    Ok(Run {
        prompt: prompt.text.clone(),
        seed,
        steps: args.steps,
        guidance: args.guidance,
        size: [request.frames, request.height, request.width],
        vae: args.vae,
        image: prompt.image.as_deref().map(picture::hash).transpose()?,
    })
}
