//! `cogvx export`.

use std::io::{Read as _, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args as ClapArgs, ValueEnum};
use cogvx_calibration::histogram::Clip;
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::DType;
use cogvx_graphs::pass::Target as GraphTarget;
use indicatif::HumanBytes;

use super::Answer;
use super::loras::Loras;
use super::progress::Progress;
use crate::bundle::WeightsMode;
use crate::calibrate::fingerprint;
use crate::export::{Component, ExportOptions, LayerChoice, Report, VideoShape, export};
use crate::sensitivity::Ranking;

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
    #[arg(long)]
    quantize: Option<Quantize>,
    /// Quantize the convolutions of the VAE's decoder to int8, too (cpu)
    ///
    /// Decodes more than twice as fast and costs quality; needs a table that `cogvx calibrate --vae` made.
    #[arg(long, requires = "quantize")]
    quantize_vae: bool,
    /// What `cogvx calibrate` saw of the checkpoint: quantization loses less with it
    #[arg(long, value_name = "TABLE", requires = "quantize")]
    calibration: Option<PathBuf>,
    /// Leave layers in float whose names have one of these parts, such as `attn1.to_q` or `transformer_blocks.0.`
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "quantize")]
    keep_float: Vec<String>,
    /// Leave the layers in float that `cogvx sensitivity` ranked worst, until the rest loses at most `--max-loss`
    #[arg(long, value_name = "FILE", requires_all = ["quantize", "max_loss"])]
    sensitivity: Option<PathBuf>,
    /// Relative error of the latents that quantization may cost
    #[arg(long, value_name = "X", requires = "sensitivity")]
    max_loss: Option<f64>,
    /// How the range of features is chosen where they have one scale
    #[arg(long, default_value = "min-max", requires = "calibration")]
    observer: Observer,
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

/// Largest ranking of layers, in bytes.
const MOST: u64 = 64 << 20;

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
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
enum Target {
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

impl Args {
    fn options(&self) -> anyhow::Result<ExportOptions> {
        Ok(ExportOptions {
            precision: self.precision.map(|p| match p {
                Precision::Fp32 => DType::F32,
                Precision::Fp16 => DType::F16,
                Precision::Bf16 => DType::BF16,
            }),
            quantize: self.quantize.map(Quantize::scheme),
            quantize_vae: self.quantize_vae,
            layers: self.layers()?,
            calibration: self.calibration.clone(),
            observer: self.observer.clip(),
            target: match self.target {
                Target::Cpu => GraphTarget::Cpu,
                Target::Cuda => GraphTarget::Cuda,
                Target::Tensorrt => GraphTarget::TensorRt,
            },
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

impl Args {
    /// The layers to quantize.
    fn layers(&self) -> anyhow::Result<LayerChoice> {
        let mut kept = self.keep_float.clone();
        if let (Some(file), Some(scheme), Some(most)) = (&self.sensitivity, self.quantize, self.max_loss) {
            let of = || format!("`{}`", file.display());
            let opened = cogvx_graphs::source::open_regular(file)?;
            let mut text = String::new();
            opened.file.take(MOST).read_to_string(&mut text).with_context(of)?;
            let ranking = Ranking::from_json(&text).map_err(|e| anyhow::anyhow!("{}: {e}", of()))?;
            let (name, checkpoint) = (scheme.scheme().name(), fingerprint(&self.checkpoint, &self.loras.parse()?)?);
            if ranking.scheme != name || ranking.checkpoint != checkpoint {
                let (found, of_checkpoint) = (&ranking.scheme, &ranking.checkpoint);
                anyhow::bail!(
                    "{}: expected a ranking for `{name}` of the checkpoint {checkpoint}, found one for `{found}` of {of_checkpoint}",
                    of()
                );
            }
            kept.extend(ranking.kept(most));
        }
        Ok(if kept.is_empty() { LayerChoice::All } else { LayerChoice::AllBut(kept) })
    }
}

fn parse_shape(text: &str) -> anyhow::Result<VideoShape> {
    let numbers: Option<Vec<usize>> = text.split('x').map(|n| n.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[frames, height, width]) => Ok(VideoShape { frames, height, width }),
        _ => anyhow::bail!("`--shapes`: expected FRAMESxHEIGHTxWIDTH such as 49x480x720, found `{text}`"),
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let options = args.options()?;
    let progress = Progress::lines();
    let report = export(&args.checkpoint, &args.output, &options, |graph| progress.message(graph))?;
    progress.clear();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{}", summary(&report))?;
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
    format!("{table}\n{merged}{}: {}\n", report.output.display(), bytes.join(", "))
}
