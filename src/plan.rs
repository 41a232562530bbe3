//! What a run will take: memory and operations of each stage, worked out from the graphs, and the ways that fit a limit.

use cogvx_calibration::plan::Scheme;
use cogvx_graphs::cost::{Cost, Held};
use cogvx_graphs::model::vae::{FRAME_CHUNK, LATENT_CHUNK, Part, first_chunk};
use cogvx_graphs::pass::Target;
use serde::Serialize;

use crate::blueprint::{Blueprint, BlueprintError, Form, Run, Video};
use crate::export::Component;
use crate::pipeline::{Stage, Tiles, decoded_frames};
use crate::runtime::{Arenas, CpuOptions};

/// What a process holds before a graph runs: ONNX Runtime, the tokenizer, and what is freed but kept for the next use. Measured
/// on Linux.
const PROCESS: u64 = 20 << 20;

/// What is to be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the options of a run")]
pub struct Wish {
    /// Frames, rows and columns of pixels; the model's own where not asked for.
    pub size: [Option<usize>; 3],
    /// Whether the transformer runs with and without the prompt.
    pub guided: bool,
    /// Whether it does so one after the other in any case.
    pub sequential_guidance: bool,
    /// Whether the VAE works in tiles in any case.
    pub vae_tiling: bool,
    /// Whether the run starts from a video.
    pub from_video: bool,
    /// Threads of ONNX Runtime.
    pub threads: usize,
    /// What memory is given for speed on a processor.
    pub cpu: CpuOptions,
}

/// What a run takes.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The model.
    pub model: String,
    /// The runtime its graphs are written for.
    pub target: &'static str,
    /// How its linear layers are quantized.
    pub quantization: Option<&'static str>,
    /// The video.
    pub video: Video,
    /// The stages in their order; each has the memory to itself.
    pub stages: Vec<StagePlan>,
    /// What memory is limited to.
    pub limit: Option<u64>,
}

/// A stage and the ways to do it.
#[derive(Clone, Debug, Serialize)]
pub struct StagePlan {
    /// Which.
    pub stage: Stage,
    /// The ways, the fastest first.
    pub ways: Vec<Way>,
    /// The way that was chosen, the first that fits.
    pub chosen: usize,
}

/// A way to do a stage.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    /// How.
    pub how: How,
    /// Operations: of the text encoder and the VAE in all, of the transformer in a step. Matrix products, convolutions and
    /// attention are counted, a multiplication and an addition as two.
    pub flops: u64,
    /// The most bytes that no file backs, predicted: what the machine must have. Of a GPU those on the device, with the weights.
    pub memory: u64,
    /// Bytes of weights, which are mapped from files on CPUs.
    pub weights: u64,
    /// The node that runs when most is held.
    pub at: String,
    /// What tensors are held then, the largest first.
    pub held: Vec<HeldBytes>,
}

/// A tensor that is held at the peak.
#[derive(Clone, Debug, Serialize)]
pub struct HeldBytes {
    /// The node that made it, or an input.
    pub what: String,
    /// Bytes.
    pub bytes: u64,
}

/// How a stage is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// There is one way.
    Plain,
    /// The transformer with and without the prompt in one run.
    Together,
    /// One after the other.
    Sequential,
    /// The VAE on whole frames.
    Whole,
    /// The VAE in tiles.
    Tiled,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum PlanError {
    #[error(transparent)]
    Blueprint(#[from] BlueprintError),
    /// The least that the stage takes which takes most.
    #[error("`--max-memory`: expected at least {} bytes, which {stage} takes{way}, found {limit}: {advice}", least)]
    Memory { least: u64, limit: u64, stage: &'static str, way: &'static str, advice: &'static str },
}

impl Plan {
    /// The plan for what is wished, within `limit` bytes if there is one.
    ///
    /// A checkpoint for a GPU is planned with weights in eight and then four bits where it does not fit otherwise. On CPUs that
    /// saves nothing of what is limited: weights are mapped, and kernels of quantized layers copy theirs.
    ///
    /// # Errors
    /// A model or a size that cannot be, or a limit that no way fits.
    pub fn new(blueprint: Blueprint, wish: &Wish, limit: Option<u64>) -> Result<Self, PlanError> {
        let Form { target, quantize, .. } = blueprint.form();
        let may_quantize = limit.is_some() && target != Target::Cpu && quantize.is_none() && !blueprint.is_bundle();
        let planned = Self::of(&blueprint, wish, limit);
        if !may_quantize || !matches!(planned, Err(PlanError::Memory { .. })) {
            return planned;
        }
        let in_bits = |blueprint: Blueprint, scheme| {
            let form = Form { quantize: Some(scheme), ..blueprint.form() };
            let blueprint = blueprint.in_form(form)?;
            let planned = Self::of(&blueprint, wish, limit);
            Ok::<_, PlanError>((blueprint, planned))
        };
        let (blueprint, planned) = in_bits(blueprint, Scheme::Int8Weight)?;
        if planned.is_ok() { planned } else { in_bits(blueprint, Scheme::Int4Weight)?.1 }
    }

    /// The plan for the model as it is.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of(blueprint: &Blueprint, wish: &Wish, limit: Option<u64>) -> Result<Self, PlanError> {
        let video = blueprint.video(wish.size)?;
        let planner = Planner { blueprint, wish, video };
        let mut stages = vec![(Stage::Text, vec![planner.text()?])];
        if blueprint.takes_image() || wish.from_video {
            stages.push((Stage::Encode, planner.encode()?));
        }
        stages.push((Stage::Denoise, planner.denoise()?));
        stages.push((Stage::Decode, planner.decode()?));
        let stages = stages.into_iter().map(|(stage, ways)| {
            let chosen = limit.map_or(Some(0), |limit| ways.iter().position(|way| way.memory <= limit));
            let chosen = chosen.ok_or_else(|| too_little(stage, &ways, limit.unwrap_or(0), blueprint, wish))?;
            Ok(StagePlan { stage, ways, chosen })
        });
        let form = blueprint.form();
        Ok(Self {
            model: blueprint.name.clone(),
            target: match form.target {
                Target::Cpu => "cpu",
                Target::Cuda => "cuda",
                Target::TensorRt => "tensorrt",
            },
            quantization: form.quantize.map(Scheme::name),
            video,
            stages: stages.collect::<Result<_, PlanError>>()?,
            limit,
        })
    }

    /// Whether a stage is done this way.
    #[must_use]
    pub fn does(&self, how: How) -> bool {
        self.stages.iter().any(|stage| stage.way().how == how)
    }

    /// The most memory of all stages.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.stages.iter().map(|stage| stage.way().memory).max().unwrap_or(0)
    }
}

