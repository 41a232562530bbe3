use cogvx_kernels::linear::{Linear as Kernel, Weights, feed_forward};
use half::{bf16, f16};
use ort::Error;
use ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{Inputs, Pool, floats, made, output};

/// `x @ weight.T (+ bias)`, then GELU if so.
pub(super) struct Linear {
    /// The weight's type.
    pub stored: TensorElementType,
    pub threads: usize,
}

impl Operator for Linear {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &'static str {
        "Linear"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let mut inputs = floats(1, 1);
        inputs.insert(1, OperatorInput::required(self.stored));
        inputs
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [made(TensorElementType::Float32)]
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<Self::Kernel<'a>> {
        let gelu = node.get::<i64>("gelu").unwrap_or(0) != 0;
        let (stored, threads) = (self.stored, self.threads);
        Ok(Box::new(move |context: &ComputeContext| {
            let inputs = Inputs::of(context)?;
            let (shape, x) = inputs.floats(0)?;
            let layer = layer(&inputs, stored, 1, gelu)?;
            let [rows, out] = fits(&shape, &layer)?;
            let mut y = output(context, 0, &[rows, out])?;
            let (_, y) = y.try_extract_tensor_mut::<f32>()?;
            layer.run(x, y, &Pool { context, count: threads });
            Ok(())
        }))
    }
}

/// Two linear layers with GELU between them.
pub(super) struct FeedForward {
    /// The weights' type.
    pub stored: TensorElementType,
    pub threads: usize,
}

impl Operator for FeedForward {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &'static str {
        "FeedForward"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let [number, weight] = [TensorElementType::Float32, self.stored];
        [number, weight, number, weight, number].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [made(TensorElementType::Float32)]
    }

    fn create_kernel<'a>(&self, _: &KernelContext<'a>) -> ort::Result<Self::Kernel<'a>> {
        let (stored, threads) = (self.stored, self.threads);
        Ok(Box::new(move |context: &ComputeContext| {
            let inputs = Inputs::of(context)?;
            let (shape, x) = inputs.floats(0)?;
            let (up, down) = (layer(&inputs, stored, 1, true)?, layer(&inputs, stored, 3, false)?);
            let [rows, inner] = fits(&shape, &up)?;
            let [_, out] = fits(&[rows, inner], &down)?;
            let mut y = output(context, 0, &[rows, out])?;
            let (_, y) = y.try_extract_tensor_mut::<f32>()?;
            feed_forward(&up, &down, x, y, &Pool { context, count: threads });
            Ok(())
        }))
    }
}

/// The layer whose weight is input `first`, and its bias the next one, if there is one.
fn layer<'a>(inputs: &'a Inputs<'_>, stored: TensorElementType, first: usize, gelu: bool) -> ort::Result<Kernel<'a>> {
    let (shape, weight) = match stored {
        TensorElementType::Float16 => inputs.tensor::<f16>(first).map(|(shape, w)| (shape, Weights::F16(w)))?,
        TensorElementType::Bfloat16 => inputs.tensor::<bf16>(first).map(|(shape, w)| (shape, Weights::BF16(w)))?,
        _ => inputs.floats(first).map(|(shape, w)| (shape, Weights::F32(w)))?,
    };
    let features: Option<[usize; 2]> = shape[..].try_into().ok();
    let features = features.filter(|features| !features.contains(&0));
    let features = features.ok_or_else(|| Error::new(format!("expected a weight [out, in], found {shape:?}")))?;
    let bias = if inputs.has(first + 1) { Some(inputs.row(first + 1, features[0])?) } else { None };
    Ok(Kernel { weight, bias, features, gelu })
}

/// Rows of `x` of this shape, and what a layer makes of each.
fn fits(shape: &[usize], layer: &Kernel<'_>) -> ort::Result<[usize; 2]> {
    let [out, read] = layer.features;
    let found = || Error::new(format!("expected [rows, n] and [out, n], found {shape:?} and {:?}", layer.features));
    match shape {
        &[rows, features] if features == read && rows > 0 => Ok([rows, out]),
        _ => Err(found()),
    }
}
