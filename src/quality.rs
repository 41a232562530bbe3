//! How far the videos of one bundle are from those of another: same prompts, same seeds.
//!
//! For each prompt the reference makes its video first; its latents and frames wait in temporary files until the bundle that
//! is judged has made its own, which is compared as it comes. Stages load and free as in any run, so memory is that of the
//! largest stage of either bundle, however many prompts there are.

mod cost;
mod html;
mod look;
mod recording;
pub mod shapes;
mod size;
mod summary;
mod tables;

use std::io;
use std::path::PathBuf;

use serde::Serialize;

use crate::picture;
use crate::pipeline::{Observer, Pipeline, PipelineError, Reads, Request, Shortcuts, Stage, Start, Walk};

pub use cost::{Cost, StageCost};
pub use html::{About, Page};
pub use look::Fault;
pub use shapes::Seen;
pub use size::{SizeError, bytes_needed};
pub use summary::{Accuracy, Limits, Spread, Summary};
pub use tables::Table;

use cost::CostMeter;
use look::{Look, Sight};
use recording::{Comparison, Recording};
use shapes::Wanted;

/// Why two bundles were not compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum QualityError {
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Size(#[from] SizeError),
    /// They are not of the same kind.
    #[error("expected {expected} as of the reference, found {found}")]
    Different { expected: String, found: String },
    /// Latents and frames wait in temporary files.
    #[error("cannot keep a video among the system's temporary files: {0}")]
    Temporary(#[source] io::Error),
    /// Whoever watches failed.
    #[error(transparent)]
    Watch(Box<dyn std::error::Error + Send + Sync>),
}

/// Which of the two bundles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that is right by definition.
    Reference,
    /// The one that is judged.
    Judged,
}

/// A frame of both videos, `[height, width, 3]` in 0..1.
#[derive(Clone, Copy, Debug)]
pub struct FramePair<'a> {
    /// Which frame.
    pub frame: usize,
    /// Of how many.
    pub frames: usize,
    /// Rows and columns.
    pub size: [usize; 2],
    /// The reference's.
    pub reference: &'a [f32],
    /// The judged bundle's.
    pub judged: &'a [f32],
}

/// Looks on while bundles are compared.
pub trait Watch {
    /// A bundle has done step `step` (from 1) of its video `video` (from 0).
    fn step(&mut self, _side: Side, _video: usize, _step: usize) {}

    /// Both bundles' next frame of the current video.
    fn frame(&mut self, _pair: FramePair<'_>) {}

    /// A video is compared.
    ///
    /// # Errors
    /// Whatever went wrong with it; ends the comparison.
    fn video(&mut self, _video: &VideoQuality) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

/// A video to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What it is of.
    pub prompt: String,
    /// The image it starts from, where that is not the request's.
    pub image: Option<PathBuf>,
    /// The noise it is made of.
    pub seed: u64,
}

/// How close one video is to its reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VideoQuality {
    /// What it is of.
    pub prompt: String,
    /// The image it starts from, where that is not the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// The noise it is made of.
    pub seed: u64,
    /// `|judged - reference| / |reference|` of the latents after each denoising step, in the Euclidean norm; fewer steps where
    /// one of the runs ended early.
    pub latent_error: Vec<f64>,
    /// PSNR in dB of each frame as it was computed, before its values are rounded to 8 bits; infinite (in JSON: null) where
    /// frames are equal.
    pub frame_psnr: Vec<f64>,
    /// SSIM of each frame; absent in frames of less than 11 pixels a side.
    pub frame_ssim: Vec<Option<f64>>,
    /// PSNR of all frames together; absent if one of the runs ended early.
    pub psnr: Option<f64>,
    /// Mean SSIM of the frames.
    pub ssim: Option<f64>,
    /// Whether all frames are equal.
    pub equal: bool,
    /// How much the judged video flickers; absent in videos of one frame.
    pub flicker: Option<Flicker>,
    /// What is broken in the judged video.
    pub faults: Vec<Fault>,
    /// What is broken in the reference's.
    pub reference_faults: Vec<Fault>,
    /// What the judged video shows, where prompts are of the shapes model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
    /// What the reference's shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_seen: Option<Seen>,
}

