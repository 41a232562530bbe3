//! Linear least squares by normal equations that are summed up block by block.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Axis, Slice};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSliceMut as _;

const COLUMNS: Axis = Axis(1);
/// Columns of the matrix that one task sums up or eliminates.
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
            ones.slice_axis_mut(COLUMNS, Slice::from(..n - 1))
                .assign(&x.slice_axis(Axis(0), Slice::from(rows.clone())));
            let (ones, y) = (&ones, &y.slice_axis(Axis(0), Slice::from(rows)));
            let stripes = self.gram.axis_chunks_iter_mut(Axis(0), STRIPE);
            let stripes: Vec<_> = stripes.zip(self.scratch.axis_chunks_iter_mut(Axis(0), STRIPE)).enumerate().collect();
            stripes.into_par_iter().for_each(|(i, (mut gram, mut product))| {
                let end = i * STRIPE + gram.nrows();
                let mut product = product.slice_axis_mut(COLUMNS, Slice::from(..end));
                let left = ones.slice_axis(COLUMNS, Slice::from(i * STRIPE..end));
                let right = ones.slice_axis(COLUMNS, Slice::from(..end));
                general_mat_mul(1.0, &left.t(), &right, 0.0, &mut product);
                gram.slice_axis_mut(COLUMNS, Slice::from(..end))
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
    ones.slice_axis_mut(COLUMNS, Slice::from(..x.ncols())).assign(x);
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
fn solve(a: Array2<f64>, b: Array2<f64>) -> Option<Array2<f64>> {
    let (n, outputs) = b.dim();
    let mut l = a.into_raw_vec_and_offset().0;
    cholesky(&mut l, n)?;
    let mut columns = b.reversed_axes().as_standard_layout().into_owned().into_raw_vec_and_offset().0;
    columns.par_chunks_mut(n).for_each(|x| {
        for i in 0..n {
            x[i] = (x[i] - dot(&l[i * n..][..i], &x[..i])) / l[i * n + i];
        }
        // Back by rows of L, too, which are columns of its transpose.
        for i in (0..n).rev() {
            let (rest, x) = x.split_at_mut(i);
            x[0] /= l[i * n + i];
            rest.iter_mut().zip(&l[i * n..]).for_each(|(rest, l)| *rest -= x[0] * l);
        }
    });
    let solved = Array2::from_shape_vec((outputs, n), columns).ok()?;
    Some(solved.reversed_axes().as_standard_layout().into_owned())
}

/// `L` of `A = L L^T` in the place of `A`'s lower triangle: stripe after stripe of columns, the rows below it in parallel.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for start in (0..n).step_by(STRIPE) {
        let end = (start + STRIPE).min(n);
        let (above, below) = a.split_at_mut(end * n);
        for i in start..end {
            let (done, row) = above.split_at_mut(i * n);
            for j in start..i {
                row[j] = (row[j] - dot(&row[..j], &done[j * n..][..j])) / done[j * n + j];
            }
            row[i] = Some((row[i] - dot(&row[..i], &row[..i])).sqrt()).filter(|x| x.is_normal())?;
        }
        let above = &*above;
        below.par_chunks_mut(n).for_each(|row| {
            for j in start..end {
                row[j] = (row[j] - dot(&row[..j], &above[j * n..][..j])) / above[j * n + j];
            }
        });
    }
    Some(())
}

/// Eight sums at once, which the compiler keeps in registers.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
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
