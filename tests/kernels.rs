//! cogvx's own kernels beside ONNX Runtime's: the same numbers, from graphs that have what the others have.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use cogvx::bundle::Bundle;
use cogvx::export::{Component, ExportOptions};
use cogvx::pipeline::Pipeline;
use cogvx::rng::TorchGenerator;
use cogvx::runtime::{CpuOptions, Device, Input, Kernels, Layout, Runtime, Setup};
use cogvx_calibration::metrics::difference;
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::onnx::{open, serialize};
use cogvx_graphs::op::{Attribute, OnnxOp, Op, Type};
use cogvx_graphs::{DType, Dim, Graph};
use ndarray::{ArrayD, Axis};

use common::{Checkpoint, bundle_of, checkpoints, fresh_folder, root};

/// A bundle with these kernels.
fn open_with(bundle: &Path, kernels: Kernels, threads: usize) -> Pipeline {
    let setup = Setup::Cpu(CpuOptions { kernels, ..CpuOptions::default() });
    let runtime = Runtime::start(setup, threads).expect("ONNX Runtime starts");
    Pipeline::open(Bundle::open(bundle).expect("a sound bundle"), runtime).expect("a sound bundle")
}

/// Embeddings of a prompt, and what the transformer makes of noise with them.
fn outputs(bundle: &Path, kernels: Kernels, threads: usize) -> [Vec<f32>; 2] {
    let pipeline = open_with(bundle, kernels, threads);
    let ids = pipeline.tokenize(&["a red circle moving left", ""]).expect("short texts");
    let text = pipeline.encode(&ids).expect("a text encoder");
    let request = pipeline.request("").expect("a model of the family");
    let scale = pipeline.vae.spatial_compression_ratio();
    let frames = (request.frames - 1) / pipeline.vae.temporal_compression_ratio + 1;
    let frames = frames.next_multiple_of(pipeline.dit.patch_size_t.unwrap_or(1));
    let shape = [2, frames, pipeline.dit.in_channels, request.height / scale, request.width / scale];
    let noise = TorchGenerator::new(7).randn(shape.iter().product());
    let latents = ArrayD::from_shape_vec(shape.to_vec(), noise).expect("as many numbers");
    let predicted = pipeline.transformer().expect("a transformer").predict(&latents, &text, 400);
    [text, predicted.expect("a prediction")].map(|array| array.into_raw_vec_and_offset().0)
}

/// What guidance multiplies: what the transformer predicts for noise with the second text, less what it does with the first.
fn guided(bundle: &Path, kernels: Kernels, text: &ArrayD<f32>) -> Vec<f32> {
    let pipeline = open_with(bundle, kernels, 1);
    let shape = [3, pipeline.dit.in_channels, 6, 6];
    let noise = TorchGenerator::new(7).randn(shape.iter().product());
    let noise = ArrayD::from_shape_vec(shape.to_vec(), noise).expect("as many numbers");
    let latents = ndarray::stack(Axis(0), &[noise.view(), noise.view()]).expect("of one shape");
    let mut transformer = pipeline.transformer().expect("a transformer");
    let mut predict = |t| {
        let predicted = transformer.predict(&latents, text, t).expect("a prediction");
        let [without, with] = [0, 1].map(|sample| predicted.index_axis(Axis(0), sample));
        &with - &without
    };
    predict(900).into_iter().chain(predict(100)).collect()
}

#[test]
fn what_guidance_multiplies_is_rounded_less_where_samples_are_rounded_as_differences() {
    let folders = [fresh_folder(), fresh_folder()];
    let [float, int8] = [None, Some(Scheme::Int8)].map(|quantize| {
        let components = vec![Component::TextEncoder, Component::Transformer];
        let options = ExportOptions { components, quantize, ..ExportOptions::default() };
        bundle_of(&root().join("examples/shapes-model"), folders[usize::from(quantize.is_some())].path(), &options).0
    });
    let pipeline = open_with(&float, Kernels::Plain, 1);
    let ids = pipeline.tokenize(&["", "a red circle moving left"]).expect("short texts");
    let text = pipeline.encode(&ids).expect("a text encoder");
    // Much alike, as the samples are in the later steps of a video.
    let (without, with) = (text.index_axis(Axis(0), 0), text.index_axis(Axis(0), 1));
    let text = ndarray::stack![Axis(0), &with * 0.9 + &without * 0.1, with];
    let expected = guided(&float, Kernels::Plain, &text);
    let apart = |kernels| difference(&expected, &guided(&int8, kernels, &text)).relative_l2;
    let [plain, own] = [Kernels::Plain, Kernels::Own].map(apart);
    println!("plain {plain:.1e}, own {own:.1e}");
    assert!(own < 0.8 * plain, "{own:.1e} {plain:.1e}");
}

