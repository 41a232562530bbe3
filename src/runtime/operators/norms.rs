use cogvx_kernels::rows::{Added, Out, Rounding, Stream, join_norms};
use ort::Error;
use ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::rows::{Sums, rescale};
use super::{Inputs, Pool, expect, expect_turn, floats, made, of_rows, output, rounding};

/// Norms of text and video, side by side, after the block before was added to them: see [`join_norms`].
pub(super) struct JoinNorms {
    pub threads: usize,
}

/// The same as bytes and steps.
pub(super) struct JoinNormsRounded {
    pub threads: usize,
}

/// Text and video; scale and shift of either; then what the block made, both gates, and what that lacks if it is a product of bytes.
fn inputs() -> Vec<OperatorInput> {
    floats(6, 5)
}

/// Text and video with the block added, if it is.
fn residuals() -> [OperatorOutput; 2] {
    [0; 2].map(|_| OperatorOutput::optional(TensorElementType::Float32))
}

fn epsilon(node: &KernelContext<'_>) -> ort::Result<f32> {
    node.get("epsilon").ok_or_else(|| Error::new("expected an `epsilon`"))
}

/// How the norms are made.
#[derive(Clone, Copy)]
struct Way {
    epsilon: f32,
    /// How what is added becomes that.
    sums: Sums,
    /// How they become bytes, if they do.
    rounding: Option<Rounding>,
    threads: usize,
}

fn run(context: &ComputeContext, Way { epsilon, sums, rounding, threads }: Way) -> ort::Result<()> {
    let inputs = Inputs::of(context)?;
    let [(of_text, text), (of_video, video)] = [inputs.floats(0)?, inputs.floats(1)?];
    let sizes = match (&of_text[..], &of_video[..]) {
        (&[batch, text, width], &[as_many, video, as_wide]) if (batch, width) == (as_many, as_wide) && width > 0 => {
            Some((batch, [text, video], width))
        }
        _ => None,
    };
    let unlike = || Error::new(format!("expected text and video alike, found {of_text:?} and {of_video:?}"));
    let (batch, tokens, width) = sizes.ok_or_else(unlike)?;
    let all = tokens[0] + tokens[1];
    let modulation = |i| inputs.row(i, width);
    let (added, gates) = if inputs.has(6) {
        let (shape, y) = inputs.floats(6)?;
        let rows = batch * all;
        let of_product = rows + usize::from(sums.excess);
        expect(y.len() == of_product * width, || format!("expected {of_product} rows of {width}, found {shape:?}"))?;
        let rescale = if inputs.has(9) { Some(rescale(&inputs, 9, [rows, width], y, sums)?.0) } else { None };
        (Some(Added { y, rescale }), [modulation(7)?, modulation(8)?])
    } else {
        (None, [&[][..]; 2])
    };
    let streams = [
        Stream { x: text, tokens: tokens[0], scale: modulation(2)?, shift: modulation(3)?, gate: gates[0] },
        Stream { x: video, tokens: tokens[1], scale: modulation(4)?, shift: modulation(5)?, gate: gates[1] },
    ];
    let first = if rounding.is_some() { 2 } else { 1 };
    let mut residuals = vec![];
    for (i, tokens) in tokens.into_iter().enumerate().filter(|_| added.is_some()) {
        residuals.push(output(context, first + i, &[batch, tokens, width])?);
    }
    let residuals = residuals.iter_mut().map(|value| Ok(value.try_extract_tensor_mut::<f32>()?.1));
    let mut residuals = residuals.collect::<ort::Result<Vec<_>>>()?;
    let pool = Pool { context, count: threads };
    if let Some(rounding) = rounding {
        expect_turn(rounding, width)?;
        let of_rows = of_rows(rounding, batch, batch * all);
        let (mut values, mut steps) = (output(context, 0, &[batch * all, width])?, output(context, 1, &of_rows)?);
        let (_, values) = values.try_extract_tensor_mut::<u8>()?;
        let (_, steps) = steps.try_extract_tensor_mut::<f32>()?;
        let out = Out::Bytes { values, steps, rounding };
        join_norms(&streams, added, &mut residuals, out, (width, epsilon), &pool);
    } else {
        let mut y = output(context, 0, &[batch, all, width])?;
        let (_, y) = y.try_extract_tensor_mut::<f32>()?;
        join_norms(&streams, added, &mut residuals, Out::Floats(y), (width, epsilon), &pool);
    }
    Ok(())
}

impl Operator for JoinNorms {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &'static str {
        "JoinNorms"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [made(TensorElementType::Float32)].into_iter().chain(residuals())
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<Self::Kernel<'a>> {
        let way = Way { epsilon: epsilon(node)?, sums: Sums::of(node), rounding: None, threads: self.threads };
        Ok(Box::new(move |context: &ComputeContext| run(context, way)))
    }
}

impl Operator for JoinNormsRounded {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &'static str {
        "JoinNormsRounded"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [made(TensorElementType::Uint8), made(TensorElementType::Float32)].into_iter().chain(residuals())
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<Self::Kernel<'a>> {
        let rounding = Some(rounding(node)?);
        let way = Way { epsilon: epsilon(node)?, sums: Sums::of(node), rounding, threads: self.threads };
        Ok(Box::new(move |context: &ComputeContext| run(context, way)))
    }
}
