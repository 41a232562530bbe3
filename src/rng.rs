//! Random numbers equal to torch's CPU generator, so that a seed gives the noise that diffusers would draw.

use std::f32::consts::PI;

/// Words of state of the Mersenne Twister.
const STATE: usize = 624;
/// Distance between the two words that a new word mixes with the one it replaces.
const SHIFT: usize = 397;
/// Values that torch's vector path transforms together; shorter requests take the scalar path.
const BLOCK: usize = 16;

/// torch's CPU generator (`torch.Generator().manual_seed(seed)`) for standard normal `float32` values.
///
/// Successive calls continue one stream, as successive `torch.randn(..., generator=g)` calls do.
///
/// ```
/// use cogvx::rng::TorchGenerator;
/// let noise = TorchGenerator::new(42).randn(3);
/// assert!((noise[0] - 0.336_690).abs() < 1e-6);
/// ```
#[derive(Clone, Debug)]
pub struct TorchGenerator {
    twister: MersenneTwister,
    /// Second value of the last scalar pair. Only short requests read or write it; it outlives the call.
    spare: Option<f64>,
}

/// What [`TorchGenerator::state`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratorState {
    /// The Mersenne Twister's 624 words.
    pub words: Vec<u32>,
    /// The word that comes next, 0 to 624.
    pub next: usize,
    /// Bits of the second value of a pair, if it waits.
    pub spare: Option<u64>,
}

