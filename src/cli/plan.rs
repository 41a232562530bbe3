//! `cogvx plan`.

use std::io::Write as _;

use anyhow::bail;
use clap::Args as ClapArgs;
use indicatif::HumanBytes;

use super::Answer;
use super::export::{Precision, Quantize, Target};
use super::size::Size;
use crate::blueprint::{Blueprint, BlueprintError, Form, by};
use crate::pipeline::{Stage, Streaming};
use crate::plan::{How, Plan, StagePlan, Streams, Way, Weights, Wish};

/// Predict what a run takes: memory and operations of each stage, and the ways that fit
///
/// Nothing is run: the numbers are worked out from the graphs. Each stage is loaded, run and freed before the next one, so a run
/// takes the memory of its largest stage. Memory is what no file backs and the machine must have; weights are mapped from files,
/// and leave when memory is short. `cogvx run --max-memory` does what this chooses.
#[derive(ClapArgs)]
#[expect(clippy::struct_excessive_bools, reason = "the options")]
pub(super) struct Args {
    /// A checkpoint, a bundle, the config.json of a component, or a model that `cogvx synth` knows by name, such as 2b
    model: String,
    #[command(flatten)]
    size: Size,
    /// The runtime, for a checkpoint [default: cpu]; what is said of GPUs was not measured
    #[arg(long)]
    target: Option<Target>,
    /// The precision a checkpoint is exported in
    #[arg(long)]
    precision: Option<Precision>,
    /// How a checkpoint's linear layers are quantized
    #[arg(long, value_name = "SCHEME")]
    quantize: Option<Quantize>,
    /// The convolutions of the VAE's decoder are quantized, too
    #[arg(long, requires = "quantize")]
    quantize_vae: bool,
    /// Guidance scale; up to 1 means none
    #[arg(long, default_value_t = 6.0)]
    guidance: f64,
    /// Run the transformer with and without the prompt one after the other in any case
    #[arg(long)]
    sequential_guidance: bool,
    /// Let the VAE work in tiles in any case
    #[arg(long)]
    vae_tiling: bool,
    /// The run starts from a video
    #[arg(long)]
    from_video: bool,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
    #[command(flatten)]
    cpu: super::cpu::Cpu,
    /// On a GPU, let weights of text encoder and transformer come from their files block by block in any case
    #[arg(long)]
    weight_streaming: bool,
    /// Choose ways that take at most this, such as 8GB
    #[arg(long, value_name = "BYTES", value_parser = super::memory::parse)]
    max_memory: Option<u64>,
    /// Show so many tensors of those that are held when a stage takes most
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    held: usize,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let mut blueprint = Blueprint::open(&args.model)?;
    let chosen = [
        ("target", args.target.is_some()),
        ("precision", args.precision.is_some()),
        ("quantize", args.quantize.is_some()),
    ];
    if let Some((option, _)) = chosen.into_iter().find(|(_, is_given)| *is_given) {
        if blueprint.is_bundle() {
            return Err(BlueprintError::Chosen { path: args.model.clone().into(), option }.into());
        }
        let own = blueprint.form();
        blueprint = blueprint.in_form(Form {
            target: args.target.map_or(own.target, Target::of_graphs),
            precision: args.precision.map(Precision::dtype),
            quantize: args.quantize.map(Quantize::scheme),
            quantize_vae: args.quantize_vae,
            ..own
        })?;
    }
    if let Some(option) =
        super::cpu::given(args.cpu.options()).filter(|_| blueprint.form().target != cogvx_graphs::pass::Target::Cpu)
    {
        bail!("`--{option}`: expected graphs for `cpu`, found those of a GPU");
    }
    if args.weight_streaming && blueprint.form().target != cogvx_graphs::pass::Target::Cuda {
        bail!("`--weight-streaming`: expected graphs for `cuda`");
    }
    let wish = Wish {
        size: args.size.asked(),
        guided: args.guidance > 1.0,
        sequential_guidance: args.sequential_guidance,
        vae_tiling: args.vae_tiling,
        from_video: args.from_video,
        threads: threads(args.threads),
        cpu: args.cpu.within(args.max_memory),
        weights: if args.weight_streaming { Weights::Streamed } else { Weights::Kept },
    };
    let plan = Plan::new(blueprint, &wish, args.max_memory)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&plan)?)?;
        return Ok(Answer::Done);
    }
    writeln!(out, "{}", said(&plan))?;
    for stage in &plan.stages {
        if args.held > 0 {
            writeln!(out, "\n{}", held(stage, args.held))?;
        }
    }
    Ok(Answer::Done)
}

