//! `cogvx quality`.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Args as ClapArgs;
use serde_json::json;

use super::progress::Progress;
use super::prompts::Prompts;
use super::shortcuts::Shortcuts;
use super::size::Size;
use super::{Answer, load_library, open, unwritable};
use crate::pending;
use crate::pipeline::{Pipeline, Prompt, Request};
use crate::quality::{
    About, Case, FramePair, Limits, Page, Quality, QualityError, Side, Table, VideoQuality, Watch, compare,
};

/// Longest prompt in a table on the terminal.
const PROMPT: usize = 40;

/// Compare the videos of two bundles
///
/// Both make videos of the same prompts and seeds. Tells how far the latents are apart after each step, PSNR and SSIM of the
/// frames, the difference in flicker (the mean change from frame to frame), broken output (NaN, zero, black, constant), and
/// what each bundle takes: bytes, seconds a step, peak memory. Prompts of the shapes model are also scored for colour,
/// direction and shape. What steps leave out, they leave out in BUNDLE's videos alone: compared with itself, a bundle shows
/// what that costs. Exit code 0: nothing broken, no limit missed; 1: something is; 2: error.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The bundle, or a checkpoint to be exported for the occasion
    bundle: PathBuf,
    /// What it is compared with: a bundle or a checkpoint, such as the one in full precision
    #[arg(long, value_name = "BUNDLE")]
    against: PathBuf,
    #[command(flatten)]
    prompts: Prompts,
    /// How many videos are made; beyond the last prompt it begins anew, with other seeds
    #[arg(long, default_value_t = 8, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=65536))]
    samples: usize,
    /// Seed of the first video's noise; the next one's is one greater
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Denoising steps
    #[arg(long, default_value_t = 25)]
    steps: usize,
    /// Guidance scale; up to 1 means none
    #[arg(long, default_value_t = 6.0)]
    guidance: f64,
    #[command(flatten)]
    size: Size,
    #[command(flatten)]
    shortcuts: Shortcuts,
    /// The answer is no if the mean PSNR is lower
    #[arg(long, value_name = "DB", value_parser = decibels)]
    min_psnr: Option<f64>,
    /// The answer is no if the PSNR of any video is lower
    #[arg(long, value_name = "DB", value_parser = decibels)]
    min_worst_psnr: Option<f64>,
    /// Write a page with charts and filmstrips
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
    #[command(flatten)]
    cpu: super::cpu::Cpu,
    #[command(flatten)]
    gpu: super::gpu::Gpu,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

fn decibels(text: &str) -> Result<f64, String> {
    let found: f64 = text.parse().map_err(|_| "expected a number of dB")?;
    if found.is_nan() { Err("expected a number of dB".into()) } else { Ok(found) }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let prompts = args.prompts.cycled(args.samples, &[&args.against, &args.bundle])?;
    let page = args.html.as_deref().map(PageFile::create).transpose()?;
    load_library(&[&args.bundle, &args.against])?;
    let gpu = args.gpu.or_on(args.cpu.options());
    let judged = open(&args.bundle, args.threads, &gpu)?;
    let reference = open(&args.against, args.threads, &gpu.of_another())?;
    let (judged, reference) = (&judged.pipeline, &reference.pipeline);
    let size = size(args, judged, reference)?;
    let request = request(args, reference, &prompts, size)?;
    let seeds = (0..).map(|i| args.seed.wrapping_add(i));
    let case = |(prompt, seed): (Prompt, u64)| Case { prompt: prompt.text, image: prompt.image, seed };
    let cases: Vec<_> = prompts.into_iter().zip(seeds).map(case).collect();
    let [frames, height, width] = size;
    let progress = Progress::steps("comparing", args.steps.saturating_mul(2 * cases.len()));
    let mut watcher = Watcher { progress, page, steps: args.steps, videos: cases.len(), compared: 0 };
    let quality = compare(judged, reference, &request, &cases, &mut watcher).map_err(|error| match error {
        QualityError::Different { .. } => anyhow!("`{}`: {error}", args.bundle.display()),
        error => error.into(),
    })?;
    watcher.progress.clear();
    let limits = Limits { min_psnr: args.min_psnr, min_worst_psnr: args.min_worst_psnr };
    let problems = quality.problems(&limits);
    let settings = format!(
        "{} videos of {frames}x{height}x{width}, {} steps, guidance {}, seeds from {}",
        cases.len(),
        args.steps,
        args.guidance,
        args.seed
    );
    if let Some(page) = watcher.page {
        let [judged, reference] = [&args.bundle, &args.against].map(|path| path.display().to_string());
        page.finish(
            &quality,
            About { judged: &judged, reference: &reference, settings: &settings, problems: &problems },
        )?;
    }
    if args.json {
        let mut report = json!({
            "good": problems.is_empty(), "problems": problems, "limits": limits, "bundle": args.bundle, "against": args.against,
            "steps": args.steps, "guidance": args.guidance, "size": size,
        });
        if let (Some(report), serde_json::Value::Object(found)) = (report.as_object_mut(), json!(quality)) {
            report.extend(found);
        }
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        print(&quality, &settings, &problems)?;
    }
    Ok(if problems.is_empty() { Answer::Done } else { Answer::No })
}

