//! What a run will take: memory and operations of each stage, worked out from the graphs, and the ways that fit a limit.

use cogvx_calibration::plan::Scheme;
use cogvx_graphs::cost::{Cost, Held};
use cogvx_graphs::model::vae::{FRAME_CHUNK, LATENT_CHUNK, Part, first_chunk};
use cogvx_graphs::pass::Target;
use serde::Serialize;

use crate::blueprint::{Blueprint, BlueprintError, Form, Run, Video};
use crate::export::Component;
use crate::pipeline::{Stage, Streaming, Tiles, decoded_frames};
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
    /// Where weights are while they are not used.
    pub weights: Weights,
}

/// Where the weights of text encoder and transformer are while they are not used. On processors they are mapped in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weights {
    /// On the device; within a limit those of the text encoder, which runs once, may be streamed.
    #[default]
    Kept,
    /// On the device as far as they fit.
    KeptIfTheyFit,
    /// In their files, but for the blocks that fit within a limit.
    Streamed,
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
    /// Bytes of weights, which are mapped from files on CPUs; of those that are streamed none.
    pub weights: u64,
    /// The blocks whose weights are streamed, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<Streams>,
    /// The node that runs when most is held.
    pub at: String,
    /// What tensors are held then, the largest first.
    pub held: Vec<HeldBytes>,
}

/// Blocks whose weights come from their files each time they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Streams {
    /// How many they are.
    pub blocks: usize,
    /// How many before them keep theirs on the device; the last block does, too.
    pub kept: usize,
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
    /// What of a model for a GPU does not fit otherwise is planned with weights that are streamed, which changes no number but takes
    /// time in each step; before that comes a checkpoint's transformer in eight bits, and last one in four. On CPUs neither saves
    /// anything of what is limited: weights are mapped, and kernels of quantized layers copy theirs.
    ///
    /// # Errors
    /// A model or a size that cannot be, or a limit that no way fits.
    pub fn new(mut blueprint: Blueprint, wish: &Wish, limit: Option<u64>) -> Result<Self, PlanError> {
        use Weights::{Kept, KeptIfTheyFit};
        let form = blueprint.form();
        let may_quantize = form.target != Target::Cpu && form.quantize.is_none() && !blueprint.is_bundle();
        let mut planned = Self::of(&blueprint, wish, limit);
        let instead = [
            (Some(Scheme::Int8Weight), Kept),
            (None, KeptIfTheyFit),
            (Some(Scheme::Int8Weight), KeptIfTheyFit),
            (Some(Scheme::Int4Weight), KeptIfTheyFit),
        ];
        for (scheme, weights) in instead {
            if limit.is_none() || !matches!(planned, Err(PlanError::Memory { .. })) {
                break;
            }
            let may = if scheme.is_some() { may_quantize } else { form.target == Target::Cuda };
            if may && wish.weights <= weights {
                blueprint = blueprint.in_form(Form { quantize: scheme.or(form.quantize), ..form })?;
                planned = Self::of(&blueprint, &Wish { weights, ..*wish }, limit);
            }
        }
        planned
    }

    /// The plan for the model as it is.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of(blueprint: &Blueprint, wish: &Wish, limit: Option<u64>) -> Result<Self, PlanError> {
        let video = blueprint.video(wish.size)?;
        let planner = Planner { blueprint, wish, video, limit };
        let mut stages = vec![(Stage::Text, planner.text()?)];
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

    /// How many blocks keep their weights on the device in the ways that were chosen.
    #[must_use]
    pub fn streaming(&self) -> Streaming {
        let kept = |of: Stage| self.stages.iter().find(|s| s.stage == of)?.way().streams.map(|streams| streams.kept);
        Streaming { text_encoder: kept(Stage::Text), transformer: kept(Stage::Denoise) }
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
        stage: stage.graph(),
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
    limit: Option<u64>,
}

