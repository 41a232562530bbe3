//! Offsets and factors that round tokens least, found by descent.
//!
//! A token `x` with offsets `o` and factors `f` is rounded in steps of its largest `m = max |x - o| / f`, over 127, whatever
//! feature that is, and each error goes into the outputs by the weight's column: their mean square is `m^2 sum (f w)^2` but for
//! constants. A row of the weight is rounded in steps of `n = max |f w|`, and its errors meet all features: `n^2 sum ((x - o) / f)^2`.
//! Where tokens and rows are turned before they are rounded, `m` and `n` are the largest of what they become. The sum of both, over
//! all tokens and rows, is what descends, by Adam (Kingma and Ba, 2015) on the logarithms.

use cogvx_kernels::hadamard::rotate;

use crate::balance::Balance;

const STEPS: usize = 200;
/// Of logarithms of factors, and of offsets as shares of their feature's deviation; it falls to zero.
const RATE: f32 = 0.03;
/// Largest logarithm of a factor: 16-bit norms must hold it.
pub(crate) const MOST: f32 = 6.9;

/// Weights of all layers that read the same features, `[rows, width]`, and the sum of squares of each column, of all their rows.
pub(crate) struct Readers<'a> {
    pub rows: &'a [f32],
    pub squares: &'a [f32],
    /// How many rows there are of which `rows` are some.
    pub count: usize,
}

/// What `start` becomes on its way down, on sample `tokens` `[tokens, width]`, which are turned by a matrix of order `rotation`; its
/// offsets stay where it has none.
pub(crate) fn descend(start: &Balance, tokens: &[f32], readers: &Readers<'_>, rotation: usize) -> Balance {
    let width = start.factors.len();
    let shifts = !start.offsets.is_empty();
    let deviations = deviations(tokens, width);
    let mut at = start.clone();
    let mut slope = Slope::new(width, rotation);
    let (mut factors, mut offsets) = (Adam::new(width), Adam::new(width));
    for step in 0..STEPS {
        slope.find(&at, tokens, readers);
        #[allow(clippy::cast_precision_loss)] // Few steps.
        let rate = RATE * (1.0 - step as f32 / STEPS as f32);
        for (j, factor) in at.factors.iter_mut().enumerate() {
            let log = factor.ln() - rate * factors.direction(j, slope.factors[j], step);
            *factor = log.clamp(-MOST, MOST).exp();
        }
        if shifts {
            for (j, offset) in at.offsets.iter_mut().enumerate() {
                let share = offsets.direction(j, slope.offsets[j] * deviations[j], step);
                *offset -= rate * share * deviations[j];
            }
        }
    }
    at
}

/// The slope of the logarithm of the loss.
struct Slope {
    factors: Vec<f32>,
    offsets: Vec<f32>,
    /// Scratch: a token or row, balanced.
    row: Vec<f32>,
    /// What it turns into.
    turned: Vec<f32>,
    /// Order of the matrix that turns it.
    rotation: usize,
}

impl Slope {
    fn new(width: usize, rotation: usize) -> Self {
        let [factors, offsets, row, turned] = [0; 4].map(|_| vec![0.0; width]);
        Self { factors, offsets, row, turned, rotation }
    }

    /// The largest magnitude of what `row` turns into, squared, and half the slope of that by each number of `row` that it depends on.
    fn peak(&mut self) -> (f32, impl Iterator<Item = (usize, f32)> + use<>) {
        let (width, order) = (self.row.len(), self.rotation);
        self.turned.copy_from_slice(&self.row);
        rotate(&mut self.turned, width, order);
        let most = self.turned.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let at = self.turned.iter().position(|x| x.abs() >= most).unwrap_or(0);
        let apart = width / order;
        #[allow(clippy::cast_precision_loss)] // Orders are far below 2^24.
        let share = self.turned[at] / (order as f32).sqrt();
        let slope = move |i: usize| {
            let sign = if (i & (at / apart)).count_ones().is_multiple_of(2) { share } else { -share };
            (i * apart + at % apart, sign)
        };
        (most * most, (0..order).map(slope))
    }

