//! A convolution over three frames as `m + 2` convolutions of pictures for every `m` frames it makes, in place of `3 m`.
//!
//! Winograd's minimal filtering along time, `F(m, 3)` (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015):
//! the frames `y` that a kernel `k` makes of frames `x` are `A (G k * B x)`. `B` mixes `m + 2` frames into as many others, `G k`
//! has a picture's kernel for each of them, and `A` mixes what those make into `m` frames. All mixing is by matrix products over
//! whole frames.
//!
//! Mixing takes passes over memory, and room for a fifth to a half of the frames more. Errors grow with `m`: of sums over 256 channels
//! of random numbers they are 9e-7 with `m = 4` and 6e-6 with 9, where three products each give 3e-7.

use super::{Attribute::Int, Lower, Target, binary, emit, ints, signed, transpose};
use crate::graph::Graph;
use crate::op::Type;
use crate::{DType, Dim, Value, dims};

/// Frames that one frame made is of.
const TAPS: usize = 3;
/// Narrower convolutions are quick as they are, and take less memory.
const FEWEST_CHANNELS: usize = 64;
/// Of fewer frames, which are small ones in the VAE, too little is saved for the kernels to be worth mixing.
const FEWEST_FRAMES: usize = 4;
/// Frames are taken for polynomials and multiplied by what these are at the first `m + 1` of these points, and at infinity. Chosen so
/// that rounding grows little with any `m`: spread over both sides of 1, nowhere close together, and exact.
const POINTS: [f64; 10] = [0.0, 1.0, -1.0, 1.75, -1.75, 0.375, -0.375, 0.75, -0.75, 4.0];
/// Most frames made at once.
const MOST_AT_ONCE: usize = POINTS.len() - 1;
/// The point at which each power is 1: what is added there is added to every frame.
const ONE: usize = 1;

/// How the frames of a convolution are mixed.
#[derive(Clone, Copy)]
pub(super) struct Mixing {
    /// Frames made at once.
    at_once: usize,
    /// Value `[groups * (at_once + 2), frames + 2]`.
    before: usize,
    /// Value `[frames, groups * (at_once + 2)]`.
    after: usize,
}

impl Lower {
    /// The convolution `inputs` of values `to`, if it is one that the CPU runs faster so.
    pub(super) fn conv_over_time<'g>(
        &mut self,
        inputs: &[Option<Value<'g>>],
        strides: &[usize],
        pads: &[[usize; 2]],
        to: &Type,
    ) -> Option<Value<'g>> {
        let (x, weight, bias) = (inputs[0]?, inputs[1]?, inputs.get(2).copied().flatten());
        let (out, kernel) = (x.graph, weight.shape());
        let &[features, channels, TAPS, tall, wide] = &kernel.iter().filter_map(Dim::fixed).collect::<Vec<_>>()[..]
        else {
            return None;
        };
        let in_time = *strides == [1, 1, 1] && pads[0] == [0, 0] && to.dtype == DType::F32;
        if self.target != Target::Cpu || !in_time || features.min(channels) < FEWEST_CHANNELS {
            return None;
        }
        let [batch, _, frames, rows, columns] = [0, 1, 2, 3, 4].map(|axis| to.shape[axis].clone());
        let Mixing { at_once, before, after } = self.mixing(&frames, &x.dim(2), out)?;
        let points = at_once + TAPS - 1;
        let groups = groups(&frames, at_once);

        // Frames before channels, so that one matrix product mixes them.
        let pixels = Dim::product([&x.dim(3), &x.dim(4)]);
        let x4 = self.reshape(x, &[batch.clone(), channels.into(), x.dim(2), pixels.clone()]);
        let by_frame = transpose(x4, [0, 2, 1, 3]);
        let flat = self.reshape(by_frame, &[batch.clone(), x.dim(2), &pixels * channels]);
        let mixed = mix(out.value(before), flat);
        let together = Dim::product([&batch, &groups]);
        let mixed = self.reshape(mixed, &[together.clone(), (points * channels).into(), x.dim(3), x.dim(4)]);

