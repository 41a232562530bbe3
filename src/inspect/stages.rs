//! Which layers make up a stage, and what goes in and comes out of it.

use std::collections::BTreeSet;

use cogvx_graphs::Graph;
use cogvx_graphs::cost::{CostError, Sizes, elements};
use cogvx_graphs::graph::Source;
use cogvx_graphs::op::Op;

use crate::blueprint::Blueprint;
use crate::export::Component;

/// Part of a component.
pub(super) struct Stage {
    pub name: String,
    pub depth: usize,
    /// Whether a layer of this path is part of it.
    pub has: Box<dyn Fn(&str) -> bool>,
}

/// The stages of a component.
pub(super) fn of(blueprint: &Blueprint, component: Component) -> Vec<Stage> {
    match component {
        Component::TextEncoder => {
            // The first one has the table of relative positions, too.
            let block = format!("encoder.block.{}", usize::from(blueprint.text.num_layers > 1));
            vec![
                stage("token embedding", 0, &["shared", "encoder.embed_tokens"], &[]),
                stage("one block", 0, &[&block], &[]),
                stage("attention", 1, &[&format!("{block}.layer.0")], &[]),
                stage("feed-forward", 1, &[&format!("{block}.layer.1")], &[]),
                stage(&format!("all {} blocks", blueprint.text.num_layers), 0, &["encoder.block"], &[]),
                stage("last norm", 0, &["encoder.final_layer_norm"], &[]),
            ]
        }
        Component::Transformer => {
            let block = |part: &str| format!("transformer_blocks.0.{part}");
            let parts = |parts: &[&str]| parts.iter().map(|part| block(part)).collect::<Vec<_>>();
            let named = |name: &str, paths: &[&str]| {
                let paths = parts(paths);
                stage(name, 1, &paths.iter().map(String::as_str).collect::<Vec<_>>(), &[])
            };
            let projections = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out"];
            let outside = parts(&projections);
            let outside: Vec<_> = outside.iter().map(String::as_str).collect();
            vec![
                stage("text embedding", 0, &["patch_embed.text_proj"], &[]),
                stage("video embedding", 0, &["patch_embed"], &["patch_embed.text_proj"]),
                stage("time embedding", 0, &["time_embedding", "ofs_embedding"], &[]),
                stage("one block", 0, &["transformer_blocks.0"], &[]),
                named("AdaLN", &["norm1", "norm2"]),
                named("queries, keys, values", &projections[..3]),
                stage("attention itself", 1, &[&block("attn1")], &outside),
                named("attention out", &projections[3..]),
                named("feed-forward", &["ff"]),
                stage(&format!("all {} blocks", blueprint.dit.num_layers), 0, &["transformer_blocks"], &[]),
                stage("output head", 0, &["norm_final", "norm_out", "proj_out"], &[]),
            ]
        }
        Component::VaeDecoder => {
            let mut stages = vec![stage("first convolution", 0, &["decoder.conv_in"], &[])];
            stages.push(stage("middle", 0, &["decoder.mid_block"], &[]));
            let blocks = blueprint.vae.block_out_channels.iter().rev().enumerate();
            stages.extend(blocks.map(|(i, channels)| {
                stage(&format!("block {i} of {channels} channels"), 0, &[&format!("decoder.up_blocks.{i}")], &[])
            }));
            stages.push(stage("last norm and convolution", 0, &["decoder.norm_out", "decoder.conv_out"], &[]));
            stages
        }
        Component::VaeEncoder => {
            let mut stages = vec![stage("first convolution", 0, &["encoder.conv_in"], &[])];
            let blocks = blueprint.vae.block_out_channels.iter().enumerate();
            stages.extend(blocks.map(|(i, channels)| {
                stage(&format!("block {i} of {channels} channels"), 0, &[&format!("encoder.down_blocks.{i}")], &[])
            }));
            stages.push(stage("middle", 0, &["encoder.mid_block"], &[]));
            stages.push(stage("last norm and convolution", 0, &["encoder.norm_out", "encoder.conv_out"], &[]));
            stages
        }
    }
}

/// The layers at and below `paths`, without those at and below `others`.
fn stage(name: &str, depth: usize, paths: &[&str], others: &[&str]) -> Stage {
    let owned = |paths: &[&str]| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (paths, others) = (owned(paths), owned(others));
    let is_in = |path: &str, of: &[String]| {
        of.iter().any(|of| path.strip_prefix(of.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    };
    let has = Box::new(move |path: &str| is_in(path, &paths) && !is_in(path, &others));
    Stage { name: name.into(), depth, has }
}

/// Shapes of what goes in and comes out, each once.
pub(super) struct Ends {
    pub input: Vec<Vec<usize>>,
    pub output: Vec<Vec<usize>>,
}

/// What is smaller than this share of the largest is left out: the timestep, gates, tables.
const SMALL: u64 = 100;

impl Ends {
    /// Of the layers whose paths `has` tells, in the order of their nodes.
    pub fn of(graph: &Graph, sizes: &Sizes, has: &dyn Fn(&str) -> bool) -> Result<Self, CostError> {
        let (nodes, values) = (graph.nodes(), graph.values());
        let live = graph.live();
        // What only marks a precision is what it reads.
        let mut own: Vec<usize> = (0..values.len()).collect();
        let mut layers: Vec<(&str, Vec<usize>, &[usize])> = vec![];
        for node in nodes.iter().filter(|node| node.outputs.iter().any(|&value| live[value])) {
            let read: Vec<_> = node.inputs.iter().flatten().map(|&value| own[value]).collect();
            match (&node.op, &read[..], &node.outputs[..]) {
                (Op::Narrow | Op::Wide, &[input], &[output]) => own[output] = input,
                _ => layers.push((&node.path, read, &node.outputs)),
            }
        }
        let (inside, outside): (Vec<_>, Vec<_>) = layers.into_iter().partition(|(path, ..)| has(path));
        let made: BTreeSet<_> = inside.iter().flat_map(|(.., made)| made.iter().copied()).collect();
        let outputs = graph.outputs();
        let returned = outputs.iter().filter(|output| !output.state).map(|output| own[output.value]);
        let wanted: BTreeSet<_> =
            outside.iter().flat_map(|(_, read, _)| read.iter().copied()).chain(returned).collect();
        let fed = inside.iter().flat_map(|(_, read, _)| read.iter().copied()).filter(|value| {
            let is_fed = matches!(values[*value].source, Source::Input { state: false, .. } | Source::Node { .. });
            is_fed && !made.contains(value)
        });
        let shapes = |of: &mut dyn Iterator<Item = usize>| -> Result<Vec<Vec<usize>>, CostError> {
            let shapes = of.map(|value| sizes.shape(&values[value].r#type)).collect::<Result<Vec<_>, _>>()?;
            let most = shapes.iter().map(|shape| elements(shape)).max().unwrap_or(0);
            let mut shown: Vec<Vec<usize>> = vec![];
            for shape in shapes {
                if elements(&shape) * SMALL >= most && !shown.contains(&shape) {
                    shown.push(shape);
                }
            }
            Ok(shown)
        };
        let output = shapes(&mut made.iter().copied().filter(|value| wanted.contains(value)))?;
        Ok(Self { input: shapes(&mut { fed })?, output })
    }
}
