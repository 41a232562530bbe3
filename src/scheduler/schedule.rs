//! The noise schedule: how much of the signal is left at every training timestep.

use std::f64::consts::FRAC_PI_2;

use super::{BetaSchedule, SchedulerConfig, SchedulerError};

/// `alphas_cumprod` of diffusers, in the precision diffusers computes it in.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    precision: Precision,
    alphas_cumprod: Vec<f64>,
    after_last: f64,
}

/// Precision of torch's scalars: the scaled linear schedule is `float64`, the others are `float32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precision {
    Single,
    Double,
}

impl Precision {
    /// Rounds the result of one operation.
    #[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
    pub(super) fn round(self, value: f64) -> f64 {
        match self {
            Self::Single => f64::from(value as f32),
            Self::Double => value,
        }
    }
}

impl Schedule {
    /// Builds the schedule of a configuration (`diffusers/schedulers/scheduling_ddim_cogvideox.py`).
    ///
    /// # Errors
    /// A setting out of range, or settings that together give no schedule (a single timestep rescaled to zero signal).
    pub fn new(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        config.check()?;
        let (precision, betas) = betas(config);
        let round = |value| precision.round(value);
        let shift = config.snr_shift_scale;
        let mut product = 1.0;
        let mut alphas_cumprod: Vec<f64> = betas
            .into_iter()
            .map(|beta| {
                // torch accumulates in float64 and stores in the tensor's precision.
                product *= round(1.0 - beta);
                let alpha = round(product);
                round(alpha / round(round(shift) + round(round(1.0 - shift) * alpha)))
            })
            .collect();
        if config.rescale_betas_zero_snr {
            rescale_to_zero_signal(&mut alphas_cumprod, precision);
        }
        if let Some(bad) = alphas_cumprod.iter().find(|alpha| !(0.0..=1.0).contains(*alpha)) {
            return Err(SchedulerError::Setting {
                name: "num_train_timesteps, beta_start, beta_end",
                expected: "a schedule of signal shares between 0 and 1".to_owned(),
                found: bad.to_string(),
            });
        }
        let after_last = if config.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        Ok(Self { precision, alphas_cumprod, after_last })
    }

    /// Share of the signal in the sample's variance, one value per training timestep.
    #[must_use]
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Share of the signal at a timestep; a negative one is past the end, where the sample is (nearly) clean.
    pub(super) fn signal(&self, timestep: i64) -> f64 {
        let index = usize::try_from(timestep).ok();
        index.and_then(|i| self.alphas_cumprod.get(i)).copied().unwrap_or(self.after_last)
    }

    pub(super) fn round(&self, value: f64) -> f64 {
        self.precision.round(value)
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most 100,000 timesteps")]
fn betas(config: &SchedulerConfig) -> (Precision, Vec<f64>) {
    let train = config.num_train_timesteps;
    if let Some(betas) = &config.trained_betas {
        return (Precision::Single, betas.iter().map(|&beta| Precision::Single.round(beta)).collect());
    }
    match config.beta_schedule {
        BetaSchedule::Linear => {
            (Precision::Single, linspace(config.beta_start, config.beta_end, train, Precision::Single))
        }
        BetaSchedule::ScaledLinear => {
            let deviations = linspace(config.beta_start.sqrt(), config.beta_end.sqrt(), train, Precision::Double);
            (Precision::Double, deviations.into_iter().map(|deviation| deviation * deviation).collect())
        }
        BetaSchedule::SquaredcosCapV2 => {
            let bar = |t: usize| ((t as f64 / train as f64 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
            let betas = (0..train).map(|t| Precision::Single.round((1.0 - bar(t + 1) / bar(t)).min(0.999)));
            (Precision::Single, betas.collect())
        }
    }
}

/// torch's `linspace`: from the start in the first half, from the end in the second.
#[expect(clippy::cast_precision_loss, reason = "at most 100,000 values")]
fn linspace(start: f64, end: f64, count: usize, precision: Precision) -> Vec<f64> {
    let round = |value| precision.round(value);
    let (start, end) = (round(start), round(end));
    if count == 1 {
        return vec![start];
    }
    let step = round(round(end - start) / (count - 1) as f64);
    let value = |i: usize| {
        if i < count / 2 { start + round(step * i as f64) } else { end - round(step * (count - 1 - i) as f64) }
    };
    (0..count).map(|i| round(value(i))).collect()
}

/// Shifts and scales the signal's amplitude so that the last timestep has none (algorithm 1 of arXiv:2305.08891).
fn rescale_to_zero_signal(alphas_cumprod: &mut [f64], precision: Precision) {
    let round = |value| precision.round(value);
    let (Some(&first), Some(&last)) = (alphas_cumprod.first(), alphas_cumprod.last()) else { return };
    let (first, last) = (round(first.sqrt()), round(last.sqrt()));
    let scale = round(first / round(first - last));
    for alpha in alphas_cumprod {
        let amplitude = round(round(round(alpha.sqrt()) - last) * scale);
        *alpha = round(amplitude * amplitude);
    }
}
