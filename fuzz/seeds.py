"""Writes the corpus: small whole inputs made from the fixtures, each for what a target reads.

    cargo run -- export tests/fixtures/2b-fp32 --output target/seeds && python fuzz/seeds.py target/seeds
"""
import json, os, pathlib, struct, subprocess, sys

here = pathlib.Path(__file__).parent
fixtures = here.parent / "tests/fixtures"
bundle = pathlib.Path(sys.argv[1])


def seed(target, name, *parts):
    folder = here / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    (folder / name).write_bytes(data)


def compact(value):
    return json.dumps(value, separators=(",", ":"))


def short(name):
    return json.loads((fixtures / name).read_text())


# Configurations.
for kind, file in [("d", "transformer/config.json"), ("v", "vae/config.json"), ("t", "text_encoder/config.json"),
                   ("p", "model_index.json"), ("s", "scheduler/scheduler_config.json")]:
    for model in ["2b-fp32", "1.5-i2v"]:
        seed("config", f"{kind}-{model}", kind, compact(short(f"{model}/{file}")))
header = (fixtures / "lora.safetensors").read_bytes()
length = struct.unpack("<Q", header[:8])[0]
metadata = json.loads(header[8:8 + length]).get("__metadata__", {})
seed("config", "l-lora", "l", metadata["lora_adapter_metadata"])
seed("config", "l-patterns", "l", compact({
    "transformer.r": 4, "transformer.lora_alpha": 8.0, "transformer.use_rslora": True,
    "transformer.rank_pattern": {"attn1.to_q": 4}, "transformer.alpha_pattern": {"^transformer_blocks.0.attn1.to_q": 2.0}}))

# Weights.
tensor_of = lambda dtype, shape, begin, end: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
one = {"__metadata__": {"format": "pt"}, "a.weight": tensor_of("F32", [2, 3], 0, 24), "b": tensor_of("BF16", [], 24, 26)}
text = compact(one)
seed("safetensors", "file", "f", struct.pack("<Q", len(text)), text, bytes(26))
seed("safetensors", "header", "h26\n", text)
seed("safetensors", "empty", "h0\n{}")
seed("safetensors", "zero", "h8\n", compact({"z": tensor_of("I64", [0, 5], 0, 0), "n": tensor_of("I64", [1], 0, 8)}))
index = {"metadata": {"total_size": 28}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors", "c": "b.safetensors"}}
shards = [compact({"a": tensor_of("F16", [4], 0, 8)}), compact({"b": tensor_of("F32", [4], 0, 16), "c": tensor_of("U8", [4], 16, 20)})]
seed("safetensors", "shards", "i", compact(index), "\n--\n8\n", shards[0], "\n--\n20\n", shards[1])
seed("safetensors", "climbs", "i", compact({"weight_map": {"a": "../x.safetensors"}}))


# Tokenizers: protobuf by hand.
def field(number, content):
    return bytes([number << 3 | 2]) + bytes([len(content) & 0x7f | 0x80, len(content) >> 7]) + content


def piece(text, score, kind):
    return field(1, field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score) + bytes([3 << 3, kind]))


def unit(label, offset, leaf=False):
    return offset << 10 | (0x100 if leaf else 0) | label


# One rule, "A" to "a": unit 0 leads to the children at 1 ^ byte, the unit of "A" to the end of the rule.
array = [0] * 512
array[0] = unit(0, 256)
array[256 ^ 0x41] = unit(0x41, (256 ^ 0x41) ^ 3, leaf=True)
array[3] = 1 << 31
charsmap = struct.pack("<I", len(array) * 4) + struct.pack(f"<{len(array)}I", *array) + b"a\0"
pieces = piece("<pad>", 0, 3) + piece("</s>", 0, 3) + piece("<unk>", 0, 2)
for i, word in enumerate(["\u2581a", "\u2581red", "\u2581", "c", "i", "r", "l", "e", "cir", "cle", "\u2581left"]):
    pieces += piece(word, -1.0 - i, 1)
trainer = field(2, bytes([3 << 3, 1]))
seed("spiece", "plain", "s", pieces)
seed("spiece", "rules", "s", pieces, trainer, field(3, field(2, charsmap)))
few = compact({"extra_ids": 3, "eos_token": "</s>", "pad_token": {"content": "<pad>", "lstrip": True}})
seed("spiece", "settings", "s", pieces, "\n--\n", few, "\n--\n", compact({"unk_token": "<unk>"}), "\n--\n", compact({"<new>": 99}))
decoder = {str(i): {"content": f"<extra_id_{i}>", "special": True, "rstrip": True} for i in range(2)}
seed("spiece", "decoder", "s", pieces, "\n--\n", compact({
    "added_tokens_decoder": decoder, "extra_ids": 2, "extra_special_tokens": ["<extra_id_0>", "<extra_id_1>"],
    "padding_side": "left", "split_special_tokens": True}))
vocab = [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["\u2581a", -1.5], ["\u2581", -2], ["b", -3.25]]
seed("spiece", "json", "j", compact({
    "model": {"type": "Unigram", "vocab": vocab}, "normalizer": {"type": "Sequence", "normalizers": []},
    "added_tokens": [{"id": 0, "content": "<pad>", "special": True}]}), "\n--\n", few)

