//! Types of an operation's outputs from the types of its inputs.

use crate::dims;
use crate::op::{OnnxOp, Op, Type};
use crate::quantized::{QuantizedConv, QuantizedLinear};
use crate::{DType, Dim};

type Inferred = Result<Vec<Type>, String>;

/// Output types of `op`, or what is wrong with its inputs. Absent optional inputs are `None`.
pub(crate) fn infer(op: &Op, inputs: &[Option<&Type>]) -> Inferred {
    let input = |i: usize| inputs.get(i).copied().flatten().ok_or_else(|| format!("input {i} is missing"));
    let like = |i: usize| input(i).map(|t| vec![t.clone()]);
    match op {
        Op::Onnx(OnnxOp { outputs, .. }) => Ok(outputs.clone()),
        Op::Unary(_) | Op::Narrow | Op::Wide | Op::Gelu | Op::Silu => like(0),
        Op::Binary(_) => broadcast(input(0)?, input(1)?),
        Op::Cast(dtype) => Ok(vec![Type::new(*dtype, input(0)?.shape.clone())]),
        Op::Reshape(to) => reshape(input(0)?, to),
        Op::Transpose(order) => transpose(input(0)?, order),
        Op::Concat(axis) => concat(*axis, inputs),
        Op::Slice { axis, start, length } => slice(input(0)?, *axis, start, length),
        Op::OverRows(_) => {
            let x = input(0)?;
            Ok(vec![Type::new(x.dtype, vec![x.shape.last().ok_or("expected at least one axis")?.clone()])])
        }
        Op::Last { axis, n } => {
            let mut t = input(0)?.clone();
            let size = t.shape.get_mut(*axis).ok_or("no such axis")?;
            ensure(size.fixed().is_none_or(|size| *n <= size), || format!("the last {n} of {size}"))?;
            *size = Dim::Fixed(*n);
            Ok(vec![t])
        }
        Op::Split { axis, parts } => {
            let mut t = input(0)?.clone();
            let size = t.shape.get_mut(*axis).ok_or("no such axis")?;
            ensure(size.fixed().is_none_or(|n| n % parts == 0), || {
                format!("expected a multiple of {parts}, found {size}")
            })?;
            *size = &*size / *parts;
            Ok(vec![t; *parts])
        }
        Op::Gather(axis) => {
            let (x, index) = (input(0)?, input(1)?);
            ensure(*axis < x.shape.len(), || "no such axis".into())?;
            ensure(index.dtype == DType::I64, || format!("expected i64 indices, found {}", index.dtype))?;
            let mut shape = x.shape.clone();
            shape.splice(axis..=axis, index.shape.iter().cloned());
            Ok(vec![Type::new(x.dtype, shape)])
        }
        Op::Upsample(factors) => {
            let x = input(0)?;
            ensure(factors.len() == x.shape.len(), || {
                format!("expected {} factors, found {}", x.shape.len(), factors.len())
            })?;
            Ok(vec![Type::new(x.dtype, x.shape.iter().zip(factors).map(|(d, &f)| d * f).collect())])
        }
        Op::Size(_) => Ok(vec![Type::new(DType::I64, dims![1])]),
        Op::Range(n) => Ok(vec![Type::new(DType::I64, vec![n.clone()])]),
        Op::Linear => linear(input(0)?, input(1)?, inputs.get(2).copied().flatten()),
        Op::QuantizedLinear(QuantizedLinear { features, form }) => {
            let x = input(0)?;
            ensure(form.accepts(x.dtype), || format!("expected a floating-point type, found {}", x.dtype))?;
            let mut t = x.clone();
            *t.shape.last_mut().ok_or("expected at least one axis")? = Dim::Fixed(features[0]);
            Ok(vec![t])
        }
        Op::Conv { strides, pads } => {
            let (x, weight) = (input(0)?, input(1)?);
            same_dtype(x, weight)?;
            conv(x, weight, strides, pads)
        }
        Op::Quantize(_) => {
            let x = input(0)?;
            ensure(x.dtype == DType::F32, || format!("expected f32, found {}", x.dtype))?;
            Ok(vec![Type::new(DType::U8, x.shape.clone())])
        }
        Op::QuantizedConv(QuantizedConv { strides, pads, .. }) => {
            let x = input(0)?;
            ensure(x.dtype == DType::U8, || format!("expected u8, found {}", x.dtype))?;
            conv(&Type::new(DType::F32, x.shape.clone()), input(1)?, strides, pads)
        }
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => {
            let x = input(0)?;
            for parameter in inputs.iter().skip(1).flatten() {
                same_dtype(x, parameter)?;
                let width = x.shape.last().ok_or("expected at least one axis")?;
                ensure(parameter.shape.len() == 1 && parameter.shape[0].may_equal(width), || {
                    format!("expected parameters [{width}], found {:?}", parameter.shape)
                })?;
            }
            like(0)
        }
        Op::GroupNorm { groups, .. } => {
            let channels = input(0)?.shape.get(1).ok_or("expected [batch, channels, ...]")?;
            ensure(channels.fixed().is_some_and(|c| c % groups == 0), || {
                format!("expected channels in {groups} groups, found {channels}")
            })?;
            like(0)
        }
        Op::Attention { heads, .. } => attention(inputs, *heads),
        Op::Rotary { heads } => {
            rotary(input(0)?, [input(1)?, input(2)?], *heads)?;
            like(0)
        }
    }
}

fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

fn same_dtype(a: &Type, b: &Type) -> Result<(), String> {
    ensure(a.dtype == b.dtype, || format!("expected {}, found {}", a.dtype, b.dtype))
}

fn broadcast(a: &Type, b: &Type) -> Inferred {
    same_dtype(a, b)?;
    let rank = a.shape.len().max(b.shape.len());
    let one = Dim::Fixed(1);
    let axis = |t: &Type, i: usize| (i + t.shape.len()).checked_sub(rank).map_or(one.clone(), |i| t.shape[i].clone());
    let shape = (0..rank)
        .map(|i| match (axis(a, i), axis(b, i)) {
            (x, y) if x == one => Ok(y),
            (x, y) if y == one || x == y => Ok(x),
            (x @ Dim::Fixed(_), y) if x.may_equal(&y) => Ok(x),
            (x, y) if x.may_equal(&y) => Ok(if y.fixed().is_some() { y } else { x }),
            _ => Err(format!("{:?} and {:?} do not broadcast", a.shape, b.shape)),
        })
        .collect::<Result<_, _>>()?;
    Ok(vec![Type::new(a.dtype, shape)])
}

fn reshape(x: &Type, to: &[Dim]) -> Inferred {
    let (before, after) = (Dim::product(&x.shape), Dim::product(to));
    ensure(before.may_equal(&after), || format!("{:?} has not the elements of {to:?}", x.shape))?;
    Ok(vec![Type::new(x.dtype, to.to_vec())])
}

fn transpose(x: &Type, order: &[usize]) -> Inferred {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    ensure(sorted.iter().copied().eq(0..x.shape.len()), || {
        format!("expected an order of {} axes, found {order:?}", x.shape.len())
    })?;
    Ok(vec![Type::new(x.dtype, order.iter().map(|&axis| x.shape[axis].clone()).collect())])
}

fn concat(axis: usize, inputs: &[Option<&Type>]) -> Inferred {
    let mut parts = inputs.iter().flatten();
    let mut result = (*parts.next().ok_or("nothing to join")?).clone();
    ensure(axis < result.shape.len(), || "no such axis".into())?;
    for part in parts {
        same_dtype(&result, part)?;
        ensure(part.shape.len() == result.shape.len(), || {
            format!("expected {} axes, found {}", result.shape.len(), part.shape.len())
        })?;
        for (i, (a, b)) in result.shape.clone().iter().zip(&part.shape).enumerate() {
            if i == axis {
                result.shape[i] = a + b;
            } else {
                ensure(a.may_equal(b), || {
                    format!("{:?} and {:?} do not join on axis {axis}", result.shape, part.shape)
                })?;
            }
        }
    }
    Ok(vec![result])
}

fn slice(x: &Type, axis: usize, start: &Dim, length: &Dim) -> Inferred {
    let mut t = x.clone();
    let size = t.shape.get_mut(axis).ok_or("no such axis")?;
    let end = start + length;
    ensure(end.fixed().zip(size.fixed()).is_none_or(|(end, size)| end <= size), || {
        format!("{start}..{end} is outside {size}")
    })?;
    *size = length.clone();
    Ok(vec![t])
}

