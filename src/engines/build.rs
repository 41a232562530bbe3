//! The engine of a bundle's graph for videos of some sizes: the one in the store, or one that is built now.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::{EnginesError, Entry, Event, Form, Gpu, Hashes, Key, Runs, Store};
use crate::bundle::Bundle;
use crate::runtime::{
    self, ContextFile, Engine, EngineFiles, Layout, Profile, RtxOptions, Runtime, RuntimeError, Setup, TensorRtOptions,
    Traits,
};

/// The model of `EPContext` nodes in an engine's folder: what is loaded in place of the graph.
const CONTEXT: &str = "model.onnx";
/// Libraries that an engine of TensorRT depends on, as far as their names do not change with their versions.
const TENSORRT: [&str; 4] = ["libnvinfer.so", "libnvonnxparser.so", "libcudnn.so", "libcublas.so"];
/// Those of an engine of TensorRT-RTX.
const RTX: [&str; 3] =
    ["libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so", "libonnxruntime_providers_nv_tensorrt_rtx.so"];

/// Gets the engines of one bundle on one GPU.
pub struct Builder<'a> {
    /// The bundle.
    pub bundle: &'a Bundle,
    /// ONNX Runtime on that GPU: with it the libraries that engines depend on are loaded.
    pub runtime: &'a Runtime,
    /// Where engines are kept.
    pub store: &'a Store,
    /// How TensorRT or TensorRT-RTX is set up; sizes and places are filled in here.
    pub setup: Setup,
    /// The GPU below.
    pub gpu: Gpu,
    /// Set from another thread, ends the waiting for another process.
    pub stop: &'a AtomicBool,
}

/// An engine, and what is loaded in its graph's place.
#[derive(Debug)]
pub struct Ready {
    /// The engine.
    pub entry: Entry,
    /// What is loaded.
    pub engine: Engine,
}

