//! The VAE's decoder in eight bits: the kernel against the same arithmetic done here, and decoded videos against those of the
//! float decoder.

mod common;

use std::convert::Infallible;
use std::error::Error;
use std::path::Path;

use cogvx::export::{ExportOptions, LayerChoice};
use cogvx::pipeline::Observer;
use cogvx::rng::TorchGenerator;
use cogvx::runtime::{Device, Input, Layout, Runtime};
use cogvx_calibration::convs::Convolution;
use cogvx_calibration::plan::Scheme;
use cogvx_calibration::table::Table;
use cogvx_graphs::graph::Constant;
use cogvx_graphs::onnx::serialize;
use cogvx_graphs::op::Op;
use cogvx_graphs::pass::{self, Lower, Target};
use cogvx_graphs::quantized::{Bytes, QuantizedConv};
use cogvx_graphs::{DType, Graph, dims};
use ndarray::{ArrayD, IxDyn};

use common::{bundle_of, calibrated, fresh_folder, pipeline, root};

const CHANNELS: usize = 16;
/// Frames, rows and columns; a kernel of three is padded in space, not in time.
const SIZE: [usize; 3] = [4, 5, 7];

/// A convolution of 3x3x3, told to read and make numbers of these ranges.
fn convolution(reads: [f32; 2], makes: [f32; 2]) -> Convolution {
    let unknown = Bytes { step: 1.0, zero_point: 0 };
    let shape = vec![CHANNELS, CHANNELS, 3, 3, 3];
    let mut conv =
        Convolution { shape, bias: "conv.bias".into(), value: "conv/Conv".into(), reads: unknown, makes: unknown };
    let values = [("vae/conv/Conv.input", reads), ("vae/conv/Conv", makes)].map(|(name, v)| (name.to_string(), v));
    let table = Table { values: values.into(), ..Table::default() };
    conv.settle(&table, Path::new("TABLE"), "vae").expect("both are told");
    conv
}

/// What ONNX Runtime makes of `x`.
fn computed(conv: &Convolution, [weight, bias]: [&[f32]; 2], x: &ArrayD<f32>) -> ArrayD<f32> {
    let rounded = conv.round(weight, bias);
    let graph = Graph::new();
    let [frames, rows, columns] = SIZE;
    let input = graph.input("x", DType::F32, dims![1, CHANNELS, frames, rows, columns]);
    let bias = rounded.bias.iter().flat_map(|steps| steps.to_le_bytes()).collect();
    let parameters = [
        graph.constant(Constant { dtype: DType::I8, shape: conv.shape.clone(), bytes: rounded.values }),
        graph.floats(&[CHANNELS], &rounded.scales),
        graph.constant(Constant { dtype: DType::I8, shape: vec![CHANNELS], bytes: rounded.zero_points }),
        graph.constant(Constant { dtype: DType::I32, shape: vec![CHANNELS], bytes: bias }),
    ];
    let bytes = graph.add(Op::Quantize(conv.reads), &[Some(input.id())])[0];
    let (strides, pads) = (vec![1; 3], vec![[0; 2], [1; 2], [1; 2]]);
    let op = Op::QuantizedConv(QuantizedConv { strides, pads, reads: conv.reads, makes: conv.makes });
    let inputs: Vec<_> = [bytes].into_iter().chain(parameters).map(|value| Some(value.id())).collect();
    graph.output("y", graph.add(op, &inputs)[0]);
    let lowered = pass::run(&mut Lower::new(Target::Cpu), &graph).expect("a correct graph");
    let model = serialize(&lowered, "conv", |_| -> Result<_, Infallible> { unreachable!("no weights") });
    let folder = fresh_folder();
    let file = folder.path().join("model.onnx");
    std::fs::write(&file, model.expect("cannot fail").bytes).expect("a writable folder");
    let runtime = Runtime::start(Device::Cpu, 1).expect("ONNX Runtime starts");
    let mut session = runtime.load(&file, Layout::Packed).expect("a graph it knows");
    let outputs = session.run(&[("x", Input::Float(x.view()))]).expect("a run");
    outputs.array("y").expect("its output")
}

