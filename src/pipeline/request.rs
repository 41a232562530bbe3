//! What a video is to be.

use super::{Pipeline, PipelineError};
use crate::scheduler::Kind;

/// Steps if nothing else is asked for (diffusers' default).
const STEPS: usize = 50;
/// Guidance scale if nothing else is asked for (diffusers' default).
const GUIDANCE: f64 = 6.0;
/// Largest video in pixels a side and in frames; more is a mistake.
const MOST: usize = 65_536;
/// Most patches of a video, some ten times those of the largest model's longest; attention is quadratic in them.
const MOST_PATCHES: usize = 1 << 20;

/// A video to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What is to be seen.
    pub prompt: String,
    /// What is not.
    pub negative_prompt: String,
    /// Seed of the noise, as of torch's CPU generator.
    pub seed: u64,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale; up to 1 means none.
    pub guidance: f64,
    /// Whether guidance changes over the steps.
    pub dynamic_cfg: bool,
    /// Frames.
    pub frames: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Which sampler.
    pub scheduler: Kind,
}

impl Request {
    /// Whether the model is run with and without the prompt.
    #[must_use]
    pub fn is_guided(&self) -> bool {
        self.guidance > 1.0
    }
}

impl Pipeline {
    /// A request for `prompt` with the checkpoint's own size and scheduler.
    ///
    /// # Errors
    /// A scheduler of an unknown class.
    pub fn request(&self, prompt: &str) -> Result<Request, PipelineError> {
        let fixed = self.bundle().manifest().shapes;
        let size = |fixed: Option<u32>, own: usize| fixed.map_or(own, |n| n as usize);
        let scale = self.vae.spatial_compression_ratio();
        Ok(Request {
            prompt: prompt.into(),
            negative_prompt: String::new(),
            seed: 0,
            steps: STEPS,
            guidance: GUIDANCE,
            dynamic_cfg: false,
            frames: size(fixed.frames, self.dit.sample_frames),
            height: size(fixed.height, self.dit.sample_height * scale),
            width: size(fixed.width, self.dit.sample_width * scale),
            scheduler: self.scheduler.kind()?,
        })
    }

    /// The latents' shape `[1, frames, channels, height, width]`, if the model can make the video.
    ///
    /// # Errors
    /// What the model cannot fulfil.
    pub fn check(&self, request: &Request) -> Result<Vec<usize>, PipelineError> {
        let wrong = |field, expected: String, found: String| Err(PipelineError::Request { field, expected, found });
        let (time, space) = (self.vae.temporal_compression_ratio, self.vae.spatial_compression_ratio());
        let unit = space * self.dit.patch_size;
        if request.frames == 0 || request.frames > MOST {
            return wrong("frames", format!("1 to {MOST}"), request.frames.to_string());
        }
        for (field, found) in [("height", request.height), ("width", request.width)] {
            if found == 0 || found % unit != 0 || found > MOST {
                return wrong(field, format!("a multiple of {unit}, at most {MOST}"), found.to_string());
            }
        }
        if !request.guidance.is_finite() || request.guidance < 0.0 {
            return wrong("guidance", "a number that is not negative".into(), request.guidance.to_string());
        }
        let fixed = self.bundle().manifest().shapes;
        let sizes = [
            ("frames", fixed.frames, request.frames),
            ("height", fixed.height, request.height),
            ("width", fixed.width, request.width),
        ];
        for (field, fixed, found) in sizes {
            if let Some(n) = fixed.filter(|&n| n as usize != found) {
                return wrong(field, format!("{n}, which the bundle was exported for"), found.to_string());
            }
        }
        let frames = (request.frames - 1) / time + 1;
        let patches = frames.saturating_mul(request.height / unit).saturating_mul(request.width / unit);
        if patches > MOST_PATCHES {
            let expected = format!("at most {MOST_PATCHES} patches with `--height` and `--width`");
            return wrong("frames", expected, patches.to_string());
        }
        Ok(vec![1, frames, self.dit.in_channels, request.height / space, request.width / space])
    }
}
