//! The engine of a bundle's graph for one size of video: the one in the store, or one that is built now.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::{EnginesError, Entry, Event, Gpu, Hashes, Key, Runs, Store};
use crate::bundle::Bundle;
use crate::runtime::{
    self, ContextFile, EngineFiles, Layout, Profile, Runtime, RuntimeError, Setup, TensorRtOptions, Traits,
};

/// The model of `EPContext` nodes in an engine's folder: what is loaded in place of the graph.
const CONTEXT: &str = "model.onnx";
/// The provider that all of this is for.
const PROVIDER: &str = "tensorrt";
/// Libraries that an engine depends on, as far as their names do not change with their versions.
const LIBRARIES: [&str; 4] = ["libnvinfer.so", "libnvonnxparser.so", "libcudnn.so", "libcublas.so"];

/// Gets the engines of one bundle on one GPU.
pub struct Builder<'a> {
    /// The bundle.
    pub bundle: &'a Bundle,
    /// ONNX Runtime on that GPU: with it the libraries that engines depend on are loaded.
    pub runtime: &'a Runtime,
    /// Where engines are kept.
    pub store: &'a Store,
    /// How TensorRT is set up; sizes and places are filled in here.
    pub options: TensorRtOptions,
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
    /// The model.
    pub model: PathBuf,
}

impl Builder<'_> {
    /// The engine for the runs of a graph; `tell` hears what happens on the way.
    ///
    /// # Errors
    /// No such graph, sizes of other names, a build that fails, or an interrupt.
    pub fn get(&self, runs: &Runs, tell: impl FnMut(Event)) -> Result<Ready, EnginesError> {
        let file = runs.file();
        let model = self.bundle.graph(runs.component, &file)?;
        let traits = Traits::of(&model, Layout::default());
        let options = TensorRtOptions { profile: Some(Profile::covering(&runs.sizes)), ..self.options.clone() };
        let key = self.key(runs, &options, traits)?;
        let build = |folder: &std::path::Path| {
            let timing = self.store.folder().join("timing");
            fs::create_dir_all(&timing).map_err(EnginesError::io(&timing))?;
            let options = TensorRtOptions {
                // Beside the context: the provider takes no other place than one below it, and so the folder can be renamed.
                engines: Some(EngineFiles { folder: PathBuf::new(), prefix: "engine".into() }),
                timing_cache: Some(timing),
                context: Some(ContextFile { file: folder.join(CONTEXT), embedded: false }),
                ..options
            };
            let failed = |error: RuntimeError| EnginesError::Build(error.to_string());
            let runtime = Runtime::start(Setup::TensorRt(Box::new(options)), 0).map_err(failed)?;
            // With sizes that are known the engine is built when the graph is loaded.
            runtime.load(&self.bundle.path(&file), traits).map_err(failed)?;
            if folder.join(CONTEXT).is_file() {
                return Ok(());
            }
            Err(EnginesError::Build("TensorRT made no engine of the whole graph".into()))
        };
        let entry = self.store.get_or_build(&key, self.stop, tell, build)?;
        let model = entry.folder.join(CONTEXT);
        Ok(Ready { entry, model })
    }

    /// All that the engine depends on.
    fn key(&self, runs: &Runs, options: &TensorRtOptions, traits: Traits<'_>) -> Result<Key, EnginesError> {
        let file = runs.file();
        let mut hashes = self.store.hashes();
        let component = self.bundle.manifest().components.get(runs.component);
        let weights = component.into_iter().flat_map(|component| &component.weights);
        let weights = weights.map(|path| Ok((path.clone(), hashes.of(&self.bundle.path(path))?)));
        let weights = weights.collect::<Result<_, EnginesError>>()?;
        let failed = |error: String| EnginesError::Build(error);
        // Where engines are kept is not among them.
        let options = options.described(traits).map_err(|error| failed(error.to_string()))?;
        Ok(Key {
            graph: hashes.of(&self.bundle.path(&file))?,
            weights,
            video: runs.video.map(|n| n.to_string()).join("x"),
            precision: self.bundle.manifest().accuracy.clone(),
            provider: PROVIDER.into(),
            libraries: self.libraries(&mut hashes)?,
            gpu: self.gpu.clone(),
            options,
            file,
        })
    }

    /// Versions of the libraries, or hashes where their files do not tell.
    fn libraries(&self, hashes: &mut Hashes) -> Result<BTreeMap<String, String>, EnginesError> {
        let mut all = BTreeMap::from([("onnxruntime".to_string(), runtime::VERSION.to_string())]);
        for (name, file) in self.runtime.loaded(&LIBRARIES) {
            all.insert(name.into(), hashes.of(&file)?);
        }
        Ok(all)
    }
}
