//! `cogvx compile`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args as ClapArgs;
use indicatif::HumanBytes;
use serde_json::json;

use super::engines::{self, Got, Wanted};
use super::export::parse_shape;
use super::gpu::{Gpu, Rtx};
use super::progress::say;
use super::{Answer, interrupt, open};
use crate::bundle::{Bundle, Manifest};
use crate::engines::{Form, Sizes};
use crate::export::VideoShape;
use crate::pipeline::{self, Pipeline};
use crate::preflight::{Preflight, preflight};
use crate::runtime::{self, Device, Runtime};

/// Build a TensorRT bundle's engines ahead of time
///
/// Before the first build, which takes minutes, the graphs make a tiny video on the processor (those of bf16, for which it has no
/// kernels, on the GPU without TensorRT): NaN, zeros or black frames end the command there, with exit code 1. The engines go to the
/// cache, where `cogvx run` finds them; see `cogvx cache`. Where several do, it takes one of just its size before one of a range, and
/// one with weights and for this GPU alone before others. Bundles for cpu and cuda run as they are.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The bundle, exported with `--target tensorrt`
    bundle: PathBuf,
    /// Sizes of the videos in pixels, such as 49x480x720,17x480x720, or a range such as 17x480x720..49x480x720, fastest for the last
    /// [default: the checkpoint's]
    #[arg(long, value_name = "FRAMESxHEIGHTxWIDTH", value_delimiter = ',')]
    shapes: Vec<String>,
    #[command(flatten)]
    form: FormArgs,
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
    #[command(flatten)]
    rtx: Rtx,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// How engines are built.
#[derive(ClapArgs)]
struct FormArgs {
    /// Build engines without weights, which are small; they are filled from the bundle's files when they are loaded
    #[arg(long, conflicts_with = "tensorrt_rtx")]
    weight_stripped: bool,
    /// Build engines for all GPUs from Ampere on, not for this kind alone; they run slower
    #[arg(long, conflicts_with = "tensorrt_rtx")]
    hardware_compatible: bool,
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
    let mut videos = args.shapes.iter().map(|text| sizes(text)).collect::<anyhow::Result<Vec<_>>>()?;
    if let (Some(range), true) = (videos.iter().find(|sizes| sizes.least != sizes.greatest), is_fixed(manifest)) {
        bail!("`--shapes`: expected one size, that of the bundle's graphs, found the range {range}");
    }
    if !args.no_preflight && manifest.accuracy == "bf16" && manifest.quantization.is_some() {
        bail!(
            "`{}`: quantized graphs in bf16 run nowhere but in TensorRT, so no tiny video can be made of them: export with \
             `--precision fp16`, or give `--no-preflight`",
            args.bundle.display()
        );
    }
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
    let runtime = args.gpu.through(args.rtx).start(manifest, 0)?;
    if runtime.device() != Device::TensorRt {
        bail!("`--fallback`: expected no such option: engines are built on the GPU they are for");
    }
    interrupt::ends(runtime.interrupt());
    let pipeline = Pipeline::open(bundle, runtime)?;
    let own = pipeline.request("")?;
    if videos.is_empty() {
        videos.push([own.frames, own.height, own.width].into());
    }
    for Sizes { least, greatest } in &videos {
        pipeline.check_size(*least)?;
        pipeline.check_size(*greatest)?;
    }
    let form = Form { stripped: args.form.weight_stripped, compatible: args.form.hardware_compatible };
    let got = engines::get(&pipeline, &videos, args.cache.as_deref(), Wanted::This(form))?;
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
    let manifest = bundle.manifest();
    // The processor has no kernels for bf16.
    let runtime = if manifest.accuracy == "bf16" { args.gpu.start_cuda()? } else { Runtime::start(Device::Cpu, 0)? };
    interrupt::ends(runtime.interrupt());
    let pipeline = Pipeline::open(bundle.clone(), runtime)?;
    let reference = args.against.as_deref().map(|path| open(path, 0, &Gpu::default())).transpose()?;
    Ok(preflight(&pipeline, reference.as_ref().map(|opened| &opened.pipeline))?)
}

/// Reads a size, or a range of sizes.
fn sizes(text: &str) -> anyhow::Result<Sizes> {
    let size = |text| parse_shape(text).map(|VideoShape { frames, height, width }| [frames, height, width]);
    let Some((least, greatest)) = text.split_once("..") else { return Ok(size(text)?.into()) };
    let (least, greatest) = (size(least)?, size(greatest)?);
    if least.iter().zip(greatest).any(|(least, greatest)| *least > greatest) {
        bail!("`--shapes`: expected a range from the least frames, rows and columns to the greatest, found `{text}`");
    }
    if least[0] == 1 && greatest[0] > 1 {
        bail!("`--shapes`: expected a range from 5 frames on, found `{text}`: one frame has an engine of its own");
    }
    Ok(Sizes { least, greatest })
}

/// Whether a bundle's graphs have one size.
fn is_fixed(manifest: &Manifest) -> bool {
    let shapes = &manifest.shapes;
    [shapes.frames, shapes.height, shapes.width].iter().any(Option::is_some)
}

fn as_json(got: &Got) -> serde_json::Value {
    let entry = &got.ready.entry;
    json!({
        "graph": got.runs.file(), "video": entry.key.video, "built": got.built, "build_seconds": entry.seconds, "bytes": entry.bytes,
        "folder": entry.folder, "key": entry.key,
    })
}
