//! A run's state in a file, to go on from after an end that was not planned.
//!
//! A safetensors file with the tensors `latents`, `previous` (DPM's clean estimate of the step before), `image_latents` (of
//! image-to-video models), each F32 `[1, frames, channels, height, width]`, and `generator` (I64 `[624]`, the Mersenne Twister's
//! words). Where steps leave work out ([`Shortcuts`](super::Shortcuts)) also `difference`, `clean.0` and `clean.1`, what
//! later steps make use of. `__metadata__` has `format` (`cogvx-run`), `version`, what the run is known by (see [`RunId`]), `done`
//! (steps), `generator_next`, `generator_spare` (bits, or nothing), the step `difference` is of and the timesteps `clean.0` and
//! `clean.1` are of, and `blake3`, the hash of all the rest.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use cogvx_graphs::weights::{Tensor, WeightsError};
use cogvx_graphs::{DType, Weights};
use ndarray::{ArrayD, IxDyn};

use super::shortcuts::Memory;
use super::{Pipeline, PipelineError, Request, Runs, Start, Walk};
use crate::pending;
use crate::rng::{GeneratorState, TorchGenerator};
use crate::scheduler::{Kind, Sampler};

/// Value of `format`.
const FORMAT: &str = "cogvx-run";
/// Value of `version`.
const VERSION: &str = "2";
/// The tensor of what the prompt changed, and the key of the step it is of.
const DIFFERENCE: &str = "difference";
/// The tensors of the last clean estimates, and the keys of their timesteps.
const CLEAN: [&str; 2] = ["clean.0", "clean.1"];
/// Words of the generator.
const WORDS: usize = 624;
/// Numbers that are turned into bytes at a time.
const PIECE: usize = 1 << 14;
/// Most characters of a value in a message.
const SHOWN: usize = 80;

/// Why a run cannot go on from a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum StateError {
    #[error(transparent)]
    File(#[from] WeightsError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error("cannot write `{}`: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("`{}`: expected the state of a run as `cogvx run --save-state` writes it: `__metadata__` `{key}` of {expected}, found {found}", path.display())]
    Metadata { path: PathBuf, key: String, expected: String, found: String },
    #[error("`{}`: `{name}`: expected {expected}, found {found}", path.display())]
    Tensor { path: PathBuf, name: String, expected: String, found: String },
    /// It is of another run.
    #[error("`{}`: expected the state of a run whose {key} is `{expected}`, found `{found}`", path.display())]
    Other { path: PathBuf, key: String, expected: String, found: String },
    #[error("`{}`: expected contents with the hash in its `__metadata__`, found others: the file is damaged", path.display())]
    Damaged { path: PathBuf },
}

/// What a run is known by: all that its latents depend on, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunId(BTreeMap<String, String>);

impl RunId {
    /// Names of what is in it, as of the options of `cogvx run`.
    const KEYS: [&str; 15] = [
        "bundle",
        "prompt",
        "negative_prompt",
        "seed",
        "steps",
        "guidance",
        "dynamic_cfg",
        "frames",
        "height",
        "width",
        "scheduler",
        "start",
        "guidance_interval",
        "guidance_every",
        "step_cache",
    ];
}

/// The contents of a state file.
#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    id: RunId,
    done: usize,
    latents: ArrayD<f32>,
    previous: Option<ArrayD<f32>>,
    image_latents: Option<ArrayD<f32>>,
    memory: Memory,
    generator: GeneratorState,
}

