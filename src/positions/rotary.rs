//! Rotary positions, turning queries and keys (5B, 1.5).

use super::{PositionsError, table_size};

/// Base of the frequencies.
const THETA: f64 = 10_000.0;

/// How the rows and columns of a video are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryGrid {
    /// Spread over the part of the base grid that the video covers when it is fitted into it (5B).
    Fitted {
        /// Rows and columns of the sample size, in patches.
        base: [usize; 2],
    },
    /// Counted from 0, as far as the base grid goes (1.5).
    Counted {
        /// Rows and columns of the sample size, in patches.
        base: [usize; 2],
    },
}

/// Cosines and sines of a video's rotary positions, each `[frames * height * width, head_dim / 2]`, one angle a pair of
/// neighbours in a head.
///
/// `grid` is `[frames, height, width]` in tokens, after patching. A quarter of the pairs turn with time, three eighths each
/// with rows and columns. `get_3d_rotary_pos_embed` in `diffusers/models/embeddings.py`, as
/// `_prepare_rotary_positional_embeddings` in `diffusers/pipelines/cogvideo/pipeline_cogvideox.py` calls it: positions,
/// frequencies and angles are `float32`.
///
/// # Errors
/// A head width that is not a multiple of 16, a table of more than 2^31 values, or, counted, a grid beyond its base.
pub fn rotary_3d(head_dim: usize, grid: [usize; 3], numbering: RotaryGrid) -> Result<[Vec<f32>; 2], PositionsError> {
    if head_dim == 0 || !head_dim.is_multiple_of(16) {
        return Err(PositionsError::Width(head_dim));
    }
    let values = table_size(grid, head_dim / 2)?;
    let [frames, height, width] = grid;
    let (rows, columns) = match numbering {
        RotaryGrid::Fitted { base } => {
            let [rows, columns] = fit([height, width], base);
            (spread(rows, height), spread(columns, width))
        }
        RotaryGrid::Counted { base } if height > base[0] || width > base[1] => {
            return Err(PositionsError::Beyond { most: base, found: [height, width] });
        }
        RotaryGrid::Counted { .. } => (count(height), count(width)),
    };
    let times = angles(&count(frames), head_dim / 4);
    let (rows, columns) = (angles(&rows, head_dim / 8 * 3), angles(&columns, head_dim / 8 * 3));
    let mut tables = [Vec::with_capacity(values), Vec::with_capacity(values)];
    for time in &times {
        for row in &rows {
            for column in &columns {
                for &angle in time.iter().chain(row).chain(column) {
                    tables[0].push(angle.cos());
                    tables[1].push(angle.sin());
                }
            }
        }
    }
    Ok(tables)
}

/// `0, 1, ..., n - 1`.
#[expect(clippy::cast_precision_loss, reason = "grids are far below 2^24")]
fn count(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

/// For each position, its angle at each frequency of `dim / 2`.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "float32, as torch rounds")]
fn angles(positions: &[f32], dim: usize) -> Vec<Vec<f32>> {
    let frequency = |i: usize| 1.0 / THETA.powf(f64::from(2.0 * i as f32 / dim as f32)) as f32;
    positions.iter().map(|p| (0..dim / 2).map(|i| p * frequency(i)).collect()).collect()
}

/// First and last row, and first and last column, of a video fitted into the middle of the base grid
/// (`get_resize_crop_region_for_grid`).
#[expect(clippy::cast_precision_loss, reason = "grids are far below 2^52")]
fn fit([height, width]: [usize; 2], [base_height, base_width]: [usize; 2]) -> [[f64; 2]; 2] {
    let (h, w, bh, bw) = (height as f64, width as f64, base_height as f64, base_width as f64);
    let (fitted_height, fitted_width) =
        if h / w > bh / bw { (bh, (bh / h * w).round_ties_even()) } else { ((bw / w * h).round_ties_even(), bw) };
    let top = ((bh - fitted_height) / 2.0).round_ties_even();
    let left = ((bw - fitted_width) / 2.0).round_ties_even();
    [[top, top + fitted_height], [left, left + fitted_width]]
}

/// `n` positions from the first of a range, the end left out, as `torch.linspace` rounds them.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "float32, as torch rounds")]
fn spread([start, stop]: [f64; 2], n: usize) -> Vec<f32> {
    let (first, last) = (start as f32, (stop * (n as f64 - 1.0) / n as f64) as f32);
    if n == 1 {
        return vec![first];
    }
    let step = (last - first) / (n - 1) as f32;
    let value = |i: usize| if i < n / 2 { first + step * i as f32 } else { last - step * (n - 1 - i) as f32 };
    (0..n).map(value).collect()
}
