//! A checkpoint becomes a bundle: graphs built, weights linked, everything in place at once.

pub(crate) mod convert;
mod error;
mod excerpt;
mod lora;
mod options;
mod quantized;
mod range;
mod storage;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cogvx_calibration::attend::Attend;
use cogvx_calibration::observe::Observe;
use cogvx_calibration::plan::{Plan, Scheme};
use cogvx_calibration::probe::Probing;
use cogvx_calibration::quantize::Quantize;
use cogvx_calibration::table::Table;
use cogvx_graphs::config::{DitConfig, PipelineClass, PipelineIndex, T5Config, VaeConfig};
use cogvx_graphs::model::vae::{FRAME_CHUNK, LATENT_CHUNK, first_chunk};
use cogvx_graphs::model::{dit, t5, vae};
use cogvx_graphs::pass::fuse::fuse;
use cogvx_graphs::pass::{self, Lower, Precision, Target};
use cogvx_graphs::source::{resolve_inside, root_of};
use cogvx_graphs::{DType, Dim, Graph, Problem, VideoDims, Weights, onnx};

use crate::bundle::{self, BundleWriter, Manifest, Origin};
use crate::calibrate::{fingerprint, vae_fingerprint};
use crate::scheduler::{SchedulerConfig, SchedulerError};
use crate::tokenizer::Tokenizer;

pub use error::ExportError;
use lora::Merges;
pub use lora::{Lora, LoraError, LoraProblem, scaling as lora_scaling};
pub use options::{Component, ExportOptions, LayerChoice, VideoShape};
pub(crate) use options::{KERNELS, MODEL};
use storage::Storage;

/// What an export did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// Where the bundle is.
    pub output: PathBuf,
    /// Each graph, once where there are two forms of it.
    pub graphs: Vec<GraphReport>,
    /// Bytes written by cogvx: graphs and converted weights.
    pub written: u64,
    /// Bytes that are hard links into the checkpoint.
    pub linked: u64,
    /// Bytes copied from the checkpoint.
    pub copied: u64,
    /// With [`ExportOptions::observe`]: the place that each layer reads from.
    #[serde(skip)]
    pub observed: BTreeMap<String, String>,
    /// The layers that are quantized, `<component>/<weight>`.
    #[serde(skip)]
    pub quantized: Vec<String>,
    /// Values kept in `float32` in a component that computes in `float16`, with their largest magnitudes in calibration.
    pub fp32_islands: BTreeMap<String, f32>,
}

/// What became of one graph.
#[derive(Debug, Clone, serde::Serialize)]
pub struct GraphReport {
    /// Path in the bundle.
    pub file: String,
    /// Nodes.
    pub nodes: usize,
    /// Weights read from files beside the graph.
    pub external: usize,
    /// Weights in the graph file itself.
    pub inline: usize,
    /// Weights stored in another precision than the checkpoint's.
    pub converted: usize,
    /// Weights with LoRAs merged into them.
    pub merged: usize,
    /// Weights in few bits.
    pub quantized: usize,
    /// Opset of ONNX's own operators.
    pub opset: i64,
}

/// The configurations of a checkpoint, found to fit together.
pub(crate) struct Configs {
    pub index: PipelineIndex,
    pub text: T5Config,
    pub dit: DitConfig,
    pub vae: VaeConfig,
}

