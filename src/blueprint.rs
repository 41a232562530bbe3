//! A model to look into without running it: a checkpoint, a bundle, or configurations alone.

mod source;

use std::collections::BTreeSet;
use std::path::PathBuf;

use cogvx_calibration::convs;
use cogvx_calibration::plan::{Plan, Scheme};
use cogvx_graphs::config::{ConfigError, DitConfig, PipelineClass, T5Config, VaeConfig};
use cogvx_graphs::cost::{Cost, CostError, Device, Freed, Keep, Layout, Sizes, elements};
use cogvx_graphs::model::vae::{FRAME_CHUNK, LATENT_CHUNK, Part, first_chunk};
use cogvx_graphs::model::{dit, t5, vae};
use cogvx_graphs::pass::Target;
use cogvx_graphs::pass::fuse::fuse;
use cogvx_graphs::weights::{Tensor, WeightsError};
use cogvx_graphs::{BuildError, DType, Dim, Graph, Problem, VideoDims, Weights};

use crate::bundle::BundleError;
use crate::export::{Component, ExportError, ExportOptions, VideoShape, lower};
use crate::runtime::CpuOptions;
use crate::synth::SynthError;

/// Largest video in pixels a side and in frames.
const MOST: usize = 65_536;

/// Why a model cannot be looked into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum BlueprintError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Synth(#[from] SynthError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Cost(#[from] CostError),
    #[error("`{path}`: expected a checkpoint, a bundle, a `config.json`, or one of {names}, found none of these")]
    Unknown { path: String, names: String },
    #[error("`--{field}`: expected {expected}, found {found}")]
    Request { field: &'static str, expected: String, found: String },
    /// A choice that a bundle has made.
    #[error("`{}`: expected a checkpoint for `--{option}`, found a bundle, which has it from its export", path.display())]
    Chosen { path: PathBuf, option: &'static str },
}

/// A model, told by its configurations and its tensors' names, shapes and types.
pub struct Blueprint {
    /// What it is called: its folder's name, or its own.
    pub name: String,
    /// Which pipeline it is for.
    pub class: PipelineClass,
    /// Configuration of the text encoder.
    pub text: T5Config,
    /// Configuration of the transformer.
    pub dit: DitConfig,
    /// Configuration of the VAE.
    pub vae: VaeConfig,
    /// Tensors of the text encoder, the transformer and the VAE.
    weights: [Weights; 3],
    form: Form,
    /// Of a bundle, the tensors that are quantized: `<component>/<tensor>`.
    quantized: Option<BTreeSet<String>>,
}

/// How the graphs are, or would be, written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Form {
    /// The runtime they are written for.
    pub target: Target,
    /// Weights are stored in at most this precision; the checkpoint's own if absent.
    pub precision: Option<DType>,
    /// How linear layers are quantized.
    pub quantize: Option<Scheme>,
    /// Whether the convolutions of the VAE's decoder are, too.
    pub quantize_vae: bool,
    /// The one size of the video, where they have only one.
    pub shapes: Option<VideoShape>,
}

impl Default for Form {
    fn default() -> Self {
        Self { target: Target::Cpu, precision: None, quantize: None, quantize_vae: false, shapes: None }
    }
}

/// A video as the graphs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Video {
    /// Frames, rows and columns of pixels.
    pub pixels: [usize; 3],
    /// Frames, rows and columns of latents.
    pub latents: [usize; 3],
    /// Latent frames of the transformer, which fill whole patches.
    pub padded: usize,
    /// Tokens of text and of video patches.
    pub tokens: [usize; 2],
}

/// One run of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// The text encoder on so many texts.
    Text(usize),
    /// The transformer on so many copies of the latents.
    Transformer(usize),
    /// The VAE's decoder on so many rows and columns of latents.
    Decoder(Part, [usize; 2]),
    /// The VAE's encoder on so many frames, rows and columns of pixels.
    Encoder(Part, [usize; 3]),
}

