//! Classifier-free guidance (`diffusers/pipelines/cogvideo/pipeline_cogvideox.py`, the denoising loop).

use std::f64::consts::PI;

/// The guidance scale in force at a timestep.
///
/// Constant, or with `dynamic` a cosine of the fifth power of `(steps - timestep) / steps`: the pipeline puts the
/// *training* timestep into it (0 to 999), not the index of the step. Guidance as such is on or off by
/// `guidance > 1`, whatever this returns.
#[expect(clippy::cast_precision_loss, reason = "timesteps and steps are small")]
#[must_use]
pub fn guidance_scale(timestep: i64, guidance: f64, dynamic: bool, steps: usize) -> f64 {
    if !dynamic {
        return guidance;
    }
    let progress = (steps as f64 - timestep as f64) / steps as f64;
    1.0 + guidance * ((1.0 - (PI * progress.powf(5.0)).cos()) / 2.0)
}

/// The guided output, element by element: `uncond + scale * (text - uncond)`; as long as the shorter input.
#[must_use]
pub fn guide(uncond: &[f32], text: &[f32], scale: f64) -> Vec<f32> {
    let mut guided = vec![];
    guide_into(&mut guided, uncond, text, scale);
    guided
}

/// The same into `guided`, whose room is used again.
#[expect(clippy::cast_possible_truncation, reason = "torch applies the scale in the tensor's precision")]
pub fn guide_into(guided: &mut Vec<f32>, uncond: &[f32], text: &[f32], scale: f64) {
    let scale = scale as f32;
    guided.clear();
    guided.extend(uncond.iter().zip(text).map(|(&u, &t)| u + scale * (t - u)));
}

/// The same from what the prompt changes, `text - uncond`: `text + (scale - 1) * difference`.
#[expect(clippy::cast_possible_truncation, reason = "torch applies the scale in the tensor's precision")]
pub fn guide_by(guided: &mut Vec<f32>, text: &[f32], difference: &[f32], scale: f64) {
    let rest = (scale - 1.0) as f32;
    guided.clear();
    guided.extend(text.iter().zip(difference).map(|(&t, &d)| t + rest * d));
}
