//! Panels of tokens, with what products read in one step side by side.

use super::SIDE;
use pulp::{Simd, WithSimd};

/// What becomes of a head's numbers in a panel.
#[derive(Clone, Copy)]
pub enum Kind<'a> {
    /// `[width, SIDE]`, after a norm of this weight, bias and epsilon, or times a factor.
    Transposed(Option<(&'a [f32], &'a [f32], f32)>, f32),
    /// `[SIDE, width up to a line]`
    Plain,
}

/// A panel of tokens to be packed, of several heads.
pub struct Pack<'a> {
    pub kind: Kind<'a>,
    pub width: usize,
    /// Its tokens: up to `SIDE`, each of `features` numbers of which the first belong to the heads.
    pub tokens: &'a [f32],
    pub features: usize,
    /// Every head's panel.
    pub panels: &'a mut [f32],
    pub heads: usize,
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { kind, width, tokens, features, panels, heads } = self;
        let size = panels.len() / heads;
        let zeros = vec![0.0; width];
        for (head, panel) in panels.chunks_exact_mut(size).enumerate() {
            let rows = tokens.chunks(features).map(|row| &row[head * width..][..width]);
            match kind {
                Kind::Plain => {
                    for (row, to) in rows.zip(panel.chunks_exact_mut(size / SIDE)) {
                        to[..width].copy_from_slice(row);
                    }
                }
                Kind::Transposed(norm, factor) => {
                    let (panel, _) = panel.as_chunks_mut::<SIDE>();
                    let mut all: [&[f32]; SIDE] = [&zeros; SIDE];
                    for (row, to) in rows.zip(&mut all) {
                        *to = row;
                    }
                    transpose(simd, &all, panel);
                    if let Some((weight, bias, epsilon)) = norm {
                        for column in (0..SIDE).step_by(S::F32_LANES) {
                            normalise(simd, panel, column, (weight, bias, epsilon));
                        }
                    } else if (factor - 1.0).abs() > 0.0 {
                        panel.as_flattened_mut().iter_mut().for_each(|x| *x *= factor);
                    }
                }
            }
        }
    }
}

/// Layer norm of one register's tokens.
#[inline(always)]
fn normalise<S: Simd>(simd: S, panel: &mut [[f32; SIDE]], column: usize, norm: (&[f32], &[f32], f32)) {
    let (weight, bias, epsilon) = norm;
    let part = simd.splat_f32s(1.0 / weight.len() as f32);
    let zero = simd.splat_f32s(0.0);
    let at = |row: &[f32; SIDE]| S::as_simd_f32s(&row[column..]).0[0];
    let mean = simd.mul_f32s(part, panel.iter().fold(zero, |sum, row| simd.add_f32s(sum, at(row))));
    let squares = panel.iter().fold(zero, |sum, row| {
        let x = simd.sub_f32s(at(row), mean);
        simd.mul_add_f32s(x, x, sum)
    });
    let deviation = simd.sqrt_f32s(simd.mul_add_f32s(squares, part, simd.splat_f32s(epsilon)));
    let factor = simd.div_f32s(simd.splat_f32s(1.0), deviation);
    for ((row, weight), bias) in panel.iter_mut().zip(weight).zip(bias) {
        let x = simd.mul_f32s(simd.sub_f32s(at(row), mean), factor);
        S::as_mut_simd_f32s(&mut row[column..]).0[0] =
            simd.mul_add_f32s(x, simd.splat_f32s(*weight), simd.splat_f32s(*bias));
    }
}

/// Rows as columns.
#[inline(always)]
fn transpose<S: Simd>(simd: S, rows: &[&[f32]; SIDE], panel: &mut [[f32; SIDE]]) {
    let (groups, _) = rows.as_chunks::<16>();
    for (group, rows) in groups.iter().enumerate() {
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = (&simd as &dyn std::any::Any).downcast_ref::<pulp::x86::V4>() {
            for panel in panel.as_chunks_mut::<16>().0 {
                square(*simd, rows, done, panel, group * 16);
                done += 16;
            }
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = (&simd as &dyn std::any::Any).downcast_ref::<pulp::x86::V3>() {
            for panel in panel.as_chunks_mut::<8>().0 {
                for (half, rows) in rows.as_chunks::<8>().0.iter().enumerate() {
                    eights(*simd, rows, done, panel, group * 16 + half * 8);
                }
                done += 8;
            }
        }
        let _ = simd;
        for (feature, panel) in panel.iter_mut().enumerate().skip(done) {
            for (x, row) in panel[group * 16..].iter_mut().zip(rows) {
                *x = row[feature];
            }
        }
    }
}

/// Transpose 8 rows of 8.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn eights(simd: pulp::x86::V3, rows: &[&[f32]; 8], from: usize, panel: &mut [[f32; SIDE]; 8], to: usize) {
    let mut square = [simd.avx._mm256_setzero_ps(); 8];
    for (square, row) in square.iter_mut().zip(rows) {
        *square = bytemuck::cast(*row[from..].first_chunk::<8>().expect("a row"));
    }
    for (panel, column) in panel.iter_mut().zip(crate::transpose::eight(simd, square)) {
        *panel[to..].first_chunk_mut::<8>().expect("a panel of six") = bytemuck::cast(column);
    }
}

/// Transpose 16 rows of 16.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn square(simd: pulp::x86::V4, rows: &[&[f32]; 16], from: usize, panel: &mut [[f32; SIDE]; 16], to: usize) {
    let mut square = [simd.avx512f._mm512_setzero_ps(); 16];
    for (square, row) in square.iter_mut().zip(rows) {
        *square = bytemuck::cast(*row[from..].first_chunk::<16>().expect("a row"));
    }
    for (panel, column) in panel.iter_mut().zip(crate::transpose::sixteen(simd, square)) {
        *panel[to..].first_chunk_mut::<16>().expect("a panel of three") = bytemuck::cast(column);
    }
}
