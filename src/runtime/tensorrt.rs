//! How a TensorRT session is set up.
//!
//! No precision is asked for: without such flags ONNX Runtime's provider builds a strongly typed network, so that every layer
//! has the precision that the graph gives it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cogvx_graphs::onnx::{Port, Size};

use super::cuda::Pairs;
use super::{CudaOptions, Traits};

/// Options that say where something is, not what is built.
const PLACES: [&str; 2] = ["device_id", "trt_onnx_model_folder_path"];

/// TensorRT on a CUDA device, and how its engines are built and kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorRtOptions {
    /// The device; what TensorRT has no layer for runs there, too.
    pub cuda: CudaOptions,
    /// Sizes that engines are built for; without them engines are built anew for sizes that were not seen yet.
    pub profile: Option<Profile>,
    /// Where engines are kept.
    pub engines: Option<EngineFiles>,
    /// A folder for what TensorRT learned of layers' speed, so that the next build is faster.
    pub timing_cache: Option<PathBuf>,
    /// Write a model of `EPContext` nodes, which runs without the graph it was made of.
    pub context: Option<ContextFile>,
    /// Effort of a build, from 0 to 5; TensorRT's own default is 3.
    pub optimization_level: Option<u8>,
    /// Most bytes that layers may use to compute.
    pub workspace: Option<u64>,
    /// Engines without weights, which are read from the graph and its files in this folder when an engine is loaded.
    pub weights_from: Option<PathBuf>,
    /// Engines that run on all GPUs from Ampere on, slower than those of one kind of GPU.
    pub hardware_compatible: bool,
}

/// What is loaded in place of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// The model of `EPContext` nodes.
    pub model: PathBuf,
    /// For an engine without weights, the folder of the graph it was built of.
    pub weights_from: Option<PathBuf>,
}

/// Where engines are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineFiles {
    /// The folder.
    pub folder: PathBuf,
    /// What their names begin with.
    pub prefix: String,
}

/// A model of `EPContext` nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextFile {
    /// The `.onnx` file.
    pub file: PathBuf,
    /// The engine is in it, not beside it.
    pub embedded: bool,
}

/// Named sizes of graphs, such as `frames`: the least, the one to be fastest for, and the greatest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile(pub BTreeMap<String, [u64; 3]>);

/// Why there are no shapes for a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("input `{input}`: expected sizes of known names, found `{size}`: the profile has {known}")]
pub struct ProfileError {
    /// The graph's input.
    pub input: String,
    /// What of its size is not known.
    pub size: String,
    /// Names of the profile.
    pub known: String,
}

impl Profile {
    /// Sizes from the least to the greatest of these, fastest for the first. Each has the same names.
    #[must_use]
    pub fn covering(sizes: &[BTreeMap<String, u64>]) -> Self {
        let mut ranges: BTreeMap<String, [u64; 3]> = BTreeMap::new();
        for (name, &size) in sizes.iter().flatten() {
            let range = ranges.entry(name.clone()).or_insert([size; 3]);
            (range[0], range[2]) = (range[0].min(size), range[2].max(size));
        }
        Self(ranges)
    }

    /// `name:1x2x3,...` of a graph's inputs at the least, best and greatest sizes.
    ///
    /// # Errors
    /// An input with a size of another name.
    pub fn shapes(&self, inputs: &[Port]) -> Result<[String; 3], ProfileError> {
        let mut shapes: [Vec<String>; 3] = Default::default();
        for port in inputs {
            for (i, shapes) in shapes.iter_mut().enumerate() {
                let sizes = port.shape.iter().map(|size| match size {
                    Size::Fixed(n) => Ok(n.to_string()),
                    Size::Named(formula) => self.evaluate(formula, i).map(|n| n.to_string()).ok_or_else(|| {
                        let known = self.0.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                        ProfileError { input: port.name.clone(), size: formula.clone(), known }
                    }),
                });
                shapes.push(format!("{}:{}", port.name, sizes.collect::<Result<Vec<_>, _>>()?.join("x")));
            }
        }
        Ok(shapes.map(|shapes| shapes.join(",")))
    }

