//! `cogvx run`.

mod batch;
mod limit;
mod lines;
mod saver;
mod show;
mod watcher;
mod wish;

use std::cell::RefCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Args as ClapArgs, ValueEnum};

use super::engines::prepared;
use super::interrupt::Interrupted;
use super::{Answer, open};
use crate::pending;
use crate::pipeline::{PipelineError, Runs};
use crate::runtime::RuntimeError;
use crate::stats::Stats;
use crate::video::Format;
use lines::Form;
use saver::Saver;
use watcher::{Planned, Watcher};
use wish::Wish;

/// Make a video of a prompt, or videos of many
///
/// Sizes and scheduler default to the checkpoint's. The same seed gives the noise, and so the video, that diffusers makes
/// on CPU with `torch.Generator().manual_seed(SEED)`.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The bundle, or a checkpoint to be exported for the occasion
    bundle: PathBuf,
    #[command(flatten)]
    wish: Wish,
    /// Make many videos: a file with a JSON object a line, such as {"prompt": "a fox", "seed": 3, "output": "fox.mp4"}
    ///
    /// Fields are `output`, the name of a file in the folder of `--output`, and the options above under their names with `_` for
    /// `-`; what a line does not say is as on the command line. Each graph is loaded once. A video is the one that its line makes
    /// alone; one that fails does not stop the others, and the exit code is 1.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// What videos of `--prompts` are written as, where their lines do not say [default: mp4]
    #[arg(long, conflicts_with = "prompt")]
    format: Option<Form>,
    /// Write what it takes to go on to this file after each step, until the video is there; with `--prompts` a folder of such files
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    save_state: Option<PathBuf>,
    /// Go on from the file (or folder) of `--save-state`, and write it further; all else as it was
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Take at most this much memory, such as 8GB, as `cogvx plan` predicts it
    ///
    /// Where it takes more than that otherwise, guidance runs the transformer twice a step, and the VAE works in tiles, which makes
    /// a slightly other video. On the processor weights do not count: they are mapped from files. On CUDA those that do not fit come
    /// from their files block by block.
    #[arg(long, value_name = "BYTES", value_parser = super::memory::parse)]
    max_memory: Option<u64>,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
    #[command(flatten)]
    cpu: super::cpu::Cpu,
    #[command(flatten)]
    gpu: super::gpu::Gpu,
    #[command(flatten)]
    rtx: super::gpu::Rtx,
    /// Tell what each stage took: seconds and peak memory, as a table or as JSON on standard output
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    stats: Option<StatsForm>,
    /// The video: .mp4 (H.264), .gif, .png (contact sheet), .npy (uint8 [frames, height, width, 3]), or a folder for PNG frames;
    /// with `--prompts` the folder of the videos
    #[arg(short, long)]
    output: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StatsForm {
    Table,
    Json,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    match &args.prompts {
        Some(prompts) => batch::run(args, prompts),
        None => run_one(args),
    }
}

fn run_one(args: &Args) -> anyhow::Result<Answer> {
    Format::of(&args.output)?;
    if let Some(path) = &args.save_state {
        is_free(path, false)?;
    }
    let state = args.save_state.as_ref().or(args.resume.as_ref());
    if let Some(path) = state.filter(|path| same_place(path, &args.output)) {
        bail!("`{}`: expected another file than the video's", path.display());
    }
    let opened = open(&args.bundle, args.threads, &args.gpu.or_on(args.cpu.within(args.max_memory)).through(args.rtx))?;
    let request = limit::within(args, &opened.pipeline, args.wish.request(&opened.pipeline)?, "")?;
    let mut opened = prepared(opened, [request.frames, request.height, request.width], request.vae_tiling)?;
    opened.pipeline = limit::streaming(args, opened.pipeline, std::slice::from_ref(&request))?;
    let pipeline = &opened.pipeline;
    show::warn(pipeline, &request, "")?;
    let mut planned = Planned::new(&args.output, args.wish.fps, pipeline, &request)?;
    planned.saver = state.map(|path| Saver::new(path, pipeline, &request)).transpose()?;
    let walk = args.resume.as_ref().map(|path| pipeline.open_state(path, &request)).transpose()?;
    if let Some(walk) = &walk {
        planned.goes_on(walk);
    }
    let videos = RefCell::new(vec![Some(planned)]);
    let mut watcher = Watcher::new(&videos, 1, args.stats.map(|_| Stats::start()));
    let made = match walk {
        Some(walk) => pipeline.resume(&request, walk, &mut watcher),
        None => pipeline.generate(&request, &mut watcher),
    };
    watcher.clear();
    if let Err(PipelineError::Runtime(RuntimeError::Interrupted)) = made {
        let saved = videos.borrow().iter().flatten().find_map(|video| video.saver.as_ref()?.saved);
        if let (Some([done, steps]), Some(path)) = (saved, state) {
            let text = format!("interrupted after step {done} of {steps}: {}", how_to_go_on(args, path));
            return Err(Interrupted(text).into());
        }
    }
    made?;
    watcher.finish()?;
    let stages = watcher.into_stats().map(Stats::finish);
    let videos = videos.into_inner();
    let Some(Some(Planned { written, saver, steps, runs, .. })) = videos.first() else {
        unreachable!("one was planned")
    };
    if let Some(saver) = saver {
        saver.remove();
    }
    let mut out = std::io::stdout().lock();
    match (args.stats, stages) {
        (Some(StatsForm::Json), Some(stages)) => {
            let report = serde_json::json!({
                "output": args.output, "frames": written, "height": request.height, "width": request.width, "stages": stages,
            });
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        }
        (_, stages) => {
            writeln!(out, "{}: {written} frames of {}x{}", args.output.display(), request.width, request.height)?;
            if let Some(Runs { prompted, unprompted }) = runs {
                writeln!(
                    out,
                    "in {steps} steps the transformer ran {prompted} times with the prompt, {unprompted} without"
                )?;
            }
            if let Some(stages) = stages {
                writeln!(out, "{}", show::table(&stages))?;
            }
        }
    }
    Ok(Answer::Done)
}

/// What to do after an interrupt.
fn how_to_go_on(args: &Args, state: &Path) -> String {
    if args.resume.is_some() {
        return "the same command goes on from there".into();
    }
    let path = state.display();
    format!("the same command with `--resume {path}` in place of `--save-state {path}` goes on from there")
}

/// Checks that no state is there, but for an empty folder where one is to be filled.
fn is_free(path: &Path, is_folder: bool) -> anyhow::Result<()> {
    let is_empty = || std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if path.symlink_metadata().is_err() || (is_folder && is_empty()) {
        return Ok(());
    }
    bail!("`{}`: expected nothing there, found a file or folder: `--resume` goes on with a state", path.display())
}

/// Whether two paths name one file.
fn same_place(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| Some((pending::parent(path).canonicalize().ok()?, path.file_name()?.to_os_string()));
    place(a).is_some_and(|a| place(b) == Some(a))
}
