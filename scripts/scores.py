#!/usr/bin/env python3
"""Make videos of the shapes model with cogvx and score them: colour, direction, shape.

    python scripts/scores.py [--cogvx target/release/cogvx] [--bundle examples/shapes-model] [--reference DIR] --out DIR

Every fifth of the 60 prompts with seeds 0 and 1: 24 videos. `--reference` compares them with another program's, such as
diffusers' through `examples/shapes-model/training/evaluate.py --model ... --every 5 --steps 25 --guidance 3`.
Needs numpy.
"""
import argparse, pathlib, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples/shapes-model/training"))
import evaluate

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--cogvx", default=ROOT / "target/release/cogvx")
ap.add_argument("--bundle", default=ROOT / "examples/shapes-model")
ap.add_argument("--out", required=True, type=pathlib.Path)
ap.add_argument("--reference")
a = ap.parse_args()
a.out.mkdir(parents=True, exist_ok=True)
for prompt in evaluate.PROMPTS[::5]:
    for seed in (0, 1):
        video = a.out / f"{evaluate.slug(prompt)}-{seed}.npy"
        options = ["--prompt", prompt, "--seed", str(seed), "--steps", "25", "--guidance", "3", "--output", str(video)]
        subprocess.run([a.cogvx, "run", a.bundle, *options], check=True, stderr=subprocess.DEVNULL)
evaluate.report(evaluate.load(a.out), evaluate.load(a.reference) if a.reference else None)
