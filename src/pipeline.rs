//! The sampling loop: a prompt becomes latents, latents become frames (diffusers `pipelines/cogvideo/pipeline_cogvideox.py`).
//!
//! Each stage loads its graphs, runs and frees them before the next one starts: the peak is the largest stage.

mod batch;
mod loaded;
mod prompt;
mod request;
mod resident;
mod shortcuts;
mod spool;
mod start;
mod state;
mod tiling;
mod transformer;
mod vae;
mod walk;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cogvx_graphs::config::{ConfigError, DitConfig, T5Config, VaeConfig};
use cogvx_graphs::onnx::{self, Initializer, Model};
use ndarray::{Array2, ArrayD, Axis, IxDyn};

use crate::bundle::{Bundle, BundleError, MANIFEST};
use crate::export::{KERNELS, MODEL};
use crate::picture::PictureError;
use crate::positions::PositionsError;
use crate::runtime::{Device, Engine, Input, Layout, Outputs, Runtime, RuntimeError, Session, Setup, Traits};
use crate::scheduler::{SchedulerConfig, SchedulerError};
use crate::tokenizer::{Tokenizer, TokenizerError};

pub use batch::Job;
pub(crate) use loaded::Loaded;
pub use loaded::Streaming;
pub use prompt::Prompt;
pub use request::{LatentShape, Request, Start};
pub use shortcuts::{Runs, Shortcuts};
pub use start::Started;
pub use state::{RunId, RunState, StateError};
pub use tiling::Tiles;
pub use transformer::Transformer;
pub use vae::Vae;
pub(crate) use vae::decoded_frames;
pub use walk::Walk;

/// The text encoder's name in bundles.
const TEXT_ENCODER: &str = "text_encoder";
/// The transformer's.
const TRANSFORMER: &str = "transformer";

/// Why a bundle did not become a video.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum PipelineError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Positions(#[from] PositionsError),
    #[error(transparent)]
    Picture(#[from] PictureError),
    #[error("`{}`: expected the component `{component}`, found none: export it too", bundle.display())]
    NoComponent { bundle: PathBuf, component: &'static str },
    /// A request the model cannot fulfil.
    #[error("`--{field}`: expected {expected}, found {found}")]
    Request { field: &'static str, expected: String, found: String },
    /// Numbers of the wrong shape.
    #[error("`{name}`: expected {expected}, found {found:?}")]
    Shape { name: String, expected: String, found: Vec<usize> },
    /// The model's numbers are no numbers.
    #[error(
        "`{stage}` gave NaN or infinity: its weights hold such numbers, or the bundle's precision is too low for the model"
    )]
    NotFinite { stage: &'static str },
    /// Whoever takes the frames failed.
    #[error(transparent)]
    Sink(Box<dyn std::error::Error + Send + Sync>),
    /// What waits for the next stage has no room.
    #[error("cannot keep what waits for the next stage among the temporary files: {0}")]
    Spool(std::io::Error),
}

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The prompt is tokenized and encoded.
    Text,
    /// The VAE encodes the image or video the run starts from.
    Encode,
    /// The transformer removes noise.
    Denoise,
    /// The VAE makes frames.
    Decode,
}

impl Stage {
    /// What runs then, in words.
    #[must_use]
    pub const fn graph(self) -> &'static str {
        match self {
            Self::Text => "the text encoder",
            Self::Encode => "the VAE's encoder",
            Self::Denoise => "the transformer",
            Self::Decode => "the VAE's decoder",
        }
    }
}

/// What an observer looks into while the transformer removes noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Nothing.
    Nothing,
    /// The latents and the walk after each step.
    Steps,
    /// The outputs of the graph, too.
    Outputs,
}

/// Looks on while a video is made, and takes its frames.
pub trait Observer {
    /// What of the denoising it looks into. Where that is less than all and latents stay on a device, they come down only for
    /// those who look: [`Observer::ran`] is not told of the transformer, the latents of [`Observer::step`] are those before the
    /// first step, and [`Observer::walked`] is not told unless steps are read.
    fn reads(&self) -> Reads {
        Reads::Outputs
    }

    /// A stage begins.
    fn stage(&mut self, _stage: Stage) {}