/// How much a video changes from frame to frame: mean of `|frame[t + 1] - frame[t]|` over time, pixels and channels, in 0..1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Flicker {
    /// Of the judged video.
    pub judged: f64,
    /// Of the reference.
    pub reference: f64,
    /// The former minus the latter: more than 0 if the judged video is more restless.
    pub difference: f64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Quality {
    /// Means and worsts.
    pub summary: Summary,
    /// What the judged bundle takes.
    pub judged: Cost,
    /// What the reference takes.
    pub reference: Cost,
    /// Each video.
    pub videos: Vec<VideoQuality>,
}

/// Make the videos of `cases` with both bundles, all else as in `request`, and compare them; the reference takes no
/// [`Shortcuts`], whatever `request` says. Prompts that all name a colour, a
/// shape and a direction of the shapes model are scored for these too.
///
/// # Errors
/// Bundles that cannot make the same video, a request they cannot fulfil, a failure of the runtime or the temporary files, or an
/// interrupt. NaN and infinities are no errors but [`Fault`]s.
pub fn compare(
    judged: &Pipeline,
    reference: &Pipeline,
    request: &Request,
    cases: &[Case],
    watch: &mut dyn Watch,
) -> Result<Quality, QualityError> {
    check(judged, reference, request)?;
    let sizes = [bytes_needed(reference.bundle())?, bytes_needed(judged.bundle())?];
    let scored = cases.iter().all(|case| Wanted::of(&case.prompt).is_some());
    let mut request = request.clone();
    let mut full = Request { shortcuts: Shortcuts::default(), ..request.clone() };
    let mut costs = [CostMeter::default(), CostMeter::default()];
    let mut videos = Vec::with_capacity(cases.len());
    for (video, case) in cases.iter().enumerate() {
        let size = [request.height, request.width];
        let image = case.image.as_deref().map(|path| picture::image(path, size)).transpose();
        let start = image.map_err(PipelineError::Picture)?.map(Start::Image);
        for request in [&mut request, &mut full] {
            request.prompt.clone_from(&case.prompt);
            request.seed = case.seed;
            if let Some(start) = &start {
                request.start.clone_from(start);
            }
        }
        let mut recording = Recording::new().map_err(QualityError::Temporary)?;
        let mut record = |event: Event<'_>, watch: &mut dyn Watch| match event {
            Event::Step(step, latents) => {
                watch.step(Side::Reference, video, step);
                recording.step(latents)
            }
            Event::Frame(_, frame) => recording.frame(frame),
        };
        let theirs = run(reference, &full, scored, &mut costs[0], watch, &mut record)?;
        let mut comparison = Comparison::of(&mut recording, [request.height, request.width]);
        let mut compare = |event: Event<'_>, watch: &mut dyn Watch| match event {
            Event::Step(step, latents) => {
                watch.step(Side::Judged, video, step);
                comparison.step(latents)
            }
            Event::Frame(frames, frame) => comparison.frame(frame, frames, watch),
        };
        let ours = run(judged, &request, scored, &mut costs[1], watch, &mut compare)?;
        let quality = comparison.finish(case, ours, theirs);
        watch.video(&quality).map_err(QualityError::Watch)?;
        videos.push(quality);
    }
    let [theirs, ours] = costs;
    let [their_size, our_size] = sizes;
    Ok(Quality {
        summary: Summary::of(&videos),
        judged: ours.finish(our_size),
        reference: theirs.finish(their_size),
        videos,
    })
}