# Manifest and graphs.
manifest = json.loads((bundle / "cogvx.json").read_text())
for part in ["vae_decoder", "vae_encoder"]:
    del manifest["components"][part]
seed("manifest", "bundle", compact(manifest))
manifest["config"], manifest["files"] = {}, manifest["files"][:2]
manifest["components"] = {}
seed("manifest", "small", compact(manifest))
manifest["files"][0]["path"] = "../../etc/passwd"
seed("manifest", "climbs", compact(manifest))
seed("onnx", "text_encoder", (bundle / "text_encoder/model.onnx").read_bytes())


def varint(n):
    n &= 2**64 - 1
    out = b""
    while n > 0x7f:
        out, n = out + bytes([n & 0x7f | 0x80]), n >> 7
    return out + bytes([n])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(number, value):
    return varint(number << 3) + varint(value)


def port(name):
    shape = message(1, number(1, 3)) + message(1, message(2, b"n"))
    return message(1, name) + message(2, message(1, number(1, 1) + message(2, shape)))


def model(weight, extra=b""):
    add = message(1, message(1, b"x") + message(1, b"w") + message(2, b"y") + message(3, b"Add_0") + message(4, b"Add"))
    attribute = message(5, message(1, b"alpha") + varint(2 << 3 | 5) + struct.pack("<f", 1) + number(20, 1))
    gelu = message(1, message(1, b"y") + message(2, b"z") + message(4, b"QuickGelu") + attribute + message(7, b"com.microsoft"))
    graph = add + gelu + message(2, b"small") + message(5, weight) + message(11, port(b"x")) + message(12, port(b"z")) + extra
    opsets = message(8, message(1, b"") + number(2, 21)) + message(8, message(1, b"com.microsoft") + number(2, 1))
    return number(1, 10) + message(2, b"cogvx") + message(7, graph) + opsets


tensor = number(1, 3) + number(2, 1) + message(8, b"w")
entries = [(b"location", b"w.safetensors"), (b"offset", b"16"), (b"length", b"12")]
external = b"".join(message(13, message(1, key) + message(2, value)) for key, value in entries) + number(14, 1)
seed("onnx", "inline", model(tensor + message(9, bytes(12))))
seed("onnx", "external", model(tensor + external))
seed("onnx", "climbs", model(tensor + external.replace(b"w.safetensors", b"../../passwd.")))
seed("onnx", "sparse", model(tensor + external, message(15, b"")))

# Calibration tables. As numbers of 4 bytes what fills them is 1 and 0 in turn, as one of 8 bytes a count.
filling = struct.pack("<ff", 1, 0)


def table(places, ranges, rows, **changes):
    header, end, bins = {}, 0, {}
    for name, width in places.items():
        sizes = {"least": [ranges, width], "greatest": [ranges, width], "histogram": [2048], "rows": [rows, width]}
        for part, shape in sizes.items():
            size = (8 if part == "histogram" else 4) * shape[0] * (shape[1] if len(shape) == 2 else 1)
            header[f"{name}/{part}"] = tensor_of("I64" if part == "histogram" else "F32", shape, end, end + size)
            end += size
        bins[name] = 0.01
    metadata = {"format": "cogvx-calibration", "version": "2", "checkpoint": "0123", "layers": compact({n: n for n in places}),
                "histograms": compact(bins), "seen": compact({n: 7 for n in places}), "values": "{}", "runs": "[]"}
    return f"{end}\n" + compact({"__metadata__": metadata | changes, **header})


values = {"transformer/a": [-1, 2.5], "vae_decoder/b/Conv.1": [0, 0]}
run = {"prompt": "fox", "seed": 3, "steps": 25, "guidance": 6.0, "size": [9, 64, 64]}
seed("table", "one", table({"transformer/a": 4}, 2, 3), "\n--\n", filling)
seed("table", "two", table({"transformer/a": 4, "text_encoder/b": 2}, 1, 16, runs=compact([run]), values=compact(values)), "\n--\n", filling)
seed("table", "shared", table({"transformer/a": 2}, 4, 2, layers=compact({"x": "transformer/a", "y": "transformer/a"})), "\n--\n", filling)
seed("table", "zeros", table({"transformer/a": 4}, 2, 3))


# States of runs that are ended in their second step. cogvx is the one that cargo built.
def state(name, model, *options):
    file = here / "corpus/state" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    cogvx = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", here.parent / "target")) / "debug/cogvx"
    command = [cogvx, "run", fixtures / model, "-p", "fox", "--steps", "50", "-o", "unmade.npy", "--save-state", file, *options]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    next(line for line in run.stderr if line.startswith("step 2/"))
    run.terminate()
    run.wait()


state("ddim", "2b-fp32", "--scheduler", "ddim")
state("dpm", "2b-fp32", "--scheduler", "dpm", "--seed", "3")
state("image", "5b-i2v", "--image", fixtures / "goldens/scores" / sorted(os.listdir(fixtures / "goldens/scores"))[0])
state("shortcuts", "2b-fp32", "--guidance-every", "2", "--step-cache", "0.1")
