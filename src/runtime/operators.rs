//! cogvx's own kernels as operators of ONNX Runtime, for graphs that [`fuse`](cogvx_graphs::pass::fuse) made.
//!
//! A graph may come from anywhere, so each operator checks that its tensors fit together before it looks into them.

mod announce;
mod attention;
mod linear;
mod norms;
mod rows;

use std::num::NonZero;

use cogvx_graphs::pass::fuse::DOMAIN;
use cogvx_kernels::Threads;
use cogvx_kernels::hadamard::fits;
use cogvx_kernels::rows::Rounding;
use ort::Error;
use ort::operator::{ComputeContext, KernelContext, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::{PrimitiveTensorElementType, TensorElementType};
use ort::value::{ValueRef, ValueRefMut};

pub(super) use announce::announce;

/// All of them, to run on so many threads (0: one a core).
pub(super) fn domain(threads: usize) -> ort::Result<OperatorDomain> {
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = if threads == 0 { cores() } else { threads };
    let mut domain = OperatorDomain::new(DOMAIN)?;
    for stored in [TensorElementType::Float32, TensorElementType::Float16, TensorElementType::Bfloat16] {
        domain = domain.add(linear::Linear { stored, threads })?.add(linear::FeedForward { stored, threads })?;
    }
    let domain = domain.add(attention::FlashAttention { threads })?.add(rows::RescaleRows { threads })?;
    let domain = domain.add(rows::RoundRows { threads })?;
    domain.add(norms::JoinNorms { threads })?.add(norms::JoinNormsRounded { threads })
}

/// ONNX Runtime's threads.
struct Pool<'a> {
    context: &'a ComputeContext,
    count: usize,
}

impl Threads for Pool<'_> {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.context.par_for(tasks, 0, task).is_err() {
            // There is no pool to ask: not seen, but then the work is still there.
            (0..tasks).for_each(task);
        }
    }

    fn count(&self) -> usize {
        self.count
    }
}

/// What a run of an operator reads.
struct Inputs<'a>(Vec<Option<ValueRef<'a>>>);

impl<'a> Inputs<'a> {
    fn of(context: &'a ComputeContext) -> ort::Result<Self> {
        let all = (0..context.num_inputs()?).map(|i| context.input(i));
        Ok(Self(all.collect::<Result<_, _>>()?))
    }

    fn has(&self, i: usize) -> bool {
        matches!(self.0.get(i), Some(Some(_)))
    }

    /// Sizes and numbers of input `i`.
    fn tensor<T: PrimitiveTensorElementType>(&self, i: usize) -> ort::Result<(Vec<usize>, &[T])> {
        let value = self.0.get(i).and_then(Option::as_ref).ok_or_else(|| Error::new(format!("expected input {i}")))?;
        let (shape, numbers) = value.try_extract_tensor::<T>()?;
        let sizes = shape.iter().map(|&n| usize::try_from(n).map_err(|e| Error::new(e.to_string())));
        Ok((sizes.collect::<Result<_, _>>()?, numbers))
    }

    fn floats(&self, i: usize) -> ort::Result<(Vec<usize>, &[f32])> {
        self.tensor(i)
    }

    /// Input `i` of one axis of this size.
    fn row(&self, i: usize, size: usize) -> ort::Result<&[f32]> {
        let (shape, numbers) = self.floats(i)?;
        expect(shape == [size], || format!("input {i}: expected [{size}], found {shape:?}"))?;
        Ok(numbers)
    }
}

/// Output `i`, made anew.
fn output<'a>(context: &'a ComputeContext, i: usize, shape: &[usize]) -> ort::Result<ValueRefMut<'a>> {
    let signed: Vec<i64> = shape.iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect();
    context.output(i, signed)?.ok_or_else(|| Error::new(format!("expected output {i} to be read")))
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> ort::Result<()> {
    if holds { Ok(()) } else { Err(Error::new(otherwise())) }
}

/// How rows are rounded, as a node's attributes say.
fn rounding(node: &KernelContext<'_>) -> ort::Result<Rounding> {
    let missing = || Error::new("expected `zero` from 0 to 255, `both_sides`, `least` and `inverse`");
    let zero = node.get::<i64>("zero").and_then(|zero| u8::try_from(zero).ok());
    Ok(Rounding {
        zero: zero.ok_or_else(missing)?,
        both_sides: node.get::<i64>("both_sides").ok_or_else(missing)? != 0,
        least: node.get("least").ok_or_else(missing)?,
        inverse: node.get("inverse").ok_or_else(missing)?,
        rotation: usize::try_from(node.get::<i64>("rotation").unwrap_or(1)).map_err(|_| missing())?,
        differences: node.get::<i64>("differences").unwrap_or(0) != 0,
    })
}

/// That rows of so many features can be turned before they are rounded.
fn expect_turn(rounding: Rounding, features: usize) -> ort::Result<()> {
    let order = rounding.rotation;
    expect(fits(features, order), || {
        format!("expected a power of two as `rotation` that divides {features}, found {order}")
    })
}

/// The shape of steps of so many rows. That of differences tells what reads them how many samples there are.
fn of_rows(rounding: Rounding, samples: usize, rows: usize) -> [usize; 2] {
    if rounding.differences { [samples, rows / samples.max(1)] } else { [rows, 1] }
}

/// So many inputs of `f32`, and after them some that may be left out.
fn floats(required: usize, optional: usize) -> Vec<OperatorInput> {
    let required = (0..required).map(|_| OperatorInput::required(TensorElementType::Float32));
    required.chain((0..optional).map(|_| OperatorInput::optional(TensorElementType::Float32))).collect()
}

/// An output of this type.
const fn made(r#type: TensorElementType) -> OperatorOutput {
    OperatorOutput::required(r#type)
}
