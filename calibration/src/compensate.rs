//! Making up for rounding errors by the columns not rounded yet (GPTQ, Frantar et al. 2023).
//!
//! The columns `w` of a weight are rounded one after the other. What the rounded ones have changed of the layer's outputs on
//! sample features, `r`, is made up for as well as the columns `F` left can: the least `|r + X_F d|^2 + damping |d|^2` has
//! `d = -X_F^T (damping + X_F X_F^T)^-1 r`. There are far fewer sample tokens than features, so the inverse is taken over the
//! tokens, and leaving a column out of `F` changes it by a rank of one.

use crate::smooth::spread;

/// Share of the features' mean square that is added to the diagonal.
const DAMPING: f64 = 0.05;
/// Sample tokens used at most: the work grows with their square.
const TOKENS: usize = 512;

/// What is needed to compensate the rows of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Compensation {
    tokens: usize,
    /// Sample features of each column, `[columns, tokens]`.
    features: Vec<f32>,
    /// `(damping + X_F X_F^T)^-1 x` of each column `x`, `F` from it on, `[columns, tokens]`.
    directions: Vec<f32>,
}

/// The compensation of one row under way.
pub(crate) struct Compensating<'a> {
    of: &'a Compensation,
    /// How the outputs of all tokens have changed.
    changed: Vec<f32>,
}

impl Compensation {
    /// For sample features `[tokens, width]`, of many evenly spaced ones; none where they are all zero.
    #[must_use]
    pub fn new(rows: &[f32], width: usize) -> Option<Self> {
        let rows = &spread(rows, width, TOKENS);
        let tokens = rows.len() / width;
        let square = rows.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        #[allow(clippy::cast_precision_loss)] // Far fewer than 2^52.
        let damping = DAMPING * square / width as f64;
        if !(damping.is_normal()) {
            return None;
        }
        let mut features = vec![0.0; rows.len()];
        for (token, row) in rows.chunks_exact(width).enumerate() {
            row.iter().enumerate().for_each(|(column, &x)| features[column * tokens + token] = x);
        }
        let mut inverse = inverse(&features, tokens, damping)?;
        let mut directions = Vec::with_capacity(rows.len());
        for column in features.chunks_exact(tokens) {
            let column: Vec<_> = column.iter().map(|&x| f64::from(x)).collect();
            let direction: Vec<_> = inverse.chunks_exact(tokens).map(|row| dot(row, &column)).collect();
            #[allow(clippy::cast_possible_truncation)]
            directions.extend(direction.iter().map(|&x| x as f32));
            // Sherman and Morrison: the inverse without this column.
            let rest = (1.0 - dot(&direction, &column)).max(1e-9);
            for (row, &a) in inverse.chunks_exact_mut(tokens).zip(&direction) {
                row.iter_mut().zip(&direction).for_each(|(x, &b)| *x += a * b / rest);
            }
        }
        Some(Self { tokens, features, directions })
    }

    pub(crate) fn start(&self) -> Compensating<'_> {
        Compensating { of: self, changed: vec![0.0; self.tokens] }
    }
}

impl Compensating<'_> {
    /// What to add to the weight of `column` before it is rounded.
    pub(crate) fn correction(&self, column: usize) -> f32 {
        let direction = &self.of.directions[column * self.of.tokens..][..self.of.tokens];
        -direction.iter().zip(&self.changed).map(|(a, b)| a * b).sum::<f32>()
    }

    /// The weight of `column` has become this much larger.
    pub(crate) fn made(&mut self, column: usize, error: f32) {
        let features = &self.of.features[column * self.of.tokens..][..self.of.tokens];
        self.changed.iter_mut().zip(features).for_each(|(changed, x)| *changed += error * x);
    }
}

