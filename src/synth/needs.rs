//! Which tensors a model has: what its graphs miss in a checkpoint without tensors.

use std::collections::BTreeSet;

use cogvx_graphs::config::{DitConfig, T5Config, VaeConfig};
use cogvx_graphs::model::vae::Part;
use cogvx_graphs::model::{dit, t5, vae};
use cogvx_graphs::{BuildError, Dim, Graph, Problem, VideoDims, Weights};

use super::SynthError;

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    pub name: String,
    pub shape: Vec<usize>,
    /// Product of the shape.
    pub elements: u64,
}

/// Of the text encoder. Its one table of tokens is stored as `shared.weight`.
pub(crate) fn text_encoder(config: &T5Config) -> Result<Vec<Need>, SynthError> {
    let mut needs = missing([t5::build(config, &nothing(), &Dim::named("tokens"))])?;
    for need in needs.iter_mut().filter(|need| need.name == "encoder.embed_tokens.weight") {
        need.name = "shared.weight".into();
    }
    Ok(needs)
}

/// Of the diffusion transformer, beside the tensors `known`: no configuration tells how wide its feed-forwards are.
pub(crate) fn transformer(config: &DitConfig, known: &Weights) -> Result<Vec<Need>, SynthError> {
    missing([dit::build(config, known, &VideoDims::dynamic(), &Dim::named("tokens"))])
}

/// Of the VAE, which stores encoder and decoder together.
pub(crate) fn vae(config: &VaeConfig) -> Result<Vec<Need>, SynthError> {
    let size = VideoDims::dynamic();
    missing([
        vae::encoder(config, &nothing(), &size, Part::First),
        vae::decoder(config, &nothing(), &size, Part::First),
    ])
}

pub(crate) fn nothing() -> Weights {
    Weights::synthetic::<String>([])
}

/// All that is missing, each tensor once, in the order of use.
fn missing(built: impl IntoIterator<Item = Result<Graph, BuildError>>) -> Result<Vec<Need>, SynthError> {
    let mut seen = BTreeSet::new();
    let mut needs = vec![];
    for error in built.into_iter().filter_map(Result::err) {
        for problem in error.problems {
            let Problem::Missing { name, expected: shape } = problem else {
                return Err(BuildError { problems: vec![problem], ..error }.into());
            };
            if !seen.insert(name.clone()) {
                continue;
            }
            let elements = shape.iter().try_fold(1, |product: u64, &dim| product.checked_mul(dim as u64));
            // Bytes of a whole checkpoint stay far below 2^64.
            let elements = elements.filter(|&n| n <= 1 << 44);
            let elements = elements.ok_or_else(|| SynthError::Large { tensor: name.clone(), found: shape.clone() })?;
            needs.push(Need { name, shape, elements });
        }
    }
    Ok(needs)
}
