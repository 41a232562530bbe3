//! `--guidance-interval`, `--guidance-every`, `--step-cache`.

use clap::Args;

use crate::pipeline::Shortcuts as Asked;

/// Work that steps may leave out.
#[derive(Clone, Args)]
pub(super) struct Shortcuts {
    /// Guide only in these of the steps, as shares of all, such as 0:0.8: the others cost half
    #[arg(long, value_name = "FROM:TO", value_parser = interval, help_heading = "Less work, at some cost in quality")]
    pub guidance_interval: Option<[f64; 2]>,
    /// Run the transformer without the prompt only every so many steps: the others cost half
    #[arg(long, value_name = "STEPS", help_heading = "Less work, at some cost in quality")]
    pub guidance_every: Option<usize>,
    /// Forecast predictions from the last two instead of running the transformer, while they drift less than this from the last
    /// one, relative to their magnitude, such as 0.05 (see docs/caching.md for what it costs)
    #[arg(long, value_name = "DRIFT", help_heading = "Less work, at some cost in quality")]
    pub step_cache: Option<f64>,
}

impl Shortcuts {
    pub fn asked(&self) -> Asked {
        let usual = Asked::default();
        Asked {
            guidance_interval: self.guidance_interval.unwrap_or(usual.guidance_interval),
            guidance_every: self.guidance_every.unwrap_or(usual.guidance_every),
            step_cache: self.step_cache.unwrap_or(usual.step_cache),
        }
    }
}

/// Reads `FROM:TO`.
pub(super) fn interval(text: &str) -> Result<[f64; 2], String> {
    let numbers: Option<Vec<f64>> = text.split(':').map(|number| number.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[from, to]) => Ok([from, to]),
        _ => Err("expected two shares of the steps such as 0:0.8".into()),
    }
}
