//! A convolution of 3x3 over nearest-neighbour upsampling by two, as four of 2x2 before it.
//!
//! Of the three rows that an output row reads two are the same, so their weights add up: even rows read the row above with `k0`
//! and their own with `k1 + k2`, odd rows their own with `k0 + k1` and the row below with `k2`. Columns alike. That is 4 products
//! in place of 9, and the upsampled tensor is never made.

use super::{Attribute::Int, Attribute::Text, Lower, Target, emit, ints};
use crate::op::Type;
use crate::{Dim, Value, dims};

/// What becomes of the three weights along an axis, for even and for odd outputs.
const MERGED: [[[f32; 3]; 2]; 2] = [[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]];

impl Lower {
    /// The convolution `inputs` of values `to`, if it is one that the CPU runs faster so.
    pub(super) fn conv_of_upsampled<'g>(
        &mut self,
        inputs: &[Option<Value<'g>>],
        strides: &[usize],
        pads: &[[usize; 2]],
        to: &Type,
    ) -> Option<Value<'g>> {
        let (upsampled, weight, bias) = (inputs[0]?, inputs[1]?, inputs.get(2).copied().flatten());
        let out = upsampled.graph;
        let (before, factors) = self.upsampled.get(&upsampled.id())?;
        let [features, channels, kernel @ ..] = &weight.shape()[..] else { return None };
        let in_plane = factors[..] == [1, 1, 1, 2, 2] && *kernel == dims![1, 3, 3];
        let same = *strides == [1, 1, 1] && *pads == [[0, 0], [1, 1], [1, 1]];
        if self.target != Target::Cpu || !in_plane || !same {
            return None;
        }
        let x = out.value(*before);
        let [batch, _, frames, rows, columns] = [0, 1, 2, 3, 4].map(|axis| x.dim(axis));
        let planes = self.reshape(weight, &[Dim::product([features, channels]), Dim::Fixed(9)]);
        let mut quarter = |i: usize, j: usize| {
            let (rows_of, columns_of) = (MERGED[i], MERGED[j]);
            let merge: Vec<_> = (0..36)
                .map(|n| (n / 4, n % 4))
                .map(|(from, to)| rows_of[to / 2][from / 3] * columns_of[to % 2][from % 3])
                .collect();
            let merged = Type::new(to.dtype, dims![&planes.dim(0), 4]);
            let merge = Some(out.floats(&[9, 4], &merge));
            let merged = emit("", "MatMul", 13, vec![], &[Some(planes), merge], vec![merged], out)[0];
            let kernel = self.reshape(merged, &[&[features.clone(), channels.clone()], &dims![1, 2, 2][..]].concat());
            let attributes = vec![("pads", ints(&[0, 1 - i, 1 - j, 0, i, j])), ("strides", ints(strides))];
            let to = Type::new(to.dtype, dims![&batch, features, &frames, &rows, &columns]);
            Some(emit("", "Conv", 11, attributes, &[Some(x), Some(kernel), bias], vec![to], out)[0])
        };
        let quarters = [quarter(0, 0), quarter(0, 1), quarter(1, 0), quarter(1, 1)];
        let to_concat = Type::new(to.dtype, dims![&batch, &(features * 4), &frames, &rows, &columns]);
        let quarters = emit("", "Concat", 13, vec![("axis", Int(1))], &quarters, vec![to_concat], out)[0];
        // Frames below one another are one picture.
        let stacked = Dim::product([&frames, &rows]);
        let flat = self.reshape(quarters, &[batch.clone(), features * 4, stacked.clone(), columns.clone()]);
        let wide = dims![&batch, features, &(&stacked * 2), &(&columns * 2)];
        let attributes = vec![("blocksize", Int(2)), ("mode", Text("DCR".into()))];
        let y = emit("", "DepthToSpace", 13, attributes, &[Some(flat)], vec![Type::new(to.dtype, wide)], out)[0];
        Some(self.reshape(y, &to.shape))
    }
}
