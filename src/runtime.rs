//! ONNX Runtime: the library, sessions, runs. Nothing else in cogvx knows `ort`.

mod library;
mod profile;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ndarray::{ArrayD, ArrayViewD};
use ort::environment::Environment;
use ort::ep::{CPU, CUDA, TensorRT};
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{NoSelectedOutputs, RunOptions, SessionInputValue};
use ort::value::{DynValue, TensorRef};
use tempfile::TempDir;

pub use library::{Library, LibraryError, Origin, VERSION};
pub use profile::NodeRun;

/// Optimizers that would hold a second, `float32` copy of 16-bit weights.
const COPYING_OPTIMIZERS: &str = "ConstantFolding;FuseFp16InitializerToFp32NodeTransformer";

/// Why a graph was not loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum RuntimeError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("cannot start ONNX Runtime from `{}`: {message}", path.display())]
    Start { path: PathBuf, message: String },
    #[error("cannot load `{}`: {message}", path.display())]
    Load { path: PathBuf, message: String },
    #[error("cannot run `{}`: {message}", path.display())]
    Run { path: PathBuf, message: String },
    #[error(
        "cannot run `{}`: expected more memory, found none left: fewer frames or a smaller video take less, and so does \
         `--vae-tiling` in the VAE",
        path.display()
    )]
    Memory { path: PathBuf },
    #[error("cannot profile `{}`: {message}", path.display())]
    Profile { path: PathBuf, message: String },
    #[error("`{}`: expected an output `{name}`, found none", path.display())]
    NoOutput { path: PathBuf, name: String },
    /// Stopped by [`Interrupt::stop`].
    #[error("interrupted")]
    Interrupted,
}

/// Where graphs run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A CUDA device.
    Cuda,
    /// A CUDA device, through TensorRT.
    TensorRt,
}

/// ONNX Runtime, started.
pub struct Runtime {
    environment: Environment,
    device: Device,
    threads: usize,
    interrupt: Interrupt,
}

/// Stops a runtime from another thread.
#[derive(Clone)]
pub struct Interrupt(Arc<RunOptions<NoSelectedOutputs>>, Arc<std::sync::atomic::AtomicBool>);

impl Interrupt {
    /// End the run under way and refuse the next ones.
    pub fn stop(&self) {
        self.1.store(true, std::sync::atomic::Ordering::SeqCst);
        // A run that ends by itself is as good.
        let _ = self.0.terminate();
    }

    /// Whether [`Interrupt::stop`] was called.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.1.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// The library for `device`, installed if it is nowhere to be found.
///
/// # Errors
/// No library, and none that could be installed.
pub fn library(device: Device) -> Result<Library, LibraryError> {
    let build = if device == Device::Cpu { library::Build::Cpu } else { library::Build::Gpu };
    library::find_or_install(build)
}

impl Runtime {
    /// Start ONNX Runtime for `device` with `threads` threads (0: one a core).
    ///
    /// The library is looked for, and installed where it is not found, as [`library`] says.
    ///
    /// # Errors
    /// No library, or one that does not start.
    pub fn start(device: Device, threads: usize) -> Result<Self, RuntimeError> {
        let path = library(device)?.path;
        let start = || -> Result<_, String> {
            let environment = environment(&path)?;
            // What it would log is in the error it returns.
            environment.set_log_level(LogLevel::Fatal);
            let mut options = RunOptions::new().map_err(|e| line(&e))?;
            options.set_log_level(LogLevel::Fatal).map_err(|e| line(&e))?;
            Ok((environment, options))
        };
        let (environment, options) = start().map_err(|message| RuntimeError::Start { path: path.clone(), message })?;
        Ok(Self { environment, device, threads, interrupt: Interrupt(Arc::new(options), Arc::default()) })
    }

    /// A handle that stops this runtime's runs.
    #[must_use]
    pub fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// Load a graph.
    ///
    /// Graphs are written in the form their target runs fast, so nothing is optimized here; weights stay where they are
    /// mapped.
    ///
    /// # Errors
    /// A graph ONNX Runtime refuses.
    pub fn load(&self, path: &Path, layout: Layout) -> Result<Session, RuntimeError> {
        self.load_with(path, layout, None)
    }

    /// The same; each node is timed in each run, for [`Session::profile`].
    ///
    /// # Errors
    /// A graph ONNX Runtime refuses, or no place for temporary files.
    pub fn load_profiled(&self, path: &Path, layout: Layout) -> Result<Session, RuntimeError> {
        let failed = |e: std::io::Error| RuntimeError::Profile { path: path.into(), message: e.to_string() };
        let folder = tempfile::Builder::new().prefix("cogvx-profile-").tempdir().map_err(failed)?;
        self.load_with(path, layout, Some(folder))
    }