/// Export `checkpoint`, a diffusers-layout directory, to the bundle `output`.
///
/// `started` is told the path of each graph before it is built.
///
/// # Errors
/// What is wrong with the checkpoint, the options or the place for the bundle; nothing is left at `output` then.
pub fn export(
    checkpoint: &Path,
    output: &Path,
    options: &ExportOptions,
    mut started: impl FnMut(&str),
) -> Result<Report, ExportError> {
    options.check_scheme()?;
    let mut configs = read_configs(checkpoint)?;
    if let Some(blocks) = options.first_blocks {
        configs.cut(blocks);
    }
    let sizes = Sizes::new(&configs, options)?;
    let merges = open_loras(checkpoint, options)?;
    let writer = BundleWriter::create(output, Some(checkpoint), options.overwrite)?.until(options.stop.clone());
    let table = open_table(checkpoint, options)?;
    let mut bundle = Exporter {
        options,
        table: table.as_ref(),
        writer: &writer,
        graphs: vec![],
        components: BTreeMap::new(),
        accuracy: DType::F32,
        observed: BTreeMap::new(),
        quantized: vec![],
        fp32_islands: BTreeMap::new(),
    };

    for component in &options.components {
        let folder = checkpoint.join(component.checkpoint_folder());
        let mut weights = Weights::open(&folder, component.stem())?;
        if let Some(blocks) = options.first_blocks {
            weights.retain(|name| excerpt::has(name, blocks));
        }
        let mut graphs = vec![];
        for (name, part) in component.graphs() {
            started(&format!("{}/{name}", component.name()));
            let graph = match component {
                Component::TextEncoder => t5::build(&configs.text, &weights, &sizes.tokens)?,
                Component::Transformer => dit::build(&configs.dit, &weights, &sizes.latents, &sizes.tokens)?,
                Component::VaeDecoder => vae::decoder(&configs.vae, &weights, sizes.decoder(*part), *part)?,
                Component::VaeEncoder => vae::encoder(&configs.vae, &weights, sizes.encoder(*part), *part)?,
            };
            graphs.push((*name, graph));
        }
        let merges = if *component == Component::Transformer { &merges } else { &Merges::default() };
        bundle.add(*component, &weights, merges, graphs)?;
    }
    copy_folder(&writer, checkpoint, "tokenizer")?;
    copy_folder(&writer, checkpoint, "scheduler")?;

    let Exporter { graphs, components, accuracy, observed, quantized, fp32_islands, .. } = bundle;
    let mut manifest = manifest(checkpoint, &configs, options, components, accuracy)?;
    if options.first_blocks.is_some() {
        configs.describe_cut(&mut manifest.config);
    }
    manifest.fp32_islands.clone_from(&fp32_islands);
    let of_vae = |layer: &String| layer.starts_with(Component::VaeDecoder.name());
    manifest.vae_quantization = quantized.iter().any(of_vae).then(|| Scheme::Int8Static.name().into());
    // All layers may have been left in float.
    manifest.quantization = manifest.quantization.filter(|_| !quantized.iter().all(of_vae));
    let output = writer.finish(manifest)?;
    let files = Manifest::read(&output)?.files;
    let bytes = |origin| files.iter().filter(|f| f.origin == origin).map(|f| f.bytes).sum();
    Ok(Report {
        written: bytes(Origin::Written),
        linked: bytes(Origin::Linked),
        copied: bytes(Origin::Copied),
        output,
        graphs,
        observed,
        quantized,
        fp32_islands,
    })
}

/// The calibration table, found to be of this checkpoint.
fn open_table(checkpoint: &Path, options: &ExportOptions) -> Result<Option<Table>, ExportError> {
    let Some(path) = &options.calibration else { return Ok(None) };
    let table = Table::open(path)?;
    table.check(path, &fingerprint(checkpoint, &options.loras)?)?;
    // GPUs may compute it in `float16`: then it matters, too, how large its values become.
    let seen = table.vae.is_some() && options.target != Target::Cpu;
    if options.quantize_vae || seen && options.components.contains(&Component::VaeDecoder) {
        table.check_vae(path, &vae_fingerprint(checkpoint)?)?;
    }
    Ok(Some(table))
}

/// The LoRAs, found to fit the transformer.
fn open_loras(checkpoint: &Path, options: &ExportOptions) -> Result<Merges, ExportError> {
    if options.loras.is_empty() {
        return Ok(Merges::default());
    }
    let transformer = Component::Transformer;
    if !options.components.contains(&transformer) {
        Err(LoraError::NoTransformer)?;
    }
    let weights = Weights::open(&checkpoint.join(transformer.checkpoint_folder()), transformer.stem())?;
    Ok(Merges::open(&options.loras, &weights)?)
}

