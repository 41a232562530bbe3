//! `cogvx cache`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args as ClapArgs, Subcommand};
use indicatif::{HumanBytes, HumanDuration};
use serde_json::json;

use super::{Answer, memory};
use crate::engines::{EnginesError, Key, Listed, Store};
use crate::runtime;

/// Look after the engines that were built for GPUs
///
/// Each has a folder named after all it depends on: graph, weights, sizes, libraries, GPU and driver. What does not fit any more is
/// never used, but stays until `gc` takes it.
#[derive(ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
    /// Where the engines are [default: engines in cogvx's folder of the user's cache]
    #[arg(long = "cache", value_name = "DIR", global = true)]
    folder: Option<PathBuf>,
    /// Report as JSON on standard output
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// List them, with what they are for and when they were last used
    Ls,
    /// Remove what is damaged and what killed builds left, and by choice what is old or too much
    Gc {
        /// Keep at most so much, such as 20GB; what was used longest ago goes first
        #[arg(long, value_parser = memory::parse)]
        max_size: Option<u64>,
        /// Remove what was not used for so long, such as 30d or 12h
        #[arg(long, value_name = "TIME", value_parser = duration)]
        unused_for: Option<Duration>,
        /// Only tell what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Read all of their files and compare them with their hashes; exit code 1 if any is damaged
    Verify,
}

/// The engines of this user, or those in `folder`.
pub(super) fn store(folder: Option<&Path>) -> Result<Store, EnginesError> {
    let own = || runtime::cache().map(|cache| cache.join("engines")).map_err(|_| EnginesError::NoFolder);
    Ok(Store::at(&folder.map_or_else(own, |folder| Ok(folder.into()))?))
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let store = store(args.folder.as_deref())?;
    let mut out = std::io::stdout().lock();
    match &args.what {
        What::Gc { max_size, unused_for, dry_run } => {
            let removed = store.gc(*max_size, *unused_for, *dry_run)?;
            if args.json {
                writeln!(out, "{}", serde_json::to_string_pretty(&removed)?)?;
            } else {
                removed.names.iter().try_for_each(|name| writeln!(out, "{name}"))?;
                let what = if *dry_run { "would be removed" } else { "removed" };
                writeln!(out, "{} {what}: {}", removed.names.len(), HumanBytes(removed.bytes))?;
            }
            Ok(Answer::Done)
        }
        What::Ls | What::Verify => {
            let full = matches!(args.what, What::Verify);
            let listed = store.list(full)?;
            if args.json {
                let all: Vec<_> = listed.iter().map(as_json).collect();
                writeln!(out, "{}", serde_json::to_string_pretty(&json!({"folder": store.folder(), "engines": all}))?)?;
            } else {
                writeln!(out, "{}", table(&listed, full))?;
                let bytes = listed.iter().filter_map(|l| Some(l.entry.as_ref().ok()?.bytes)).sum();
                writeln!(out, "{} in {}: {}", listed.len(), store.folder().display(), HumanBytes(bytes))?;
            }
            let sound = listed.iter().all(|listed| listed.entry.is_ok());
            Ok(if sound || !full { Answer::Done } else { Answer::No })
        }
    }
}

fn as_json(Listed { name, entry, used }: &Listed) -> serde_json::Value {
    let used = used.and_then(|used| used.duration_since(SystemTime::UNIX_EPOCH).ok()).map(|d| d.as_secs());
    match entry {
        Ok(e) => json!({
            "name": name, "used": used, "bytes": e.bytes, "build_seconds": e.seconds, "files": e.files, "key": e.key,
        }),
        Err(why) => json!({"name": name, "used": used, "damaged": why}),
    }
}

fn table(listed: &[Listed], full: bool) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["engine", "graph", "video", "for", "size", "built in", "used", if full { "files" } else { "" }]);
    for Listed { name, entry, used } in listed {
        let ago = used.and_then(|used| SystemTime::now().duration_since(used).ok());
        let ago = ago.map_or("-".into(), |ago| format!("{} ago", HumanDuration(ago)));
        let name = &name[..12.min(name.len())];
        match entry {
            Ok(entry) => {
                let Key { file, video, .. } = &entry.key;
                table.add_row([
                    name.into(),
                    file.clone(),
                    video.clone(),
                    made_for(&entry.key),
                    HumanBytes(entry.bytes).to_string(),
                    HumanDuration(Duration::from_secs_f64(entry.seconds.clamp(0.0, 1e9))).to_string(),
                    ago,
                    if full { "sound".into() } else { String::new() },
                ]);
            }
            Err(why) => {
                let empty = String::new;
                table.add_row([
                    name.into(),
                    format!("damaged: {why}"),
                    empty(),
                    empty(),
                    empty(),
                    empty(),
                    ago,
                    empty(),
                ]);
            }
        }
    }
    table
}

/// What an engine is for, beside a graph and a size.
fn made_for(key: &Key) -> String {
    let Key { precision, provider, gpu, .. } = key;
    let stripped = if key.is_stripped() { " without weights" } else { "" };
    format!("{precision}, {provider}{stripped}, {gpu}")
}

/// Reads a time such as `30d`, `12h`, `5m` or `90s`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a time such as 30d, 12h, 5m or 90s".to_string();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        'd' => 86_400,
        'h' => 3600,
        'm' => 60,
        's' => 1,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_tells_engines_of_one_gpu_and_of_all_apart_and_those_without_weights() {
        let key = |gpu: serde_json::Value, options: serde_json::Value| {
            let key = json!({
                "file": "transformer/model.onnx", "video": "9x32x48", "graph": "a", "weights": {}, "precision": "fp16",
                "provider": "tensorrt", "libraries": {}, "gpu": gpu, "options": options,
            });
            serde_json::from_value::<Key>(key).expect("a key")
        };
        let own = json!({"name": "H200", "architecture": "9.0", "driver": "580.1"});
        let any = json!({"name": "any", "architecture": "8.0 or newer", "driver": "any"});
        assert_eq!(made_for(&key(own, json!({}))), "fp16, tensorrt, H200 (9.0), driver 580.1");
        let stripped = json!({"trt_weight_stripped_engine_enable": "1"});
        let expected = "fp16, tensorrt without weights, any (8.0 or newer), driver any";
        assert_eq!(made_for(&key(any, stripped)), expected);
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for (text, seconds) in [("30d", 2_592_000), ("12h", 43_200), ("5m", 300), ("90s", 90)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "d", "5", "-1d", "5w", "18446744073709551615d", "5é"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