impl TorchGenerator {
    /// A generator in the state that `manual_seed(seed)` gives; torch uses the low 32 bits of the seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { twister: MersenneTwister::new(low_word(seed)), spare: None }
    }

    /// The next `n` standard normal values, as `torch.randn(n, generator=g)` draws them.
    ///
    /// torch draws tensors of 16 values or more in `float32` blocks and shorter ones one by one in `float64`, so
    /// `randn(8)` twice is not `randn(16)` once. Values of the block path agree with torch's within 5e-7 (its vector
    /// logarithm and sine differ from the platform's in the last bits); those of the scalar path are bit-equal.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        let mut values = vec![0.0; n];
        self.fill(&mut values);
        values
    }

    /// The same into `values`: as many as it holds.
    pub fn fill(&mut self, values: &mut [f32]) {
        if values.len() < BLOCK {
            values.fill_with(|| narrow(self.normal()));
            return;
        }
        // Block by block; a ragged end is covered by redrawing the last whole block.
        values.fill_with(|| self.uniform_single());
        values.chunks_exact_mut(BLOCK).for_each(box_muller);
        if !values.len().is_multiple_of(BLOCK) {
            let start = values.len() - BLOCK;
            let last = &mut values[start..];
            last.fill_with(|| self.uniform_single());
            box_muller(last);
        }
    }

    /// Draws `n` values that nobody wants, which is the same for the stream as [`TorchGenerator::randn`] and takes less time.
    pub fn skip(&mut self, n: usize) {
        if n < BLOCK {
            self.randn(n);
            return;
        }
        let redrawn = if n.is_multiple_of(BLOCK) { 0 } else { BLOCK };
        for _ in 0..n + redrawn {
            self.twister.next();
        }
    }

    /// All that the next values depend on.
    #[must_use]
    pub fn state(&self) -> GeneratorState {
        let MersenneTwister { state, next } = &self.twister;
        GeneratorState { words: state.clone(), next: *next, spare: self.spare.map(f64::to_bits) }
    }

    /// A generator that goes on from `state`; none if that is no generator's.
    #[must_use]
    pub fn from_state(state: GeneratorState) -> Option<Self> {
        let GeneratorState { words, next, spare } = state;
        let spare = spare.map(f64::from_bits);
        let sound = words.len() == STATE && next <= STATE && spare.is_none_or(f64::is_finite);
        sound.then_some(Self { twister: MersenneTwister { state: words, next }, spare })
    }

    /// One normal value in `float64`; every other call returns the partner of the value before it.
    fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let angle = std::f64::consts::TAU * self.uniform_double();
        let radius = (-2.0 * (-self.uniform_double()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// Uniform in [0, 1) with 24 bits.
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit a float32 exactly")]
    fn uniform_single(&mut self) -> f32 {
        (self.twister.next() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// Uniform in [0, 1) with 53 bits: the low bits of two words, the first one high.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a float64 exactly")]
    fn uniform_double(&mut self) -> f64 {
        let high = u64::from(self.twister.next());
        let low = u64::from(self.twister.next());
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / 9_007_199_254_740_992.0
    }
}

/// Turns 16 uniform values into 16 normal ones: value `j` and value `j + 8` are a pair.
fn box_muller(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let (sin, cos) = (2.0 * PI * *b).sin_cos();
        (*a, *b) = (radius * cos, radius * sin);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "torch seeds with the low 32 bits")]
fn low_word(seed: u64) -> u32 {
    seed as u32
}

#[expect(clippy::cast_possible_truncation, reason = "torch rounds the float64 draw to the tensor's float32")]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// MT19937 (Matsumoto and Nishimura, 1998) with the 2002 initialisation.
#[derive(Clone, Debug)]
struct MersenneTwister {
    state: Vec<u32>,
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = vec![seed; STATE];
        for (index, word) in (1_u32..).zip(1..STATE) {
            let previous = state[word - 1];
            state[word] = (previous ^ (previous >> 30)).wrapping_mul(1_812_433_253).wrapping_add(index);
        }
        Self { state, next: STATE }
    }

    fn next(&mut self) -> u32 {
        if self.next == STATE {
            self.refill();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn refill(&mut self) {
        for i in 0..STATE {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
            let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % STATE] ^ (joined >> 1) ^ twist;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 2.4e-7 * e.abs().max(1.0), "expected {expected:?}, found {found:?}");
        }
    }

    // Expected values: torch 2.11, `torch.randn(n, generator=torch.Generator().manual_seed(seed))`.

    #[test]
    fn short_requests_equal_torch_and_keep_the_second_value_of_a_pair_between_calls() {
        assert_eq!(
            TorchGenerator::new(0).randn(5),
            [1.540_996_1, -0.293_428_9, -2.178_789_4, 0.568_431_26, -1.084_522_4]
        );
        let mut generator = TorchGenerator::new(42);
        assert_eq!(generator.randn(3), [0.336_690_37, 0.128_809_4, 0.234_462_37]);
        assert_eq!(generator.randn(3), [0.230_333_03, -1.122_856_4, -0.186_328_29]);
    }

    #[test]
    fn long_requests_leave_the_kept_value_alone() {
        let mut generator = TorchGenerator::new(7);
        assert_eq!(generator.randn(3), [-0.146_795_1, 0.786_141_3, 0.946_821_63]);
        assert_close(&generator.randn(16)[..4], &[-0.176_437_93, 1.750_172_4, 1.930_017, 0.986_111_8]);
        assert_eq!(generator.randn(2), [-1.114_344, 0.137_324_1]);
    }

    #[test]
    fn a_ragged_end_redraws_the_last_block() {
        let expected = [
            1.926_915_3,
            -0.159_597_47,
            -0.497_397_54,
            0.439_589_26,
            -0.758_131_15,
            1.078_317_6,
            0.800_800_56,
            1.680_620_6,
            0.355_859_9,
            1.296_422_8,
            0.610_466_5,
            1.334_737_8,
            -0.231_624_32,
            0.041_759_49,
            -0.251_575_3,
            0.859_858_5,
            -0.309_726_78,
        ];
        assert_close(&TorchGenerator::new(42).randn(17), &expected);
    }

    #[test]
    fn only_the_low_word_of_a_seed_counts_and_calls_continue_the_stream() {
        let mut generator = TorchGenerator::new((1 << 33) + 5);
        let first = generator.randn(1000);
        assert_eq!(first, TorchGenerator::new(5).randn(1000));
        assert_close(&first[996..], &[-0.257_703_4, 0.279_105_1, -0.119_215_06, 0.108_803_56]);
        assert_close(&generator.randn(20)[..4], &[0.450_362_47, -0.930_129_05, -1.209_363_9, -1.722_883_6]);
    }

    #[test]
    fn what_is_skipped_is_drawn() {
        for n in [0, 3, 15, 16, 17, 640, 1000] {
            let (mut drawn, mut skipped) = (TorchGenerator::new(3), TorchGenerator::new(3));
            drawn.randn(n);
            skipped.skip(n);
            assert_eq!(drawn.state(), skipped.state(), "{n}");
        }
    }

    #[test]
    fn a_generator_goes_on_from_its_state() {
        let mut generator = TorchGenerator::new(7);
        generator.randn(3);
        let state = generator.state();
        assert!(state.spare.is_some(), "{state:?}");
        let mut other = TorchGenerator::from_state(state.clone()).expect("its own state");
        for n in [2, 700, 5] {
            assert_eq!(other.randn(n), generator.randn(n), "{n}");
        }
        for damaged in [
            GeneratorState { words: vec![0; 623], ..state.clone() },
            GeneratorState { next: 625, ..state.clone() },
            GeneratorState { spare: Some(f64::NAN.to_bits()), ..state },
        ] {
            assert!(TorchGenerator::from_state(damaged).is_none());
        }
    }

    #[test]
    fn nothing_asked_draws_nothing() {
        let mut generator = TorchGenerator::new(1);
        assert!(generator.randn(0).is_empty());
        assert_eq!(generator.randn(4), TorchGenerator::new(1).randn(4));
    }
}
