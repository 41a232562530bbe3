//! Which sizes an engine is built for: those of the videos that are to be made.

use std::collections::BTreeMap;

use super::{EnginesError, Range};
use crate::bundle::{Dim, Graph};

/// A video's size in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VideoSize {
    /// Frames.
    pub frames: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl std::fmt::Display for VideoSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.frames, self.height, self.width)
    }
}

/// The ranges of each input of `graph`, one for each of `profiles`; a profile is what the graph's open sizes may be, by name, as it
/// is run: least, usual and largest of each are taken.
///
/// # Errors
/// A size that is no product of named ones.
pub fn ranges(
    graph: &Graph,
    profiles: &[Vec<BTreeMap<String, u64>>],
) -> Result<BTreeMap<String, Vec<Range>>, EnginesError> {
    let mut all = BTreeMap::new();
    for port in &graph.inputs {
        let mut ranges = vec![];
        for runs in profiles {
            let shapes = runs.iter().map(|run| {
                let size = |dim: &Dim| evaluate(dim, run).ok_or_else(|| unknown(graph, &port.name, dim));
                port.shape.iter().map(size).collect::<Result<Vec<u64>, _>>()
            });
            let shapes = shapes.collect::<Result<Vec<_>, _>>()?;
            let Some(opt) = shapes.first().cloned() else { continue };
            let bound = |take: fn(u64, u64) -> u64| {
                shapes
                    .iter()
                    .skip(1)
                    .fold(opt.clone(), |bound, shape| bound.iter().zip(shape).map(|(&a, &b)| take(a, b)).collect())
            };
            ranges.push(Range { min: bound(u64::min), opt: opt.clone(), max: bound(u64::max) });
        }
        all.insert(port.name.clone(), ranges);
    }
    Ok(all)
}

fn unknown(graph: &Graph, input: &str, dim: &Dim) -> EnginesError {
    let size = match dim {
        Dim::Fixed(n) => n.to_string(),
        Dim::Symbol(name) => name.chars().take(100).flat_map(char::escape_debug).collect(),
    };
    EnginesError::Size { graph: graph.file.clone(), input: input.into(), size }
}

/// The number a size is when names are these numbers: sizes are sums of products such as `frames*height*width/4`.
fn evaluate(dim: &Dim, run: &BTreeMap<String, u64>) -> Option<u64> {
    let text = match dim {
        Dim::Fixed(n) => return Some(*n),
        Dim::Symbol(text) => text,
    };
    let number = |text: &str| text.parse().ok().or_else(|| run.get(text).copied());
    let product =
        |text: &str| text.split('*').try_fold(1_u64, |product, factor| product.checked_mul(number(factor.trim())?));
    text.split('+').try_fold(0_u64, |sum, term| {
        let (above, below) = term.split_once('/').map_or((term, None), |(above, below)| (above, Some(below)));
        let below = below.map_or(Some(1), |below| product(below).filter(|&n| n > 0))?;
        let above = product(above)?;
        if above % below == 0 { sum.checked_add(above / below) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use cogvx_graphs::DType;

    use super::*;
    use crate::bundle::Port;

    fn run(sizes: &[(&str, u64)]) -> BTreeMap<String, u64> {
        sizes.iter().map(|&(name, n)| (name.to_string(), n)).collect()
    }

    #[test]
    fn sizes_are_sums_of_products_of_names() {
        let run = run(&[("frames", 13), ("height", 60), ("width", 90), ("tokens", 226)]);
        for (text, expected) in [
            ("frames", Some(13)),
            ("frames*height*width/4", Some(17_550)),
            ("tokens + frames*height*width/4", Some(17_776)),
            ("2*frames", Some(26)),
            ("frames/4", None),
            ("frames/0", None),
            ("depth", None),
            ("", None),
            ("18446744073709551615*frames", None),
        ] {
            assert_eq!(evaluate(&Dim::Symbol(text.into()), &run), expected, "{text}");
        }
        assert_eq!(evaluate(&Dim::Fixed(7), &run), Some(7));
    }

    #[test]
    fn a_profile_spans_its_runs_and_is_best_for_the_first() {
        let symbol = |name: &str| Dim::Symbol(name.into());
        let port = Port {
            name: "latents".into(),
            dtype: DType::F32,
            shape: vec![Dim::Fixed(1), symbol("frames"), symbol("height")],
        };
        let graph = Graph { file: "vae_decoder/first.onnx".into(), opset: 21, inputs: vec![port], outputs: vec![] };
        let small = run(&[("frames", 3), ("height", 30)]);
        let large = run(&[("frames", 2), ("height", 60)]);
        let one = run(&[("frames", 1), ("height", 60)]);
        let found = ranges(&graph, &[vec![small, large], vec![one]]).expect("known sizes");
        let expected = [
            Range { min: vec![1, 2, 30], opt: vec![1, 3, 30], max: vec![1, 3, 60] },
            Range { min: vec![1, 1, 60], opt: vec![1, 1, 60], max: vec![1, 1, 60] },
        ];
        assert_eq!(found["latents"], expected);
        let error = ranges(&graph, &[vec![run(&[("frames", 3)])]]).expect_err("height is unknown");
        let message = "`vae_decoder/first.onnx`, input `latents`: expected a size made of frames, height and width, found `height`";
        assert_eq!(error.to_string(), message);
    }
}
