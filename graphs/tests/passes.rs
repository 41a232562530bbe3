//! What the passes promise, on models and on graphs made for the purpose.

mod common;

use cogvx_graphs::graph::{Graph, Source, Weight};
use cogvx_graphs::op::Op;
use cogvx_graphs::pass::{self, Lower, Precision, Target};
use cogvx_graphs::{DType, Dim, dims};

use common::{built, lowered, text_encoder, transformer, vae_first};

/// Element types that the layer at the end of `path` computes in, in the order of its nodes.
fn computes_in(graph: &Graph, path: &str, op: &str) -> Vec<DType> {
    let (values, nodes) = (graph.values(), graph.nodes());
    let found = nodes.iter().filter(|n| n.path.ends_with(path) && n.op.name() == op);
    found.map(|n| values[n.outputs[0]].r#type.dtype).collect()
}

#[test]
fn float16_is_used_where_its_range_is_enough() {
    let graph = pass::run(&mut Precision::new(DType::F16, Some(DType::F16)), &built(text_encoder)).expect("correct");
    for (path, op, expected) in [
        ("SelfAttention.q", "Linear", vec![DType::F16]),
        ("SelfAttention.k", "Linear", vec![DType::F16]),
        ("SelfAttention.v", "Linear", vec![DType::F16]),
        ("SelfAttention", "Attention", vec![DType::F16]),
        ("SelfAttention.o", "Linear", vec![DType::F16]),
        ("DenseReluDense.wi_0", "Linear", vec![DType::F16]),
        ("DenseReluDense.wi_1", "Linear", vec![DType::F16]),
        ("DenseReluDense", "Mul", vec![DType::F16]),
        // The residual stream, its norms and what is added to it.
        ("DenseReluDense.wo", "Linear", vec![DType::F32]),
        ("encoder.block.0.layer.0.layer_norm", "RmsNorm", vec![DType::F32]),
        ("encoder.block.0.layer.1.layer_norm", "RmsNorm", vec![DType::F32]),
        ("encoder.final_layer_norm", "RmsNorm", vec![DType::F32]),
        // The additions to the residual stream.
        ("SelfAttention", "Add", vec![DType::F32]),
        ("DenseReluDense", "Add", vec![DType::F32]),
    ] {
        assert_eq!(computes_in(&graph, path, op), expected, "{path}/{op}\n{graph}");
    }
}

#[test]
fn bfloat16_has_the_range_for_everything() {
    let graph = pass::run(&mut Precision::new(DType::BF16, Some(DType::BF16)), &built(text_encoder)).expect("correct");
    let values = graph.values();
    let wide = graph.nodes().iter().filter(|n| values[n.outputs[0]].r#type.dtype == DType::F32).count();
    assert_eq!(wide, 1, "only the output is f32\n{graph}");
}

#[test]
fn weights_never_take_more_bits_than_the_checkpoint_has() {
    for (own, asked, expected) in [
        (DType::F32, Some(DType::F16), DType::F16),
        (DType::F32, None, DType::F32),
        (DType::F16, Some(DType::F32), DType::F16),
        (DType::BF16, Some(DType::F32), DType::BF16),
        (DType::BF16, Some(DType::F16), DType::F16),
        (DType::F16, None, DType::F16),
    ] {
        let graph = Graph::new();
        let weight = graph.weight(Weight::whole("w", own, &[2, 4]), DType::F32);
        graph.output("y", graph.input("x", DType::F32, dims![1, 4]).linear(weight, None));
        let graph = pass::run(&mut Precision::new(DType::F32, asked), &graph).expect("a correct graph");
        let stored: Vec<_> = graph
            .values()
            .iter()
            .filter_map(|v| if let Source::Weight(w) = &v.source { Some(w.stored) } else { None })
            .collect();
        assert_eq!(stored, [expected], "{own} asked for {asked:?}");
    }
}

#[test]
fn states_have_the_compute_precision_and_other_ports_are_float32() {
    for (compute, expected) in [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::BF16, DType::BF16)] {
        let graph = lowered(vae_first, Target::Cuda, compute, compute);
        let values = graph.values();
        for output in graph.outputs().iter() {
            let expected = if output.state { expected } else { DType::F32 };
            assert_eq!(values[output.value].r#type.dtype, expected, "{} in {compute}", output.name);
        }
    }
}

/// The lowered graph that reshapes `from` to `to`.
fn reshaped(from: Vec<Dim>, to: Vec<Dim>) -> String {
    let graph = Graph::new();
    graph.output("y", graph.input("x", DType::F32, from).reshape(to).silu());
    let graph = pass::run(&mut Lower::new(Target::Cpu), &graph).expect("a correct graph");
    let text = graph.to_string();
    text.lines()
        .filter(|l| l.starts_with("    ") && !l.contains("QuickGelu"))
        .map(str::trim)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn reshapes_leave_one_size_to_be_inferred_and_measure_the_others() {
    let (batch, frames) = (&Dim::named("batch"), &Dim::named("frames"));
    let product = &(batch.clone() * frames);
    for (from, to, expected) in [
        (dims![2, 6], dims![3, 4], "%0 = Reshape(x, [3 4]) : f32[3, 4]"),
        (dims![batch, 6], dims![batch, 2, 3], "%0 = Reshape(x, [-1 2 3]) : f32[batch, 2, 3]"),
        (dims![batch, frames, 4], dims![product, 4], "%0 = Reshape(x, [-1 4]) : f32[batch*frames, 4]"),
        (dims![batch, 4], dims![batch, 4], ""),
        // Two sizes are unknown: the shorter-named is measured.
        (
            dims![batch, frames, 4],
            dims![batch, frames, 2, 2],
            "%0 = Shape(x) start=0 end=1 : i64[1]\n%1 = Concat(%0, [-1], [2], [2]) axis=0 : i64[4]\n\
             %2 = Reshape(x, %1) : f32[batch, frames, 2, 2]",
        ),
        // A measured size may be a product.
        (
            dims![batch, frames, 6],
            dims![product, &(frames * 2), 3, batch],
            "%0 = Shape(x) start=1 end=2 : i64[1]\n%1 = Mul(%0, [2]) : i64[1]\n%2 = Shape(x) start=0 end=1 : i64[1]\n\
             %3 = Concat([-1], %1, [3], %2) axis=0 : i64[4]\n%4 = Reshape(x, %3) : f32[batch*frames, 2*frames, 3, batch]",
        ),
    ] {
        assert_eq!(reshaped(from.clone(), to.clone()), expected, "{from:?} to {to:?}");
    }
}

#[test]
fn a_reshape_of_a_reshape_is_one() {
    let graph = Graph::new();
    let x = graph.input("x", DType::F32, dims![2, 6]);
    graph.output("y", x.reshape(dims![3, 4]).reshape(dims![12]).silu());
    graph.output("z", x.reshape(dims![3, 4]).reshape(dims![2, 6]).silu());
    let graph = pass::run(&mut Lower::new(Target::Cpu), &graph).expect("a correct graph");
    let live = graph.live();
    let reshapes = |n: &&cogvx_graphs::graph::Node| n.op.name() == "Reshape" && live[n.outputs[0]];
    assert_eq!(graph.nodes().iter().filter(reshapes).count(), 1, "{graph}");
}

#[test]
fn tensorrt_attention_is_fused_where_there_is_a_kernel() {
    for (heads, width, dtype, fused) in [
        (2, 128, DType::F16, true),
        (2, 128, DType::BF16, true),
        (1, 16, DType::F16, true),
        (2, 128, DType::F32, false),
        (4, 32, DType::F16, false), // Heads of 8.
        (3, 15, DType::BF16, false),
    ] {
        for target in [Target::TensorRt, Target::Cpu] {
            let graph = Graph::new();
            let x = graph.input("x", dtype, dims![&Dim::named("batch"), &Dim::named("tokens"), width]);
            graph.output("y", x.attention(x, x, None, heads, 0.5));
            let graph = pass::run(&mut Lower::new(target), &graph).expect("a correct graph");
            let has = |name: &str| graph.nodes().iter().any(|n| n.op.name() == name);
            let expected = match target {
                Target::TensorRt => [fused, !fused, !fused, false],
                _ => [false, false, false, true],
            };
            let found = ["Attention", "MatMul", "Softmax", "MultiHeadAttention"].map(has);
            assert_eq!(found, expected, "{heads} heads of {width} in {dtype} for {target:?}\n{graph}");
        }
    }
}

/// `AdaLN`: `norm(x) (1 + scale) + shift` costs one layer norm and no arithmetic on the tokens.
#[test]
fn modulated_norms_are_folded_into_their_parameters() {
    let graph = built(transformer);
    let (values, nodes) = (graph.values(), graph.nodes());
    let on_tokens = nodes.iter().filter(|n| n.path.ends_with(".norm1.norm") || n.path.ends_with(".norm2.norm"));
    let on_tokens: Vec<_> =
        on_tokens.filter(|n| values[n.outputs[0]].r#type.shape.len() > 1).map(|n| n.op.name()).collect();
    assert_eq!(on_tokens, ["LayerNorm"; 4], "text and video, twice\n{graph}");
}

/// The norms of the decoder convolve latents, not features.
#[test]
fn conditioning_convolutions_run_at_latent_resolution() {
    let graph = built(vae_first);
    let (values, nodes) = (graph.values(), graph.nodes());
    let conditioning = nodes
        .iter()
        .filter(|n| matches!(n.op, Op::Conv { .. }))
        .filter(|n| n.path.ends_with("conv_y.conv") || n.path.ends_with("conv_b.conv"));
    let sizes: Vec<_> = conditioning.map(|n| format!("{:?}", &values[n.outputs[0]].r#type.shape[2..])).collect();
    assert!(sizes.len() > 10);
    assert!(sizes.iter().all(|size| size == "[frames, height, width]"), "{sizes:?}");
}

/// `x` through the layers of a feed-forward, and what is between them.
fn feed_forward(g: &Graph) -> (cogvx_graphs::Value<'_>, cogvx_graphs::Value<'_>) {
    let x = g.input("x", DType::F32, dims![&Dim::named("batch"), 5, 4]);
    let weight = |name: &str, shape: &[usize]| g.weight(Weight::whole(name, DType::F16, shape), DType::F32);
    let wide = x.linear(weight("first", &[16, 4]), None).gelu();
    (wide, wide.linear(weight("second", &[4, 16]), None))
}

#[test]
fn a_feed_forward_runs_by_halves_where_nothing_else_reads_what_is_between() {
    let gelus = |target: Target, is_read: bool| {
        let graph = Graph::new();
        let (wide, y) = feed_forward(&graph);
        graph.output("y", y);
        if is_read {
            graph.output("wide", wide);
        }
        let graph = pass::run(&mut Precision::new(DType::F32, None), &graph).expect("a sound graph");
        let graph = pass::run(&mut Lower::new(target), &graph).expect("a sound graph");
        let live = graph.live();
        graph.nodes().iter().filter(|n| n.op.name().contains("Gelu") && live[n.outputs[0]]).count()
    };
    assert_eq!(gelus(Target::Cpu, false), 2);
    assert_eq!(gelus(Target::Cpu, true), 1);
    assert_eq!(gelus(Target::Cuda, false), 1);
    assert_eq!(gelus(Target::TensorRt, false), 1);
}