/// cogvx's operators in a graph.
fn own(graph: &Path) -> BTreeSet<String> {
    let model = open(graph).unwrap_or_else(|e| panic!("{e}"));
    model.nodes.into_iter().filter(|node| node.domain == "cogvx").map(|node| node.op_type).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_string).into()
}

#[test]
fn every_model_gives_the_same_numbers_with_either_kernels() {
    let mut all = BTreeSet::new();
    for Checkpoint { name, path } in checkpoints() {
        for scheme in [None, Some(Scheme::Int8)] {
            let folder = fresh_folder();
            let components = vec![Component::TextEncoder, Component::Transformer];
            let options = ExportOptions { components, quantize: scheme, ..ExportOptions::default() };
            let (bundle, _) = bundle_of(&path, folder.path(), &options);
            let found = own(&bundle.join("transformer/kernels.onnx"));
            assert!(found.is_superset(&names(["FlashAttention", "Linear"])), "{name}: {found:?}");
            all.extend(found);
            assert!(!own(&bundle.join("text_encoder/kernels.onnx")).is_empty(), "{name}");
            for threads in [1, 2] {
                let (plain, own_kernels) =
                    (outputs(&bundle, Kernels::Plain, threads), outputs(&bundle, Kernels::Own, threads));
                // A number that lies between two bytes may become either.
                let limit = if scheme.is_none() { 1e-5 } else { 2e-2 };
                for (part, (plain, own_kernels)) in ["text", "noise"].iter().zip(plain.iter().zip(&own_kernels)) {
                    let apart = difference(plain, own_kernels).relative_l2;
                    println!("{name}, {scheme:?}, {part}, {threads} threads: {apart:.1e}");
                    assert!(apart <= limit, "{name}, {scheme:?}, {part}: {apart:.1e}");
                }
            }
        }
    }
    let every =
        ["FeedForward", "FlashAttention", "JoinNorms", "JoinNormsRounded", "Linear", "RescaleRows", "RoundRows"];
    assert_eq!(all, names(every));
}

/// What is said of a graph of one of cogvx's operators with inputs of zeros.
fn refusal(op: &'static str, attributes: &[(&'static str, Attribute)], shapes: &[&[usize]]) -> String {
    let (graph, names) = (Graph::new(), ["a", "b", "c", "d", "e", "f", "g", "h", "i"]);
    let dims = |shape: &[usize]| shape.iter().map(|&n| Dim::Fixed(n)).collect::<Vec<_>>();
    let inputs: Vec<_> =
        shapes.iter().zip(names).map(|(shape, name)| Some(graph.input(name, DType::F32, dims(shape)).id())).collect();
    // Before the others, what is rounded to has bytes.
    let outputs = match op {
        "RoundRows" | "JoinNormsRounded" => vec![DType::U8, DType::F32],
        _ => vec![DType::F32],
    };
    let outputs = outputs.into_iter().map(|dtype| Type::new(dtype, dims(shapes[0]))).collect();
    let op = OnnxOp { domain: "cogvx", name: op, since: 1, attributes: attributes.to_vec(), outputs };
    graph.output("y", graph.add(Op::Onnx(op), &inputs)[0]);
    let folder = fresh_folder();
    let path = folder.path().join("model.onnx");
    let model = serialize(&graph, "test", |_| Err("no weights")).expect("no weights");
    std::fs::write(&path, model.bytes).expect("a folder");
    let runtime = Runtime::start(Device::Cpu, 1).expect("ONNX Runtime starts");
    let ran = runtime.load(&path, Layout::Mapped).and_then(|mut session| {
        let zeros: Vec<_> = shapes.iter().map(|&shape| ArrayD::<f32>::zeros(shape)).collect();
        let fed: Vec<_> = names.into_iter().zip(&zeros).map(|(name, x)| (name, Input::Float(x.view()))).collect();
        session.run(&fed).map(drop)
    });
    ran.expect_err("tensors that do not fit").to_string()
}

