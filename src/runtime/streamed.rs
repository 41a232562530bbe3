//! Graphs whose weights do not stay on the device: those of most blocks lie in their files and come when their block runs.
//!
//! The device holds the weights of the blocks that are kept and of one block more. A thread reads the next block's while one runs; files
//! that the system has in its cache are read at the speed of memory.

mod raised;
mod reader;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use cogvx_graphs::onnx::{self, Feed, Model, Piece};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynTensor, DynValue, Tensor};

use super::session::Place;
use super::{Input, Layout, Outputs, Runtime, RuntimeError, Session, Traits, cpu};
use raised::raised;
use reader::Reader;

/// A loaded graph whose weights are streamed.
pub struct Streamed {
    /// One for each kind of piece.
    sessions: Vec<Session>,
    /// The session of each piece, and the piece without its bytes.
    pieces: Vec<(usize, Piece)>,
    /// Names of the whole graph's outputs.
    outputs: Vec<String>,
    reader: Reader,
    place: Place,
}

impl Runtime {
    /// Load the graph in the file `path`, read as `model`, with the weights of its last block and its first `kept` ones, of which
    /// there is at least one; those of the others come from their files in each run.
    ///
    /// # Errors
    /// A graph of fewer than three blocks, or one that ONNX Runtime refuses; weights that cannot be read.
    pub fn load_streamed(&self, path: &Path, model: &Model, kept: usize) -> Result<Streamed, RuntimeError> {
        let failed = |message: String| RuntimeError::Load { path: path.into(), message };
        let folder = path.parent().unwrap_or(Path::new(""));
        let folder = std::path::absolute(folder).map_err(|e| failed(e.to_string()))?;
        let traits = Traits { fixed: Traits::of(model, Layout::Mapped).fixed, ..Traits::default() };
        let (model, raised) = if self.setup.cuda().is_none() && !cpu::adds_wide() {
            raised(model, kept)
        } else {
            (model.clone(), HashSet::new())
        };
        let mut kinds: HashMap<Vec<u8>, usize> = HashMap::new();
        let (mut sessions, mut pieces) = (vec![], vec![]);
        for mut piece in onnx::cut(&model, kept).map_err(|e| failed(e.to_string()))? {
            let bytes = std::mem::take(&mut piece.bytes);
            if !kinds.contains_key(&bytes) {
                sessions.push(self.load_piece(path, &bytes, &folder, traits)?);
            }
            let session = *kinds.entry(bytes).or_insert(sessions.len() - 1);
            pieces.push((session, piece));
        }
        let Some(first) = sessions.first() else { return Err(failed("expected a graph, found an empty one".into())) };
        let reader = Reader::start(&folder, pieces.iter().map(|(_, piece)| piece), &raised).map_err(failed)?;
        let outputs = model.outputs.iter().map(|port| port.name.clone()).collect();
        Ok(Streamed { place: first.place.clone(), sessions, pieces, outputs, reader })
    }
}

impl Streamed {
    /// Run the graph.
    ///
    /// # Errors
    /// As [`Session::run`], and weights that cannot be read any more.
    pub fn run(&mut self, inputs: &[(&str, Input<'_>)]) -> Result<Outputs, RuntimeError> {
        let owned = inputs.iter().map(|(name, input)| Ok(((*name).to_string(), owned(input)?)));
        let owned = owned.collect::<ort::Result<HashMap<_, _>>>().map_err(|e| self.place.failed(&e))?;
        let mut made: HashMap<String, DynValue> = HashMap::new();
        for number in 0..self.pieces.len() {
            let (session, piece) = &self.pieces[number];
            let weights = match piece.streamed {
                Some(block) => self.reader.take(block).map_err(|message| self.unreadable(message))?,
                None => vec![],
            };
            let known = |value: &str| made.get(value).or_else(|| owned.get(value));
            // What one session has kept for its next run, another one may need.
            let next = &self.pieces[(number + 1) % self.pieces.len()];
            let releases = self.place.device.is_some() && next.0 != *session;
            let ran = run(&mut self.sessions[*session], piece, known, &weights, &self.outputs, releases)?;
            self.reader.give_back(weights);
            made.extend(ran);
            let later = || self.pieces[number + 1..].iter().flat_map(|(_, piece)| &piece.inputs);
            let is_read = |value: &str| later().any(|(_, feed)| matches!(feed, Feed::Value(name) if name == value));
            made.retain(|value, _| self.outputs.contains(value) || is_read(value));
        }
        Ok(Outputs::new(made, self.place.path.clone()))
    }

    /// How long ONNX Runtime has run the graph's pieces, all runs together.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.sessions.iter().map(Session::busy).sum()
    }

    fn unreadable(&self, message: String) -> RuntimeError {
        RuntimeError::Run { path: self.place.path.clone(), message }
    }
}

/// Numbers as a tensor of its own, which all pieces may be fed with.
fn owned(input: &Input<'_>) -> ort::Result<DynValue> {
    match input {
        Input::Float(array) => Ok(Tensor::from_array(array.to_owned())?.into_dyn()),
        Input::Integer(array) => Ok(Tensor::from_array(array.to_owned())?.into_dyn()),
        Input::State(_) => Err(ort::Error::new("expected numbers, found what a run before has left")),
    }
}

/// Run a piece on values that are known by their names in the whole graph; what it makes by such names.
fn run<'a>(
    session: &mut Session,
    piece: &Piece,
    known: impl Fn(&str) -> Option<&'a DynValue>,
    weights: &[DynTensor],
    outputs: &[String],
    releases: bool,
) -> Result<Vec<(String, DynValue)>, RuntimeError> {
    let place = session.place.clone();
    session.timed(|session, runs| {
        let mut binding = session.create_binding()?;
        let mut weights = weights.iter();
        for (name, feed) in &piece.inputs {
            match feed {
                Feed::Value(value) => {
                    let missing = || ort::Error::new(format!("expected an input `{value}`, found none"));
                    binding.bind_input(name, known(value).ok_or_else(missing)?)?;
                }
                Feed::Weight(weight) => {
                    let missing = || ort::Error::new(format!("expected the weight `{}`, found none", weight.name));
                    binding.bind_input(name, weights.next().ok_or_else(missing)?)?;
                }
            }
        }
        let here = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?;
        let there = place.memory()?;
        for (name, value) in &piece.outputs {
            binding.bind_output_to_device(name, if outputs.contains(value) { &here } else { &there })?;
        }
        let options = if releases { &runs.shrinking } else { &runs.other };
        let mut ran = session.run_binding_with_options(&binding, options)?;
        let take = |(name, value): &(String, String)| Some((value.clone(), ran.remove(name)?));
        Ok(piece.outputs.iter().filter_map(take).collect())
    })
}
