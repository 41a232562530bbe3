use std::path::{Path, PathBuf};

use prost::Message as _;

use super::{EXTERNAL, FLOAT, INT, Placement, check_external, open, read};
use crate::DType;
use crate::proto::*;

/// `y = Add(x, w)` with `w` beside the model, and `z = Relu(y)`.
fn model() -> ModelProto {
    let external = [("location", "w.safetensors"), ("offset", "16"), ("length", "12")];
    let weight = TensorProto {
        dims: vec![3],
        data_type: Some(DType::F32.onnx()),
        name: Some("w".into()),
        data_location: Some(EXTERNAL),
        external_data: external.map(|(key, value)| entry(key, value)).into(),
        ..TensorProto::default()
    };
    let graph = GraphProto {
        node: vec![node("Add", &["x", "w"], "y"), node("Relu", &["y"], "z")],
        name: Some("small".into()),
        initializer: vec![weight],
        input: vec![port("x")],
        output: vec![port("z")],
    };
    ModelProto {
        ir_version: Some(10),
        producer_name: Some("cogvx".into()),
        producer_version: None,
        graph: Some(graph),
        opset_import: vec![opset("", 21)],
    }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.into()],
        name: Some(format!("{op}_{output}")),
        op_type: Some(op.into()),
        ..NodeProto::default()
    }
}