/// So many threads, or one a core.
pub(super) fn threads(asked: usize) -> usize {
    if asked > 0 { asked } else { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) }
}

fn said(plan: &Plan) -> String {
    let video = &plan.video;
    let quantized = plan.quantization.map(|scheme| format!(", {scheme}")).unwrap_or_default();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["stage", "way", "operations", "memory", "weights", "most memory in", ""]);
    for stage in &plan.stages {
        for (i, way) in stage.ways.iter().enumerate() {
            table.add_row([
                if i == 0 { name(stage.stage).into() } else { String::new() },
                words(way),
                operations(way.flops),
                HumanBytes(way.memory).to_string(),
                HumanBytes(way.weights).to_string(),
                way.at.clone(),
                if i == stage.chosen && stage.ways.len() > 1 { "chosen".into() } else { String::new() },
            ]);
        }
    }
    let options = [
        (plan.does(How::Sequential), "--sequential-guidance"),
        (plan.does(How::Tiled), "--vae-tiling"),
        (plan.streaming() != Streaming::default(), "--weight-streaming"),
    ];
    let options: Vec<_> = options.into_iter().filter_map(|(is, option)| is.then_some(option)).collect();
    let options = if options.is_empty() { String::new() } else { format!(" with {}", options.join(" ")) };
    let limit = plan.limit.map(|limit| format!(" of {}", HumanBytes(limit))).unwrap_or_default();
    format!(
        "{} on {}{quantized}: {}, {} latents, {} video and {} text tokens\n\n{table}\n\n{}{limit}{options}",
        plan.model,
        plan.target,
        by(video.pixels),
        by([video.padded, video.latents[1], video.latents[2]]),
        video.tokens[1],
        video.tokens[0],
        HumanBytes(plan.memory()),
    )
}

/// What is held when the chosen way of a stage takes most.
fn held(stage: &StagePlan, most: usize) -> comfy_table::Table {
    let Way { held, at, .. } = stage.way();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([format!("{}, at {at}", name(stage.stage)), "held".into()]);
    for held in held.iter().take(most) {
        table.add_row([held.what.clone(), HumanBytes(held.bytes).to_string()]);
    }
    let rest: u64 = held.iter().skip(most).map(|held| held.bytes).sum();
    if rest > 0 {
        table.add_row([format!("{} more", held.len() - most), HumanBytes(rest).to_string()]);
    }
    table
}

const fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Text => "text encoder",
        Stage::Encode => "VAE encoder",
        Stage::Denoise => "transformer, a step",
        Stage::Decode => "VAE decoder",
    }
}

fn words(way: &Way) -> String {
    let how = match way.how {
        How::Plain => "",
        How::Together => "both texts together",
        How::Sequential => "one after the other",
        How::Whole => "whole frames",
        How::Tiled => "tiles",
    };
    let streamed = way.streams.map(|Streams { blocks, .. }| match blocks {
        1 => "1 block streamed".into(),
        _ => format!("{blocks} blocks streamed"),
    });
    [Some(how).filter(|how| !how.is_empty()).map(String::from), streamed]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
}

/// Operations in a unit that leaves few digits.
#[allow(clippy::cast_precision_loss)] // For people.
pub(super) fn operations(n: u64) -> String {
    let units = [(1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1.0, "FLOP")];
    let n = n as f64;
    let (unit, name) = units.into_iter().find(|(unit, _)| n >= *unit).unwrap_or(units[4]);
    format!("{:.2} {name}", n / unit)
}
