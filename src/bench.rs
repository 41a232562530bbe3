//! What a graph costs: seconds, processor time and memory of its runs, and which layers take them.

mod groups;
mod looped;
mod verdict;

use std::collections::BTreeMap;
use std::time::Instant;

use ndarray::{ArrayD, IxDyn};
use serde::Serialize;

use crate::pipeline::{Pipeline, PipelineError, Request, Start, Transformer, Vae};
use crate::rng::TorchGenerator;
use crate::runtime::{Input, NodeRun, Session};
use crate::stats::{Memory, Meter, cpu_seconds};

pub(crate) use groups::kind_of;
pub use groups::{GroupTime, by_kind, by_operator};
pub use looped::{LoopTiming, time_loop};
pub use verdict::{Verdict, kept_float, verdict};

/// A component that can be timed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// One prompt.
    TextEncoder,
    /// One prediction of one video, as in a step without guidance.
    Transformer,
    /// All latents of one video.
    VaeDecoder,
}

impl Part {
    /// All, in the order they run.
    pub const ALL: [Self; 3] = [Self::TextEncoder, Self::Transformer, Self::VaeDecoder];

    /// The component's name in bundles.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::Transformer => "transformer",
            Self::VaeDecoder => "vae_decoder",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Frames, rows and columns of the video; none: the checkpoint's.
    pub size: [Option<usize>; 3],
    /// Runs that count, after one that does not.
    pub repeat: usize,
    /// Whether each node is timed, too.
    pub profile: bool,
}

/// What one run took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Took {
    /// Seconds that passed.
    pub seconds: f64,
    /// Seconds of the processor, all threads together; absent where the system does not tell.
    pub cpu_seconds: Option<f64>,
}

/// A node and the least that its runs took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeTime {
    /// Its name: the layer's path, a slash and the operator.
    pub name: String,
    /// The operator whose kernel ran.
    pub op: String,
    /// Seconds.
    pub seconds: f64,
}

/// What a component took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Which.
    pub component: Part,
    /// Shape of its first input.
    pub shape: Vec<usize>,
    /// Seconds until it was loaded.
    pub load_seconds: f64,
    /// Each run that counts.
    pub runs: Vec<Took>,
    /// The most memory held while it was loaded and run.
    pub memory: Option<Memory>,
    /// Each node in the order of its first run, if that was asked for. A component of two graphs has those of both.
    #[serde(skip)]
    pub nodes: Vec<NodeTime>,
}

impl Timing {
    /// The least seconds of a run.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.runs.iter().map(|run| run.seconds).fold(f64::INFINITY, f64::min)
    }

    /// The least processor time of a run.
    #[must_use]
    pub fn cpu_seconds(&self) -> Option<f64> {
        self.runs.iter().filter_map(|run| run.cpu_seconds).reduce(f64::min)
    }
}

/// Load a component of `pipeline` and run it on random numbers; `ran` is told each run.
///
/// # Errors
/// A size the model cannot have, a bundle without the component, or a failure of the runtime.
pub fn time(
    pipeline: &Pipeline,
    part: Part,
    settings: Settings,
    mut ran: impl FnMut(usize),
) -> Result<Timing, PipelineError> {
    let mut meter = Meter::start();
    let began = Instant::now();
    let mut loaded = Loaded::new(pipeline, part, settings)?;
    let load_seconds = began.elapsed().as_secs_f64();
    let mut runs = vec![];
    for run in 0..=settings.repeat {
        let (began, before) = (Instant::now(), cpu_seconds());
        loaded.run()?;
        let seconds = began.elapsed().as_secs_f64();
        let cpu_seconds = cpu_seconds().zip(before).map(|(after, before)| after - before);
        // The first one fetches weights and memory.
        if run > 0 {
            runs.push(Took { seconds, cpu_seconds });
        }
        ran(run);
    }
    let memory = meter.as_mut().map(Meter::lap);
    let shape = loaded.shape();
    let nodes = loaded.profile()?.into_iter().flat_map(least).collect();
    Ok(Timing { component: part, shape, load_seconds, runs, memory, nodes })
}

