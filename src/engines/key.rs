//! What an engine was built from and for.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// All that an engine depends on. Two keys that differ in anything have different engines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The graph's path in its bundle, such as `transformer/model.onnx`: for people; its contents are in `graph`.
    pub file: String,
    /// Frames, rows and columns of the videos it is for, such as `49x480x720` or `17x480x720..49x480x720`: for people; the sizes of its
    /// inputs are in `options`.
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
    /// Its name: engines are tuned for a model, not only for an architecture. `any` where they are not.
    pub name: String,
    /// Compute capability, such as `9.0`, or `8.0 or newer`.
    pub architecture: String,
    /// Version of the driver, or `any`.
    pub driver: String,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, architecture, driver } = self;
        write!(f, "{name} ({architecture}), driver {driver}")
    }
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

    /// Whether the engine has no weights of its own.
    #[must_use]
    pub fn is_stripped(&self) -> bool {
        self.options.contains_key(STRIPPED)
    }

    /// Whether an engine of this key does for `wanted`, too: they differ in nothing but sizes, and it takes those.
    #[must_use]
    pub fn holds(&self, wanted: &Self) -> bool {
        let [Some(least), Some(greatest)] = [self.sizes("min"), self.sizes("max")] else { return false };
        let [Some(from), Some(to)] = [wanted.sizes("min"), wanted.sizes("max")] else { return false };
        let reaches = |low: &Shapes<'_>, high: &Shapes<'_>| {
            low.iter().all(|(input, low)| {
                let high = high.get(input);
                high.is_some_and(|high| low.len() == high.len() && low.iter().zip(high).all(|(low, high)| low <= high))
            })
        };
        least.len() == from.len()
            && reaches(&least, &from)
            && reaches(&to, &greatest)
            && self.without_sizes() == wanted.without_sizes()
    }

    /// How much more than one size it takes: what its greatest inputs have more than its least, all sizes together.
    pub(super) fn width(&self) -> u64 {
        let sum = |shapes: Option<Shapes<'_>>| shapes.into_iter().flatten().flat_map(|(_, sizes)| sizes).sum::<u64>();
        sum(self.sizes("max")).saturating_sub(sum(self.sizes("min")))
    }

    /// The least (`min`) or the greatest (`max`) sizes of inputs; none if it does not tell.
    fn sizes(&self, which: &str) -> Option<Shapes<'_>> {
        let ending = format!("_profile_{which}_shapes");
        let (_, text) = self.options.iter().find(|(option, _)| option.ends_with(&ending))?;
        let shape =
            |text: &str| text.split('x').map(|n| n.parse::<u32>().ok().map(u64::from)).collect::<Option<Vec<_>>>();
        text.split(',')
            .map(|port| port.rsplit_once(':').and_then(|(name, sizes)| Some((name, shape(sizes)?))))
            .collect()
    }

    /// All but the sizes.
    fn without_sizes(&self) -> Self {
        let is_other = |option: &String| !(option.contains("_profile_") && option.ends_with("_shapes"));
        let options = self.options.iter().filter(|(option, _)| is_other(option));
        let options = options.map(|(option, value)| (option.clone(), value.clone())).collect();
        Self { video: String::new(), options, ..self.clone() }
    }
}

/// Sizes of inputs by their names.
type Shapes<'a> = BTreeMap<&'a str, Vec<u64>>;

/// The option of engines without weights.
const STRIPPED: &str = "trt_weight_stripped_engine_enable";

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    type Change = fn(&mut Key);

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

    /// The key of an engine for inputs of these sizes.
    pub(crate) fn key_for(video: &str, [least, best, greatest]: [&str; 3]) -> Key {
        let mut key = Key { video: video.into(), ..key() };
        for (which, shapes) in [("min", least), ("opt", best), ("max", greatest)] {
            key.options.insert(format!("trt_profile_{which}_shapes"), shapes.into());
        }
        key
    }

    #[test]
    fn an_engine_for_a_range_holds_the_sizes_in_it_and_no_others() {
        let range = key_for("17x480x720..49x480x720", ["x:1x5x60x90,t:1", "x:2x13x60x90,t:1", "x:2x13x60x90,t:1"]);
        let one = |frames: u64, rows: u64| {
            let [least, greatest] = [1, 2].map(|batch| format!("x:{batch}x{frames}x{rows}x90,t:1"));
            key_for(&format!("{frames} by {rows}"), [&least, &greatest, &greatest])
        };
        for frames in [5, 9, 13] {
            assert!(range.holds(&one(frames, 60)), "{frames}");
        }
        for (frames, rows) in [(4, 60), (14, 60), (9, 59), (9, 61)] {
            assert!(!range.holds(&one(frames, rows)), "{frames} {rows}");
        }
        assert!(range.holds(&range) && !one(9, 60).holds(&range));
        assert!(one(9, 60).width() < range.width());
        // Whatever else differs.
        let changes: [Change; 8] = [
            |k| k.graph = "c".repeat(64),
            |k| k.gpu.driver = "590.0".into(),
            |k| drop(k.options.insert(STRIPPED.into(), "1".into())),
            |k| drop(k.options.insert("trt_profile_min_shapes".into(), "y:1x5x60x90,t:1".into())),
            |k| drop(k.options.insert("trt_profile_max_shapes".into(), "x:2x13x60,t:1".into())),
            |k| drop(k.options.insert("trt_profile_max_shapes".into(), "x:2x13x60x90".into())),
            |k| drop(k.options.insert("trt_profile_max_shapes".into(), "x:2x13x60xmany,t:1".into())),
            |k| drop(k.options.remove("trt_profile_min_shapes")),
        ];
        for change in changes {
            let mut other = range.clone();
            change(&mut other);
            assert!(!other.holds(&one(9, 60)), "{other:?}");
        }
    }

    #[test]
    fn whatever_an_engine_depends_on_changes_its_name() {
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