impl Pipeline {
    /// What runs of `request` are known by: the bundle's contents, the text, the numbers and the picture they start from.
    ///
    /// # Errors
    /// A bundle that cannot be read.
    pub fn run_id(&self, request: &Request) -> Result<RunId, PipelineError> {
        let bundle = self.bundle().fingerprint()?;
        let scheduler = match request.scheduler {
            Kind::Ddim => "ddim",
            Kind::Dpm => "dpm",
        };
        let start = match &request.start {
            Start::Noise => "noise".into(),
            Start::Image(image) => format!("image {}", hash(image)),
            Start::Video { frames, strength } => format!("video {} of strength {strength}", hash(frames)),
        };
        let [from, to] = request.shortcuts.guidance_interval;
        let values = [
            bundle,
            request.prompt.clone(),
            request.negative_prompt.clone(),
            request.seed.to_string(),
            request.steps.to_string(),
            request.guidance.to_string(),
            request.dynamic_cfg.to_string(),
            request.frames.to_string(),
            request.height.to_string(),
            request.width.to_string(),
            scheduler.into(),
            start,
            format!("{from}:{to}"),
            request.shortcuts.guidance_every.to_string(),
            request.shortcuts.step_cache.to_string(),
        ];
        Ok(RunId(RunId::KEYS.map(String::from).into_iter().zip(values).collect()))
    }

    /// The walk that the file at `path` holds, found to be one of `request`.
    ///
    /// # Errors
    /// A request the model cannot fulfil, no such file, another kind of file, the state of another run, or damage. Nothing larger
    /// than the request's latents is read.
    pub fn open_state(&self, path: &Path, request: &Request) -> Result<Walk, StateError> {
        let plan = self.check(request)?;
        let file = Weights::open_file(path)?;
        let head = Head::read(path, &file)?;
        head.id.is(&self.run_id(request)?, path)?;
        if let Some(latents) = file.get("latents").filter(|latents| latents.shape != plan.shape) {
            return Err(wrong(path, "latents", &format!("{:?}", plan.shape), &format!("{:?}", latents.shape)));
        }
        RunState::read(path, &file, head)?.walk(path, self.sampler(request, &plan)?)
    }
}

impl RunId {
    /// Compares the run that `self` was read from `path` for with the one that is to be made.
    fn is(&self, expected: &Self, path: &Path) -> Result<(), StateError> {
        for key in Self::KEYS {
            let [expected, found] = [expected, self].map(|id| id.0.get(key).map_or("", String::as_str));
            if expected != found {
                let key = if key == "bundle" { "bundle's fingerprint".into() } else { key.replace('_', "-") };
                let (path, expected, found) = (path.into(), shown(expected), shown(found));
                return Err(StateError::Other { path, key, expected, found });
            }
        }
        Ok(())
    }
}

impl Walk {
    /// Write the state to `path`, beside it first: whoever reads finds the state of this step or of one before. `id` tells what
    /// run this is.
    ///
    /// It is not flushed to the disk, which would take longer than some steps; what a power failure damages is found by its hash.
    ///
    /// # Errors
    /// What the system says.
    pub fn save(&self, path: &Path, id: &RunId) -> Result<(), StateError> {
        let failed = |source| StateError::Write { path: path.into(), source };
        let file = pending::builder(0o666).tempfile_in(pending::parent(path));
        let mut file = file.map_err(|e| failed(e.kind().into()))?;
        let previous = self.sampler.previous();
        let parts = Parts {
            id,
            done: self.done(),
            shape: self.latents.shape(),
            latents: self.latents.as_slice().unwrap_or_default(),
            previous: (!previous.is_empty()).then_some(previous),
            image_latents: self.image_latents.as_ref().and_then(|image| image.as_slice()),
            memory: &self.memory,
            generator: &self.generator.state(),
        };
        parts.write(file.as_file_mut()).map_err(failed)?;
        file.persist(path).map_err(|e| failed(e.error))?;
        Ok(())
    }
}

impl RunState {
    /// Read a state in memory, whatever run it is of; messages call it `path`.
    ///
    /// # Errors
    /// Another kind of file, or damage.
    pub fn from_memory(path: &Path, bytes: Vec<u8>) -> Result<Self, StateError> {
        let file = Weights::from_memory(None, [("model.safetensors".to_string(), bytes)].into())?;
        let head = Head::read(path, &file)?;
        Self::read(path, &file, head)
    }