/// Read and check everything but the weights.
pub(crate) fn read_configs(checkpoint: &Path) -> Result<Configs, ExportError> {
    let index_file = checkpoint.join("model_index.json");
    let index = PipelineIndex::from_json(&index_file)?;
    let [text_file, dit_file, vae_file] =
        ["text_encoder", "transformer", "vae"].map(|component| checkpoint.join(component).join("config.json"));
    let configs = Configs {
        text: T5Config::from_json(&text_file)?,
        dit: DitConfig::from_json(&dit_file)?,
        vae: VaeConfig::from_json(&vae_file)?,
        index,
    };
    Tokenizer::open(&checkpoint.join("tokenizer"))?;
    let scheduler_file = checkpoint.join("scheduler/scheduler_config.json");
    let kind = SchedulerConfig::open(&scheduler_file)?.kind();
    kind.map_err(|source| SchedulerError::In { path: scheduler_file, source: Box::new(source) })?;

    let unsupported = |file: &Path, feature| Err(ExportError::Unsupported { file: file.into(), feature });
    if configs.dit.patch_size_t.is_some() && !configs.dit.use_rotary_positional_embeddings {
        unsupported(&dit_file, "patches in time without rotary positions")?;
    }
    let fits = |field, expected, with, found| {
        let file = dit_file.clone();
        if expected == found { Ok(()) } else { Err(ExportError::Mismatch { file, field, expected, with, found }) }
    };
    fits("text_embed_dim", configs.text.d_model, "the text encoder's `d_model`", configs.dit.text_embed_dim)?;
    let (channels, of) = match configs.index.class {
        PipelineClass::Image => (2 * configs.vae.latent_channels, "the VAE's `latent_channels` of noise and image"),
        PipelineClass::Text | PipelineClass::Video => (configs.vae.latent_channels, "the VAE's `latent_channels`"),
    };
    fits("in_channels", channels, of, configs.dit.in_channels)?;
    if let Some(width) = configs.dit.ofs_embed_dim {
        fits("ofs_embed_dim", configs.dit.time_embed_dim, "`time_embed_dim`", width)?;
    }
    fits("out_channels", configs.vae.latent_channels, "the VAE's `latent_channels`", configs.dit.out_channels)?;
    fits(
        "temporal_compression_ratio",
        configs.vae.temporal_compression_ratio,
        "the VAE",
        configs.dit.temporal_compression_ratio,
    )?;
    Ok(configs)
}

/// Sizes of the graphs, fixed or left open.
struct Sizes {
    tokens: Dim,
    latents: VideoDims,
    /// Of the decoder's and the encoder's two graphs.
    decoder: [VideoDims; 2],
    encoder: [VideoDims; 2],
}

impl Sizes {
    fn new(configs: &Configs, options: &ExportOptions) -> Result<Self, ExportError> {
        let Some(shape) = options.shapes else {
            let dynamic = VideoDims::dynamic();
            let frames = |n| VideoDims { frames: Dim::Fixed(n), ..dynamic.clone() };
            return Ok(Self {
                tokens: Dim::named("tokens"),
                latents: learned_latents(configs).unwrap_or(dynamic.clone()),
                decoder: [dynamic.clone(), frames(LATENT_CHUNK)],
                encoder: [dynamic.clone(), frames(FRAME_CHUNK)],
            });
        };
        let [frames, height, width] = shape.latents(&configs.vae, configs.dit.patch_size)?;
        let padded = frames.next_multiple_of(configs.dit.patch_size_t.unwrap_or(1));
        let wanted = VideoDims::fixed(padded, height, width);
        if let Some(learned) = learned_latents(configs).filter(|learned| *learned != wanted) {
            let size = |d: &VideoDims| format!("{}x{}x{}", d.frames, d.height, d.width);
            let expected = format!("{}, the size of the learned positions", size(&learned));
            return Err(ExportError::Shape { axis: "latents", expected, found: size(&wanted) });
        }
        let latents = |frames| VideoDims::fixed(frames, height, width);
        let pixels = |frames| VideoDims::fixed(frames, shape.height, shape.width);
        // An image-to-video model encodes one image.
        let encoded = if configs.index.class == PipelineClass::Image { 1 } else { shape.frames };
        Ok(Self {
            tokens: Dim::Fixed(configs.dit.max_text_seq_length),
            latents: latents(padded),
            decoder: [latents(first_chunk(frames, LATENT_CHUNK)), latents(LATENT_CHUNK)],
            encoder: [pixels(first_chunk(encoded, FRAME_CHUNK)), pixels(FRAME_CHUNK)],
        })
    }

    fn decoder(&self, part: vae::Part) -> &VideoDims {
        &self.decoder[usize::from(part == vae::Part::Next)]
    }

    fn encoder(&self, part: vae::Part) -> &VideoDims {
        &self.encoder[usize::from(part == vae::Part::Next)]
    }
}

/// The one latent size of a model with learned positions.
fn learned_latents(configs: &Configs) -> Option<VideoDims> {
    let [frames, rows, columns] = configs.dit.use_learned_positional_embeddings.then(|| configs.dit.sample_grid())?;
    let patch = configs.dit.patch_size;
    Some(VideoDims::fixed(frames, rows * patch, columns * patch))
}

