//! What quantization costs: the transformer in few bits against the float one, both run by ONNX Runtime on the CPU. The
//! graphs for TensorRT run there too, in `f32`.

mod common;
mod scene;

use std::convert::Infallible;
use std::path::Path;

use cogvx::export::{Component, ExportOptions};
use cogvx::rng::TorchGenerator;
use cogvx::runtime::{Device, Input, Layout, Runtime};
use cogvx_calibration::metrics::difference;
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::graph::Constant;
use cogvx_graphs::onnx::serialize;
use cogvx_graphs::op::Op;
use cogvx_graphs::pass::{self, Lower, Target};
use cogvx_graphs::quantized::{LinearForm, QuantizedLinear};
use cogvx_graphs::{DType, Graph, dims};
use ndarray::{ArrayD, Axis, IxDyn, Slice};

use common::{bundle_of, calibrated, fixture, fresh_folder, pipeline};
use scene::Scene;

/// What the transformer of `checkpoint` predicts from noise and a prompt that no table has seen.
fn predicted(checkpoint: &Path, options: &ExportOptions) -> Vec<f32> {
    let folder = fresh_folder();
    let components = vec![Component::TextEncoder, Component::Transformer];
    let float = ExportOptions { components: components.clone(), ..ExportOptions::default() };
    let options = ExportOptions { components: vec![Component::Transformer], ..options.clone() };
    let (float, _) = bundle_of(checkpoint, &folder.path().join("float"), &float);
    let (bundle, _) = bundle_of(checkpoint, folder.path(), &options);
    let float = pipeline(&float);
    let ids = float.tokenize(&["a blue triangle moving right", ""]).expect("a short text");
    let text = float.encode(&ids).expect("a text encoder");
    let config = &float.bundle().manifest().config["transformer"];
    let size = |field: &str| usize::try_from(config[field].as_u64().expect("a number")).expect("small");
    let shape = [2, 4, size("in_channels"), size("sample_height"), size("sample_width")];
    let noise = TorchGenerator::new(7).randn(shape.iter().product());
    let mut latents = ArrayD::from_shape_vec(shape.to_vec(), noise).expect("as many numbers");
    // The channels of an image have its frame, then zeros.
    latents
        .slice_axis_mut(Axis(2), Slice::from(size("out_channels")..))
        .slice_axis_mut(Axis(1), Slice::from(1..))
        .fill(0.0);
    let prediction = pipeline(&bundle).transformer().expect("a transformer").predict(&latents, &text, 400);
    prediction.expect("a prediction").into_raw_vec_and_offset().0
}

/// Relative error of a scheme.
fn error(checkpoint: &Path, float: &[f32], target: Target, scheme: Scheme, table: Option<&Path>) -> f64 {
    let options = ExportOptions {
        target,
        precision: (target == Target::TensorRt).then_some(DType::F32),
        quantize: Some(scheme),
        calibration: table.map(Into::into),
        ..ExportOptions::default()
    };
    difference(&predicted(checkpoint, &options), float).relative_l2
}

/// Target, scheme, the least and most it may lose.
const CASES: [(Target, Scheme, f64, f64); 8] = [
    (Target::Cpu, Scheme::Int8, 1e-3, 0.01),
    (Target::Cpu, Scheme::Int8Static, 2e-3, 0.02),
    (Target::Cpu, Scheme::Int8Weight, 1e-3, 0.01),
    (Target::Cpu, Scheme::Int4Weight, 0.01, 0.08),
    (Target::TensorRt, Scheme::Int8Static, 2e-3, 0.02),
    (Target::TensorRt, Scheme::Int8Weight, 1e-3, 0.01),
    (Target::TensorRt, Scheme::Int4Weight, 0.01, 0.08),
    (Target::TensorRt, Scheme::Fp8, 5e-3, 0.03),
];

/// The same for a model that continues an image; this one is only 48 wide.
const IMAGE_CASES: [(Target, Scheme, f64, f64); 3] = [
    (Target::Cpu, Scheme::Int8, 1e-3, 0.02),
    (Target::Cpu, Scheme::Int8Static, 2e-3, 0.04),
    (Target::Cpu, Scheme::Int8Weight, 1e-3, 0.02),
];