/// The same, number by number; and what the convolution would be without rounding.
#[allow(clippy::cast_possible_truncation)] // Bytes, and sums of their products.
fn expected(conv: &Convolution, [weight, bias]: [&[f32]; 2], x: &ArrayD<f32>) -> (Vec<f32>, Vec<f32>) {
    let rounded = conv.round(weight, bias);
    let value = |x: f32, bytes: Bytes| -> i64 {
        let value = (x / bytes.step).round_ties_even() as i64 + i64::from(bytes.zero_point);
        value.clamp(0, 255) - i64::from(bytes.zero_point)
    };
    let [frames, rows, columns] = SIZE;
    let (mut made, mut exact) = (vec![], vec![]);
    for (out, &bias) in bias.iter().enumerate() {
        for place in 0..(frames - 2) * rows * columns {
            let (frame, row, column) = (place / (rows * columns), place / columns % rows, place % columns);
            let (mut sum, mut float) = (i64::from(rounded.bias[out]), bias);
            for at in 0..CHANNELS * 27 {
                let [t, h, w] = [frame + at / 9 % 3, row + at / 3 % 3, column + at % 3];
                // One row and one column of zeros on each side.
                if (1..=rows).contains(&h) && (1..=columns).contains(&w) {
                    let x = x[[0, at / 27, t, h - 1, w - 1].as_slice()];
                    let at = out * CHANNELS * 27 + at;
                    sum += value(x, conv.reads) * i64::from(i8::from_le_bytes([rounded.values[at]]));
                    float += x * weight[at];
                }
            }
            #[allow(clippy::cast_precision_loss)] // Below 2^24 here.
            let y = sum as f32 * (conv.reads.step * rounded.scales[out]);
            #[allow(clippy::cast_precision_loss)] // A byte.
            made.push(value(y, conv.makes) as f32 * conv.makes.step);
            exact.push(float);
        }
    }
    (made, exact)
}

#[test]
fn the_kernel_computes_what_its_bytes_mean() {
    let mut generator = TorchGenerator::new(3);
    let [frames, rows, columns] = SIZE;
    let numbers = generator.randn(CHANNELS * frames * rows * columns);
    let x = ArrayD::from_shape_vec(IxDyn(&[1, CHANNELS, frames, rows, columns]), numbers).expect("as many numbers");
    // As after a SiLU: mostly above zero.
    let x = x.mapv(|x| x / (1.0 + (-x).exp()));
    let mut weight: Vec<_> = generator.randn(CHANNELS * CHANNELS * 27).iter().map(|w| w / 20.0).collect();
    let mut bias = generator.randn(CHANNELS);
    // A channel whose weights are nothing beside its bias.
    weight[..CHANNELS * 27].iter_mut().for_each(|w| *w *= 1e-20);
    bias[0] = 1.5;
    for (reads, makes, most) in [([-0.3, 4.0], [-5.0, 6.0], 0.02), ([-0.3, 2.0], [-2.0, 1.0], 1.0)] {
        let conv = convolution(reads, makes);
        let found = computed(&conv, [&weight, &bias], &x);
        let (expected, exact) = expected(&conv, [&weight, &bias], &x);
        assert_eq!(found.shape(), [1, CHANNELS, frames - 2, rows, columns]);
        // A sum half way between two values may go either way.
        let differ = found.iter().zip(&expected).filter(|(a, b)| (**a - **b).abs() > 1e-5).count();
        let beside = found.iter().zip(&expected).filter(|(a, b)| (**a - **b).abs() > 1.01 * conv.makes.step).count();
        assert!(differ * 500 <= expected.len() && beside == 0, "{differ} and {beside} of {}", expected.len());
        let error = cogvx_calibration::metrics::difference(found.as_slice().expect("in order"), &exact).relative_l2;
        println!("{reads:?} {makes:?}: {error:.4}");
        assert!(error < most, "{error}");
    }
}

/// The frames of a video.
#[derive(Default)]
struct Frames(Vec<f32>);

impl Observer for Frames {
    fn frames(&mut self, frames: ArrayD<f32>, _: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.0.extend(frames);
        Ok(())
    }
}

#[test]
fn videos_decoded_in_eight_bits_are_close_to_the_float_decoders() {
    let (checkpoint, folder) = (root().join("examples/shapes-model"), fresh_folder());
    let table = calibrated(&checkpoint, folder.path());
    // Nothing but the decoder differs.
    let quantized = ExportOptions {
        quantize: Some(Scheme::Int8),
        quantize_vae: true,
        layers: LayerChoice::Only(vec!["vae_decoder/".into()]),
        calibration: Some(table),
        ..ExportOptions::default()
    };
    let videos = [("float", ExportOptions::default()), ("int8", quantized)].map(|(name, options)| {
        let (bundle, report) = bundle_of(&checkpoint, &folder.path().join(name), &options);
        assert_eq!(report.quantized.is_empty(), name == "float", "{:?}", report.quantized);
        let pipeline = pipeline(&bundle);
        let mut request = pipeline.request("a blue triangle moving right").expect("a short text");
        (request.steps, request.guidance, request.seed) = (8, 3.0, 9);
        let mut frames = Frames::default();
        pipeline.generate(&request, &mut frames).expect("a video");
        frames.0
    });
    let [float, int8] = &videos;
    assert_eq!(float.len(), int8.len());
    let squares: f64 = float.iter().zip(int8).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    #[allow(clippy::cast_precision_loss)] // A small video.
    let psnr = -10.0 * (squares / float.len() as f64).log10();
    println!("{psnr:.1} dB");
    assert!((38.0..70.0).contains(&psnr), "{psnr} dB");
}
