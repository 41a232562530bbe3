//! Where each video token lies in time and space: tables computed for each size, never baked into a graph.

mod rotary;
mod sincos;

pub use rotary::{RotaryGrid, rotary_3d};
pub use sincos::sincos_3d;

/// Most values in one table: 8 GiB of `float32`.
const MAX_VALUES: usize = 1 << 31;

/// Why a position table could not be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PositionsError {
    /// Sine and cosine of three axes do not divide the width.
    #[error("position width: expected a multiple of 16, found {0}")]
    Width(usize),
    /// A scale is not a positive number.
    #[error("`{name}`: expected a positive number, found {found}")]
    Scale {
        /// Key in the transformer's `config.json`.
        name: &'static str,
        /// The value.
        found: f64,
    },
    /// The table would not fit into memory.
    #[error("position table: expected at most {MAX_VALUES} values, found {grid:?} tokens of width {width}")]
    Size {
        /// Frames, height and width of the grid.
        grid: [usize; 3],
        /// Width of a row.
        width: usize,
    },
    /// CogVideoX 1.5 has no positions beyond its sample size.
    #[error("expected a video of at most {most:?} rows and columns of patches, found {found:?}")]
    Beyond {
        /// Rows and columns of the sample size.
        most: [usize; 2],
        /// Rows and columns asked for.
        found: [usize; 2],
    },
}

/// Values of a table of `grid` tokens, `width` each, if it can be made.
fn table_size(grid: [usize; 3], width: usize) -> Result<usize, PositionsError> {
    let values = grid.iter().try_fold(width, |product, &size| product.checked_mul(size));
    values.filter(|&n| n <= MAX_VALUES).ok_or(PositionsError::Size { grid, width })
}
