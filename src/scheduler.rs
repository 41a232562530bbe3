//! The two samplers of CogVideoX, DDIM and DPM, with diffusers' numbers.
//!
//! A [`Sampler`] walks from noise to a clean latent. Every step is a fixed linear combination of the sample, the model's
//! output, the clean estimate of the step before and one noise draw; [`Sampler::steps`] shows the factors, so that a
//! step can also be built as a graph.
//!
//! ```
//! use cogvx::{rng::TorchGenerator, scheduler::{Sampler, SchedulerConfig}};
//! let config = SchedulerConfig::from_json(r#"{"_class_name": "CogVideoXDDIMScheduler"}"#)?;
//! let mut sampler = Sampler::new(&config, config.kind()?, 25)?;
//! let mut rng = TorchGenerator::new(42);
//! let mut sample = rng.randn(64);
//! for i in 0..sampler.timesteps().len() {
//!     let model_output = vec![0.0; 64]; // of the denoiser, for `sample` at `sampler.timesteps()[i]`
//!     sampler.step(i, &model_output, &mut sample, &mut rng)?;
//! }
//! # Ok::<(), cogvx::scheduler::SchedulerError>(())
//! ```

mod config;
mod ddim;
mod dpm;
mod guidance;
mod schedule;

pub use config::{BetaSchedule, Kind, Prediction, SchedulerConfig, Spacing};
pub use guidance::{guidance_scale, guide, guide_by, guide_into};
pub use schedule::Schedule;

use std::path::PathBuf;

use crate::rng::TorchGenerator;

/// Why a scheduler could not be configured or stepped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The configuration file could not be opened.
    #[error(transparent)]
    Source(#[from] cogvx_graphs::SourceError),
    /// The configuration file could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration is not the JSON of a scheduler.
    #[error("scheduler configuration: {0}")]
    Parse(#[from] serde_json::Error),
    /// The problem lies in this file.
    #[error("`{}`: {source}", path.display())]
    In {
        /// The file.
        path: PathBuf,
        /// The problem.
        source: Box<SchedulerError>,
    },
    /// A setting is outside its range.
    #[error("scheduler setting `{name}`: expected {expected}, found {found}")]
    Setting {
        /// Key in `scheduler_config.json`.
        name: &'static str,
        /// The range, in words.
        expected: String,
        /// The value.
        found: String,
    },
    /// The checkpoint names a scheduler that is neither of CogVideoX's.
    #[error(
        "scheduler class: expected `CogVideoXDDIMScheduler` or `CogVideoXDPMScheduler`, found `{0}`; choose one of \
         `ddim` and `dpm`"
    )]
    UnknownClass(String),
    /// The number of steps does not fit the training schedule.
    #[error("steps: expected 1 to {train} (the model's training timesteps), found {found}")]
    Steps {
        /// Number of training timesteps.
        train: usize,
        /// Number of steps asked for.
        found: usize,
    },
    /// The spacing leads outside the training schedule.
    #[error("timestep of step {step}: expected 0 to {last}, found {found}; see `steps_offset` and `timestep_spacing`")]
    Timestep {
        /// Index of the step.
        step: usize,
        /// Highest training timestep.
        last: usize,
        /// The timestep.
        found: i64,
    },
    /// A factor of a step is infinite or not a number, as for `epsilon` prediction from pure noise.
    #[error("step {step} at timestep {timestep}: expected finite factors, found {found:?}")]
    NotFinite {
        /// Index of the step.
        step: usize,
        /// Its timestep.
        timestep: i64,
        /// The factors.
        found: Box<Factors>,
    },
    /// Steps must be taken in order; step 0 starts again.
    #[error("step: expected {expected}, found {found}")]
    Order {
        /// The step that comes next.
        expected: usize,
        /// The step asked for.
        found: usize,
    },
    /// Sample and model output differ in size.
    #[error("model output: expected {expected} values, found {found}")]
    Length {
        /// Values of the sample.
        expected: usize,
        /// Values of the model output.
        found: usize,
    },
}

/// One step as a linear combination, all factors in `float32` as diffusers applies them to `float32` tensors:
///
/// ```text
/// clean  = clean_sample * sample + clean_output * model_output
/// mixed  = mixed_clean * clean + mixed_previous * (clean of the step before)
/// sample = next_sample * sample + next_mixed * mixed + next_noise * noise
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Of the sample in the clean estimate.
    pub clean_sample: f32,
    /// Of the model's output in the clean estimate.
    pub clean_output: f32,
    /// Of this step's clean estimate in the mixed one; 1 where only this step's counts.
    pub mixed_clean: f32,
    /// Of the clean estimate of the step before in the mixed one; 0 where only this step's counts.
    pub mixed_previous: f32,
    /// Of the sample in the next sample.
    pub next_sample: f32,
    /// Of the mixed clean estimate in the next sample.
    pub next_mixed: f32,
    /// Of the noise in the next sample.
    pub next_noise: f32,
    /// How many noise tensors of the sample's size the step draws: 0, 1, or 2. The last one counts; DPM draws and
    /// discards one before it in every step that looks back.
    pub draws: u8,
}

