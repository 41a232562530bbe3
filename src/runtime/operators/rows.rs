use cogvx_kernels::rows::{Map, OF_DIFFERENCES, Out, Rescale, map_rows};
use ort::Error;
use ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{Inputs, Pool, expect, expect_turn, floats, made, of_rows, output, rounding};

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
fn sizes(inputs: &Inputs<'_>, sums: Sums) -> ort::Result<[usize; 2]> {
    let (shape, _) = inputs.floats(0)?;
    let found = || Error::new(format!("expected [rows, features], found {shape:?}"));
    let sizes: Option<[usize; 2]> = shape[..].try_into().ok();
    let sizes = sizes.filter(|&[rows, features]| features > 0 && (rows > 0 || !sums.excess)).ok_or_else(found)?;
    Ok([sums.rows(sizes[0]), sizes[1]])
}

/// How products of bytes become sums.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// Whether those of all samples but the last are to be added to the last's.
    differences: bool,
    /// Whether a last row tells what those are too great by.
    pub excess: bool,
}

impl Sums {
    pub(super) fn of(node: &KernelContext<'_>) -> Self {
        let is = |name| node.get::<i64>(name).unwrap_or(0) != 0;
        Self { differences: is("summed"), excess: is("excess") }
    }

    /// Rows of a product of so many.
    fn rows(self, rows: usize) -> usize {
        rows - usize::from(self.excess)
    }
}

/// What a product `y` of bytes lacks, whose steps and bias are inputs from `first` on; and how many samples there are, if that matters.
pub(super) fn rescale<'a>(
    inputs: &'a Inputs<'_>,
    first: usize,
    [rows, features]: [usize; 2],
    y: &'a [f32],
    sums: Sums,
) -> ort::Result<(Rescale<'a>, usize)> {
    let (shape, steps) = inputs.floats(first)?;
    expect(steps.len() == rows, || format!("expected a step for each of {rows} rows, found {}", steps.len()))?;
    let excess = if sums.excess { y.get(rows * features..) } else { None };
    // Steps of differences are `[samples, tokens]`.
    let samples = if sums.differences { shape.first().copied().unwrap_or(1) } else { 1 };
    let bias = inputs.row(first + 1, features)?;
    Ok((Rescale { steps, bias, differences: sums.differences, excess }, samples))
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
        let (map, sums, threads) = (map(node), Sums::of(node), self.threads);
        Ok(Box::new(move |context: &ComputeContext| {
            let inputs = Inputs::of(context)?;
            let (sizes, (_, x)) = (sizes(&inputs, sums)?, inputs.floats(0)?);
            let (rescale, samples) = rescale(&inputs, 1, sizes, x, sums)?;
            let mut y = output(context, 0, &sizes)?;
            let (_, y) = y.try_extract_tensor_mut::<f32>()?;
            let pool = Pool { context, count: threads };
            map_rows(&x[..sizes[0] * sizes[1]], [samples, sizes[1]], Some(rescale), map, Out::Floats(y), &pool);
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
        let (map, sums, rounding, threads) = (map(node), Sums::of(node), rounding(node)?, self.threads);
        Ok(Box::new(move |context: &ComputeContext| {
            let inputs = Inputs::of(context)?;
            let ([rows, features], (_, x)) = (sizes(&inputs, sums)?, inputs.floats(0)?);
            expect_turn(rounding, features)?;
            let rescale = if inputs.has(1) { Some(rescale(&inputs, 1, [rows, features], x, sums)?) } else { None };
            let (rescale, samples) = rescale.map_or((None, 1), |(rescale, samples)| (Some(rescale), samples));
            // Differences are bytes around another zero than that of the product, which tells by one row more what it makes of that.
            let more = usize::from(rounding.differences && rounding.zero != OF_DIFFERENCES.zero);
            let mut values = output(context, 0, &[rows + more, features])?;
            let mut steps = output(context, 1, &of_rows(rounding, samples, rows))?;
            let (_, values) = values.try_extract_tensor_mut::<u8>()?;
            let (_, steps) = steps.try_extract_tensor_mut::<f32>()?;
            let (values, none) = values.split_at_mut(rows * features);
            none.fill(OF_DIFFERENCES.zero);
            let pool = Pool { context, count: threads };
            let out = Out::Bytes { values, steps, rounding };
            map_rows(&x[..rows * features], [samples, features], rescale, map, out, &pool);
            Ok(())
        }))
    }
}
