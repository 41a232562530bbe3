//! ONNX Runtime: the library, devices, sessions, runs. Nothing else in cogvx knows `ort`.

mod cpu;
mod cuda;
mod driver;
mod error;
mod library;
mod operators;
mod profile;
mod resident;
mod rtx;
mod session;
mod streamed;
mod tensorrt;
mod traits;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cogvx_graphs::cost::Freed;
use ort::compiler::ModelCompiler;
use ort::environment::Environment;
use ort::ep::{ArbitrarilyConfigurableExecutionProvider, CPU, CUDA, TensorRT};
use ort::logging::LogLevel;
use ort::session::builder::SessionBuilder;
use ort::session::{NoSelectedOutputs, RunOptions};
use tempfile::TempDir;

pub use cpu::{Arenas, CpuOptions, Kernels};
pub use cuda::CudaOptions;
use cuda::Pairs;
pub use error::{DeviceError, RuntimeError};
use error::{is_memory, line};
use library::Build;
pub use library::{Library, LibraryError, Origin, VERSION};
pub use profile::NodeRun;
pub use resident::{Bound, Resident};
pub use rtx::RtxOptions;
use session::Place;
pub use session::{Input, Outputs, Session, State};
pub use streamed::Streamed;
pub use tensorrt::{ContextFile, Engine, EngineFiles, Profile, ProfileError, TensorRtOptions};
pub use traits::{Layout, Traits};

/// Where graphs run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A CUDA device.
    Cuda,
    /// A CUDA device, through TensorRT or TensorRT-RTX.
    TensorRt,
}

/// Where graphs run, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setup {
    /// On the processor.
    Cpu(CpuOptions),
    /// On a CUDA device.
    Cuda(CudaOptions),
    /// On a CUDA device, through TensorRT.
    TensorRt(Box<TensorRtOptions>),
    /// On a CUDA device, engines through TensorRT-RTX and graphs without it.
    Rtx(Box<RtxOptions>),
}

impl Default for Setup {
    fn default() -> Self {
        Self::Cpu(CpuOptions::default())
    }
}

impl From<Device> for Setup {
    fn from(device: Device) -> Self {
        match device {
            Device::Cpu => Self::default(),
            Device::Cuda => Self::Cuda(CudaOptions::default()),
            Device::TensorRt => Self::TensorRt(Box::default()),
        }
    }
}

impl Setup {
    /// The kind of device.
    #[must_use]
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu(_) => Device::Cpu,
            Self::Cuda(_) => Device::Cuda,
            Self::TensorRt(_) | Self::Rtx(_) => Device::TensorRt,
        }
    }

    /// The CUDA device below, if there is one.
    #[must_use]
    pub fn cuda(&self) -> Option<&CudaOptions> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(options) => Some(options),
            Self::TensorRt(options) => Some(&options.cuda),
            Self::Rtx(options) => Some(&options.cuda),
        }
    }
}

impl Setup {
    /// The options that TensorRT or TensorRT-RTX gets for a graph and that its engine depends on, by name; none for other setups.
    ///
    /// # Errors
    /// An input with a size that the profile does not know.
    pub fn described(&self, traits: Traits<'_>) -> Result<BTreeMap<String, String>, ProfileError> {
        match self {
            Self::TensorRt(options) => options.described(traits),
            Self::Rtx(options) => options.described(traits),
            Self::Cpu(_) | Self::Cuda(_) => Ok(BTreeMap::new()),
        }
    }

    /// The options of TensorRT-RTX for the graph in this file, if engines run through that.
    fn rtx(&self, traits: Traits<'_>, path: &Path) -> Result<Option<Pairs>, RuntimeError> {
        let Self::Rtx(options) = self else { return Ok(None) };
        options.provider(traits).map(Some).map_err(|source| RuntimeError::Profile { path: path.into(), source })
    }
}

/// ONNX Runtime, started.
pub struct Runtime {
    environment: Environment,
    setup: Setup,
    threads: usize,
    interrupt: Interrupt,
}

/// Stops a runtime from another thread.
#[derive(Clone)]
pub struct Interrupt(Arc<Runs>, Arc<AtomicBool>);

