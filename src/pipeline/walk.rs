//! The denoising: a run's latents, step by step.

use ndarray::{ArrayD, Axis, IxDyn, Slice};

use super::transformer::SAMPLE;
use super::{LatentShape, Observer, Pipeline, PipelineError, Request, Started, Transformer, finite};
use crate::rng::TorchGenerator;
use crate::scheduler::{Sampler, guidance_scale, guide_into};

const CHANNELS: Axis = Axis(2);

/// A run between two of its steps: with the bundle and the request, all that the rest of it depends on.
#[derive(Clone, Debug)]
pub struct Walk {
    pub(super) sampler: Sampler,
    pub(super) generator: TorchGenerator,
    /// `[1, frames, channels, height, width]`, in standard order.
    pub(super) latents: ArrayD<f32>,
    /// What stands on the channels after the latents in every step.
    pub(super) image_latents: Option<ArrayD<f32>>,
}

impl Walk {
    pub(crate) fn new(sampler: Sampler, generator: TorchGenerator, started: Started) -> Self {
        let Started { latents, image_latents, .. } = started;
        Self { sampler, generator, latents, image_latents }
    }

    /// Steps done.
    #[must_use]
    pub fn done(&self) -> usize {
        self.sampler.next_step()
    }

    /// Steps in all.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.sampler.timesteps().len()
    }

    /// Whether no step is left.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done() == self.steps()
    }

    /// The latents now, `[1, frames, channels, height, width]`.
    #[must_use]
    pub fn latents(&self) -> &ArrayD<f32> {
        &self.latents
    }

    /// The latents without the frames that only fill up a patch.
    pub(super) fn into_latents(self, padding: usize) -> ArrayD<f32> {
        let mut latents = self.latents;
        latents.slice_axis_inplace(Axis(1), Slice::from(padding..));
        latents
    }

    /// Find that this is a walk of what was planned.
    pub(super) fn check(&self, plan: &LatentShape) -> Result<(), PipelineError> {
        if self.latents.shape() == plan.shape {
            return Ok(());
        }
        let (name, expected) = ("latents".into(), format!("{:?}, as of the request", plan.shape));
        Err(PipelineError::Shape { name, expected, found: self.latents.shape().to_vec() })
    }
}

impl Pipeline {
    /// The sampler of a request.
    pub(super) fn sampler(&self, request: &Request, plan: &LatentShape) -> Result<Sampler, PipelineError> {
        Ok(Sampler::from_step(&self.scheduler, request.scheduler, request.steps, plan.skip)?)
    }
}

impl Transformer<'_> {
    /// Take the steps that are left. Between two runs of the graph nothing of the latents' size is allocated: memory fetched
    /// anew takes longer than the arithmetic.
    pub(crate) fn denoise(
        &mut self,
        request: &Request,
        text: &ArrayD<f32>,
        walk: &mut Walk,
        observer: &mut dyn Observer,
    ) -> Result<(), PipelineError> {
        let guided = request.is_guided();
        let apart = guided && request.sequential_guidance;
        let (steps, own) = (walk.steps(), walk.latents.len_of(CHANNELS));
        // The texts of each run of the graph.
        let texts = if apart { text.axis_chunks_iter(Axis(0), 1).map(|t| t.to_owned()).collect() } else { vec![] };
        let texts = if apart { &texts[..] } else { std::slice::from_ref(text) };
        let mut shape = walk.latents.shape().to_vec();
        shape[0] = texts[0].len_of(Axis(0));
        shape[2] += walk.image_latents.as_ref().map_or(0, |image| image.len_of(CHANNELS));
        let mut input = ArrayD::zeros(IxDyn(&shape));
        if let Some(image) = &walk.image_latents {
            for mut sample in input.axis_chunks_iter_mut(Axis(0), 1) {
                sample.slice_axis_mut(CHANNELS, Slice::from(own..)).assign(image);
            }
        }
        let (mut without_prompt, mut guided_output) = (vec![], vec![]);
        while !walk.is_done() {
            let step = walk.done();
            let timestep = walk.sampler.timesteps()[step];
            for mut sample in input.axis_chunks_iter_mut(Axis(0), 1) {
                sample.slice_axis_mut(CHANNELS, Slice::from(..own)).assign(&walk.latents);
            }
            let mut outputs = self.run(&input, &texts[0], timestep)?;
            observer.ran("transformer", step, steps, &outputs);
            if apart {
                without_prompt.clear();
                without_prompt.extend_from_slice(outputs.view(SAMPLE)?.as_slice().unwrap_or_default());
                outputs = self.run(&input, &texts[1], timestep)?;
                observer.ran("transformer", step, steps, &outputs);
            }
            let prediction = outputs.view(SAMPLE)?;
            let prediction = prediction.as_slice().unwrap_or_default();
            let latents = walk.latents.as_slice_mut().expect("made in standard order");
            let prediction = if guided {
                let halves = prediction.split_at(prediction.len() / 2);
                let (uncond, text) = if apart { (&without_prompt[..], prediction) } else { halves };
                let scale = guidance_scale(timestep, request.guidance, request.dynamic_cfg, steps);
                guide_into(&mut guided_output, uncond, text, scale);
                &guided_output
            } else {
                prediction
            };
            walk.sampler.step(step, prediction, latents, &mut walk.generator)?;
            finite(&walk.latents, "transformer")?;
            observer.step(step + 1, steps, &walk.latents);
            observer.walked(walk);
        }
        Ok(())
    }
}