impl Run {
    /// The component that runs.
    #[must_use]
    pub fn component(self) -> Component {
        match self {
            Self::Text(_) => Component::TextEncoder,
            Self::Transformer(_) => Component::Transformer,
            Self::Decoder(..) => Component::VaeDecoder,
            Self::Encoder(..) => Component::VaeEncoder,
        }
    }
}

impl Blueprint {
    /// How its graphs are written.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// The same model, exported otherwise; a bundle's form is settled.
    ///
    /// # Errors
    /// A scheme that the target has no kernels for.
    pub fn in_form(self, form: Form) -> Result<Self, BlueprintError> {
        if let Some(scheme) = form.quantize.filter(|scheme| !scheme.runs_on(form.target)) {
            let target = ExportOptions { target: form.target, ..ExportOptions::default() }.target_name();
            let instead = Scheme::ALL.into_iter().find(|scheme| scheme.runs_on(form.target)).map_or("", Scheme::name);
            return Err(ExportError::Scheme { scheme: scheme.name(), target, instead }.into());
        }
        Ok(Self { form, ..self })
    }

    /// The tensors of a component; decoder and encoder share the VAE's.
    #[must_use]
    pub fn weights(&self, component: Component) -> &Weights {
        match component {
            Component::TextEncoder => &self.weights[0],
            Component::Transformer => &self.weights[1],
            Component::VaeDecoder | Component::VaeEncoder => &self.weights[2],
        }
    }

    /// The tensors of a component that torch counts as parameters: one under two names is one, and tables of positions are
    /// buffers.
    pub fn learned(&self, component: Component) -> impl Iterator<Item = &Tensor> {
        let weights = self.weights(component);
        let has_shared = weights.get("shared.weight").is_some();
        weights.iter().filter(move |tensor| match component {
            Component::TextEncoder => tensor.name != "encoder.embed_tokens.weight" || !has_shared,
            Component::Transformer => tensor.name != "patch_embed.pos_embedding",
            Component::VaeDecoder => tensor.name.starts_with("decoder."),
            Component::VaeEncoder => tensor.name.starts_with("encoder."),
        })
    }

    /// Numbers a component has learned.
    #[must_use]
    pub fn parameters(&self, component: Component) -> u64 {
        self.learned(component).map(|tensor| elements(&tensor.shape)).sum()
    }

    /// Whether the transformer's weights are of this type.
    #[must_use]
    pub fn stores(&self, dtype: DType) -> bool {
        self.weights[1].iter().any(|tensor| tensor.dtype == dtype)
    }

    /// The same with weights of `float32`, which can then be stored in any precision.
    #[must_use]
    pub fn widened(self) -> Self {
        let wide = |weights: &Weights| {
            Weights::synthetic(weights.iter().map(|t| (t.name.clone(), DType::F32, t.shape.clone())))
        };
        Self { weights: [0, 1, 2].map(|i| wide(&self.weights[i])), ..self }
    }

    /// Whether the model continues a given first frame.
    #[must_use]
    pub fn takes_image(&self) -> bool {
        self.dit.in_channels == 2 * self.vae.latent_channels
    }