impl StagePlan {
    /// The way that was chosen.
    #[must_use]
    pub fn way(&self) -> &Way {
        &self.ways[self.chosen]
    }
}

/// What is said of a stage that no way makes fit.
fn too_little(stage: Stage, ways: &[Way], limit: u64, blueprint: &Blueprint, wish: &Wish) -> PlanError {
    let least = ways.iter().min_by_key(|way| way.memory);
    let on_gpu = blueprint.form().target != Target::Cpu;
    PlanError::Memory {
        least: least.map_or(0, |way| way.memory),
        limit,
        stage: match stage {
            Stage::Text => "the text encoder",
            Stage::Encode => "the VAE's encoder",
            Stage::Denoise => "the transformer",
            Stage::Decode => "the VAE's decoder",
        },
        way: least.map_or("", |way| way.how.words()),
        advice: match stage {
            _ if wish.cpu.arenas == Arenas::All => "without `--arena` it takes less",
            Stage::Text | Stage::Denoise if wish.cpu.prepack => "without `--prepack` it takes less",
            Stage::Text if on_gpu => "weights in fewer bits take less",
            Stage::Text => "nothing makes it less",
            _ => "fewer frames or a smaller video take less",
        },
    }
}

impl How {
    /// In words, to follow a verb.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Together => " with both texts together",
            Self::Sequential => " with one text after the other",
            Self::Whole => " on whole frames",
            Self::Tiled => " in tiles",
        }
    }
}

/// Predicts the ways of each stage.
struct Planner<'a> {
    blueprint: &'a Blueprint,
    wish: &'a Wish,
    video: Video,
}