/// `(damping + X X^T)^-1` of features `[columns, tokens]`, by Cholesky's decomposition.
fn inverse(features: &[f32], tokens: usize, damping: f64) -> Option<Vec<f64>> {
    let n = tokens;
    let mut gram = vec![0.0; n * n];
    for column in features.chunks_exact(n) {
        for (row, &a) in gram.chunks_exact_mut(n).zip(column) {
            row.iter_mut().zip(column).for_each(|(g, &b)| *g += f64::from(a) * f64::from(b));
        }
    }
    for i in 0..n {
        gram[i * n + i] += damping;
    }
    // Lower triangle L, in place: gram = L L^T.
    for i in 0..n {
        for j in 0..=i {
            let sum = gram[i * n + j] - dot(&gram[i * n..][..j], &gram[j * n..][..j]);
            gram[i * n + j] = if i == j { Some(sum.sqrt()).filter(|x| x.is_normal())? } else { sum / gram[j * n + j] };
        }
    }
    // Columns of the inverse: forward, then backward.
    let mut inverse = vec![0.0; n * n];
    let mut x = vec![0.0; n];
    for column in 0..n {
        for i in 0..n {
            let unit = if i == column { 1.0 } else { 0.0 };
            x[i] = (unit - dot(&gram[i * n..][..i], &x[..i])) / gram[i * n + i];
        }
        for i in (0..n).rev() {
            let below: f64 = (i + 1..n).map(|k| gram[k * n + i] * x[k]).sum();
            x[i] = (x[i] - below) / gram[i * n + i];
        }
        // Symmetric: the column is a row.
        inverse[column * n..][..n].copy_from_slice(&x);
    }
    Some(inverse)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use cogvx_graphs::DType;
    use cogvx_graphs::pass::Target;
    use cogvx_graphs::quantized::LinearForm;

    use super::*;
    use crate::round::round;

    /// Features that depend on each other, and a weight.
    fn case(tokens: usize, width: usize, outputs: usize) -> (Vec<f32>, Vec<f32>) {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            f32::from(i16::from_le_bytes([state.to_le_bytes()[5], state.to_le_bytes()[6]])) / 32768.0
        };
        let mut rows: Vec<f32> = (0..tokens * width).map(|_| next()).collect();
        for i in 1..rows.len() {
            rows[i] = 0.8 * rows[i - 1] + 0.6 * rows[i];
        }
        (rows, (0..outputs * width).map(|_| next()).collect())
    }

    /// Square error of the outputs of a weight in four bits.
    fn error(rows: &[f32], weight: &[f32], width: usize, compensation: Option<&Compensation>) -> f64 {
        let form = LinearForm::Blocks { bits: 4, block: width, symmetric: true };
        let rounded = round((form, Target::TensorRt, DType::F32), weight, width, compensation);
        let value = |i: usize| f32::from(i8::from_le_bytes([(rounded.values[i / 2] >> (4 * (i % 2))) << 4]) >> 4);
        let change: Vec<_> = weight.iter().enumerate().map(|(i, x)| value(i) * rounded.scales[i / width] - x).collect();
        let output = |row: &[f32], change: &[f32]| row.iter().zip(change).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        rows.chunks_exact(width)
            .flat_map(|row| change.chunks_exact(width).map(move |change| output(row, change).powi(2)))
            .sum()
    }

    #[test]
    fn outputs_change_far_less_than_by_rounding_alone() {
        let (rows, weight) = case(24, 64, 16);
        let compensation = Compensation::new(&rows, 64).expect("not zero");
        let (alone, compensated) = (error(&rows, &weight, 64, None), error(&rows, &weight, 64, Some(&compensation)));
        assert!(compensated < 0.2 * alone, "{compensated} {alone}");
        // And on tokens of the same kind that it has not seen.
        let (others, _) = case(200, 64, 1);
        let others = &others[24 * 64..];
        let (alone, compensated) = (error(others, &weight, 64, None), error(others, &weight, 64, Some(&compensation)));
        assert!(compensated < 0.8 * alone, "{compensated} {alone}");
    }

    #[test]
    fn features_of_zero_have_no_compensation() {
        assert_eq!(Compensation::new(&[0.0; 64], 16), None);
    }
}
