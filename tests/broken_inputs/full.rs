//! A disk that is full: one message, and what was begun is gone.

use crate::scene::{Said, Scene};

/// Files of at most so many blocks: what follows fails as on a full disk, in the middle of a file.
const LIMITED: &str = r#"trap "" XFSZ; ulimit -f BLOCKS; exec "$@""#;
/// A file system of its own with room for 300 kB, where this user may make one; 77 where not. Prints what is left there.
const FULL: &str = r#"
    mkdir full
    exec unshare -rm sh -c '
        mount -t tmpfs -o size=300k none full || exit 77
        "$@"; code=$?; ls -A full; exit $code
    ' sh "$@"
"#;

/// The message with the name of the unfinished output, which is another each time, as `PARTIAL`.
fn message(said: &Said) -> String {
    let words = said.stderr.lines().filter(|line| line.starts_with("error: ")).flat_map(|line| line.split('/'));
    words.map(|word| if word.contains(".partial-") { "PARTIAL" } else { word }).collect::<Vec<_>>().join("/")
}

#[test]
fn a_file_that_cannot_be_finished_ends_the_command_and_leaves_nothing() {
    let bundle = |scene: &Scene| assert_eq!(scene.run("cogvx-export CKPT -o BUNDLE --weights copy").code, Some(0));
    let cases = [
        (
            "cogvx-export CKPT -o OUT --weights copy",
            32,
            "error: `TMP/PARTIAL/text_encoder/model.onnx`: File too large (os error 27)",
        ),
        (
            "cogvx synth --config CKPT --output OUT",
            32,
            "error: `TMP/PARTIAL/tokenizer/spiece.model`: File too large (os error 27)",
        ),
        (
            "cogvx run BUNDLE -p fox --steps 2 -o OUT.npy",
            32,
            "error: cannot write `OUT.npy`: File too large (os error 27)",
        ),
        (
            "cogvx run BUNDLE -p fox --steps 2 -o OUT.gif",
            32,
            "error: cannot write `OUT.gif`: File too large (os error 27)",
        ),
        (
            "cogvx run BUNDLE -p fox --steps 2 -o OUT.png",
            32,
            "error: cannot encode `OUT.png`: File too large (os error 27)",
        ),
        (
            "cogvx run BUNDLE -p fox --steps 2 -o OUT.mp4",
            1,
            "error: cannot encode `OUT.mp4`: IO error: File too large (os error 27)",
        ),
        ("cogvx run BUNDLE -p fox --steps 2 -o OUT", 1, "error: cannot encode `OUT`: File too large (os error 27)"),
    ];
    let mut failures = vec![];
    for (line, blocks, expected) in cases {
        let scene = Scene::new("2b-fp32");
        bundle(&scene);
        let before = scene.listing();
        let said = scene.run_in_shell(&LIMITED.replace("BLOCKS", &i32::to_string(&blocks)), line);
        if (said.code, message(&said).as_str()) != (Some(2), expected) || scene.listing() != before {
            failures.push(format!("{line}: {:?} {}\n{:?}", said.code, said.stderr, scene.names()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_full_file_system_ends_the_export_and_is_left_empty() {
    let scene = Scene::new("2b-fp32");
    let said = scene.run_in_shell(FULL, "cogvx-export CKPT -o full/out --weights copy");
    if said.code == Some(77) || said.stderr.starts_with("unshare: ") {
        eprintln!("skipped: this user may not make a file system: {}", said.stderr);
        return;
    }
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(message(&said).ends_with(": No space left on device (os error 28)"), "{}", said.stderr);
    assert_eq!(said.stdout, "", "files left");
}
