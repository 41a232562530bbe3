//! Forms that a target runs faster, or has kernels for, give what the plain ones give.

use std::error::Error;

use cogvx::runtime::{Device, Input, Layout, Runtime};
use cogvx_graphs::graph::{Graph, Node, Weight};
use cogvx_graphs::onnx::{Placement, serialize};
use cogvx_graphs::op::{Attribute, Op};
use cogvx_graphs::pass::{self, Lower, Pass, Precision, Target};
use cogvx_graphs::{DType, Dim, Value, dims};
use half::f16;
use ndarray::{ArrayD, IxDyn};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Uneven numbers of both signs, the same each time.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 65_536.0 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// What the graph that `model` fills makes `y` of `x`, and its operators; weights are 16-bit numbers.
fn outcome(model: impl Fn(&Graph), lower: Lower, x: &ArrayD<f32>) -> Outcome<(ArrayD<f32>, Vec<&'static str>)> {
    outcome_in(DType::F32, model, lower, x)
}

/// The very operators with `float32` in place of `bfloat16`, for which the CPU lacks kernels, too.
struct Widen;

impl Pass for Widen {
    fn name(&self) -> &'static str {
        "widen"
    }

    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        let Op::Onnx(mut op) = node.op.clone() else { return None };
        for made in op.outputs.iter_mut().filter(|made| made.dtype == DType::BF16) {
            made.dtype = DType::F32;
        }
        for (_, to) in op.attributes.iter_mut().filter(|(name, _)| *name == "to") {
            *to = Attribute::Int(DType::F32.onnx().into());
        }
        let inputs: Vec<_> = inputs.iter().map(|input| input.map(Value::id)).collect();
        Some(out.add(Op::Onnx(op), &inputs))
    }
}

/// The same in another precision.
fn outcome_in(
    compute: DType,
    model: impl Fn(&Graph),
    lower: Lower,
    x: &ArrayD<f32>,
) -> Outcome<(ArrayD<f32>, Vec<&'static str>)> {
    let graph = Graph::new();
    model(&graph);
    let problems = |problems: Vec<_>| format!("{problems:?}");
    let graph = pass::run(&mut Precision::new(compute, None), &graph).map_err(problems)?;
    let graph = pass::run(&mut { lower }, &graph).map_err(problems)?;
    let graph = pass::run(&mut Widen, &graph).map_err(problems)?;
    let place = |weight: &Weight| -> Result<Placement, Box<dyn Error>> {
        let all = numbers(weight.shape.iter().product());
        Ok(Placement::Inline(all.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()))
    };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, serialize(&graph, "test", place)?.bytes)?;
    let mut session = Runtime::start(Device::Cpu, 1)?.load(&path, Layout::Mapped)?;
    let y = session.run(&[("x", Input::Float(x.view()))])?.array("y")?;
    let live = graph.live();
    let operators = graph.nodes().iter().filter(|n| live[n.outputs[0]]).map(|n| n.op.name()).collect();
    Ok((y, operators))
}

fn input(shape: &[usize]) -> Outcome<ArrayD<f32>> {
    Ok(ArrayD::from_shape_vec(IxDyn(shape), numbers(shape.iter().product()))?)
}