#[test]
fn every_scheme_loses_as_little_as_its_bits_allow_and_less_with_a_table() {
    let folder = fresh_folder();
    let mut wrong = vec![];
    for (name, cases) in [("2b-fp32", &CASES[..]), ("5b", &CASES), ("1.5-i2v", &IMAGE_CASES)] {
        let checkpoint = fixture(name);
        let table = calibrated(&checkpoint, folder.path());
        let float = predicted(&checkpoint, &ExportOptions::default());
        for &(target, scheme, least, most) in cases {
            let error = |table| error(&checkpoint, &float, target, scheme, table);
            let with = error(Some(table.as_path()));
            let without = (!scheme.needs_table()).then(|| error(None));
            let line = format!("{name} {target:?} {}: {with:.4} with a table, {without:.4?} without", scheme.name());
            println!("{line}");
            if !(least..most).contains(&with) || without.is_some_and(|without| without <= with || without > most) {
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Make the values that attention averages in `scene`'s transformer 2^16 times larger, and what becomes of them so much smaller:
/// the model computes the same, but beyond the range of `float16`.
fn plant_large_values(scene: &Scene, width: usize) {
    scene.tensors("CKPT/transformer/diffusion_pytorch_model.safetensors", |tensors| {
        for (name, (_, shape, bytes)) in tensors.iter_mut().filter(|(name, _)| name.starts_with("transformer_blocks")) {
            let row_of = |i: usize| i / if shape.len() == 1 { 1 } else { shape[1] };
            let scales: &[(&str, f32)] = &[
                (".norm1.norm.", 16.0),
                (".to_q.weight", 1.0 / 16.0),
                (".to_k.weight", 1.0 / 16.0),
                (".to_v.weight", 4096.0),
                (".to_v.bias", 65536.0),
                (".to_out.0.weight", 1.0 / 32.0),
                (".to_out.0.bias", 2048.0),
            ];
            let scale = scales.iter().find(|(part, _)| name.contains(part)).map_or(1.0, |(_, scale)| *scale);
            for (i, four) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
                // Of the six rows of blocks that the time makes: shift, scale, gate, of video and of text.
                let scale = match (name.contains(".norm1.linear."), row_of(i) / width % 3) {
                    (true, 0) => 16.0,
                    (true, 2) => 1.0 / 2048.0,
                    _ => scale,
                };
                *four = (f32::from_le_bytes(*four) * scale).to_le_bytes();
            }
        }
    });
}

#[test]
fn what_float16_does_not_hold_stays_float32() {
    let scene = Scene::new("2b-fp32");
    let checkpoint = scene.path("CKPT");
    let before = predicted(&checkpoint, &ExportOptions::default());
    plant_large_values(&scene, 32);
    let float = predicted(&checkpoint, &ExportOptions::default());
    assert!(difference(&float, &before).relative_l2 < 1e-5, "{:?}", difference(&float, &before));
    let table = calibrated(&checkpoint, scene.root());
    for target in [Target::Cuda, Target::TensorRt] {
        let options = |quantize, calibration| ExportOptions {
            target,
            precision: Some(DType::F16),
            quantize,
            calibration,
            ..ExportOptions::default()
        };
        let islands = |calibration| {
            let folder = fresh_folder();
            bundle_of(&checkpoint, folder.path(), &options(None, calibration)).1.fp32_islands
        };
        let values = ["0", "1"].map(|block| format!("transformer/transformer_blocks.{block}.attn1.to_v/Linear"));
        assert_eq!(islands(Some(table.clone())).into_keys().collect::<Vec<_>>(), values);
        assert!(islands(None).is_empty());
        // ONNX Runtime's CPU provider computes a float16 model in float32 between casts that it takes out, but not a quantized
        // one.
        let int8 = Some(Scheme::Int8Weight);
        assert!(predicted(&checkpoint, &options(int8, None)).iter().any(|x| x.is_nan()), "{target:?}: no overflow");
        for (quantize, most) in [(None, 2e-3), (int8, 5e-3)] {
            let with = predicted(&checkpoint, &options(quantize, Some(table.clone())));
            let error = difference(&with, &float).relative_l2;
            println!("{target:?} fp16 {quantize:?}: {error:.1e}");
            assert!(error < most, "{target:?} {quantize:?}: {error}");
        }
    }
}

#[test]
fn products_of_the_largest_bytes_are_exact() {
    // Of these some processors add pairs in sixteen bits, which do not hold them.
    const WIDTH: usize = 64;
    let graph = Graph::new();
    let x = graph.input("x", DType::F32, dims![2, WIDTH]);
    let values = vec![127_u8; WIDTH * WIDTH];
    let parts = [
        graph.constant(Constant { dtype: DType::I8, shape: vec![WIDTH, WIDTH], bytes: values }),
        graph.floats(&[WIDTH], &[1.0; WIDTH]),
    ];
    let op = QuantizedLinear { features: [WIDTH, WIDTH], form: LinearForm::PerToken { rotation: 1 } };
    let inputs: Vec<_> = [x].into_iter().chain(parts).map(|value| Some(value.id())).collect();
    graph.output("y", graph.add(Op::QuantizedLinear(op), &inputs)[0]);
    let lowered = pass::run(&mut Lower::new(Target::Cpu), &graph).expect("a correct graph");
    let model = serialize(&lowered, "linear", |_| -> Result<_, Infallible> { unreachable!("no weights") });
    let folder = fresh_folder();
    let file = folder.path().join("model.onnx");
    std::fs::write(&file, model.expect("cannot fail").bytes).expect("a writable folder");
    let runtime = Runtime::start(Device::Cpu, 1).expect("ONNX Runtime starts");
    let mut session = runtime.load(&file, Layout::Packed).expect("a graph it knows");
    let x = ArrayD::from_shape_fn(IxDyn(&[2, WIDTH]), |at| if at[0] == 0 { 1.0 } else { -1.0 });
    let outputs = session.run(&[("x", Input::Float(x.view()))]).expect("a run");
    let y = outputs.array("y").expect("its output");
    // 64 times 127 times one.
    assert!(y.iter().zip(&x).all(|(y, x)| (y - 8128.0 * x).abs() < 0.01), "{y}");
}

/// Channels that are this much larger than the others.
const OUTLIER: f32 = 30.0;

/// Make some channels of what the norms of the blocks of `scene`'s transformer give larger, and what reads them smaller: the
/// model computes the same.
fn plant_outliers(scene: &Scene, width: usize) {
    let planted = [3, 17, 26];
    scene.tensors("CKPT/transformer/diffusion_pytorch_model.safetensors", |tensors| {
        for (name, (dtype, shape, bytes)) in
            tensors.iter_mut().filter(|(name, _)| name.starts_with("transformer_blocks"))
        {
            assert_eq!(dtype, "F32");
            let input = *shape.last().expect("a vector or a matrix");
            // Scale and shift of the norms; shifts, rows 0 and 3 of the six that the time makes; then what reads the norms.
            let norm = [".norm1.norm.", ".norm2.norm."].iter().any(|part| name.contains(part));
            let shifts = name.contains(".norm1.linear.") || name.contains(".norm2.linear.");
            let reads = [".to_q.weight", ".to_k.weight", ".to_v.weight", ".ff.net.0.proj.weight"];
            let reads = reads.iter().any(|end| name.ends_with(end));
            for (i, four) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
                let (row, column) = if shape.len() == 1 { (i, 0) } else { (i / input, i % input) };
                let larger = norm && planted.contains(&row)
                    || shifts && [0, 3].contains(&(row / width)) && planted.contains(&(row % width));
                let smaller = reads && planted.contains(&column);
                let factor = if larger {
                    OUTLIER
                } else if smaller {
                    1.0 / OUTLIER
                } else {
                    1.0
                };
                *four = (f32::from_le_bytes(*four) * factor).to_le_bytes();
            }
        }
    });
}

#[test]
fn channels_that_stick_out_are_smoothed() {
    let scene = Scene::new("2b-fp32");
    let checkpoint = scene.path("CKPT");
    let before = predicted(&checkpoint, &ExportOptions::default());
    plant_outliers(&scene, 32);
    let float = predicted(&checkpoint, &ExportOptions::default());
    assert!(difference(&float, &before).relative_l2 < 1e-5, "{:?}", difference(&float, &before));
    let table = calibrated(&checkpoint, scene.root());
    let error = |table| error(&checkpoint, &float, Target::Cpu, Scheme::Int8, table);
    let (with, without) = (error(Some(table.as_path())), error(None));
    let decibels = 20.0 * (without / with).log10();
    println!("int8: {with:.4} with smoothing, {without:.4} without: {decibels:.1} dB");
    assert!(decibels >= 6.0, "{with} {without}: {decibels} dB");
}