    /// The video of these frames, rows and columns, which default to the model's own.
    ///
    /// # Errors
    /// A size the model cannot make.
    pub fn video(&self, asked: [Option<usize>; 3]) -> Result<Video, BlueprintError> {
        let (time, space) = (self.vae.temporal_compression_ratio, self.vae.spatial_compression_ratio());
        let fixed = self.form.shapes.map(|s| [s.frames, s.height, s.width]);
        let own = [self.dit.sample_frames, self.dit.sample_height * space, self.dit.sample_width * space];
        let own = fixed.unwrap_or(own);
        let pixels = [0, 1, 2].map(|i| asked[i].unwrap_or(own[i]));
        let unit = space * self.dit.patch_size;
        for (i, field) in ["frames", "height", "width"].into_iter().enumerate() {
            let found = pixels[i];
            let wrong = |expected: String| BlueprintError::Request { field, expected, found: found.to_string() };
            if found == 0 || found > MOST {
                return Err(wrong(format!("1 to {MOST}")));
            }
            if i > 0 && found % unit != 0 {
                return Err(wrong(format!("a multiple of {unit}")));
            }
            if fixed.is_some_and(|fixed| fixed[i] != found) {
                return Err(wrong(format!("{}, which the bundle was exported for", own[i])));
            }
        }
        let frames = (pixels[0] - 1) / time + 1;
        let latents = [frames, pixels[1] / space, pixels[2] / space];
        let patch_frames = self.dit.patch_size_t.unwrap_or(1);
        let padded = frames.next_multiple_of(patch_frames);
        let grid = [padded / patch_frames, pixels[1] / unit, pixels[2] / unit];
        let learned = self.dit.sample_grid();
        if self.dit.use_learned_positional_embeddings && grid != learned {
            let own = [(learned[0] - 1) * time + 1, learned[1] * unit, learned[2] * unit];
            let expected = format!("{}, the size of the model's learned positions", by(own));
            return Err(BlueprintError::Request { field: "frames, height, width", expected, found: by(pixels) });
        }
        let tokens = [self.dit.max_text_seq_length, grid.iter().product()];
        Ok(Video { pixels, latents, padded, tokens })
    }

    /// The graph as the model is written down, with open sizes unless it has only one.
    ///
    /// # Errors
    /// Tensors that are missing or do not fit.
    pub fn graph(&self, component: Component, part: Part) -> Result<Graph, BlueprintError> {
        let weights = self.weights(component);
        let open = VideoDims::dynamic();
        let chunk = |first: VideoDims, frames: usize| match part {
            Part::First => first,
            Part::Next => VideoDims { frames: Dim::Fixed(frames), ..first },
        };
        let video = self.form.shapes.map(|s| self.video([s.frames, s.height, s.width].map(Some))).transpose()?;
        let tokens = video.map_or(Dim::named("tokens"), |_| Dim::Fixed(self.dit.max_text_seq_length));
        Ok(match component {
            Component::TextEncoder => t5::build(&self.text, weights, &tokens)?,
            Component::Transformer => {
                // A table of positions has one size.
                let fixed = self.dit.use_learned_positional_embeddings.then(|| self.video([None; 3])).transpose()?;
                let size = video.or(fixed).map_or(open, |v| VideoDims::fixed(v.padded, v.latents[1], v.latents[2]));
                dit::build(&self.dit, weights, &size, &tokens)?
            }
            Component::VaeDecoder => {
                let first = video.map_or(open, |v| {
                    VideoDims::fixed(first_chunk(v.latents[0], LATENT_CHUNK), v.latents[1], v.latents[2])
                });
                vae::decoder(&self.vae, weights, &chunk(first, LATENT_CHUNK), part)?
            }
            Component::VaeEncoder => {
                let frames = |v: Video| if self.class == PipelineClass::Image { 1 } else { v.pixels[0] };
                let first = video
                    .map_or(open, |v| VideoDims::fixed(first_chunk(frames(v), FRAME_CHUNK), v.pixels[1], v.pixels[2]));
                vae::encoder(&self.vae, weights, &chunk(first, FRAME_CHUNK), part)?
            }
        })
    }

    /// The graph that runs.
    ///
    /// # Errors
    /// As [`Blueprint::graph`], and a precision or a scheme it cannot have.
    pub fn lowered(&self, component: Component, part: Part) -> Result<Graph, BlueprintError> {
        let graph = self.graph(component, part)?;
        let Form { target, precision, quantize, quantize_vae, .. } = self.form;
        let options = ExportOptions { precision, target, ..ExportOptions::default() };
        let plan = quantize.map(|scheme| {
            let mut plan = Plan::new(&graph, scheme, target);
            if quantize_vae && component == Component::VaeDecoder {
                plan.convs = convs::find(&graph);
            }
            if let Some(quantized) = &self.quantized {
                let is_so = |layer: &String| quantized.contains(&format!("{}/{layer}", component.name()));
                plan.layers.retain(|layer, _| is_so(layer));
                plan.convs.retain(|layer, _| is_so(layer));
            }
            plan
        });
        let made = lower(&graph, plan.as_ref(), options.compute(self.weights(component)), precision, target);
        in_graph(component, made)
    }