/// The bundle being filled.
struct Exporter<'a> {
    options: &'a ExportOptions,
    /// What layers read, if that is known.
    table: Option<&'a Table>,
    writer: &'a BundleWriter,
    graphs: Vec<GraphReport>,
    components: BTreeMap<String, bundle::Component>,
    /// The coarsest precision of arithmetic and of converted weights.
    accuracy: DType,
    observed: BTreeMap<String, String>,
    quantized: Vec<String>,
    fp32_islands: BTreeMap<String, f32>,
}

impl Exporter<'_> {
    /// Choose precision and target of a component's graphs, then write them and the weights they share.
    fn add(
        &mut self,
        component: Component,
        weights: &Weights,
        merges: &Merges,
        mut graphs: Vec<(&'static str, Graph)>,
    ) -> Result<(), ExportError> {
        let compute = self.options.compute(weights);
        if let (Some(table), Some(path), DType::F16) = (self.table, &self.options.calibration, compute) {
            let islands;
            (graphs, islands) = range::keep_large_wide(component, graphs, (table, path), self.options.allow_overflow)?;
            self.fp32_islands.extend(islands);
        }
        // Graphs of a component that share weights differ in no linear layer.
        let plan = match self.options.quantize {
            Some(scheme) => {
                Some(quantized::plan(scheme, self.options, self.table, (component, weights, merges), &graphs[0].1)?)
            }
            None => None,
        };
        let layers = plan.iter().flat_map(|plan| plan.layers.keys().chain(plan.convs.keys()));
        self.quantized.extend(layers.map(|layer| format!("{}/{layer}", component.name())));
        let mut lowered = vec![];
        for (name, graph) in &graphs {
            let failed = |mut problems: Vec<Problem>| ExportError::Lower {
                graph: format!("{}/{name}", component.name()),
                problem: problems.swap_remove(0),
            };
            let observed = self.options.observe.map(|rows| {
                let mut observe = Observe::new(rows);
                let graph = pass::run(&mut observe, graph);
                let name = |weight: &String| format!("{}/{weight}", component.name());
                self.observed.extend(observe.layers().iter().map(|(layer, place)| (name(layer), name(place))));
                graph
            });
            let observed = observed.transpose().map_err(failed)?;
            let graph = observed.as_ref().unwrap_or(graph);
            let is_asked = component == Component::Transformer && !self.options.attend.is_empty();
            let attended = is_asked.then(|| pass::run(&mut Attend::new(&self.options.attend), graph));
            let attended = attended.transpose().map_err(failed)?;
            let graph = attended.as_ref().unwrap_or(graph);
            let probe = self.options.probe.as_ref().filter(|_| component == Component::Transformer);
            let probed = probe.map(|probe| pass::run(&mut Probing::new(probe), graph)).transpose().map_err(failed)?;
            if let Some((probe, graph)) = probe.filter(|probe| probe.alone).zip(probed.as_ref()) {
                graph.keep_outputs(|name| probe.tell.contains(name));
            }
            let graph = probed.as_ref().unwrap_or(graph);
            let made = lower(graph, plan.as_ref(), compute, self.options.precision, self.options.target);
            let made = made.map_err(failed)?;
            // A second graph of the same weights, in operators that cogvx has kernels for.
            let is_fused = self.options.target == Target::Cpu && *name == options::MODEL;
            let fused = if is_fused { fuse(&made).map_err(failed)? } else { None };
            lowered.push((*name, made));
            lowered.extend(fused.map(|graph| (options::KERNELS, graph)));
        }
        let mut storage = Storage::plan(
            weights,
            merges,
            plan.as_ref().map(|plan| (plan, self.table)),
            lowered.iter().map(|(_, graph)| graph),
        );
        let mut files = vec![];
        for (name, graph) in &lowered {
            let [external, inline, converted, merged, quantized] = storage.counts(graph);
            let stored = self.options.precision.filter(|_| converted > 0).unwrap_or(DType::F32);
            self.accuracy = options::coarsest([self.accuracy, compute, stored]);
            let model = onnx::serialize(graph, component.name(), |weight| storage.place(weight))?;
            let file = format!("{}/{name}", component.name());
            self.writer.add_bytes(&file, &model.bytes)?;
            let (nodes, opset) = (graph.nodes().len(), model.opset);
            let report =
                GraphReport { file: file.clone(), nodes, external, inline, converted, merged, quantized, opset };
            if *name != options::KERNELS {
                self.graphs.push(report);
            }
            files.push(bundle::Graph { file, opset, inputs: ports(&model.inputs), outputs: ports(&model.outputs) });
        }
        let weights = storage.write(self.writer, component.name(), self.options.weights)?;
        self.components.insert(component.name().into(), bundle::Component { graphs: files, weights });
        Ok(())
    }
}