fn port(name: &str) -> ValueInfoProto {
    let dim = vec![DimensionProto { dim_value: Some(3), dim_param: None }];
    let tensor = TensorTypeProto { elem_type: Some(1), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: Some(name.into()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

fn refusal(bytes: &[u8]) -> String {
    read(Path::new("m"), bytes).expect_err("refused").to_string()
}

type Change = fn(&mut ModelProto);

/// The refusal of the model after a change.
fn changed(change: Change) -> String {
    let mut model = model();
    change(&mut model);
    refusal(&model.encode_to_vec())
}

fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().expect("there")
}

fn weight(model: &mut ModelProto) -> &mut TensorProto {
    &mut graph(model).initializer[0]
}

fn external(model: &mut ModelProto, at: usize, value: &str) {
    weight(model).external_data[at].value = Some(value.into());
}

fn each(cases: &[(Change, &str)]) {
    for (change, expected) in cases {
        assert_eq!(changed(*change), format!("`m`: {expected}"));
    }
}

#[test]
fn what_is_no_model_is_refused() {
    let whole = model().encode_to_vec();
    let good = read(Path::new("m"), &whole).expect("sound");
    assert_eq!((good.nodes.len(), good.initializers[0].shape.as_slice(), good.opset), (2, &[3][..], 21));
    assert_eq!(refusal(b""), "`m`: the file: expected an ONNX model, found an empty file");
    assert_eq!(
        refusal(&[0xff; 40]),
        "`m`: the file: expected an ONNX model as cogvx writes it, found a ModelProto that ends inside a field"
    );
    assert_eq!(
        refusal(b"version https://git-lfs.github.com/spec/v1\n"),
        "`m`: the file: expected an ONNX model, found a git-lfs pointer: run `git lfs pull`"
    );
    // Cut anywhere it is refused: at worst a field at the end, the opset, is missing.
    for end in 1..whole.len() {
        assert!(read(Path::new("m"), &whole[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn fields_that_cogvx_does_not_write_are_refused_wherever_they_are() {
    let whole = model().encode_to_vec();
    let end = |field: &[u8]| refusal(&[&whole, field].concat());
    let found = |what: &str| format!("`m`: the file: expected an ONNX model as cogvx writes it, found {what}");
    // A function; a training step.
    assert_eq!(end(&[25 << 3 & 0x7f | 0x80 | 2, 1, 0]), found("field 25 of type 2 in a ModelProto"));
    assert_eq!(end(&[20 << 3 & 0x7f | 0x80 | 2, 1, 0]), found("field 20 of type 2 in a ModelProto"));
    // The IR version as text, and as a number of more than 64 bits.
    assert_eq!(end(&[1 << 3 | 2, 0]), found("field 1 of type 2 in a ModelProto"));
    let long = [&[1 << 3][..], &[0xff; 9], &[2]].concat();
    assert_eq!(end(&long), found("a ModelProto that ends inside a field"));
    // A subgraph in an attribute.
    let attribute = [1 << 3 | 2, 1, b'a', 6 << 3 | 2, 0];
    let node = [&[5 << 3 | 2, 5][..], &attribute].concat();
    let graph = [&[1 << 3 | 2, 7][..], &node].concat();
    assert_eq!(end(&[&[7 << 3 | 2, 9][..], &graph].concat()), found("field 6 of type 2 in a AttributeProto"));
    // Groups, which a reader would follow down: a hundred thousand in one another.
    assert_eq!(end(&vec![7 << 3 | 3; 100_000]), found("field 7 of type 3 in a ModelProto"));
    // A sparse initializer; a segment of a tensor.
    assert_eq!(end(&[7 << 3 | 2, 2, 15 << 3 | 2, 0]), found("field 15 of type 2 in a GraphProto"));
    assert_eq!(end(&[7 << 3 | 2, 4, 5 << 3 | 2, 2, 3 << 3 | 2, 0]), found("field 3 of type 2 in a TensorProto"));
    // Two million empty nodes would be half a gigabyte.
    let nodes = [1 << 3 | 2, 0].repeat(2_000_000);
    let mut many = vec![7 << 3 | 2];
    prost::encoding::encode_varint(nodes.len() as u64, &mut many);
    assert_eq!(refusal(&[many, nodes].concat()), found("more than 1048576 fields"));
}

#[test]
fn other_versions_are_refused() {
    each(&[
        (|m| m.ir_version = None, "IR version: expected 10, found none"),
        (|m| m.ir_version = Some(0), "IR version: expected 10, found 0"),
        (|m| m.ir_version = Some(11), "IR version: expected 10, found 11"),
        (|m| m.ir_version = Some(i64::MIN), "IR version: expected 10, found -9223372036854775808"),
        (|m| m.opset_import.clear(), "opset: expected 21 to 23, found none"),
        (|m| m.opset_import[0].version = Some(24), "opset of ONNX: expected version 21 to 23, found 24"),
        (|m| m.opset_import[0].version = Some(0), "opset of ONNX: expected version 21 to 23, found 0"),
        (|m| m.opset_import[0].version = None, "opset of ONNX: expected version 21 to 23, found 0"),
        (|m| m.opset_import[0].version = Some(-1), "opset of ONNX: expected version 21 to 23, found -1"),
        (|m| m.opset_import.push(opset("", 21)), "opset: expected each domain once, found one twice"),
        (
            |m| m.opset_import.push(opset("com.microsoft", 2)),
            "opset of com.microsoft: expected version 1 to 1, found 2",
        ),
        (
            |m| m.opset_import.push(opset("evil", 1)),
            "opset: expected one of ONNX, `com.microsoft` or `cogvx`, found `evil`",
        ),
        (|m| m.graph = None, "the file: expected a graph, found none"),
    ]);
}

#[test]
fn graphs_that_cannot_run_in_order_are_refused() {
    each(&[
        (
            |m| graph(m).node.swap(0, 1),
            "input of node 1 `Relu_z`: expected a value that is there by then, found `y`, which a later node gives or the \
             node itself",
        ),
        (
            |m| graph(m).node[0].input[0] = "z".into(),
            "input of node 1 `Add_y`: expected a value that is there by then, found `z`, which a later node gives or the \
             node itself",
        ),
        (
            |m| graph(m).node[0].input[0] = "y".into(),
            "input of node 1 `Add_y`: expected a value that is there by then, found `y`, which a later node gives or the \
             node itself",
        ),
        (
            |m| graph(m).node[0].input[0] = "gone".into(),
            "input of node 1 `Add_y`: expected a value that is there by then, found `gone`, which nothing gives",
        ),
        (
            |m| graph(m).output.push(port("gone")),
            "output: expected a value that is there by then, found `gone`, which nothing gives",
        ),
        (|m| graph(m).output.push(port("z")), "output `z`: expected one of that name, found two"),
        (|m| graph(m).node[1].output[0] = "y".into(), "value `y`: expected one definition, found a second one"),
        (|m| graph(m).node[1].output[0] = "w".into(), "value `w`: expected one definition, found a second one"),
        (|m| graph(m).input.push(port("w")), "value `w`: expected one definition, found a second one"),
        (|m| graph(m).input.push(port("x")), "value `x`: expected one definition, found a second one"),
        (
            |m| {
                let again = weight(m).clone();
                graph(m).initializer.push(again);
            },
            "value `w`: expected one definition, found a second one",
        ),
        (|m| graph(m).input[0].name = None, "input: expected a name, found none"),
        (
            |m| graph(m).node[0].domain = Some("com.microsoft".into()),
            "node `Add_y`: expected a domain among the opsets, found `com.microsoft`",
        ),
        (|m| graph(m).node[0].op_type = None, "operator of node `Add_y`: expected a name, found none"),
    ]);
}

#[test]
fn attributes_and_ports_of_other_types_are_refused() {
    let wrong = "attribute `a` of node `Add_y`: expected a number, numbers or a text of its type, found another type";
    each(&[
        (|m| attribute(m, Some(FLOAT), None, None), wrong),
        (|m| attribute(m, Some(FLOAT), Some(1), None), wrong),
        (|m| attribute(m, Some(4), None, None), wrong),
        (|m| attribute(m, None, Some(1), None), wrong),
        (|m| attribute(m, Some(3), None, Some(vec![0xff])), wrong),
        (
            |m| {
                attribute(m, Some(INT), Some(1), None);
                attribute(m, Some(INT), Some(2), None);
            },
            "node `Add_y`: expected each attribute once, found `a` twice",
        ),
        (|m| graph(m).input[0].r#type = None, "input `x`: expected an element type cogvx writes, found 0"),
        (|m| tensor(m).elem_type = Some(8), "input `x`: expected an element type cogvx writes, found 8"),
        (|m| tensor(m).shape = None, "input `x`: expected a shape, found none"),
        (|m| dim(m).dim_value = Some(-1), "input `x`: expected a size, found -1"),
        (|m| dim(m).dim_value = None, "input `x`: expected a number or a name for each axis, found neither or both"),
        (
            |m| dim(m).dim_param = Some("n".into()),
            "input `x`: expected a number or a name for each axis, found neither or both",
        ),
    ]);
}

fn attribute(model: &mut ModelProto, kind: Option<i32>, i: Option<i64>, s: Option<Vec<u8>>) {
    let made = AttributeProto { name: Some("a".into()), kind, i, s, ..AttributeProto::default() };
    graph(model).node[0].attribute.push(made);
}

fn tensor(model: &mut ModelProto) -> &mut TensorTypeProto {
    graph(model).input[0].r#type.as_mut().and_then(|t| t.tensor_type.as_mut()).expect("there")
}

fn dim(model: &mut ModelProto) -> &mut DimensionProto {
    &mut tensor(model).shape.as_mut().expect("there").dim[0]
}

#[test]
fn tensors_whose_size_is_not_that_of_their_data_are_refused() {
    each(&[
        (|m| weight(m).dims = vec![4], "initializer `w`: expected 16 bytes for [4], found 12"),
        (|m| weight(m).dims = vec![-3], "initializer `w`: expected sizes of at least 0, found [-3]"),
        (
            |m| weight(m).dims = vec![1 << 32, 1 << 32],
            "initializer `w`: expected less than 2^63 bytes, found [4294967296, 4294967296]",
        ),
        (
            |m| weight(m).dims = vec![0, i64::MAX],
            "initializer `w`: expected less than 2^63 bytes, found [0, 9223372036854775807]",
        ),
        (|m| weight(m).dims = vec![1; 17], "initializer `w`: expected at most 16 axes, found 17"),
        (|m| weight(m).data_type = Some(11), "initializer `w`: expected an element type cogvx writes, found 11"),
        (
            |m| weight(m).raw_data = Some(vec![0; 12]),
            "initializer `w`: expected its data in the file or beside it, found both or another place",
        ),
        (
            |m| weight(m).data_location = Some(2),
            "initializer `w`: expected its data in the file or beside it, found both or another place",
        ),
        (
            |m| {
                weight(m).data_location = None;
                weight(m).external_data.clear();
                weight(m).raw_data = Some(vec![0; 11]);
            },
            "initializer `w`: expected 12 bytes for [3], found 11",
        ),
    ]);
}

#[test]
fn external_data_that_are_not_plain_are_refused() {
    // CVE-2022-25882, CVE-2024-27318, CVE-2025-51480: paths out of the folder, however they are written.
    for path in [
        "../x",
        "a/../../x",
        "a/../x",
        "/etc/passwd",
        "",
        ".",
        "a//x",
        "./x",
        "..",
        "a\\..\\x",
        "C:x",
        "*/_ORT_MEM_ADDR_/*",
        "a\0",
        "a/",
    ] {
        let mut model = model();
        external(&mut model, 0, path);
        let message = refusal(&model.encode_to_vec());
        let start = "`m`: initializer `w`: expected external data in a plain relative path, found `";
        assert!(message.starts_with(start), "{message}");
    }
    each(&[
        (|m| external(m, 1, "-1"), "initializer `w`: expected a `offset` from 0 to 2^63 - 1, found `-1`"),
        (|m| external(m, 1, ""), "initializer `w`: expected a `offset` from 0 to 2^63 - 1, found ``"),
        (|m| external(m, 1, "+1"), "initializer `w`: expected a `offset` from 0 to 2^63 - 1, found `+1`"),
        (|m| external(m, 1, "0x10"), "initializer `w`: expected a `offset` from 0 to 2^63 - 1, found `0x10`"),
        (
            |m| external(m, 1, "9223372036854775808"),
            "initializer `w`: expected a `offset` from 0 to 2^63 - 1, found `9223372036854775808`",
        ),
        (
            |m| external(m, 2, "18446744073709551628"),
            "initializer `w`: expected a `length` from 0 to 2^63 - 1, found `18446744073709551628`",
        ),
        (|m| external(m, 2, "13"), "initializer `w`: expected 12 bytes for [3], found 13"),
        // CVE-2026-34445: keys that a reader would take as its own fields.
        (
            |m| weight(m).external_data.push(entry("__class__", "x")),
            "initializer `w`: expected external data of `location`, `offset` and `length`, found `__class__`",
        ),
        (
            |m| weight(m).external_data.push(entry("location", "x")),
            "initializer `w`: expected each key of external data once, found `location` twice",
        ),
        (
            |m| drop(weight(m).external_data.remove(0)),
            "initializer `w`: expected external data with a `location`, found none",
        ),
    ]);
}

/// A bundle's folder with the model in `part/`; `w.safetensors` is not there yet.
fn bundle(model: &ModelProto) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path().canonicalize().expect("there");
    let path = root.join("bundle/part/m.onnx");
    std::fs::create_dir_all(root.join("bundle/part")).expect("a folder");
    std::fs::write(&path, model.encode_to_vec()).expect("written");
    (dir, path)
}

fn message(path: &Path) -> String {
    let text = open(path).expect_err("refused").to_string();
    let root = path.ancestors().nth(3).expect("the folder").display().to_string();
    text.replace(&root, "TMP")
}

#[test]
fn external_data_must_be_there_and_long_enough() {
    let (_keep, path) = bundle(&model());
    let data = path.with_file_name("w.safetensors");
    assert_eq!(message(&path), "`TMP/bundle/part/w.safetensors`: expected a file, found nothing");
    std::fs::create_dir(&data).expect("a folder");
    assert_eq!(message(&path), "`TMP/bundle/part/w.safetensors`: expected a regular file, found a directory");
    std::fs::remove_dir(&data).expect("empty");
    std::fs::write(&data, [0; 27]).expect("written");
    assert_eq!(
        message(&path),
        "`TMP/bundle/part/m.onnx`: initializer `w`: expected data within the 27 bytes of `w.safetensors`, found 12 bytes \
         from 16 on"
    );
    std::fs::write(&data, [0; 28]).expect("written");
    let good = open(&path).expect("sound");
    let (location, offset, length) = ("w.safetensors".into(), 16, 12);
    assert_eq!(good.initializers[0].placement, Placement::External { location, offset, length });

    // An offset whose end is beyond any number.
    let mut far = model();
    external(&mut far, 1, "9223372036854775807");
    let far = read(&path, &far.encode_to_vec()).expect("no overflow");
    assert!(check_external(&path, &far).expect_err("past the end").to_string().contains("9223372036854775807 on"));
}

#[cfg(unix)]
#[test]
fn links_and_special_files_are_refused_unless_they_stay_inside() {
    use std::os::unix::fs::symlink;
    let (_keep, path) = bundle(&model());
    let data = path.with_file_name("w.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&data).status().expect("mkfifo").success());
    assert_eq!(message(&path), "`TMP/bundle/part/w.safetensors`: expected a regular file, found a fifo");
    std::fs::remove_file(&data).expect("there");
    // CVE-2026-27489, CVE-2026-34447: links out of the folder, of the file or of a folder above it.
    let root = path.ancestors().nth(3).expect("the folder");
    std::fs::write(root.join("secret"), [0; 28]).expect("written");
    symlink("../../secret", &data).expect("a link");
    let escapes = "expected a link to a file inside `TMP/bundle`, found `TMP/secret`";
    assert_eq!(message(&path), format!("`TMP/bundle/part/w.safetensors`: {escapes}"));
    symlink(root, path.with_file_name("up")).expect("a link");
    let mut above = model();
    external(&mut above, 0, "up/secret");
    std::fs::write(&path, above.encode_to_vec()).expect("written");
    assert_eq!(message(&path), format!("`TMP/bundle/part/up/secret`: {escapes}"));
    // One inside is what a bundle may have; CVE-2026-34446's hard links are what linked bundles are made of.
    std::fs::write(&path, model().encode_to_vec()).expect("written");
    std::fs::remove_file(&data).expect("there");
    std::fs::write(root.join("bundle/blob"), [0; 28]).expect("written");
    symlink("../blob", &data).expect("a link");
    open(&path).expect("sound");
    // The model itself may not be a link out of the bundle either.
    std::fs::rename(&path, root.join("m.onnx")).expect("moved");
    symlink(root.join("m.onnx"), &path).expect("a link");
    assert_eq!(
        message(&path),
        "`TMP/bundle/part/m.onnx`: expected a link to a file inside `TMP/bundle`, found `TMP/m.onnx`"
    );
}

#[cfg(unix)]
#[test]
fn a_hugging_face_cache_of_links_is_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let repository = dir.path().join("models--me--bundle");
    let part = repository.join("snapshots/1234/part");
    std::fs::create_dir_all(&part).expect("a folder");
    std::fs::create_dir_all(repository.join("blobs")).expect("a folder");
    for (name, bytes) in [("m.onnx", model().encode_to_vec()), ("w.safetensors", vec![0; 28])] {
        std::fs::write(repository.join("blobs").join(name), bytes).expect("written");
        std::os::unix::fs::symlink(format!("../../../blobs/{name}"), part.join(name)).expect("a link");
    }
    open(&part.join("m.onnx")).expect("sound");
}

#[test]
fn a_file_too_large_for_a_graph_is_not_read_whole() {
    let (_keep, path) = bundle(&model());
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("there");
    file.set_len(1 << 40).expect("a sparse file");
    assert_eq!(message(&path), "`TMP/bundle/part/m.onnx`: the file: expected at most 67108864 bytes, found 67108865");
}