/// Frames, rows and columns of the videos: what is asked for, or what both models make by themselves.
fn size(args: &Args, judged: &Pipeline, reference: &Pipeline) -> anyhow::Result<[usize; 3]> {
    let asked = args.size.asked();
    let own = |pipeline: &Pipeline| {
        let request = pipeline.request("")?;
        let own = [request.frames, request.height, request.width];
        anyhow::Ok([0, 1, 2].map(|axis| asked[axis].unwrap_or(own[axis])))
    };
    let (found, expected) = (own(judged)?, own(reference)?);
    if found != expected {
        let [found, expected] = [found, expected].map(|size| size.map(|n| n.to_string()).join("x"));
        let (bundle, against) = (args.bundle.display(), args.against.display());
        bail!(
            "`{bundle}`: expected videos of {expected} as of `{against}`, found {found}: give `--frames`, `--height` and `--width`, \
             if both can make the same"
        );
    }
    Ok(expected)
}

/// What all videos have in common, found to be something that can be made of each of `prompts`.
fn request(args: &Args, pipeline: &Pipeline, prompts: &[Prompt], size: [usize; 3]) -> anyhow::Result<Request> {
    let size = size.map(Some);
    pipeline.check_prompts(prompts, size)?;
    let (steps, guidance, shortcuts) = (args.steps, args.guidance, args.shortcuts.asked());
    let first = prompts.first().cloned().unwrap_or_default();
    Ok(Request { steps, guidance, shortcuts, ..pipeline.request_of(&first, size)? })
}

fn print(quality: &Quality, settings: &str, problems: &[String]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut videos = quality.video_table();
    for prompt in videos.rows.iter_mut().filter_map(|row| row.first_mut()) {
        if prompt.chars().count() > PROMPT {
            *prompt = prompt.chars().take(PROMPT - 1).chain(['…']).collect();
        }
    }
    writeln!(out, "{settings}\n")?;
    let tables = [Some(videos), Some(quality.summary_table()), quality.accuracy_table(), Some(quality.cost_table())];
    for table in tables.into_iter().flatten() {
        writeln!(out, "{}\n", shown(table))?;
    }
    if problems.is_empty() {
        return writeln!(out, "good: nothing is broken, no limit is missed");
    }
    problems.iter().try_for_each(|problem| writeln!(out, "not good: {problem}"))
}

fn shown(Table { header, rows }: Table) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    table
}

/// Shows progress and hands frames on to the page.
struct Watcher {
    progress: Progress,
    page: Option<PageFile>,
    steps: usize,
    videos: usize,
    compared: usize,
}

impl Watch for Watcher {
    fn step(&mut self, side: Side, video: usize, step: usize) {
        let runs = 2 * video + usize::from(side == Side::Judged);
        self.progress.reach(runs * self.steps + step);
    }

    fn frame(&mut self, pair: FramePair<'_>) {
        if let Some(page) = &mut self.page {
            page.page.frame(pair);
        }
    }

    fn video(&mut self, video: &VideoQuality) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.compared += 1;
        let (compared, videos) = (self.compared, self.videos);
        self.progress.step(2 * compared * self.steps, || {
            let psnr = video.psnr.map_or("no PSNR".into(), |psnr| format!("{psnr:.1} dB"));
            format!("video {compared}/{videos}: {psnr}")
        });
        if let Some(page) = &mut self.page {
            page.page.video(video)?;
        }
        Ok(())
    }
}

/// A page, and the file beside its place that it will be written to.
struct PageFile {
    page: Page,
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl PageFile {
    fn create(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            bail!("`{}`: expected a file to write, found a folder", path.display());
        }
        let file = pending::builder(0o666).tempfile_in(pending::parent(path));
        let file = file.map_err(|e| unwritable(path, &e.kind().into()))?;
        Ok(Self { page: Page::new().context("cannot write a temporary file")?, file, path: path.into() })
    }

    fn finish(self, quality: &Quality, about: About<'_>) -> anyhow::Result<()> {
        let Self { page, mut file, path } = self;
        let failed = |e: io::Error| unwritable(&path, &e);
        let mut out = BufWriter::new(file.as_file_mut());
        page.write(&mut out, quality, about).and_then(|()| out.flush()).map_err(failed)?;
        drop(out);
        file.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    }
}
