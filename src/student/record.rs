//! What a teacher reads and predicts while it makes videos: to measure and heal by, and for others to train on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cogvx_calibration::probe::Probe;
use cogvx_graphs::{DType, Weights};
use half::f16;
use ndarray::{ArrayD, Axis, IxDyn, concatenate};
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;
use serde_json::json;

use super::probed::{Probed, blocks_output};
use super::{Job, Options, StudentError, Teacher};
use crate::bundle::Place;
use crate::export::Component;
use crate::export::convert::decode;
use crate::pipeline::{Observer, PipelineError, Prompt, Request, Started};
use crate::runtime::Outputs;
use crate::scheduler::Sampler;

/// Value of `format` in `index.json`.
const FORMAT: &str = "cogvx-targets";
/// Tensors of a run that are the same in all its steps.
const TEXT: &str = "text";
const IMAGE: &str = "image_latents";
/// Of latents `[batch, frames, channels, height, width]`.
const CHANNELS: Axis = Axis(2);

/// What a teacher is run on.
#[derive(Clone, Debug, PartialEq)]
pub struct Runs {
    /// A video each; with an image where the teacher is an image-to-video model.
    pub prompts: Vec<Prompt>,
    /// Seed of the first one's noise; the next one's is one greater.
    pub seed: u64,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale; up to 1 means none.
    pub guidance: f64,
    /// Frames, rows and columns, where they are not the checkpoint's.
    pub size: [Option<usize>; 3],
}

/// A folder of runs.
#[derive(Clone, Debug, Serialize)]
pub struct Recording {
    /// The folder.
    #[serde(skip)]
    pub folder: PathBuf,
    /// Its runs.
    pub runs: Vec<Recorded>,
}

/// A run in a file of its own.
#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    /// Name of the file.
    pub file: String,
    /// What was to be seen.
    pub prompt: String,
    /// The image that it started from, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// Seed of the noise.
    pub seed: u64,
    /// Timestep of each step.
    pub timesteps: Vec<i64>,
}

/// One call of the transformer.
pub(super) struct Sample {
    /// What the transformer reads, `[batch, frames, channels, height, width]`, an image's latents on the last channels; with
    /// guidance the same twice.
    pub latents: ArrayD<f32>,
    /// `[batch, tokens, width]`; with guidance first that of no prompt.
    pub text: ArrayD<f32>,
    pub timestep: i64,
    /// Shaped as the latents without the image's.
    pub prediction: ArrayD<f32>,
}

/// Run the teacher and write what it reads and predicts in each step to the new folder `output`: `index.json`, and for each prompt a
/// safetensors file of `latents` `[steps, frames, channels, height, width]`, `text` `[batch, tokens, width]`, `timesteps` `[steps]`
/// and `prediction` `[steps, batch, frames, channels, height, width]`, where batch is 2 with guidance, the prediction without the
/// prompt first. Of an image-to-video model there are `image_latents` `[frames, channels, height, width]`, too, which stand on the
/// channels after the latents in every step. `features` are blocks whose outputs are written, too, in half precision:
/// `block.3.text` and `block.3.video` `[steps, batch, tokens, width]`.
///
/// # Errors
/// A teacher that cannot be run on that, or a failure to write; nothing is left at `output` then.
pub fn dump(
    teacher: &Path,
    output: &Path,
    features: &[usize],
    options: &Options,
    told: &mut dyn FnMut(&str),
) -> Result<Recording, StudentError> {
    let teacher = Teacher::open(teacher)?;
    if let Some(&found) = features.iter().find(|&&block| block >= teacher.shape.layers) {
        let expected = format!("blocks of 0 to {}", teacher.shape.layers - 1);
        return Err(StudentError::Size { option: "features", expected, found });
    }
    if output.symlink_metadata().is_ok() {
        return Err(StudentError::Exists { output: output.into() });
    }
    let Some(runs) = &options.runs else { return Err(StudentError::NoRuns) };
    let place = Place::new(output)?;
    place.spares(&teacher.folder)?;
    let _made = place.make_parents()?;
    let (partial, aside) = (place.partial()?, place.partial()?);
    let mut job = Job { options, told, aside: aside.path().into() };
    let mut recording = record(&teacher, runs, partial.path(), &mut job, features)?;
    let path = partial.path().join("index.json");
    let index = json!({
        "format": FORMAT, "version": 1, "guidance": runs.guidance, "steps": runs.steps, "features": features,
        "transformer": teacher.json, "runs": recording.runs,
    });
    fs::write(&path, format!("{index:#}\n")).map_err(StudentError::io(&path))?;
    recording.folder = place.put(partial)?;
    Ok(recording)
}

