//! Scales of features that are found beforehand.

use cogvx_graphs::pass::Target;
use cogvx_graphs::quantized::LinearForm;

use crate::balance::Balance;
use crate::float8;
use crate::histogram::{Clip, Histogram};
use crate::round::step;
use crate::table::Place;

/// Steps on either side of zero.
const LEVELS: usize = 127;
/// The value that stands for zero where values are symmetric.
const MIDDLE: u8 = 128;

/// `form` with the scale for what was seen at `place`, balanced. Forms without such a scale are returned as they are.
#[must_use]
pub fn settled(form: LinearForm, target: Target, place: &Place, balance: &Balance, method: Clip) -> LinearForm {
    match form {
        LinearForm::PerToken { .. } | LinearForm::Blocks { .. } => form,
        LinearForm::PerTensor { .. } => {
            let (least, greatest, share) = range(place, balance, method);
            if target == Target::TensorRt {
                let scale = step(least.abs().max(greatest) * share, 127.0);
                return LinearForm::PerTensor { scale, zero_point: MIDDLE };
            }
            let scale = step((greatest - least) * share, 255.0);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
            let zero_point = (-least * share / scale).round().clamp(0.0, 255.0) as u8;
            LinearForm::PerTensor { scale, zero_point }
        }
        LinearForm::Float8 { .. } => {
            // Small numbers keep their precision: nothing need be cut off.
            let (least, greatest, _) = range(place, balance, Clip::MinMax);
            LinearForm::Float8 { scale: step(least.abs().max(greatest), float8::MOST) }
        }
    }
}

/// The least and greatest number, zero between them, and the share of them that is to be reached.
fn range(place: &Place, balance: &Balance, method: Clip) -> (f32, f32, f32) {
    let (mut least, mut greatest, mut histogram) = (0.0_f32, 0.0_f32, Histogram::default());
    for row in place.least.iter().chain(&place.greatest) {
        for x in balance.of(row, place.width) {
            (least, greatest) = (least.min(x), greatest.max(x));
        }
    }
    // So that no bin need be widened.
    histogram.add(&[least, greatest]);
    histogram.add(&balance.of(&place.rows, place.width));
    let largest = least.abs().max(greatest);
    let share = if largest > 0.0 { (histogram.clip(method, LEVELS) / largest).clamp(0.0, 1.0) } else { 1.0 };
    (least, greatest, share)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Features from -1 to 3, of which one token has ten times as much.
    fn place() -> Place {
        let mut place = Place { width: 2, ..Place::default() };
        place.see(0, 1, &[-1.0, -10.0], &[30.0, 3.0]);
        let rows: Vec<f32> = (0..4000_u16).map(|i| f32::from(i % 400) / 100.0 - 1.0).collect();
        place.sample(&rows, 2000);
        place
    }

    #[test]
    fn values_reach_from_the_least_to_the_greatest_number() {
        let form = LinearForm::PerTensor { scale: 0.0, zero_point: 0 };
        let LinearForm::PerTensor { scale, zero_point } =
            settled(form, Target::Cpu, &place(), &Balance::default(), Clip::MinMax)
        else {
            panic!("another form")
        };
        assert!((scale - 40.0 / 255.0).abs() < 1e-3 && zero_point == 64, "{scale} {zero_point}");
        // Symmetric for TensorRT.
        let LinearForm::PerTensor { scale, zero_point } =
            settled(form, Target::TensorRt, &place(), &Balance::default(), Clip::MinMax)
        else {
            panic!("another form")
        };
        assert!((scale - 30.0 / 127.0).abs() < 1e-3 && zero_point == 128, "{scale} {zero_point}");
    }

    #[test]
    fn factors_and_clips_narrow_the_range() {
        let form = LinearForm::PerTensor { scale: 0.0, zero_point: 0 };
        let scale = |factors: &[f32], method| {
            let balance = Balance { factors: factors.to_vec(), ..Balance::default() };
            match settled(form, Target::TensorRt, &place(), &balance, method) {
                LinearForm::PerTensor { scale, .. } => scale,
                _ => panic!("another form"),
            }
        };
        assert!((scale(&[10.0, 5.0], Clip::MinMax) - 3.0 / 127.0).abs() < 1e-3);
        for method in [Clip::Percentile(0.999), Clip::Entropy] {
            assert!(scale(&[], method) < 0.8 * scale(&[], Clip::MinMax), "{method:?}");
        }
        // One number cut off to a tenth costs more than what finer steps gain for 4,000.
        assert!(scale(&[], Clip::Mse) <= scale(&[], Clip::MinMax));
    }
}