/// The graph that runs: `graph` with the layers of `plan` quantized, in these precisions of arithmetic and storage, written for
/// `target`.
pub(crate) fn lower(
    graph: &Graph,
    plan: Option<&Plan>,
    compute: DType,
    stored: Option<DType>,
    target: Target,
) -> Result<Graph, Vec<Problem>> {
    let quantized = plan.map(|plan| pass::run(&mut Quantize::new(plan, graph), graph)).transpose()?;
    let graph = quantized.as_ref().unwrap_or(graph);
    let graph = pass::run(&mut Precision::new(compute, stored), graph)?;
    pass::run(&mut Lower::new(target), &graph)
}

fn ports(values: &[(String, cogvx_graphs::op::Type)]) -> Vec<bundle::Port> {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(n) => bundle::Dim::Fixed(*n as u64),
        Dim::Symbol(_) => bundle::Dim::Symbol(dim.to_string()),
    };
    let port = |(name, r#type): &(String, cogvx_graphs::op::Type)| bundle::Port {
        name: name.clone(),
        dtype: r#type.dtype,
        shape: r#type.shape.iter().map(dim).collect(),
    };
    values.iter().map(port).collect()
}

/// Copy the plain files of a small folder.
fn copy_folder(writer: &BundleWriter, checkpoint: &Path, name: &str) -> Result<(), ExportError> {
    let folder = checkpoint.join(name);
    let io = |source| ExportError::Io { path: folder.clone(), source };
    let root = root_of(&folder)?;
    for entry in fs::read_dir(&folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let file = path.file_name().and_then(|f| f.to_str());
        if let Some(file) = file.filter(|f| path.is_file() && !f.starts_with('.')) {
            resolve_inside(&path, &root)?;
            writer.add_file_copy(&format!("{name}/{file}"), &path)?;
        }
    }
    Ok(())
}

fn manifest(
    checkpoint: &Path,
    configs: &Configs,
    options: &ExportOptions,
    components: BTreeMap<String, bundle::Component>,
    accuracy: DType,
) -> Result<Manifest, ExportError> {
    let json = |file: &str| -> Result<serde_json::Value, ExportError> {
        let path = checkpoint.join(file);
        let text = fs::read_to_string(&path).map_err(|source| ExportError::Io { path: path.clone(), source })?;
        // Read before, as a configuration: it is JSON.
        Ok(serde_json::from_str(&text).unwrap_or_default())
    };
    let config = [
        ("text_encoder", "text_encoder/config.json"),
        ("transformer", "transformer/config.json"),
        ("vae", "vae/config.json"),
        ("scheduler", "scheduler/scheduler_config.json"),
    ];
    let config = config.into_iter().map(|(name, file)| Ok((name.to_string(), json(file)?)));
    let name = checkpoint.canonicalize().ok().and_then(|p| p.file_name()?.to_str().map(String::from));
    let shapes = options.shapes.map_or_else(bundle::Shapes::default, |s| {
        let small = |n: usize| u32::try_from(n).ok();
        bundle::Shapes { frames: small(s.frames), height: small(s.height), width: small(s.width) }
    });
    Ok(Manifest {
        format_version: bundle::VERSION,
        cogvx: env!("CARGO_PKG_VERSION").into(),
        source: bundle::Source { name: name.unwrap_or_default(), class_name: configs.index.class.to_string() },
        precision: options.precision.map_or("checkpoint".into(), |p| options::precision_name(p).into()),
        accuracy: options::precision_name(accuracy).into(),
        quantization: options.quantize.map(|scheme| scheme.name().into()),
        vae_quantization: None,
        target: options::target_name(options.target).into(),
        shapes,
        loras: options.loras.iter().map(Lora::in_manifest).collect(),
        components,
        config: config.collect::<Result<_, ExportError>>()?,
        verdict: options.verdict.clone(),
        fp32_islands: BTreeMap::new(),
        files: vec![],
    })
}
