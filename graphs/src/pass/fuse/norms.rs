//! `CogVideoXLayerNormZero` of text and video side by side, after the block before has been added to both.

use super::rows::Product;
use super::{Fused, Plain, attribute, inputs, native};
use crate::graph::{Node, Source};
use crate::op::Attribute;
use crate::op::Op;

/// The norms of both streams, joined.
struct Joined {
    /// What the node reads.
    inputs: Vec<usize>,
    /// The streams after the block before was added, if it is.
    residuals: Vec<usize>,
    epsilon: Attribute,
}

/// A stream with what is added to it: `x + gate * y[start..]`.
struct Residual {
    x: usize,
    gate: usize,
    y: usize,
    start: usize,
    end: usize,
}

impl Plain<'_> {
    /// As numbers.
    pub(super) fn joined(&self, concat: &Node) -> Option<Fused> {
        let Joined { inputs, residuals, epsilon } = self.join(concat)?;
        let outputs: Vec<_> = concat.outputs.iter().copied().chain(residuals).collect();
        let types = outputs.iter().map(|&value| self.r#type(value)).collect();
        let op = native("JoinNorms", vec![("epsilon", epsilon)], types);
        Some(Fused { op, inputs: inputs.into_iter().map(Some).collect(), outputs, path: concat.path.clone() })
    }

    /// As bytes, with a step for each row.
    pub(super) fn joined_rounded(&self, quantize: &Node) -> Option<Fused> {
        let rounded = self.rounding(quantize)?;
        if self.readers[rounded.x] != rounded.reads {
            return None;
        }
        let whole = self.made_by(rounded.x, "Reshape")?.inputs[0]?;
        let concat = self.only(whole, "Concat")?;
        let Joined { inputs, residuals, epsilon } = self.join(concat)?;
        let outputs: Vec<_> = rounded.made.into_iter().chain(residuals).collect();
        let types = outputs.iter().map(|&value| self.r#type(value)).collect();
        let attributes = rounded.attributes.into_iter().chain([("epsilon", epsilon)]).collect();
        let op = native("JoinNormsRounded", attributes, types);
        Some(Fused { op, inputs: inputs.into_iter().map(Some).collect(), outputs, path: concat.path.clone() })
    }

    fn join(&self, concat: &Node) -> Option<Joined> {
        let Op::Onnx(op) = &concat.op else { return None };
        let streams = inputs::<2>(concat)?.map(|value| self.only(value, "LayerNormalization"));
        let [text, video] = [streams[0]?, streams[1]?];
        let [epsilon, of_video] = [text, video].map(|norm| match &norm.op {
            Op::Onnx(op) => attribute(op, "epsilon").cloned(),
            _ => None,
        });
        let [[text, text_scale, text_shift], [video, scale, shift]] = [inputs(text)?, inputs(video)?];
        let is_row = |value: &usize| self.rank(*value) == 1;
        let fits = attribute(op, "axis") == Some(&Attribute::Int(1))
            && epsilon == of_video
            && self.rank(text) == 3
            && [text_scale, text_shift, scale, shift].iter().all(is_row);
        let norms = [text_scale, text_shift, scale, shift];
        let joined = match self.residual(text).zip(self.residual(video)).and_then(|both| self.added(both)) {
            Some((streams, added)) => Joined {
                inputs: [&streams[..], &norms, &added].concat(),
                residuals: vec![text, video],
                epsilon: epsilon?,
            },
            None => Joined { inputs: [&[text, video][..], &norms].concat(), residuals: vec![], epsilon: epsilon? },
        };
        fits.then_some(joined)
    }

    /// A stream before a block was added, and the part of what the block made that was.
    fn residual(&self, stream: usize) -> Option<Residual> {
        let [x, part] = inputs(self.made_by(stream, "Add")?)?;
        let [gate, part] = inputs(self.only(part, "Mul")?)?;
        let [y, start, end, _] = inputs(self.only(part, "Slice")?)?;
        (self.rank(gate) == 1 && self.rank(y) == 3).then_some(Residual { x, gate, y, start, end })
    }

    /// Both streams, and what is added to them: text first, then video, to the end.
    fn added(&self, (text, video): (Residual, Residual)) -> Option<([usize; 2], Vec<usize>)> {
        let Source::Constant(start) = &self.values[text.start].source else { return None };
        let tokens = |value: usize| self.values[value].r#type.shape[1].clone();
        let is_whole = &tokens(text.x) + &tokens(video.x) == tokens(text.y);
        if start.bytes.iter().any(|&b| b != 0) || text.end != video.start || text.y != video.y || !is_whole {
            return None;
        }
        let whole = if self.readers[text.y] == 2 { self.made_by(text.y, "Reshape") } else { None };
        let product = whole.and_then(|node| self.only(node.inputs[0]?, "Add")).and_then(|add| self.product(add));
        let mut added = vec![text.y, text.gate, video.gate];
        if let Some(Product { y, steps, bias }) = product {
            added[0] = y;
            added.extend([steps, bias]);
        }
        Some(([text.x, video.x], added))
    }
}
