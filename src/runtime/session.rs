//! A loaded graph: runs of it, and what they return.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cogvx_graphs::cost::Freed;
use ndarray::{ArrayD, ArrayViewD};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{NoSelectedOutputs, RunOptions, SessionInputValue};
use ort::value::{DynValue, TensorRef};
use tempfile::TempDir;

use super::error::{is_memory, line};
use super::{DeviceError, Interrupt, NodeRun, Runs, RuntimeError, profile};

/// What a graph is fed with.
pub enum Input<'a> {
    /// Numbers.
    Float(ArrayViewD<'a, f32>),
    /// Whole numbers.
    Integer(ArrayViewD<'a, i64>),
    /// An output of a run before, as it was.
    State(&'a State),
}

/// An output that only another run looks into.
pub struct State(DynValue);

/// What runs, and where, for what is told of failures.
#[derive(Clone)]
pub(super) struct Place {
    /// The graph's file.
    pub path: PathBuf,
    /// The GPU it runs on, if it does.
    pub device: Option<u32>,
    /// What becomes of memory on the processor.
    pub freed: Freed,
}

impl Place {
    /// What an error of a run means.
    pub fn failed(&self, error: &ort::Error) -> RuntimeError {
        let (path, message) = (self.path.clone(), line(error));
        match self.device.map(|device| DeviceError::of(&message, device)) {
            Some(Some(problem)) => problem.into(),
            None if is_memory(&message) => RuntimeError::Memory { path },
            _ => RuntimeError::Run { path, message },
        }
    }
}

/// A loaded graph.
pub struct Session {
    pub(super) inner: ort::session::Session,
    pub(super) place: Place,
    interrupt: Interrupt,
    /// Where the profile is written, if there is to be one.
    profile: Option<TempDir>,
    /// What its runs took.
    busy: Duration,
}

impl Session {
    pub(super) fn new(
        inner: ort::session::Session,
        place: Place,
        interrupt: Interrupt,
        profile: Option<TempDir>,
    ) -> Self {
        Self { inner, place, interrupt, profile, busy: Duration::ZERO }
    }

    /// What each node took in each run so far; nothing unless it was loaded by [`Runtime::load_profiled`].
    ///
    /// # Errors
    /// The profile cannot be written or read.
    pub fn profile(mut self) -> Result<Vec<NodeRun>, RuntimeError> {
        if self.profile.is_none() {
            return Ok(vec![]);
        }
        let failed = |message| RuntimeError::Profiling { path: self.place.path.clone(), message };
        let file = self.inner.end_profiling().map_err(|e| failed(line(&e)))?;
        let json = std::fs::read_to_string(file).map_err(|e| failed(e.to_string()))?;
        profile::parse(&json).map_err(|e| failed(e.to_string()))
    }

    /// How long ONNX Runtime has run the graph, all runs together.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.busy
    }

    /// Run the graph.
    ///
    /// # Errors
    /// Inputs that do not fit, a failure in ONNX Runtime, or an interrupt.
    pub fn run(&mut self, inputs: &[(&str, Input<'_>)]) -> Result<Outputs, RuntimeError> {
        let freed = self.place.freed;
        let values = self.timed(|session, runs| run(session, runs.freeing(freed), inputs))?;
        Ok(Outputs { values, path: self.place.path.clone() })
    }

    /// The same; outputs whose names end in `suffix` stay where the graph runs, for [`Outputs::into_states`].
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_keeping(&mut self, inputs: &[(&str, Input<'_>)], suffix: &str) -> Result<Outputs, RuntimeError> {
        if self.place.device.is_none() {
            return self.run(inputs);
        }
        let kept = self.place.memory().map_err(|e| self.place.failed(&e))?;
        let freed = self.place.freed;
        let values = self.timed(|session, runs| run_where(session, runs.freeing(freed), inputs, (suffix, &kept)))?;
        Ok(Outputs { values, path: self.place.path.clone() })
    }

    /// Do what runs the graph, unless there was an interrupt.
    pub(super) fn timed<T>(
        &mut self,
        run: impl FnOnce(&mut ort::session::Session, &Runs) -> ort::Result<T>,
    ) -> Result<T, RuntimeError> {
        if self.interrupt.stopped() {
            return Err(RuntimeError::Interrupted);
        }
        let since = Instant::now();
        let ran = run(&mut self.inner, &self.interrupt.0);
        self.busy += since.elapsed();
        ran.map_err(|e| if self.interrupt.stopped() { RuntimeError::Interrupted } else { self.place.failed(&e) })
    }
}

fn run(
    session: &mut ort::session::Session,
    options: &RunOptions<NoSelectedOutputs>,
    inputs: &[(&str, Input<'_>)],
) -> ort::Result<HashMap<String, DynValue>> {
    let mut values: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
    for (name, input) in inputs {
        let value = match input {
            Input::Float(array) => TensorRef::from_array_view(array.view())?.into(),
            Input::Integer(array) => TensorRef::from_array_view(array.view())?.into(),
            Input::State(state) => (&state.0).into(),
        };
        values.push((*name, value));
    }
    let outputs = session.run_with_options(values, options)?;
    Ok(outputs.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

/// The same with outputs of these names in this memory, the others in the processor's.
fn run_where(
    session: &mut ort::session::Session,
    options: &RunOptions<NoSelectedOutputs>,
    inputs: &[(&str, Input<'_>)],
    (suffix, kept): (&str, &MemoryInfo<'_>),
) -> ort::Result<HashMap<String, DynValue>> {
    let mut binding = session.create_binding()?;
    for (name, input) in inputs {
        match input {
            Input::Float(array) => binding.bind_input(*name, &*TensorRef::from_array_view(array.view())?)?,
            Input::Integer(array) => binding.bind_input(*name, &*TensorRef::from_array_view(array.view())?)?,
            Input::State(state) => binding.bind_input(*name, &state.0)?,
        }
    }
    let here = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?;
    let names: Vec<_> = session.outputs().iter().map(|output| output.name().to_string()).collect();
    for name in names {
        let place = if name.ends_with(suffix) { kept } else { &here };
        binding.bind_output_to_device(name, place)?;
    }
    let outputs = session.run_binding_with_options(&binding, options)?;
    Ok(outputs.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

/// What a graph returned.
pub struct Outputs {
    values: HashMap<String, DynValue>,
    path: PathBuf,
}

impl Outputs {
    /// What the graph in this file returned.
    pub(super) fn new(values: HashMap<String, DynValue>, path: PathBuf) -> Self {
        Self { values, path }
    }

    /// The `f32` output `name`.
    ///
    /// # Errors
    /// No such output, or one of another type.
    pub fn array(&self, name: &str) -> Result<ArrayD<f32>, RuntimeError> {
        Ok(self.view(name)?.to_owned())
    }

    /// The same where it lies.
    ///
    /// # Errors
    /// As [`Outputs::array`].
    pub fn view(&self, name: &str) -> Result<ArrayViewD<'_, f32>, RuntimeError> {
        let no_output = || RuntimeError::NoOutput { path: self.path.clone(), name: name.into() };
        let value = self.values.get(name).ok_or_else(no_output)?;
        let failed = |e: ort::Error| RuntimeError::Run { path: self.path.clone(), message: line(&e) };
        value.try_extract_array::<f32>().map_err(failed)
    }

    /// Names of the outputs.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The outputs whose names end in `suffix`, to be handed to the next run, by the rest of their names.
    pub fn into_states(self, suffix: &str) -> impl Iterator<Item = (String, State)> {
        let states = self.values.into_iter();
        states.filter_map(move |(name, value)| Some((name.strip_suffix(suffix)?.to_string(), State(value))))
    }
}
