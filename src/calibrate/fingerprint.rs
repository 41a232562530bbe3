//! What tells one checkpoint's weights from another's.

use std::path::Path;

use cogvx_graphs::Weights;
use cogvx_graphs::source::{SourceError, open_regular};
use cogvx_graphs::weights::WeightsError;

use crate::export::{Component, Lora};

/// Bytes read from the middle of each tensor.
const SAMPLE: u64 = 4096;

/// Why a checkpoint has no fingerprint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum FingerprintError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("`{}`: {source}", path.display())]
    Io { path: std::path::PathBuf, source: std::io::Error },
}

/// The fingerprint of text encoder and transformer with `loras` merged into it: a hash of the names, types and shapes of all
/// tensors and of some bytes of each, so that 13 GB take a moment and other shards do not matter.
///
/// # Errors
/// Weights or LoRAs that cannot be read.
pub fn fingerprint(checkpoint: &Path, loras: &[Lora]) -> Result<String, FingerprintError> {
    let mut hasher = blake3::Hasher::new();
    for component in [Component::TextEncoder, Component::Transformer] {
        add(component, checkpoint, &mut hasher)?;
    }
    for lora in loras {
        let file = open_regular(&lora.file)?.file;
        hasher.update_reader(file).map_err(|source| FingerprintError::Io { path: lora.file.clone(), source })?;
        hasher.update(&lora.scale.to_le_bytes());
    }
    Ok(hex(&hasher))
}

/// The same of the VAE, which most tables have not seen.
///
/// # Errors
/// Weights that cannot be read.
pub fn vae_fingerprint(checkpoint: &Path) -> Result<String, FingerprintError> {
    let mut hasher = blake3::Hasher::new();
    add(Component::VaeDecoder, checkpoint, &mut hasher)?;
    Ok(hex(&hasher))
}

fn hex(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..32].to_string()
}

fn add(component: Component, checkpoint: &Path, hasher: &mut blake3::Hasher) -> Result<(), FingerprintError> {
    let weights = Weights::open(&checkpoint.join(component.checkpoint_folder()), component.stem())?;
    let mut tensors: Vec<_> = weights.iter().collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    for tensor in tensors {
        let text = format!("{}\n{} {} {:?}\n", component.name(), tensor.name, tensor.dtype, tensor.shape);
        hasher.update(text.as_bytes());
        let size = SAMPLE.min(tensor.len);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        weights.read_into(tensor, (tensor.len - size) / 2, &mut bytes)?;
        hasher.update(&bytes);
    }
    Ok(())
}
