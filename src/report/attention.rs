//! Where video tokens look at the text: softmax of queries times keys, of the heads of a block.

use ndarray::ArrayD;
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

/// Most video tokens whose attention is computed; of more, some evenly apart.
const MOST: usize = 768;

/// What the tokens of a transformer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Heads of attention.
    pub heads: usize,
    /// Tokens of the text, those that fill it up among them.
    pub text: usize,
    /// Tokens of the text that are shown.
    pub shown: usize,
    /// Patches of the video: frames, rows and columns.
    pub patches: [usize; 3],
}

/// The attention of one block: for each text token, how much each patch of the video looks at it.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionMap {
    /// Which block.
    pub block: usize,
    /// Frames, rows and columns of the maps, which may be fewer than the patches.
    pub size: [usize; 3],
    /// The mean over all heads: a map for each text token.
    pub mean: Vec<Vec<f32>>,
    /// The head whose maps differ most from place to place.
    pub sharpest: usize,
    /// Its maps.
    pub head: Vec<Vec<f32>>,
}

impl AttentionMap {
    /// Of the last sample's queries and keys, `[batch, tokens, width]`; none where they are not of this grid.
    #[must_use]
    pub fn new(block: usize, queries: &ArrayD<f32>, keys: &ArrayD<f32>, grid: Grid) -> Option<Self> {
        let Grid { heads, text, shown, patches } = grid;
        let (&[batch, asking, width], &[_, tokens, _]) = (queries.shape(), keys.shape()) else { return None };
        let video: usize = patches.iter().product();
        // The last block asks for the video alone.
        let skipped = asking.checked_sub(video)?;
        if tokens != text + video || heads == 0 || width % heads != 0 || batch == 0 || shown > text {
            return None;
        }
        let (queries, keys) = (queries.as_standard_layout(), keys.as_standard_layout());
        let queries = &queries.as_slice()?[((batch - 1) * asking + skipped) * width..];
        let keys = &keys.as_slice()?[(batch - 1) * tokens * width..];
        let fits = |by: &usize| patches[0] * patches[1].div_ceil(*by) * patches[2].div_ceil(*by) <= MOST;
        let by = (1..=patches[1].max(patches[2]).max(1)).find(fits).unwrap_or(patches[1].max(patches[2]).max(1));
        let size = [patches[0], patches[1].div_ceil(by), patches[2].div_ceil(by)];
        let mut places = vec![];
        for frame in 0..patches[0] {
            for row in (0..patches[1]).step_by(by) {
                places
                    .extend((0..patches[2]).step_by(by).map(|column| (frame * patches[1] + row) * patches[2] + column));
            }
        }
        let head_width = width / heads;
        let maps: Vec<Vec<Vec<f32>>> = (0..heads)
            .into_par_iter()
            .map(|head| {
                let part = |x: &[f32], token: usize| -> Vec<f32> {
                    let start = token * width + head * head_width;
                    x[start..start + head_width].to_vec()
                };
                let keys: Vec<_> = (0..tokens).map(|token| part(keys, token)).collect();
                let mut maps = vec![Vec::with_capacity(places.len()); shown];
                for &place in &places {
                    let weights = softmax(&part(queries, place), &keys);
                    maps.iter_mut().zip(&weights).for_each(|(map, weight)| map.push(*weight));
                }
                maps
            })
            .collect();
        let mean = (0..shown).map(|token| mean_of(&maps, token)).collect();
        let spread = |maps: &Vec<Vec<f32>>| maps.iter().map(|map| variation(map)).sum::<f32>();
        let sharpest = (0..heads).max_by(|&a, &b| spread(&maps[a]).total_cmp(&spread(&maps[b])))?;
        Some(Self { block, size, mean, sharpest, head: maps.into_iter().nth(sharpest)? })
    }
}

/// How much a query looks at each key; `1 / sqrt(width)` scales the scores, as in CogVideoX.
#[allow(clippy::cast_precision_loss)] // Head widths are small.
fn softmax(query: &[f32], keys: &[Vec<f32>]) -> Vec<f32> {
    let scale = 1.0 / (query.len() as f32).sqrt();
    let mut scores: Vec<f32> =
        keys.iter().map(|key| scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f32>()).collect();
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in &mut scores {
        *score = (*score - most).exp();
    }
    let sum: f32 = scores.iter().sum();
    scores.into_iter().map(|score| score / sum).collect()
}

#[allow(clippy::cast_precision_loss)] // Few heads.
fn mean_of(maps: &[Vec<Vec<f32>>], token: usize) -> Vec<f32> {
    let count = maps[0][token].len();
    (0..count).map(|place| maps.iter().map(|head| head[token][place]).sum::<f32>() / maps.len() as f32).collect()
}

/// Standard deviation.
#[allow(clippy::cast_precision_loss)] // Few places.
fn variation(map: &[f32]) -> f32 {
    let n = map.len().max(1) as f32;
    let mean = map.iter().sum::<f32>() / n;
    (map.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt()
}

#[cfg(test)]
mod tests {
    use ndarray::IxDyn;

    use super::*;

    #[test]
    fn a_patch_that_asks_for_a_word_looks_at_it() {
        // Two heads of two; three words of which two are shown; two patches.
        let grid = Grid { heads: 2, text: 3, shown: 2, patches: [1, 1, 2] };
        let far = 30.0;
        let keys = [
            // First head, second head.
            [far, 0.0, 0.0, 0.0],
            [0.0, far, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0],
        ];
        let queries = [[0.0; 4], [0.0; 4], [0.0; 4], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]];
        let array = |rows: &[[f32; 4]]| {
            ArrayD::from_shape_vec(IxDyn(&[1, rows.len(), 4]), rows.concat()).expect("as many numbers")
        };
        let map = AttentionMap::new(7, &array(&queries), &array(&keys), grid).expect("of the grid");
        assert_eq!((map.block, map.size, map.sharpest), (7, [1, 1, 2], 0));
        // All of the first head, a fifth of the second.
        let near = |a: f32, b: f32| (a - b).abs() < 1e-3;
        assert!(near(map.head[0][0], 1.0) && near(map.head[0][1], 0.0) && near(map.head[1][1], 1.0), "{map:?}");
        assert!(near(map.mean[0][0], 0.6) && near(map.mean[0][1], 0.1), "{map:?}");
        // The last block's queries are those of the video alone.
        let last = AttentionMap::new(7, &array(&queries[3..]), &array(&keys), grid);
        assert_eq!(last, Some(map));
        assert_eq!(AttentionMap::new(7, &array(&queries), &array(&keys[1..]), grid), None);
    }
}