impl Planner<'_> {
    fn cost(&self, run: Run) -> Result<Cost, BlueprintError> {
        self.cost_keeping(None, run)
    }

    /// With the weights of so many blocks on the device, if not all.
    fn cost_keeping(&self, blocks: Option<usize>, run: Run) -> Result<Cost, BlueprintError> {
        self.blueprint.cost(run, &self.video, self.wish.threads, self.wish.cpu, blocks)
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
        // The graphs of a stage share weights that are mapped, but each kernel copies its own, and each graph on a GPU has its own.
        let packed: u64 = costs.iter().map(|(_, cost)| cost.packed).sum();
        let on_cpu = self.blueprint.form().target == Target::Cpu;
        let graphs = if matches!(how, How::Whole | How::Tiled) { 2 } else { 1 };
        let weights = if on_cpu { weights } else { graphs * weights };
        let rest = if on_cpu { packed + more + PROCESS } else { weights };
        Way {
            how,
            flops: costs.iter().map(|(times, cost)| *times as u64 * cost.flops()).sum(),
            memory: bytes + rest,
            weights,
            streams: None,
            at: peak.at,
            held: peak.held.into_iter().map(|Held { what, bytes, .. }| HeldBytes { what, bytes }).collect(),
        }
    }

    /// A way to run a graph of blocks so many times with as many weights on the device as the limit allows, and those of one block
    /// where there is none; no such way where no weights are streamed then.
    fn streamed(&self, how: How, run: Run, runs: usize, more: u64) -> Result<Option<Way>, BlueprintError> {
        let least = self.cost_keeping(Some(1), run)?;
        let (blocks, weights) = (least.streamed, least.weights);
        if blocks == 0 {
            return Ok(None);
        }
        let of_a_block = (self.cost(run)?.weights - weights) / blocks as u64;
        let least = self.way(how, &[(runs, least)], more);
        let room = self.limit.map_or(0, |limit| limit.saturating_sub(least.memory) / of_a_block.max(1));
        let more_blocks = usize::try_from(room).unwrap_or(blocks).min(blocks - 1);
        let kept = 1 + more_blocks;
        let way = self.way(how, &[(runs, self.cost_keeping(Some(kept), run)?)], more);
        Ok(Some(Way { streams: Some(Streams { blocks: blocks - more_blocks, kept }), ..way }))
    }

    /// Whether weights can be streamed: where they are mapped there is nothing to gain, and engines have their own.
    fn may_stream(&self) -> bool {
        self.blueprint.form().target == Target::Cuda
    }

    fn text(&self) -> Result<Vec<Way>, BlueprintError> {
        let texts = if self.wish.guided { 2 } else { 1 };
        let embeddings = 4 * (texts * self.video.tokens[0] * self.blueprint.dit.text_embed_dim) as u64;
        let mut ways = vec![self.way(How::Plain, &[(1, self.cost(Run::Text(texts))?)], embeddings)];
        if self.may_stream() && (self.limit.is_some() || self.wish.weights == Weights::Streamed) {
            let streamed = self.streamed(How::Plain, Run::Text(texts), 1, embeddings)?;
            ways = self.among(ways, streamed.into_iter().collect());
        }
        Ok(ways)
    }

    /// The ways with all weights on the device, if they may be there, and where none of them fits those without.
    fn among(&self, whole: Vec<Way>, streamed: Vec<Way>) -> Vec<Way> {
        let fits = self.limit.is_some_and(|limit| whole.iter().any(|way| way.memory <= limit));
        match self.wish.weights {
            Weights::Streamed if !streamed.is_empty() => streamed,
            _ if fits => whole,
            _ => [whole, streamed].concat(),
        }
    }

    fn denoise(&self) -> Result<Vec<Way>, BlueprintError> {
        let [_, rows, columns] = self.video.latents;
        let dit = &self.blueprint.dit;
        let latents = 4 * (self.video.padded * dit.in_channels * rows * columns) as u64;
        let texts = 4 * (2 * self.video.tokens[0] * dit.text_embed_dim) as u64;
        // Latents, the sampler's estimate, and predictions; the texts again where each is fed alone.
        let more = |how| 5 * latents + if how == How::Sequential { texts } else { 0 };
        let hows: &[_] = match (self.wish.guided, self.wish.sequential_guidance) {
            (false, _) => &[(How::Plain, 1, 1)],
            (true, true) => &[(How::Sequential, 1, 2)],
            (true, false) => &[(How::Together, 2, 1), (How::Sequential, 1, 2)],
        };
        let whole = hows.iter().map(|&(how, batch, runs)| {
            let cost = self.cost(Run::Transformer(batch))?;
            Ok(self.way(how, &[(runs, cost)], more(how)))
        });
        let whole = whole.collect::<Result<Vec<_>, BlueprintError>>()?;
        if !self.may_stream() || self.wish.weights == Weights::Kept {
            return Ok(whole);
        }
        let streamed =
            hows.iter().map(|&(how, batch, runs)| self.streamed(how, Run::Transformer(batch), runs, more(how)));
        let streamed = streamed.collect::<Result<Vec<_>, BlueprintError>>()?;
        Ok(self.among(whole, streamed.into_iter().flatten().collect()))
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
