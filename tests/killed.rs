//! Exports that are killed and runs that are interrupted: a bundle is complete or absent. Weights that change meanwhile.
#![cfg(unix)]

mod scene;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cogvx::bundle::{Bundle, Origin};
use serde_json::json;

use scene::{Scene, wait};

/// Rows of the large token table: 320 MB of zeros.
const ROWS: usize = 4_000_000;
const EXPORT: &str = "cogvx-export CKPT -o OUT --weights copy";
const PATIENCE: Duration = Duration::from_mins(1);

/// A checkpoint that takes a while to copy.
fn large() -> Scene {
    const WEIGHTS: &str = "CKPT/text_encoder/model.safetensors";
    let scene = Scene::new("2b-fp32");
    scene.set("CKPT/text_encoder/config.json", "vocab_size", ROWS);
    let (mut begin, mut length) = (0, 0);
    scene.header(WEIGHTS, |header| {
        let table = &mut header["shared.weight"];
        begin = table["data_offsets"][0].as_u64().expect("a number");
        length = table["shape"][1].as_u64().expect("a number") * 4 * ROWS as u64;
        table["shape"][0] = json!(ROWS);
        table["data_offsets"][1] = json!(begin + length);
    });
    let file = fs::OpenOptions::new().write(true).open(scene.path(WEIGHTS)).expect("there");
    let mut start = [0; 8];
    std::io::Read::read_exact(&mut fs::File::open(scene.path(WEIGHTS)).expect("there"), &mut start).expect("a length");
    file.set_len(8 + u64::from_le_bytes(start) + begin + length).expect("a sparse file");
    scene
}

/// Whether an unfinished bundle is there, with at least so many bytes of the large file.
fn has_copied(scene: &Scene, bytes: u64) -> bool {
    let partial = scene.names().into_iter().filter(|name| name.starts_with(".out.partial-"));
    let mut sizes = partial.map(|name| fs::metadata(scene.path(&name).join("text_encoder/model.safetensors")));
    sizes.any(|file| file.is_ok_and(|file| file.len() >= bytes))
}