fn furthest(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f32 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_convolution_of_an_upsampled_tensor_is_four_of_the_tensor() -> Outcome {
    let x = input(&[1, 5, 3, 4, 7])?;
    let model = |plain: bool| {
        move |g: &Graph| {
            let x = g.input("x", DType::F32, dims![1, 5, 3, 4, 7]).upsample([1, 1, 1, 2, 2]);
            let x = if plain { x * 1.0 } else { x };
            let weight = g.weight(Weight::whole("weight", DType::F16, &[6, 5, 1, 3, 3]), DType::F32);
            let bias = g.weight(Weight::whole("bias", DType::F16, &[6]), DType::F32);
            g.output("y", x.conv(weight, Some(bias), [1; 3], [[0; 2], [1; 2], [1; 2]]));
        }
    };
    let (plain, operators) = outcome(model(true), Lower::new(Target::Cpu), &x)?;
    assert!(operators.contains(&"Resize"), "{operators:?}");
    let (four, operators) = outcome(model(false), Lower::new(Target::Cpu), &x)?;
    assert!(!operators.contains(&"Resize"), "{operators:?}");
    assert_eq!(operators.iter().filter(|&&name| name == "Conv").count(), 4);
    assert!(furthest(&plain, &four) < 1e-5, "{}", furthest(&plain, &four));
    Ok(())
}

/// A causal convolution of 64 channels over `frames` frames of 5x6, two of the past before them.
fn causal(frames: &Dim) -> impl Fn(&Graph) {
    move |g: &Graph| {
        let before = if let Some(n) = frames.fixed() { Dim::Fixed(n + 2) } else { &Dim::Fixed(2) + frames };
        let x = g.input("x", DType::F32, dims![1, 64, before, 5, 6]);
        let weight = g.weight(Weight::whole("weight", DType::F16, &[72, 64, 3, 3, 3]), DType::F32);
        let bias = g.weight(Weight::whole("bias", DType::F16, &[72]), DType::F32);
        g.output("y", x.conv(weight, Some(bias), [1; 3], [[0; 2], [1; 2], [1; 2]]));
    }
}

#[test]
fn a_convolution_over_time_is_fewer_of_pictures() -> Outcome {
    let fewer = |operators: &[&str]| operators.contains(&"MatMul");
    for frames in 1..=9 {
        let x = input(&[1, 64, frames + 2, 5, 6])?;
        let known = Dim::Fixed(frames);
        // An open number that is not known to come of doubling may well be that of an image.
        let (plain, operators) = outcome(causal(&Dim::named("frames")), Lower::new(Target::Cpu), &x)?;
        assert!(!fewer(&operators), "{operators:?}");
        let open = ["double(frames)", "double(double(frames))"].map(Dim::named);
        for (frames, expected) in [(&known, frames >= 4), (&open[0], true), (&open[1], true)] {
            let (y, operators) = outcome(causal(frames), Lower::new(Target::Cpu), &x)?;
            assert_eq!(fewer(&operators), expected, "{frames} frames: {operators:?}");
            let largest = plain.iter().fold(0.0, |most: f32, y| most.max(y.abs()));
            let error = furthest(&plain, &y) / largest;
            assert!(error < 4e-5, "{frames} frames: {error}");
        }
    }
    let (_, operators) = outcome(causal(&Dim::Fixed(8)), Lower::new(Target::Cuda), &input(&[1, 64, 10, 5, 6])?)?;
    assert!(!fewer(&operators), "{operators:?}");
    Ok(())
}

#[test]
fn a_convolution_of_few_features_is_one_along_rows() -> Outcome {
    let open = ["frames", "rows"].map(Dim::named);
    for [frames, rows] in [[Dim::Fixed(4), Dim::Fixed(5)], open] {
        let x = input(&[1, 30, 4, 5, 6])?;
        let model = |plain: bool| {
            let (frames, rows) = (&frames, &rows);
            move |g: &Graph| {
                let x = g.input("x", DType::F32, dims![1, 30, frames, rows, 6]);
                let weight = g.weight(Weight::whole("weight", DType::F16, &[3, 30, 3, 3, 3]), DType::F32);
                let bias = g.weight(Weight::whole("bias", DType::F16, &[3]), DType::F32);
                // Padded in time, and what is made of the padding cut off again, the convolution is no such one.
                let pad = usize::from(plain);
                let y = x.conv(weight, Some(bias), [1; 3], [[pad; 2], [1; 2], [1; 2]]);
                g.output("y", if plain { y.slice(2, 1, 2) } else { y });
            }
        };
        let (plain, operators) = outcome(model(true), Lower::new(Target::Cpu), &x)?;
        assert!(!operators.contains(&"Add"), "{operators:?}");
        let (few, operators) = outcome(model(false), Lower::new(Target::Cpu), &x)?;
        assert_eq!(operators.iter().filter(|&&name| name == "Add").count(), 8, "{operators:?}");
        assert!(furthest(&plain, &few) < 1e-5, "{}", furthest(&plain, &few));
    }
    Ok(())
}

#[test]
fn a_feed_forward_by_halves_is_one_of_all_rows() -> Outcome {
    for rows in [2, 5] {
        let x = input(&[rows, 7])?;
        let model = |plain: bool, rows: Dim| {
            move |g: &Graph| {
                let x = g.input("x", DType::F32, dims![&rows, 7]);
                let half = |name: &str, shape: &[usize]| g.weight(Weight::whole(name, DType::F16, shape), DType::F32);
                let wide = x.linear(half("first", &[28, 7]), Some(half("before", &[28]))).gelu();
                let wide = if plain { wide * 1.0 } else { wide };
                g.output("y", wide.linear(half("second", &[7, 28]), Some(half("after", &[7]))));
            }
        };
        let (plain, operators) = outcome(model(true, rows.into()), Lower::new(Target::Cpu), &x)?;
        assert!(!operators.contains(&"Split"), "{operators:?}");
        for rows in [rows.into(), Dim::named("rows")] {
            let (halves, operators) = outcome(model(false, rows), Lower::new(Target::Cpu), &x)?;
            assert!(operators.contains(&"Split"), "{operators:?}");
            assert!(furthest(&plain, &halves) < 1e-6, "{}", furthest(&plain, &halves));
        }
    }
    Ok(())
}

#[test]
fn weights_that_gain_little_by_copies_are_used_where_they_lie() -> Outcome {
    let x = input(&[1, 40])?;
    let model = |g: &Graph| {
        let x = g.input("x", DType::F32, dims![1, 40]);
        g.output("y", x.linear(g.weight(Weight::whole("weight", DType::F16, &[24, 40]), DType::F32), None));
    };
    let (plain, operators) = outcome(model, Lower::new(Target::Cuda), &x)?;
    assert!(!operators.contains(&"ExpandDims"), "{operators:?}");
    let (seen, operators) = outcome(model, Lower::new(Target::Cpu), &x)?;
    assert!(operators.contains(&"ExpandDims"), "{operators:?}");
    assert!(furthest(&plain, &seen) < 1e-6, "{}", furthest(&plain, &seen));
    Ok(())
}

#[test]
fn what_cuda_computes_in_bfloat16_is_what_the_operators_without_kernels_would() -> Outcome {
    let x = input(&[1, 4, 3, 5, 6])?;
    for operator in ["InstanceNormalization", "Resize"] {
        let model = |g: &Graph| {
            let x = g.input("x", DType::F32, dims![1, 4, 3, 5, 6]).narrow();
            g.output("y", if operator == "Resize" { x.upsample([1, 1, 2, 1, 3]) } else { x.group_norm(2, 1e-5) });
        };
        let (plain, operators) = outcome(model, Lower::new(Target::Cpu), &x)?;
        assert!(operators.contains(&operator), "{operators:?}");
        let (other, operators) = outcome_in(DType::BF16, model, Lower::new(Target::Cuda), &x)?;
        assert!(!operators.contains(&operator), "{operators:?}");
        assert!(furthest(&plain, &other) < 1e-5, "{operator}: {}", furthest(&plain, &other));
    }
    Ok(())
}