    /// The run starts from this.
    fn start(&mut self, _start: &Started) {}

    /// A graph ran: the text encoder or the VAE's decoder, in step 0 of 1, or the transformer, in a step counted from 0.
    fn ran(&mut self, _component: &'static str, _step: usize, _steps: usize, _outputs: &Outputs) {}

    /// Step `step` of `steps` is done; `latents` are `[1, frames, channels, height, width]`.
    fn step(&mut self, _step: usize, _steps: usize, _latents: &ArrayD<f32>) {}

    /// A step is done; from `walk` the run can go on, see [`RunState`].
    fn walked(&mut self, _walk: &Walk) {}

    /// Of a batch: what follows is about the video of this number, counted from 0.
    fn video(&mut self, _video: usize) {}

    /// Of a batch: all frames of this video have been handed on.
    ///
    /// # Errors
    /// Whatever went wrong with it; the other videos are made all the same.
    fn finished(&mut self, _video: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }

    /// Of a batch: this video is not made, and why.
    fn failed(&mut self, _video: usize, _why: &PipelineError) {}

    /// The next frames are ready: `[frames, height, width, 3]` in 0..1, of `total` in all.
    ///
    /// # Errors
    /// Whatever went wrong with them; ends the run.
    fn frames(&mut self, frames: ArrayD<f32>, total: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// A bundle ready to run.
///
/// It is `Send` and `Sync`: threads may make videos with one pipeline at the same time. Each run loads graphs of its own, so
/// their memory adds up, and [`Interrupt::stop`](crate::runtime::Interrupt::stop) ends all of them. A seed gives the same video
/// whatever else runs.
pub struct Pipeline {
    bundle: Bundle,
    runtime: Runtime,
    /// Whether latents stay on the device while noise is removed.
    resident: bool,
    /// What is loaded in place of graphs, by their paths in the bundle.
    engines: BTreeMap<String, Engine>,
    /// Which weights stay on the device while graphs are loaded.
    streaming: Streaming,
    tokenizer: Tokenizer,
    /// The transformer's configuration.
    pub dit: DitConfig,
    /// The VAE's configuration.
    pub vae: VaeConfig,
    /// The scheduler's configuration.
    pub scheduler: SchedulerConfig,
}

/// The device a bundle's target runs on.
#[must_use]
pub fn device(target: &str) -> Device {
    match target {
        "cuda" => Device::Cuda,
        "tensorrt" => Device::TensorRt,
        _ => Device::Cpu,
    }
}

impl Pipeline {
    /// Read what the bundle says of itself; graphs are loaded when they are needed.
    ///
    /// # Errors
    /// A damaged tokenizer, scheduler or configuration.
    pub fn open(bundle: Bundle, runtime: Runtime) -> Result<Self, PipelineError> {
        let file = bundle.dir().join(MANIFEST);
        let config = |name: &str| bundle.manifest().config.get(name).cloned().unwrap_or_default();
        T5Config::from_value(&file, config("text_encoder"))?;
        Ok(Self {
            dit: DitConfig::from_value(&file, config("transformer"))?,
            vae: VaeConfig::from_value(&file, config("vae"))?,
            scheduler: SchedulerConfig::open(&bundle.path("scheduler/scheduler_config.json"))?,
            tokenizer: Tokenizer::open(&bundle.path("tokenizer"))?,
            bundle,
            engines: BTreeMap::new(),
            streaming: Streaming::default(),
            // On the processor there is nothing to save: what stays is where it would go.
            resident: runtime.device() != Device::Cpu,
            runtime,
        })
    }

    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Choose whether latents stay on the device while noise is removed, with guidance and the sampler's arithmetic as a graph
    /// there; otherwise they come back after each prediction. They do on GPUs unless said otherwise. On the processor both give
    /// the same bits.
    #[must_use]
    pub fn with_resident_latents(self, resident: bool) -> Self {
        Self { resident, ..self }
    }

    /// Load these in place of graphs, which are named by their paths in the bundle: engines that were built of them, see
    /// [`Builder`](crate::engines::Builder).
    #[must_use]
    pub fn with_engines(self, engines: BTreeMap<String, Engine>) -> Self {
        Self { engines, ..self }
    }

    /// Keep the weights of so many blocks on the device; those of the others come from their files each time their block runs. The
    /// numbers are the same. Latents come back after each prediction then.
    #[must_use]
    pub fn with_streaming(self, streaming: Streaming) -> Self {
        Self { streaming, ..self }
    }

    /// What the graphs run on.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn load(&self, component: &'static str, graph: &str) -> Result<Session, PipelineError> {
        self.load_with(component, graph, false)
    }

    /// Load a graph that is a row of blocks, such as a transformer; with `profile` each node is timed in each run.
    pub(crate) fn load_blocks(
        &self,
        component: &'static str,
        graph: &str,
        profile: bool,
    ) -> Result<Loaded, PipelineError> {
        let Streaming { text_encoder, transformer } = self.streaming;
        let kept = if component == TEXT_ENCODER { text_encoder } else { transformer };
        let whole = || Ok(Loaded::Whole(self.load_with(component, graph, profile)?));
        let Some(kept) = kept else { return whole() };
        let model = self.graph(component, graph)?;
        if !onnx::is_streamed(kept.max(1), onnx::blocks(&model), kept) {
            return whole();
        }
        let path = self.bundle.path(&format!("{component}/{graph}"));
        Ok(Loaded::Streamed(Box::new(self.runtime.load_streamed(&path, &model, kept)?)))
    }

    /// Read a graph.
    fn graph(&self, component: &'static str, graph: &str) -> Result<Model, PipelineError> {
        if !self.bundle.manifest().components.contains_key(component) {
            return Err(PipelineError::NoComponent { bundle: self.bundle.dir().into(), component });
        }
        Ok(self.bundle.graph(component, &format!("{component}/{graph}"))?)
    }

    /// Load a graph; with `profile` each node is timed in each run.
    pub(crate) fn load_with(
        &self,
        component: &'static str,
        graph: &str,
        profile: bool,
    ) -> Result<Session, PipelineError> {
        let plain = self.graph(component, graph)?;
        let own = if graph == MODEL { self.for_own_kernels(component)? } else { None };
        let (graph, model) = own.map_or((graph, plain), |model| (KERNELS, model));
        let file = format!("{component}/{graph}");
        let manifest = self.bundle.manifest();
        let quantized = match component {
            "vae_decoder" => manifest.vae_quantization.is_some(),
            "vae_encoder" => false,
            _ => manifest.quantization.is_some(),
        };
        let layout = if quantized { Layout::Packed } else { Layout::Mapped };
        let path = self.bundle.path(&file);
        let repeats = component == TRANSFORMER && self.resident;
        let traits = Traits { repeats, ..Traits::of(&model, layout) };
        Ok(match self.engines.get(&file) {
            Some(engine) => self.runtime.load_engine(engine, traits)?,
            None if profile => self.runtime.load_profiled(&path, traits)?,
            None => self.runtime.load(&path, traits)?,
        })
    }

    /// The form of a component's graph that cogvx has kernels for, where these run it.
    fn for_own_kernels(&self, component: &'static str) -> Result<Option<Model>, PipelineError> {
        let quantized = self.bundle.manifest().quantization.is_some();
        let is_theirs = matches!(self.runtime.setup(), Setup::Cpu(options) if options.has_own_kernels(quantized));
        let file = format!("{component}/{KERNELS}");
        let is_there = || self.bundle.manifest().components.get(component).is_some_and(|c| c.has(&file));
        if !is_theirs || !is_there() {
            return Ok(None);
        }
        let model = self.graph(component, KERNELS)?;
        // They read weights where these are mapped, so each number has to lie where a number may.
        let is_aligned = model.initializers.iter().all(Initializer::is_aligned);
        Ok(Some(model).filter(|_| is_aligned))
    }

    /// Token ids of texts, `[texts, max_text_seq_length]`.
    ///
    /// # Errors
    /// A text the tokenizer cannot take.
    pub fn tokenize(&self, texts: &[&str]) -> Result<ArrayD<i64>, PipelineError> {
        let length = self.dit.max_text_seq_length;
        let mut ids = Array2::zeros((texts.len(), length));
        for (mut row, text) in ids.outer_iter_mut().zip(texts) {
            row.assign(&ndarray::Array1::from(self.tokenizer.encode(text, length)?));
        }
        Ok(ids.into_dyn())
    }

    /// The pieces of `text` that the model sees, the end token last, without what fills it up.
    ///
    /// # Errors
    /// A text the tokenizer cannot take.
    pub fn pieces(&self, text: &str) -> Result<Vec<String>, PipelineError> {
        let ids = self.tokenizer.encode(text, self.dit.max_text_seq_length)?;
        let kept = self.tokenizer.count(text)?.min(ids.len());
        Ok(ids[..kept].iter().map(|&id| self.tokenizer.piece(id).unwrap_or_default()).collect())
    }

    /// How many tokens `text` has beyond what the model takes; those are cut off.
    ///
    /// # Errors
    /// A text the tokenizer cannot take.
    pub fn surplus_tokens(&self, text: &str) -> Result<usize, PipelineError> {
        Ok(self.tokenizer.count(text)?.saturating_sub(self.dit.max_text_seq_length))
    }

    /// How many frames come of `frames` asked for: an even number of latent frames decodes to four each.
    #[must_use]
    pub fn decoded_frames(&self, frames: usize) -> usize {
        let ratio = self.vae.temporal_compression_ratio;
        vae::decoded_frames(frames.saturating_sub(1) / ratio + 1, ratio)
    }

    /// Text embeddings `[texts, tokens, width]` of token ids `[texts, tokens]`.
    ///
    /// # Errors
    /// A failure of the runtime.
    pub fn encode(&self, ids: &ArrayD<i64>) -> Result<ArrayD<f32>, PipelineError> {
        Ok(self.run_text_encoder(ids)?.array("last_hidden_state")?)
    }

    fn run_text_encoder(&self, ids: &ArrayD<i64>) -> Result<Outputs, PipelineError> {
        let mut session = self.load_blocks(TEXT_ENCODER, MODEL, false)?;
        Ok(session.run(&[("input_ids", Input::Integer(ids.view()))])?)
    }

    /// Load the transformer.
    ///
    /// # Errors
    /// No transformer in the bundle, or one the runtime refuses.
    pub fn transformer(&self) -> Result<Transformer<'_>, PipelineError> {
        let resident = self.resident.then_some(&self.runtime);
        Ok(Transformer::new(self.load_blocks(TRANSFORMER, MODEL, false)?, &self.dit, resident))
    }

    /// Load the VAE's decoder.
    ///
    /// # Errors
    /// No decoder in the bundle, or one the runtime refuses.
    pub fn decoder(&self) -> Result<Vae, PipelineError> {
        Ok(Vae::decoder([self.load("vae_decoder", "first.onnx")?, self.load("vae_decoder", "next.onnx")?]))
    }

    /// Load the VAE's encoder.
    ///
    /// # Errors
    /// No encoder in the bundle, or one the runtime refuses.
    pub fn encoder(&self) -> Result<Vae, PipelineError> {
        Ok(Vae::encoder([self.load("vae_encoder", "first.onnx")?, self.load("vae_encoder", "next.onnx")?]))
    }

    /// Whether the model continues a given first frame.
    #[must_use]
    pub fn takes_image(&self) -> bool {
        self.dit.in_channels == 2 * self.vae.latent_channels
    }

    /// Make a video.
    ///
    /// # Errors
    /// A request the model cannot fulfil, a failure of the runtime or the observer, or an interrupt.
    pub fn generate(&self, request: &Request, observer: &mut dyn Observer) -> Result<(), PipelineError> {
        let latents = self.latents(request, observer)?;
        observer.stage(Stage::Decode);
        self.decode(&mut self.decoder()?, &latents, request.vae_tiling, observer)
    }

    /// Make the latents of a video, `[1, frames, channels, height, width]`.
    ///
    /// # Errors
    /// A request the model cannot fulfil, a failure of the runtime, or an interrupt.
    pub fn latents(&self, request: &Request, observer: &mut dyn Observer) -> Result<ArrayD<f32>, PipelineError> {
        let plan = self.check(request)?;
        let sampler = self.sampler(request, &plan)?;
        observer.stage(Stage::Text);
        let text = self.encode_prompts(&mut self.load_blocks(TEXT_ENCODER, MODEL, false)?, request, observer)?;
        if request.start != Start::Noise {
            observer.stage(Stage::Encode);
        }
        let mut walk = self.start(&mut None, request, &plan, sampler, observer)?;
        observer.stage(Stage::Denoise);
        self.transformer()?.denoise(request, &text, &mut walk, observer)?;
        Ok(walk.into_latents(plan.padding))
    }

    /// Go on with a run from where `walk` is: the video is the one that [`Pipeline::generate`] makes. A walk that has come to its
    /// end is only decoded.
    ///
    /// # Errors
    /// As [`Pipeline::generate`], and a walk that is not one of this request.
    pub fn resume(&self, request: &Request, mut walk: Walk, observer: &mut dyn Observer) -> Result<(), PipelineError> {
        let plan = self.check(request)?;
        walk.check(&plan)?;
        if !walk.is_done() {
            observer.stage(Stage::Text);
            let text = self.encode_prompts(&mut self.load_blocks(TEXT_ENCODER, MODEL, false)?, request, observer)?;
            observer.stage(Stage::Denoise);
            self.transformer()?.denoise(request, &text, &mut walk, observer)?;
        }
        observer.stage(Stage::Decode);
        self.decode(&mut self.decoder()?, &walk.into_latents(plan.padding), request.vae_tiling, observer)
    }

    /// Embeddings of the prompt and, for guidance, before it those of the negative prompt.
    fn encode_prompts(
        &self,
        encoder: &mut Loaded,
        request: &Request,
        observer: &mut dyn Observer,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let both = [request.negative_prompt.as_str(), request.prompt.as_str()];
        let texts = if request.is_guided() { &both[..] } else { &both[1..] };
        let ids = self.tokenize(texts)?;
        let outputs = encoder.run(&[("input_ids", Input::Integer(ids.view()))])?;
        observer.ran(TEXT_ENCODER, 0, 1, &outputs);
        let text = outputs.array("last_hidden_state")?;
        finite(&text, TEXT_ENCODER)?;
        Ok(text)
    }

    /// Frames of latents `[1, frames, channels, height, width]`, handed on as they come.
    fn decode(
        &self,
        decoder: &mut Vae,
        latents: &ArrayD<f32>,
        tiled: bool,
        observer: &mut dyn Observer,
    ) -> Result<(), PipelineError> {
        #[allow(clippy::cast_possible_truncation)] // Latents are `f32`.
        let factor = (1.0 / self.vae.scaling_factor) as f32;
        let scaled = latents.view().permuted_axes(IxDyn(&[0, 2, 1, 3, 4])).mapv(|x| x * factor);
        let total = vae::decoded_frames(scaled.shape()[2], self.vae.temporal_compression_ratio);
        decoder.set_tiles(tiled.then(|| Tiles::decoding(&self.vae)));
        // Both are told of in turns.
        let observer = RefCell::new(observer);
        let mut ran = |outputs: &Outputs| observer.borrow_mut().ran("vae_decoder", 0, 1, outputs);
        decoder.watched(&scaled, &mut ran, |chunk| {
            finite(&chunk, "vae_decoder")?;
            // [1, 3, frames, height, width] in -1..1 to [frames, height, width, 3] in 0..1
            let frames = chunk.index_axis_move(Axis(0), 0).permuted_axes(IxDyn(&[1, 2, 3, 0]));
            let frames = frames.mapv(|x| (x * 0.5 + 0.5).clamp(0.0, 1.0));
            let frames = frames.as_standard_layout().into_owned();
            observer.borrow_mut().frames(frames, total).map_err(PipelineError::Sink)
        })
    }
}

fn finite(values: &ArrayD<f32>, stage: &'static str) -> Result<(), PipelineError> {
    if values.iter().all(|x| x.is_finite()) { Ok(()) } else { Err(PipelineError::NotFinite { stage }) }
}

/// Whether `folder` holds a bundle rather than a checkpoint.
#[must_use]
pub fn is_bundle(folder: &Path) -> bool {
    folder.join(MANIFEST).exists()
}
