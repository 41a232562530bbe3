//! Where the VAE's tiles lie and how they become one picture (diffusers `AutoencoderKLCogVideoX.enable_tiling`,
//! `tiled_decode` and `tiled_encode`).

use std::ops::Range;

use cogvx_graphs::config::VaeConfig;
use ndarray::{ArrayD, ArrayViewD, Axis, Slice, Zip};

use super::PipelineError;

/// Share of a tile's height that overlaps with the next one's.
const OVERLAP_ROWS: f64 = 1.0 / 6.0;
/// Share of a tile's width that overlaps with the next one's.
const OVERLAP_COLUMNS: f64 = 1.0 / 5.0;

/// The tiles of one direction: of latents that are decoded, or of pixels that are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// From top to bottom.
    pub(super) rows: Cuts,
    /// From left to right.
    pub(super) columns: Cuts,
}

/// How one axis is cut: sizes before the VAE in its input's unit, after it in its output's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cuts {
    /// Largest tile, before.
    tile: usize,
    /// From one tile's begin to the next one's, before.
    step: usize,
    /// What a tile is blended over with the one before it, after.
    pub blend: usize,
    /// What is kept of a tile at most, after.
    pub keep: usize,
    /// From before to after: (factor, divisor).
    scale: (usize, usize),
}

impl Tiles {
    /// Of latents to be decoded: half as high and wide as the sample size in `config`.
    #[must_use]
    pub fn decoding(config: &VaeConfig) -> Self {
        let scale = config.spatial_compression_ratio();
        let cuts = |sample: usize, overlap| Cuts::new(sample / 2 / scale, sample / 2, overlap, (scale, 1));
        Self { rows: cuts(config.sample_height, OVERLAP_ROWS), columns: cuts(config.sample_width, OVERLAP_COLUMNS) }
    }

    /// Of pixels to be encoded.
    #[must_use]
    pub fn encoding(config: &VaeConfig) -> Self {
        let scale = config.spatial_compression_ratio();
        let cuts = |sample: usize, overlap| Cuts::new(sample / 2, sample / 2 / scale, overlap, (1, scale));
        Self { rows: cuts(config.sample_height, OVERLAP_ROWS), columns: cuts(config.sample_width, OVERLAP_COLUMNS) }
    }

    /// Whether an input of this size is cut at all.
    #[must_use]
    pub fn cut(&self, height: usize, width: usize) -> bool {
        height > self.rows.tile || width > self.columns.tile
    }

    /// Rows and columns of each tile of an input of this size.
    #[must_use]
    pub fn sizes(&self, height: usize, width: usize) -> Vec<[usize; 2]> {
        let rows = self.rows.of(height).map(|tile| tile.len());
        rows.flat_map(|rows| self.columns.of(width).map(move |tile| [rows, tile.len()])).collect()
    }

    /// That the tiles of an input of this size together are as large as the whole. diffusers leaves that to its users: a sample
    /// size that its overlaps do not divide gives it a video of another size.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check(&self, height: usize, width: usize) -> Result<(), PipelineError> {
        for (field, name, cuts, size) in
            [("sample_height", "rows", self.rows, height), ("sample_width", "columns", self.columns, width)]
        {
            let (whole, kept) = (cuts.after(size), cuts.kept(size));
            if kept != whole {
                let expected =
                    format!("a VAE with a `{field}` whose tiles together have the {whole} {name} of the whole");
                return Err(PipelineError::Request { field: "vae-tiling", expected, found: kept.to_string() });
            }
        }
        Ok(())
    }
}

impl Cuts {
    /// `before` and `after` are the size of a tile.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Python's `int`.
    fn new(before: usize, after: usize, overlap: f64, scale: (usize, usize)) -> Self {
        let step = (before as f64 * (1.0 - overlap)) as usize;
        let blend = (after as f64 * overlap) as usize;
        Self { tile: before, step, blend, keep: after - blend, scale }
    }

    /// Each tile of an axis of `size`.
    pub fn of(self, size: usize) -> impl Iterator<Item = Range<usize>> {
        (0..size).step_by(self.step.max(1)).map(move |start| start..(start + self.tile).min(size))
    }

    /// Size after the VAE of what has `size` before it.
    pub fn after(self, size: usize) -> usize {
        size * self.scale.0 / self.scale.1
    }