impl Factors {
    fn all_finite(&self) -> bool {
        [
            self.clean_sample,
            self.clean_output,
            self.mixed_clean,
            self.mixed_previous,
            self.next_sample,
            self.next_mixed,
            self.next_noise,
        ]
        .iter()
        .all(|factor| factor.is_finite())
    }
}

/// Walks a sample from noise to a clean latent, one model call a step.
///
/// Stands for `CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler`
/// (`diffusers/schedulers/scheduling_{ddim,dpm}_cogvideox.py`) as called by
/// `diffusers/pipelines/cogvideo/pipeline_cogvideox.py`.
#[derive(Clone, Debug)]
pub struct Sampler {
    timesteps: Vec<i64>,
    steps: Vec<Factors>,
    next: usize,
    /// Clean estimate of the step before; kept by DPM only.
    previous: Vec<f32>,
    /// Room for the noise of a step.
    noise: Vec<f32>,
}

impl Sampler {
    /// Plans `steps` steps of the sampler `kind` over the schedule of `config`.
    ///
    /// # Errors
    /// A setting out of range, a number of steps the schedule cannot give, or a step whose factors are not finite.
    pub fn new(config: &SchedulerConfig, kind: Kind, steps: usize) -> Result<Self, SchedulerError> {
        Self::from_step(config, kind, steps, 0)
    }

