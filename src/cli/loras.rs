//! `--lora`.

use std::path::Path;

use clap::Args;

use crate::export::Lora;

/// LoRAs to merge into the transformer.
#[derive(Args)]
pub(super) struct Loras {
    /// Merge a LoRA of the transformer into its weights, multiplied by SCALE [default: 1]; several add up
    ///
    /// A safetensors file as diffusers writes it. Only the weights it changes are written anew, the others stay linked.
    #[arg(long = "lora", value_name = "FILE[:SCALE]")]
    loras: Vec<String>,
}

impl Loras {
    /// What they name.
    pub fn parse(&self) -> anyhow::Result<Vec<Lora>> {
        self.loras.iter().map(|text| parse(text)).collect()
    }
}

/// `FILE` or `FILE:SCALE`. What follows the last colon may also be part of the file's name.
fn parse(text: &str) -> anyhow::Result<Lora> {
    let whole = Lora { file: text.into(), scale: 1.0 };
    let Some((file, scale)) = text.rsplit_once(':') else { return Ok(whole) };
    match scale.parse() {
        Ok(scale) => Ok(Lora { file: file.into(), scale }),
        Err(_) if whole.file.exists() || !Path::new(file).exists() => Ok(whole),
        Err(_) => anyhow::bail!("`--lora`: expected a number after `{file}:`, found `{scale}`"),
    }
}
