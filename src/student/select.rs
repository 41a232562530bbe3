//! Which heads and channels of the teacher a student keeps.

use super::StudentError;
use super::shape::Shape;
use super::teacher::Teacher;

/// Mean squares of what the teacher's layers read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Energies {
    /// Of each block.
    pub blocks: Vec<BlockEnergies>,
    /// What `proj_out` reads.
    pub head: Vec<f64>,
}

/// Those of a block.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BlockEnergies {
    /// What `to_q`, `to_k` and `to_v` read.
    pub attention: Vec<f64>,
    /// What `to_out.0` reads.
    pub heads: Vec<f64>,
    /// What `ff.net.0.proj` reads.
    pub feed_forward: Vec<f64>,
    /// What `ff.net.2` reads.
    pub inner: Vec<f64>,
}

/// What a student keeps; all ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// Blocks of the teacher.
    pub layers: Vec<usize>,
    /// Channels of the teacher's width.
    pub hidden: Vec<usize>,
    /// For each block kept, the channels of its heads.
    pub heads: Vec<Vec<usize>>,
    /// For each block kept, the channels of its feed-forward.
    pub ffn: Vec<Vec<usize>>,
}

impl Selection {
    /// The heads and channels that matter most in `layers` of the teacher.
    ///
    /// A channel matters by the mean square of what is read from it times that of the weights that read it: by how much the
    /// outputs change without it, if channels are independent. Without `energies` all channels are taken to be alike.
    pub fn new(
        teacher: &Teacher,
        shape: Shape,
        layers: Vec<usize>,
        energies: Option<&Energies>,
    ) -> Result<Self, StudentError> {
        let (width, head) = (teacher.config.width(), teacher.config.attention_head_dim);
        let kept_width = shape.heads * head;
        let mut hidden = vec![0.0; width];
        let (mut heads, mut ffn) = (vec![], vec![]);
        for &layer in &layers {
            let energies = energies.map(|energies| &energies.blocks[layer]);
            let path = |name: &str| format!("transformer_blocks.{layer}.{name}.weight");
            let worth = |name: &str, energy: Option<&Vec<f64>>| teacher.column_worth(&path(name), energy);
            if kept_width < width {
                for name in ["attn1.to_q", "attn1.to_k", "attn1.to_v"] {
                    add_share(&mut hidden, &worth(name, energies.map(|e| &e.attention))?);
                }
                add_share(&mut hidden, &worth("ff.net.0.proj", energies.map(|e| &e.feed_forward))?);
            }
            heads.push(if shape.heads < teacher.shape.heads {
                let worth = worth("attn1.to_out.0", energies.map(|e| &e.heads))?;
                let worth: Vec<_> = worth.chunks(head).map(|head| head.iter().sum()).collect();
                let best = best(&worth, shape.heads);
                best.into_iter().flat_map(|i| i * head..(i + 1) * head).collect()
            } else {
                (0..width).collect()
            });
            let own = teacher.ffn(layer);
            ffn.push(if shape.ffn < own {
                best(&worth("ff.net.2", energies.map(|e| &e.inner))?, shape.ffn)
            } else {
                (0..own).collect()
            });
        }
        if kept_width < width {
            add_share(&mut hidden, &teacher.column_worth("proj_out.weight", energies.map(|e| &e.head))?);
        }
        let hidden = match (kept_width < width, teacher.config.use_rotary_positional_embeddings) {
            (false, _) => (0..width).collect(),
            (true, true) => best(&hidden, kept_width),
            (true, false) => in_place(&hidden, kept_width),
        };
        Ok(Self { layers, hidden, heads, ffn })
    }
}

/// Add what each channel is of the whole, so that all layers count alike.
fn add_share(sum: &mut [f64], worth: &[f64]) {
    let whole = worth.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    sum.iter_mut().zip(worth).for_each(|(sum, x)| *sum += x / whole);
}

/// The `count` greatest, ascending by place; of equals the first.
fn best(worth: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..worth.len()).collect();
    order.sort_by(|&a, &b| worth[b].total_cmp(&worth[a]));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// One channel for each of `count`, where sine positions are added to the channels: the student's are those of its own width, so
/// each channel of it comes from the teacher's whose positions are of the same axis, sine or cosine, and nearly the frequency, the
/// best of each run of these.
fn in_place(worth: &[f64], count: usize) -> Vec<usize> {
    let mut chosen = vec![];
    let mut start = 0;
    // In sixteenths: sines and cosines of time, across and down.
    for part in [2, 2, 3, 3, 3, 3] {
        let (from, to) = (worth.len() / 16 * part, count / 16 * part);
        for i in 0..to {
            let run = start + i * from / to..start + (i + 1) * from / to;
            // The first of equals.
            chosen.extend(run.rev().max_by(|&a, &b| worth[a].total_cmp(&worth[b])));
        }
        start += from;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_are_kept_in_order() {
        assert_eq!(best(&[1.0, 5.0, 5.0, 0.0, 7.0], 3), [1, 2, 4]);
        assert_eq!(best(&[1.0; 4], 2), [0, 1]);
    }

    #[test]
    fn channels_keep_the_axis_of_their_positions() {
        let kept = in_place(&[1.0; 64], 32);
        // Every second one, of all parts.
        assert_eq!(kept, (0..32).map(|i| 2 * i).collect::<Vec<_>>());
        let mut worth = [1.0; 64];
        worth[5] = 2.0;
        assert_eq!(in_place(&worth, 32)[..4], [0, 2, 5, 6]);
        let three_quarters = in_place(&[1.0; 256], 192);
        assert_eq!(three_quarters.len(), 192);
        assert!(three_quarters.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(three_quarters.iter().filter(|&&c| c < 32).count(), 24);
    }
}