/// The options of runs.
struct Runs {
    /// On places in memory that are the same each time, so that a GPU's kernels may be recorded.
    bound: RunOptions<NoSelectedOutputs>,
    /// On any.
    other: RunOptions<NoSelectedOutputs>,
    /// On any, giving back memory that was kept for them when they end.
    shrinking: RunOptions<NoSelectedOutputs>,
}

impl Runs {
    /// For runs on the processor, or on the GPU of this number.
    fn new(gpu: Option<u32>) -> ort::Result<Self> {
        let quiet = || -> ort::Result<_> {
            let mut options = RunOptions::new()?;
            // What it would log is in the error it returns.
            options.set_log_level(LogLevel::Fatal)?;
            Ok(options)
        };
        let [mut other, mut shrinking] = [quiet()?, quiet()?];
        // Neither recorded nor replayed; the processor does not know the key.
        other.set("gpu_graph_id", "-1")?;
        let device = gpu.map_or("cpu:0".into(), |number| format!("gpu:{number}"));
        shrinking.set("memory.enable_memory_arena_shrinkage", &device)?;
        Ok(Self { bound: quiet()?, other, shrinking })
    }

    /// On any places in memory, for a session that keeps memory so long.
    fn freeing(&self, freed: Freed) -> &RunOptions<NoSelectedOutputs> {
        if freed == Freed::KeptInARun { &self.shrinking } else { &self.other }
    }
}

impl Interrupt {
    /// End the run under way and refuse the next ones.
    pub fn stop(&self) {
        self.1.store(true, Ordering::SeqCst);
        // A run that ends by itself is as good.
        let _ = self.0.bound.terminate();
        let _ = self.0.other.terminate();
        let _ = self.0.shrinking.terminate();
    }

    /// Whether [`Interrupt::stop`] was called.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.1.load(Ordering::SeqCst)
    }
}

/// The library for `device`, installed if it is nowhere to be found.
///
/// # Errors
/// No library, and none that could be installed.
pub fn library(device: Device) -> Result<Library, LibraryError> {
    library::find_or_install(build(device))
}

/// Whether [`library`] finds a library for `device` without installing one.
///
/// # Errors
/// One is named that is not there, or there is no place where it could be.
pub fn has_library(device: Device) -> Result<bool, LibraryError> {
    Ok(library::find(build(device))?.is_some())
}

fn build(device: Device) -> Build {
    if device == Device::Cpu { Build::Cpu } else { Build::Gpu }
}

/// Load the library for `device`, without a look at the device.
///
/// A process has one library of ONNX Runtime, the first one that is loaded. The build for GPUs runs on the processor, too, so
/// whoever needs both asks for it before any runtime is started.
///
/// # Errors
/// No library, one that does not start, or another one that is loaded already and knows no GPUs.
pub fn load_library(device: Device) -> Result<(), RuntimeError> {
    environment(device).map(drop)
}

/// cogvx's folder in the user's cache: ONNX Runtime's libraries, and engines.
///
/// # Errors
/// The system names no such place.
pub fn cache() -> Result<PathBuf, LibraryError> {
    library::cache()
}

impl Runtime {
    /// Start ONNX Runtime for a device, set up as `setup` says or a [`Device`] with its defaults, with `threads` threads (0: one
    /// a core).
    ///
    /// The library is looked for, and installed where it is not found, as [`library`] says. Of CUDA and cuDNN what the system
    /// lacks is taken from Python's packages, and a GPU that cannot be used is found out here.
    ///
    /// # Errors
    /// No library, or one that does not start; a GPU that is not there or not fit, or libraries it lacks.
    pub fn start(setup: impl Into<Setup>, threads: usize) -> Result<Self, RuntimeError> {
        let setup = setup.into();
        let (environment, path) = environment(setup.device())?;
        let rtx = driver::load(&setup)?;
        environment.set_log_level(LogLevel::Fatal);
        let runs = Runs::new(setup.cuda().map(|options| options.device))
            .map_err(|e| RuntimeError::Start { path, message: line(&e) })?;
        let runtime = Self { environment, setup, threads, interrupt: Interrupt(Arc::new(runs), Arc::default()) };
        if let Some(options) = runtime.setup.cuda() {
            resident::try_device(&runtime)?;
            if let Some(library) = rtx {
                rtx::register(&runtime.environment, &library)?;
                rtx::device(&runtime.environment, options.device)?;
            }
        }
        Ok(runtime)
    }

