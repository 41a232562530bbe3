//! The 3D causal VAE (diffusers `models/autoencoders/autoencoder_kl_cogvideox.py`).
//!
//! diffusers decodes two latent frames at a time and encodes eight frames at a time. Group norms see only these frames and
//! each causal convolution reads the last frames of the call before from a cache, so the calls are part of what the model
//! computes. Each direction becomes two graphs with the same weights: `first` pads the past with its first frame, `next` is
//! fed the caches.

mod decoder;
mod encoder;

pub use decoder::decoder;
pub use encoder::encoder;

use crate::scope::Scope;
use crate::{Dim, Value};

/// Epsilon of the norms that take none from the config: the spatially conditioned ones and the encoder's last.
const NORM_EPSILON: f32 = 1e-6;
/// Frames of the past a causal convolution of kernel 3 reads.
const PAST: usize = 2;

/// Latent frames the decoder takes in every call but the first.
pub const LATENT_CHUNK: usize = 2;
/// Frames of pixels the encoder takes in every call but the first.
pub const FRAME_CHUNK: usize = 8;

/// Frames of the first call, which takes those that are left over (`AutoencoderKLCogVideoX._decode` and `_encode`).
#[must_use]
pub fn first_chunk(frames: usize, chunk: usize) -> usize {
    (chunk + frames % chunk).min(frames)
}

/// Which part of the video a graph is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first frames: of latents three, two or, of a single image, one; of pixels up to fifteen.
    First,
    /// Any two latent frames, or eight frames of pixels, after those.
    Next,
}

/// `CogVideoXCausalConv3d` of kernel 3: sees this frame and the two before it, and leaves its last two for the next call.
fn causal_conv<'g>(s: &Scope<'g>, part: Part, x: Value<'g>, out: usize) -> Value<'g> {
    let (g, path) = (s.graph(), s.path());
    let past = match part {
        Part::First => {
            let first = x.slice(2, 0, 1);
            g.concat(2, &[first, first])
        }
        Part::Next => {
            let mut shape = x.shape();
            shape[2] = Dim::Fixed(PAST);
            g.state(&format!("{path}.past"), shape)
        }
    };
    let x = g.concat(2, &[past, x]);
    g.state_output(&format!("{path}.cache"), x.last(2, PAST));
    conv(&s.at("conv"), x, out, [3; 3])
}

/// A 3D convolution, padded in space and not in time.
fn conv<'g>(s: &Scope<'g>, x: Value<'g>, out: usize, kernel: [usize; 3]) -> Value<'g> {
    let [t, h, w] = kernel;
    let weight = s.weight("weight", &[out, channels(x), t, h, w]);
    x.conv(weight, Some(s.weight("bias", &[out])), [1; 3], [[0; 2], [h / 2; 2], [w / 2; 2]])
}

fn channels(x: Value<'_>) -> usize {
    x.dim(1).fixed().unwrap_or(0)
}
