use cogvx_kernels::attention::{Attention, HeadNorm, Precision};
use ort::Error;
use ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{Inputs, Pool, expect, floats, made, output};

/// Attention of `[batch, tokens, heads * width]`; with weights and biases of the heads' norms queries and keys are normed before.
pub(super) struct FlashAttention {
    pub threads: usize,
}

impl Operator for FlashAttention {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &'static str {
        "FlashAttention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        floats(3, 4)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [made(TensorElementType::Float32)]
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<Self::Kernel<'a>> {
        let heads = node.get::<i64>("heads").and_then(|heads| usize::try_from(heads).ok()).filter(|&heads| heads > 0);
        let heads = heads.ok_or_else(|| Error::new("expected a number of `heads`"))?;
        let scale = node.get::<f32>("scale").ok_or_else(|| Error::new("expected a `scale`"))?;
        let precision = match node.get::<i64>("bits") {
            None => Precision::Whole,
            Some(16) => Precision::Sixteen,
            Some(bits) => return Err(Error::new(format!("expected no `bits`, or 16, found {bits}"))),
        };
        let (epsilon, threads) = (node.get::<f32>("epsilon"), self.threads);
        Ok(Box::new(move |context: &ComputeContext| {
            let inputs = Inputs::of(context)?;
            // Queries and keys may come as rows of all samples; values tell how many samples there are.
            let [(of_q, q), (of_k, k), (shape, v)] = [inputs.floats(0)?, inputs.floats(1)?, inputs.floats(2)?];
            let [batch, _, width] = shape[..] else {
                return Err(Error::new(format!("expected values [batch, tokens, width], found {shape:?}")));
            };
            let fits = k.len() == v.len()
                && !q.is_empty()
                && !v.is_empty()
                && [&of_q, &of_k].iter().all(|shape| shape.last() == Some(&width))
                && width.is_multiple_of(heads)
                && q.len().is_multiple_of(batch * width);
            expect(fits, || format!("expected {heads} heads of one width, found {of_q:?}, {of_k:?}, {shape:?}"))?;
            let norm = |first: usize, epsilon: f32| -> ort::Result<_> {
                let [weight, bias] = [inputs.row(first, width / heads)?, inputs.row(first + 1, width / heads)?];
                Ok(HeadNorm { weight, bias, epsilon })
            };
            let norms = match epsilon {
                Some(epsilon) => Some([norm(3, epsilon)?, norm(5, epsilon)?]),
                None => None,
            };
            let mut y = output(context, 0, &[batch, q.len() / (batch * width), width])?;
            let (_, y) = y.try_extract_tensor_mut::<f32>()?;
            let width = width / heads;
            let pool = Pool { context, count: threads };
            Attention { heads, width, scale, norms, precision }.run(batch, q, k, v, y, &pool);
            Ok(())
        }))
    }
}
