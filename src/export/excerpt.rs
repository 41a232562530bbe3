//! A model of the first blocks of one, of any size: layers of a kind are alike in all blocks, so it tells what they take.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use serde_json::Value;

use super::Configs;

impl Configs {
    /// Cut the text encoder and the transformer to their first `blocks`, and take learned positions, which are of one size, away.
    pub(super) fn cut(&mut self, blocks: NonZeroUsize) {
        let blocks = blocks.get();
        self.text.num_layers = self.text.num_layers.min(blocks);
        self.dit.num_layers = self.dit.num_layers.min(blocks);
        self.dit.use_learned_positional_embeddings = false;
    }

    /// Say so in what is written of the configurations, by component.
    pub(super) fn describe_cut(&self, config: &mut BTreeMap<String, Value>) {
        for (component, field, value) in [
            ("text_encoder", "num_layers", Value::from(self.text.num_layers)),
            ("transformer", "num_layers", self.dit.num_layers.into()),
            ("transformer", "use_learned_positional_embeddings", false.into()),
        ] {
            if let Some(config) = config.get_mut(component) {
                config[field] = value;
            }
        }
    }
}

/// Whether a model cut to `blocks` has the tensor `name`.
pub(super) fn has(name: &str, blocks: NonZeroUsize) -> bool {
    let inside = ["transformer_blocks.", "encoder.block."].iter().find_map(|start| name.strip_prefix(start));
    let number = inside.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    name != "patch_embed.pos_embedding" && number.is_none_or(|number| number < blocks.get())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::bench::{Part, Settings, time};
    use crate::bundle::Bundle;
    use crate::export::{ExportOptions, export};
    use crate::pipeline::Pipeline;
    use crate::runtime::{Device, Runtime};

    #[test]
    fn the_first_block_is_a_model_of_any_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/5b-i2v");
        let output = folder.path().join("bundle");
        let options = ExportOptions { first_blocks: NonZeroUsize::new(1), ..ExportOptions::default() };
        export(&checkpoint, &output, &options, |_| {}).expect("a sound checkpoint");
        let runtime = Runtime::start(Device::Cpu, 1).expect("ONNX Runtime starts");
        let pipeline = Pipeline::open(Bundle::open(&output).expect("a bundle"), runtime).expect("a bundle");
        assert_eq!(pipeline.dit.num_layers, 1);
        // The checkpoint's positions are learned for 9 frames of 64x96.
        let settings = Settings { size: [Some(9), Some(32), Some(32)], repeat: 1, profile: true };
        for part in [Part::TextEncoder, Part::Transformer] {
            let nodes = time(&pipeline, part, settings, |_| ()).expect("it runs").nodes;
            let of_block = |block: &str| nodes.iter().any(|node| node.name.contains(block));
            assert!(of_block("block.0.") || of_block("blocks.0."), "{nodes:?}");
            assert!(!of_block("block.1.") && !of_block("blocks.1."), "{nodes:?}");
        }
    }
}