    /// How the device is set up.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Files of the libraries it works with whose names begin with one of `names`, as far as the system tells.
    #[must_use]
    pub fn loaded<'a>(&self, names: &[&'a str]) -> Vec<(&'a str, PathBuf)> {
        library::loaded(names)
    }

    /// A handle that stops this runtime's runs.
    #[must_use]
    pub fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// Where graphs run.
    #[must_use]
    pub fn device(&self) -> Device {
        self.setup.device()
    }

    /// Load a graph, told what it is like, or only how weights are kept.
    ///
    /// Graphs are written in the form their target runs fast, so nothing is optimized here; weights stay where they are
    /// mapped unless [`CpuOptions::prepack`] was chosen.
    ///
    /// # Errors
    /// A graph ONNX Runtime refuses.
    pub fn load<'a>(&self, path: &Path, traits: impl Into<Traits<'a>>) -> Result<Session, RuntimeError> {
        self.load_with(path, traits.into(), None)
    }

    /// Load an engine in place of the graph it was built of, which `traits` tell of.
    ///
    /// # Errors
    /// A file that cannot be read, an engine that the device does not take, or weights that are not those of the graph.
    pub fn load_engine<'a>(&self, engine: &Engine, traits: impl Into<Traits<'a>>) -> Result<Session, RuntimeError> {
        let traits = traits.into();
        let Engine { model, weights_from } = engine;
        let (Some(folder), Setup::TensorRt(options)) = (weights_from, &self.setup) else {
            let providers = Providers { rtx: self.setup.rtx(traits, model)?, ..self.providers(traits, model)? };
            return self.load_file(model, &providers, traits, None);
        };
        let failed = |e: std::io::Error| RuntimeError::Load { path: model.clone(), message: e.to_string() };
        let folder = std::path::absolute(folder).map_err(failed)?;
        let bytes = std::fs::read(model).map_err(failed)?;
        let setup = TensorRtOptions { weights_from: Some(folder), ..(**options).clone() };
        let providers = Providers::of(&Setup::TensorRt(Box::new(setup)), traits);
        let providers = providers.map_err(|source| RuntimeError::Profile { path: model.clone(), source })?;
        // From memory: of a model in a file the provider takes no weights but from below the current folder.
        self.load_bytes(model, &bytes, &providers, traits)
    }

    /// The same; each node is timed in each run, for [`Session::profile`].
    ///
    /// # Errors
    /// A graph ONNX Runtime refuses, or no place for temporary files.
    pub fn load_profiled<'a>(&self, path: &Path, traits: impl Into<Traits<'a>>) -> Result<Session, RuntimeError> {
        let failed = |e: std::io::Error| RuntimeError::Profiling { path: path.into(), message: e.to_string() };
        let folder = tempfile::Builder::new().prefix("cogvx-profile-").tempdir().map_err(failed)?;
        self.load_with(path, traits.into(), Some(folder))
    }

    fn load_with(&self, path: &Path, traits: Traits<'_>, profile: Option<TempDir>) -> Result<Session, RuntimeError> {
        let traits = Traits { layout: self.layout(traits), ..traits };
        self.load_file(path, &self.providers(traits, path)?, traits, profile)
    }

    fn load_file(
        &self,
        path: &Path,
        providers: &Providers,
        traits: Traits<'_>,
        profile: Option<TempDir>,
    ) -> Result<Session, RuntimeError> {
        let opened = self.builder(providers, traits, profile.as_ref().map(TempDir::path));
        let inner = opened.and_then(|mut builder| builder.commit_from_file(path));
        let inner = inner.map_err(|e| self.refused(path, &e))?;
        Ok(self.session(inner, path, traits, profile))
    }

    /// Build an engine of the graph in the file `graph` with TensorRT-RTX: a model of `EPContext` nodes in the file `to`, and what
    /// belongs to it beside it.
    ///
    /// # Errors
    /// A runtime of another provider, or a graph that TensorRT-RTX has no engine for.
    pub fn compile<'a>(&self, graph: &Path, traits: impl Into<Traits<'a>>, to: &Path) -> Result<(), RuntimeError> {
        // All of the graph is to be one engine, whatever computes its sizes.
        let traits = Traits { fixed: true, ..traits.into() };
        let providers = Providers { rtx: self.setup.rtx(traits, graph)?, tensorrt: None, cuda: None };
        if providers.rtx.is_none() {
            let message = "expected a runtime of TensorRT-RTX".into();
            return Err(RuntimeError::Load { path: graph.into(), message });
        }
        let built = || -> ort::Result<()> {
            let compiler = ModelCompiler::new(self.builder(&providers, traits, None)?)?;
            compiler.with_model_from_file(graph)?.compile_to_file(to)
        };
        built().map_err(|e| self.refused(graph, &e))
    }

    /// The providers of a graph in this file.
    fn providers(&self, traits: Traits<'_>, path: &Path) -> Result<Providers, RuntimeError> {
        Providers::of(&self.setup, traits).map_err(|source| RuntimeError::Profile { path: path.into(), source })
    }

    /// How long a session for such a graph keeps memory that is free.
    fn freed(&self, traits: Traits<'_>) -> Freed {
        match &self.setup {
            Setup::Cpu(options) => Freed::of(traits.layout, traits.convolves, options.arenas),
            _ => Freed::on_cuda(traits.convolves),
        }
    }

    /// How weights of a graph are kept.
    fn layout(&self, traits: Traits<'_>) -> Layout {
        match &self.setup {
            Setup::Cpu(options) => options.layout(traits),
            _ => traits.layout,
        }
    }

    /// Load a graph that cogvx just made; on a GPU CUDA runs it, without an engine.
    pub(super) fn load_made(&self, name: &str, model: &[u8]) -> Result<Session, RuntimeError> {
        let traits = Traits { fixed: true, ..Traits::default() };
        let cuda = self.setup.cuda().map(|options| options.provider(traits));
        let providers = Providers { tensorrt: None, rtx: None, cuda };
        self.load_bytes(Path::new(name), model, &providers, traits)
    }

    /// Load a piece of the graph in the file `path`; its weights are in files of `folder`.
    fn load_piece(
        &self,
        path: &Path,
        piece: &[u8],
        folder: &Path,
        traits: Traits<'_>,
    ) -> Result<Session, RuntimeError> {
        let cuda = self.setup.cuda().map(|options| options.provider(traits));
        let opened = self.builder(&Providers { tensorrt: None, rtx: None, cuda }, traits, None);
        let inner = opened.and_then(|builder| {
            let folder = folder.to_string_lossy();
            let key = "session.model_external_initializers_file_folder_path";
            builder.with_config_entry(key, folder)?.commit_from_memory(piece)
        });
        let inner = inner.map_err(|e| self.refused(path, &e))?;
        Ok(self.session(inner, path, traits, None))
    }

    /// Load a model that is in memory; `name` is for messages.
    fn load_bytes(
        &self,
        name: &Path,
        model: &[u8],
        providers: &Providers,
        traits: Traits<'_>,
    ) -> Result<Session, RuntimeError> {
        let opened = self.builder(providers, traits, None);
        let inner = opened.and_then(|mut builder| builder.commit_from_memory(model));
        let inner = inner.map_err(|e| self.refused(name, &e))?;
        Ok(self.session(inner, name, traits, None))
    }

    fn session(
        &self,
        inner: ort::session::Session,
        path: &Path,
        traits: Traits<'_>,
        profile: Option<TempDir>,
    ) -> Session {
        let device = self.setup.cuda().map(|options| options.device);
        let place = Place { path: path.into(), device, freed: self.freed(traits) };
        Session::new(inner, place, self.interrupt.clone(), profile)
    }

    /// What an error of a load means.
    fn refused(&self, path: &Path, error: &ort::Error) -> RuntimeError {
        let (path, message) = (path.into(), line(error));
        match self.setup.cuda().map(|options| DeviceError::of(&message, options.device)) {
            Some(Some(problem)) => problem.into(),
            None if is_memory(&message) => RuntimeError::Memory { path },
            _ => RuntimeError::Load { path, message },
        }
    }

    fn builder(
        &self,
        providers: &Providers,
        traits: Traits<'_>,
        profile: Option<&Path>,
    ) -> ort::Result<SessionBuilder> {
        let on_cpu = providers.cuda.is_none() && providers.rtx.is_none();
        let mut list = vec![];
        if let Some(pairs) = &providers.tensorrt {
            list.push(configured(TensorRT::default(), pairs).build().error_on_failure());
        }
        if let Some(pairs) = &providers.cuda {
            list.push(configured(CUDA::default(), pairs).build().error_on_failure());
        }
        if on_cpu {
            // With a GPU, naming the processor would contradict that nothing may fall back to it.
            let keeps = self.freed(traits) != Freed::GivenBack;
            list.push(CPU::default().with_arena_allocator(keeps).build());
        }
        let mut builder = ort::session::Session::builder(&self.environment)?;
        if let (Some(pairs), Some(options)) = (&providers.rtx, self.setup.cuda()) {
            // Known to be there since the start.
            let device = rtx::device(&self.environment, options.device).map_err(|e| ort::Error::new(e.to_string()))?;
            builder = builder.with_devices([device], Some(&rtx::named(pairs)))?;
        }
        let mut builder = builder
            .with_optimization_level(cpu::optimization(traits.layout, on_cpu))?
            // From the second run with the same sizes on ONNX Runtime would take one block for all that nodes make, from begin to
            // end: of the VAE at 480x720 that is a quarter more than is in use at once. On GPUs it would come beside the pieces of
            // the first run, which are too small for it and stay.
            .with_memory_pattern(false)?
            .with_prepacking(!on_cpu || traits.layout != Layout::Mapped)?
            .with_log_level(LogLevel::Fatal)?
            .with_disabled_optimizers(cpu::disabled(traits.layout))?
            .with_execution_providers(list)?;
        if !on_cpu {
            for (key, value) in cuda::session(traits) {
                builder = builder.with_config_entry(key, value)?;
            }
        }
        if self.threads > 0 {
            builder = builder.with_intra_threads(self.threads)?;
        }
        if on_cpu {
            builder = builder.with_config_entry(cpu::EXACT.0, cpu::EXACT.1)?;
            builder = builder.with_operators(operators::domain(self.threads)?)?;
        }
        if let Some(folder) = profile {
            builder = builder.with_profiling(folder.join("profile"))?;
        }
        Ok(builder)
    }
}