#[test]
fn operators_refuse_tensors_that_do_not_fit() {
    use Attribute::{Float, Int};
    let attention = [("heads", Int(2)), ("scale", Float(1.0)), ("epsilon", Float(1e-6))];
    let eight = [&attention[..2], &[("bits", Int(8))]].concat();
    let norms = [("epsilon", Float(1e-5))];
    let rounding = [("zero", Int(128)), ("both_sides", Int(1)), ("least", Float(1e-30)), ("inverse", Float(0.01))];
    let sums = [&rounding[..], &[("summed", Int(1)), ("excess", Int(1))]].concat();
    let tokens: &[usize] = &[1, 3, 8];
    for (said, expected) in [
        (refusal("Linear", &[], &[&[3, 8], &[5, 7], &[5]]), "expected [rows, n] and [out, n], found [3, 8] and [5, 7]"),
        (refusal("Linear", &[], &[&[3, 0], &[5, 0]]), "expected a weight [out, in], found [5, 0]"),
        (refusal("Linear", &[], &[&[3, 8], &[5, 8], &[4]]), "input 2: expected [5], found [4]"),
        (
            refusal("FeedForward", &[], &[&[3, 8], &[5, 8], &[5], &[8, 4], &[8]]),
            "expected [rows, n] and [out, n], found [3, 5] and [8, 4]",
        ),
        (refusal("FlashAttention", &[], &[tokens, tokens, tokens]), "expected a number of `heads`"),
        (refusal("FlashAttention", &attention[..2], &[tokens, &[1, 4, 8], tokens]), "expected 2 heads of one width"),
        (
            refusal("FlashAttention", &attention[..2], &[&[1, 3, 7], &[1, 3, 7], &[1, 3, 7]]),
            "expected 2 heads of one width",
        ),
        (
            refusal("FlashAttention", &attention[..2], &[&[0, 3, 8], &[0, 3, 8], &[0, 3, 8]]),
            "expected 2 heads of one width",
        ),
        (
            refusal("FlashAttention", &attention, &[tokens, tokens, tokens, &[4], &[4], &[4], &[3]]),
            "input 6: expected [4], found [3]",
        ),
        (refusal("FlashAttention", &attention, &[tokens, tokens, tokens]), "expected input 3"),
        (refusal("FlashAttention", &eight, &[tokens, tokens, tokens]), "expected no `bits`, or 16, found 8"),
        (refusal("RescaleRows", &[], &[&[3, 8], &[2, 1], &[8]]), "expected a step for each of 3 rows, found 2"),
        (refusal("RescaleRows", &[], &[&[3, 0], &[3, 1], &[0]]), "expected [rows, features], found [3, 0]"),
        (refusal("RoundRows", &rounding[..3], &[&[3, 8]]), "expected `zero` from 0 to 255"),
        (refusal("RoundRows", &rounding, &[&[3, 0]]), "expected [rows, features], found [3, 0]"),
        (refusal("RoundRows", &sums, &[&[0, 8], &[0, 1], &[8]]), "expected [rows, features], found [0, 8]"),
        (refusal("RoundRows", &sums, &[&[7, 8], &[7, 1], &[8]]), "expected a step for each of 6 rows, found 7"),
        (
            refusal("JoinNormsRounded", &norms, &[tokens, tokens, &[8], &[8], &[8], &[8]]),
            "expected `zero` from 0 to 255",
        ),
        (refusal("JoinNorms", &norms, &[tokens, &[1, 3, 7], &[8], &[8], &[8], &[8]]), "expected text and video alike"),
        (refusal("JoinNorms", &norms, &[tokens, tokens, &[8], &[7], &[8], &[8]]), "input 3: expected [8], found [7]"),
        (refusal("JoinNorms", &[], &[tokens, tokens, &[8], &[8], &[8], &[8]]), "expected an `epsilon`"),
        (
            refusal("JoinNorms", &norms, &[tokens, tokens, &[8], &[8], &[8], &[8], &[1, 5, 8], &[8], &[8]]),
            "expected 6 rows of 8, found [1, 5, 8]",
        ),
    ] {
        assert!(said.contains(expected), "{said}, not {expected}");
    }
}