impl Planner<'_> {
    fn cost(&self, run: Run) -> Result<Cost, BlueprintError> {
        self.blueprint.cost(run, &self.video, self.wish.threads, self.wish.cpu)
    }

    /// A way of which `costs` are runs one after the other, some of them several times, beside `more` bytes that the program holds.
    fn way(&self, how: How, costs: &[(usize, Cost)], more: u64) -> Way {
        // Beside what a graph takes there is what another one has left.
        let left = |of: usize| {
            let others = costs.iter().enumerate().filter(|(other, _)| *other != of);
            others.map(|(_, (_, cost))| cost.left).max().unwrap_or(0)
        };
        let taken = costs.iter().enumerate().map(|(i, (_, cost))| (cost.peak.bytes + left(i), cost));
        let most = taken.max_by_key(|(bytes, _)| *bytes);
        let (bytes, peak, weights) =
            most.map(|(bytes, cost)| (bytes, cost.peak.clone(), cost.weights)).unwrap_or_default();
        // The graphs of a stage share their weights, but each kernel copies its own.
        let packed: u64 = costs.iter().map(|(_, cost)| cost.packed).sum();
        let on_cpu = self.blueprint.form().target == Target::Cpu;
        let rest = if on_cpu { packed + more + PROCESS } else { weights };
        Way {
            how,
            flops: costs.iter().map(|(times, cost)| *times as u64 * cost.flops()).sum(),
            memory: bytes + rest,
            weights,
            at: peak.at,
            held: peak.held.into_iter().map(|Held { what, bytes, .. }| HeldBytes { what, bytes }).collect(),
        }
    }

    fn text(&self) -> Result<Way, BlueprintError> {
        let texts = if self.wish.guided { 2 } else { 1 };
        let cost = self.cost(Run::Text(texts))?;
        let embeddings = 4 * (texts * self.video.tokens[0] * self.blueprint.dit.text_embed_dim) as u64;
        Ok(self.way(How::Plain, &[(1, cost)], embeddings))
    }

    fn denoise(&self) -> Result<Vec<Way>, BlueprintError> {
        let [_, rows, columns] = self.video.latents;
        let dit = &self.blueprint.dit;
        let latents = 4 * (self.video.padded * dit.in_channels * rows * columns) as u64;
        let texts = 4 * (2 * self.video.tokens[0] * dit.text_embed_dim) as u64;
        let way = |how, batch, runs| {
            // Latents, the sampler's estimate, and predictions; the texts again where each is fed alone.
            let more = 5 * latents + if how == How::Sequential { texts } else { 0 };
            Ok::<_, BlueprintError>(self.way(how, &[(runs, self.cost(Run::Transformer(batch))?)], more))
        };
        match (self.wish.guided, self.wish.sequential_guidance) {
            (false, _) => Ok(vec![way(How::Plain, 1, 1)?]),
            (true, true) => Ok(vec![way(How::Sequential, 1, 2)?]),
            (true, false) => Ok(vec![way(How::Together, 2, 1)?, way(How::Sequential, 1, 2)?]),
        }
    }

    fn decode(&self) -> Result<Vec<Way>, BlueprintError> {
        let vae = &self.blueprint.vae;
        let [frames, rows, columns] = self.video.latents;
        let first = first_chunk(frames, LATENT_CHUNK);
        let nexts = (frames - first).div_ceil(LATENT_CHUNK);
        let run = |part, size: [usize; 2]| Run::Decoder(part, size);
        let pixels = decoded_frames(frames, vae.temporal_compression_ratio) * vae.out_channels;
        self.vae(Component::VaeDecoder, Tiles::decoding(vae), [rows, columns], nexts, pixels, run)
    }

    fn encode(&self) -> Result<Vec<Way>, BlueprintError> {
        let vae = &self.blueprint.vae;
        let [frames, rows, columns] = self.video.pixels;
        let frames = if self.wish.from_video { frames } else { 1 };
        let nexts = (frames - first_chunk(frames, FRAME_CHUNK)).div_ceil(FRAME_CHUNK);
        let run = |part, [rows, columns]: [usize; 2]| Run::Encoder(part, [frames, rows, columns]);
        let moments = ((frames - 1) / vae.temporal_compression_ratio + 1) * 2 * vae.latent_channels;
        self.vae(Component::VaeEncoder, Tiles::encoding(vae), [rows, columns], nexts, moments, run)
    }

    /// Both ways of a direction of the VAE; `channels` are those of all frames that it makes.
    fn vae(
        &self,
        component: Component,
        tiles: Tiles,
        [rows, columns]: [usize; 2],
        nexts: usize,
        channels: usize,
        run: impl Fn(Part, [usize; 2]) -> Run,
    ) -> Result<Vec<Way>, BlueprintError> {
        let costs = |sizes: &[[usize; 2]]| -> Result<Vec<(usize, Cost)>, BlueprintError> {
            let mut kinds: Vec<([usize; 2], usize)> = vec![];
            for &size in sizes {
                match kinds.iter_mut().find(|kind| kind.0 == size) {
                    Some(kind) => kind.1 += 1,
                    None => kinds.push((size, 1)),
                }
            }
            let mut costs = vec![];
            for (size, times) in kinds {
                costs.push((times, self.cost(run(Part::First, size))?));
                if nexts > 0 {
                    costs.push((times * nexts, self.cost(run(Part::Next, size))?));
                }
            }
            Ok(costs)
        };
        let scale = self.blueprint.vae.spatial_compression_ratio();
        let made = |[rows, columns]: [usize; 2]| {
            let pixels = if component == Component::VaeDecoder {
                rows * columns * scale * scale
            } else {
                rows * columns / scale / scale
            };
            4 * (channels * pixels) as u64
        };
        let can_tile =
            tiles.cut(rows, columns) && tiles.check(rows, columns).is_ok() && self.blueprint.form().shapes.is_none();
        let mut ways = vec![];
        if !(self.wish.vae_tiling && can_tile) {
            ways.push(self.way(How::Whole, &costs(&[[rows, columns]])?, 0));
        }
        if can_tile {
            let sizes = tiles.sizes(rows, columns);
            // The whole picture and the tile that is being made.
            let more = made([rows, columns]) + sizes.first().map_or(0, |&size| made(size));
            ways.push(self.way(How::Tiled, &costs(&sizes)?, more));
        }
        Ok(ways)
    }
}
