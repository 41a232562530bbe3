//! What an engine was built from and for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All that an engine depends on. Two keys that differ in anything have different engines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The graph's path in its bundle, such as `transformer/model.onnx`: for people; its contents are in `graph`.
    pub file: String,
    /// BLAKE3 of the ONNX file.
    pub graph: String,
    /// BLAKE3 of each file of weights that it reads, by path in the bundle.
    pub weights: BTreeMap<String, String>,
    /// What arithmetic is done in, such as `fp16`.
    pub precision: String,
    /// Sizes of each input the engine is for.
    pub shapes: BTreeMap<String, Vec<Range>>,
    /// ONNX Runtime's provider, such as `tensorrt`.
    pub provider: String,
    /// Versions of all libraries that take part, by name.
    pub libraries: BTreeMap<String, String>,
    /// The GPU it is built on.
    pub gpu: Gpu,
    /// The provider's options.
    pub options: BTreeMap<String, String>,
}

/// A GPU as far as an engine depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Its name: engines are tuned for a model, not only for an architecture.
    pub name: String,
    /// Compute capability, such as `9.0`.
    pub architecture: String,
    /// Version of the driver.
    pub driver: String,
}

/// Sizes of one input: the least, the ones to be fastest for, and the largest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The least of each axis.
    pub min: Vec<u64>,
    /// What kernels are chosen for.
    pub opt: Vec<u64>,
    /// The largest of each axis.
    pub max: Vec<u64>,
}

impl Key {
    /// The name of the engine's folder: 32 hexadecimal digits of BLAKE3 over the key as JSON, whose maps are sorted.
    ///
    /// # Panics
    /// Never: a key is always JSON.
    #[must_use]
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).expect("strings, numbers and maps with names");
        blake3::hash(&json).to_hex()[..32].to_string()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn key() -> Key {
        let one = |name: &str, value: &str| BTreeMap::from([(name.to_string(), value.to_string())]);
        let range = Range { min: vec![1, 2], opt: vec![1, 2], max: vec![2, 4] };
        Key {
            file: "transformer/model.onnx".into(),
            graph: "a".repeat(64),
            weights: one("transformer/diffusion_pytorch_model.safetensors", "b"),
            precision: "fp16".into(),
            shapes: BTreeMap::from([("hidden_states".into(), vec![range])]),
            provider: "tensorrt".into(),
            libraries: one("onnxruntime", "1.31.1"),
            gpu: Gpu { name: "H200".into(), architecture: "9.0".into(), driver: "580.1".into() },
            options: one("trt_builder_optimization_level", "3"),
        }
    }

    #[test]
    fn whatever_an_engine_depends_on_changes_its_name() {
        type Change = fn(&mut Key);
        let changes: [Change; 12] = [
            |k| k.graph = "c".repeat(64),
            |k| k.weights.values_mut().for_each(|hash| *hash = "c".into()),
            |k| k.weights.clear(),
            |k| k.precision = "bf16".into(),
            |k| k.shapes.values_mut().for_each(|ranges| ranges[0].max[1] = 8),
            |k| k.shapes.values_mut().for_each(|ranges| ranges.push(ranges[0].clone())),
            |k| k.provider = "nvtensorrtrtx".into(),
            |k| k.libraries.values_mut().for_each(|version| *version = "1.32.0".into()),
            |k| k.gpu.name = "H100".into(),
            |k| k.gpu.architecture = "8.9".into(),
            |k| k.gpu.driver = "590.0".into(),
            |k| k.options.values_mut().for_each(|level| *level = "5".into()),
        ];
        let mut names = std::collections::BTreeSet::from([key().hash()]);
        for change in changes {
            let mut other = key();
            change(&mut other);
            names.insert(other.hash());
        }
        assert_eq!(names.len(), 13);
        assert_eq!(key().hash(), key().hash());
        assert!(key().hash().len() == 32 && key().hash().bytes().all(|b| b.is_ascii_hexdigit()));
    }
}
