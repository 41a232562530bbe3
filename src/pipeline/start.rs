//! What the denoising starts from: noise, and the latents of an image or a video.

use ndarray::{ArrayD, Axis, IxDyn, concatenate};

use super::{LatentShape, Observer, Pipeline, PipelineError, Request, Start, Tiles, Vae, Walk, finite};
use crate::rng::TorchGenerator;
use crate::scheduler::Sampler;

/// The tensors a run starts from, each `[1, frames, channels, height, width]`.
#[derive(Clone, Debug)]
pub struct Started {
    /// The noise that was drawn.
    pub noise: ArrayD<f32>,
    /// What is denoised: the noise, or a video with the noise in it.
    pub latents: ArrayD<f32>,
    /// What stands on the channels after the latents in every step: the image's frame, then zeros.
    pub image_latents: Option<ArrayD<f32>>,
    /// The video, encoded and scaled, before the noise.
    pub video_latents: Option<ArrayD<f32>>,
}

impl Pipeline {
    /// Draw and encode what a run starts from. diffusers draws the posterior's sample of an image or video first, then the
    /// noise (`prepare_latents` of `pipelines/cogvideo/pipeline_cogvideox{,_image2video,_video2video}.py`).
    ///
    /// The encoder is loaded when it is needed, and left for the next one.
    #[allow(clippy::cast_possible_truncation)] // Latents are `f32`.
    pub(super) fn start(
        &self,
        encoder: &mut Option<Vae>,
        request: &Request,
        plan: &LatentShape,
        sampler: Sampler,
        observer: &mut dyn Observer,
    ) -> Result<Walk, PipelineError> {
        let mut generator = TorchGenerator::new(request.seed);
        let shape = plan.shape;
        let factor = self.vae.scaling_factor;
        let mut image_latents = None;
        let mut video_latents = None;
        match &request.start {
            Start::Noise => {}
            Start::Image(image) => {
                // `[3, height, width]` is a video of one frame.
                let video = image.clone().insert_axis(Axis(1)).insert_axis(Axis(0));
                let scale = if self.vae.invert_scale_latents { 1.0 / factor } else { factor };
                let first = self.posterior(encoder, &video, scale as f32, request.vae_tiling, &mut generator)?;
                let [batch, frames, channels, height, width] = shape;
                let rest = ArrayD::zeros(IxDyn(&[batch, frames - 1, channels, height, width]));
                image_latents = Some(concatenate![Axis(1), first, rest]);
            }
            Start::Video { frames, .. } => {
                let video = frames.clone().insert_axis(Axis(0));
                let latents = self.posterior(encoder, &video, factor as f32, request.vae_tiling, &mut generator)?;
                if latents.shape() != shape {
                    let expected = format!("{shape:?}");
                    return Err(PipelineError::Shape {
                        name: "video".into(),
                        expected,
                        found: latents.shape().to_vec(),
                    });
                }
                video_latents = Some(latents);
            }
        }
        let noise = array(&shape, generator.randn(shape.iter().product()));
        let sigma = sampler.init_noise_sigma();
        let latents = match &video_latents {
            None => noise.mapv(|x| x * sigma),
            Some(video) => {
                let (video, noise) = (video.as_standard_layout(), noise.as_standard_layout());
                let (video, noise) = (video.as_slice().unwrap_or_default(), noise.as_slice().unwrap_or_default());
                array(&shape, sampler.add_noise(&self.scheduler, video, noise)?).mapv(|x| x * sigma)
            }
        };
        let started = Started { noise, latents, image_latents, video_latents };
        observer.start(&started);
        Ok(Walk::new(sampler, generator, started))
    }

    /// A sample of the latents' distribution, scaled: pixels `[1, 3, frames, height, width]` to latents
    /// `[1, frames, channels, height, width]`.
    fn posterior(
        &self,
        encoder: &mut Option<Vae>,
        video: &ArrayD<f32>,
        scale: f32,
        tiled: bool,
        generator: &mut TorchGenerator,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let mut chunks = vec![];
        if encoder.is_none() {
            *encoder = Some(self.encoder()?);
        }
        let Some(encoder) = encoder else { unreachable!("just loaded") };
        encoder.set_tiles(tiled.then(|| Tiles::encoding(&self.vae)));
        encoder.run(video, |moments| {
            finite(&moments, "vae_encoder")?;
            chunks.push(moments);
            Ok(())
        })?;
        let views: Vec<_> = chunks.iter().map(|c| c.view()).collect();
        let moments = ndarray::concatenate(Axis(2), &views).expect("chunks of one video");
        let (mean, log_variance) = moments.view().split_at(Axis(1), self.vae.latent_channels);
        let noise = array(mean.shape(), generator.randn(mean.len()));
        let deviation = log_variance.mapv(|x| (0.5 * x.clamp(-30.0, 20.0)).exp());
        let sample = (&mean + &(deviation * noise)) * scale;
        Ok(sample.permuted_axes(IxDyn(&[0, 2, 1, 3, 4])).as_standard_layout().into_owned())
    }
}

fn array(shape: &[usize], values: Vec<f32>) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(shape), values).expect("as many numbers as the shape has")
}