        let kernels = self.kernels(weight, at_once, [features, channels, tall, wide]);
        let bias = bias.map(|bias| {
            let zeros = |n: usize| Some(out.floats(&[n * features], &vec![0.0; n * features]));
            let r#type = Type::new(to.dtype, dims![points * features]);
            let parts = [zeros(ONE), Some(bias), zeros(points - ONE - 1)];
            emit("", "Concat", 13, vec![("axis", Int(0))], &parts, vec![r#type], out)[0]
        });
        let plane_pads = ints(&[pads[1][0], pads[2][0], pads[1][1], pads[2][1]]);
        let attributes = vec![("group", Int(signed(points))), ("pads", plane_pads), ("strides", ints(&[1, 1]))];
        let pictures = Type::new(to.dtype, dims![&together, points * features, &rows, &columns]);
        let made = emit("", "Conv", 11, attributes, &[Some(mixed), Some(kernels), bias], vec![pictures], out)[0];

        let pixels = Dim::product([&rows, &columns]);
        let flat = self.reshape(made, &[batch.clone(), &groups * points, &pixels * features]);
        let y = mix(out.value(after), flat);
        let y = self.reshape(y, &[batch, frames, features.into(), pixels]);
        Some(self.reshape(transpose(y, [0, 2, 1, 3]), &to.shape))
    }

    /// `G k`: kernels of pictures `[points * features, channels, tall, wide]`.
    fn kernels<'g>(&mut self, weight: Value<'g>, at_once: usize, sizes: [usize; 4]) -> Value<'g> {
        let [features, channels, tall, wide] = sizes;
        let (out, points) = (weight.graph, at_once + TAPS - 1);
        let by_frame = self.reshape(weight, &[features, channels, TAPS, tall * wide].map(Dim::Fixed));
        let by_frame = transpose(by_frame, [2, 0, 1, 3]);
        let flat = self.reshape(by_frame, &[TAPS, features * channels * tall * wide].map(Dim::Fixed));
        let [_, of_kernel, _] = matrices(at_once);
        let kernels = mix(matrix(&of_kernel, out), flat);
        self.reshape(kernels, &[points * features, channels, tall, wide].map(Dim::Fixed))
    }

    /// How to make `frames` frames of the `read` ones, if it pays.
    fn mixing(&mut self, frames: &Dim, read: &Dim, out: &Graph) -> Option<Mixing> {
        if let Some(&mixing) = self.mixings.get(frames) {
            return Some(mixing);
        }
        let at_once = match frames.fixed() {
            Some(n) if n < FEWEST_FRAMES => return None,
            Some(n) => (2..=MOST_AT_ONCE).min_by_key(|&m| n.div_ceil(m) * (m + TAPS - 1))?,
            // Those of two or three latents, doubled: 4 or 5, then 8 or 9. Any other open number may be that of an image.
            None if frames.name()?.starts_with("double(double(") => 9,
            None => frames.name()?.starts_with("double(").then_some(5)?,
        };
        let [before, after] = match frames.fixed() {
            Some(n) => fixed(n, at_once, out),
            None => self.open(frames, read, at_once, out),
        };
        let mixing = Mixing { at_once, before: before.id(), after: after.id() };
        self.mixings.insert(frames.clone(), mixing);
        Some(mixing)
    }

    /// Both matrices for a number of frames that is known when the graph runs.
    fn open<'g>(&mut self, frames: &Dim, read: &Dim, at_once: usize, out: &'g Graph) -> [Value<'g>; 2] {
        let points = at_once + TAPS - 1;
        let groups = groups(frames, at_once);
        let [of_made, _, of_read] = matrices(at_once);
        let number = |n: usize| out.integers(&[1], &[signed(n)]);
        let read_count = self.size(read, out);
        let made = binary("Sub", 14, read_count, number(TAPS - 1));
        let group_count = binary("Div", 14, binary("Add", 14, made, number(at_once - 1)), number(at_once));

        // Row `points * g + i` reads frame `at_once * g + i`.
        let row_count = &groups * points;
        let row = self.counted(&row_count, binary("Mul", 14, group_count, number(points)));
        let group = binary("Div", 14, row, number(points));
        let frame = binary("Sub", 14, row, binary("Mul", 14, group, number(points - at_once)));
        let chosen = one_hot(frame, read_count, read);
        let chosen = self.reshape(chosen, &[groups.clone(), points.into(), read.clone()]);
        let before = mix(matrix(&of_read, out), chosen);
        let before = self.reshape(before, &[row_count.clone(), read.clone()]);

        // Frame `t` is number `t % at_once` of group `t / at_once`.
        let frame = self.counted(frames, made);
        let of_group = one_hot(binary("Div", 14, frame, number(at_once)), group_count, &groups);
        let of_group = self.reshape(of_group, &[frames.clone(), groups.clone(), 1.into()]);
        let place = binary("Mod", 13, frame, number(at_once));
        let rows = Type::new(DType::F32, dims![frames, points]);
        let inputs = [Some(matrix(&of_made, out)), Some(place)];
        let rows = emit("", "Gather", 13, vec![("axis", Int(0))], &inputs, vec![rows], out)[0];
        let rows = self.reshape(rows, &[frames.clone(), 1.into(), points.into()]);
        let product = Type::new(DType::F32, dims![frames, &groups, points]);
        let after = emit("", "Mul", 14, vec![], &[Some(of_group), Some(rows)], vec![product], out)[0];
        [before, self.reshape(after, &[frames.clone(), row_count])]
    }

    /// `0, 1, ...`, as many as the `[1]` tensor `count` says, whose size is `n`.
    fn counted<'g>(&mut self, n: &Dim, count: Value<'g>) -> Value<'g> {
        let out = count.graph;
        let inputs = [out.integers(&[], &[0]), self.reshape(count, &[]), out.integers(&[], &[1])].map(Some);
        emit("", "Range", 11, vec![], &inputs, vec![Type::new(DType::I64, vec![n.clone()])], out)[0]
    }
}

