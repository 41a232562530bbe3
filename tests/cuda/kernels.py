#!/usr/bin/env python3
"""Ask ONNX Runtime's own CUDA provider, without a GPU, which nodes of graphs it has kernels for; writes kernels.tsv.

    PYTHONPATH=~/.cache/cogvx/onnxruntime-gpu-1.31.1 LD_LIBRARY_PATH=LIBRARIES kernels.py GRAPH.onnx ... > kernels.tsv

LIBRARIES has the libraries that `without_gpu` of tests/cuda.rs makes of device.c. Needs numpy, onnx 1.23.2 and the package
onnxruntime-gpu 1.31.1 where `cogvx runtime --device cuda` puts it. A node the provider takes is a line: operator, the version
that the graph's opset means, types of its inputs and its output. Lines of versions are those of ONNX's operators. Graphs of which
the provider and the processor together lack a kernel are named on standard error; they have no lines.
"""
import sys

import onnx
import onnxruntime as ort
from onnx import defs

NAMES = {1: "f32", 10: "f16", 16: "bf16", 7: "i64", 6: "i32", 3: "i8", 2: "u8", 9: "bool", 22: "i4", 17: "f8e4m3"}
NEWEST = 23

kernels, versions = set(), {}
for schema in defs.get_all_schemas_with_history():
    if schema.domain == "" and schema.since_version <= NEWEST:
        versions.setdefault(schema.name, set()).add(schema.since_version)


def lines(model):
    """Name and line of every node, typed as tests/cuda.rs does it."""
    opset = next(o.version for o in model.opset_import if o.domain == "")
    types = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    types |= {i.name: i.data_type for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Shape":
            made = onnx.TensorProto.INT64
        elif node.op_type == "Cast":
            made = next(a.i for a in node.attribute if a.name == "to")
        else:
            made = types[node.input[0]]
        types |= {o: made for o in node.output}
        own = node.domain in ("", "ai.onnx")
        version = max(v for v in versions[node.op_type] if v <= opset) if own else 1
        name = node.op_type if own else f"{node.domain}.{node.op_type}"
        said = ",".join(NAMES[types[i]] if i else "-" for i in node.input)
        yield node.name, name, version, f"{said}>{NAMES[made]}"


ort.set_default_logger_severity(4)
for path in sys.argv[1:]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = ort.InferenceSession(path, options, providers=["CUDAExecutionProvider"])
    except Exception as error:
        print(f"{path}: {str(error).splitlines()[0]}", file=sys.stderr)
        continue
    taken = {n.name for part in session.get_provider_graph_assignment_info() if part.ep_name == "CUDAExecutionProvider"
             for n in part.get_nodes()}  # fmt: skip
    assert "CUDAExecutionProvider" in session.get_providers(), "the provider did not start"
    kernels |= {line[1:] for line in lines(onnx.load(path, load_external_data=False)) if line[0] in taken}

print("# What ONNX Runtime 1.31.1's CUDA provider has kernels for, as its own library answers: made by tests/cuda/kernels.py of")
print("# the graphs that tests/cuda.rs exports. Operators that cogvx writes, in the versions and with the types it writes them.")
for name in sorted({name for name, *_ in kernels if "." not in name} | {"InstanceNormalization", "Resize"}):
    print("versions", name, ",".join(map(str, sorted(versions[name]))), sep="\t")
for line in sorted(kernels):
    print("kernel", *line, sep="\t")
