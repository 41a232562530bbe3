//! How often numbers have which magnitude, and the largest magnitude that eight bits should reach.

/// Bins of a histogram.
pub const BINS: usize = 2048;
/// Largest count; merging goes no further.
pub(crate) const MOST: u64 = 1 << 48;

/// Counts of magnitudes in bins of equal width from zero on. The width doubles when a larger number comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Width of a bin; zero while only zeros have come.
    pub width: f32,
    /// [`BINS`] counts.
    pub counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { width: 0.0, counts: vec![0; BINS] }
    }
}

/// How the largest magnitude to be represented is chosen; what is larger is cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Clip {
    /// Nothing is cut off. The largest features of video transformers are rare and matter.
    #[default]
    MinMax,
    /// This share of the magnitudes is below it.
    Percentile(f64),
    /// The least information is lost (Kullback-Leibler divergence, as in NVIDIA's 8-bit inference, 2017).
    Entropy,
    /// The mean square error is least.
    Mse,
}

impl Histogram {
    /// Count the magnitudes of these numbers, which are finite.
    pub fn add(&mut self, numbers: &[f32]) {
        let largest = numbers.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        self.reach(largest);
        if self.width == 0.0 {
            self.counts[0] += numbers.len() as u64;
            return;
        }
        let inverse = 1.0 / self.width;
        for x in numbers {
            self.counts[bin(x.abs() * inverse)] += 1;
        }
    }

    /// Count what another has counted.
    pub fn merge(&mut self, other: &Self) {
        self.reach(other.greatest());
        #[allow(clippy::cast_precision_loss)] // Few bins.
        for (i, &count) in other.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let middle = (i as f32 + 0.5) * other.width;
            let i = if self.width == 0.0 { 0 } else { bin(middle / self.width) };
            self.counts[i] = (self.counts[i] + count).min(MOST);
        }
    }

    /// The upper end of the last bin that is not empty.
    #[must_use]
    pub fn greatest(&self) -> f32 {
        #[allow(clippy::cast_precision_loss)] // Few bins.
        self.counts.iter().rposition(|&count| count > 0).map_or(0.0, |last| (last + 1) as f32 * self.width)
    }

    /// How many numbers were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Make the last bin end at `largest` or beyond.
    fn reach(&mut self, largest: f32) {
        #[allow(clippy::cast_precision_loss)] // Few bins.
        let bins = BINS as f32;
        if self.width == 0.0 && largest > 0.0 {
            // All so far were zero and stay in the first bin.
            self.width = largest / bins;
        }
        while self.width > 0.0 && self.width.is_finite() && largest > self.width * bins {
            let halves: Vec<u64> = self.counts.chunks(2).map(|pair| pair.iter().sum()).collect();
            self.counts[..BINS / 2].copy_from_slice(&halves);
            self.counts[BINS / 2..].fill(0);
            self.width *= 2.0;
        }
    }

    /// The largest magnitude that values of `levels` steps from zero should reach.
    #[must_use]
    pub fn clip(&self, method: Clip, levels: usize) -> f32 {
        let last = self.counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
        #[allow(clippy::cast_precision_loss)] // Few bins.
        let end = |bins: usize| bins as f32 * self.width;
        let candidates = || (levels.min(last)..=last).step_by(8).chain([last]);
        let least = |loss: &dyn Fn(usize) -> f64| {
            candidates().map(|n| (n, loss(n))).min_by(|a, b| a.1.total_cmp(&b.1)).map_or(last, |(n, _)| n)
        };
        match method {
            Clip::MinMax => end(last),
            Clip::Percentile(share) => {
                #[allow(clippy::cast_precision_loss)] // Far fewer than 2^52.
                let wanted = self.total() as f64 * share;
                let mut sum = 0.0;
                #[allow(clippy::cast_precision_loss)]
                let n = self.counts.iter().position(|&count| {
                    sum += count as f64;
                    sum >= wanted
                });
                end(n.map_or(last, |n| n + 1))
            }
            Clip::Entropy => end(least(&|n| self.divergence(n, levels))),
            Clip::Mse => end(least(&|n| self.square_error(n, levels))),
        }
    }

    /// Mean square error, in bins, if magnitudes of up to `n` bins are rounded to `levels` steps and the others cut off.
    #[allow(clippy::cast_precision_loss)] // Few bins; far fewer than 2^52 numbers.
    fn square_error(&self, n: usize, levels: usize) -> f64 {
        let step = n as f64 / levels as f64;
        let rounding = step * step / 12.0;
        let error = |(i, &count): (usize, &u64)| {
            let over = i as f64 + 0.5 - n as f64;
            count as f64 * if over > 0.0 { over * over } else { rounding }
        };
        self.counts.iter().enumerate().map(error).sum()
    }

    /// Divergence of the distribution from the one that `levels` levels up to bin `n` can tell apart.
    #[allow(clippy::cast_precision_loss)] // Far fewer than 2^52 numbers.
    fn divergence(&self, n: usize, levels: usize) -> f64 {
        let mut kept: Vec<f64> = self.counts[..n].iter().map(|&count| count as f64).collect();
        let Some(last) = kept.last_mut() else { return 0.0 };
        *last += self.counts[n..].iter().sum::<u64>() as f64;
        let total: f64 = kept.iter().sum();
        let mut divergence = 0.0;
        for level in 0..levels.min(n) {
            let (from, to) = (level * n / levels.min(n), (level + 1) * n / levels.min(n));
            // Of the level only the sum is known: it is spread over the bins that were not empty.
            let counts = &self.counts[from..to];
            let filled = counts.iter().filter(|&&count| count > 0).count().max(1) as f64;
            let each = counts.iter().sum::<u64>() as f64 / filled;
            for &p in kept[from..to].iter().filter(|&&p| p > 0.0) {
                divergence += p / total * (p / each.max(1e-9)).ln();
            }
        }
        divergence
    }
}

/// The bin of a magnitude in widths.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Not negative; saturates.
fn bin(widths: f32) -> usize {
    (widths as usize).min(BINS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_numbers_widen_the_bins_and_lose_none() {
        let mut histogram = Histogram::default();
        histogram.add(&[0.0; 10]);
        histogram.add(&[0.5, -1.0, 0.25]);
        histogram.add(&[100.0]);
        assert_eq!(histogram.total(), 14);
        assert!(histogram.greatest() >= 100.0 && histogram.greatest() < 200.0, "{}", histogram.greatest());
        let mut other = Histogram::default();
        other.add(&[1000.0; 3]);
        histogram.merge(&other);
        assert_eq!(histogram.total(), 17);
        assert!(histogram.greatest() >= 1000.0);
    }

    #[test]
    fn clips_cut_off_a_lone_outlier_and_min_max_does_not() {
        let mut histogram = Histogram::default();
        let numbers: Vec<f32> = (0..10_000_u16).map(|i| f32::from(i % 100) / 100.0).collect();
        histogram.add(&numbers);
        histogram.add(&[50.0]);
        assert!(histogram.clip(Clip::MinMax, 127) >= 50.0);
        for method in [Clip::Percentile(0.999), Clip::Entropy] {
            let clip = histogram.clip(method, 127);
            assert!((0.9..10.0).contains(&clip), "{method:?}: {clip}");
        }
        let clip = histogram.clip(Clip::Mse, 127);
        assert!((0.9..50.0).contains(&clip), "{clip}");
    }
}
