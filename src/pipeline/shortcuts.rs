//! Work that steps may leave out, at some cost in quality: guidance, the prediction without the prompt, whole predictions.

use ndarray::ArrayD;

use super::PipelineError;

/// What steps leave out; by default nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shortcuts {
    /// From which share of the steps on to which there is guidance, as `start` and `stop` of diffusers' guiders (Kynkäänniemi et
    /// al., "Applying guidance in a limited interval", 2024): a step outside costs half.
    pub guidance_interval: [f64; 2],
    /// Every how many steps the prediction without the prompt is made. In the steps between, what the prompt changed in the last
    /// of these is taken for what it changes now.
    pub guidance_every: usize,
    /// How far the estimate of the clean latents may drift, relative to its mean magnitude, before the transformer is run again;
    /// with 0 it runs in each step. Meanwhile the estimate is forecast from the last two. It is the threshold of `TeaCache` (Liu et
    /// al., 2024), put to what the transformer says of the video: no other graph is needed, and no coefficients for each model. The
    /// clean estimate, for it alone is free of the noise that DPM adds in each step.
    pub step_cache: f64,
}

impl Default for Shortcuts {
    fn default() -> Self {
        Self { guidance_interval: [0.0, 1.0], guidance_every: 1, step_cache: 0.0 }
    }
}

impl Shortcuts {
    /// Whether the settings make sense.
    pub(super) fn check(&self) -> Result<(), PipelineError> {
        let wrong =
            |field, expected: &str, found| Err(PipelineError::Request { field, expected: expected.into(), found });
        let [start, stop] = self.guidance_interval;
        if !(0.0..=1.0).contains(&start) || !(0.0..=1.0).contains(&stop) || start > stop {
            let expected = "two numbers from 0 to 1, the smaller one first";
            return wrong("guidance-interval", expected, format!("{start}:{stop}"));
        }
        if self.guidance_every == 0 {
            return wrong("guidance-every", "at least 1", "0".into());
        }
        if !self.step_cache.is_finite() || self.step_cache < 0.0 {
            return wrong("step-cache", "a number that is not negative", self.step_cache.to_string());
        }
        Ok(())
    }

    /// Whether there is guidance in step `step` of `steps`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)] // Shares of the steps.
    pub(super) fn guides(&self, step: usize, steps: usize) -> bool {
        let [start, stop] = self.guidance_interval.map(|share| (share * steps as f64) as usize);
        (start..stop).contains(&step)
    }
}

/// How often the transformer ran, in videos: a step with guidance is two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// With the prompt.
    pub prompted: usize,
    /// Without.
    pub unprompted: usize,
}

/// How a step's prediction is come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// With the prompt and without.
    Both,
    /// With the prompt; what it changes is remembered.
    Remembered,
    /// With the prompt alone, without guidance.
    Alone,
    /// It is forecast.
    Forecast,
}

/// What is remembered from step to step, for the shortcuts that were asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Memory {
    /// What the prompt changed in the last step that was made with and without it, and which step that was.
    pub difference: Option<(usize, ArrayD<f32>)>,
    /// The clean estimates of the last predictions that were made and their timesteps, at most two, the latest last.
    pub clean: Vec<(i64, ArrayD<f32>)>,
}

impl Memory {
    /// How the prediction of a step is come by; `guided`: whether there is guidance at all.
    pub fn way(&mut self, shortcuts: &Shortcuts, guided: bool, step: usize, timesteps: &[i64]) -> Way {
        let steps = timesteps.len();
        let guides = |step| guided && shortcuts.guides(step, steps);
        let guided = guides(step);
        if step > 0 && guides(step - 1) != guided {
            // Estimates under guidance say nothing of estimates without.
            *self = Self::default();
        }
        // The last step makes what is seen.
        if step + 1 < steps && self.drift(timesteps[step]).is_some_and(|drift| drift <= shortcuts.step_cache) {
            return Way::Forecast;
        }
        match &self.difference {
            _ if !guided => Way::Alone,
            Some((made, _)) if step - made < shortcuts.guidance_every => Way::Remembered,
            _ => Way::Both,
        }
    }

    /// How far the clean estimate at `timestep` will be from the last one that was made, relative to its mean magnitude, if it
    /// changes as fast as between the last two.
    #[allow(clippy::cast_precision_loss)] // Timesteps are below 2^24.
    fn drift(&self, timestep: i64) -> Option<f64> {
        let [(before, old), (last, new)] = &self.clean[..] else { return None };
        let change: f64 = old.iter().zip(new).map(|(old, new)| f64::from((new - old).abs())).sum();
        let size: f64 = new.iter().map(|x| f64::from(x.abs())).sum();
        Some(change / size.max(f64::MIN_POSITIVE) * ahead(*before, *last, timestep))
    }

    /// Remember what the prompt changed in `step`.
    pub fn remember_difference(&mut self, step: usize, [uncond, text]: [&[f32]; 2], shape: &[usize]) {
        let (_, mut kept) = self.difference.take().unwrap_or_else(|| (step, ArrayD::zeros(shape)));
        kept.iter_mut().zip(uncond).zip(text).for_each(|((kept, &u), &t)| *kept = t - u);
        self.difference = Some((step, kept));
    }

    /// What the prompt changed when it was last looked at.
    pub fn difference(&self) -> &[f32] {
        self.difference.as_ref().and_then(|(_, difference)| difference.as_slice()).unwrap_or_default()
    }

    /// Room for the next clean estimate, in place of the one before the last.
    pub fn next(&mut self, timestep: i64, shape: &[usize]) -> &mut [f32] {
        let room = if self.clean.len() == 2 { self.clean.remove(0).1 } else { ArrayD::zeros(shape) };
        self.clean.push((timestep, room));
        self.clean.last_mut().and_then(|(_, room)| room.as_slice_mut()).unwrap_or_default()
    }

    /// What the clean estimate at `timestep` is, if it goes on as it did between the last two.
    #[allow(clippy::cast_possible_truncation)] // A few steps.
    pub fn forecast(&self, timestep: i64, into: &mut Vec<f32>) {
        let [(before, old), (last, new)] = &self.clean[..] else {
            unreachable!("there are two, or nothing is forecast")
        };
        let ahead = ahead(*before, *last, timestep) as f32;
        into.clear();
        into.extend(old.iter().zip(new).map(|(&old, &new)| new + ahead * (new - old)));
    }
}

/// How many times as far `timestep` lies from `last` as `last` from `before`.
#[allow(clippy::cast_precision_loss)] // Timesteps are below 2^24.
fn ahead(before: i64, last: i64, timestep: i64) -> f64 {
    (last - timestep) as f64 / (before - last) as f64
}
