//! What waits for its stage in a batch: numbers in a temporary file, so that memory does not grow with the prompts.

use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _};

use ndarray::{ArrayD, IxDyn};

use super::shortcuts::Memory;
use super::{PipelineError, Runs, Walk};
use crate::rng::TorchGenerator;
use crate::scheduler::Sampler;

/// A file without a name, which goes with the process.
pub(super) struct Spool {
    file: File,
    bytes: u64,
}

/// Where an array is in the file.
#[derive(Debug)]
pub(super) struct Kept {
    at: u64,
    shape: Vec<usize>,
}

/// A walk whose numbers are in the file.
pub(super) struct KeptWalk {
    sampler: Sampler,
    generator: TorchGenerator,
    latents: Kept,
    previous: Option<Kept>,
    image_latents: Option<Kept>,
    difference: Option<(usize, Kept)>,
    clean: Vec<(i64, Kept)>,
    runs: Runs,
}

impl KeptWalk {
    /// Whether no step is left.
    pub fn is_done(&self) -> bool {
        self.sampler.next_step() == self.sampler.timesteps().len()
    }
}

impl Spool {
    pub fn new() -> Result<Self, PipelineError> {
        Ok(Self { file: tempfile::tempfile().map_err(PipelineError::Spool)?, bytes: 0 })
    }

    pub fn keep(&mut self, array: &ArrayD<f32>) -> Result<Kept, PipelineError> {
        let at = self.bytes;
        let mut write = || {
            self.file.seek(SeekFrom::Start(at))?;
            let mut file = BufWriter::new(&self.file);
            array.iter().try_for_each(|x| file.write_all(&x.to_le_bytes()))?;
            file.flush()
        };
        write().map_err(PipelineError::Spool)?;
        self.bytes += 4 * array.len() as u64;
        Ok(Kept { at, shape: array.shape().to_vec() })
    }

    pub fn take(&mut self, kept: &Kept) -> Result<ArrayD<f32>, PipelineError> {
        let mut bytes = vec![0; 4 * kept.shape.iter().product::<usize>()];
        let read = self.file.seek(SeekFrom::Start(kept.at)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(PipelineError::Spool)?;
        let numbers = bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
        Ok(ArrayD::from_shape_vec(IxDyn(&kept.shape), numbers).expect("as many numbers as were written"))
    }

    pub fn keep_walk(&mut self, walk: Walk) -> Result<KeptWalk, PipelineError> {
        let Walk { mut sampler, generator, latents, image_latents, memory: Memory { difference, clean }, runs } = walk;
        let previous = sampler.take_previous();
        let previous = (!previous.is_empty()).then(|| ArrayD::from_shape_vec(latents.raw_dim(), previous));
        Ok(KeptWalk {
            latents: self.keep(&latents)?,
            previous: previous.map(|p| self.keep(&p.expect("one of each latent"))).transpose()?,
            image_latents: image_latents.map(|image| self.keep(&image)).transpose()?,
            difference: difference
                .map(|(step, array)| Ok::<_, PipelineError>((step, self.keep(&array)?)))
                .transpose()?,
            clean: clean
                .into_iter()
                .map(|(timestep, array)| Ok((timestep, self.keep(&array)?)))
                .collect::<Result<_, PipelineError>>()?,
            sampler,
            generator,
            runs,
        })
    }

    pub fn take_walk(&mut self, kept: KeptWalk) -> Result<Walk, PipelineError> {
        let KeptWalk { mut sampler, generator, latents, previous, image_latents, difference, clean, runs } = kept;
        if let Some(previous) = previous {
            let done = sampler.next_step();
            sampler.go_on(done, self.take(&previous)?.into_raw_vec_and_offset().0)?;
        }
        let image_latents = image_latents.map(|image| self.take(&image)).transpose()?;
        let difference =
            difference.map(|(step, kept)| Ok::<_, PipelineError>((step, self.take(&kept)?))).transpose()?;
        let clean = clean
            .into_iter()
            .map(|(timestep, kept)| Ok((timestep, self.take(&kept)?)))
            .collect::<Result<_, PipelineError>>()?;
        let memory = Memory { difference, clean };
        Ok(Walk { sampler, generator, latents: self.take(&latents)?, image_latents, memory, runs })
    }
}