    /// Plans the steps from `first` on, for a walk that starts from a noisy video rather than from noise.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn from_step(config: &SchedulerConfig, kind: Kind, steps: usize, first: usize) -> Result<Self, SchedulerError> {
        let schedule = Schedule::new(config)?;
        let timesteps: Vec<_> = config.timesteps(steps)?.into_iter().skip(first).collect();
        let stride = i64::try_from(config.num_train_timesteps / steps).unwrap_or(i64::MAX);
        let mut planned = Vec::with_capacity(steps);
        for (step, &timestep) in timesteps.iter().enumerate() {
            let here = schedule.signal(timestep);
            let next = schedule.signal(timestep - stride);
            // The pipeline passes the timestep before as `timestep_back`; the last step looks ahead only.
            let back = (step > 0 && timestep >= stride).then(|| schedule.signal(timesteps[step - 1]));
            let factors = match kind {
                Kind::Ddim => ddim::factors(&schedule, config.prediction_type, here, next),
                Kind::Dpm => dpm::factors(&schedule, config.prediction_type, here, next, back),
            };
            if !factors.all_finite() {
                return Err(SchedulerError::NotFinite { step, timestep, found: Box::new(factors) });
            }
            planned.push(factors);
        }
        Ok(Self { timesteps, steps: planned, next: 0, previous: Vec::new(), noise: Vec::new() })
    }

    /// `sample` with as much of `noise` in it as the first step expects (`add_noise`).
    ///
    /// # Errors
    /// A setting out of range.
    #[expect(clippy::cast_possible_truncation, reason = "the schedule is `float32` here, as the sample is")]
    pub fn add_noise(
        &self,
        config: &SchedulerConfig,
        sample: &[f32],
        noise: &[f32],
    ) -> Result<Vec<f32>, SchedulerError> {
        let signal = Schedule::new(config)?.signal(self.timesteps.first().copied().unwrap_or(0)) as f32;
        let (of_sample, of_noise) = (signal.sqrt(), (1.0 - signal).sqrt());
        Ok(sample.iter().zip(noise).map(|(&x, &n)| of_sample * x + of_noise * n).collect())
    }

    /// The timesteps, from noise to clean: what the denoiser gets at each step.
    #[must_use]
    pub fn timesteps(&self) -> &[i64] {
        &self.timesteps
    }

    /// The step that comes next: as many are done.
    #[must_use]
    pub fn next_step(&self) -> usize {
        self.next
    }

    /// The clean estimate of the step before, where the next one reads it; else empty.
    #[must_use]
    pub fn previous(&self) -> &[f32] {
        &self.previous
    }

    /// Takes that estimate away, to be given back by [`Sampler::go_on`].
    pub(crate) fn take_previous(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.previous)
    }

    /// Whether a clean estimate is kept after so many steps.
    #[must_use]
    pub fn keeps_previous(&self, done: usize) -> bool {
        done.checked_sub(1).and_then(|last| self.steps.get(last)).is_some_and(|factors| factors.draws > 0)
    }

    /// Goes on after `done` steps, the last of which left the clean estimate `previous`.
    ///
    /// # Errors
    /// More steps than there are, or an estimate where none is kept, or none where one is.
    pub fn go_on(&mut self, done: usize, previous: Vec<f32>) -> Result<(), SchedulerError> {
        if done > self.steps.len() {
            return Err(SchedulerError::Order { expected: self.steps.len(), found: done });
        }
        if self.keeps_previous(done) == previous.is_empty() {
            return Err(SchedulerError::Length { expected: 0, found: previous.len() });
        }
        (self.next, self.previous) = (done, previous);
        Ok(())
    }

    /// The factors of every step.
    #[must_use]
    pub fn steps(&self) -> &[Factors] {
        &self.steps
    }

    /// Standard deviation of the noise to start from: 1 for both samplers.
    #[must_use]
    pub fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// The clean estimate of step `i` from the model's output for `sample`, into `clean`.
    pub fn clean(&self, i: usize, sample: &[f32], model_output: &[f32], clean: &mut [f32]) {
        let Some(f) = self.steps.get(i) else { return };
        for ((clean, &x), &v) in clean.iter_mut().zip(sample).zip(model_output) {
            *clean = f.clean_sample * x + f.clean_output * v;
        }
    }

    /// The model's output for `sample` that would give this `clean` estimate in step `i`, in its place.
    pub fn output_of(&self, i: usize, sample: &[f32], clean: &mut [f32]) {
        let Some(f) = self.steps.get(i) else { return };
        for (clean, &x) in clean.iter_mut().zip(sample) {
            *clean = (*clean - f.clean_sample * x) / f.clean_output;
        }
    }

    /// Takes step `i`: replaces `sample` by the less noisy one, given the model's (guided) output for it.
    ///
    /// Draws from `rng` what diffusers would draw, also what it then discards. Step 0 starts a new walk.
    ///
    /// # Errors
    /// Steps out of order, or a model output that is not of the sample's size; the sample is then as it was.
    pub fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &mut [f32],
        rng: &mut TorchGenerator,
    ) -> Result<(), SchedulerError> {
        if (i != 0 && i != self.next) || i >= self.steps.len() {
            return Err(SchedulerError::Order { expected: self.next, found: i });
        }
        let expected = if i > 0 && !self.previous.is_empty() { self.previous.len() } else { sample.len() };
        if let Some(found) = [sample.len(), model_output.len()].into_iter().find(|&found| found != expected) {
            return Err(SchedulerError::Length { expected, found });
        }
        let f = self.steps[i];
        if f.draws == 0 {
            self.previous.clear();
        }
        // In one pass and in place: latents are larger than a core's cache.
        let walks_back = f.mixed_previous != 0.0;
        if f.draws > 0 && self.previous.len() != sample.len() {
            self.previous = vec![0.0; sample.len()];
        }
        let step = |x: &mut f32, v: f32, previous: f32| {
            let clean = f.clean_sample * *x + f.clean_output * v;
            let mixed =
                if walks_back { f.mixed_clean * clean + f.mixed_previous * previous } else { f.mixed_clean * clean };
            *x = f.next_sample * *x + f.next_mixed * mixed;
            clean
        };
        if f.draws == 0 {
            for (x, &v) in sample.iter_mut().zip(model_output) {
                step(x, v, 0.0);
            }
        } else {
            for ((x, &v), previous) in sample.iter_mut().zip(model_output).zip(&mut self.previous) {
                *previous = step(x, v, *previous);
            }
            self.draw(i, sample.len(), rng);
            sample.iter_mut().zip(&self.noise).for_each(|(x, &n)| *x += f.next_noise * n);
        }
        self.next = i + 1;
        Ok(())
    }

    /// Draws what step `i` draws for a sample of so many values: the noise that counts, or none where it reads none.
    pub(crate) fn draw(&mut self, i: usize, values: usize, rng: &mut TorchGenerator) -> &[f32] {
        let draws = self.steps.get(i).map_or(0, |factors| factors.draws);
        // The last draw counts.
        for _ in 1..draws {
            rng.skip(values);
        }
        self.noise.resize(if draws > 0 { values } else { 0 }, 0.0);
        rng.fill(&mut self.noise);
        &self.noise
    }

    /// Step `i` was taken elsewhere; what it left is given back by [`Sampler::go_on`].
    pub(crate) fn pass(&mut self, i: usize) {
        self.next = i + 1;
    }
}

#[cfg(test)]
mod tests;
