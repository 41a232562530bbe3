//! `cogvx run`.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args as ClapArgs, ValueEnum};
use indicatif::HumanBytes;
use ndarray::ArrayD;

use super::progress::Progress;
use super::{Answer, open};
use crate::picture;
use crate::pipeline::{Observer, Pipeline, Request, Stage, Start};
use crate::scheduler::Kind;
use crate::stats::{StageStats, Stats};
use crate::video::{Format, FrameSink, open_sink, to_rgb8};

/// Frames a second of a video file; what CogVideoX was trained on.
const FPS: f64 = 8.0;

/// Make a video of a prompt
///
/// Sizes and scheduler default to the checkpoint's. The same seed gives the noise, and so the video, that diffusers makes
/// on CPU with `torch.Generator().manual_seed(SEED)`.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The bundle, or a checkpoint to be exported for the occasion
    bundle: PathBuf,
    /// What is to be seen
    #[arg(short, long)]
    prompt: String,
    /// What is not
    #[arg(long, default_value = "", hide_default_value = true)]
    negative_prompt: String,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Denoising steps
    #[arg(long, default_value_t = 50)]
    steps: usize,
    /// Guidance scale; up to 1 means none, which halves the work
    #[arg(long, default_value_t = 6.0)]
    guidance: f64,
    /// Let the guidance change over the steps, as 5B's examples do
    #[arg(long)]
    dynamic_cfg: bool,
    /// Start from this image (PNG, JPEG, GIF), for image-to-video models
    #[arg(long, conflicts_with = "video")]
    image: Option<PathBuf>,
    /// Start from this video: .npy (uint8 [frames, height, width, 3]), .gif, or a folder of images
    #[arg(long)]
    video: Option<PathBuf>,
    /// How much of the video is made anew, from 0 to 1: the share of the steps that are taken
    #[arg(long, default_value_t = 0.8)]
    strength: f64,
    /// Frames, best 4N + 1 with an even N [default: the checkpoint's, or the video's]
    #[arg(long)]
    frames: Option<usize>,
    /// Rows of pixels [default: the checkpoint's]
    #[arg(long)]
    height: Option<usize>,
    /// Columns of pixels [default: the checkpoint's]
    #[arg(long)]
    width: Option<usize>,
    /// The sampler [default: the checkpoint's]
    #[arg(long)]
    scheduler: Option<Sampler>,
    /// Frames a second
    #[arg(long, default_value_t = FPS)]
    fps: f64,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
    /// Decode the video, and encode what it starts from, in tiles as diffusers' `enable_tiling()`: less memory, more time
    #[arg(long)]
    vae_tiling: bool,
    /// Tell what each stage took: seconds and peak memory, as a table or as JSON on standard output
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    stats: Option<StatsForm>,
    /// The video: .mp4 (H.264), .gif, .png (contact sheet), .npy (uint8 [frames, height, width, 3]), or a folder for PNG frames
    #[arg(short, long)]
    output: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StatsForm {
    Table,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sampler {
    Ddim,
    Dpm,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    Format::of(&args.output)?;
    let opened = open(&args.bundle, args.threads)?;
    let request = request(args, &opened.pipeline)?;
    opened.pipeline.check(&request)?;
    warn(&opened.pipeline, &request)?;
    opened.pipeline.check(&request)?;
    let sink = open_sink(&args.output, request.width, request.height, args.fps, request.frames)?;
    let stats = args.stats.map(|_| Stats::start());
    let mut watcher = Watcher { sink, stats, progress: None, written: 0, since: Instant::now(), steps: request.steps };
    opened.pipeline.generate(&request, &mut watcher)?;
    watcher.clear();
    watcher.sink.finish()?;
    let (output, written) = (args.output.display(), watcher.written);
    let stages = watcher.stats.map(Stats::finish);
    let mut out = std::io::stdout().lock();
    match (args.stats, stages) {
        (Some(StatsForm::Json), Some(stages)) => {
            let Request { height, width, .. } = request;
            let report = serde_json::json!({
                "output": args.output, "frames": written, "height": height, "width": width, "stages": stages,
            });
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        }
        (_, stages) => {
            writeln!(out, "{output}: {written} frames of {}x{}", request.width, request.height)?;
            if let Some(stages) = stages {
                writeln!(out, "{}", table(&stages))?;
            }
        }
    }
    Ok(Answer::Done)
}

/// The stages with what they took.
#[allow(clippy::cast_precision_loss)] // For people.
fn table(stages: &[StageStats]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["stage", "time", "each", "anonymous", "mapped files", "peak memory"]);
    for StageStats { stage, seconds, count, memory } in stages {
        let (name, unit) = match stage {
            Stage::Text => ("text encoder", ""),
            Stage::Encode => ("VAE encoder", ""),
            Stage::Denoise => ("transformer", "step"),
            Stage::Decode => ("VAE decoder", "frame"),
        };
        let each = if *count == 0 { String::new() } else { format!("{:.2} s a {unit}", seconds / *count as f64) };
        let [anonymous, mapped, total] = memory.map_or_else(
            || ["not measured"; 3].map(String::from),
            |m| [m.anonymous, m.mapped, m.total].map(|bytes| HumanBytes(bytes).to_string()),
        );
        table.add_row([name.to_string(), format!("{seconds:.1} s"), each, anonymous, mapped, total]);
    }
    table
}

