//! `cogvx runtime`.

use std::io::Write;

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::json;

use super::Answer;
use crate::runtime::{Device, Origin, Runtime, VERSION, library};

/// Show ONNX Runtime, and install it if it is absent
///
/// It is taken from where `ORT_DYLIB_PATH` says, from beside cogvx, from cogvx's cache or from an installed Python package;
/// else pip installs its wheel, of a fixed version and checked against known hashes, into the cache. Every other command finds
/// it in the same way.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// What it is to run on
    #[arg(long, default_value = "cpu")]
    device: On,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum On {
    Cpu,
    Cuda,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let device = match args.device {
        On::Cpu => Device::Cpu,
        On::Cuda => Device::Cuda,
    };
    let found = library(device)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let answer = json!({"version": VERSION, "library": found.path, "origin": found.origin});
        writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?;
    } else {
        let origin = match found.origin {
            Origin::Environment => "named by ORT_DYLIB_PATH",
            Origin::Executable => "beside the executable",
            Origin::Cache => "in the cache",
            Origin::Python => "in a Python package",
            Origin::Installed => "installed into the cache",
        };
        writeln!(out, "{} ({origin})", found.path.display())?;
    }
    // That it starts is part of the answer.
    Runtime::start(device, 0)?;
    Ok(Answer::Done)
}
