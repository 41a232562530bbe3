//! What is done to the features of a layer so that they round well.

/// Each feature less its offset, divided by its factor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Balance {
    /// What is taken off each feature; empty for zeros.
    pub offsets: Vec<f32>,
    /// What each feature is divided by; empty for ones.
    pub factors: Vec<f32>,
}

impl Balance {
    /// Balance one token's features.
    pub fn apply(&self, row: &mut [f32]) {
        row.iter_mut().zip(&self.offsets).for_each(|(x, offset)| *x -= offset);
        row.iter_mut().zip(&self.factors).for_each(|(x, factor)| *x /= factor);
    }

    /// Tokens `[tokens, width]`, balanced.
    #[must_use]
    pub fn of(&self, rows: &[f32], width: usize) -> Vec<f32> {
        let mut rows = rows.to_vec();
        rows.chunks_exact_mut(width.max(1)).for_each(|row| self.apply(row));
        rows
    }

    /// One over each factor.
    #[must_use]
    pub fn inverse(&self) -> Vec<f32> {
        self.factors.iter().map(|factor| 1.0 / factor).collect()
    }
}
