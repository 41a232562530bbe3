//! Linear least squares by normal equations that are summed up block by block.

use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayBase, ArrayView2, Axis, Ix2, RawData, Slice};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

const DOWN: Axis = Axis(0);
const ACROSS: Axis = Axis(1);
/// Rows or columns of a matrix that one task sums up or eliminates.
const STRIPE: usize = 64;
/// Rows whose products are summed up in `f32` before they are added in `f64`.
const ROWS: usize = 512;

/// `X^T X` and `X^T Y` of rows seen so far, where each row of `X` ends in a 1 for the bias.
///
/// Memory is `12 (inputs + 1)^2` bytes and `8 (inputs + 1) outputs`, however many rows there are.
pub(super) struct Normal {
    /// Lower triangle, `[inputs + 1, inputs + 1]`.
    gram: Array2<f64>,
    /// `[inputs + 1, outputs]`
    moment: Array2<f64>,
    scratch: Array2<f32>,
}

impl Normal {
    pub fn new(inputs: usize, outputs: usize) -> Self {
        let n = inputs + 1;
        Self { gram: Array2::zeros((n, n)), moment: Array2::zeros((n, outputs)), scratch: Array2::zeros((n, n)) }
    }

    /// Take in rows `x` `[rows, inputs]` and `y` `[rows, outputs]`, each `weight` times in `X^T X` and once in `X^T Y`.
    pub fn add(&mut self, x: &ArrayView2<'_, f32>, y: &ArrayView2<'_, f32>, weight: f64) {
        let n = self.gram.nrows();
        for at in (0..x.nrows()).step_by(ROWS) {
            let rows = at..(at + ROWS).min(x.nrows());
            let mut ones = Array2::ones((rows.len(), n));
            ones.slice_axis_mut(ACROSS, Slice::from(..n - 1)).assign(&x.slice_axis(DOWN, Slice::from(rows.clone())));
            let (ones, y) = (&ones, &y.slice_axis(DOWN, Slice::from(rows)));
            let stripes = self.gram.axis_chunks_iter_mut(DOWN, STRIPE);
            let stripes: Vec<_> = stripes.zip(self.scratch.axis_chunks_iter_mut(DOWN, STRIPE)).enumerate().collect();
            stripes.into_par_iter().for_each(|(i, (mut gram, mut product))| {
                let end = i * STRIPE + gram.nrows();
                let mut product = product.slice_axis_mut(ACROSS, Slice::from(..end));
                let left = ones.slice_axis(ACROSS, Slice::from(i * STRIPE..end));
                let right = ones.slice_axis(ACROSS, Slice::from(..end));
                general_mat_mul(1.0, &left.t(), &right, 0.0, &mut product);
                gram.slice_axis_mut(ACROSS, Slice::from(..end))
                    .zip_mut_with(&product, |sum, &x| *sum += weight * f64::from(x));
            });
            self.moment.zip_mut_with(&ones.t().dot(y), |sum, &x| *sum += f64::from(x));
        }
    }

    /// The `[inputs + 1, outputs]` map `B` of least `|X B - Y|^2 + ridge mean(x^2) |B|^2`; its last row is the bias.
    pub fn solve(mut self, ridge: f64) -> Option<Array2<f64>> {
        regularize(&mut self.gram, ridge);
        drop(self.scratch);
        solve(self.gram, self.moment)
    }
}

/// The map `[columns + 1, outputs]` that takes rows `x` with a 1 at their end to rows `y` best.
pub(super) fn fit(x: &Array2<f64>, y: &Array2<f64>, ridge: f64) -> Option<Array2<f64>> {
    let x = with_ones(x);
    let mut gram = x.t().dot(&x);
    regularize(&mut gram, ridge);
    solve(gram, x.t().dot(y))
}

/// Rows with a 1 at their end.
pub(super) fn with_ones(x: &Array2<f64>) -> Array2<f64> {
    let mut ones = Array2::ones((x.nrows(), x.ncols() + 1));
    ones.slice_axis_mut(ACROSS, Slice::from(..x.ncols())).assign(x);
    ones
}

/// Adds `ridge` times the mean of the diagonal to it, and next to nothing to the bias's place.
#[allow(clippy::cast_precision_loss)] // Few columns.
fn regularize(gram: &mut Array2<f64>, ridge: f64) {
    let n = gram.nrows() - 1;
    let mean = gram.diag().iter().take(n).sum::<f64>() / n.max(1) as f64;
    let mut diagonal = gram.diag_mut();
    diagonal.iter_mut().take(n).for_each(|x| *x += ridge * mean + f64::MIN_POSITIVE);
    diagonal[n] *= 1.0 + 1e-9;
}

