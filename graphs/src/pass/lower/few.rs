//! A convolution over three frames that makes few features, as one along rows alone and sums of what that makes.
//!
//! ONNX Runtime copies what each output depends on before it multiplies: for three features of 128 channels of 3x3x3 the copy takes
//! most of the time. A kernel of 1x1x3 with nine times the features copies a ninth of it; its outputs are then added, each moved by
//! the frame and the row it was for.

use super::{Attribute::Int, Lower, TO_THE_END, Target, binary, conv_attributes, emit, signed, transpose};
use crate::op::Type;
use crate::{DType, Dim, Value, dims};

/// Frames and rows that one output is of.
const TAPS: usize = 3;
/// Pairs of a frame and a row.
const MOVES: usize = TAPS * TAPS;
/// With more features multiplying takes more than copying.
const MOST_FEATURES: usize = 8;

impl Lower {
    /// The convolution `inputs` of values `to`, if it is one that the CPU runs faster so.
    pub(super) fn conv_of_few_features<'g>(
        &mut self,
        inputs: &[Option<Value<'g>>],
        strides: &[usize],
        pads: &[[usize; 2]],
        to: &Type,
    ) -> Option<Value<'g>> {
        let (x, weight, bias) = (inputs[0]?, inputs[1]?, inputs.get(2).copied().flatten());
        let (out, kernel) = (x.graph, weight.shape());
        let &[features, channels, TAPS, TAPS, TAPS] = &kernel.iter().filter_map(Dim::fixed).collect::<Vec<_>>()[..]
        else {
            return None;
        };
        let same = *strides == [1, 1, 1] && *pads == [[0, 0], [1, 1], [1, 1]] && to.dtype == DType::F32;
        if self.target != Target::Cpu || !same || features > MOST_FEATURES.min(channels / MOVES) {
            return None;
        }
        let by_move = self.reshape(weight, &[features, channels, MOVES, TAPS].map(Dim::Fixed));
        let by_move = transpose(by_move, [2, 0, 1, 3]);
        let kernels = self.reshape(by_move, &[MOVES * features, channels, 1, 1, TAPS].map(Dim::Fixed));
        // The first of what is added brings the bias.
        let bias = bias.map(|bias| {
            let none = (MOVES - 1) * features;
            let parts = [Some(bias), Some(out.floats(&[none], &vec![0.0; none]))];
            let r#type = Type::new(to.dtype, dims![MOVES * features]);
            emit("", "Concat", 13, vec![("axis", Int(0))], &parts, vec![r#type], out)[0]
        });
        let [batch, _, _, rows, columns] = [0, 1, 2, 3, 4].map(|axis| to.shape[axis].clone());
        // With the rows above and below: those are the bias alone.
        let made = dims![&batch, MOVES * features, &x.dim(2), &(&Dim::Fixed(TAPS - 1) + &rows), &columns];
        let inputs = [Some(x), Some(kernels), bias];
        let made =
            emit("", "Conv", 11, conv_attributes(strides, pads), &inputs, vec![Type::new(to.dtype, made)], out)[0];
        let axes = out.integers(&[3], &[1, 2, 3]);
        let moved = |n: usize| {
            let [frame, row] = [n / TAPS, n % TAPS];
            let first = out.integers(&[3], &[n * features, frame, row].map(signed));
            let end = |place: usize| if place + 1 == TAPS { TO_THE_END } else { signed(place) + 1 - signed(TAPS) };
            let end = out.integers(&[3], &[signed((n + 1) * features), end(frame), end(row)]);
            emit("", "Slice", 13, vec![], &[made, first, end, axes].map(Some), vec![to.clone()], out)[0]
        };
        (0..MOVES).map(moved).reduce(|sum, part| binary("Add", 14, sum, part))
    }
}
