//! The prompts of commands that run many.

use std::io::Read as _;
use std::path::Path;

use anyhow::{anyhow, bail};

use crate::calibrate::PROMPTS;

/// Largest file of prompts.
const MOST: u64 = 16 << 20;

/// The prompts of the file `given`, or of the first of `folders` that has a `prompts.txt`, or those that come with cogvx.
pub(super) fn read(given: Option<&Path>, folders: &[&Path]) -> anyhow::Result<Vec<String>> {
    let own = folders.iter().map(|folder| folder.join("prompts.txt")).find(|own| own.is_file());
    let file = given.or(own.as_deref());
    let text = file.map_or_else(|| Ok(PROMPTS.to_string()), text)?;
    let prompts: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    let of = || file.map_or("the prompts".to_string(), |file| format!("`{}`", file.display()));
    if prompts.is_empty() {
        bail!("{}: expected a prompt a line, found none", of());
    }
    Ok(prompts)
}

pub(super) fn text(path: &Path) -> anyhow::Result<String> {
    let mut opened = cogvx_graphs::source::open_regular(path)?;
    if opened.bytes > MOST {
        bail!("`{}`: expected at most {MOST} bytes of prompts, found {}", path.display(), opened.bytes);
    }
    let mut text = String::new();
    opened.file.read_to_string(&mut text).map_err(|e| anyhow!("`{}`: {e}", path.display()))?;
    Ok(text)
}
