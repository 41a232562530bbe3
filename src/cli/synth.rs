//! `cogvx synth`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use indicatif::HumanBytes;

use super::Answer;
use super::progress::Progress;
use crate::synth::{self, Model, Options, PartReport, Published};

/// Make a checkpoint of random weights, for benchmarks, capacity planning and tests
///
/// It has the layout, configurations, tensor names, shapes, types and files of a published model, in diffusers' layout, so all
/// that a real checkpoint costs in time and memory can be measured with it. Its videos are noise.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The model: 2b, 5b, 1.5-5b, 5b-i2v, 1.5-5b-i2v, student-0.5b (half of 2b's width), student-0.9b (half of its depth), or the folder of a checkpoint, of which the weights may be missing
    #[arg(long)]
    config: String,
    /// The checkpoint's folder, which must not exist; it appears complete or not at all
    #[arg(short, long, required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Same seed, same numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Blocks of the transformer and of the text encoder [default: the model's]
    #[arg(long)]
    layers: Option<usize>,
    /// Write only the weights of these
    #[arg(long, value_delimiter = ',', default_value = "text-encoder,transformer,vae")]
    components: Vec<Part>,
    /// The tokenizer's folder to copy [default: the checkpoint's, or a small one that knows ASCII]
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Only tell what would be written
    #[arg(long)]
    dry_run: bool,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    TextEncoder,
    Transformer,
    Vae,
}

impl Args {
    fn model(&self) -> Model {
        let published = Published::ALL.into_iter().find(|model| model.name() == self.config);
        published.map_or_else(|| Model::Like(PathBuf::from(&self.config)), Model::Published)
    }

    fn options(&self) -> Options {
        let part = |part: &Part| match part {
            Part::TextEncoder => synth::Part::TextEncoder,
            Part::Transformer => synth::Part::Transformer,
            Part::Vae => synth::Part::Vae,
        };
        Options {
            seed: self.seed,
            layers: self.layers,
            parts: self.components.iter().map(part).collect(),
            tokenizer: self.tokenizer.clone(),
            stop: super::interrupt::asked(),
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let (model, options) = (args.model(), args.options());
    let report = match &args.output {
        Some(output) if !args.dry_run => {
            let progress = Progress::lines();
            let report = synth::synthesize(&model, output, &options, |folder| progress.message(folder))?;
            progress.clear();
            report
        }
        _ => synth::plan(&model, &options)?,
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        writeln!(out, "{}", summary(&report))?;
    }
    Ok(Answer::Done)
}

fn summary(report: &[PartReport]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["weights", "type", "parameters", "size", "files"]);
    for part in report {
        let size = HumanBytes(part.bytes).to_string();
        let [parameters, files] = [part.parameters.to_string(), part.files.to_string()];
        table.add_row([part.folder.to_string(), part.dtype.to_string(), parameters, size, files]);
    }
    table
}
