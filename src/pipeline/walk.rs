//! The denoising: a run's latents, step by step.

use ndarray::{ArrayD, Axis, IxDyn, Slice};

use super::shortcuts::{Memory, Way};
use super::transformer::SAMPLE;
use super::{
    LatentShape, Observer, Pipeline, PipelineError, Reads, Request, Runs, Shortcuts, Started, Transformer, finite,
};
use crate::rng::TorchGenerator;
use crate::scheduler::{Sampler, guidance_scale, guide_by, guide_into};

pub(super) const CHANNELS: Axis = Axis(2);

/// A run between two of its steps: with the bundle and the request, all that the rest of it depends on.
#[derive(Clone, Debug)]
pub struct Walk {
    pub(super) sampler: Sampler,
    pub(super) generator: TorchGenerator,
    /// `[1, frames, channels, height, width]`, in standard order.
    pub(super) latents: ArrayD<f32>,
    /// What stands on the channels after the latents in every step.
    pub(super) image_latents: Option<ArrayD<f32>>,
    /// For [`Shortcuts`](super::Shortcuts).
    pub(super) memory: Memory,
    pub(super) runs: Runs,
}

impl Walk {
    pub(crate) fn new(sampler: Sampler, generator: TorchGenerator, started: Started) -> Self {
        let Started { latents, image_latents, .. } = started;
        Self { sampler, generator, latents, image_latents, memory: Memory::default(), runs: Runs::default() }
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

    /// How often the transformer ran in the steps that were taken in this process.
    #[must_use]
    pub fn runs(&self) -> Runs {
        self.runs
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

    /// The guided prediction from the one without the prompt, if it was made, and the one with it.
    fn guide(
        &mut self,
        request: &Request,
        step: usize,
        [uncond, text]: [&[f32]; 2],
        scale: f64,
        guided: &mut Vec<f32>,
    ) {
        if uncond.is_empty() {
            return guide_by(guided, text, self.memory.difference(), scale);
        }
        if request.shortcuts.guidance_every > 1 {
            self.memory.remember_difference(step, [uncond, text], self.latents.shape());
        }
        guide_into(guided, uncond, text, scale);
    }

    /// Take a step with a prediction that was made for it.
    fn take(&mut self, request: &Request, step: usize, prediction: &[f32]) -> Result<(), PipelineError> {
        if request.shortcuts.step_cache > 0.0 {
            let clean = self.memory.next(self.sampler.timesteps()[step], self.latents.shape());
            self.sampler.clean(step, self.latents.as_slice().unwrap_or_default(), prediction, clean);
        }
        self.advance(step, prediction)
    }

    fn advance(&mut self, step: usize, prediction: &[f32]) -> Result<(), PipelineError> {
        let latents = self.latents.as_slice_mut().expect("made in standard order");
        Ok(self.sampler.step(step, prediction, latents, &mut self.generator)?)
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

/// Room for what the transformer reads in a step: latents, once for each prediction, and the image after them.
pub(super) fn transformer_input(walk: &Walk, guided: bool) -> ArrayD<f32> {
    let own = walk.latents.len_of(CHANNELS);
    let mut shape = walk.latents.shape().to_vec();
    shape[0] = if guided { 2 } else { 1 };
    shape[2] += walk.image_latents.as_ref().map_or(0, |image| image.len_of(CHANNELS));
    let mut input = ArrayD::zeros(IxDyn(&shape));
    for mut sample in input.axis_chunks_iter_mut(Axis(0), 1) {
        let (mut latents, mut rest) = sample.view_mut().split_at(CHANNELS, own);
        latents.assign(&walk.latents);
        if let Some(image) = &walk.image_latents {
            rest.assign(image);
        }
    }
    input
}

impl Transformer<'_> {
    /// Take the steps that are left: with latents that stay on the device, if that was chosen, the observer does not look into the
    /// graph's outputs and each step runs the graph once, or else here.
    pub(crate) fn denoise(
        &mut self,
        request: &Request,
        text: &ArrayD<f32>,
        walk: &mut Walk,
        observer: &mut dyn Observer,
    ) -> Result<(), PipelineError> {
        let plain = request.shortcuts == Shortcuts::default() && !request.sequential_guidance;
        if plain && observer.reads() != Reads::Outputs && self.resident().is_some() {
            self.denoise_resident(request, text, walk, observer)
        } else {
            self.denoise_here(request, text, walk, observer)
        }
    }

    /// Take the steps that are left. Between two runs of the graph nothing of the latents' size is allocated: memory fetched
    /// anew takes longer than the arithmetic.
    fn denoise_here(
        &mut self,
        request: &Request,
        text: &ArrayD<f32>,
        walk: &mut Walk,
        observer: &mut dyn Observer,
    ) -> Result<(), PipelineError> {
        let (guided, steps) = (request.is_guided(), walk.steps());
        let apart = guided && request.sequential_guidance;
        let mut input = transformer_input(walk, guided && !apart);
        let (mut without_prompt, mut made) = (vec![], vec![]);
        while !walk.is_done() {
            let step = walk.done();
            let timestep = walk.sampler.timesteps()[step];
            let way = walk.memory.way(&request.shortcuts, guided, step, walk.sampler.timesteps());
            if way == Way::Forecast {
                walk.memory.forecast(timestep, &mut made);
                walk.sampler.output_of(step, walk.latents.as_slice().unwrap_or_default(), &mut made);
                walk.advance(step, &made)?;
            } else {
                for mut sample in input.axis_chunks_iter_mut(Axis(0), 1) {
                    let own = walk.latents.len_of(CHANNELS);
                    sample.slice_axis_mut(CHANNELS, Slice::from(..own)).assign(&walk.latents);
                }
                // The prompt comes last.
                let [first, last] = [Slice::from(..1), Slice::from(-1..)];
                let together = way == Way::Both && !apart;
                let used = if together { Slice::from(..) } else { last };
                if way == Way::Both && apart {
                    let outputs = self.run(&input.view(), &text.slice_axis(Axis(0), first), timestep)?;
                    observer.ran("transformer", step, steps, &outputs);
                    without_prompt.clear();
                    without_prompt.extend_from_slice(outputs.view(SAMPLE)?.as_slice().unwrap_or_default());
                }
                let outputs = self.run(&input.slice_axis(Axis(0), used), &text.slice_axis(Axis(0), used), timestep)?;
                observer.ran("transformer", step, steps, &outputs);
                walk.runs.prompted += 1;
                walk.runs.unprompted += usize::from(way == Way::Both);
                let output = outputs.view(SAMPLE)?;
                let output = output.as_slice().unwrap_or_default();
                if way == Way::Alone {
                    walk.take(request, step, output)?;
                } else {
                    let scale = guidance_scale(timestep, request.guidance, request.dynamic_cfg, steps);
                    let halves = output.split_at(if together { output.len() / 2 } else { 0 });
                    let uncond = if way == Way::Both && apart { &without_prompt } else { halves.0 };
                    walk.guide(request, step, [uncond, halves.1], scale, &mut made);
                    walk.take(request, step, &made)?;
                }
            }
            finite(&walk.latents, "transformer")?;
            observer.step(step + 1, steps, &walk.latents);
            observer.walked(walk);
        }
        walk.memory = Memory::default();
        Ok(())
    }
}