/// Solves `A Z = B` for a positive definite `A`, of which only the lower triangle is read; none where it is not.
fn solve(mut a: Array2<f64>, mut b: Array2<f64>) -> Option<Array2<f64>> {
    cholesky(&mut a)?;
    let l = &a;
    let starts: Vec<_> = (0..l.nrows()).step_by(STRIPE).collect();
    let stripes: Vec<_> = b.axis_chunks_iter_mut(ACROSS, STRIPE).collect();
    stripes.into_par_iter().for_each(|mut x| {
        // L Y = B from above, then L^T X = Y from below.
        for &start in &starts {
            let end = (start + STRIPE).min(l.nrows());
            let (done, rest) = x.view_mut().split_at(DOWN, start);
            let (mut now, _) = rest.split_at(DOWN, end - start);
            general_mat_mul(-1.0, &part(l.view(), start..end, 0..start), &done, 1.0, &mut now);
            for i in 0..end - start {
                let (done, mut rest) = now.view_mut().split_at(DOWN, i);
                let mut row = rest.row_mut(0);
                for (j, done) in done.rows().into_iter().enumerate() {
                    row.scaled_add(-l[[start + i, start + j]], &done);
                }
                row /= l[[start + i, start + i]];
            }
        }
        for &start in starts.iter().rev() {
            let end = (start + STRIPE).min(l.nrows());
            let (above, done) = x.view_mut().split_at(DOWN, end);
            let (_, mut now) = above.split_at(DOWN, start);
            general_mat_mul(-1.0, &part(l.view(), end..l.nrows(), start..end).t(), &done, 1.0, &mut now);
            for i in (0..end - start).rev() {
                let (rest, done) = now.view_mut().split_at(DOWN, i + 1);
                let (_, mut row) = rest.split_at(DOWN, i);
                let mut row = row.row_mut(0);
                for (j, done) in done.rows().into_iter().enumerate() {
                    row.scaled_add(-l[[start + i + 1 + j, start + i]], &done);
                }
                row /= l[[start + i, start + i]];
            }
        }
    });
    Some(b)
}

/// These rows and columns of a view.
fn part<S: RawData<Elem = f64>>(
    mut of: ArrayBase<S, Ix2>,
    rows: Range<usize>,
    columns: Range<usize>,
) -> ArrayBase<S, Ix2> {
    of.slice_axis_inplace(DOWN, rows.into());
    of.slice_axis_inplace(ACROSS, columns.into());
    of
}

/// `L` of `A = L L^T` in the place of `A`'s lower triangle: stripe after stripe of columns, of each first what the stripes before
/// it take off, as products of matrices.
fn cholesky(a: &mut Array2<f64>) -> Option<()> {
    let n = a.nrows();
    for start in (0..n).step_by(STRIPE) {
        let end = (start + STRIPE).min(n);
        let before = part(a.view(), start..end, 0..start).to_owned();
        let mut rows = part(a.view_mut(), start..n, 0..end);
        let rows: Vec<_> = rows.axis_chunks_iter_mut(DOWN, STRIPE).collect();
        rows.into_par_iter().for_each(|rows| {
            let (left, mut right) = rows.split_at(ACROSS, start);
            general_mat_mul(-1.0, &left, &before.t(), 1.0, &mut right);
        });
        let mut corner = part(a.view_mut(), start..end, start..end);
        for i in 0..end - start {
            for j in 0..=i {
                let sum: f64 = (0..j).map(|k| corner[[i, k]] * corner[[j, k]]).sum();
                let rest = corner[[i, j]] - sum;
                corner[[i, j]] =
                    if i == j { Some(rest.sqrt()).filter(|x| x.is_normal())? } else { rest / corner[[j, j]] };
            }
        }
        let corner = corner.to_owned();
        let mut below = part(a.view_mut(), end..n, start..end);
        let below: Vec<_> = below.axis_chunks_iter_mut(DOWN, STRIPE).collect();
        below.into_par_iter().for_each(|mut rows| {
            for mut row in rows.rows_mut() {
                for j in 0..end - start {
                    let sum: f64 = (0..j).map(|k| row[k] * corner[[j, k]]).sum();
                    row[j] = (row[j] - sum) / corner[[j, j]];
                }
            }
        });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::TorchGenerator;

    fn random(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
        Array2::from_shape_vec((rows, columns), TorchGenerator::new(seed).randn(rows * columns)).expect("as many")
    }

    #[test]
    fn a_linear_map_is_found_again() {
        let (x, map) = (random(1500, 130, 1), random(130, 5, 2));
        let y = x.dot(&map) + 0.5;
        let mut normal = Normal::new(130, 5);
        normal.add(&x.slice_axis(Axis(0), Slice::from(..900)), &y.slice_axis(Axis(0), Slice::from(..900)), 1.0);
        normal.add(&x.slice_axis(Axis(0), Slice::from(900..)), &y.slice_axis(Axis(0), Slice::from(900..)), 1.0);
        let found = normal.solve(1e-9).expect("independent columns");
        let worst = |a: f64, b: f32| (a - f64::from(b)).abs();
        assert!(found.slice_axis(Axis(0), Slice::from(..130)).iter().zip(&map).all(|(&a, &b)| worst(a, b) < 1e-5));
        assert!(found.row(130).iter().all(|&bias| worst(bias, 0.5) < 1e-5));
        let fitted = fit(&x.mapv(f64::from), &y.mapv(f64::from), 1e-9).expect("the same");
        assert!(fitted.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn columns_that_depend_on_each_other_are_shared_out_and_columns_of_nothing_left_alone() {
        let mut x = random(200, 4, 3);
        let first = x.column(0).to_owned();
        x.column_mut(1).assign(&first);
        x.column_mut(2).fill(0.0);
        let y = (&first * 2.0).insert_axis(Axis(1));
        let mut normal = Normal::new(4, 1);
        normal.add(&x.view(), &y.view(), 1.0);
        let found = normal.solve(1e-6).expect("regularized");
        assert!((found[[0, 0]] - 1.0).abs() < 1e-3 && (found[[1, 0]] - 1.0).abs() < 1e-3, "{found}");
        assert!(found[[2, 0]].abs() < 1e-9, "{found}");
    }
}
