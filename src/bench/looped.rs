//! What the sampling loop takes beside the transformer's graph.

use std::time::Instant;

use ndarray::{ArrayD, IxDyn};
use serde::Serialize;

use super::request;
use crate::pipeline::{Observer, Pipeline, PipelineError, Reads, Started, Walk};
use crate::rng::TorchGenerator;
use crate::scheduler::{Kind, Sampler};

/// Guidance scale of the measured steps: any above 1 takes the same time.
const GUIDANCE: f64 = 6.0;

/// What steps with guidance took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoopTiming {
    /// The sampler.
    pub sampler: Kind,
    /// Shape of the latents.
    pub latents: [usize; 5],
    /// Steps of a walk.
    pub steps: usize,
    /// Seconds a step.
    pub seconds: f64,
    /// Of these, seconds in ONNX Runtime.
    pub engine_seconds: f64,
}

impl LoopTiming {
    /// Seconds of a step outside ONNX Runtime: inputs put together, guidance, the sampler's arithmetic and noise.
    #[must_use]
    pub fn outside_seconds(&self) -> f64 {
        self.seconds - self.engine_seconds
    }
}

/// Walk `steps` steps of random latents with each sampler, `repeat` times after one that does not count; of each sampler the walk
/// that took the least time outside ONNX Runtime. `size` is frames, rows and columns; none: the checkpoint's.
///
/// # Errors
/// A size or a number of steps the model cannot have, or a failure of the runtime.
pub fn time_loop(
    pipeline: &Pipeline,
    size: [Option<usize>; 3],
    steps: usize,
    repeat: usize,
) -> Result<Vec<LoopTiming>, PipelineError> {
    let mut request = request(pipeline, size)?;
    (request.steps, request.guidance) = (steps, GUIDANCE);
    let latents = pipeline.check(&request)?.shape;
    let mut transformer = pipeline.transformer()?;
    let mut generator = TorchGenerator::new(0);
    let mut random = |shape: &[usize]| {
        let mut numbers = ArrayD::zeros(IxDyn(shape));
        generator.fill(numbers.as_slice_mut().unwrap_or_default());
        numbers
    };
    let text = random(&[2, pipeline.dit.max_text_seq_length, pipeline.dit.text_embed_dim]);
    let noise = random(&latents);
    let image_latents = pipeline.takes_image().then(|| noise.clone());
    let mut timings = vec![];
    for sampler in [Kind::Ddim, Kind::Dpm] {
        let mut best: Option<LoopTiming> = None;
        for run in 0..=repeat {
            let started = Started {
                noise: noise.clone(),
                latents: noise.clone(),
                image_latents: image_latents.clone(),
                video_latents: None,
            };
            let steps = Sampler::new(&pipeline.scheduler, sampler, steps)?;
            let mut walk = Walk::new(steps, TorchGenerator::new(0), started);
            let (began, before) = (Instant::now(), transformer.busy());
            transformer.denoise(&request, &text, &mut walk, &mut Unobserved)?;
            #[allow(clippy::cast_precision_loss)] // At most 100,000.
            let count = walk.steps() as f64;
            let timing = LoopTiming {
                sampler,
                latents,
                steps: walk.steps(),
                seconds: began.elapsed().as_secs_f64() / count,
                engine_seconds: transformer.busy().saturating_sub(before).as_secs_f64() / count,
            };
            let is_less = best.as_ref().is_none_or(|best| timing.outside_seconds() < best.outside_seconds());
            if run > 0 && is_less {
                best = Some(timing);
            }
        }
        timings.extend(best);
    }
    Ok(timings)
}

struct Unobserved;

impl Observer for Unobserved {
    fn reads(&self) -> Reads {
        Reads::Nothing
    }

    fn frames(&mut self, _: ArrayD<f32>, _: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}
