//! The two factors of each module, found by the names diffusers gives them.

use std::collections::BTreeMap;

use cogvx_graphs::Weights;
use cogvx_graphs::weights::Tensor;

use super::error::LoraProblem;

/// The factors for one module.
pub(super) struct Pair {
    /// Path in the transformer.
    pub module: String,
    /// `[r, in]`
    pub a: Tensor,
    /// `[out, r]`
    pub b: Tensor,
}

/// What the names of a LoRA's tensors end with, and which factor that is.
const LAYOUTS: [(&str, usize); 4] =
    [(".lora_A.weight", 0), (".lora_B.weight", 1), (".lora.down.weight", 0), (".lora.up.weight", 1)];
const HALVES: [&str; 2] = ["lora_A", "lora_B"];

/// Module and factor of the tensor `key`, or what is wrong with it.
fn split(key: &str) -> Result<(&str, usize), &'static str> {
    if key.contains("dora_scale") || key.contains("lora_magnitude_vector") {
        return Err("a DoRA's magnitudes, which are not supported: expected a LoRA without");
    }
    if key.contains("lora_down") || key.contains("lora_up") {
        return Err("expected `lora_A` and `lora_B`, found kohya's names, which diffusers does not read either");
    }
    if key.strip_suffix(".alpha").is_some() {
        return Err("expected alpha in `lora_adapter_metadata`, found a tensor, which diffusers does not read either");
    }
    let Some(rest) = key.strip_prefix("transformer.") else {
        return Err("expected a name that begins with `transformer.`");
    };
    let found = LAYOUTS.iter().find_map(|(end, half)| Some((rest.strip_suffix(end)?, *half)));
    found.ok_or("expected a name that ends with `.lora_A.weight` or `.lora_B.weight`")
}

/// All pairs in the order of their modules, and what is wrong with the rest.
pub(super) fn pairs(weights: &Weights) -> (Vec<Pair>, Vec<LoraProblem>) {
    let mut problems = vec![];
    let mut odd: BTreeMap<&'static str, (String, usize)> = BTreeMap::new();
    let mut modules: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    for tensor in weights.iter() {
        match split(&tensor.name) {
            Ok((module, half)) => {
                let place = &mut modules.entry(module.into()).or_default()[half];
                if place.replace(tensor.clone()).is_some() {
                    problems.push(LoraProblem::Twice { module: module.into(), half: HALVES[half] });
                }
            }
            Err(expected) => {
                odd.entry(expected).and_modify(|(_, more)| *more += 1).or_insert_with(|| (tensor.name.clone(), 0));
            }
        }
    }
    problems.extend(odd.into_iter().map(|(expected, (key, more))| LoraProblem::Key { key, expected, more }));
    let mut pairs = vec![];
    for (module, halves) in modules {
        match halves {
            [Some(a), Some(b)] => pairs.push(Pair { module, a, b }),
            [a, _] => problems.push(LoraProblem::Half { module, found: HALVES[usize::from(a.is_none())] }),
        }
    }
    (pairs, problems)
}

impl Pair {
    /// The rank: rows of `a`.
    pub fn rank(&self) -> usize {
        self.a.shape.first().copied().unwrap_or(0)
    }

    /// Check that the factors make a matrix like the module's weight in `base`.
    ///
    /// Convolutions too: `a` is one to `r` channels, `b` one of size 1 from them.
    pub fn check(&self, base: &Weights) -> Result<(), Vec<LoraProblem>> {
        let Some(weight) = base.get(&format!("{}.weight", self.module)) else {
            return Err(vec![LoraProblem::Unknown { module: self.module.clone() }]);
        };
        let [out, inner @ ..] = weight.shape.as_slice() else {
            return Err(vec![LoraProblem::NotAMatrix { module: self.module.clone(), found: vec![] }]);
        };
        if inner.is_empty() {
            return Err(vec![LoraProblem::NotAMatrix { module: self.module.clone(), found: weight.shape.clone() }]);
        }
        let rank = self.rank().max(1);
        let mut expected_b = vec![*out, rank];
        expected_b.resize(weight.shape.len(), 1);
        let mut problems = vec![];
        for (tensor, expected) in [(&self.a, [&[rank], inner].concat()), (&self.b, expected_b)] {
            if tensor.shape != expected {
                let (tensor, found) = (tensor.name.clone(), tensor.shape.clone());
                problems.push(LoraProblem::Shape { tensor, expected, found });
            } else if !tensor.dtype.is_float() {
                problems.push(LoraProblem::NotFloat { tensor: tensor.name.clone(), found: tensor.dtype });
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}