fn linear(x: &Type, weight: &Type, bias: Option<&Type>) -> Inferred {
    same_dtype(x, weight)?;
    let [out, input] = &weight.shape[..] else {
        return Err(format!("expected weights [out, in], found {:?}", weight.shape));
    };
    let mut t = x.clone();
    let width = t.shape.last_mut().ok_or("expected at least one axis")?;
    ensure(width.may_equal(input), || format!("expected {input} features, found {width}"))?;
    *width = out.clone();
    if let Some(bias) = bias {
        ensure(bias.shape == [out.clone()], || format!("expected a bias [{out}], found {:?}", bias.shape))?;
    }
    Ok(vec![t])
}

fn conv(x: &Type, weight: &Type, strides: &[usize], pads: &[[usize; 2]]) -> Inferred {
    let spatial = x.shape.len().saturating_sub(2);
    ensure(weight.shape.len() == x.shape.len() && strides.len() == spatial && pads.len() == spatial, || {
        format!("{:?} does not fit a kernel {:?}", x.shape, weight.shape)
    })?;
    ensure(x.shape[1].may_equal(&weight.shape[1]), || {
        format!("expected {} channels, found {}", weight.shape[1], x.shape[1])
    })?;
    let mut shape = dims![&x.shape[0], &weight.shape[0]];
    for i in 0..spatial {
        let kernel = weight.shape[i + 2].fixed().ok_or("expected a known kernel size")?;
        shape.push(conv_axis(&x.shape[i + 2], kernel, strides[i], pads[i])?);
    }
    Ok(vec![Type::new(x.dtype, shape)])
}

/// Size after a convolution. A kernel that covers its stride divides the size; one padded to its width keeps it.
fn conv_axis(size: &Dim, kernel: usize, stride: usize, pads: [usize; 2]) -> Result<Dim, String> {
    let pad = pads[0] + pads[1];
    match size {
        Dim::Fixed(n) => {
            ensure(n + pad >= kernel, || format!("{n} is smaller than the kernel of {kernel}"))?;
            Ok(Dim::Fixed((n + pad - kernel) / stride + 1))
        }
        // Also a kernel one wider than its stride, if a zero stands behind the last element of an even number of them.
        _ if kernel == stride + pad && pad <= 1 => Ok(size / stride),
        _ if stride == 1 && kernel == pad + 1 => Ok(size.clone()),
        // A causal convolution: `kernel - 1` frames of the past stand before the frames it answers for.
        _ if stride == 1 && pad == 0 => {
            let name = size.to_string();
            let frames = name.strip_prefix(&format!("{} + ", kernel - 1));
            Ok(Dim::named(frames.unwrap_or(&format!("{size} - {}", kernel - 1))))
        }
        Dim::Symbol(_) => {
            Err(format!("the size of {size} after a kernel of {kernel} with stride {stride} is not known"))
        }
    }
}

fn attention(inputs: &[Option<&Type>], heads: usize) -> Inferred {
    let [Some(q), Some(k), Some(v), bias @ ..] = inputs else {
        return Err("expected queries, keys and values".into());
    };
    for t in [k, v] {
        same_dtype(q, t)?;
    }
    for t in [q, k, v] {
        ensure(t.shape.len() == 3, || format!("expected [batch, tokens, width], found {:?}", t.shape))?;
        ensure(t.shape[2].fixed().is_some_and(|w| w % heads == 0), || {
            format!("expected a multiple of {heads} heads, found {}", t.shape[2])
        })?;
    }
    if let Some(Some(bias)) = bias.first() {
        ensure(bias.shape.len() == 4, || {
            format!("expected a bias [batch, heads, tokens, tokens], found {:?}", bias.shape)
        })?;
    }
    Ok(vec![Type::new(q.dtype, dims![&q.shape[0], &q.shape[1], &v.shape[2]])])
}

