#!/usr/bin/env python3
"""Train a student of a CogVideoX transformer on what `cogvx student --dump-targets` wrote of its teacher.

    python train.py --student STUDENT --targets TARGETS --output NEW --minutes 20

The teacher is not needed: TARGETS has its latents, text embeddings, timesteps and predictions. STUDENT is a checkpoint in
diffusers' layout, NEW becomes a copy of it with another transformer. Needs torch, diffusers and safetensors.
"""
import argparse, json, math, pathlib, shutil, time

import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_student(folder):
    """The transformer in fp32. diffusers knows feed-forwards of four times the width; others are put in here."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / WEIGHTS)
    model = CogVideoXTransformer3DModel.from_config(config)
    for i, block in enumerate(model.transformer_blocks):
        width, inner = weights[f"transformer_blocks.{i}.ff.net.2.weight"].shape
        if inner != 4 * width:
            block.ff = FeedForward(width, activation_fn="gelu-approximate", final_dropout=True, inner_dim=inner)
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model, weights


class Targets:
    """All predictions of the teacher: latents, text, timesteps and what it predicted, without and with the prompt."""

    def __init__(self, folder):
        index = json.loads((folder / "index.json").read_text())
        assert index["format"] == "cogvx-targets", f"{folder}: expected targets of cogvx"
        runs = [load_file(folder / run["file"]) for run in index["runs"]]
        assert all(len(run["text"]) == 2 for run in runs), "expected targets with guidance"
        for run in runs:
            # An image's latents stand on the channels after the latents in every step.
            if (image := run.get("image_latents")) is not None:
                run["latents"] = torch.cat([run["latents"], image.expand(len(run["latents"]), *image.shape)], 2)
        self.guidance = index["guidance"]
        self.text = torch.stack([run["text"] for run in runs])
        self.run = torch.tensor([i for i, run in enumerate(runs) for _ in run["timesteps"]])
        for name in ("latents", "timesteps", "prediction"):
            setattr(self, name, torch.cat([run[name] for run in runs]))

    def __len__(self):
        return len(self.run)


def rotary(model, latents):
    """1.0's rotary positions, which diffusers computes in its pipeline."""
    config = model.config
    if not config.use_rotary_positional_embeddings:
        return None
    assert config.patch_size_t is None, "expected a model of 1.0"
    rows, columns = (n // config.patch_size for n in latents.shape[-2:])
    assert (rows, columns) == (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
    return get_3d_rotary_pos_embed(config.attention_head_dim, ((0, 0), (rows, columns)), (rows, columns), latents.shape[1])


def loss_of(model, targets, pick, rope):
    """Mean squares of what is wrong without a prompt, with it, and of their difference as guidance takes it."""
    latents, times, expected = targets.latents[pick], targets.timesteps[pick], targets.prediction[pick]
    text = targets.text[targets.run[pick]]
    found = model(
        latents.repeat(2, 1, 1, 1, 1), torch.cat([text[:, 0], text[:, 1]]), times.repeat(2), image_rotary_emb=rope,
        return_dict=False,
    )[0]  # fmt: skip
    wrong = torch.stack(found.chunk(2), 1) - expected
    guided = wrong[:, 0] + targets.guidance * (wrong[:, 1] - wrong[:, 0])
    return wrong.square().mean() + 0.25 * guided.square().mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=pathlib.Path, required=True)
    parser.add_argument("--targets", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    if a.output.exists():
        parser.error(f"{a.output}: expected nothing there, found something")
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    model, stored = load_student(a.student / "transformer")
    targets = Targets(a.targets)
    rope = rotary(model, targets.latents)
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.98), weight_decay=0.0)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    began, step, losses = time.time(), 0, []
    while (progress := (time.time() - began) / (60 * a.minutes)) < 1:
        rate = a.lr * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, targets, torch.randint(len(targets), (a.batch,)), rope)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            decay = min(0.995, (1 + step) / (10 + step))
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step} {time.time() - began:.0f}s rate {rate:.1e} loss {sum(losses[-50:]) / 50:.5f}", flush=True)
    shutil.copytree(a.student, a.output)
    # A new file: the student's may be a link to it.
    (a.output / "transformer" / WEIGHTS).unlink()
    trained = {name: average[name].to(old.dtype).contiguous() for name, old in stored.items()}
    save_file(trained, a.output / "transformer" / WEIGHTS, metadata={"format": "pt"})
    (a.output / "transformer" / WEIGHTS).chmod(0o644)
    print(f"{a.output}: {step} steps on {len(targets)} predictions")


if __name__ == "__main__":
    main()