    /// What a run of the graph costs, on so many threads, with these options where it runs on the processor, and with the weights of
    /// so many `blocks` kept on the device if not all are.
    ///
    /// # Errors
    /// As [`Blueprint::lowered`].
    pub fn cost(
        &self,
        run: Run,
        video: &Video,
        threads: usize,
        cpu: CpuOptions,
        blocks: Option<usize>,
    ) -> Result<Cost, BlueprintError> {
        let (part, sizes) = self.sizes(run, video);
        let component = run.component();
        let weights = self.layout(component, cpu.prepack);
        let convolves = matches!(component, Component::VaeDecoder | Component::VaeEncoder);
        let (freed, device) = match self.form.target {
            Target::Cpu => (Freed::of(weights, convolves, cpu.arenas), Device::Cpu),
            Target::Cuda => (Freed::on_cuda(convolves), Device::Cuda),
            Target::TensorRt => (Freed::GivenBack, Device::Cuda),
        };
        let lowered = self.lowered(component, part)?;
        let fused =
            if self.form.target == Target::Cpu && cpu.has_own_kernels(self.form.quantize.is_some()) && !convolves {
                in_graph(component, fuse(&lowered))?
            } else {
                None
            };
        let graph = fused.as_ref().unwrap_or(&lowered);
        let keep = Keep { weights, freed, device, tiles: cogvx_kernels::has_tiles(), blocks };
        Ok(Cost::of(graph, &sizes, threads, keep)?)
    }

    /// How a session on the processor keeps the weights of a component.
    fn layout(&self, component: Component, prepack: bool) -> Layout {
        let prepack = prepack && self.form.target == Target::Cpu;
        let quantized = match component {
            Component::TextEncoder | Component::Transformer if prepack => return Layout::Widened,
            Component::TextEncoder | Component::Transformer => self.form.quantize.is_some(),
            Component::VaeDecoder => self.form.quantize_vae,
            Component::VaeEncoder => false,
        };
        if quantized { Layout::Packed } else { Layout::Mapped }
    }

    /// The sizes that the graph of a run leaves open.
    #[must_use]
    pub fn sizes(&self, run: Run, video: &Video) -> (Part, Sizes) {
        let sizes = |batch, [frames, height, width]: [usize; 3]| {
            Sizes::new([
                ("batch", batch),
                ("tokens", video.tokens[0]),
                ("frames", frames),
                ("height", height),
                ("width", width),
            ])
        };
        match run {
            Run::Text(texts) => (Part::First, sizes(texts, [0; 3])),
            Run::Transformer(batch) => (Part::First, sizes(batch, [video.padded, video.latents[1], video.latents[2]])),
            Run::Decoder(part, [height, width]) => {
                let frames =
                    if part == Part::First { first_chunk(video.latents[0], LATENT_CHUNK) } else { LATENT_CHUNK };
                (part, sizes(1, [frames, height, width]))
            }
            Run::Encoder(part, [frames, height, width]) => {
                let frames = if part == Part::First { first_chunk(frames, FRAME_CHUNK) } else { FRAME_CHUNK };
                (part, sizes(1, [frames, height, width]))
            }
        }
    }
}

/// Sizes as people write them: 49x480x720.
#[must_use]
pub fn by(sizes: [usize; 3]) -> String {
    sizes.map(|n| n.to_string()).join("x")
}

/// What a pass over a component's graph made.
fn in_graph<T>(component: Component, made: Result<T, Vec<Problem>>) -> Result<T, BlueprintError> {
    made.map_err(|mut problems| {
        let graph = component.name().to_string();
        BlueprintError::Export(ExportError::Lower { graph, problem: problems.swap_remove(0) })
    })
}
