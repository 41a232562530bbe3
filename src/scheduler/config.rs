//! `scheduler_config.json`: what it may say, and the timesteps it leads to.

use std::io::Read;
use std::path::Path;

use cogvx_graphs::source::open_regular;
use serde::{Deserialize, Serialize};

use super::SchedulerError;

/// Most training timesteps accepted; published models have 1,000.
const MAX_TRAIN_TIMESTEPS: usize = 100_000;
/// Largest configuration file read, in bytes: room for `trained_betas`.
const MAX_FILE: u64 = 8 << 20;

/// Which sampler walks the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Deterministic DDIM (`CogVideoXDDIMScheduler`), the published choice for 2B.
    Ddim,
    /// Stochastic second-order DPM-Solver++ (`CogVideoXDPMScheduler`), the published choice for 5B.
    Dpm,
}

impl std::str::FromStr for Kind {
    type Err = SchedulerError;

    fn from_str(name: &str) -> Result<Self, SchedulerError> {
        match name {
            "ddim" | "CogVideoXDDIMScheduler" => Ok(Self::Ddim),
            "dpm" | "CogVideoXDPMScheduler" => Ok(Self::Dpm),
            other => Err(SchedulerError::UnknownClass(other.to_owned())),
        }
    }
}

/// What the denoiser's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise in the sample.
    Epsilon,
    /// The clean sample.
    Sample,
    /// The velocity of "Progressive Distillation" (Salimans and Ho, 2022); every published CogVideoX.
    VPrediction,
}

/// How noise grows over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly spaced variances.
    Linear,
    /// Evenly spaced standard deviations.
    ScaledLinear,
    /// The cosine schedule of "Improved DDPM".
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

/// How the steps are spread over the training timesteps (table 2 of arXiv:2305.08891).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// Both ends included.
    Linspace,
    /// From timestep 0 on, plus `steps_offset`.
    Leading,
    /// From the last timestep down; every published CogVideoX.
    Trailing,
}

/// The settings of `scheduler/scheduler_config.json` that change results, with diffusers' defaults.
///
/// `clip_sample`, `clip_sample_range` and `sample_max_value` have no effect in either CogVideoX scheduler and are not
/// read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// Name of diffusers' class; decides [`SchedulerConfig::kind`].
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Length of the training schedule.
    pub num_train_timesteps: usize,
    /// First variance.
    pub beta_start: f64,
    /// Last variance.
    pub beta_end: f64,
    /// How variances go from first to last.
    pub beta_schedule: BetaSchedule,
    /// All variances, in place of the three settings above.
    pub trained_betas: Option<Vec<f64>>,
    /// Whether the last step ends without noise, rather than with that of timestep 0.
    pub set_alpha_to_one: bool,
    /// Added to timesteps of leading spacing.
    pub steps_offset: usize,
    /// What the denoiser predicts.
    pub prediction_type: Prediction,
    /// How steps are spread.
    pub timestep_spacing: Spacing,
    /// Whether the last training timestep is shifted to pure noise.
    pub rescale_betas_zero_snr: bool,
    /// Shift of the signal-to-noise ratio: 3 for 2B, 1 (none) for 5B.
    pub snr_shift_scale: f64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: "CogVideoXDDIMScheduler".to_owned(),
            num_train_timesteps: 1000,
            beta_start: 0.000_85,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: Prediction::Epsilon,
            timestep_spacing: Spacing::Leading,
            rescale_betas_zero_snr: false,
            snr_shift_scale: 3.0,
        }
    }
}

impl SchedulerConfig {
    /// Reads `scheduler_config.json` at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or [`SchedulerConfig::from_json`] refuses it; the error names the file.
    pub fn open(path: &Path) -> Result<Self, SchedulerError> {
        let read = |source| SchedulerError::Read { path: path.to_owned(), source };
        let opened = open_regular(path)?;
        if opened.bytes > MAX_FILE {
            let found = format!("expected at most {MAX_FILE} bytes, found {}", opened.bytes);
            return Err(read(std::io::Error::other(found)));
        }
        let mut text = String::new();
        opened.file.take(MAX_FILE).read_to_string(&mut text).map_err(read)?;
        Self::from_json(&text).map_err(|source| SchedulerError::In { path: path.to_owned(), source: Box::new(source) })
    }