/// The same into `folder`, without an index.
pub(super) fn record(
    teacher: &Teacher,
    runs: &Runs,
    folder: &Path,
    job: &mut Job<'_>,
    features: &[usize],
) -> Result<Recording, StudentError> {
    fs::create_dir_all(folder).map_err(StudentError::io(folder))?;
    let mut tell = BTreeMap::new();
    for &block in features {
        for (stream, value) in blocks_output(block, block + 1 == teacher.shape.layers) {
            tell.insert(format!("block.{block}.{stream}"), value);
        }
    }
    let probe = Probe { tell: tell.values().cloned().collect(), ..Probe::default() };
    let mut components = vec![Component::TextEncoder, Component::Transformer];
    if runs.prompts.iter().any(|prompt| prompt.image.is_some()) {
        components.push(Component::VaeEncoder);
    }
    let probed = Probed::open(&teacher.folder, probe, components, job)?;
    let pipeline = &probed.pipeline;
    pipeline.check_prompts(&runs.prompts, runs.size)?;
    let mut recording = Recording { folder: folder.into(), runs: vec![] };
    for (i, (prompt, seed)) in runs.prompts.iter().zip(runs.seed..).enumerate() {
        (job.told)(&format!("running the teacher: prompt {}/{}", i + 1, runs.prompts.len()));
        let own = pipeline.request_of(prompt, runs.size)?;
        let request = Request { seed, steps: runs.steps, guidance: runs.guidance, ..own };
        let timesteps =
            Sampler::from_step(&pipeline.scheduler, request.scheduler, request.steps, 0)?.timesteps().to_vec();
        let mut recorder =
            Recorder { tell: &tell, latents: vec![], now: vec![], tensors: BTreeMap::new(), failed: None };
        pipeline.latents(&request, &mut recorder)?;
        if let Some(error) = recorder.failed {
            return Err(error);
        }
        let file = format!("run-{i:03}.safetensors");
        recorder.write(&folder.join(&file), &timesteps)?;
        let Prompt { text: prompt, image } = prompt.clone();
        recording.runs.push(Recorded { file, prompt, image, seed, timesteps });
    }
    Ok(recording)
}

/// Keeps what passes.
struct Recorder<'a> {
    /// Names of outputs by those they get.
    tell: &'a BTreeMap<String, String>,
    /// What the step under way reads.
    now: Vec<f32>,
    latents: Vec<usize>,
    /// Type, shape of one step and bytes.
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    failed: Option<StudentError>,
}

impl Recorder<'_> {
    fn keep(&mut self, name: &str, shape: &[usize], numbers: &[f32], dtype: Dtype) {
        let kept = self.tensors.entry(name.into()).or_insert_with(|| (dtype, shape.to_vec(), vec![]));
        if dtype == Dtype::F16 {
            kept.2.extend(numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
        } else {
            kept.2.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        }
    }

    fn take(&mut self, component: &str, outputs: &Outputs) -> Result<(), PipelineError> {
        if component == "text_encoder" {
            let text = outputs.array("last_hidden_state")?;
            self.keep(TEXT, text.shape(), text.as_slice().unwrap_or_default(), Dtype::F32);
        }
        if component != "transformer" {
            return Ok(());
        }
        let (now, shape) = (std::mem::take(&mut self.now), self.latents.clone());
        self.keep("latents", &shape, &now, Dtype::F32);
        let prediction = outputs.array("sample")?;
        self.keep("prediction", prediction.shape(), prediction.as_slice().unwrap_or_default(), Dtype::F32);
        for (name, output) in self.tell {
            let value = outputs.array(output)?;
            self.keep(name, value.shape(), value.as_slice().unwrap_or_default(), Dtype::F16);
        }
        Ok(())
    }

    fn write(self, path: &Path, timesteps: &[i64]) -> Result<(), StudentError> {
        let steps = timesteps.len();
        let times: Vec<u8> = timesteps.iter().flat_map(|t| t.to_le_bytes()).collect();
        let with_steps = |name: &str, shape: &[usize]| {
            if [TEXT, IMAGE].contains(&name) { shape.to_vec() } else { [&[steps], shape].concat() }
        };
        let all = self
            .tensors
            .iter()
            .map(|(name, (dtype, shape, bytes))| (name.as_str(), *dtype, with_steps(name, shape), bytes.as_slice()));
        let all = all.chain([("timesteps", Dtype::I64, vec![steps], times.as_slice())]);
        let wrong = |problem: String| StudentError::Recording { path: path.into(), problem };
        let mut views = vec![];
        for (name, dtype, shape, bytes) in all {
            views.push((name, TensorView::new(dtype, shape, bytes).map_err(|e| wrong(e.to_string()))?));
        }
        safetensors::serialize_to_file(views, None, path).map_err(|e| wrong(e.to_string()))
    }
}

