//! The VAE, loaded: a few frames at a time, the convolutions' caches handed from call to call.

use cogvx_graphs::model::vae::{FRAME_CHUNK, LATENT_CHUNK, first_chunk};
use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Slice};

use super::PipelineError;
use super::tiling::{Tiles, blend, crop, end};
use crate::runtime::{Input, Outputs, Session, State};

/// What a call leaves for the next one ends so.
const CACHE: &str = ".cache";
const FRAMES: Axis = Axis(2);
const ROWS: Axis = Axis(3);
const COLUMNS: Axis = Axis(4);

/// One direction of a VAE, loaded: latents to pixels, or pixels to moments of latents.
pub struct Vae {
    first: Session,
    next: Session,
    chunk: usize,
    input: &'static str,
    output: &'static str,
    /// Where inputs are cut in tiles.
    tiles: Option<Tiles>,
}

impl Vae {
    /// From `latents`, already divided by the scaling factor, to `sample`.
    pub(crate) fn decoder([first, next]: [Session; 2]) -> Self {
        Self { first, next, chunk: LATENT_CHUNK, input: "latents", output: "sample", tiles: None }
    }

    /// From `sample`, in -1..1, to `moments`: means, then log variances.
    pub(super) fn encoder([first, next]: [Session; 2]) -> Self {
        Self { first, next, chunk: FRAME_CHUNK, input: "sample", output: "moments", tiles: None }
    }

    /// The graphs.
    pub(crate) fn into_sessions(self) -> [Session; 2] {
        [self.first, self.next]
    }

    /// Inputs larger than a tile are cut, and what comes of the tiles is blended.
    #[must_use]
    pub fn in_tiles(self, tiles: Option<Tiles>) -> Self {
        Self { tiles, ..self }
    }

    /// The same of one that is used again.
    pub fn set_tiles(&mut self, tiles: Option<Tiles>) {
        self.tiles = tiles;
    }