/// Wait until `event`, or until the child is done.
fn watch(child: &mut Child, event: impl Fn() -> bool) {
    let since = Instant::now();
    while !event() && child.try_wait().expect("a child").is_none() {
        assert!(since.elapsed() < PATIENCE, "it hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kill exports of `line` at several moments, and call `after` after each.
fn kill(scene: &Scene, line: &str, after: impl Fn()) {
    let mut killed_while_copying = 0;
    for moment in [None, Some(0), Some(1), Some(1 << 26)] {
        // What the one before left would be taken for this one's.
        for name in scene.names().iter().filter(|name| name.starts_with(".out.partial-")) {
            scene.remove(name);
        }
        let mut child = scene.command(line).spawn().expect("it starts");
        match moment {
            None => std::thread::sleep(Duration::from_millis(3)),
            Some(bytes) => watch(&mut child, || has_copied(scene, bytes)),
        }
        child.kill().expect("a child");
        let status = wait(&mut child, PATIENCE).expect("killed");
        killed_while_copying += usize::from(!status.success() && has_copied(scene, 0));
        after();
    }
    assert!(killed_while_copying > 0, "each export was over before it was killed");
}

#[test]
fn a_killed_export_leaves_no_bundle_and_the_next_one_succeeds() {
    let scene = large();
    kill(&scene, EXPORT, || {
        if scene.path("OUT").exists() {
            Bundle::open(&scene.path("OUT")).expect("complete").check(true).expect("whole");
            scene.remove("OUT");
        }
    });
    let said = scene.run(EXPORT);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    Bundle::open(&scene.path("OUT")).expect("complete").check(true).expect("whole");
}

#[test]
fn a_killed_replacement_leaves_a_complete_bundle() {
    let scene = large();
    let said = scene.run("cogvx-export CKPT -o OUT");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let line = format!("{EXPORT} --overwrite");
    kill(&scene, &line, || {
        Bundle::open(&scene.path("OUT")).expect("complete").check(true).expect("whole");
    });
    let said = scene.run(&line);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    Bundle::open(&scene.path("OUT")).expect("complete").check(true).expect("whole");
}

/// Kill `line` at `times` moments over the time it takes, and call `after` with each.
fn kill_anytime(scene: &Scene, line: &str, times: u32, mut after: impl FnMut(Duration)) {
    // The shortest of some: a moment after the end kills nothing.
    let run = || {
        let since = Instant::now();
        assert_eq!(scene.run(line).code, Some(0), "{line}");
        since.elapsed()
    };
    let mut whole = Duration::MAX;
    for _ in 0..3 {
        whole = whole.min(run());
        after(whole);
    }
    let (mut killed, mut done) = (0, 0);
    for moment in 0..times {
        let moment = whole * (moment * 7 % times) / times;
        let mut child = scene.command(line).spawn().expect("it starts");
        std::thread::sleep(moment);
        child.kill().expect("a child");
        let status = wait(&mut child, PATIENCE).expect("killed");
        *(if status.success() { &mut done } else { &mut killed }) += 1;
        after(moment);
        for name in scene.names().iter().filter(|name| name.contains(".partial-")) {
            scene.remove(name);
        }
    }
    assert!(killed > times / 3, "{killed} killed, {done} done before");
}

#[test]
fn a_replacement_killed_at_any_moment_leaves_the_old_bundle_or_the_new_one() {
    let scene = Scene::new("2b-fp32");
    // What one export linked the next one copies, so that each file says whose it is.
    for (old, new, weights) in [(Origin::Linked, Origin::Copied, "copy"), (Origin::Copied, Origin::Linked, "link")] {
        let other = if weights == "copy" { "link" } else { "copy" };
        let restore = || {
            let said = scene.run(&format!("cogvx-export CKPT -o OUT --overwrite --weights {other}"));
            assert_eq!(said.code, Some(0), "{}", said.stderr);
        };
        let line = format!("cogvx-export CKPT -o OUT --overwrite --weights {weights}");
        let mut found = [0, 0];
        kill_anytime(&scene, &line, 25, |moment| {
            let bundle = Bundle::open(&scene.path("OUT")).unwrap_or_else(|e| panic!("{moment:?}: {e}"));
            bundle.check(true).unwrap_or_else(|e| panic!("{moment:?}: {e}"));
            let files = bundle.manifest().files.iter().filter(|f| f.path.ends_with(".safetensors"));
            let origins: Vec<_> = files.map(|f| f.origin).collect();
            assert!(origins.iter().all(|o| *o == origins[0]), "{moment:?}: {origins:?}");
            assert!([old, new].contains(&origins[0]), "{moment:?}: {origins:?}");
            found[usize::from(origins[0] == new)] += 1;
            restore();
        });
        assert!(found[0] > 0 && found[1] > 0, "old and new: {found:?}");
    }
}

#[test]
fn a_synth_killed_at_any_moment_leaves_a_whole_checkpoint_or_none() {
    let scene = Scene::new("2b-fp32");
    let mut whole = None;
    kill_anytime(&scene, "cogvx synth --config CKPT --output OUT", 25, |moment| {
        if !scene.path("OUT").exists() {
            return;
        }
        let mut files = scene.listing();
        files.retain(|path, _| path.starts_with(scene.path("OUT")));
        // The first one was not killed.
        let whole = whole.get_or_insert_with(|| files.clone());
        assert!(*whole == files, "{moment:?}: {:?}", files.keys());
        scene.remove("OUT");
    });
}

#[test]
fn a_weight_file_that_shrinks_while_it_is_copied_or_converted_is_an_error() {
    for line in [EXPORT, "cogvx-export CKPT -o OUT --precision fp16"] {
        let scene = large();
        let mut command = scene.command(line);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let begun = |name: &String| {
            let folder = scene.path(name).join("text_encoder");
            name.starts_with(".out.partial-")
                && ["model.safetensors", "rewritten.safetensors"].iter().any(|file| folder.join(file).exists())
        };
        watch(&mut child, || scene.names().iter().any(begun));
        let weights = scene.path("CKPT/text_encoder/model.safetensors");
        fs::OpenOptions::new().write(true).open(weights).and_then(|file| file.set_len(1 << 20)).expect("there");
        let output = child.wait_with_output().expect("a child");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let error = said.lines().find(|line| line.starts_with("error: ")).expect("a message");
        assert!(error.contains("text_encoder/model.safetensors`: expected 32"), "{error}");
        assert_eq!(scene.names(), ["ckpt"]);
    }
}

fn interrupt(child: &Child) {
    signal(child, "-INT");
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill").success());
}

/// Start `line` and read what it says up to a line that begins with `word`; gives it with what it says then.
fn started(scene: &Scene, line: &str, word: &str) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child = scene.command(line).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map(|line| line.expect("UTF-8"));
    let found = lines.find(|line| line.starts_with(word));
    assert!(found.is_some(), "`{line}` never says `{word}`");
    (child, lines)
}

/// Interrupt `line` when it says `word`, and give the last line that it says then.
fn interrupted(scene: &Scene, line: &str, word: &str) -> String {
    let (mut child, lines) = started(scene, line, word);
    interrupt(&child);
    let last = lines.last().unwrap_or_default();
    let status = wait(&mut child, PATIENCE).expect("it does not hang");
    assert_eq!(status.code(), Some(130), "{last}");
    last
}

#[test]
fn ctrl_c_during_an_export_leaves_nothing() {
    let scene = large();
    let mut child = scene.command(EXPORT).spawn().expect("it starts");
    watch(&mut child, || has_copied(&scene, 0));
    interrupt(&child);
    let status = wait(&mut child, PATIENCE).expect("it does not hang");
    assert_eq!(status.code(), Some(130));
    assert_eq!(scene.names(), ["ckpt"]);
}

#[test]
fn ctrl_c_while_an_export_measures_leaves_nothing() {
    let scene = Scene::new("2b-fp32");
    // A size that takes a while.
    let line = "cogvx-export CKPT -o OUT --quantize int8 --shapes 17x256x256";
    assert_eq!(interrupted(&scene, line, "measuring "), "error: interrupted");
    assert_eq!(scene.names(), ["ckpt"]);
}

#[test]
fn ctrl_c_and_sigterm_during_a_run_leave_nothing() {
    for name in ["-INT", "-TERM"] {
        let scene = Scene::new("2b-fp32");
        let (mut child, lines) = started(&scene, "cogvx run CKPT -p fox --steps 1000 -o OUT.gif", "step ");
        let during: Vec<_> = scene.names().into_iter().filter(|name| name.starts_with(".cogvx-run-")).collect();
        assert_eq!(during.len(), 1, "the bundle made for the occasion");
        signal(&child, name);
        let rest: Vec<_> = lines.filter(|line| !line.starts_with("step ")).collect();
        let status = wait(&mut child, PATIENCE).expect("it does not hang");
        assert_eq!((status.code(), rest), (Some(130), vec!["error: interrupted".to_string()]), "{name}");
        assert_eq!(scene.names(), ["ckpt"], "{name}");
    }
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_video() {
    for sampler in ["ddim", "dpm"] {
        let scene = Scene::new("2b-fp32");
        let line = format!("cogvx run CKPT -p fox --frames 33 --steps 300 --scheduler {sampler} -o OUT.npy");
        assert_eq!(scene.run(&line).code, Some(0));
        let whole = fs::read(scene.path("OUT.npy")).expect("a video");
        scene.remove("OUT.npy");
        let said = interrupted(&scene, &format!("{line} --save-state STATE"), "step 2");
        let state = scene.path("STATE").display().to_string();
        assert!(said.starts_with("error: interrupted after step "), "{said}");
        let how = format!(
            " of 300: the same command with `--resume {state}` in place of `--save-state {state}` goes on from there"
        );
        assert!(said.ends_with(&how), "{said}");
        assert_eq!(scene.names(), ["ckpt", "run.state"]);
        let again = interrupted(&scene, &format!("{line} --resume STATE"), "step ");
        assert!(again.ends_with(" of 300: the same command goes on from there"), "{again}");
        let said = scene.run(&format!("{line} --resume STATE"));
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert!(!said.stderr.contains("step 1/300"), "it begins again: {}", said.stderr);
        assert!(fs::read(scene.path("OUT.npy")).expect("a video") == whole, "{sampler}");
        // What it takes to go on goes with the reason for it.
        assert_eq!(scene.names(), ["ckpt", "out.npy"]);
    }
}

#[test]
fn an_interrupted_batch_goes_on_and_makes_no_video_twice() {
    let scene = Scene::new("2b-fp32");
    // The last one takes a while to decode.
    let prompts = [("fox", 9), ("boat", 9), ("tree", 193)].map(|(prompt, frames)| {
        json!({"prompt": prompt, "frames": frames, "output": format!("{prompt}.npy")}).to_string()
    });
    scene.write("PROMPTS", prompts.join("\n"));
    let line = "cogvx run CKPT --prompts PROMPTS --steps 100 -o OUT";
    let said = scene.run(line);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let videos = || ["fox", "boat", "tree"].map(|name| fs::read(scene.path(&format!("OUT/{name}.npy"))).ok());
    let whole = videos();
    scene.remove("OUT");
    let said = interrupted(&scene, &format!("{line} --save-state STATE"), "step 2/100 of video 2/3");
    assert!(said.contains("the same command with `--resume "), "{said}");
    assert_eq!(scene.names(), ["ckpt", "prompts.jsonl", "run.state"]);
    let said = interrupted(&scene, &format!("{line} --resume STATE"), "frame 9/9 of video 2/3");
    assert!(said.ends_with("the same command goes on from there"), "{said}");
    let modified = |name| fs::metadata(scene.path(&format!("OUT/{name}.npy"))).and_then(|file| file.modified()).ok();
    let before = ["fox", "boat"].map(modified);
    let said = scene.run(&format!("{line} --resume STATE"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let shown =
        "OUT/fox.npy: there already\nOUT/boat.npy: there already\nOUT/tree.npy: 193 frames of 32x32\n3 of 3 videos\n";
    assert_eq!(said.stdout, shown);
    assert!(before == ["fox", "boat"].map(modified) && before[1].is_some() && videos() == whole);
    assert_eq!(scene.names(), ["ckpt", "out", "prompts.jsonl"]);
}

#[test]
fn what_killed_runs_leave_is_swept_and_living_runs_are_spared() {
    let scene = Scene::new("2b-fp32");
    // Long enough for a whole run beside it, however busy the machine is.
    let line = "cogvx run CKPT -p fox --frames 193 --steps 1000 -o OUT.gif";
    let folders = || scene.names().into_iter().filter(|name| name.starts_with(".cogvx-run-")).collect::<Vec<_>>();
    let (mut killed, _lines) = started(&scene, line, "step ");
    let left = folders();
    killed.kill().and_then(|()| killed.wait()).expect("a child");
    assert_eq!((left.len(), folders()), (1, left.clone()), "what was killed leaves its folder");
    let (mut living, lines) = started(&scene, line, "step ");
    let spared = folders();
    assert!(spared.len() == 1 && spared != left, "{left:?} {spared:?}");
    // Nobody can tell whose a folder without a lock is.
    scene.folder(".cogvx-run-unknown");
    let said = scene.run("cogvx run CKPT -p fox --steps 1 -o OUT.npy");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(folders().len(), 2, "{:?}", folders());
    interrupt(&living);
    drop(lines.last());
    assert_eq!(wait(&mut living, PATIENCE).expect("it does not hang").code(), Some(130));
    assert_eq!(folders(), [".cogvx-run-unknown"]);
}

#[test]
fn output_that_nobody_reads_is_no_error() {
    for line in ["cogvx-export CKPT -o OUT", "cogvx run CKPT -p fox --steps 2 -o OUT.npy"] {
        let scene = Scene::new("2b-fp32");
        let mut child = scene.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        drop((child.stdout.take(), child.stderr.take()));
        let status = wait(&mut child, PATIENCE).expect("it does not hang");
        assert_eq!(status.code(), Some(0), "{line}");
        assert_eq!(scene.names().len(), 2, "{line}");
    }
}
