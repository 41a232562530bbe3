//! Stochastic second-order DPM-Solver++ (`diffusers/schedulers/scheduling_dpm_cogvideox.py`, `step`).

use super::ddim::{clean, single};
use super::{Factors, Prediction, Schedule};

/// Factors of the step from signal share `here` to `next`; `back` is the share of the step before, where it is used.
pub(super) fn factors(schedule: &Schedule, prediction: Prediction, here: f64, next: f64, back: Option<f64>) -> Factors {
    let round = |value| schedule.round(value);
    // Half the logarithm of the signal-to-noise ratio; infinite at either end of the schedule, which the formulas bear.
    let half_log_snr = |share: f64| round(round(round(share / round(1.0 - share)).sqrt()).ln());
    let stride = round(half_log_snr(next) - half_log_snr(here));
    let decay = round((-2.0 * stride).exp());
    let (clean_sample, clean_output) = clean(schedule, prediction, here);
    let kept = round(round(round(1.0 - next) / round(1.0 - here)).sqrt());
    let (mixed_clean, mixed_previous) = match back {
        None => (1.0, 0.0),
        Some(back) => {
            let stride_before = round(half_log_snr(here) - half_log_snr(back));
            let extrapolated = round(1.0 / round(2.0 * round(stride_before / stride)));
            (round(1.0 + extrapolated), -extrapolated)
        }
    };
    Factors {
        clean_sample,
        clean_output,
        mixed_clean: single(mixed_clean),
        mixed_previous: single(mixed_previous),
        next_sample: single(kept * round((-stride).exp())),
        next_mixed: single(-round((-2.0 * stride).exp_m1()) * round(next.sqrt())),
        next_noise: single(round(round(1.0 - next).sqrt()) * round(round(1.0 - decay).sqrt())),
        draws: if back.is_some() { 2 } else { 1 },
    }
}