/// Make a video and tell what is broken about it, whatever it should show.
///
/// # Errors
/// As [`compare`].
pub fn faults(pipeline: &Pipeline, request: &Request) -> Result<Vec<Fault>, QualityError> {
    struct Quiet;
    impl Watch for Quiet {}
    let mut take = |_: Event<'_>, _: &mut dyn Watch| Ok(());
    Ok(run(pipeline, request, false, &mut CostMeter::default(), &mut Quiet, &mut take)?.faults)
}

/// Whether both can make the video, of latents of the same shape.
fn check(judged: &Pipeline, reference: &Pipeline, request: &Request) -> Result<(), QualityError> {
    let [ours, theirs] = [judged, reference].map(|pipeline| pipeline.check(request));
    let ([ours, theirs], frames) = ([ours?, theirs?], request.frames);
    let say = |shape: [usize; 5], pipeline: &Pipeline| {
        let [_, latents, channels, rows, columns] = shape;
        let frames = pipeline.decoded_frames(frames);
        format!("videos of {frames} frames from latents of {latents}x{channels}x{rows}x{columns}")
    };
    let [expected, found] = [say(theirs.shape, reference), say(ours.shape, judged)];
    if expected == found { Ok(()) } else { Err(QualityError::Different { expected, found }) }
}

/// What a run gives.
enum Event<'a> {
    /// The latents after this step.
    Step(usize, &'a [f32]),
    /// The next frame of so many.
    Frame(usize, &'a [f32]),
}

type Take<'a> = dyn FnMut(Event<'_>, &mut dyn Watch) -> io::Result<()> + 'a;

/// Make a video and hand on what it gives; a run that ends in NaN is one with a fault.
fn run(
    pipeline: &Pipeline,
    request: &Request,
    scored: bool,
    cost: &mut CostMeter,
    watch: &mut dyn Watch,
    take: &mut Take<'_>,
) -> Result<Sight, QualityError> {
    let look = Look::new([request.height, request.width], scored);
    cost.begin();
    let mut onlooker = Onlooker { look, cost, watch, take, failed: None };
    let made = pipeline.generate(request, &mut onlooker);
    let Onlooker { mut look, cost, failed, .. } = onlooker;
    cost.end();
    if let Some(failed) = failed {
        return Err(QualityError::Temporary(failed));
    }
    match made {
        Ok(()) => Ok(look.finish()),
        Err(PipelineError::NotFinite { stage }) => {
            look.broke_off(stage);
            Ok(look.finish())
        }
        Err(error) => Err(error.into()),
    }
}

struct Onlooker<'a, 't> {
    look: Look,
    cost: &'a mut CostMeter,
    watch: &'a mut dyn Watch,
    take: &'a mut Take<'t>,
    failed: Option<io::Error>,
}

impl Observer for Onlooker<'_, '_> {
    fn reads(&self) -> Reads {
        Reads::Steps
    }

    fn stage(&mut self, stage: Stage) {
        self.cost.stage(stage);
    }

    fn step(&mut self, step: usize, _: usize, latents: &ndarray::ArrayD<f32>) {
        self.cost.step();
        let latents = latents.as_slice().unwrap_or_default();
        self.look.latents(latents);
        if self.failed.is_none() {
            self.failed = (self.take)(Event::Step(step, latents), self.watch).err();
        }
        self.cost.resume();
    }

    fn walked(&mut self, walk: &Walk) {
        if walk.is_done() {
            self.cost.ran(walk.runs());
        }
    }

    fn frames(
        &mut self,
        frames: ndarray::ArrayD<f32>,
        total: usize,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.cost.frames(frames.shape()[0]);
        let size = frames.len() / frames.shape()[0];
        for frame in frames.as_slice().unwrap_or_default().chunks_exact(size) {
            self.look.frame(frame);
            if let Err(error) = (self.take)(Event::Frame(total, frame), self.watch) {
                self.failed = Some(error);
                return Err("no room among the temporary files".into());
            }
        }
        Ok(())
    }
}