/// Groups of `at_once` frames, the last one perhaps not full.
fn groups(frames: &Dim, at_once: usize) -> Dim {
    match frames.fixed() {
        Some(n) => n.div_ceil(at_once).into(),
        None => Dim::named(&format!("groups({frames}, {at_once})")),
    }
}

/// Both matrices for `frames` frames: those of each group along the diagonal. Frames beyond the last are nowhere.
fn fixed(frames: usize, at_once: usize, out: &Graph) -> [Value<'_>; 2] {
    let (points, groups) = (at_once + TAPS - 1, frames.div_ceil(at_once));
    let [of_made, _, of_read] = matrices(at_once);
    let (rows, read) = (groups * points, frames + TAPS - 1);
    let mut before = vec![vec![0.0; read]; rows];
    let mut after = vec![vec![0.0; rows]; frames];
    for (group, point) in (0..groups).flat_map(|group| (0..points).map(move |point| (group, point))) {
        let (row, first) = (group * points + point, group * at_once);
        for frame in (first..read).take(points) {
            before[row][frame] = of_read[point][frame - first];
        }
        for frame in (first..frames).take(at_once) {
            after[frame][row] = of_made[frame - first][point];
        }
    }
    [matrix(&before, out), matrix(&after, out)]
}

type Rows = Vec<Vec<f32>>;

/// `A` `[at_once, points]`, `G` `[points, 3]` and `B` `[points, points]`, rounded once.
#[allow(clippy::cast_possible_truncation)] // Far from the largest numbers.
fn matrices(at_once: usize) -> [Rows; 3] {
    let finite = &POINTS[..at_once + TAPS - 2];
    let power = |x: f64, n: usize| (0..n).fold(1.0, |product, _| product * x);
    let at_infinity = |n: usize, last: usize| if n == last { 1.0 } else { 0.0 };
    let others = |i: usize| finite.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, &x)| x);
    // Coefficients of the polynomial that is zero at these points.
    let zero_at = |zeros: &mut dyn Iterator<Item = f64>| {
        zeros.fold(vec![1.0], |polynomial: Vec<f64>, zero| {
            let mut product = vec![0.0; polynomial.len() + 1];
            for (i, c) in polynomial.iter().enumerate() {
                product[i] -= zero * c;
                product[i + 1] += c;
            }
            product
        })
    };
    let of_made: Vec<Vec<f64>> = (0..at_once)
        .map(|n| finite.iter().map(|&x| power(x, n)).chain([at_infinity(n, at_once - 1)]).collect())
        .collect();
    let of_kernel = finite.iter().enumerate().map(|(i, &x)| {
        let scale: f64 = others(i).map(|other| x - other).product();
        (0..TAPS).map(|n| power(x, n) / scale).collect()
    });
    let of_kernel: Vec<Vec<f64>> = of_kernel.chain([(0..TAPS).map(|n| at_infinity(n, TAPS - 1)).collect()]).collect();
    let of_read = (0..finite.len()).map(|i| [zero_at(&mut others(i)), vec![0.0]].concat());
    let of_read = of_read.chain([zero_at(&mut finite.iter().copied())]).collect();
    [of_made, of_kernel, of_read].map(|rows| rows.iter().map(|row| row.iter().map(|&x| x as f32).collect()).collect())
}

fn matrix<'g>(rows: &Rows, out: &'g Graph) -> Value<'g> {
    out.floats(&[rows.len(), rows[0].len()], &rows.concat())
}

/// `matrix @ x` over the last two axes.
fn mix<'g>(matrix: Value<'g>, x: Value<'g>) -> Value<'g> {
    let mut shape = x.shape();
    let rows = shape.len() - 2;
    shape[rows] = matrix.dim(0);
    emit("", "MatMul", 13, vec![], &[Some(matrix), Some(x)], vec![Type::new(x.dtype(), shape)], x.graph)[0]
}

/// For each number a row of `depth` zeros, of which that number is one instead; none if there is no such place.
fn one_hot<'g>(index: Value<'g>, depth: Value<'g>, size: &Dim) -> Value<'g> {
    let out = index.graph;
    let off_and_on = out.floats(&[2], &[0.0, 1.0]);
    let inputs = [index, depth, off_and_on].map(Some);
    let r#type = Type::new(DType::F32, dims![&index.dim(0), size]);
    emit("", "OneHot", 11, vec![("axis", Int(-1))], &inputs, vec![r#type], out)[0]
}