    fn find(&mut self, at: &Balance, tokens: &[f32], readers: &Readers<'_>) {
        let width = at.factors.len();
        let inverse = at.inverse();
        // Of tokens: steps, their slopes, and what each feature sums up to.
        let (mut steps, mut sum, mut energy) = (0.0_f32, vec![0.0_f32; width], vec![0.0_f32; width]);
        let mut peaks = vec![0.0_f32; width];
        let mut pulls = vec![0.0_f32; width];
        let none = vec![0.0; if at.offsets.is_empty() { width } else { 0 }];
        let taken = if at.offsets.is_empty() { &none } else { &at.offsets };
        for token in tokens.chunks_exact(width) {
            for (j, y) in self.row.iter_mut().enumerate() {
                let x = token[j] - taken[j];
                *y = x * inverse[j];
                sum[j] += x;
                energy[j] += x * x;
            }
            let (square, slopes) = self.peak();
            steps += square;
            for (j, slope) in slopes {
                peaks[j] += slope * self.row[j];
                pulls[j] += slope * inverse[j];
            }
        }
        // Of rows.
        let (mut widths, mut tops) = (0.0_f32, vec![0.0_f32; width]);
        for row in readers.rows.chunks_exact(width) {
            for ((y, w), f) in self.row.iter_mut().zip(row).zip(&at.factors) {
                *y = w * f;
            }
            let (square, slopes) = self.peak();
            widths += square;
            for (j, slope) in slopes {
                tops[j] += slope * self.row[j];
            }
        }
        #[allow(clippy::cast_precision_loss)] // Far fewer than 2^24.
        let share = readers.count as f32 / (readers.rows.len() / width).max(1) as f32;
        widths *= share;
        let carried: f32 = at.factors.iter().zip(readers.squares).map(|(f, w)| f * f * w).sum();
        let spread: f32 = energy.iter().zip(&inverse).map(|(x, f)| x * f * f).sum();
        let loss = (steps * carried + widths * spread).max(f32::MIN_POSITIVE);
        for j in 0..width {
            let (f, g) = (at.factors[j], inverse[j]);
            let by_tokens = steps * f * f * readers.squares[j] - peaks[j] * carried;
            let by_rows = tops[j] * share * spread - widths * energy[j] * g * g;
            self.factors[j] = 2.0 * (by_tokens + by_rows) / loss;
            self.offsets[j] = -2.0 * (pulls[j] * carried + widths * sum[j] * g * g) / loss;
        }
    }
}

/// Standard deviation of each feature.
fn deviations(tokens: &[f32], width: usize) -> Vec<f32> {
    let (mut sum, mut squares) = (vec![0.0_f32; width], vec![0.0_f32; width]);
    for token in tokens.chunks_exact(width) {
        for (j, x) in token.iter().enumerate() {
            sum[j] += x;
            squares[j] += x * x;
        }
    }
    #[allow(clippy::cast_precision_loss)] // Far fewer than 2^24 tokens.
    let count = (tokens.len() / width).max(1) as f32;
    sum.iter().zip(&squares).map(|(s, q)| (q / count - (s / count).powi(2)).max(0.0).sqrt()).collect()
}

/// Mean and mean square of each slope, of late.
struct Adam {
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Adam {
    fn new(width: usize) -> Self {
        Self { mean: vec![0.0; width], square: vec![0.0; width] }
    }

    /// Where to go against, about one long.
    fn direction(&mut self, j: usize, slope: f32, step: usize) -> f32 {
        let [keep, hold] = [0.9_f32, 0.999];
        self.mean[j] = keep * self.mean[j] + (1.0 - keep) * slope;
        self.square[j] = hold * self.square[j] + (1.0 - hold) * slope * slope;
        let times = i32::try_from(step + 1).unwrap_or(i32::MAX);
        let [mean, square] = [self.mean[j] / (1.0 - keep.powi(times)), self.square[j] / (1.0 - hold.powi(times))];
        mean / (square.sqrt() + 1e-12)
    }
}
