//! Which layers lose most when they are quantized: each group of them is quantized alone and the model is run.

use std::collections::BTreeMap;

use cogvx_calibration::metrics::difference;
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

/// Value of [`Ranking::format`].
const FORMAT: &str = "cogvx-sensitivity";

/// What is quantized together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The same layer of all blocks.
    Kind,
    /// All layers of a block.
    Block,
    /// Each layer.
    Layer,
}

/// Layers quantized together, and what that does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What they have in common.
    pub name: String,
    /// `<component>/<weight>` of each.
    pub layers: Vec<String>,
    /// Relative L2 of the final latents from those of the float model, the root of the mean square over the runs.
    pub error: f64,
}

/// All groups, the one that loses most first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    /// Always `cogvx-sensitivity`.
    pub format: String,
    /// How layers were quantized, such as `int8`.
    pub scheme: String,
    /// Fingerprint of the checkpoint's weights.
    pub checkpoint: String,
    /// The error with all layers quantized.
    pub all: f64,
    /// The groups.
    pub groups: Vec<Group>,
}

/// `layers`, named `<component>/<weight>`, in groups by their name.
#[must_use]
pub fn groups(layers: &[String], by: By) -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for layer in layers {
        groups.entry(group(layer, by)).or_default().push(layer.clone());
    }
    groups
}

fn group(layer: &str, by: By) -> String {
    let parts: Vec<_> = layer.split('.').collect();
    let number = parts.iter().position(|part| part.bytes().all(|b| b.is_ascii_digit()));
    match (by, number) {
        (By::Block, Some(at)) => parts[..=at].join("."),
        (By::Kind, Some(at)) => [&parts[..at], &["*"], &parts[at + 1..]].concat().join("."),
        (By::Layer, _) | (_, None) => layer.into(),
    }
}

/// Rank the groups of `layers` by the latents that `run` makes with some layers alone quantized: one array for each run, as
/// `exact` has them of the float model. `progress` is told how many groups are done, and of how many.
///
/// # Errors
/// Those of `run`.
pub fn rank<E>(
    [scheme, checkpoint]: [&str; 2],
    (layers, by): (&[String], By),
    exact: &[ArrayD<f32>],
    mut run: impl FnMut(&[String]) -> Result<Vec<ArrayD<f32>>, E>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Ranking, E> {
    let mut error = |layers: &[String]| Ok(error(&run(layers)?, exact));
    let all = error(layers)?;
    let named = groups(layers, by);
    let mut groups = vec![];
    for (name, layers) in &named {
        groups.push(Group { name: name.clone(), error: error(layers)?, layers: layers.clone() });
        progress(groups.len(), named.len());
    }
    groups.sort_by(|a, b| b.error.total_cmp(&a.error));
    Ok(Ranking { format: FORMAT.into(), scheme: scheme.into(), checkpoint: checkpoint.into(), all, groups })
}

/// Relative L2, the root of the mean square over the runs.
#[allow(clippy::cast_precision_loss)] // Few runs.
fn error(found: &[ArrayD<f32>], exact: &[ArrayD<f32>]) -> f64 {
    let square = |(a, b): (&ArrayD<f32>, &ArrayD<f32>)| {
        difference(&a.iter().copied().collect::<Vec<_>>(), &b.iter().copied().collect::<Vec<_>>()).relative_l2.powi(2)
    };
    (found.iter().zip(exact).map(square).sum::<f64>() / exact.len() as f64).sqrt()
}

impl Ranking {
    /// The layers to leave in float so that the others together lose at most `most`.
    ///
    /// Errors of groups are taken to be independent: their squares add up. Where all layers together were found to lose more
    /// or less than that, the sum is corrected by that factor.
    #[must_use]
    pub fn kept(&self, most: f64) -> Vec<String> {
        let total = |groups: &[Group]| groups.iter().map(|group| group.error.powi(2)).sum::<f64>().sqrt();
        let whole = total(&self.groups);
        let factor = if whole > 0.0 { self.all / whole } else { 1.0 };
        let keep = (0..self.groups.len()).find(|&n| factor * total(&self.groups[n..]) <= most);
        self.groups[..keep.unwrap_or(self.groups.len())].iter().flat_map(|group| group.layers.clone()).collect()
    }

    /// Read a ranking.
    ///
    /// # Errors
    /// What of the text is no ranking.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let ranking: Self =
            serde_json::from_str(text).map_err(|e| format!("expected a ranking of layers, found {e}"))?;
        if ranking.format != FORMAT {
            return Err(format!("expected `format` of `{FORMAT}`, found `{}`", ranking.format));
        }
        let wrong = |x: &&Group| !(x.error.is_finite() && x.error >= 0.0);
        match ranking.groups.iter().find(wrong) {
            Some(group) => Err(format!("expected an error of at least 0 for `{}`, found {}", group.name, group.error)),
            None => Ok(ranking),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_grouped_by_kind_block_and_name() {
        let layers = ["t/blocks.0.a.weight", "t/blocks.10.a.weight", "t/blocks.0.b.weight"].map(String::from);
        let names = |by| groups(&layers, by).into_keys().collect::<Vec<_>>();
        assert_eq!(names(By::Kind), ["t/blocks.*.a.weight", "t/blocks.*.b.weight"]);
        assert_eq!(names(By::Block), ["t/blocks.0", "t/blocks.10"]);
        assert_eq!(names(By::Layer).len(), 3);
    }

    #[test]
    fn the_worst_groups_are_kept_until_the_rest_is_within_the_budget() {
        let layers = ["t/b.0.a", "t/b.0.b", "t/b.0.c"].map(String::from);
        let exact = [ArrayD::from_elem(vec![4], 1.0_f32)];
        // Errors of 0.1, 0.2 and 0.4.
        let size = |layers: &[String]| {
            let of = |layer: &String| {
                [("a", 0.1), ("b", 0.2), ("c", 0.4)]
                    .iter()
                    .find(|(end, _)| layer.ends_with(end))
                    .map_or(0.0, |(_, e)| e * e)
            };
            layers.iter().map(of).sum::<f32>().sqrt()
        };
        let run = |layers: &[String]| Ok::<_, ()>(vec![ArrayD::from_elem(vec![4], 1.0 + size(layers))]);
        let ranking = rank(["int8", "x"], (&layers, By::Layer), &exact, run, |_, _| ()).expect("runs");
        assert_eq!(ranking.groups[0].layers, ["t/b.0.c"]);
        assert!((ranking.groups[0].error - 0.4).abs() < 1e-6);
        assert_eq!(ranking.kept(0.5), Vec::<String>::new());
        assert_eq!(ranking.kept(0.3), ["t/b.0.c"]);
        assert_eq!(ranking.kept(0.15), ["t/b.0.c", "t/b.0.b"]);
        assert_eq!(ranking.kept(0.0).len(), 3);
        let text = serde_json::to_string(&ranking).expect("plain");
        assert_eq!(Ranking::from_json(&text), Ok(ranking));
        assert!(Ranking::from_json("{}").is_err());
    }
}