    /// Write it to `file`.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, file: &mut impl Write) -> io::Result<()> {
        let slice = |array: &ArrayD<f32>| array.as_slice().map(<[f32]>::to_vec).unwrap_or_default();
        let [previous, image] = [&self.previous, &self.image_latents].map(|array| array.as_ref().map(slice));
        let parts = Parts {
            id: &self.id,
            done: self.done,
            shape: self.latents.shape(),
            latents: &slice(&self.latents),
            previous: previous.as_deref(),
            image_latents: image.as_deref(),
            memory: &self.memory,
            generator: &self.generator,
        };
        parts.write(file)
    }

    /// The walk of the steps of `sampler` that this is the state of.
    fn walk(self, path: &Path, mut sampler: Sampler) -> Result<Walk, StateError> {
        let Self { done, latents, previous, image_latents, memory, generator, .. } = self;
        let steps = sampler.timesteps().len();
        if done > steps {
            return Err(wrong_metadata(path, "done", &format!("at most {steps} steps"), &done.to_string()));
        }
        if sampler.keeps_previous(done) != previous.is_some() {
            let [expected, found] =
                if previous.is_some() { ["none", "one"] } else { ["the estimate that the sampler reads next", "none"] };
            return Err(wrong(path, "previous", expected, found));
        }
        let previous = previous.map(|array| array.into_raw_vec_and_offset().0).unwrap_or_default();
        sampler.go_on(done, previous).map_err(PipelineError::from)?;
        let generator = TorchGenerator::from_state(generator);
        let generator = generator.ok_or_else(|| wrong(path, "generator", "a generator's state", "another one"))?;
        // What was remembered is of steps before the next one.
        let next = sampler.timesteps().get(done).copied();
        let timesteps: Vec<_> = memory.clean.iter().map(|(timestep, _)| *timestep).chain(next).collect();
        if let Some(pair) = timesteps.windows(2).find(|pair| pair[0] <= pair[1]) {
            let expected = format!("a timestep above {}", pair[1]);
            return Err(wrong_metadata(path, CLEAN[0], &expected, &pair[0].to_string()));
        }
        if let Some((step, _)) = memory.difference.as_ref().filter(|(step, _)| *step >= done) {
            return Err(wrong_metadata(path, DIFFERENCE, &format!("a step before {done}"), &step.to_string()));
        }
        Ok(Walk { sampler, generator, latents, image_latents, memory, runs: Runs::default() })
    }

    fn read(path: &Path, file: &Weights, head: Head) -> Result<Self, StateError> {
        let Head { id, done, generator_next, generator_spare, metadata } = head;
        let known = ["generator", "image_latents", "latents", "previous", DIFFERENCE, CLEAN[0], CLEAN[1]];
        if let Some(tensor) = file.iter().find(|tensor| !known.contains(&tensor.name.as_str())) {
            return Err(wrong(path, &tensor.name, "no such tensor", "one"));
        }
        let of = |name: &str, dtype: DType, shape: Option<&[usize]>| -> Result<Option<Vec<u8>>, StateError> {
            let Some(tensor) = file.get(name) else { return Ok(None) };
            let expected = shape.map_or("[1, frames, channels, height, width]".into(), |shape| format!("{shape:?}"));
            let is_shaped = shape.map_or(tensor.shape.len() == 5 && tensor.len > 0, |shape| tensor.shape == shape);
            if tensor.dtype != dtype || !is_shaped {
                let found = format!("{} {:?}", tensor.dtype, tensor.shape);
                return Err(wrong(path, name, &format!("{dtype} {expected}"), &found));
            }
            Ok(Some(file.read(tensor)?))
        };
        let missing = |name| wrong(path, name, "a tensor", "none");
        let latents = of("latents", DType::F32, None)?.ok_or_else(|| missing("latents"))?;
        let shape = file.get("latents").map(|t: &Tensor| t.shape.clone()).unwrap_or_default();
        let previous = of("previous", DType::F32, Some(&shape))?;
        let image_latents = of("image_latents", DType::F32, Some(&shape))?;
        let remembered = |name: &'static str| of(name, DType::F32, Some(&shape));
        let (difference, [older, newer]) = (remembered(DIFFERENCE)?, CLEAN.map(remembered));
        let (older, newer) = (older?, newer?);
        let words = of("generator", DType::I64, Some(&[WORDS]))?.ok_or_else(|| missing("generator"))?;

        let mut hasher = begun(&metadata);
        let arrays = [Some(&latents), previous.as_ref(), image_latents.as_ref()];
        let remembered = [difference.as_ref(), older.as_ref(), newer.as_ref(), Some(&words)];
        for bytes in arrays.into_iter().chain(remembered).flatten() {
            hasher.update(bytes);
        }
        if metadata.get("blake3") != Some(&hex(&hasher)) {
            return Err(StateError::Damaged { path: path.into() });
        }

        let numbers = |name: &str, bytes: Vec<u8>| {
            let numbers: Vec<_> = bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
            if let Some(x) = numbers.iter().find(|x| !x.is_finite()) {
                return Err(wrong(path, name, "finite numbers", &x.to_string()));
            }
            Ok(ArrayD::from_shape_vec(IxDyn(&shape), numbers).expect("as many numbers as the shape has"))
        };
        let of_step = |name: &'static str| -> Result<i64, StateError> {
            let found = metadata.get(name).map_or("none", String::as_str);
            found.parse().map_err(|_| wrong_metadata(path, name, "a whole number", &format!("`{}`", shown(found))))
        };
        let difference = difference.map(|bytes| {
            let step = of_step(DIFFERENCE)?;
            let step =
                usize::try_from(step).map_err(|_| wrong_metadata(path, DIFFERENCE, "a step", &step.to_string()))?;
            Ok::<_, StateError>((step, numbers(DIFFERENCE, bytes)?))
        });
        let mut clean = vec![];
        for (name, bytes) in CLEAN.into_iter().zip([older, newer]) {
            if let Some(bytes) = bytes {
                clean.push((of_step(name)?, numbers(name, bytes)?));
            }
        }
        let memory = Memory { difference: difference.transpose()?, clean };
        let words = words.as_chunks().0.iter().map(|eight| u32::try_from(u64::from_le_bytes(*eight)));
        let words = words.collect::<Result<_, _>>();
        let words = words.map_err(|_| wrong(path, "generator", "words of 32 bits", "a larger number"))?;
        let generator = GeneratorState { words, next: generator_next, spare: generator_spare };
        if TorchGenerator::from_state(generator.clone()).is_none() {
            return Err(wrong_metadata(path, "generator_next", "a place among its words", &generator_next.to_string()));
        }
        Ok(Self {
            id,
            done,
            latents: numbers("latents", latents)?,
            previous: previous.map(|bytes| numbers("previous", bytes)).transpose()?,
            image_latents: image_latents.map(|bytes| numbers("image_latents", bytes)).transpose()?,
            memory,
            generator,
        })
    }
}