    /// Run all frames of `[batch, channels, frames, height, width]`; `each` gets the results, of the same axes, a few frames at
    /// a time: as they come, or after the last tile.
    ///
    /// # Errors
    /// Nothing to run, tiles that do not add up to the whole, or a failure of the runtime or of `each`.
    pub fn run(
        &mut self,
        x: &ArrayD<f32>,
        each: impl FnMut(ArrayD<f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        self.watched(x, &mut |_| (), each)
    }

    /// The same; `ran` is shown all outputs of each call of a graph.
    pub(super) fn watched(
        &mut self,
        x: &ArrayD<f32>,
        ran: &mut dyn FnMut(&Outputs),
        mut each: impl FnMut(ArrayD<f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let &[(1..), _, (1..), height, width] = x.shape() else {
            let (name, expected) = (self.input.into(), "[batch, channels, frames, height, width]".into());
            return Err(PipelineError::Shape { name, expected, found: x.shape().to_vec() });
        };
        let Some(tiles) = self.tiles.filter(|tiles| tiles.cut(height, width)) else {
            return self.whole(&x.view(), ran, each);
        };
        let y = self.tiled(x, ran, tiles)?;
        y.axis_chunks_iter(FRAMES, FRAME_CHUNK).try_for_each(|frames| each(frames.to_owned()))
    }

    /// Run every tile through all frames, then blend it with its neighbours above and to the left.
    ///
    /// Tile after tile as diffusers does it, not chunk after chunk of all tiles: the caches of the decoder are as large as
    /// 1350 frames of pixels (5.6 GB at 480x720), so there is room for those of one tile only, and the result (4 MB a frame)
    /// waits until the last tile has been decoded. Of a finished tile only its crop and the edges that others blend with stay.
    fn tiled(
        &mut self,
        x: &ArrayD<f32>,
        ran: &mut dyn FnMut(&Outputs),
        tiles: Tiles,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let &[_, _, _, height, width] = x.shape() else { unreachable!("checked by `run`") };
        tiles.check(height, width)?;
        let mut y = ArrayD::zeros(IxDyn(&[0; 5]));
        let (mut above, mut top) = (vec![], 0);
        for rows in tiles.rows.of(height) {
            let (mut below, mut left) = (vec![], 0);
            let (mut before, mut bottom) = (None, top);
            for (j, columns) in tiles.columns.of(width).enumerate() {
                let size = [tiles.rows.after(rows.len()), tiles.columns.after(columns.len())];
                let part = x.slice_axis(ROWS, Slice::from(rows.clone()));
                let mut tile = self.joined(&part.slice_axis(COLUMNS, Slice::from(columns)), ran, size)?;
                if !y.is_empty() && y.shape()[..3] != tile.shape()[..3] {
                    let (name, expected) = (self.output.into(), format!("{:?} as of the first tile", &y.shape()[..3]));
                    return Err(PipelineError::Shape { name, expected, found: tile.shape().to_vec() });
                }
                if let Some(above) = above.get(j) {
                    blend(above, &mut tile, ROWS);
                }
                if let Some(before) = &before {
                    blend(before, &mut tile, COLUMNS);
                }
                let crop = crop(&tile, [tiles.rows.keep, tiles.columns.keep]);
                if y.is_empty() {
                    let size = [tiles.rows.after(height), tiles.columns.after(width)];
                    y = ArrayD::zeros(IxDyn(&[&tile.shape()[..3], &size].concat()));
                }
                let right = left + crop.len_of(COLUMNS);
                bottom = top + crop.len_of(ROWS);
                let mut place = y.slice_axis_mut(ROWS, Slice::from(top..bottom));
                place.slice_axis_mut(COLUMNS, Slice::from(left..right)).assign(&crop);
                left = right;
                below.push(end(&tile, ROWS, tiles.rows.blend));
                before = Some(end(&tile, COLUMNS, tiles.columns.blend));
            }
            (above, top) = (below, bottom);
        }
        Ok(y)
    }

    /// The results of all frames together, each of `size`.
    fn joined(
        &mut self,
        x: &ArrayViewD<'_, f32>,
        ran: &mut dyn FnMut(&Outputs),
        size: [usize; 2],
    ) -> Result<ArrayD<f32>, PipelineError> {
        let mut chunks: Vec<ArrayD<f32>> = vec![];
        let name = self.output;
        self.whole(x, ran, |chunk| {
            let channels = chunks.first().map_or(chunk.len_of(Axis(1)), |first| first.len_of(Axis(1)));
            if chunk.len_of(Axis(1)) != channels || chunk.shape()[3..] != size {
                let expected = format!("[batch, {channels}, frames, {}, {}]", size[0], size[1]);
                return Err(PipelineError::Shape { name: name.into(), expected, found: chunk.shape().to_vec() });
            }
            chunks.push(chunk);
            Ok(())
        })?;
        let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
        Ok(ndarray::concatenate(FRAMES, &views).expect("chunks of one video"))
    }

    /// Run all frames at full height and width.
    fn whole(
        &mut self,
        x: &ArrayViewD<'_, f32>,
        ran: &mut dyn FnMut(&Outputs),
        mut each: impl FnMut(ArrayD<f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let (batch, frames) = (x.len_of(Axis(0)), x.len_of(FRAMES));
        let mut start = 0;
        let mut end = first_chunk(frames, self.chunk);
        let mut caches: Vec<(String, State)> = vec![];
        while start < frames {
            let chunk = x.slice_axis(FRAMES, Slice::from(start..end)).as_standard_layout().into_owned();
            let graph = if start == 0 { &mut self.first } else { &mut self.next };
            let mut inputs = vec![(self.input, Input::Float(chunk.view()))];
            inputs.extend(caches.iter().map(|(name, state)| (name.as_str(), Input::State(state))));
            let outputs = graph.run_keeping(&inputs, CACHE)?;
            ran(&outputs);
            let result = outputs.array(self.output)?;
            if !matches!(result.shape(), &[b, (1..), (1..), (1..), (1..)] if b == batch) {
                let (name, expected) = (self.output.into(), format!("[{batch}, channels, frames, height, width]"));
                return Err(PipelineError::Shape { name, expected, found: result.shape().to_vec() });
            }
            each(result)?;
            // What a call leaves as `<layer>.cache` is the next one's `<layer>.past`.
            caches = outputs.into_states(CACHE).map(|(layer, state)| (format!("{layer}.past"), state)).collect();
            (start, end) = (end, end + self.chunk);
        }
        Ok(())
    }
}

/// How many frames the decoder makes of so many latent frames: an odd count's first frame is one frame, all others
/// `ratio` each.
pub(crate) fn decoded_frames(latents: usize, ratio: usize) -> usize {
    if latents % 2 == 1 { (latents - 1) * ratio + 1 } else { latents * ratio }
}