    /// A sum of products of names and numbers, each over a number: how graphs write sizes.
    fn evaluate(&self, formula: &str, which: usize) -> Option<u64> {
        formula.split(" + ").try_fold(0_u64, |sum, term| {
            let (product, divisor) = term.split_once('/').unwrap_or((term, "1"));
            let product = product.split('*').try_fold(1_u64, |product, factor| {
                let factor = factor.parse().ok().or_else(|| self.0.get(factor).map(|range| range[which]))?;
                product.checked_mul(factor)
            });
            sum.checked_add(product?.checked_div(divisor.parse().ok()?)?)
        })
    }
}

impl TensorRtOptions {
    /// The options of ONNX Runtime's TensorRT provider that an engine of a graph depends on, by name: all but which GPU it is and
    /// where weights lie.
    ///
    /// # Errors
    /// An input with a size that the profile does not know.
    pub fn described(&self, traits: Traits<'_>) -> Result<BTreeMap<String, String>, ProfileError> {
        let pairs = self.provider(traits)?.into_iter().filter(|(key, _)| !PLACES.contains(key));
        Ok(pairs.map(|(key, value)| (key.to_string(), value)).collect())
    }

    /// The options of ONNX Runtime's TensorRT provider for a graph.
    pub(super) fn provider(&self, traits: Traits<'_>) -> Result<Pairs, ProfileError> {
        let mut pairs = vec![("device_id", self.cuda.device.to_string())];
        let shown = |path: &Path| path.display().to_string();
        if let Some(profile) = &self.profile {
            let [least, best, greatest] = profile.shapes(traits.inputs)?;
            pairs.push(("trt_profile_min_shapes", least));
            pairs.push(("trt_profile_opt_shapes", best));
            pairs.push(("trt_profile_max_shapes", greatest));
        }
        if let Some(EngineFiles { folder, prefix }) = &self.engines {
            pairs.push(("trt_engine_cache_enable", "1".into()));
            pairs.push(("trt_engine_cache_path", shown(folder)));
            pairs.push(("trt_engine_cache_prefix", prefix.clone()));
        }
        if let Some(folder) = &self.timing_cache {
            pairs.push(("trt_timing_cache_enable", "1".into()));
            pairs.push(("trt_timing_cache_path", shown(folder)));
        }
        if let Some(ContextFile { file, embedded }) = &self.context {
            pairs.push(("trt_dump_ep_context_model", "1".into()));
            pairs.push(("trt_ep_context_file_path", shown(file)));
            pairs.push(("trt_ep_context_embed_mode", u8::from(*embedded).to_string()));
        }
        if let Some(level) = self.optimization_level {
            pairs.push(("trt_builder_optimization_level", level.to_string()));
        }
        if let Some(bytes) = self.workspace {
            pairs.push(("trt_max_workspace_size", bytes.to_string()));
        }
        if let Some(folder) = &self.weights_from {
            pairs.push(("trt_weight_stripped_engine_enable", "1".into()));
            pairs.push(("trt_onnx_model_folder_path", shown(folder)));
        }
        if self.hardware_compatible {
            pairs.push(("trt_engine_hw_compatible", "1".into()));
        }
        if self.cuda.graphs && traits.repeats && traits.fixed {
            pairs.push(("trt_cuda_graph_enable", "1".into()));
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use cogvx_graphs::DType;

    use super::*;

    fn port(name: &str, shape: &[&str]) -> Port {
        let size = |text: &&str| text.parse().map_or_else(|_| Size::Named((*text).into()), Size::Fixed);
        Port { name: name.into(), dtype: DType::F32, shape: shape.iter().map(size).collect() }
    }

    fn sizes(frames: u64, height: u64, width: u64) -> BTreeMap<String, u64> {
        [("batch", 2), ("tokens", 226), ("frames", frames), ("height", height), ("width", width)]
            .map(|(name, size)| (name.to_string(), size))
            .into()
    }

    #[test]
    fn a_profile_holds_every_size_asked_for_and_is_fastest_for_the_first() {
        let profile = Profile::covering(&[sizes(13, 60, 90), sizes(25, 48, 48), sizes(5, 96, 170)]);
        let inputs = [
            port("hidden_states", &["batch", "frames", "16", "height", "width"]),
            port("positions", &["frames*height*width/4", "1920"]),
            port("rotary_cos", &["tokens + frames*height*width/4", "32"]),
            port("timestep", &["1"]),
        ];
        let [least, best, greatest] = profile.shapes(&inputs).expect("all names are known");
        assert_eq!(least, "hidden_states:2x5x16x48x48,positions:2880x1920,rotary_cos:3106x32,timestep:1");
        assert_eq!(best, "hidden_states:2x13x16x60x90,positions:17550x1920,rotary_cos:17776x32,timestep:1");
        assert_eq!(greatest, "hidden_states:2x25x16x96x170,positions:102000x1920,rotary_cos:102226x32,timestep:1");
    }

    #[test]
    fn a_size_of_another_name_is_an_error_that_tells_the_known_ones() {
        let profile = Profile([("frames".to_string(), [1, 2, 3])].into());
        let error = profile.shapes(&[port("x", &["frames", "rows*frames"])]).expect_err("no `rows`");
        let expected = "input `x`: expected sizes of known names, found `rows*frames`: the profile has `frames`";
        assert_eq!(error.to_string(), expected);
        for broken in ["frames/0", "frames*", "", "18446744073709551615*frames"] {
            assert!(profile.shapes(&[port("x", &[broken])]).is_err(), "{broken}");
        }
    }

    #[test]
    fn every_option_has_its_key_and_none_asks_for_a_precision() {
        let inputs = [port("x", &["frames", "3"])];
        let traits = Traits { fixed: true, repeats: true, inputs: &inputs, ..Traits::default() };
        let options = TensorRtOptions {
            cuda: CudaOptions { device: 1, graphs: true, ..CudaOptions::default() },
            profile: Some(Profile([("frames".to_string(), [1, 2, 3])].into())),
            engines: Some(EngineFiles { folder: "engines".into(), prefix: "transformer".into() }),
            timing_cache: Some("timings".into()),
            context: Some(ContextFile { file: "ctx.onnx".into(), embedded: false }),
            optimization_level: Some(4),
            workspace: Some(1 << 30),
            weights_from: Some("bundle/transformer".into()),
            hardware_compatible: true,
        };
        let pairs = options.provider(traits).expect("all names are known");
        let said: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expected = [
            "device_id=1",
            "trt_profile_min_shapes=x:1x3",
            "trt_profile_opt_shapes=x:2x3",
            "trt_profile_max_shapes=x:3x3",
            "trt_engine_cache_enable=1",
            "trt_engine_cache_path=engines",
            "trt_engine_cache_prefix=transformer",
            "trt_timing_cache_enable=1",
            "trt_timing_cache_path=timings",
            "trt_dump_ep_context_model=1",
            "trt_ep_context_file_path=ctx.onnx",
            "trt_ep_context_embed_mode=0",
            "trt_builder_optimization_level=4",
            "trt_max_workspace_size=1073741824",
            "trt_weight_stripped_engine_enable=1",
            "trt_onnx_model_folder_path=bundle/transformer",
            "trt_engine_hw_compatible=1",
            "trt_cuda_graph_enable=1",
        ];
        assert_eq!(said, expected);
        let described = options.described(traits).expect("all names are known");
        let left_out = |key: &str| !described.contains_key(key);
        assert!(left_out("device_id") && left_out("trt_onnx_model_folder_path") && described.len() == 16);
        let plain = TensorRtOptions::default().provider(traits).expect("nothing to look up");
        assert_eq!(plain, [("device_id", "0".to_string())]);
    }
}