/// A loaded component and its inputs.
enum Loaded<'a> {
    TextEncoder { graph: crate::pipeline::Loaded, ids: ArrayD<i64> },
    Transformer { model: Transformer<'a>, latents: ArrayD<f32>, text: ArrayD<f32> },
    VaeDecoder { model: Vae, latents: ArrayD<f32> },
}

impl<'a> Loaded<'a> {
    fn new(pipeline: &'a Pipeline, part: Part, settings: Settings) -> Result<Self, PipelineError> {
        let load = |graph| pipeline.load_with(part.name(), graph, settings.profile);
        let graph = || pipeline.load_blocks(part.name(), "model.onnx", settings.profile);
        if part == Part::TextEncoder {
            let ids = pipeline.tokenize(&["a red circle moving left"])?;
            return Ok(Self::TextEncoder { graph: graph()?, ids });
        }
        let request = request(pipeline, settings.size)?;
        let mut shape = pipeline.check(&request)?.shape;
        let mut generator = TorchGenerator::new(0);
        let mut random = |shape: &[usize]| {
            let numbers = generator.randn(shape.iter().product());
            ArrayD::from_shape_vec(IxDyn(shape), numbers).expect("as many numbers as the shape has")
        };
        if part == Part::VaeDecoder {
            let [batch, frames, _, height, width] = shape;
            let latents = random(&[batch, pipeline.vae.latent_channels, frames, height, width]);
            return Ok(Self::VaeDecoder { model: Vae::decoder([load("first.onnx")?, load("next.onnx")?]), latents });
        }
        // An image's latents are channels, too.
        shape[2] = pipeline.dit.in_channels;
        let text = [1, pipeline.dit.max_text_seq_length, pipeline.dit.text_embed_dim];
        let (latents, text) = (random(&shape), random(&text));
        Ok(Self::Transformer { model: Transformer::new(graph()?, &pipeline.dit, None), latents, text })
    }

    fn run(&mut self) -> Result<(), PipelineError> {
        match self {
            Self::TextEncoder { graph, ids } => drop(graph.run(&[("input_ids", Input::Integer(ids.view()))])?),
            Self::Transformer { model, latents, text } => drop(model.predict(latents, text, 500)?),
            Self::VaeDecoder { model, latents } => model.run(latents, |_| Ok(()))?,
        }
        Ok(())
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Self::TextEncoder { ids, .. } => ids.shape().to_vec(),
            Self::Transformer { latents, .. } | Self::VaeDecoder { latents, .. } => latents.shape().to_vec(),
        }
    }

    /// Of each graph: nodes of two may have the same name.
    fn profile(self) -> Result<Vec<Vec<NodeRun>>, PipelineError> {
        Ok(match self {
            Self::TextEncoder { graph, .. } => vec![graph.profile()?],
            Self::Transformer { model, .. } => vec![model.into_graph().profile()?],
            Self::VaeDecoder { model, .. } => {
                model.into_sessions().into_iter().map(Session::profile).collect::<Result<_, _>>()?
            }
        })
    }
}

/// A request of this size, frames, rows and columns, which the model can make.
fn request(pipeline: &Pipeline, [frames, height, width]: [Option<usize>; 3]) -> Result<Request, PipelineError> {
    let mut request = pipeline.request("")?;
    request.frames = frames.unwrap_or(request.frames);
    request.height = height.unwrap_or(request.height);
    request.width = width.unwrap_or(request.width);
    pipeline.check_sides(request.height, request.width)?;
    if pipeline.takes_image() {
        request.start = Start::Image(ArrayD::zeros(IxDyn(&[3, request.height, request.width])));
    }
    Ok(request)
}

/// The shortest run of each node: what else the machine does can only make one longer.
fn least(runs: Vec<NodeRun>) -> Vec<NodeTime> {
    let mut nodes: Vec<NodeTime> = vec![];
    let mut places = BTreeMap::new();
    for NodeRun { name, op, seconds } in runs {
        let place = *places.entry(name.clone()).or_insert(nodes.len());
        match nodes.get_mut(place) {
            Some(node) => node.seconds = node.seconds.min(seconds),
            None => nodes.push(NodeTime { name, op, seconds }),
        }
    }
    nodes
}
