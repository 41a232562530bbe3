# What people type; `just` lists it.

_default:
    @just --list

# Everything that must hold before a change lands
check:
    scripts/check

# A video from the shapes model
demo:
    cargo run -- run examples/shapes-model --prompt "a red circle moving left" --steps 25 --guidance 3 --output red-circle.mp4

# Regenerate fixtures and goldens; needs the Python packages named in the scripts
fixtures:
    python tests/fixtures/make.py
    python tests/fixtures/goldens.py
    python tests/fixtures/scores.py
    python tests/fixtures/sampling.py
    python tests/fixtures/tokenizer.py

# Colour, direction and shape scores of 24 videos of the shapes model; needs numpy
scores folder="target/scores":
    cargo build --release
    python scripts/scores.py --cogvx target/release/cogvx --out {{folder}}

# Time and memory of exporting a checkpoint of 2B's size, against cp; takes 27 GB of disk
bench-export folder="target/bench":
    cargo build --release
    scripts/bench-export {{folder}}

# Fuzz what reads untrusted bytes, ten minutes or a million inputs each; needs a nightly compiler and `cargo install cargo-fuzz`
fuzz target="safetensors config spiece onnx manifest table state":
    for t in {{target}}; do mkdir -p fuzz/target/corpus/$t && (cd fuzz && cargo +nightly fuzz run -s none $t target/corpus/$t corpus/$t -- -runs=1000000 -max_total_time=600 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1) || exit 1; done

# Time and peak memory of each stage of a run at 2B's size, and of its VAE with and without tiles; takes 15 GB of disk
bench-run folder="target/bench" *options:
    cargo build --release
    scripts/bench-run {{folder}} {{options}}

# On an NVIDIA GPU beside diffusers: parity, forwards, decoding, whole runs; takes 16 GB of disk. `--dry-run` tries it without
bench-gpu folder="target/bench-gpu" *options:
    cargo build --release
    scripts/bench-gpu {{folder}} {{options}}

# What the sampling loop takes beside the engine, a step: at most a millisecond with a small model
bench-loop *options:
    cargo run --release -- bench examples/shapes-model --steps 50 --repeat 10 {{options}}

# T5's layer, the VAE's decoder and the transformer in float beside PyTorch and ONNX Runtime; takes 7 GB of disk
bench-cpu folder="target/bench-cpu" *options:
    cargo build --release
    scripts/bench-cpu {{folder}} {{options}}

# One forward in each quantization scheme beside its peers, or with `--convert` what quantizing takes; takes 8 GB of disk
bench-quantize folder="target/bench-quantize" *options:
    cargo build --release
    scripts/bench-quantize {{folder}} {{options}}