fn request(args: &Args, pipeline: &Pipeline) -> anyhow::Result<Request> {
    let mut request = pipeline.request(&args.prompt)?;
    request.negative_prompt.clone_from(&args.negative_prompt);
    request.seed = args.seed;
    request.steps = args.steps;
    request.guidance = args.guidance;
    request.dynamic_cfg = args.dynamic_cfg;
    request.vae_tiling = args.vae_tiling;
    request.frames = args.frames.unwrap_or(request.frames);
    request.height = args.height.unwrap_or(request.height);
    request.width = args.width.unwrap_or(request.width);
    request.scheduler = match args.scheduler {
        Some(Sampler::Ddim) => Kind::Ddim,
        Some(Sampler::Dpm) => Kind::Dpm,
        None => request.scheduler,
    };
    let size = [request.height, request.width];
    if let Some(path) = &args.image {
        request.start = Start::Image(picture::image(path, size)?);
    } else if let Some(path) = &args.video {
        let frames = picture::video(path, size)?;
        request.frames = args.frames.unwrap_or(frames.shape()[1]);
        request.start = Start::Video { frames, strength: args.strength };
    }
    Ok(request)
}

/// Say where the result will not be what was asked for, as diffusers' pipeline does it.
fn warn(pipeline: &Pipeline, request: &Request) -> anyhow::Result<()> {
    for (name, text) in [("prompt", &request.prompt), ("negative prompt", &request.negative_prompt)] {
        let surplus = pipeline.surplus_tokens(text)?;
        if surplus > 0 {
            let most = pipeline.dit.max_text_seq_length;
            say(&format!(
                "warning: the {name} has {} tokens, the model takes {most}: the rest is cut off",
                most + surplus
            ));
        }
    }
    let frames = pipeline.decoded_frames(request.frames);
    if frames != request.frames {
        say(&format!("warning: asked for {} frames, the model decodes {frames}", request.frames));
    }
    Ok(())
}

/// A line on standard error; that nobody reads it is no reason to end.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Shows progress and hands frames on.
struct Watcher {
    sink: Box<dyn FrameSink>,
    stats: Option<Stats>,
    progress: Option<Progress>,
    written: usize,
    since: Instant,
    steps: usize,
}

impl Watcher {
    fn clear(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.clear();
        }
    }
}

impl Observer for Watcher {
    fn stage(&mut self, stage: Stage) {
        self.clear();
        if let Some(stats) = &mut self.stats {
            stats.stage(stage);
        }
        self.since = Instant::now();
        self.progress = match stage {
            Stage::Denoise => Some(Progress::steps("denoising", self.steps)),
            // Encoding takes one call; decoding knows its frames when the first ones come.
            Stage::Text | Stage::Encode | Stage::Decode => None,
        };
    }

    fn step(&mut self, step: usize, steps: usize, _: &ArrayD<f32>) {
        if let Some(stats) = &mut self.stats {
            stats.count(1);
        }
        let since = self.since;
        if let Some(progress) = &self.progress {
            progress.step(step, || {
                let spent = since.elapsed();
                let left = spent / u32::try_from(step).unwrap_or(1) * u32::try_from(steps - step).unwrap_or(0);
                format!("step {step}/{steps}, {:.1} s left", left.as_secs_f64())
            });
        }
    }

    fn frames(&mut self, frames: ArrayD<f32>, total: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let progress = self.progress.get_or_insert_with(|| Progress::steps("decoding", total));
        let size = frames.len() / frames.shape()[0];
        for frame in to_rgb8(frames.as_slice().unwrap_or_default()).chunks_exact(size) {
            self.sink.write(frame)?;
            self.written += 1;
        }
        if let Some(stats) = &mut self.stats {
            stats.count(frames.shape()[0]);
        }
        let written = self.written;
        progress.step(written, || format!("frame {written}/{total}"));
        Ok(())
    }
}