impl Builder<'_> {
    /// An engine that is there and does for the runs of a graph, of whatever form.
    ///
    /// # Errors
    /// No such graph, or sizes of other names.
    pub fn find(&self, runs: &Runs) -> Result<Option<Ready>, EnginesError> {
        // The others are none of this GPU or provider.
        let forms = Form::ALL.into_iter().filter(|form| self.gpu(*form).is_ok());
        let keys = self.keys(runs, &forms.collect::<Vec<_>>())?;
        Ok(self.store.choose(&keys)?.map(|entry| self.ready(runs, entry)))
    }

    /// The engine for the runs of a graph; `tell` hears what happens on the way.
    ///
    /// # Errors
    /// No such graph, sizes of other names, a GPU that takes no engines of this form, a build that fails, or an interrupt.
    pub fn get(&self, runs: &Runs, form: Form, tell: impl FnMut(Event)) -> Result<Ready, EnginesError> {
        let Some(key) = self.keys(runs, &[form])?.pop() else { unreachable!("one form, one key") };
        let name = key.hash();
        let build = |folder: &Path| self.build(runs, form, &name, folder);
        let entry = self.store.get_or_build(&key, self.stop, tell, build)?;
        Ok(self.ready(runs, entry))
    }

    /// How an engine is loaded.
    fn ready(&self, runs: &Runs, entry: Entry) -> Ready {
        let model = entry.folder.join(CONTEXT);
        let weights_from = entry.key.is_stripped().then(|| self.bundle.path(runs.component));
        Ready { entry, engine: Engine { model, weights_from } }
    }

    /// Build an engine into an empty folder.
    fn build(&self, runs: &Runs, form: Form, name: &str, folder: &Path) -> Result<(), EnginesError> {
        let file = runs.file();
        let model = self.bundle.graph(runs.component, &file)?;
        let traits = Traits::of(&model, Layout::default());
        let failed = |error: RuntimeError| EnginesError::Build(error.to_string());
        // Of a relative path the provider would look for weights below their folder.
        let path = std::path::absolute(self.bundle.path(&file)).map_err(EnginesError::io(folder))?;
        let options = match self.formed(runs, form) {
            Setup::TensorRt(options) => *options,
            setup => {
                let runtime = Runtime::start(setup, 0).map_err(failed)?;
                return runtime.compile(&path, traits, &folder.join(CONTEXT)).map_err(failed);
            }
        };
        let timing = self.store.folder().join("timing");
        fs::create_dir_all(&timing).map_err(EnginesError::io(&timing))?;
        let prefix = format!("cogvx-{name}");
        let options = TensorRtOptions {
            // Beside the context: the provider takes no other place than one below it, and so the folder can be renamed.
            engines: Some(EngineFiles { folder: PathBuf::new(), prefix: prefix.clone() }),
            timing_cache: Some(timing),
            // Of an engine beside it that has no weights the provider would write one with weights when it is loaded.
            context: Some(ContextFile { file: folder.join(CONTEXT), embedded: form.stripped }),
            ..options
        };
        let runtime = Runtime::start(Setup::TensorRt(Box::new(options)), 0).map_err(failed)?;
        // With sizes that are known the engine is built when the graph is loaded.
        let loaded = runtime.load(&path, traits);
        if form.stripped {
            clear(folder, &prefix);
        }
        loaded.map_err(failed)?;
        if folder.join(CONTEXT).is_file() {
            return Ok(());
        }
        Err(EnginesError::Build("TensorRT made no engine of the whole graph".into()))
    }

    /// How the provider is set up for an engine; places are left out.
    fn formed(&self, runs: &Runs, form: Form) -> Setup {
        let profile = Some(Profile::covering(&runs.sizes));
        match self.setup.clone() {
            Setup::TensorRt(options) => Setup::TensorRt(Box::new(TensorRtOptions {
                profile,
                weights_from: form.stripped.then(|| self.bundle.path(runs.component)),
                hardware_compatible: form.compatible,
                ..*options
            })),
            Setup::Rtx(options) => {
                let architecture = Some(self.gpu.architecture.clone());
                Setup::Rtx(Box::new(RtxOptions { profile, architecture, ..*options }))
            }
            other => other,
        }
    }

    /// What an engine depends on of the GPU.
    fn gpu(&self, form: Form) -> Result<Gpu, EnginesError> {
        let Setup::Rtx(options) = &self.setup else { return form.gpu(&self.gpu) };
        if form != Form::default() {
            return Err(EnginesError::Form);
        }
        let architecture = self.gpu.architecture.clone();
        let options = RtxOptions { architecture: Some(architecture.clone()), ..(**options).clone() };
        if options.is_portable() {
            return Ok(Gpu { name: "any".into(), architecture, driver: "any".into() });
        }
        Ok(self.gpu.clone())
    }

    /// All that the engines of these forms depend on.
    ///
    /// # Errors
    /// No such graph, sizes of other names, or a GPU that takes no engines of one of them.
    pub fn keys(&self, runs: &Runs, forms: &[Form]) -> Result<Vec<Key>, EnginesError> {
        let file = runs.file();
        let model = self.bundle.graph(runs.component, &file)?;
        let traits = Traits::of(&model, Layout::default());
        let mut hashes = self.store.hashes();
        let graph = hashes.of(&self.bundle.path(&file))?;
        let component = self.bundle.manifest().components.get(runs.component);
        let weights = component.into_iter().flat_map(|component| &component.weights);
        let weights = weights.map(|path| Ok((path.clone(), hashes.of(&self.bundle.path(path))?)));
        let weights = weights.collect::<Result<BTreeMap<_, _>, EnginesError>>()?;
        let libraries = self.libraries(&mut hashes)?;
        let key = |form: &Form| {
            let options = self.formed(runs, *form).described(traits);
            Ok(Key {
                file: file.clone(),
                video: runs.video.to_string(),
                graph: graph.clone(),
                // Those of engines without weights count, too: TensorRT builds such an engine to be filled with the same ones.
                weights: weights.clone(),
                precision: self.bundle.manifest().accuracy.clone(),
                provider: self.provider().into(),
                libraries: libraries.clone(),
                gpu: self.gpu(*form)?,
                options: options.map_err(|error| EnginesError::Build(error.to_string()))?,
            })
        };
        forms.iter().map(key).collect()
    }

    /// What engines are built by.
    fn provider(&self) -> &'static str {
        if matches!(self.setup, Setup::Rtx(_)) { "tensorrt-rtx" } else { "tensorrt" }
    }

    /// Versions of the libraries, or hashes where their files do not tell.
    fn libraries(&self, hashes: &mut Hashes) -> Result<BTreeMap<String, String>, EnginesError> {
        let mut all = BTreeMap::from([("onnxruntime".to_string(), runtime::VERSION.to_string())]);
        let names: &[_] = if matches!(self.setup, Setup::Rtx(_)) { &RTX } else { &TENSORRT };
        for (name, file) in self.runtime.loaded(names) {
            all.insert(name.into(), hashes.of(&file)?);
        }
        Ok(all)
    }
}

/// Remove what the provider leaves of an engine whose weights were taken out beside the context that has it: the engine as a file
/// in `folder`, and one with all weights in the current folder, whatever folder it is given. Both have this prefix.
fn clear(folder: &Path, prefix: &str) {
    for folder in [folder, Path::new(".")] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)) {
            // That it stays is no reason to do without the engine.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_an_engine_without_weights_goes_and_nothing_else_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let prefix = format!("cogvx-test-{}", std::process::id());
        let context = folder.path().join(CONTEXT);
        let here = PathBuf::from(format!("{prefix}_1_sm90.engine"));
        let left = [folder.path().join(format!("{prefix}_1_sm90.stripped.engine")), here];
        for path in left.iter().chain([&context]) {
            fs::write(path, "engine").expect("written");
        }
        clear(folder.path(), &prefix);
        assert!(context.is_file());
        for path in left {
            assert!(!path.exists(), "{}", path.display());
        }
    }
}
