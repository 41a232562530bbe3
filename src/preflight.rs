//! A look at a bundle's graphs before engines are built of them: the whole run at a tiny size, so that NaN, zeros, black frames or
//! wrong numbers show in seconds and not after the build.

use ndarray::{ArrayD, IxDyn};
use serde::Serialize;

use crate::pipeline::{Pipeline, PipelineError, Request, Start};
use crate::quality::{self, Case, Fault, QualityError, Watch};
use crate::verify::Limits;

/// Latent frames: those of the VAE's first graph, and those of one run of the next.
const LATENT_FRAMES: usize = 5;
/// Patches a side.
const SIDE: usize = 4;
/// Steps: the second one starts from what the first one made.
const STEPS: usize = 2;

/// What a tiny run showed.
#[derive(Clone, Debug, Serialize)]
pub struct Preflight {
    /// Frames, rows and columns.
    pub size: [usize; 3],
    /// What is broken.
    pub faults: Vec<Fault>,
    /// Relative L2 of the latents, compared with the reference's.
    pub latent_error: Option<f64>,
    /// PSNR of the frames in dB; absent without a reference, or where all are equal.
    pub psnr: Option<f64>,
    /// What the comparison was held to.
    pub limits: Limits,
}

impl Preflight {
    /// What speaks against building engines, in words; nothing if all is well.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<_> = self.faults.iter().map(ToString::to_string).collect();
        let Limits { latents, psnr, .. } = self.limits;
        if let Some(found) = self.latent_error.filter(|found| found.is_nan() || *found > latents) {
            problems.push(format!("latents: expected a relative error of at most {latents:.0e}, found {found:.1e}"));
        }
        if let Some(found) = self.psnr.filter(|found| found.is_nan() || *found < psnr) {
            problems.push(format!("frames: expected a PSNR of at least {psnr} dB, found {found:.1} dB"));
        }
        problems
    }
}

struct Quiet;
impl Watch for Quiet {}

/// Make a tiny video with `pipeline`, whatever runtime it was opened with, and compare it with that of `reference` if there is one.
///
/// # Errors
/// A graph that the runtime refuses or fails to run, a reference that cannot make the same video, or an interrupt.
pub fn preflight(pipeline: &Pipeline, reference: Option<&Pipeline>) -> Result<Preflight, QualityError> {
    let request = smallest(pipeline)?;
    let size = [request.frames, request.height, request.width];
    let limits = Limits::of(pipeline.bundle().manifest());
    let Some(reference) = reference else {
        let faults = quality::faults(pipeline, &request)?;
        return Ok(Preflight { size, faults, latent_error: None, psnr: None, limits });
    };
    let case = Case { prompt: request.prompt.clone(), image: None, seed: request.seed };
    let found = quality::compare(pipeline, reference, &request, &[case], &mut Quiet)?;
    let Some(video) = found.videos.into_iter().next() else { unreachable!("one case, one video") };
    Ok(Preflight {
        size,
        latent_error: video.latent_error.last().copied(),
        psnr: video.psnr.filter(|psnr| psnr.is_finite()),
        faults: video.faults,
        limits,
    })
}

/// The smallest video that runs all graphs; of a bundle of one size, that one.
fn smallest(pipeline: &Pipeline) -> Result<Request, PipelineError> {
    let mut request = pipeline.request("a red circle moving left")?;
    let is_fixed =
        pipeline.bundle().manifest().shapes.frames.is_some() || pipeline.dit.use_learned_positional_embeddings;
    if !is_fixed {
        let side = SIDE * pipeline.dit.patch_size * pipeline.vae.spatial_compression_ratio();
        request.frames = (LATENT_FRAMES - 1) * pipeline.vae.temporal_compression_ratio + 1;
        (request.height, request.width) = (side, side);
    }
    (request.steps, request.guidance) = (STEPS, 3.0);
    if pipeline.takes_image() {
        #[expect(clippy::cast_precision_loss, reason = "a picture")]
        let pixel = |place: IxDyn| ((place[0] + place[1] + 2 * place[2]) as f32 / 8.0).sin();
        let size = IxDyn(&[3, request.height, request.width]);
        request.start = Start::Image(ArrayD::from_shape_fn(size, pixel));
    }
    Ok(request)
}