impl Observer for Recorder<'_> {
    fn start(&mut self, start: &Started) {
        self.step(0, 0, &start.latents);
        if let Some(image) = &start.image_latents {
            let numbers: Vec<_> = image.iter().copied().collect();
            self.keep(IMAGE, &image.shape()[1..], &numbers, Dtype::F32);
        }
    }

    fn ran(&mut self, component: &'static str, _: usize, _: usize, outputs: &Outputs) {
        if let Err(error) = self.take(component, outputs) {
            self.failed = Some(error.into());
        }
    }

    fn step(&mut self, _: usize, _: usize, latents: &ArrayD<f32>) {
        self.latents = latents.shape()[1..].to_vec();
        self.now = latents.iter().copied().collect();
    }

    fn frames(&mut self, _: ArrayD<f32>, _: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

impl Recording {
    /// How many calls of the transformer there are.
    pub(super) fn samples(&self) -> usize {
        self.runs.iter().map(|run| run.timesteps.len()).sum()
    }

    /// Read one call after the other, of each run every `stride`-th step, another one in the next run.
    pub(super) fn each(
        &self,
        stride: usize,
        mut take: impl FnMut(&Sample) -> Result<(), StudentError>,
    ) -> Result<(), StudentError> {
        for (i, run) in self.runs.iter().enumerate() {
            let path = self.folder.join(&run.file);
            let file = Weights::open_file(&path)?;
            let text = read(&file, &path, TEXT, None)?;
            let image = file.get(IMAGE).map(|_| read(&file, &path, IMAGE, None)).transpose()?;
            for step in (i % stride..run.timesteps.len()).step_by(stride) {
                let mut latents = read(&file, &path, "latents", Some(step))?.insert_axis(Axis(0));
                if let Some(image) = &image {
                    let image = image.view().insert_axis(Axis(0));
                    latents = concatenate(CHANNELS, &[latents.view(), image]).unwrap_or_default();
                }
                let views = vec![latents.view(); text.shape()[0]];
                let latents = concatenate(Axis(0), &views).unwrap_or_default();
                let prediction = read(&file, &path, "prediction", Some(step))?;
                take(&Sample { latents, text: text.clone(), timestep: run.timesteps[step], prediction })?;
            }
        }
        Ok(())
    }
}

/// The tensor `name`, or step `step` of it.
fn read(file: &Weights, path: &Path, name: &str, step: Option<usize>) -> Result<ArrayD<f32>, StudentError> {
    let wrong = |problem| StudentError::Recording { path: path.into(), problem };
    let tensor = file.get(name).filter(|tensor| tensor.dtype == DType::F32);
    let tensor = tensor.ok_or_else(|| wrong(format!("expected `{name}` of 32-bit numbers, found none")))?;
    let skip = usize::from(step.is_some());
    let shape = tensor.shape.get(skip..).unwrap_or_default();
    let mut bytes = vec![0; 4 * shape.iter().product::<usize>()];
    file.read_into(tensor, (step.unwrap_or(0) * bytes.len()) as u64, &mut bytes)?;
    let mut numbers = vec![];
    decode(&bytes, DType::F32, &mut numbers);
    ArrayD::from_shape_vec(IxDyn(shape), numbers).map_err(|e| wrong(e.to_string()))
}
