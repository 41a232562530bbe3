//! What an engine was built from and for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All that an engine depends on. Two keys that differ in anything have different engines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The graph's path in its bundle, such as `transformer/model.onnx`: for people; its contents are in `graph`.
    pub file: String,
    /// Frames, rows and columns of the videos it is for, such as `49x480x720`: for people; the sizes of its inputs are in `options`.
    pub video: String,
    /// BLAKE3 of the ONNX file.
    pub graph: String,
    /// BLAKE3 of each file of weights that it reads, by path in the bundle.
    pub weights: BTreeMap<String, String>,
    /// What arithmetic is done in, such as `fp16`.
    pub precision: String,
    /// ONNX Runtime's provider, such as `tensorrt`.
    pub provider: String,
    /// Versions or hashes of all libraries that take part, by name.
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
        Key {
            file: "transformer/model.onnx".into(),
            video: "49x480x720".into(),
            graph: "a".repeat(64),
            weights: one("transformer/diffusion_pytorch_model.safetensors", "b"),
            precision: "fp16".into(),
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
            |k| k.video = "17x480x720".into(),
            |k| drop(k.options.insert("trt_profile_max_shapes".into(), "hidden_states:2x13x16x60x90".into())),
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
