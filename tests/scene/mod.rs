//! A folder of its own for every test: a copy of a fixture checkpoint, and the real binaries run on it.
#![allow(dead_code)] // No test uses all of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest a command may take here: one that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A temporary folder with `ckpt`, a copy of a fixture; commands and messages call its paths by their placeholders.
pub struct Scene {
    folder: tempfile::TempDir,
    root: PathBuf,
}

/// What a command said.
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Tensors of a safetensors file: dtype, shape, bytes.
pub type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

impl Scene {
    /// Placeholders in commands and messages, and the names they stand for.
    const PLACES: [(&str, &str); 7] = [
        ("CKPT", "ckpt"),
        ("BUNDLE", "bundle"),
        ("REFERENCE", "reference.safetensors"),
        ("TABLE", "table.safetensors"),
        ("STATE", "run.state"),
        ("PROMPTS", "prompts.jsonl"),
        ("OUT", "out"),
    ];

    pub fn new(fixture: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().canonicalize().expect("it is there");
        let scene = Self { folder, root };
        copy(&fixtures().join(fixture), &scene.path("CKPT"));
        scene
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Where `text` is: a placeholder, a path below one, or a path in the folder.
    pub fn path(&self, text: &str) -> PathBuf {
        self.root.join(Self::PLACES.iter().fold(text.to_string(), |text, (place, name)| text.replace(place, name)))
    }

    pub fn bytes(&self, file: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        edit(&mut bytes);
        self.write(file, &bytes);
    }

    pub fn write(&self, file: &str, bytes: impl AsRef<[u8]>) {
        // A new file: the old one may have other names.
        let _ = fs::remove_file(self.path(file));
        fs::write(self.path(file), bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
    }

    pub fn json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        self.bytes(file, |bytes| {
            let mut value = serde_json::from_slice(bytes).expect("JSON");
            edit(&mut value);
            *bytes = value.to_string().into_bytes();
        });
    }

    /// Set a field of a JSON file.
    pub fn set(&self, file: &str, field: &str, value: impl Into<Value>) {
        self.json(file, |json| json[field] = value.into());
    }

    /// Change the header of a safetensors file and nothing else.
    pub fn header(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        self.bytes(file, |bytes| {
            let (mut header, data) = split(bytes);
            edit(&mut header);
            *bytes = safetensors(&header.to_string(), data);
        });
    }

    /// Change the tensors of a safetensors file and write it anew.
    pub fn tensors(&self, file: &str, edit: impl FnOnce(&mut Tensors)) {
        let mut tensors = read_tensors(&self.path(file));
        edit(&mut tensors);
        self.write(file, tensors_file(&tensors, &BTreeMap::new()));
    }

    pub fn remove(&self, path: &str) {
        let path = self.path(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("it is there");
    }

    pub fn folder(&self, path: &str) {
        fs::create_dir_all(self.path(path)).expect("a folder");
    }

    pub fn fifo(&self, path: &str) {
        let _ = fs::remove_file(self.path(path));
        assert!(Command::new("mkfifo").arg(self.path(path)).status().expect("mkfifo").success());
    }

    /// Run a command line in the folder; its first word is a binary of this package.
    pub fn run(&self, line: &str) -> Said {
        self.run_command(self.command(line))
    }

    /// Run it by `script`, where `"$@"` is the command, in the shell.
    pub fn run_in_shell(&self, script: &str, line: &str) -> Said {
        let inner = self.command(line);
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
        command.current_dir(&self.root).stdin(Stdio::null());
        self.run_command(command)
    }

    fn run_command(&self, mut command: Command) -> Said {
        let (mut stdout, mut stderr) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let (out, err) = (stdout.try_clone().expect("a handle"), stderr.try_clone().expect("a handle"));
        let mut child = command.stdout(out).stderr(err).spawn().expect("it starts");
        let status = wait(&mut child, PATIENCE);
        let read = |file: &mut fs::File| {
            let mut text = String::new();
            std::io::Seek::rewind(file).and_then(|()| file.read_to_string(&mut text)).expect("UTF-8");
            self.shown(&text)
        };
        Said { code: status.and_then(|s| s.code()), stdout: read(&mut stdout), stderr: read(&mut stderr) }
    }

    /// The command of a line such as `cogvx run BUNDLE -p fox -o OUT.gif`.
    pub fn command(&self, line: &str) -> Command {
        let mut words = line.split(' ');
        let mut command = Command::new(match words.next() {
            Some("cogvx-export") => env!("CARGO_BIN_EXE_cogvx-export"),
            Some("cogvx") => env!("CARGO_BIN_EXE_cogvx"),
            other => panic!("no such binary: {other:?}"),
        });
        let is_place = |word: &str| Self::PLACES.iter().any(|(place, _)| word.starts_with(place));
        for word in words {
            if is_place(word) {
                command.arg(self.path(word))
            } else {
                command.arg(word)
            };
        }
        command.current_dir(&self.root).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// `text` with placeholders for the paths.
    fn shown(&self, text: &str) -> String {
        let root = self.root.display().to_string();
        let places = Self::PLACES.iter();
        let text = places.fold(text.to_string(), |t, (place, name)| t.replace(&format!("{root}/{name}"), place));
        text.replace(&root, "TMP")
    }

    /// Everything in the folder: kind and contents by path.
    pub fn listing(&self) -> BTreeMap<PathBuf, (String, Vec<u8>)> {
        let mut listing = BTreeMap::new();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder").flatten() {
                let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
                let contents = if kind.is_file() { fs::read(&path).expect("readable") } else { vec![] };
                if kind.is_dir() {
                    folders.push(path.clone());
                }
                listing.insert(path, (format!("{kind:?}"), contents));
            }
        }
        listing
    }

    /// Names in the folder.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).expect("a folder").flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// How `child` ended; one that does not end is killed, and it is none.
pub fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return Some(status);
        }
        if since.elapsed() > patience {
            child.kill().and_then(|()| child.wait()).expect("a child");
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() { copy(&from, &to) } else { fs::copy(&from, &to).map(drop).expect("copied") }
    }
}

/// A safetensors file of this header and data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn split(bytes: &[u8]) -> (Value, &[u8]) {
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a length");
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("small"));
    (serde_json::from_slice(header).expect("a header"), data)
}

/// The tensors of a safetensors file.
pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (header, data) = split(&bytes);
    let entries = header.as_object().expect("an object").iter().filter(|(name, _)| *name != "__metadata__");
    let size = |value: &Value| usize::try_from(value.as_u64().expect("a number")).expect("small");
    let read = |(name, entry): (&String, &Value)| {
        let shape = entry["shape"].as_array().expect("a list").iter().map(size).collect();
        let data = data[size(&entry["data_offsets"][0])..size(&entry["data_offsets"][1])].to_vec();
        (name.clone(), (entry["dtype"].as_str().expect("a name").to_string(), shape, data))
    };
    entries.map(read).collect()
}

/// A safetensors file of these tensors.
pub fn tensors_file(tensors: &Tensors, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let (mut header, mut data) = (json!({"__metadata__": metadata}), vec![]);
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header[name.as_str()] = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        data.extend(bytes);
    }
    safetensors(&header.to_string(), &data)
}
