//! `cogvx compile`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args as ClapArgs;
use indicatif::HumanBytes;
use serde_json::json;

use super::engines::{self, Got};
use super::export::parse_shape;
use super::gpu::Gpu;
use super::progress::say;
use super::{Answer, interrupt, open};
use crate::bundle::Bundle;
use crate::export::VideoShape;
use crate::pipeline::{self, Pipeline};
use crate::preflight::{Preflight, preflight};
use crate::runtime::{self, Device, Runtime};

/// Build a TensorRT bundle's engines ahead of time
///
/// Before the first build, which takes minutes, the graphs make a tiny video on the processor (those of bf16, for which it has no
/// kernels, on the GPU without TensorRT): NaN, zeros or black frames end the command there, with exit code 1. The engines go to the
/// cache, where `cogvx run` finds them; see `cogvx cache`. Bundles for cpu and cuda run as they are.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The bundle, exported with `--target tensorrt`
    bundle: PathBuf,
    /// Sizes of the videos in pixels, such as 49x480x720,17x480x720 [default: the checkpoint's]
    #[arg(long, value_name = "FRAMESxHEIGHTxWIDTH", value_delimiter = ',')]
    shapes: Vec<String>,
    /// Compare the tiny video with that of this bundle or checkpoint, on the processor
    #[arg(long, value_name = "BUNDLE")]
    against: Option<PathBuf>,
    /// Build without the tiny video
    #[arg(long, conflicts_with = "against")]
    no_preflight: bool,
    /// Where engines are kept [default: engines in cogvx's folder of the user's cache]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    gpu: Gpu,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let bundle = Bundle::open(&args.bundle)?;
    let manifest = bundle.manifest();
    if pipeline::device(&manifest.target) != Device::TensorRt {
        bail!(
            "`{}`: expected a bundle exported with `--target tensorrt`, found one for `{}`, which runs as it is",
            args.bundle.display(),
            manifest.target
        );
    }
    let shapes = args.shapes.iter().map(|text| parse_shape(text)).collect::<anyhow::Result<Vec<_>>>()?;
    runtime::load_library(Device::TensorRt)?;
    if !args.no_preflight {
        let found = look(args, &bundle)?;
        let [frames, height, width] = found.size;
        let problems = found.problems();
        if !problems.is_empty() {
            for problem in problems {
                say(&format!("{frames}x{height}x{width}: {problem}"));
            }
            say("no engine was built: the graphs are broken, or their precision is too low for the model");
            return Ok(Answer::No);
        }
        let error = found.latent_error.map(|error| format!(", latents {error:.1e} from the reference's"));
        say(&format!("preflight at {frames}x{height}x{width}: nothing is broken{}", error.unwrap_or_default()));
    }
    let runtime = args.gpu.start(manifest, 0)?;
    if runtime.device() != Device::TensorRt {
        bail!("`--fallback`: expected no such option: engines are built on the GPU they are for");
    }
    interrupt::ends(runtime.interrupt());
    let pipeline = Pipeline::open(bundle, runtime)?;
    let own = pipeline.request("")?;
    let mut videos: Vec<_> =
        shapes.iter().map(|&VideoShape { frames, height, width }| [frames, height, width]).collect();
    if videos.is_empty() {
        videos.push([own.frames, own.height, own.width]);
    }
    for &[frames, height, width] in &videos {
        pipeline.check_size([frames, height, width])?;
    }
    let got = engines::get(&pipeline, &videos, args.cache.as_deref())?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&got.iter().map(as_json).collect::<Vec<_>>())?)?;
    } else {
        let built = got.iter().filter(|got| got.built).count();
        let bytes = got.iter().map(|got| got.ready.entry.bytes).sum();
        writeln!(out, "{} engines, {built} built now: {}", got.len(), HumanBytes(bytes))?;
    }
    Ok(Answer::Done)
}

/// The tiny video.
fn look(args: &Args, bundle: &Bundle) -> anyhow::Result<Preflight> {
    // The processor has no kernels for bf16.
    let runtime =
        if bundle.manifest().accuracy == "bf16" { args.gpu.start_cuda()? } else { Runtime::start(Device::Cpu, 0)? };
    interrupt::ends(runtime.interrupt());
    let pipeline = Pipeline::open(bundle.clone(), runtime)?;
    let reference = args.against.as_deref().map(|path| open(path, 0, &Gpu::default())).transpose()?;
    Ok(preflight(&pipeline, reference.as_ref().map(|opened| &opened.pipeline))?)
}

fn as_json(got: &Got) -> serde_json::Value {
    let entry = &got.ready.entry;
    json!({
        "graph": got.runs.file(), "video": got.runs.video, "built": got.built, "build_seconds": entry.seconds, "bytes": entry.bytes,
        "folder": entry.folder, "key": entry.key,
    })
}
