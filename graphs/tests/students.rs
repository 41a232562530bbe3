//! Models that differ from the published ones in what no configuration tells.

mod common;

use cogvx_graphs::{DType, Weights};

use common::{transformer, wanted};

/// The transformer's tensors, its feed-forward's three of these sizes.
fn with_inner_widths([proj, bias, out]: [usize; 3]) -> Weights {
    let resized = wanted(transformer).into_iter().map(|(name, dtype, mut shape): (String, DType, Vec<usize>)| {
        let part = name.strip_prefix("transformer_blocks.0.ff.net.");
        match part {
            Some("0.proj.weight") => shape[0] = proj,
            Some("0.proj.bias") => shape[0] = bias,
            Some("2.weight") => shape[1] = out,
            _ => {}
        }
        (name, dtype, shape)
    });
    Weights::synthetic(resized.collect::<Vec<_>>())
}

fn problems(widths: [usize; 3]) -> Vec<String> {
    match transformer(&with_inner_widths(widths)) {
        Ok(_) => vec![],
        Err(error) => error.problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_feed_forward_is_as_wide_as_its_tensors() {
    // Four times the model's width is 128.
    for width in [128, 1, 77, 1000] {
        assert_eq!(problems([width; 3]), [""; 0], "{width}");
    }
}

#[test]
fn of_a_feed_forwards_tensors_the_one_that_does_not_fit_is_named() {
    let [weight, bias, out] =
        ["0.proj.weight", "0.proj.bias", "2.weight"].map(|name| format!("`transformer_blocks.0.ff.net.{name}`"));
    let file = "(model.safetensors)";
    for (widths, expected) in [
        ([76, 77, 77], vec![format!("{weight}: expected [77, 32], found [76, 32] {file}")]),
        ([77, 76, 77], vec![format!("{bias}: expected [77], found [76] {file}")]),
        ([77, 77, 76], vec![format!("{out}: expected [32, 77], found [32, 76] {file}")]),
        // Where no two agree, the published width is expected.
        (
            [75, 76, 128],
            vec![
                format!("{weight}: expected [128, 32], found [75, 32] {file}"),
                format!("{bias}: expected [128], found [76] {file}"),
            ],
        ),
        // No width at all.
        (
            [0; 3],
            vec![
                format!("{weight}: expected [128, 32], found [0, 32] {file}"),
                format!("{bias}: expected [128], found [0] {file}"),
                format!("{out}: expected [32, 128], found [32, 0] {file}"),
            ],
        ),
    ] {
        assert_eq!(problems(widths), expected, "{widths:?}");
    }
}
