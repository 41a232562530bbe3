//! What a video is to be: options of the command line, and fields of a line of a batch.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::cli::shortcuts::{Shortcuts, interval};
use crate::picture;
use crate::pipeline::{Pipeline, Request, Start};
use crate::scheduler::Kind;

/// Frames a second of a video file; what CogVideoX was trained on.
const FPS: f64 = 8.0;

#[derive(Clone, Args)]
pub(super) struct Wish {
    /// What is to be seen
    #[arg(short, long, required_unless_present = "prompts", default_value = "", hide_default_value = true)]
    pub prompt: String,
    /// What is not
    #[arg(long, default_value = "", hide_default_value = true)]
    pub negative_prompt: String,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Denoising steps
    #[arg(long, default_value_t = 50)]
    pub steps: usize,
    /// Guidance scale; up to 1 means none, which halves the work
    #[arg(long, default_value_t = 6.0)]
    pub guidance: f64,
    /// Let the guidance change over the steps, as 5B's examples do
    #[arg(long)]
    pub dynamic_cfg: bool,
    /// Start from this image (PNG, JPEG, GIF), for image-to-video models
    #[arg(long, conflicts_with = "video")]
    pub image: Option<PathBuf>,
    /// Start from this video: .npy (uint8 [frames, height, width, 3]), .gif, or a folder of images
    #[arg(long)]
    pub video: Option<PathBuf>,
    /// How much of the video is made anew, from 0 to 1: the share of the steps that are taken
    #[arg(long, default_value_t = 0.8)]
    pub strength: f64,
    /// Frames, best 4N + 1 with an even N [default: the checkpoint's, or the video's]
    #[arg(long)]
    pub frames: Option<usize>,
    /// Rows of pixels [default: the checkpoint's]
    #[arg(long)]
    pub height: Option<usize>,
    /// Columns of pixels [default: the checkpoint's]
    #[arg(long)]
    pub width: Option<usize>,
    /// The sampler [default: the checkpoint's]
    #[arg(long)]
    pub scheduler: Option<Sampler>,
    /// Frames a second
    #[arg(long, default_value_t = FPS)]
    pub fps: f64,
    /// Run the transformer with and without the prompt one after the other, not together: less memory for what it computes
    #[arg(long)]
    pub sequential_guidance: bool,
    /// Decode the video, and encode what it starts from, in tiles as diffusers' `enable_tiling()`: less memory, more time
    #[arg(long)]
    pub vae_tiling: bool,
    #[command(flatten)]
    pub shortcuts: Shortcuts,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Sampler {
    Ddim,
    Dpm,
}

impl Wish {
    /// Names of the fields of a line: those of the options, as Python writes them.
    pub const FIELDS: [&str; 19] = [
        "prompt",
        "negative_prompt",
        "seed",
        "steps",
        "guidance",
        "dynamic_cfg",
        "image",
        "video",
        "strength",
        "frames",
        "height",
        "width",
        "scheduler",
        "fps",
        "sequential_guidance",
        "vae_tiling",
        "guidance_interval",
        "guidance_every",
        "step_cache",
    ];

    /// Give a field of [`Wish::FIELDS`] its value.
    ///
    /// # Errors
    /// What was expected.
    pub fn set(&mut self, field: &str, value: &Value) -> Result<(), String> {
        match field {
            "prompt" => self.prompt = text(value)?,
            "negative_prompt" => self.negative_prompt = text(value)?,
            "seed" => self.seed = value.as_u64().ok_or("a whole number that is not negative")?,
            "steps" => self.steps = count(value)?,
            "guidance" => self.guidance = number(value)?,
            "dynamic_cfg" => self.dynamic_cfg = truth(value)?,
            "image" => (self.image, self.video) = (Some(text(value)?.into()), None),
            "video" => (self.image, self.video) = (None, Some(text(value)?.into())),
            "strength" => self.strength = number(value)?,
            "frames" => self.frames = Some(count(value)?),
            "height" => self.height = Some(count(value)?),
            "width" => self.width = Some(count(value)?),
            "scheduler" => {
                let name = value.as_str().unwrap_or_default();
                self.scheduler = Some(Sampler::from_str(name, false).map_err(|_| "`ddim` or `dpm`")?);
            }
            "fps" => self.fps = number(value)?,
            "sequential_guidance" => self.sequential_guidance = truth(value)?,
            "vae_tiling" => self.vae_tiling = truth(value)?,
            "guidance_interval" => {
                let expected = "a text such as \"0:0.8\"";
                let found = interval(value.as_str().unwrap_or_default()).map_err(|_| expected)?;
                self.shortcuts.guidance_interval = Some(found);
            }
            "guidance_every" => self.shortcuts.guidance_every = Some(count(value)?),
            "step_cache" => self.shortcuts.step_cache = Some(number(value)?),
            _ => unreachable!("one of `FIELDS`"),
        }
        Ok(())
    }

    /// The request, with the pictures it starts from.
    pub fn request(&self, pipeline: &Pipeline) -> anyhow::Result<Request> {
        let mut request = pipeline.request(&self.prompt)?;
        request.negative_prompt.clone_from(&self.negative_prompt);
        request.seed = self.seed;
        request.steps = self.steps;
        request.guidance = self.guidance;
        request.dynamic_cfg = self.dynamic_cfg;
        request.sequential_guidance = self.sequential_guidance;
        request.vae_tiling = self.vae_tiling;
        request.shortcuts = self.shortcuts.asked();
        request.frames = self.frames.unwrap_or(request.frames);
        request.height = self.height.unwrap_or(request.height);
        request.width = self.width.unwrap_or(request.width);
        request.scheduler = match self.scheduler {
            Some(Sampler::Ddim) => Kind::Ddim,
            Some(Sampler::Dpm) => Kind::Dpm,
            None => request.scheduler,
        };
        pipeline.check_sides(request.height, request.width)?;
        let size = [request.height, request.width];
        if let Some(path) = &self.image {
            request.start = Start::Image(picture::image(path, size)?);
        } else if let Some(path) = &self.video {
            let frames = picture::video(path, size)?;
            request.frames = self.frames.unwrap_or(frames.shape()[1]);
            request.start = Start::Video { frames, strength: self.strength };
        }
        pipeline.check(&request)?;
        Ok(request)
    }
}

fn text(value: &Value) -> Result<String, &'static str> {
    value.as_str().map(String::from).ok_or("a text")
}

fn count(value: &Value) -> Result<usize, &'static str> {
    value.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or("a whole number that is not negative")
}

fn number(value: &Value) -> Result<f64, &'static str> {
    value.as_f64().ok_or("a number")
}

fn truth(value: &Value) -> Result<bool, &'static str> {
    value.as_bool().ok_or("true or false")
}
