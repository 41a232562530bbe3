//! Export a checkpoint and list its graphs: `cargo run --example export -- examples/shapes-model target/shapes-bundle`.

use std::path::Path;

use cogvx::export::{ExportOptions, export};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, checkpoint, output] = &arguments[..] else { return Err("usage: export CHECKPOINT OUTPUT".into()) };
    let options = ExportOptions { overwrite: true, ..ExportOptions::default() };
    let report = export(Path::new(checkpoint), Path::new(output), &options, |graph| println!("building {graph}"))?;
    for graph in &report.graphs {
        println!("{}: {} nodes, opset {}", graph.file, graph.nodes, graph.opset);
    }
    println!("{} bytes written, {} linked", report.written, report.linked);
    Ok(())
}