fn rotary(x: &Type, tables: [&Type; 2], heads: usize) -> Result<(), String> {
    let width = x.shape.last().and_then(Dim::fixed).filter(|w| x.shape.len() == 3 && w % (2 * heads) == 0);
    let width =
        width.ok_or_else(|| format!("expected [batch, tokens, pairs of {heads} heads], found {:?}", x.shape))?;
    for table in tables {
        same_dtype(x, table)?;
        let half = Dim::Fixed(width / heads / 2);
        ensure(table.shape.len() == 2 && table.shape[0].may_equal(&x.shape[1]) && table.shape[1] == half, || {
            format!("expected a table [{}, {half}], found {:?}", x.shape[1], table.shape)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Binary;
    use crate::quantized::Bytes;

    fn float(shape: Vec<Dim>) -> Type {
        Type::new(DType::F32, shape)
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused() {
        let batch = &Dim::named("batch");
        let half = Type::new(DType::F16, dims![2, 4]);
        let index = Type::new(DType::I64, dims![3]);
        let add = || Op::Binary(Binary::Add);
        let pads =
            |pads: &[usize]| Op::Conv { strides: vec![1; pads.len()], pads: pads.iter().map(|&p| [p; 2]).collect() };
        let attention = || Op::Attention { heads: 3, scale: 1.0 };
        let bytes = Bytes { step: 1.0, zero_point: 0 };
        let quantized =
            || Op::QuantizedConv(QuantizedConv { strides: vec![1], pads: vec![[0; 2]], reads: bytes, makes: bytes });
        let cases: Vec<(Op, Vec<Type>, &str)> = vec![
            (add(), vec![float(dims![2, 4])], "input 1 is missing"),
            (add(), vec![float(dims![2, 4]), half.clone()], "expected f32, found f16"),
            (add(), vec![float(dims![batch, 4]), float(dims![3])], "[batch, 4] and [3] do not broadcast"),
            (Op::Reshape(dims![7]), vec![float(dims![2, 4])], "[2, 4] has not the elements of [7]"),
            (Op::Transpose(vec![0, 0]), vec![half.clone()], "expected an order of 2 axes, found [0, 0]"),
            (Op::Transpose(vec![0]), vec![half.clone()], "expected an order of 2 axes, found [0]"),
            (Op::Concat(0), vec![], "nothing to join"),
            (Op::Concat(2), vec![half.clone()], "no such axis"),
            (Op::Concat(0), vec![half.clone(), float(dims![2, 4])], "expected f16, found f32"),
            (Op::Concat(0), vec![float(dims![2, 4]), float(dims![4])], "expected 2 axes, found 1"),
            (Op::Concat(0), vec![float(dims![2, 4]), float(dims![2, 5])], "[4, 4] and [2, 5] do not join on axis 0"),
            (Op::Slice { axis: 0, start: 1.into(), length: 2.into() }, vec![half.clone()], "1..3 is outside 2"),
            (Op::Slice { axis: 2, start: 0.into(), length: 1.into() }, vec![half.clone()], "no such axis"),
            (Op::Last { axis: 2, n: 1 }, vec![half.clone()], "no such axis"),
            (Op::Last { axis: 0, n: 3 }, vec![half.clone()], "the last 3 of 2"),
            (Op::Split { axis: 1, parts: 3 }, vec![half.clone()], "expected a multiple of 3, found 4"),
            (Op::Gather(0), vec![half.clone(), half.clone()], "expected i64 indices, found f16"),
            (Op::Gather(2), vec![half.clone(), index], "no such axis"),
            (Op::Upsample(vec![1]), vec![half.clone()], "expected 2 factors, found 1"),
            (Op::Linear, vec![float(dims![2, 4]), float(dims![3, 5])], "expected 5 features, found 4"),
            (Op::Linear, vec![float(dims![2, 4]), float(dims![3])], "expected weights [out, in], found [3]"),
            (
                Op::Linear,
                vec![float(dims![2, 4]), float(dims![3, 4]), float(dims![4])],
                "expected a bias [3], found [4]",
            ),
            (pads(&[0]), vec![float(dims![1, 2, 4]), float(dims![5, 3, 1])], "expected 3 channels, found 2"),
            (pads(&[0]), vec![float(dims![1, 2, 4]), float(dims![5, 2])], "[1, 2, 4] does not fit a kernel [5, 2]"),
            (pads(&[0]), vec![float(dims![1, 2, 4]), float(dims![5, 2, 9])], "4 is smaller than the kernel of 9"),
            (
                pads(&[2]),
                vec![float(dims![1, 2, batch]), float(dims![5, 2, 3])],
                "the size of batch after a kernel of 3 with stride 1 is not known",
            ),
            (Op::Quantize(bytes), vec![half.clone()], "expected f32, found f16"),
            (quantized(), vec![float(dims![1, 2, 4]), float(dims![5, 2, 1])], "expected u8, found f32"),
            (
                quantized(),
                vec![Type::new(DType::U8, dims![1, 2, 4]), float(dims![5, 3, 1])],
                "expected 3 channels, found 2",
            ),
            (
                Op::RmsNorm { epsilon: 0.0 },
                vec![float(dims![2, 4]), float(dims![3])],
                "expected parameters [4], found [3]",
            ),
            (Op::RmsNorm { epsilon: 0.0 }, vec![float(dims![2, 4]), half.clone()], "expected f32, found f16"),
            (
                Op::GroupNorm { groups: 3, epsilon: 0.0 },
                vec![float(dims![1, 4, 2])],
                "expected channels in 3 groups, found 4",
            ),
            (attention(), vec![half.clone()], "expected queries, keys and values"),
            (attention(), vec![half.clone(), half.clone(), half], "expected [batch, tokens, width], found [2, 4]"),
            (attention(), vec![float(dims![1, 2, 4]); 3], "expected a multiple of 3 heads, found 4"),
            (
                attention(),
                vec![float(dims![1, 2, 6]), float(dims![1, 2, 6]), float(dims![1, 2, 6]), float(dims![2, 2])],
                "expected a bias [batch, heads, tokens, tokens], found [2, 2]",
            ),
        ];
        let wrong = cases.iter().filter_map(|(op, inputs, expected)| {
            let inputs: Vec<_> = inputs.iter().map(Some).collect();
            let found = infer(op, &inputs);
            (found.as_ref().err().map(String::as_str) != Some(*expected))
                .then(|| format!("{op:?}: expected `{expected}`, found {found:?}"))
        });
        let wrong: Vec<_> = wrong.collect();
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    }

    #[test]
    fn sizes_follow_from_the_inputs() {
        let (batch, frames) = (&Dim::named("batch"), &Dim::named("frames"));
        let kernel = |sizes: Vec<Dim>| float([dims![8, 3], sizes].concat());
        let conv = |stride, before, after| Op::Conv { strides: vec![stride], pads: vec![[before, after]] };
        let cases: Vec<(Op, Vec<Type>, Vec<Dim>)> = vec![
            (
                Op::Binary(Binary::Mul),
                vec![float(dims![batch, 1, 4]), float(dims![frames, 1])],
                dims![batch, frames, 4],
            ),
            (Op::Concat(0), vec![float(dims![2]), float(dims![frames])], vec![&Dim::Fixed(2) + frames]),
            (
                conv(1, 0, 0),
                vec![float(dims![batch, 3, &(&Dim::Fixed(2) + frames)]), kernel(dims![3])],
                dims![batch, 8, frames],
            ),
            (conv(2, 0, 0), vec![float(dims![batch, 3, frames]), kernel(dims![2])], dims![batch, 8, &(frames / 2)]),
            (conv(1, 1, 1), vec![float(dims![batch, 3, frames]), kernel(dims![3])], dims![batch, 8, frames]),
            (conv(2, 1, 1), vec![float(dims![1, 3, 9]), kernel(dims![3])], dims![1, 8, 5]),
            (conv(2, 0, 1), vec![float(dims![1, 3, 8]), kernel(dims![3])], dims![1, 8, 4]),
            (conv(2, 0, 1), vec![float(dims![1, 3, frames]), kernel(dims![3])], dims![1, 8, &(frames / 2)]),
            (Op::Upsample(vec![1, 2]), vec![float(dims![batch, &(frames / 2)])], dims![batch, frames]),
        ];
        for (op, inputs, expected) in cases {
            let found = infer(&op, &inputs.iter().map(Some).collect::<Vec<_>>());
            assert_eq!(found, Ok(vec![float(expected)]), "{op:?}");
        }
    }
}