/// What the metadata say.
struct Head {
    id: RunId,
    done: usize,
    generator_next: usize,
    generator_spare: Option<u64>,
    metadata: BTreeMap<String, String>,
}

impl Head {
    fn read(path: &Path, file: &Weights) -> Result<Self, StateError> {
        let metadata = file.metadata(0)?;
        let text = |key: &str| metadata.get(key).map(String::as_str);
        for (key, expected) in [("format", FORMAT), ("version", VERSION)] {
            if text(key) != Some(expected) {
                let found = text(key).map_or("none".into(), |found| format!("`{}`", shown(found)));
                return Err(wrong_metadata(path, key, &format!("`{expected}`"), &found));
            }
        }
        let number = |key: &str| {
            let found = text(key).unwrap_or("none");
            found.parse().map_err(|_| wrong_metadata(path, key, "a whole number", &format!("`{}`", shown(found))))
        };
        let generator_spare = match text("generator_spare") {
            None | Some("") => None,
            Some(bits) => {
                let bad = |_| wrong_metadata(path, "generator_spare", "a whole number", &format!("`{}`", shown(bits)));
                Some(bits.parse().map_err(bad)?)
            }
        };
        let id = RunId::KEYS.iter().filter_map(|key| Some(((*key).to_string(), text(key)?.to_string())));
        Ok(Self {
            id: RunId(id.collect()),
            done: number("done")?,
            generator_next: number("generator_next")?,
            generator_spare,
            metadata,
        })
    }
}

