//! What a bundle computes, compared with what PyTorch computed.

mod reference;

use cogvx_calibration::metrics::{difference, psnr, ssim};
use ndarray::{ArrayD, Axis, Slice};
use serde::Serialize;

use crate::bundle::Manifest;
use crate::picture::PictureError;
use crate::pipeline::{Observer, Pipeline, PipelineError, Reads, Start, Started, Tiles, Vae};

pub use reference::{Reference, ReferenceError};

/// Why a comparison was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum VerifyError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Picture(#[from] PictureError),
}

/// How far a bundle may be from the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Relative L2 of the text encoder and the transformer.
    pub network: f64,
    /// Relative L2 of the VAE.
    pub vae: f64,
    /// Relative L2 of the latents of a whole run.
    pub latents: f64,
    /// PSNR in dB of the frames of a whole run.
    pub psnr: f64,
}

impl Limits {
    /// The limits for a bundle: `float32` arithmetic on the checkpoint's own weights is held to `float32`'s error; 16-bit
    /// arithmetic or weights converted to 16 bits to theirs; quantized networks to a few times what their schemes lose on the
    /// models this was tried on, which is where something is broken, not merely coarse: `cogvx quality` judges that.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        let float = match manifest.accuracy.as_str() {
            "bf16" => Self { network: 5e-2, vae: 5e-2, latents: 2e-1, psnr: 22.0 },
            "fp16" => Self { network: 1e-2, vae: 1e-2, latents: 5e-2, psnr: 35.0 },
            _ => Self { network: 1e-5, vae: 1e-4, latents: 1e-3, psnr: 60.0 },
        };
        let float = match manifest.vae_quantization {
            None => float,
            Some(_) => float.or(Self { network: 0.0, vae: 1e-1, latents: 0.0, psnr: 25.0 }),
        };
        match manifest.quantization.as_deref() {
            None => float,
            Some("int8" | "int8-weight") => float.or(Self { network: 3e-2, vae: 0.0, latents: 1e-1, psnr: 35.0 }),
            Some("int8-static") => float.or(Self { network: 1e-1, vae: 0.0, latents: 2e-1, psnr: 30.0 }),
            Some(_) => float.or(Self { network: 1.5e-1, vae: 0.0, latents: 3e-1, psnr: 25.0 }),
        }
    }

    /// The looser of both in everything.
    fn or(self, other: Self) -> Self {
        Self {
            network: self.network.max(other.network),
            vae: self.vae.max(other.vae),
            latents: self.latents.max(other.latents),
            psnr: self.psnr.min(other.psnr),
        }
    }
}

/// The comparison of one tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Name in the reference.
    pub tensor: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Relative difference in the Euclidean norm.
    pub relative_l2: f64,
    /// Cosine similarity.
    pub cosine: f64,
    /// Peak signal-to-noise ratio in dB, of frames; absent where they are equal.
    pub psnr: Option<f64>,
    /// Structural similarity, of frames: the mean over frames.
    pub ssim: Option<f64>,
    /// What it was held to.
    pub limit: String,
    /// Whether it holds.
    pub equal: bool,
}

/// Compares the tensors of one component.
type Comparison = fn(&Pipeline, &Reference, Limits) -> Result<Vec<Row>, VerifyError>;

