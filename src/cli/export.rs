//! `cogvx export`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::{Args as ClapArgs, ValueEnum};
use cogvx_calibration::histogram::Clip;
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::DType;
use cogvx_graphs::pass::Target as GraphTarget;
use indicatif::HumanBytes;
use serde::Serialize;

use super::Answer;
use super::bench::verdict_table;
use super::layers::{Asked, Layers};
use super::loras::Loras;
use super::prefer::{Measured, Prefer, measured, measured_unasked};
use super::progress::{Progress, say};
use crate::bench::{Verdict, kept_float};
use crate::bundle::{BundleWriter, WeightsMode};
use crate::export::{Component, ExportOptions, LayerChoice, Report, VideoShape, export};

/// Turn a checkpoint into a bundle of ONNX graphs
///
/// CHECKPOINT is a CogVideoX model in diffusers' layout: `model_index.json` and a folder for each of `transformer`, `vae`,
/// `text_encoder`, `tokenizer` and `scheduler`. The bundle has the graphs, a manifest (cogvx.json), tokenizer and scheduler; its
/// weights are hard links into the checkpoint where the file system can link.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The checkpoint's folder
    checkpoint: PathBuf,
    /// The bundle's folder; it appears complete or not at all
    #[arg(short, long)]
    output: PathBuf,
    /// Store weights in at most this precision and, on GPUs, compute in it [default: the checkpoint's own]
    ///
    /// Weights never take more bits than the checkpoint has. On the cpu target arithmetic is always fp32, and 16-bit
    /// weights are converted as they are used.
    #[arg(long)]
    precision: Option<Precision>,
    /// Quantize the linear layers of the text encoder and the transformer
    ///
    /// `SCHEME:auto` ranks the layers first, as `cogvx sensitivity` does by itself, and leaves the worst in float until the
    /// rest loses at most `--max-loss`.
    #[arg(long, value_name = "SCHEME", value_parser = Asked::parser())]
    quantize: Option<Asked>,
    /// What `cogvx calibrate` saw of the checkpoint: quantization loses less with it, and what fp16 does not hold stays fp32
    #[arg(long, value_name = "TABLE")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    layers: Layers,
    /// How the range of features is chosen where they have one scale
    #[arg(long, default_value = "min-max", requires = "calibration")]
    observer: Observer,
    /// Export even where calibration saw numbers that fp16 does not hold and cogvx cannot keep in fp32
    #[arg(long, requires = "calibration")]
    allow_overflow: bool,
    /// The runtime to write the graphs for
    #[arg(long, default_value = "cpu")]
    target: Target,
    /// Link weights into the checkpoint's files, or copy them
    #[arg(long, default_value = "auto")]
    weights: Weights,
    #[command(flatten)]
    loras: Loras,
    /// Fix the graphs to one video size in pixels, such as 49x480x720 [default: any size]
    #[arg(long, value_name = "FRAMESxHEIGHTxWIDTH")]
    shapes: Option<String>,
    /// Export only these
    #[arg(long, value_delimiter = ',', default_value = "text-encoder,transformer,vae")]
    components: Vec<Part>,
    /// Replace the bundle at the output
    #[arg(long)]
    overwrite: bool,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Precision {
    Fp32,
    Fp16,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Quantize {
    /// W8A8, features scaled token by token (cpu)
    Int8,
    /// W8A8, features scaled by what calibration saw (cpu, tensorrt)
    Int8Static,
    /// int8 weights
    Int8Weight,
    /// int4 weights
    Int4Weight,
    /// Weights and features in FP8 E4M3 (tensorrt)
    Fp8,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Observer {
    /// Nothing is cut off
    MinMax,
    /// All but one in 10,000 features are reached
    Percentile,
    /// The least information is lost
    Entropy,
    /// The mean square error is least
    Mse,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Target {
    /// ONNX Runtime's CPU provider
    Cpu,
    /// ONNX Runtime's CUDA provider
    Cuda,
    /// TensorRT, strongly typed
    Tensorrt,
}

#[derive(Clone, Copy, ValueEnum)]
enum Weights {
    /// Link where the file system can, else copy
    Auto,
    /// Link, or fail
    Link,
    /// Copy: the bundle stands alone
    Copy,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    TextEncoder,
    Transformer,
    /// Decoder and encoder
    Vae,
    VaeDecoder,
    VaeEncoder,
}

/// How an export came to its choice of layers.
#[derive(Default)]
struct Choice {
    /// What each kind of layer takes, if that was measured.
    verdicts: Vec<Verdict>,
    /// Why nothing was, where it would be by default.
    unmeasured: Option<String>,
}

impl Args {
    fn options(&self) -> anyhow::Result<(ExportOptions, Choice)> {
        let mut options = self.options_for_all_layers()?;
        let Some(asked) = self.quantize else { return Ok((options, Choice::default())) };
        let measures = self.layers.prefers(asked.scheme.scheme(), options.target) == Prefer::Speed;
        if asked.auto || measures {
            // It takes a while, and would be in vain if there were no place for the bundle.
            BundleWriter::create(&self.output, Some(&self.checkpoint), self.overwrite)?;
        }
        let mut kept = self.layers.kept(asked, &self.checkpoint, &options)?;
        options.layers = all_but(&kept);
        if !measures {
            return Ok((options, Choice::default()));
        }
        let measured = if self.layers.prefer.is_some() {
            measured(&self.checkpoint, &options)?
        } else {
            match measured_unasked(&self.checkpoint, &options) {
                Ok(measured) => measured,
                Err(e) if options.stop.load(Ordering::SeqCst) => return Err(e),
                // What is wrong with the checkpoint or the options the export itself will tell.
                Err(e) => return Ok((options, Choice { unmeasured: Some(e.to_string()), ..Choice::default() })),
            }
        };
        let Measured { verdicts, stored } = measured;
        kept.extend(kept_float(&stored).map_err(anyhow::Error::msg)?);
        options.layers = all_but(&kept);
        options.verdict = Some(stored);
        Ok((options, Choice { verdicts, unmeasured: None }))
    }

    fn options_for_all_layers(&self) -> anyhow::Result<ExportOptions> {
        Ok(ExportOptions {
            precision: self.precision.map(Precision::dtype),
            quantize: self.quantize.map(|asked| asked.scheme.scheme()),
            quantize_vae: self.layers.quantize_vae,
            calibration: self.calibration.clone(),
            observer: self.observer.clip(),
            allow_overflow: self.allow_overflow,
            target: self.target.of_graphs(),
            weights: match self.weights {
                Weights::Auto => WeightsMode::Auto,
                Weights::Link => WeightsMode::Link,
                Weights::Copy => WeightsMode::Copy,
            },
            loras: self.loras.parse()?,
            shapes: self.shapes.as_deref().map(parse_shape).transpose()?,
            components: Component::ALL.into_iter().filter(|c| self.components.iter().any(|p| p.is(*c))).collect(),
            overwrite: self.overwrite,
            stop: super::interrupt::asked(),
            ..ExportOptions::default()
        })
    }
}

impl Precision {
    pub(super) fn dtype(self) -> DType {
        match self {
            Self::Fp32 => DType::F32,
            Self::Fp16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl Target {
    pub(super) fn of_graphs(self) -> GraphTarget {
        match self {
            Self::Cpu => GraphTarget::Cpu,
            Self::Cuda => GraphTarget::Cuda,
            Self::Tensorrt => GraphTarget::TensorRt,
        }
    }
}

impl Quantize {
    pub(super) fn scheme(self) -> Scheme {
        match self {
            Self::Int8 => Scheme::Int8,
            Self::Int8Static => Scheme::Int8Static,
            Self::Int8Weight => Scheme::Int8Weight,
            Self::Int4Weight => Scheme::Int4Weight,
            Self::Fp8 => Scheme::Fp8,
        }
    }
}

impl Observer {
    pub(super) fn clip(self) -> Clip {
        match self {
            Self::MinMax => Clip::MinMax,
            Self::Percentile => Clip::Percentile(0.9999),
            Self::Entropy => Clip::Entropy,
            Self::Mse => Clip::Mse,
        }
    }
}

impl Part {
    fn is(self, component: Component) -> bool {
        match self {
            Self::TextEncoder => component == Component::TextEncoder,
            Self::Transformer => component == Component::Transformer,
            Self::Vae => matches!(component, Component::VaeDecoder | Component::VaeEncoder),
            Self::VaeDecoder => component == Component::VaeDecoder,
            Self::VaeEncoder => component == Component::VaeEncoder,
        }
    }
}

fn all_but(kept: &[String]) -> LayerChoice {
    if kept.is_empty() { LayerChoice::All } else { LayerChoice::AllBut(kept.to_vec()) }
}

pub(super) fn parse_shape(text: &str) -> anyhow::Result<VideoShape> {
    let numbers: Option<Vec<usize>> = text.split('x').map(|n| n.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[frames, height, width]) => Ok(VideoShape { frames, height, width }),
        _ => anyhow::bail!("`--shapes`: expected FRAMESxHEIGHTxWIDTH such as 49x480x720, found `{text}`"),
    }
}

/// What is shown as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'a serde_json::Value>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let (options, choice) = args.options()?;
    let progress = Progress::lines();
    let report = export(&args.checkpoint, &args.output, &options, |graph| progress.message(graph))?;
    progress.clear();
    if let Some(why) = &choice.unmeasured {
        say(&format!("not measured which layers are faster quantized, so all are, as by `--prefer size`: {why}"));
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        let shown = Shown { report: &report, verdict: options.verdict.as_ref() };
        writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?;
    } else {
        if !choice.verdicts.is_empty() {
            writeln!(out, "{}\n", verdict_table(&choice.verdicts))?;
        }
        write!(out, "{}", summary(&report))?;
        if options.quantize.is_some() && report.quantized.is_empty() {
            writeln!(out, "no layer is quantized: all stay float")?;
        }
    }
    Ok(Answer::Done)
}

fn summary(report: &Report) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["graph", "nodes", "opset", "weights beside", "inline", "converted", "quantized"]);
    for g in &report.graphs {
        let numbers = [
            g.nodes as u64,
            g.opset.unsigned_abs(),
            g.external as u64,
            g.inline as u64,
            g.converted as u64,
            g.quantized as u64,
        ];
        table.add_row(std::iter::once(g.file.clone()).chain(numbers.map(|n| n.to_string())));
    }
    let bytes = [(report.written, "written"), (report.linked, "linked"), (report.copied, "copied")];
    let bytes: Vec<_> =
        bytes.iter().filter(|(n, _)| *n > 0).map(|(n, how)| format!("{} {how}", HumanBytes(*n))).collect();
    let merged: usize = report.graphs.iter().map(|g| g.merged).sum();
    let merged = if merged > 0 { format!("LoRA merged into {merged} weights\n") } else { String::new() };
    format!("{table}\n{merged}{}{}: {}\n", islands(report), report.output.display(), bytes.join(", "))
}

/// What stays in `float32` although the rest computes in `float16`.
fn islands(report: &Report) -> String {
    let mut largest: Vec<_> = report.fp32_islands.iter().collect();
    largest.sort_by(|a, b| b.1.total_cmp(a.1));
    let Some((name, magnitude)) = largest.first() else { return String::new() };
    format!("{} values stay fp32, which fp16 would not hold; the largest, {name}, reached {magnitude}\n", largest.len())
}