/// What is written.
struct Parts<'a> {
    id: &'a RunId,
    done: usize,
    shape: &'a [usize],
    latents: &'a [f32],
    previous: Option<&'a [f32]>,
    image_latents: Option<&'a [f32]>,
    memory: &'a Memory,
    generator: &'a GeneratorState,
}

impl Parts<'_> {
    fn write(&self, file: &mut impl Write) -> io::Result<()> {
        let GeneratorState { words, next, spare } = self.generator;
        let words: Vec<u8> = words.iter().flat_map(|&word| u64::from(word).to_le_bytes()).collect();
        let mut metadata = self.id.0.clone();
        let Memory { difference, clean } = self.memory;
        let difference = difference.as_ref().map(|(step, array)| (DIFFERENCE, step.to_string(), array));
        let clean = CLEAN.into_iter().zip(clean).map(|(name, (timestep, array))| (name, timestep.to_string(), array));
        let mut arrays =
            vec![("latents", Some(self.latents)), ("previous", self.previous), ("image_latents", self.image_latents)];
        for (name, of, array) in difference.into_iter().chain(clean) {
            metadata.insert(name.into(), of);
            arrays.push((name, array.as_slice()));
        }
        let arrays: Vec<_> = arrays.into_iter().filter_map(|(name, array)| Some((name, array?))).collect();
        let spare = spare.map(|bits| bits.to_string()).unwrap_or_default();
        for (key, value) in [
            ("format", FORMAT.to_string()),
            ("version", VERSION.to_string()),
            ("done", self.done.to_string()),
            ("generator_next", next.to_string()),
            ("generator_spare", spare),
        ] {
            metadata.insert(key.into(), value);
        }
        let mut hasher = begun(&metadata);
        for (_, array) in &arrays {
            pieces(array, |bytes| {
                hasher.update(bytes);
                Ok(())
            })?;
        }
        hasher.update(&words);
        metadata.insert("blake3".into(), hex(&hasher));
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::json!(metadata));
        let mut end = 0;
        let mut entry = |name: &str, dtype: &str, shape: &[usize], bytes: usize| {
            let offsets = [end, end + bytes];
            end += bytes;
            header.insert(name.into(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        };
        for (name, array) in &arrays {
            entry(name, "F32", self.shape, 4 * array.len());
        }
        entry("generator", "I64", &[WORDS], words.len());
        let mut text = serde_json::Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::new(file);
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(&text)?;
        for (_, array) in &arrays {
            pieces(array, |bytes| file.write_all(bytes))?;
        }
        file.write_all(&words)?;
        file.flush()
    }
}

/// A hash of the metadata but the hash itself.
fn begun(metadata: &BTreeMap<String, String>) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    for (key, value) in metadata.iter().filter(|(key, _)| *key != "blake3") {
        hasher.update(format!("{key} {} {value}\n", value.len()).as_bytes());
    }
    hasher
}

fn hex(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex().to_string()
}

/// The bytes of `numbers`, a piece at a time.
fn pieces(numbers: &[f32], mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 * PIECE.min(numbers.len()));
    for piece in numbers.chunks(PIECE) {
        bytes.clear();
        bytes.extend(piece.iter().flat_map(|x| x.to_le_bytes()));
        each(&bytes)?;
    }
    Ok(())
}

fn hash(picture: &ArrayD<f32>) -> String {
    let mut hasher = blake3::Hasher::new();
    for &size in picture.shape() {
        hasher.update(&(size as u64).to_le_bytes());
    }
    for x in picture {
        hasher.update(&x.to_le_bytes());
    }
    hex(&hasher)[..32].to_string()
}

/// The start of a text, on one line.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(SHOWN) {
        let _ = write!(shown, "{}", c.escape_debug());
    }
    if text.chars().nth(SHOWN).is_some() { shown + "..." } else { shown }
}

fn wrong(path: &Path, name: &str, expected: &str, found: &str) -> StateError {
    StateError::Tensor { path: path.into(), name: shown(name), expected: expected.into(), found: found.into() }
}

fn wrong_metadata(path: &Path, key: &str, expected: &str, found: &str) -> StateError {
    StateError::Metadata { path: path.into(), key: key.into(), expected: expected.into(), found: found.into() }
}
