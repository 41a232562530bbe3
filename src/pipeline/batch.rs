//! Many videos with each graph loaded once: all of them go through a stage before the next one begins.

use super::spool::{Kept, KeptWalk, Spool};
use super::{LatentShape, Observer, Pipeline, PipelineError, Request, Stage, Start, TEXT_ENCODER, Walk};
use crate::runtime::RuntimeError;

/// A video of a batch.
#[derive(Clone, Debug)]
pub struct Job {
    /// What is to be made.
    pub request: Request,
    /// Where an earlier run of this request ended, to go on from there.
    pub walk: Option<Walk>,
}

impl From<Request> for Job {
    fn from(request: Request) -> Self {
        Self { request, walk: None }
    }
}

/// A video on its way through the stages.
struct Item {
    /// Without the pictures it starts from: those are encoded.
    request: Request,
    plan: LatentShape,
    walk: Option<KeptWalk>,
    text: Option<Kept>,
}

impl Pipeline {
    /// Make many videos, each as [`Pipeline::generate`] makes it alone, to the bit and in any order. Each graph is loaded once:
    /// pictures that videos start from are encoded as the jobs come, then all texts, then all videos are denoised and then
    /// decoded, while texts and latents wait in a temporary file. So the peak is the largest stage, with the numbers of one video.
    ///
    /// A job that fails, or comes as an error, does not stop the others. The result tells each, in the order they came; the
    /// observer hears of them by [`Observer::video`], [`Observer::finished`] and [`Observer::failed`].
    ///
    /// # Errors
    /// What stops all of them: a graph that cannot be loaded, no room for temporary files, or an interrupt.
    pub fn generate_all<J: Into<Job>>(
        &self,
        jobs: impl IntoIterator<Item = Result<J, PipelineError>>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Result<(), PipelineError>>, PipelineError> {
        let mut spool = Spool::new()?;
        let mut items = self.begin_all(jobs, &mut spool, observer)?;
        if items.iter().flatten().any(Item::is_open) {
            observer.stage(Stage::Text);
            let mut encoder = self.load_blocks(TEXT_ENCODER, "model.onnx", false)?;
            each(&mut items, observer, |_, item, observer| {
                if item.is_open() {
                    let text = self.encode_prompts(&mut encoder, &item.request, observer)?;
                    item.text = Some(spool.keep(&text)?);
                }
                Ok(())
            })?;
        }
        if items.iter().flatten().any(Item::is_open) {
            observer.stage(Stage::Denoise);
            let mut transformer = self.transformer()?;
            each(&mut items, observer, |_, item, observer| {
                let Some(text) = item.text.take() else { return Ok(()) };
                let text = spool.take(&text)?;
                let mut walk = if let Some(walk) = item.walk.take() {
                    spool.take_walk(walk)?
                } else {
                    let sampler = self.sampler(&item.request, &item.plan)?;
                    self.start(&mut None, &item.request, &item.plan, sampler, observer)?
                };
                transformer.denoise(&item.request, &text, &mut walk, observer)?;
                item.walk = Some(spool.keep_walk(walk)?);
                Ok(())
            })?;
        }
        if items.iter().any(Result::is_ok) {
            observer.stage(Stage::Decode);
            let mut decoder = self.decoder()?;
            each(&mut items, observer, |video, item, observer| {
                let Some(walk) = item.walk.take() else { unreachable!("denoised") };
                let latents = spool.take_walk(walk)?.into_latents(item.plan.padding);
                self.decode(&mut decoder, &latents, item.request.vae_tiling, observer)?;
                observer.finished(video).map_err(PipelineError::Sink)
            })?;
        }
        Ok(items.into_iter().map(|item| item.map(drop)).collect())
    }

    /// Check every job and encode what it starts from.
    fn begin_all<J: Into<Job>>(
        &self,
        jobs: impl IntoIterator<Item = Result<J, PipelineError>>,
        spool: &mut Spool,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Result<Item, PipelineError>>, PipelineError> {
        let mut encoder = None;
        let mut items = vec![];
        for (video, job) in jobs.into_iter().enumerate() {
            observer.video(video);
            let mut begin = |job: Job| {
                let Job { mut request, walk } = job;
                let plan = self.check(&request)?;
                let sampler = self.sampler(&request, &plan)?;
                let walk = match walk {
                    Some(walk) => walk.check(&plan).map(|()| Some(walk))?,
                    None if request.start == Start::Noise => None,
                    None => {
                        if encoder.is_none() {
                            observer.stage(Stage::Encode);
                        }
                        Some(self.start(&mut encoder, &request, &plan, sampler, observer)?)
                    }
                };
                request.start = Start::Noise;
                let walk = walk.map(|walk| spool.keep_walk(walk)).transpose()?;
                Ok(Item { request, plan, walk, text: None })
            };
            let begun = job.and_then(|job| begin(job.into()));
            items.push(begun.map_or_else(|why| failed(video, why, observer).map(Err), |item| Ok(Ok(item)))?);
        }
        Ok(items)
    }
}

impl Item {
    /// Whether steps are left.
    fn is_open(&self) -> bool {
        self.walk.as_ref().is_none_or(|walk| !walk.is_done())
    }
}

/// Take every video that has not failed through a stage.
fn each(
    items: &mut [Result<Item, PipelineError>],
    observer: &mut dyn Observer,
    mut stage: impl FnMut(usize, &mut Item, &mut dyn Observer) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    for (video, slot) in items.iter_mut().enumerate() {
        let Ok(item) = slot else { continue };
        observer.video(video);
        if let Err(why) = stage(video, item, observer) {
            *slot = Err(failed(video, why, observer)?);
        }
    }
    Ok(())
}

/// Tell that a video failed, unless all of them are to end.
fn failed(video: usize, why: PipelineError, observer: &mut dyn Observer) -> Result<PipelineError, PipelineError> {
    if matches!(why, PipelineError::Runtime(RuntimeError::Interrupted)) {
        return Err(why);
    }
    observer.failed(video, &why);
    Ok(why)
}
