//! The numbers in a tensor: a function of seed, name and place alone.

use cogvx_graphs::DType;
use half::{bf16, f16};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSliceMut as _;

use super::needs::Need;

/// Values a tensor can have.
const LEVELS: usize = 1 << 12;
/// Numbers that one 64-bit draw gives.
const PER_DRAW: usize = 4;
/// Draws that a thread makes at a time.
const SPAN: usize = 1 << 14;
/// Standard deviation of biases and learned positions.
const SMALL: f32 = 0.02;

/// The numbers of one tensor.
pub(super) struct Values {
    key: u64,
    levels: Levels,
}

/// The bytes of each value.
enum Levels {
    Two(Vec<[u8; 2]>),
    Four(Vec<[u8; 4]>),
}

impl Values {
    /// For `tensor`, stored as `dtype`, a floating-point type.
    pub fn new(seed: u64, tensor: &Need, dtype: DType) -> Self {
        let hash = blake3::hash(tensor.name.as_bytes());
        let name = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let numbers = numbers(tensor);
        let levels = match dtype {
            DType::F16 => Levels::Two(numbers.map(|x| f16::from_f32(x).to_le_bytes()).collect()),
            DType::BF16 => Levels::Two(numbers.map(|x| bf16::from_f32(x).to_le_bytes()).collect()),
            _ => Levels::Four(numbers.map(f32::to_le_bytes).collect()),
        };
        Self { key: mix(seed) ^ name, levels }
    }

    /// The bytes from element `first` on, a multiple of four.
    pub fn fill(&self, first: u64, out: &mut [u8]) {
        match &self.levels {
            Levels::Two(levels) => self.scatter(levels, first, out.as_chunks_mut().0),
            Levels::Four(levels) => self.scatter(levels, first, out.as_chunks_mut().0),
        }
    }

    fn scatter<const N: usize>(&self, levels: &[[u8; N]], first: u64, out: &mut [[u8; N]]) {
        let first = first / PER_DRAW as u64;
        out.par_chunks_mut(SPAN * PER_DRAW).enumerate().for_each(|(span, out)| {
            let draws = first + (span * SPAN) as u64..;
            for (draw, four) in draws.zip(out.chunks_mut(PER_DRAW)) {
                let bits = mix(self.key.wrapping_add(draw.wrapping_mul(0x9E37_79B9_7F4A_7C15))).to_le_bytes();
                for (value, pair) in four.iter_mut().zip(bits.as_chunks::<2>().0) {
                    *value = levels[usize::from(u16::from_le_bytes(*pair)) % LEVELS];
                }
            }
        });
    }
}

/// The values of `tensor`: ones for norms, else evenly spread about zero; weights keep the variance of what they project.
#[allow(clippy::cast_precision_loss)] // Fine for a scale.
fn numbers(tensor: &Need) -> impl Iterator<Item = f32> {
    let is_weight = tensor.name.ends_with(".weight");
    let is_norm = is_weight && tensor.shape.len() == 1;
    let fan_in = tensor.shape.iter().skip(1).map(|&dim| dim as f32).product::<f32>();
    let deviation = if is_weight { 1.0 / fan_in.sqrt() } else { SMALL };
    // A uniform distribution over [-1, 1] has a variance of one third.
    let (centre, reach) = if is_norm { (1.0, 0.0) } else { (0.0, deviation * 3_f32.sqrt()) };
    (0..LEVELS).map(move |level| centre + reach * ((level as f32 + 0.5) / (LEVELS / 2) as f32 - 1.0))
}

/// The finalizer of `SplitMix64` (Steele, Lea and Flood, 2014).
const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seed: u64, name: &str, shape: &[usize], dtype: DType) -> Vec<u8> {
        let elements = shape.iter().product::<usize>();
        let need = Need { name: name.into(), shape: shape.into(), elements: elements as u64 };
        let mut out = vec![0; elements * dtype.size()];
        Values::new(seed, &need, dtype).fill(0, &mut out);
        out
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    #[test]
    #[allow(clippy::cast_precision_loss)]
    fn weights_have_the_variance_of_their_fan_in() {
        let x = floats(&bytes(1, "a.weight", &[300, 400], DType::F32));
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let variance = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 1e-3, "{mean}");
        assert!((variance * 400.0 - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn norms_are_one_and_biases_small() {
        assert!(floats(&bytes(1, "norm.weight", &[64], DType::F32)).iter().all(|x| x.total_cmp(&1.0).is_eq()));
        let bias = floats(&bytes(1, "norm.bias", &[64], DType::F32));
        assert!(bias.iter().all(|x| x.abs() < 0.04) && bias.iter().any(|x| x.abs() > 0.01), "{bias:?}");
    }

    #[test]
    fn numbers_depend_on_seed_name_and_place_alone() {
        let whole = bytes(1, "a.weight", &[1000, 401], DType::F16);
        assert_ne!(whole, bytes(2, "a.weight", &[1000, 401], DType::F16));
        assert_ne!(whole, bytes(1, "b.weight", &[1000, 401], DType::F16));
        let need = Need { name: "a.weight".into(), shape: vec![1000, 401], elements: 401_000 };
        let mut rest = vec![0; whole.len() - 2 * 123_456];
        Values::new(1, &need, DType::F16).fill(123_456, &mut rest);
        assert!(rest == whole[2 * 123_456..], "a block is the same wherever it begins");
    }
}