/// Compare everything the reference has with what the bundle computes; with `pipeline/*` tensors the whole run is made
/// again from its seed. `progress` is told what is compared next.
///
/// # Errors
/// A reference that does not fit the model, or a failure of the runtime.
pub fn verify(
    pipeline: &Pipeline,
    reference: &Reference,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Row>, VerifyError> {
    let limits = Limits::of(pipeline.bundle().manifest());
    let mut rows = vec![];
    let components: [(&str, Comparison); 5] = [
        ("text_encoder/", text_encoder),
        ("transformer/", transformer),
        ("vae_decoder/", vae_decoder),
        ("vae_encoder/", vae_encoder),
        ("pipeline/", whole_run),
    ];
    for (prefix, compare) in components {
        if reference.names().any(|name| name.starts_with(prefix)) {
            progress(prefix.trim_end_matches('/'));
            rows.extend(compare(pipeline, reference, limits)?);
        }
    }
    if rows.is_empty() {
        return Err(reference.empty().into());
    }
    Ok(rows)
}

fn text_encoder(pipeline: &Pipeline, reference: &Reference, limits: Limits) -> Result<Vec<Row>, VerifyError> {
    let ids = reference.integers("text_encoder/input_ids")?;
    if ids.is_empty() {
        return Err(reference.wrong("text_encoder/input_ids", "at least one text", ids.shape()).into());
    }
    let mut rows = vec![];
    if let Some(prompt) = reference.text("prompt") {
        // Of `[prompt, negative_prompt]`, as many as the reference has.
        let texts = [prompt, reference.text("negative_prompt").unwrap_or_default()];
        let found = pipeline.tokenize(&texts[..ids.shape()[0].min(2)])?;
        let equal = found == ids;
        let differing = if found.shape() == ids.shape() {
            found.iter().zip(&ids).filter(|(a, b)| a != b).count()
        } else {
            ids.len()
        };
        #[allow(clippy::cast_precision_loss)] // Few tokens.
        let differing = differing as f64;
        rows.push(Row {
            tensor: "text_encoder/input_ids".into(),
            shape: ids.shape().to_vec(),
            max_abs: differing,
            relative_l2: if equal { 0.0 } else { f64::NAN },
            cosine: if equal { 1.0 } else { f64::NAN },
            psnr: None,
            ssim: None,
            limit: "equal ids".into(),
            equal,
        });
    }
    if reference.has("text_encoder/last_hidden_state") {
        let expected = reference.floats("text_encoder/last_hidden_state")?;
        rows.push(row("text_encoder/last_hidden_state", &pipeline.encode(&ids)?, &expected, limits.network)?);
    }
    Ok(rows)
}

fn transformer(pipeline: &Pipeline, reference: &Reference, limits: Limits) -> Result<Vec<Row>, VerifyError> {
    let [latents, text, timestep, expected] = ["hidden_states", "encoder_hidden_states", "timestep", "sample"]
        .map(|name| reference.floats(&format!("transformer/{name}")));
    let (latents, text, timestep, expected) = (latents?, text?, timestep?, expected?);
    let batch = latents.len_of(Axis(0));
    if text.len_of(Axis(0)) != batch {
        let expected = "as many samples as `hidden_states`";
        return Err(reference.wrong("transformer/encoder_hidden_states", expected, text.shape()).into());
    }
    if timestep.len() != 1 && timestep.len() != batch {
        let expected = "one timestep, or one for each sample";
        return Err(reference.wrong("transformer/timestep", expected, timestep.shape()).into());
    }
    let mut transformer = pipeline.transformer()?;
    // The graph takes one timestep for its batch, as every pipeline gives it; here each sample may have its own.
    let mut samples = vec![];
    for i in 0..batch {
        let one = |a: &ArrayD<f32>| a.slice_axis(Axis(0), Slice::from(i..=i)).to_owned();
        #[allow(clippy::cast_possible_truncation)] // Timesteps are small whole numbers.
        let t = timestep.iter().nth(i).or(timestep.first()).map_or(0, |t| *t as i64);
        samples.push(transformer.predict(&one(&latents), &one(&text), t)?);
    }
    let no_samples = || reference.wrong("transformer/hidden_states", "at least one sample", latents.shape());
    let found = join(&samples, 0).ok_or_else(no_samples)?;
    Ok(vec![row("transformer/sample", &found, &expected, limits.network)?])
}

fn vae_decoder(pipeline: &Pipeline, reference: &Reference, limits: Limits) -> Result<Vec<Row>, VerifyError> {
    let (latents, expected) = (reference.floats("vae_decoder/latents")?, reference.floats("vae_decoder/sample")?);
    let tiles = reference.is_tiled()?.then(|| Tiles::decoding(&pipeline.vae));
    run_vae(&mut pipeline.decoder()?.in_tiles(tiles), &latents, "vae_decoder/sample", &expected, limits)
}

fn vae_encoder(pipeline: &Pipeline, reference: &Reference, limits: Limits) -> Result<Vec<Row>, VerifyError> {
    let (sample, expected) = (reference.floats("vae_encoder/sample")?, reference.floats("vae_encoder/moments")?);
    let tiles = reference.is_tiled()?.then(|| Tiles::encoding(&pipeline.vae));
    run_vae(&mut pipeline.encoder()?.in_tiles(tiles), &sample, "vae_encoder/moments", &expected, limits)
}

fn run_vae(
    vae: &mut Vae,
    x: &ArrayD<f32>,
    name: &str,
    expected: &ArrayD<f32>,
    limits: Limits,
) -> Result<Vec<Row>, VerifyError> {
    let mut chunks = vec![];
    vae.run(x, |chunk| {
        chunks.push(chunk);
        Ok(())
    })?;
    Ok(vec![row(name, &join(&chunks, 2).unwrap_or_default(), expected, limits.vae)?])
}

fn join(parts: &[ArrayD<f32>], axis: usize) -> Option<ArrayD<f32>> {
    let views: Vec<_> = parts.iter().map(|a| a.view()).collect();
    ndarray::concatenate(Axis(axis), &views).ok()
}

/// What a run leaves behind.
#[derive(Default)]
struct Recorder {
    start: Option<Started>,
    latents: Vec<ArrayD<f32>>,
    frames: Vec<ArrayD<f32>>,
}

impl Observer for Recorder {
    fn reads(&self) -> Reads {
        Reads::Steps
    }

    fn start(&mut self, start: &Started) {
        self.start = Some(start.clone());
    }

    fn step(&mut self, _: usize, _: usize, latents: &ArrayD<f32>) {
        self.latents.push(latents.clone());
    }

    fn frames(&mut self, frames: ArrayD<f32>, _: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.frames.push(frames);
        Ok(())
    }
}

fn whole_run(pipeline: &Pipeline, reference: &Reference, limits: Limits) -> Result<Vec<Row>, VerifyError> {
    let request = reference.request(pipeline)?;
    let mut rows = vec![];
    if let Some((name, pixels)) = match &request.start {
        Start::Noise => None,
        Start::Image(image) => Some(("pipeline/image", image)),
        Start::Video { frames, .. } => Some(("pipeline/video", frames)),
    } && reference.has(name)
    {
        rows.push(row(name, &pixels.clone().insert_axis(Axis(0)), &reference.floats(name)?, limits.network)?);
    }
    let mut run = Recorder::default();
    pipeline.generate(&request, &mut run)?;
    if let Some(start) = &run.start {
        let starts = [
            ("pipeline/image_latents", start.image_latents.as_ref(), limits.vae),
            ("pipeline/video_latents", start.video_latents.as_ref(), limits.vae),
            ("pipeline/noise", Some(&start.noise), 1e-6),
            ("pipeline/init_latents", Some(&start.latents), limits.vae),
        ];
        for (name, found, limit) in starts {
            if let Some(found) = found.filter(|_| reference.has(name)) {
                rows.push(row(name, found, &reference.floats(name)?, limit)?);
            }
        }
    }
    // `latents.N` is after step N, counted from 0 as diffusers' callbacks do, or from 1 where there is no 0.
    let first = usize::from(!reference.has("pipeline/latents.0"));
    for (i, latents) in run.latents.iter().enumerate() {
        let name = format!("pipeline/latents.{}", i + first);
        if reference.has(&name) {
            rows.push(row(&name, latents, &reference.floats(&name)?, limits.latents)?);
        }
    }
    if reference.has("pipeline/frames") {
        let expected = reference.floats("pipeline/frames")?;
        let found = join(&run.frames, 0).unwrap_or_default();
        rows.push(frames_row(&found, &expected, limits.psnr)?);
    }
    Ok(rows)
}

fn row(name: &str, found: &ArrayD<f32>, expected: &ArrayD<f32>, limit: f64) -> Result<Row, PipelineError> {
    if found.shape() != expected.shape() {
        let expected = format!("{:?} as in the reference", expected.shape());
        return Err(PipelineError::Shape { name: name.into(), expected, found: found.shape().to_vec() });
    }
    let (found, values) = (found.as_standard_layout(), expected.as_standard_layout());
    let d = difference(found.as_slice().unwrap_or_default(), values.as_slice().unwrap_or_default());
    Ok(Row {
        tensor: name.into(),
        shape: expected.shape().to_vec(),
        max_abs: d.max_abs,
        relative_l2: d.relative_l2,
        cosine: d.cosine,
        psnr: None,
        ssim: None,
        limit: format!("relative L2 <= {limit:e}"),
        equal: d.relative_l2 <= limit,
    })
}

/// Frames `[frames, height, width, 3]` are held to their PSNR.
fn frames_row(found: &ArrayD<f32>, expected: &ArrayD<f32>, limit: f64) -> Result<Row, PipelineError> {
    let mut row = row("pipeline/frames", found, expected, f64::INFINITY)?;
    let (a, b) = (found.as_slice().unwrap_or_default(), expected.as_slice().unwrap_or_default());
    let decibels = psnr(a, b);
    if let &[frames, height, width, channels] = expected.shape() {
        let size = height * width * channels;
        let pairs = a.chunks_exact(size).zip(b.chunks_exact(size));
        let sum = pairs.map(|(a, b)| ssim(a, b, [height, width, channels])).sum::<Option<f64>>();
        #[allow(clippy::cast_precision_loss)] // Few frames.
        let frames = frames as f64;
        row.ssim = sum.map(|sum| sum / frames);
    }
    row.psnr = decibels.is_finite().then_some(decibels);
    row.limit = format!("PSNR >= {limit} dB");
    row.equal = decibels >= limit;
    Ok(row)
}