    /// Reads the text of a `scheduler_config.json`; missing settings take diffusers' defaults, unknown ones are ignored.
    ///
    /// # Errors
    /// Text that is not such JSON, or a setting out of range.
    pub fn from_json(text: &str) -> Result<Self, SchedulerError> {
        // serde would also read a struct from an array.
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)?;
        let config: Self = serde_json::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// The sampler that the checkpoint names.
    ///
    /// # Errors
    /// The class is neither of CogVideoX's.
    pub fn kind(&self) -> Result<Kind, SchedulerError> {
        self.class_name.parse()
    }

    /// Checks every number.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn check(&self) -> Result<(), SchedulerError> {
        fn require(ok: bool, name: &'static str, expected: &str, found: &dyn ToString) -> Result<(), SchedulerError> {
            if ok {
                return Ok(());
            }
            Err(SchedulerError::Setting { name, expected: expected.to_owned(), found: found.to_string() })
        }
        let train = self.num_train_timesteps;
        let variance = |beta: f64| (0.0..1.0).contains(&beta);
        require(
            (1..=MAX_TRAIN_TIMESTEPS).contains(&train),
            "num_train_timesteps",
            &format!("1 to {MAX_TRAIN_TIMESTEPS}"),
            &train,
        )?;
        require(variance(self.beta_start), "beta_start", "a variance below 1", &self.beta_start)?;
        require(variance(self.beta_end), "beta_end", "a variance below 1", &self.beta_end)?;
        require(self.steps_offset < train, "steps_offset", &format!("less than {train}"), &self.steps_offset)?;
        require(
            self.snr_shift_scale.is_finite() && self.snr_shift_scale > 0.0,
            "snr_shift_scale",
            "a positive number",
            &self.snr_shift_scale,
        )?;
        if let Some(betas) = &self.trained_betas {
            require(betas.len() == train, "trained_betas", &format!("{train} values"), &betas.len())?;
            let odd = betas.iter().find(|&&beta| !variance(beta));
            require(odd.is_none(), "trained_betas", "variances below 1", &odd.copied().unwrap_or_default())?;
        }
        Ok(())
    }

    /// The training timesteps that `steps` steps visit, from noise to clean.
    ///
    /// Always `steps` of them. For some numbers of steps (61 of 1,000, for one) rounding gives diffusers' trailing
    /// spacing one more, timestep -1, whose step replaces the finished sample by the model's negated output; that step
    /// is left out here.
    ///
    /// # Errors
    /// No steps, more steps than training timesteps, or (leading spacing with an offset) a timestep beyond the last.
    pub fn timesteps(&self, steps: usize) -> Result<Vec<i64>, SchedulerError> {
        let train = self.num_train_timesteps;
        if steps == 0 || steps > train {
            return Err(SchedulerError::Steps { train, found: steps });
        }
        let timesteps: Vec<i64> = (0..steps).map(|i| self.timestep(i, steps)).collect();
        let last = train - 1;
        let inside = |timestep: i64| usize::try_from(timestep).is_ok_and(|t| t <= last);
        match timesteps.iter().position(|&timestep| !inside(timestep)) {
            Some(step) => Err(SchedulerError::Timestep { step, last, found: timesteps[step] }),
            None => Ok(timesteps),
        }
    }

    /// Timestep of step `i` of `steps`, in numpy's arithmetic (`linspace`, `arange`, rounding half to even).
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "at most 100,000")]
    fn timestep(&self, i: usize, steps: usize) -> i64 {
        let train = self.num_train_timesteps as f64;
        let from_end = (steps - 1 - i) as f64;
        let position = match self.timestep_spacing {
            Spacing::Linspace if steps == 1 => 0.0,
            Spacing::Linspace if i == 0 => train - 1.0,
            Spacing::Linspace => from_end * ((train - 1.0) / (steps - 1) as f64),
            Spacing::Leading => from_end * (self.num_train_timesteps / steps) as f64 + self.steps_offset as f64,
            Spacing::Trailing => {
                // numpy's `arange` steps by the rounded difference of its first two values.
                let second = train - train / steps as f64;
                (train + i as f64 * (second - train)).round_ties_even() - 1.0
            }
        };
        position.round_ties_even() as i64
    }
}