    /// Size of all tiles together, after the VAE.
    fn kept(self, size: usize) -> usize {
        if self.step == 0 { 0 } else { self.of(size).map(|tile| self.after(tile.len()).min(self.keep)).sum() }
    }
}

/// Let `tile` begin as `before`, the end of the tile before it along `axis`, goes on.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // torch multiplies by the double, rounded.
pub(super) fn blend(before: &ArrayD<f32>, tile: &mut ArrayD<f32>, axis: Axis) {
    let length = before.len_of(axis);
    let extent = length.min(tile.len_of(axis));
    for i in 0..extent {
        let share = i as f64 / extent as f64;
        let (old, new) = ((1.0 - share) as f32, share as f32);
        let from = before.index_axis(axis, length - extent + i);
        Zip::from(tile.index_axis_mut(axis, i)).and(from).for_each(|x, &a| *x = a * old + *x * new);
    }
}

/// The last `n` of an axis, or all of it.
pub(super) fn end(x: &ArrayD<f32>, axis: Axis, n: usize) -> ArrayD<f32> {
    let length = x.len_of(axis);
    x.slice_axis(axis, Slice::from(length - n.min(length)..)).to_owned()
}

/// The first `n` of rows and columns, or all of them.
pub(super) fn crop(x: &ArrayD<f32>, [rows, columns]: [usize; 2]) -> ArrayViewD<'_, f32> {
    let mut view = x.view();
    for (axis, n) in [(Axis(3), rows), (Axis(4), columns)] {
        let length = view.len_of(axis);
        view.slice_axis_inplace(axis, Slice::from(..n.min(length)));
    }
    view
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ndarray::IxDyn;
    use serde_json::json;

    use super::*;

    fn config(height: usize, width: usize) -> VaeConfig {
        let value = json!({"_class_name": "AutoencoderKLCogVideoX", "sample_height": height, "sample_width": width});
        VaeConfig::from_value(Path::new("config.json"), value).expect("a correct configuration")
    }

    #[test]
    fn the_published_vae_has_tiles_of_half_its_size() {
        let tiles = Tiles::decoding(&config(480, 720));
        let [rows, columns] = [tiles.rows.of(60), tiles.columns.of(90)].map(Iterator::collect::<Vec<_>>);
        assert_eq!(rows, [0..30, 25..55, 50..60]);
        assert_eq!(columns, [0..45, 36..81, 72..90]);
        let after = [tiles.rows, tiles.columns].map(|cuts| (cuts.blend, cuts.keep));
        assert_eq!(after, [(40, 200), (72, 288)]);
        assert!(tiles.check(60, 90).is_ok() && tiles.check(96, 170).is_ok());
        assert_eq!([tiles.cut(30, 45), tiles.cut(31, 45), tiles.cut(30, 46)], [false, true, true]);

        let tiles = Tiles::encoding(&config(480, 720));
        assert_eq!(tiles.rows.of(480).collect::<Vec<_>>(), [0..240, 200..440, 400..480]);
        assert_eq!([tiles.rows, tiles.columns].map(|cuts| (cuts.blend, cuts.keep)), [(5, 25), (9, 36)]);
        assert!(tiles.check(480, 720).is_ok());
    }

    #[test]
    fn tiles_that_do_not_add_up_are_refused() {
        // Tiles of 2 latent rows begin at every row, but of their 16 rows of pixels 14 are kept.
        let error = Tiles::decoding(&config(32, 720)).check(4, 90).expect_err("14 + 14 + 14 + 8").to_string();
        assert_eq!(
            error,
            "`--vae-tiling`: expected a VAE with a `sample_height` whose tiles together have the 32 rows of the whole, found 50"
        );
        // Of one latent row, five sixths are none.
        assert!(Tiles::decoding(&config(16, 720)).check(4, 90).is_err());
    }

    #[test]
    fn a_tile_begins_as_the_one_before_goes_on() {
        let before = ArrayD::from_shape_vec(IxDyn(&[1, 4]), vec![9.0, 9.0, 2.0, 4.0]).expect("four");
        let mut tile = ArrayD::from_shape_vec(IxDyn(&[1, 2]), vec![0.0, 8.0]).expect("two");
        blend(&before, &mut tile, Axis(1));
        assert_eq!(tile.as_slice(), Some(&[2.0, 6.0][..]));
        assert_eq!(end(&before, Axis(1), 3).as_slice(), Some(&[9.0, 2.0, 4.0][..]));
        assert_eq!(end(&before, Axis(1), 9).len(), 4);
    }
}
