"""Checks ONNX files with TensorRT for RTX, on a machine without a GPU.

    python tests/tensorrt_check.py [--build] [--sm 89] [--shape INPUT=1x3x4]... [--dim NAME=2:3:5]... FILE.onnx...

Parses each file into a strongly typed network and asks which nodes are not supported; `--build` also compiles it
ahead of time for a compute capability (75, 80, 86, 89, 120 or 121). Dynamic inputs get an optimization profile of
one shape: `--shape` names it (or MIN:OPT:MAX, each like 1x3x4), else every dimension takes its value by name
(`--dim NAME=3` or, for a range, `NAME=MIN:OPT:MAX`; or the defaults below).
Dimensions may be expressions over names: `frames*height*width/4`, `double(frames)`. What a pass proves: operators, attributes and types fit
TensorRT's strong typing, and the shapes compile. It says nothing of numbers or speed.

One line a file; the exit status is 1 when a file fails, and 77 when the two wheels are missing. They are 440 MB:

    pip install --no-deps onnxruntime_ep_nv_tensorrt_rtx_cu13==0.5.0 tensorrt_rtx_cu13_bindings==1.7.1.116
"""
import argparse, ast, importlib.util, operator, os, pathlib, re, subprocess, sys, tempfile, time

LIBRARIES, BINDINGS, READY = "onnxruntime_ep_nv_tensorrt_rtx", "tensorrt_rtx_bindings", "COGVX_TENSORRT_CHECK_READY"
DIMS = {
    "batch": 2, "frames": 3, "latent_frames": 3, "channels": 16, "height": 8, "width": 12, "latent_height": 8,
    "latent_width": 12, "tokens": 16, "sequence": 16, "text_tokens": 16, "video_tokens": 72, "text": 16, "length": 16,
}  # fmt: skip


def start_again():
    """Runs this script once more where the loader finds the libraries: the wheel holds `libX.so.1.7.1`, the bindings
    ask for `libX.so.1`, and the loader reads its path only at the start."""
    packages = [importlib.util.find_spec(name) for name in (LIBRARIES, BINDINGS)]
    if None in packages:
        print("skipped: TensorRT for RTX is not installed; " + __doc__.strip().splitlines()[-1].strip())
        return 77
    folder = pathlib.Path(packages[0].submodule_search_locations[0])
    with tempfile.TemporaryDirectory() as links:
        for library in folder.glob("*.so.*"):
            stem, version = library.name.split(".so.")
            parts = version.split(".")
            for name in {f"{stem}.so", *(f"{stem}.so.{'.'.join(parts[:n])}" for n in range(1, len(parts)))}:
                (pathlib.Path(links) / name).symlink_to(library)
        paths = [links, str(folder)] + [p for p in [os.environ.get("LD_LIBRARY_PATH")] if p]
        environment = os.environ | {"LD_LIBRARY_PATH": ":".join(paths), READY: "1"}
        return subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment).returncode


def double(frames):
    """Frames after a doubling in time: of an odd number, the first stays single."""
    return 2 * frames - frames % 2


OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def size_of(expression, sizes):
    """The number that an expression over named sizes stands for."""

    def value(node):
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in sizes:
                return sizes[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id="double"), args=[argument], keywords=[]):
                return double(value(argument))
        raise ValueError(f"size `{expression}`: unknown name or operation; give names with --dim")

    return value(ast.parse(expression, mode="eval").body)


def parse_shapes(text):
    """`1x3x4`, or `MIN:OPT:MAX` of such."""
    shapes = [tuple(int(n) for n in shape.split("x")) for shape in text.split(":")]
    if len(shapes) not in (1, 3):
        raise ValueError(text)
    return shapes * 3 if len(shapes) == 1 else shapes


def check(trt, path, args):
    """All that is wrong with a file, and what TensorRT made of it."""

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.lines = []

        def log(self, severity, message):
            if severity <= trt.ILogger.ERROR or args.verbose:
                self.lines.append(re.sub(r"\s+", " ", message).strip())

    def network():
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        return network, trt.OnnxParser(network, log)

    def errors(parser):
        return [str(parser.get_error(i)) for i in range(parser.num_errors)]

    found, log = [], Log()
    builder = trt.Builder(log)
    _, asked = network()
    if not asked.supports_model_v2(pathlib.Path(path).read_bytes(), str(path)):
        found += errors(asked) or ["not supported"]  # an error names its node
    made, parser = network()
    if not parser.parse_from_file(str(path)):
        found += errors(parser) or ["not parsed"]
    what = f"{made.num_layers} layers, {made.num_inputs} inputs, {made.num_outputs} outputs"
    if found or not args.build:
        return list(dict.fromkeys(found)), what, log.lines

    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{args.sm}"), 0)
    profile, dynamic = builder.create_optimization_profile(), {}
    for i in range(made.num_inputs):
        x = made.get_input(i)
        if -1 not in tuple(x.shape):
            continue
        size = lambda axis, n, dims: n if n >= 0 else size_of(x.get_dimension_name(axis), dims)
        try:  # raises or returns false, by what is wrong
            shapes = args.shapes.get(x.name) or [tuple(size(a, n, dims) for a, n in enumerate(x.shape)) for dims in args.profile]
            dynamic[x.name] = shapes[1]
            profile.set_shape(x.name, *shapes)
        except Exception as e:
            found.append(f"shape of `{x.name}`: {e}")
    if dynamic:
        config.add_optimization_profile(profile)
    start = time.time()
    plan = None if found else builder.build_serialized_network(made, config)
    given = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in dynamic.items())
    given = f" at {given}" if given else ""
    if plan is None:
        found += log.lines[-3:] or [f"build for sm{args.sm}{given}: failed"]
    else:
        what += f", sm{args.sm} engine of {plan.nbytes} bytes{given} in {time.time() - start:.1f} s"
    return found, what, log.lines


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--build", action="store_true", help="compile for a compute capability")
    args.add_argument("--sm", default="89", choices=["75", "80", "86", "89", "120", "121"])
    args.add_argument("--shape", action="append", default=[], metavar="INPUT=1x3x4")
    args.add_argument("--dim", action="append", default=[], metavar="NAME=2:3:5")
    args.add_argument("--verbose", action="store_true", help="print all that TensorRT logs")
    args.add_argument("files", nargs="+")
    args = args.parse_args()
    try:
        args.shapes = {name: parse_shapes(text) for name, text in (s.rsplit("=", 1) for s in args.shape)}
        ranges = {name: [n for n, in parse_shapes(sizes)] for name, sizes in (d.rsplit("=", 1) for d in args.dim)}
        args.profile = [DIMS | {name: sizes[i] for name, sizes in ranges.items()} for i in range(3)]
    except ValueError as e:
        sys.exit(f"error: {e}: expected INPUT=1x3x4 and NAME=3 or NAME=2:3:5")
    if READY not in os.environ:
        return start_again()
    import tensorrt_rtx_bindings as trt

    failed = 0
    for path in args.files:
        found, what, log = ["no such file"], "", []
        if os.path.isfile(path):
            found, what, log = check(trt, path, args)
        failed += bool(found)
        one_line = lambda text: re.sub(r"\s+", " ", text).strip()
        print(f"{'FAILED' if found else 'ok'} {path}{f' ({what})' if what else ''}" + "".join(f"; {one_line(f)}" for f in found), flush=True)
        for line in log if args.verbose else []:
            print("   ", line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
