use cogvx_kernels::rows::{Map, Out, Rescale, map_rows};
use ort::Error;
use ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{Inputs, Pool, expect, floats, made, output, rounding};

/// Rows times their steps, plus a bias, then GELU if so.
pub(super) struct RescaleRows {
    pub threads: usize,
}

/// Rows as bytes and steps; the same done to them before, if there are steps to multiply them by.
pub(super) struct RoundRows {
    pub threads: usize,
}

/// What is done to each number of a row.
fn map(node: &KernelContext<'_>) -> Map {
    if node.get::<i64>("gelu").unwrap_or(0) == 0 { Map::Keep } else { Map::Gelu }
}

/// Rows and features of the first input, which has two axes.
fn sizes(inputs: &Inputs<'_>) -> ort::Result<[usize; 2]> {
    let (shape, _) = inputs.floats(0)?;
    let found = || Error::new(format!("expected [rows, features], found {shape:?}"));
    let sizes: Option<[usize; 2]> = shape[..].try_into().ok();
    sizes.filter(|[_, features]| *features > 0).ok_or_else(found)
}

/// What a product of bytes lacks.
pub(super) fn rescale<'a>(
    inputs: &'a Inputs<'_>,
    first: usize,
    [rows, features]: [usize; 2],
) -> ort::Result<Rescale<'a>> {
    let (_, steps) = inputs.floats(first)?;
    expect(steps.len() == rows, || format!("expected a step for each of {rows} rows, found {}", steps.len()))?;
    Ok(Rescale { steps, bias: inputs.row(first + 1, features)? })
}

impl Operator for RescaleRows {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &'static str {
        "RescaleRows"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        floats(3, 0)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [made(TensorElementType::Float32)]
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<Self::Kernel<'a>> {
        let (map, threads) = (map(node), self.threads);
        Ok(Box::new(move |context: &ComputeContext| {
            let inputs = Inputs::of(context)?;
            let sizes = sizes(&inputs)?;
            let rescale = rescale(&inputs, 1, sizes)?;
            let mut y = output(context, 0, &sizes)?;
            let (_, y) = y.try_extract_tensor_mut::<f32>()?;
            let pool = Pool { context, count: threads };
            map_rows(inputs.floats(0)?.1, sizes[1], Some(rescale), map, Out::Floats(y), &pool);
            Ok(())
        }))
    }
}

impl Operator for RoundRows {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &'static str {
        "RoundRows"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        floats(1, 2)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [made(TensorElementType::Uint8), made(TensorElementType::Float32)]
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<Self::Kernel<'a>> {
        let (map, rounding, threads) = (map(node), rounding(node)?, self.threads);
        Ok(Box::new(move |context: &ComputeContext| {
            let inputs = Inputs::of(context)?;
            let sizes = sizes(&inputs)?;
            let rescale = if inputs.has(1) { Some(rescale(&inputs, 1, sizes)?) } else { None };
            let (mut values, mut steps) = (output(context, 0, &sizes)?, output(context, 1, &[sizes[0], 1])?);
            let (_, values) = values.try_extract_tensor_mut::<u8>()?;
            let (_, steps) = steps.try_extract_tensor_mut::<f32>()?;
            let pool = Pool { context, count: threads };
            map_rows(inputs.floats(0)?.1, sizes[1], rescale, map, Out::Bytes { values, steps, rounding }, &pool);
            Ok(())
        }))
    }
}
