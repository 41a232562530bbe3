//! Deterministic DDIM (`diffusers/schedulers/scheduling_ddim_cogvideox.py`, `step`).

use super::{Factors, Prediction, Schedule};

/// Factors of the step from signal share `here` to `next`.
pub(super) fn factors(schedule: &Schedule, prediction: Prediction, here: f64, next: f64) -> Factors {
    let round = |value| schedule.round(value);
    let (clean_sample, clean_output) = clean(schedule, prediction, here);
    let kept = round(round(round(1.0 - next) / round(1.0 - here)).sqrt());
    let added = round(round(next.sqrt()) - round(round(here.sqrt()) * kept));
    Factors {
        clean_sample,
        clean_output,
        mixed_clean: 1.0,
        mixed_previous: 0.0,
        next_sample: single(kept),
        next_mixed: single(added),
        next_noise: 0.0,
        draws: 0,
    }
}

/// Factors of sample and model output in the clean estimate, at signal share `here`.
pub(super) fn clean(schedule: &Schedule, prediction: Prediction, here: f64) -> (f32, f32) {
    let round = |value| schedule.round(value);
    let signal = round(here.sqrt());
    let noise = round(round(1.0 - here).sqrt());
    match prediction {
        Prediction::Epsilon => (single(1.0 / signal), single(-noise / signal)),
        Prediction::Sample => (0.0, 1.0),
        Prediction::VPrediction => (single(signal), single(-noise)),
    }
}

/// A factor as torch applies it to a `float32` tensor.
#[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
pub(super) fn single(value: f64) -> f32 {
    value as f32
}
