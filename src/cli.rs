//! The command line: `cogvx <command>`, and `cogvx-export` for `cogvx export`.

mod aside;
mod bench;
mod cache;
mod calibrate;
mod compile;
mod cpu;
mod engines;
mod export;
mod gpu;
mod inspect;
mod interrupt;
mod layers;
mod loras;
mod memory;
mod plan;
mod prefer;
mod progress;
mod prompts;
mod quality;
mod report;
mod run;
mod runtime;
mod sensitivity;
mod shortcuts;
mod size;
mod student;
mod synth;
mod verify;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};

use aside::Aside;
use gpu::Gpu;

use crate::bundle::Bundle;
use crate::export::{ExportOptions, Report};
use crate::pending;
use crate::pipeline::{self, Pipeline};
use crate::runtime::Device;

/// CogVideoX checkpoints to ONNX engines, and prompts to videos, without Python or PyTorch.
#[derive(Parser)]
#[command(name = "cogvx", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Export(export::Args),
    Verify(verify::Args),
    Run(run::Args),
    Quality(quality::Args),
    Inspect(inspect::Args),
    Report(report::Args),
    Plan(plan::Args),
    Bench(bench::Args),
    Calibrate(calibrate::Args),
    Sensitivity(sensitivity::Args),
    Compile(compile::Args),
    Cache(cache::Args),
    Student(student::Args),
    Runtime(runtime::Args),
    Synth(synth::Args),
}

/// `cogvx-export`: the command `export` alone.
#[derive(Parser)]
#[command(name = "cogvx-export", version)]
struct ExportCli {
    #[command(flatten)]
    args: export::Args,
}

/// What a command answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Done,
    No,
}

/// `cogvx`.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    interrupt::listen();
    exit(match &cli.command {
        Command::Export(args) => export::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Run(args) => run::run(args),
        Command::Quality(args) => quality::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Report(args) => report::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::Sensitivity(args) => sensitivity::run(args),
        Command::Compile(args) => compile::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Student(args) => student::run(args),
        Command::Runtime(args) => runtime::run(args),
        Command::Synth(args) => synth::run(args),
    })
}

/// `cogvx-export`.
#[must_use]
pub fn export_main() -> ExitCode {
    let cli = ExportCli::parse();
    interrupt::listen();
    exit(export::run(&cli.args))
}

/// Exit codes are a contract: 0 done, 1 the answer is no, 2 error, 130 interrupted.
fn exit(result: anyhow::Result<Answer>) -> ExitCode {
    match result {
        Ok(Answer::Done) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        // Whatever failed then failed because of it.
        Err(error) if interrupt::asked().load(Ordering::SeqCst) => {
            let how = error.downcast_ref::<interrupt::Interrupted>();
            progress::say(&format!("error: {}", how.map_or("interrupted", |how| &how.0)));
            ExitCode::from(130)
        }
        Err(error) => {
            // Messages name their sources.
            progress::say(&format!("error: {error}"));
            ExitCode::from(2)
        }
    }
}

/// Whoever reads the output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |e: &(dyn std::error::Error + 'static)| e.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    error.chain().any(|e| kind(e) == Some(std::io::ErrorKind::BrokenPipe))
}

/// A bundle, or a checkpoint exported for the occasion into a folder that goes when this is dropped.
struct Opened {
    pipeline: Pipeline,
    _exported: Option<Aside>,
}

/// Reads a number of threads: more than there are cores is a mistake, and a million of them would be started.
fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(0..=1024)
}

/// Load the build of ONNX Runtime that runs all these bundles and checkpoints, before any of them is opened: if one is for a GPU,
/// that for GPUs.
fn load_library(models: &[&Path]) -> anyhow::Result<()> {
    for path in models.iter().filter(|path| pipeline::is_bundle(path)) {
        let device = pipeline::device(&Bundle::open(path)?.manifest().target);
        if device != Device::Cpu {
            return Ok(crate::runtime::load_library(device)?);
        }
    }
    Ok(())
}

/// Open the bundle or checkpoint at `path` for running with `threads` threads; Ctrl-C ends the run under way.
fn open(path: &Path, threads: usize, gpu: &Gpu) -> anyhow::Result<Opened> {
    let is_checkpoint = !pipeline::is_bundle(path) && path.join("model_index.json").exists();
    if is_checkpoint {
        let (folder, _) = export_aside(path, ExportOptions::default())?;
        return start(Bundle::open(&folder.bundle())?, Some(folder), threads, gpu);
    }
    start(Bundle::open(path)?, None, threads, gpu)
}

/// Export the checkpoint at `path` with `options` for the occasion, and open it.
fn open_with(path: &Path, threads: usize, options: ExportOptions) -> anyhow::Result<(Opened, Report)> {
    let (folder, report) = export_aside(path, options)?;
    Ok((start(Bundle::open(&folder.bundle())?, Some(folder), threads, &Gpu::default())?, report))
}

fn start(bundle: Bundle, exported: Option<Aside>, threads: usize, gpu: &Gpu) -> anyhow::Result<Opened> {
    let runtime = gpu.start(bundle.manifest(), threads)?;
    interrupt::ends(runtime.interrupt());
    let streaming = gpu.streaming(&runtime);
    Ok(Opened { pipeline: Pipeline::open(bundle, runtime)?.with_streaming(streaming), _exported: exported })
}

/// Export a checkpoint into a new folder beside it, where weights can be linked, or among the system's temporary files.
fn export_aside(checkpoint: &Path, options: ExportOptions) -> anyhow::Result<(Aside, Report)> {
    let parent = checkpoint.canonicalize().ok().and_then(|p| Some(p.parent()?.to_path_buf()));
    let beside = parent.and_then(|parent| Aside::new(&parent).ok());
    let folder = beside.map_or_else(|| Aside::new(&std::env::temp_dir()), Ok)?;
    let options = ExportOptions { stop: interrupt::asked(), ..options };
    let report = crate::export::export(checkpoint, &folder.bundle(), &options, |_| {})?;
    Ok((folder, report))
}

/// Write a small file, beside its place first.
fn write_beside(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let failed = |e: std::io::Error| unwritable(path, &e);
    let mut file = pending::builder(0o666).tempfile_in(pending::parent(path)).map_err(|e| failed(e.kind().into()))?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

fn unwritable(path: &Path, why: &std::io::Error) -> anyhow::Error {
    anyhow::anyhow!("cannot write `{}`: {why}", path.display())
}
