//! Sine positions, added to the tokens (2B).

use super::{PositionsError, table_size};

/// Sine and cosine positions of a video: `[frames * height * width, embed_dim]`, row-major.
///
/// `grid` is `[frames, height, width]` in tokens, after patching; rows run over width first, then height, then frames.
/// A row is a quarter time, then three eighths each of the horizontal and the vertical position, each part sines then
/// cosines. Positions are divided by their interpolation scale. `get_3d_sincos_pos_embed` in
/// `diffusers/models/embeddings.py`, as `CogVideoXPatchEmbed` calls it: positions are `float32`, angles `float64`.
///
/// # Errors
/// A width that is not a multiple of 16, a scale that is not a positive number, or a table of more than 2^31 values.
pub fn sincos_3d(
    embed_dim: usize,
    grid: [usize; 3],
    spatial_scale: f64,
    temporal_scale: f64,
) -> Result<Vec<f32>, PositionsError> {
    let scales = [("spatial_interpolation_scale", spatial_scale), ("temporal_interpolation_scale", temporal_scale)];
    for (name, found) in scales {
        if !is_positive_single(found) {
            return Err(PositionsError::Scale { name, found });
        }
    }
    if embed_dim == 0 || !embed_dim.is_multiple_of(16) {
        return Err(PositionsError::Width(embed_dim));
    }
    let values = table_size(grid, embed_dim)?;
    if values == 0 {
        return Ok(Vec::new());
    }
    let [frames, height, width] = grid;
    let time = axis(embed_dim / 4, frames, temporal_scale);
    let down = axis(3 * embed_dim / 8, height, spatial_scale);
    let across = axis(3 * embed_dim / 8, width, spatial_scale);
    let mut table = Vec::with_capacity(values);
    for time in &time {
        for down in &down {
            for across in &across {
                table.extend_from_slice(time);
                table.extend_from_slice(across);
                table.extend_from_slice(down);
            }
        }
    }
    Ok(table)
}

/// Whether the value stays a positive number in `float32`, the precision torch divides in.
#[expect(clippy::cast_possible_truncation, reason = "that precision is the question")]
fn is_positive_single(value: f64) -> bool {
    (value as f32).is_finite() && value as f32 > 0.0
}

/// One axis: for each position the sines, then the cosines, of its angles at falling frequencies.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "torch's precisions")]
fn axis(width: usize, count: usize, scale: f64) -> Vec<Vec<f32>> {
    let half = width / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| 1.0 / 10_000_f64.powf(i as f64 / half as f64)).collect();
    let row = |position: usize| {
        let position = f64::from(position as f32 / scale as f32);
        let angles = frequencies.iter().map(|frequency| position * frequency);
        angles.clone().map(f64::sin).chain(angles.map(f64::cos)).map(|value| value as f32).collect()
    };
    (0..count).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_time_then_across_then_down() {
        let table = sincos_3d(16, [2, 2, 3], 1.0, 1.0).expect("valid");
        assert_eq!(table.len(), 2 * 2 * 3 * 16);
        let row = |frame: usize, y: usize, x: usize| &table[((frame * 2 + y) * 3 + x) * 16..][..16];
        assert!((row(1, 0, 0)[0] - 1.0_f32.sin()).abs() < 1e-6);
        assert!((row(0, 0, 2)[4] - 2.0_f32.sin()).abs() < 1e-6);
        assert!((row(0, 1, 0)[10] - 1.0_f32.sin()).abs() < 1e-6);
        assert_eq!(row(0, 0, 0)[2..4], [1.0, 1.0]);
    }

    #[test]
    fn widths_scales_and_sizes_out_of_range_are_refused() {
        for width in [0, 8, 24] {
            assert_eq!(sincos_3d(width, [1, 1, 1], 1.0, 1.0), Err(PositionsError::Width(width)));
        }
        for scale in [0.0, -1.0, 1e-60, f64::NAN, f64::INFINITY] {
            let message = sincos_3d(16, [1, 1, 1], 1.0, scale).expect_err("refused").to_string();
            assert!(message.starts_with("`temporal_interpolation_scale`: expected a positive number"), "{message}");
        }
        for grid in [[usize::MAX, 2, 2], [1 << 20, 1 << 10, 1]] {
            assert_eq!(sincos_3d(16, grid, 1.0, 1.0), Err(PositionsError::Size { grid, width: 16 }));
        }
        assert_eq!(sincos_3d(16, [0, usize::MAX, 1], 1.0, 1.0), Ok(vec![]));
    }
}
