//! Printed graphs of a transformer block in each scheme on each target that has kernels for it.

#[path = "../../graphs/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;

use cogvx_calibration::balance::Balance;
use cogvx_calibration::convs;
use cogvx_calibration::histogram::Clip;
use cogvx_calibration::islands::Islands;
use cogvx_calibration::observe::{Observe, Seen};
use cogvx_calibration::plan::{Plan, Scheme};
use cogvx_calibration::quantize::Quantize;
use cogvx_calibration::scales::settled;
use cogvx_calibration::smooth::smooth;
use cogvx_calibration::table::{Place, Table};
use cogvx_graphs::config::VaeConfig;
use cogvx_graphs::model::vae::{self, Part};
use cogvx_graphs::pass::fuse::fuse;
use cogvx_graphs::pass::{self, Lower, Precision, Target};
use cogvx_graphs::{BuildError, DType, Dim, Graph, VideoDims, Weights};
use insta::assert_snapshot;

use common::{built, transformer};

/// `graph` after quantization, precision and lowering.
fn lowered(graph: &Graph, plan: &Plan, compute: DType) -> Graph {
    let quantized = pass::run(&mut Quantize::new(plan, graph), graph);
    let precise = quantized.and_then(|graph| pass::run(&mut Precision::new(compute, Some(compute)), &graph));
    let lowered = precise.and_then(|graph| pass::run(&mut Lower::new(plan.target), &graph));
    lowered.unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// The lines of the block.
fn block(graph: &Graph) -> String {
    part(graph, &["transformer_blocks.0"])
}

/// The lines of the layers whose paths begin so.
fn part(graph: &Graph, paths: &[&str]) -> String {
    let (mut inside, mut text) = (false, String::new());
    for line in graph.to_string().lines() {
        if !line.starts_with(' ') {
            inside = line.ends_with(':') && paths.iter().any(|path| line.starts_with(path));
        }
        if inside {
            let _ = writeln!(text, "{line}");
        }
    }
    assert!(!text.is_empty(), "no block");
    text
}

/// Features from -2 to 3, of which some are large.
fn place(width: usize) -> Place {
    let numbers = |most: f32| -> Vec<f32> { (0..width).map(|i| if i % 8 == 3 { 4.0 * most } else { most }).collect() };
    let mut place = Place { width, ..Place::default() };
    place.see(0, 1, &numbers(-2.0), &numbers(3.0));
    place.sample(&[numbers(-2.0), numbers(3.0)].concat(), 2);
    place
}

#[test]
fn every_scheme_on_every_target_that_has_kernels_for_it() {
    let graph = built(transformer);
    for (name, target, compute) in [
        ("cpu", Target::Cpu, DType::F32),
        ("cuda", Target::Cuda, DType::F16),
        ("tensorrt", Target::TensorRt, DType::F16),
    ] {
        for scheme in Scheme::ALL.into_iter().filter(|scheme| scheme.runs_on(target)) {
            let mut plan = Plan::new(&graph, scheme, target);
            for layer in plan.layers.values_mut() {
                layer.form = settled(layer.form, target, &place(layer.features[1]), &Balance::default(), Clip::MinMax);
            }
            assert_snapshot!(format!("{}_on_{name}", scheme.name()), block(&lowered(&graph, &plan, compute)));
        }
    }
}

#[test]
fn what_cogvx_has_kernels_for_becomes_its_operators() {
    let graph = built(transformer);
    let float = Plan::none(Target::Cpu);
    let int8 = Plan::new(&graph, Scheme::Int8, Target::Cpu);
    for (name, plan) in [("float", float), ("int8", int8)] {
        let fused = fuse(&lowered(&graph, &plan, DType::F32)).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_snapshot!(format!("{name}_of_own_kernels"), block(&fused.expect("something to fuse")));
    }
}

#[test]
fn what_float16_does_not_hold_is_an_island_of_float32() {
    let graph = built(transformer);
    let mut names = Observe::new(1);
    let observed = pass::run(&mut names, &graph).unwrap_or_else(|problems| panic!("{problems:?}"));
    let large = ["attn1.to_v/Linear", "ff.net.0.proj/Linear"].map(|end| format!("transformer_blocks.0.{end}"));
    let bounds: BTreeMap<_, _> = observed
        .outputs()
        .iter()
        .filter_map(|output| Seen::of_output(&output.name).filter(|(_, seen)| *seen == Seen::Minimum))
        .map(|(name, _)| {
            let most = if large.iter().any(|large| large == name) { 1e5 } else { 10.0 };
            (format!("transformer/{name}"), [-most, 1.0])
        })
        .collect();
    let mut islands = Islands::new(&bounds, "transformer");
    let wide = pass::run(&mut islands, &graph).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert_eq!(islands.unknown(), None);
    let found: Vec<_> = islands.found().iter().map(|(name, most)| format!("{name} {most}")).collect();
    assert_eq!(
        found,
        [
            "transformer/transformer_blocks.0.attn1.to_v/Linear 100000",
            "transformer/transformer_blocks.0.ff.net.0.proj/Linear 100000"
        ]
    );
    assert_snapshot!("fp32_islands", block(&lowered(&wide, &Plan::none(Target::TensorRt), DType::F16)));
}

#[test]
fn factors_are_folded_into_norms_and_rows_before() {
    let graph = built(transformer);
    let mut plan = Plan::new(&graph, Scheme::Int8, Target::Cpu);
    let mut table = Table { ranges: 1, ..Table::default() };
    for (name, layer) in &plan.layers {
        table.places.insert(format!("transformer/{name}"), place(layer.features[1]));
        table.layers.insert(format!("transformer/{name}"), format!("transformer/{name}"));
    }
    plan.place(&table, "table".as_ref(), "transformer").expect("each layer has its place");
    let features = plan.layers.iter().map(|(name, layer)| (name.clone(), layer.features)).collect::<Vec<_>>();
    let read = |name: &str| -> Result<Vec<f32>, Infallible> {
        let (_, [out, input]) = features.iter().find(|(layer, _)| layer == name).expect("a layer");
        // Uneven numbers of both signs.
        Ok([1.0, -0.6, 0.3, -0.9, 0.1].into_iter().cycle().take(out * input).collect())
    };
    let Ok(()) = smooth(&mut plan, &graph, (&table, Clip::MinMax), &read);
    // What is multiplied where; the factors themselves are the search's.
    let folded = plan.layers.iter().map(|(name, layer)| {
        let of = |factors: &[f32]| if factors.is_empty() { "none".to_string() } else { factors.len().to_string() };
        let [offsets, columns, rows] = [&layer.balance.offsets, &layer.balance.factors, &layer.rows].map(|f| of(f));
        format!("{name}: {offsets} offsets, {columns} columns, {rows} rows\n")
    });
    let folded: String = folded.collect();
    assert_snapshot!("factors_folded", folded + &block(&lowered(&graph, &plan, DType::F32)));
}

/// A decoder of two blocks, the first of which doubles time and space, wide enough to be quantized.
fn decoder(weights: &Weights, part: Part) -> Result<Graph, BuildError> {
    let blocks = |name: &str| serde_json::json!([name, name]);
    let config = serde_json::json!({
        "_class_name": "AutoencoderKLCogVideoX", "block_out_channels": [16, 32], "latent_channels": 3,
        "layers_per_block": 1, "norm_num_groups": 2, "temporal_compression_ratio": 2,
        "down_block_types": blocks("CogVideoXDownBlock3D"), "up_block_types": blocks("CogVideoXUpBlock3D"),
    });
    let config = VaeConfig::from_value("config.json".as_ref(), config).expect("a correct configuration");
    let frames = if part == Part::First { Dim::named("frames") } else { Dim::Fixed(2) };
    vae::decoder(&config, weights, &VideoDims { frames, ..VideoDims::dynamic() }, part)
}

#[test]
fn the_decoder_moves_bytes_to_its_convolutions_and_keeps_them() {
    for (name, model) in [
        ("first", (|weights: &Weights| decoder(weights, Part::First)) as common::Model),
        ("next", |weights| decoder(weights, Part::Next)),
    ] {
        let graph = built(model);
        let mut plan = Plan::new(&graph, Scheme::Int8, Target::Cpu);
        plan.convs = convs::find(&graph);
        let mut table = Table::default();
        for (i, conv) in plan.convs.values().enumerate() {
            let value = format!("vae_decoder/{}", conv.value);
            let most = f32::from(u8::try_from(i).expect("few"));
            table.see_value(&format!("{value}.input"), [-0.25, 8.0 + most]);
            table.see_value(&value, [-16.0 - most, 16.0]);
        }
        for conv in plan.convs.values_mut() {
            conv.settle(&table, "TABLE".as_ref(), "vae_decoder").expect("the table tells");
        }
        let graph = lowered(&graph, &plan, DType::F32);
        let ports = graph.to_string();
        let states = ports.lines().filter(|l| (l.starts_with("in  ") || l.starts_with("out ")) && !l.contains("f32"));
        let states = states.collect::<Vec<_>>().join("\n") + "\n";
        let layers = [
            "decoder.mid_block.resnets.0.conv1",
            "decoder.up_blocks.0.upsamplers",
            "decoder.up_blocks.1.resnets.0.conv",
        ];
        assert_snapshot!(format!("decoder_{name}_in_int8"), states + &part(&graph, &layers));
    }
}
