//! `cogvx report`.

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use clap::Args as ClapArgs;

use super::gpu::Gpu;
use super::progress::Progress;
use super::size::Size;
use super::{Answer, open, open_with, unwritable};
use crate::bench::{Part, Settings, by_kind, time};
use crate::blueprint::Blueprint;
use crate::export::ExportOptions;
use crate::inspect::Inspection;
use crate::pending;
use crate::picture;
use crate::pipeline::Start;
use crate::report::{Grid, Report, Watch, weight_spreads, write};
use crate::sensitivity::Ranking;

/// Rows that are kept of what each layer reads, in each step.
const ROWS: usize = 64;

/// Make a page about one run: its frames, how tensors flow, how large values become, where the text is looked at
///
/// The page is one file that needs nothing else. Of a bundle it has no values and no attention, for its graphs do not tell them; a
/// checkpoint is exported for the occasion in a way that they do.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// A checkpoint, or a bundle
    model: PathBuf,
    /// What is to be seen
    #[arg(short, long)]
    prompt: String,
    /// The page
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Denoising steps
    #[arg(long, default_value_t = 25)]
    steps: usize,
    /// Guidance scale; up to 1 means none
    #[arg(long, default_value_t = 6.0)]
    guidance: f64,
    /// Start from this image (PNG, JPEG, GIF), for image-to-video models
    #[arg(long)]
    image: Option<PathBuf>,
    #[command(flatten)]
    size: Size,
    /// Blocks of the transformer whose attention is shown [default: the first, the middle and the last]
    #[arg(long, value_delimiter = ',')]
    blocks: Vec<usize>,
    /// A ranking that `cogvx sensitivity --output` wrote, to be shown
    #[arg(long, value_name = "FILE")]
    sensitivity: Option<PathBuf>,
    /// Leave out what each kind of layer takes, which needs two more predictions
    #[arg(long)]
    no_time: bool,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    if args.html.is_dir() {
        bail!("`{}`: expected a file to write, found a folder", args.html.display());
    }
    let mut file = pending::builder(0o666)
        .tempfile_in(pending::parent(&args.html))
        .map_err(|e| unwritable(&args.html, &e.kind().into()))?;
    let blueprint = Blueprint::open(&args.model.to_string_lossy())?;
    let sensitivity = args.sensitivity.as_deref().map(ranking).transpose()?;
    let layers = blueprint.dit.num_layers;
    let mut blocks = if args.blocks.is_empty() { vec![0, layers / 2, layers - 1] } else { args.blocks.clone() };
    blocks.dedup();
    if let Some(block) = blocks.iter().find(|&&block| block >= layers) {
        bail!("`--blocks`: expected blocks from 0 to {}, found {block}", layers - 1);
    }
    let inspection = Inspection::new(&blueprint, args.size.asked(), args.steps)?;
    let opened = if blueprint.is_bundle() {
        open(&args.model, args.threads, &Gpu::default())?
    } else {
        let options = ExportOptions { observe: Some(ROWS), attend: blocks.clone(), ..ExportOptions::default() };
        open_with(&args.model, args.threads, options)?.0
    };
    let pipeline = &opened.pipeline;
    let mut request = pipeline.request(&args.prompt)?;
    (request.seed, request.steps, request.guidance) = (args.seed, args.steps, args.guidance);
    args.size.apply(&mut request);
    if let Some(image) = &args.image {
        pipeline.check_sides(request.height, request.width)?;
        request.start = Start::Image(picture::image(image, [request.height, request.width])?);
    }
    let shape = pipeline.check(&request)?.shape;
    let pieces = pipeline.pieces(&args.prompt)?;
    let (patch, dit) = (pipeline.dit.patch_size, &pipeline.dit);
    let grid = Grid {
        heads: dit.num_attention_heads,
        text: dit.max_text_seq_length,
        shown: pieces.len(),
        patches: [shape[1] / dit.patch_size_t.unwrap_or(1), shape[3] / patch, shape[4] / patch],
    };
    let progress = Progress::steps("running", args.steps);
    let mut told = |step: usize, steps: usize| progress.step(step, || format!("step {step}/{steps}"));
    let mut watch = Watch::new(Some((&blocks, grid)), &mut told);
    pipeline.generate(&request, &mut watch)?;
    let watched = watch.watched;
    progress.clear();
    let times = if args.no_time { None } else { Some(times(args)?) };
    let settings = format!(
        "{} frames of {}x{}, seed {}, {} steps, guidance {}",
        request.frames, request.height, request.width, args.seed, args.steps, args.guidance
    );
    let report = Report {
        model: &blueprint.name,
        prompt: &args.prompt,
        settings: &settings,
        inspection: &inspection,
        predictions: if request.guidance > 1.0 { 2 * args.steps } else { args.steps },
        watched: &watched,
        times: times.as_deref(),
        weights: &weight_spreads(&blueprint),
        sensitivity: sensitivity.as_ref(),
    };
    let failed = |e: std::io::Error| unwritable(&args.html, &e);
    let mut out = BufWriter::new(file.as_file_mut());
    write(&mut out, &report, &pieces).and_then(|()| out.flush()).map_err(failed)?;
    drop(out);
    file.persist(&args.html).map_err(|e| failed(e.error))?;
    writeln!(std::io::stdout(), "{}", args.html.display())?;
    Ok(Answer::Done)
}

/// What each kind of layer takes of a prediction, of graphs that tell nothing else.
fn times(args: &Args) -> anyhow::Result<Vec<crate::bench::GroupTime>> {
    let opened = open(&args.model, args.threads, &Gpu::default())?;
    let settings = Settings { size: args.size.asked(), repeat: 1, profile: true };
    Ok(by_kind(&time(&opened.pipeline, Part::Transformer, settings, |_| ())?.nodes))
}

fn ranking(path: &Path) -> anyhow::Result<Ranking> {
    let failed = |e: String| anyhow!("`{}`: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    Ranking::from_json(&text).map_err(failed)
}