/// The options of the execution providers of a session, in the order they are asked; none is the processor alone.
struct Providers {
    tensorrt: Option<Pairs>,
    rtx: Option<Pairs>,
    cuda: Option<Pairs>,
}

impl Providers {
    fn of(setup: &Setup, traits: Traits<'_>) -> Result<Self, ProfileError> {
        let tensorrt = match setup {
            Setup::TensorRt(options) => Some(options.provider(traits)?),
            _ => None,
        };
        // TensorRT-RTX gets engines alone: of a graph of open sizes it would build one for all sizes there can be.
        Ok(Self { tensorrt, rtx: None, cuda: setup.cuda().map(|options| options.provider(traits)) })
    }
}

fn configured<P: ArbitrarilyConfigurableExecutionProvider>(provider: P, pairs: &Pairs) -> P {
    pairs.iter().fold(provider, |provider, (key, value)| provider.with_arbitrary_config(key, value))
}

/// The environment and its library: ONNX Runtime allows one a process, so the first runtime starts it and all others share it.
fn environment(device: Device) -> Result<(Environment, PathBuf), RuntimeError> {
    static STARTED: Mutex<Option<(Environment, PathBuf)>> = Mutex::new(None);
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((environment, path)) = &*started {
        if device == Device::Cpu || Build::Gpu.is_at(path) {
            return Ok((environment.clone(), path.clone()));
        }
        let message = "expected the build for GPUs, found that for the processor, which this process has loaded before";
        return Err(RuntimeError::Start { path: path.clone(), message: message.into() });
    }
    let path = library(device)?.path;
    let start = || {
        let builder = ort::init_from(&path).map_err(|e| e.to_string())?;
        let environment = builder.with_name("cogvx").with_telemetry(false).build().map_err(|e| e.to_string())?;
        operators::announce(&environment).map_err(|e| e.to_string())?;
        Ok(environment)
    };
    let environment = start().map_err(|message| RuntimeError::Start { path: path.clone(), message })?;
    Ok(started.insert((environment, path)).clone())
}
