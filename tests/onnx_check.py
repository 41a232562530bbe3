"""Checks ONNX files with the two readers that matter: ONNX's own checker and ONNX Runtime.

    python tests/onnx_check.py [--no-load] FILE.onnx...

Needs `onnx` and `onnxruntime` (made with 1.23.2 and 1.31.1). A file passes when the checker and its strict shape
inference accept it and ONNX Runtime loads it on the CPU with all its optimizations and logs nothing; `--no-load` leaves
the loading out, for graphs with operators or types that only GPUs have. Operators of
other domains (com.microsoft) have no schema in ONNX; the inference stops at them and the rest is checked. One line
a file; the exit status is 1 when a file fails and 77 when the packages are missing.
"""
import os, re, sys, tempfile

try:
    import onnx, onnxruntime as ort
    from onnx import TensorProto, helper
except ImportError as e:
    print(f"skipped: {e}; install the two with `pip install onnx onnxruntime`")
    sys.exit(77)


class Stderr:
    """What lands on file descriptor 2, from C++ too."""

    def __enter__(self):
        sys.stderr.flush()
        self.file, self.saved = tempfile.TemporaryFile(), os.dup(2)
        os.dup2(self.file.fileno(), 2)
        return self

    def __exit__(self, *_):
        os.dup2(self.saved, 2)
        os.close(self.saved)
        self.file.seek(0)
        text = self.file.read().decode(errors="replace")
        # Without the colours and the times.
        self.text = re.sub(r"^\d{4}-\d\d-\d\d [\d:.]+ ", "", re.sub(r"\x1b\[[0-9;]*m", "", text), flags=re.M)


def load(model):
    options = ort.SessionOptions()
    options.log_severity_level = 2  # warnings and worse
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def warm_up():
    """What the runtime says of the machine, once, when it first loads one, is not about a model."""
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [value("x")], [value("y")])
    with Stderr():
        load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def problems(path, load_too):
    """All that is wrong with a file."""
    found = []
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as e:
        found.append(f"onnx: {e}")
    if not load_too:
        return found
    try:
        with Stderr() as said:
            load(path)
    except Exception as e:
        found.append(f"onnxruntime: {e}")
    found += [f"onnxruntime said: {line}" for line in said.text.splitlines() if line.strip()]
    return found


def main():
    files = [a for a in sys.argv[1:] if a != "--no-load"]
    load_too = len(files) == len(sys.argv[1:])
    if not files:
        sys.exit(__doc__)
    ort.set_default_logger_severity(2)
    warm_up()
    failed = 0
    for path in files:
        if not os.path.isfile(path):
            found, what = ["no such file"], ""
        else:
            found = problems(path, load_too)
            try:
                model = onnx.load(path, load_external_data=False)
                opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
                what = f" ({len(model.graph.node)} nodes, {len(model.graph.initializer)} initializers, IR {model.ir_version}, {opsets})"
            except Exception:
                what = ""
        failed += bool(found)
        one_line = lambda text: " ".join(text.split())
        print(f"{'FAILED' if found else 'ok'} {path}{what}" + "".join(f"; {one_line(f)}" for f in found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