    fn load_with(&self, path: &Path, layout: Layout, profile: Option<TempDir>) -> Result<Session, RuntimeError> {
        let inner = self
            .session(path, layout, profile.as_ref().map(TempDir::path))
            .map_err(|e| RuntimeError::Load { path: path.into(), message: line(&e) })?;
        Ok(Session { inner, path: path.into(), interrupt: self.interrupt.clone(), profile, busy: Duration::ZERO })
    }

    fn session(&self, path: &Path, layout: Layout, profile: Option<&Path>) -> ort::Result<ort::session::Session> {
        let providers = match self.device {
            Device::Cpu => vec![],
            Device::Cuda => vec![CUDA::default().build().error_on_failure()],
            Device::TensorRt => {
                vec![TensorRT::default().build().error_on_failure(), CUDA::default().build().error_on_failure()]
            }
        };
        let cpu = CPU::default().with_arena_allocator(false).build();
        // From the second run with the same sizes on ONNX Runtime would take one block for all that nodes make, from begin to end:
        // of the VAE at 480x720 that is twice what is in use at once.
        let one_block = self.device != Device::Cpu;
        let mut builder = ort::session::Session::builder(&self.environment)?
            .with_optimization_level(GraphOptimizationLevel::Disable)?
            .with_prepacking(self.device != Device::Cpu || layout == Layout::Packed)?
            .with_memory_pattern(one_block)?
            .with_log_level(LogLevel::Fatal)?
            .with_disabled_optimizers(COPYING_OPTIMIZERS)?
            .with_execution_providers(providers.into_iter().chain([cpu]).collect::<Vec<_>>())?;
        if self.threads > 0 {
            builder = builder.with_intra_threads(self.threads)?;
        }
        if let Some(folder) = profile {
            builder = builder.with_profiling(folder.join("profile"))?;
        }
        builder.commit_from_file(path)
    }
}

/// The environment: ONNX Runtime allows one a process, so the first runtime starts it and all others share it.
fn environment(library: &Path) -> Result<Environment, String> {
    static STARTED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*started {
        return Ok(environment.clone());
    }
    let builder = ort::init_from(library).map_err(|e| e.to_string())?;
    let environment = builder.with_name("cogvx").with_telemetry(false).build().map_err(|e| e.to_string())?;
    Ok(started.insert(environment).clone())
}

/// How a CPU session keeps weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Where they are mapped.
    Mapped,
    /// Copied in the order their kernels read them: products of integers need it.
    Packed,
}

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

/// A loaded graph.
pub struct Session {
    inner: ort::session::Session,
    path: PathBuf,
    interrupt: Interrupt,
    /// Where the profile is written, if there is to be one.
    profile: Option<TempDir>,
    /// What its runs took.
    busy: Duration,
}

impl Session {
    /// What each node took in each run so far; nothing unless it was loaded by [`Runtime::load_profiled`].
    ///
    /// # Errors
    /// The profile cannot be written or read.
    pub fn profile(mut self) -> Result<Vec<NodeRun>, RuntimeError> {
        if self.profile.is_none() {
            return Ok(vec![]);
        }
        let failed = |message| RuntimeError::Profile { path: self.path.clone(), message };
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
        if self.interrupt.stopped() {
            return Err(RuntimeError::Interrupted);
        }
        let stopped = self.interrupt.clone();
        let since = Instant::now();
        let ran = run(&mut self.inner, &self.interrupt.0, inputs);
        self.busy += since.elapsed();
        ran.map(|values| Outputs { values, path: self.path.clone() }).map_err(|e| {
            if stopped.stopped() {
                return RuntimeError::Interrupted;
            }
            let (path, message) = (self.path.clone(), line(&e));
            if is_memory(&message) { RuntimeError::Memory { path } } else { RuntimeError::Run { path, message } }
        })
    }
}

/// Whether ONNX Runtime's message says that memory is short: of the processor, or of a CUDA device.
fn is_memory(message: &str) -> bool {
    let signs = ["bad_alloc", "Failed to allocate memory", "out of memory", "ALLOC_FAILED"];
    signs.iter().any(|sign| message.contains(sign))
}

/// ONNX Runtime's message on one line.
fn line(error: &impl ToString) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
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

/// What a graph returned.
pub struct Outputs {
    values: HashMap<String, DynValue>,
    path: PathBuf,
}

impl Outputs {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_onnx_runtime_says_when_memory_is_short_is_known() {
        for message in [
            "Non-zero status code returned while running Mul node. Name:'norm1/Mul_3' Status Message: std::bad_alloc",
            "Status Message: Failed to allocate memory for requested buffer of size 5662310400",
            "CUDA failure 2: out of memory ; GPU=0",
        ] {
            assert!(is_memory(message), "{message}");
        }
        assert!(!is_memory("Status Message: Invalid input shape: {2,3}"));
    }
}
