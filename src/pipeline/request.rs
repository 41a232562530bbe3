//! What a video is to be.

use ndarray::ArrayD;

use super::{Pipeline, PipelineError, Shortcuts, Tiles};
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
    /// What the video starts from.
    pub start: Start,
    /// Guidance takes two runs of the transformer, one after the other, in place of one with both texts: half the memory for
    /// what it computes.
    pub sequential_guidance: bool,
    /// The VAE works in tiles, as after diffusers' `enable_tiling()`.
    pub vae_tiling: bool,
    /// What steps leave out.
    pub shortcuts: Shortcuts,
}

/// What a video starts from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Start {
    /// Noise alone.
    #[default]
    Noise,
    /// A first frame `[3, height, width]` in -1..1, for image-to-video models.
    Image(ArrayD<f32>),
    /// A video.
    Video {
        /// `[3, frames, height, width]` in -1..1.
        frames: ArrayD<f32>,
        /// Share of the steps that are taken, from 0 to 1.
        strength: f64,
    },
}

/// The latents the transformer works on.
pub struct LatentShape {
    /// `[1, frames, channels, height, width]`.
    pub shape: [usize; 5],
    /// Frames at the start that fill up the first patch in time (1.5) and are not decoded.
    pub padding: usize,
    /// Steps left out at the start, where a video is the start.
    pub skip: usize,
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
            start: Start::Noise,
            sequential_guidance: false,
            vae_tiling: false,
            shortcuts: Shortcuts::default(),
        })
    }

    /// The latents of a request, if the model can make the video.
    ///
    /// # Errors
    /// What the model cannot fulfil.
    pub fn check(&self, request: &Request) -> Result<LatentShape, PipelineError> {
        let wrong = |field, expected: String, found: String| Err(PipelineError::Request { field, expected, found });
        let (time, space) = (self.vae.temporal_compression_ratio, self.vae.spatial_compression_ratio());
        let unit = space * self.dit.patch_size;
        if request.frames == 0 || request.frames > MOST {
            return wrong("frames", format!("1 to {MOST}"), request.frames.to_string());
        }
        self.check_sides(request.height, request.width)?;
        if !request.guidance.is_finite() || request.guidance < 0.0 {
            return wrong("guidance", "a number that is not negative".into(), request.guidance.to_string());
        }
        request.shortcuts.check()?;
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
        let padding = frames.next_multiple_of(self.dit.patch_size_t.unwrap_or(1)) - frames;
        let learned = self.dit.sample_grid();
        let grid = [frames, request.height / unit, request.width / unit];
        if self.dit.use_learned_positional_embeddings && grid != learned {
            let own = [(learned[0] - 1) * time + 1, learned[1] * unit, learned[2] * unit].map(|n| n.to_string());
            let found = [request.frames, request.height, request.width].map(|n| n.to_string());
            let expected = format!("{}, the size of the model's learned positions", own.join("x"));
            return wrong("frames, height, width", expected, found.join("x"));
        }
        let skip = self.check_start(request, padding)?;
        if request.vae_tiling {
            self.check_tiling(request)?;
        }
        let shape = [1, padding + frames, self.vae.latent_channels, request.height / space, request.width / space];
        Ok(LatentShape { shape, padding, skip })
    }

    /// Check that videos of so many frames, rows and columns can be made from noise, or from an image.
    ///
    /// # Errors
    /// A size the model cannot make.
    pub fn check_size(&self, [frames, height, width]: [usize; 3]) -> Result<(), PipelineError> {
        let mut request = Request { frames, height, width, ..self.request("")? };
        self.check_sides(height, width)?;
        if self.takes_image() {
            request.start = Start::Image(ArrayD::zeros(ndarray::IxDyn(&[3, height, width])));
        }
        self.check(&request).map(drop)
    }

    /// Check the size of a video in pixels; images and videos to start from can be resized to it then.
    ///
    /// # Errors
    /// A size the model cannot make.
    pub fn check_sides(&self, height: usize, width: usize) -> Result<(), PipelineError> {
        let unit = self.vae.spatial_compression_ratio() * self.dit.patch_size;
        for (field, found) in [("height", height), ("width", width)] {
            if found == 0 || found % unit != 0 || found > MOST {
                let expected = format!("a multiple of {unit}, at most {MOST}");
                return Err(PipelineError::Request { field, expected, found: found.to_string() });
            }
        }
        Ok(())
    }

    /// Whether the VAE can work on this video in tiles.
    fn check_tiling(&self, request: &Request) -> Result<(), PipelineError> {
        let (height, width, space) = (request.height, request.width, self.vae.spatial_compression_ratio());
        let decoded = (Tiles::decoding(&self.vae), [height / space, width / space]);
        let encoded = (Tiles::encoding(&self.vae), [height, width]);
        let used = if request.start == Start::Noise { vec![decoded] } else { vec![decoded, encoded] };
        for (tiles, [height, width]) in used.into_iter().filter(|(tiles, [height, width])| tiles.cut(*height, *width)) {
            let fixed = self.bundle().manifest().shapes;
            if fixed.height.is_some() || fixed.width.is_some() {
                let expected = "a bundle of open sizes, exported without `--shapes`".into();
                let found = "one of a fixed size".into();
                return Err(PipelineError::Request { field: "vae-tiling", expected, found });
            }
            tiles.check(height, width)?;
        }
        Ok(())
    }

    /// How many steps are skipped, if the model can start from what the request starts from.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // A share of the steps.
    fn check_start(&self, request: &Request, padding: usize) -> Result<usize, PipelineError> {
        let wrong = |field, expected: &str, found: String| {
            Err(PipelineError::Request { field, expected: expected.into(), found })
        };
        let size = [3, request.height, request.width];
        match (&request.start, self.takes_image()) {
            (Start::Noise, false) => Ok(0),
            (Start::Image(image), true) if image.shape() == size => Ok(0),
            (Start::Image(image), true) => wrong("image", &format!("{size:?}"), format!("{:?}", image.shape())),
            (_, true) => wrong("image", "an image: this is an image-to-video model", "none".into()),
            (Start::Image(_), false) => wrong("image", "none: this is not an image-to-video model", "an image".into()),
            (Start::Video { frames, strength }, false) => {
                let size = [3, request.frames, request.height, request.width];
                let taken = (request.steps as f64 * strength) as usize;
                if !(0.0..=1.0).contains(strength) || taken == 0 {
                    return wrong("strength", "a number up to 1 that leaves at least one step", strength.to_string());
                }
                if frames.shape() != size {
                    return wrong("video", &format!("{size:?}"), format!("{:?}", frames.shape()));
                }
                if padding > 0 {
                    return wrong("video", "a number of frames in whole patches", request.frames.to_string());
                }
                Ok(request.steps - taken)
            }
        }
    }
}
