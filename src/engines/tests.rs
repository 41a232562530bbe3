use std::fs::{self, File};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::key::tests::{key, key_for};
use super::*;
use crate::bundle::Bundle;
use crate::export::{ExportOptions, export};
use crate::pipeline::Pipeline;
use crate::runtime::{CudaOptions, Device, Engine, RtxOptions, Runtime, Setup, TensorRtOptions};

fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::at(&folder.path().join("engines"));
    (folder, store)
}

/// The key of another graph.
fn key_of(graph: &str) -> Key {
    Key { graph: graph.into(), ..key() }
}

/// Get or build with a builder that writes `text`; what was told on the way.
fn build(store: &Store, key: &Key, text: &str) -> Result<(Entry, Vec<Event>), EnginesError> {
    let mut events = vec![];
    let write = |folder: &Path| fs::write(folder.join("model.engine"), text).map_err(EnginesError::io(folder));
    let entry = store.get_or_build(key, &AtomicBool::new(false), |event| events.push(event), write)?;
    Ok((entry, events))
}

fn text(entry: &Entry) -> String {
    fs::read_to_string(entry.folder.join("model.engine")).expect("an engine")
}

/// Names of everything in the store but locks.
fn names(store: &Store) -> Vec<String> {
    let entries = fs::read_dir(store.folder()).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
    names.retain(|name| Path::new(name).extension().is_none());
    names.sort();
    names
}

#[test]
fn an_engine_is_built_once_and_found_by_its_key_alone() {
    let (_folder, store) = store();
    assert!(matches!(store.find(&key()), Ok(Found::Absent)));
    let (first, events) = build(&store, &key(), "one").expect("built");
    assert_eq!((text(&first).as_str(), events), ("one", vec![Event::Building]));
    assert_eq!((first.bytes, &first.files[..]), (3, &["model.engine".to_string()][..]));
    let (again, events) = build(&store, &key(), "two").expect("found");
    assert_eq!((text(&again).as_str(), events), ("one", vec![]));
    assert!(matches!(store.find(&key_of("other")), Ok(Found::Absent)));
    assert_eq!(text(&build(&store, &key_of("other"), "other").expect("built").0), "other");
    assert_eq!(store.list(true).expect("listed").len(), 2);
}

#[test]
fn what_is_damaged_or_foreign_is_never_loaded_but_built_anew() {
    type Damage = fn(&Store, &Path);
    let damages: [(&str, Damage); 9] = [
        ("`model.engine`: expected the hash", |_, entry| {
            fs::write(entry.join("model.engine"), "onE").expect("written");
        }),
        ("`model.engine`: expected 3 bytes, found 2", |_, entry| {
            fs::write(entry.join("model.engine"), "on").expect("written");
        }),
        ("`model.engine`: No such file", |_, entry| fs::remove_file(entry.join("model.engine")).expect("removed")),
        ("`more`: expected no such file", |_, entry| fs::write(entry.join("more"), "").expect("written")),
        ("it has no `entry.json`", |_, entry| fs::remove_file(entry.join("entry.json")).expect("removed")),
        ("`entry.json`: ", |_, entry| fs::write(entry.join("entry.json"), "{").expect("written")),
        ("it is the engine of something else", |store, entry| {
            let (other, _) = build(store, &key_of("other"), "other").expect("built");
            fs::remove_dir_all(entry).expect("removed");
            fs::rename(other.folder, entry).expect("moved");
        }),
        ("`entry.json`: expected format 1, found 2", |_, entry| {
            edit(entry, "\"format\": 1", "\"format\": 2");
        }),
        ("`entry.json`: expected names of files, found `../model.engine`", |_, entry| {
            edit(entry, "\"model.engine\"", "\"../model.engine\"");
        }),
    ];
    for (expected, damage) in damages {
        let (_folder, store) = store();
        let (entry, _) = build(&store, &key(), "one").expect("built");
        damage(&store, &entry.folder);
        match store.find(&key()) {
            Ok(Found::Damaged(why)) => assert!(why.starts_with(expected), "{why}"),
            found => panic!("{expected}: {found:?}"),
        }
        let listed = store.list(true).expect("listed");
        assert!(listed.iter().any(|listed| listed.name == key().hash() && listed.entry.is_err()), "{expected}");
        let (entry, events) = build(&store, &key(), "two").expect("built");
        assert!(matches!(&events[..], [Event::Damaged(_), Event::Building]), "{events:?}");
        assert_eq!(text(&entry), "two");
        assert!(store.list(true).expect("listed").iter().all(|listed| listed.entry.is_ok()), "{expected}");
    }
}

fn edit(entry: &Path, from: &str, to: &str) {
    let path = entry.join("entry.json");
    let json = fs::read_to_string(&path).expect("an entry");
    assert!(json.contains(from), "{json}");
    fs::write(path, json.replace(from, to)).expect("written");
}

#[test]
fn a_build_that_fails_or_is_interrupted_leaves_nothing() {
    let (_folder, store) = store();
    let stop = AtomicBool::new(false);
    let failed = store.get_or_build(
        &key(),
        &stop,
        |_| (),
        |folder| {
            fs::write(folder.join("half"), "ha").expect("written");
            Err(EnginesError::Build("no kernel".into()))
        },
    );
    assert_eq!(failed.expect_err("failed").to_string(), "no kernel");
    let nothing = store.get_or_build(&key(), &stop, |_| (), |_| Ok(()));
    assert!(matches!(nothing, Err(EnginesError::Nothing(_))));
    let stopped = store.get_or_build(
        &key(),
        &stop,
        |_| (),
        |folder| {
            stop.store(true, Ordering::SeqCst);
            fs::write(folder.join("model.engine"), "late").map_err(EnginesError::io(folder))
        },
    );
    assert!(matches!(stopped, Err(EnginesError::Interrupted)));
    assert_eq!(names(&store), Vec::<String>::new());
    assert_eq!(text(&build(&store, &key(), "one").expect("built").0), "one");
}

#[test]
fn of_many_builders_one_builds_and_the_others_take_what_it_built() {
    let (_folder, store) = store();
    let (builds, waits) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (start, stop) = (Barrier::new(6), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (store, start, stop, builds, waits) = (&store, &start, &stop, &builds, &waits);
            scope.spawn(move || {
                start.wait();
                let tell = |event| {
                    waits.fetch_add(usize::from(event == Event::Waiting), Ordering::SeqCst);
                };
                let entry = store.get_or_build(&key(), stop, tell, |folder| {
                    builds.fetch_add(1, Ordering::SeqCst);
                    // Long enough for all others to come.
                    std::thread::sleep(Duration::from_millis(300));
                    fs::write(folder.join("model.engine"), format!("by {number}")).map_err(EnginesError::io(folder))
                });
                assert!(text(&entry.expect("built")).starts_with("by "));
            });
        }
    });
    assert_eq!(builds.into_inner(), 1);
    assert_eq!(waits.into_inner(), 5);
    assert_eq!(names(&store), [key().hash()]);
}

#[test]
fn waiting_for_another_builder_can_be_interrupted() {
    let (_folder, store) = store();
    fs::create_dir_all(store.folder()).expect("made");
    let lock = File::create(store.folder().join(format!("{}.lock", key().hash()))).expect("made");
    lock.lock().expect("locked");
    let stop = AtomicBool::new(false);
    let tell = |event| {
        assert_eq!(event, Event::Waiting);
        stop.store(true, Ordering::SeqCst);
    };
    let waited = store.get_or_build(&key(), &stop, tell, |_| panic!("another one builds it"));
    assert!(matches!(waited, Err(EnginesError::Interrupted)));
}

#[test]
fn what_killed_builds_left_goes_and_what_is_being_built_stays() {
    let (_folder, store) = store();
    build(&store, &key(), "one").expect("built");
    let left = |key: &Key| format!(".building-{}-abc", key.hash());
    let (killed, busy) = (key_of("killed"), key_of("busy"));
    for key in [&killed, &busy] {
        fs::create_dir(store.folder().join(left(key))).expect("made");
        fs::write(store.folder().join(left(key)).join("half"), "half").expect("written");
    }
    let lock = File::create(store.folder().join(format!("{}.lock", busy.hash()))).expect("made");
    lock.lock().expect("locked");
    let told = store.gc(None, None, true).expect("told");
    assert_eq!(told, Removed { names: vec![left(&killed)], bytes: 4 });
    assert_eq!(names(&store).len(), 3);
    assert_eq!(store.gc(None, None, false).expect("removed"), told);
    assert_eq!(names(&store), {
        let mut kept = vec![left(&busy), key().hash()];
        kept.sort();
        kept
    });
    drop(lock);
    // The next build of the same engine clears away, too.
    build(&store, &busy, "two").expect("built");
    assert_eq!(names(&store).iter().filter(|name| name.starts_with('.')).count(), 0);
}

#[test]
fn garbage_is_what_is_damaged_unused_or_too_much_oldest_first() {
    let (_folder, store) = store();
    let keys = ["a", "b", "c", "d"].map(key_of);
    for (age, key) in (1..).zip(&keys) {
        let (entry, _) = build(&store, key, "1234567890").expect("built");
        let used = SystemTime::now() - Duration::from_hours(24 * age);
        let file = File::options().append(true).open(entry.folder.join("entry.json")).expect("opened");
        file.set_modified(used).expect("set");
    }
    fs::write(store.folder().join(keys[0].hash()).join("model.engine"), "cut").expect("written");
    let left = |store: &Store| {
        let there = names(store);
        keys.iter().map(|key| there.contains(&key.hash())).collect::<Vec<_>>()
    };
    // The damaged one, and the one that was not used for longest.
    store.gc(None, Some(Duration::from_hours(24 * 3 + 1)), false).expect("removed");
    assert_eq!(left(&store), [false, true, true, false]);
    // Finding one is using it.
    assert!(matches!(store.find(&keys[2]), Ok(Found::Ready(_))));
    assert_eq!(store.gc(Some(10), None, false).expect("removed").names, [keys[1].hash()]);
    assert_eq!(left(&store), [false, false, true, false]);
    assert_eq!(store.gc(Some(10), None, false).expect("removed"), Removed::default());
}

#[test]
fn of_engines_that_do_the_one_asked_for_first_is_taken_and_ranges_last() {
    let (_folder, store) = store();
    let chosen = |keys: &[Key]| store.choose(keys).expect("looked").map(|entry| text(&entry));
    let shapes = |frames: [u64; 3]| frames.map(|frames| format!("x:2x{frames}x60x90"));
    let key = |video: &str, frames: [u64; 3]| key_for(video, shapes(frames).each_ref().map(String::as_str));
    let wanted = [key("one", [9, 9, 9]), Key { precision: "other".into(), ..key("one", [9, 9, 9]) }];
    assert_eq!(chosen(&wanted), None);
    for (name, range) in [("wide", [1, 25, 25]), ("narrow", [5, 13, 13]), ("beside", [13, 25, 25])] {
        build(&store, &key(name, range), name).expect("built");
    }
    assert_eq!(chosen(&wanted).as_deref(), Some("narrow"));
    assert_eq!(chosen(&wanted[1..]), None);
    build(&store, &wanted[1], "second").expect("built");
    assert_eq!(chosen(&wanted).as_deref(), Some("second"));
    let (first, _) = build(&store, &wanted[0], "first").expect("built");
    assert_eq!(chosen(&wanted).as_deref(), Some("first"));
    // A damaged one is none.
    fs::write(first.folder.join("model.engine"), "fIrst").expect("written");
    assert_eq!(chosen(&wanted).as_deref(), Some("second"));
    for damaged in [&wanted[1], &key("narrow", [5, 13, 13])] {
        fs::write(store.folder().join(damaged.hash()).join("model.engine"), "damage").expect("written");
    }
    assert_eq!(chosen(&wanted).as_deref(), Some("wide"));
}

/// A bundle for TensorRT, opened on the processor.
fn pipeline(folder: &TempDir) -> Pipeline {
    let target = cogvx_graphs::pass::Target::TensorRt;
    let options = ExportOptions { target, precision: Some(cogvx_graphs::DType::F16), ..ExportOptions::default() };
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/2b-fp32");
    let path = folder.path().join("bundle");
    export(&checkpoint, &path, &options, |_| {}).expect("a sound checkpoint");
    let runtime = Runtime::start(Device::Cpu, 1).expect("a processor");
    Pipeline::open(Bundle::open(&path).expect("a bundle"), runtime).expect("a bundle")
}

fn builder<'a>(pipeline: &'a Pipeline, store: &'a Store, stop: &'a AtomicBool) -> Builder<'a> {
    let setup = Setup::from(Device::TensorRt);
    Builder { bundle: pipeline.bundle(), runtime: pipeline.runtime(), store, setup, gpu: key().gpu, stop }
}

#[test]
fn keys_of_forms_differ_in_what_an_engine_of_that_form_depends_on() {
    let (folder, store) = store();
    let pipeline = pipeline(&folder);
    let stop = AtomicBool::new(false);
    let here = builder(&pipeline, &store, &stop);
    let runs = runs(&pipeline, [9, 32, 48].into()).swap_remove(1);
    let keys = |builder: &Builder<'_>| builder.keys(&runs, &Form::ALL).expect("keys");
    let own = keys(&here);
    let names: std::collections::BTreeSet<_> = own.iter().map(Key::hash).collect();
    assert_eq!(names.len(), 4);
    assert_eq!(own.iter().map(Key::is_stripped).collect::<Vec<_>>(), [false, true, false, true]);
    let text = format!("{own:?}");
    assert!(!text.contains(&folder.path().display().to_string()) && !text.contains("device_id"), "{text}");
    // Of a GPU and a driver an engine for all GPUs knows nothing; libraries count for every engine.
    let other = Gpu { name: "L40".into(), architecture: "8.9".into(), driver: "590.1".into() };
    let cuda = CudaOptions { device: 3, ..CudaOptions::default() };
    let setup = Setup::TensorRt(Box::new(TensorRtOptions { cuda: cuda.clone(), ..TensorRtOptions::default() }));
    let there = keys(&Builder { gpu: other, setup, ..builder(&pipeline, &store, &stop) });
    let same: Vec<_> = own.iter().zip(&there).map(|(own, there)| own == there).collect();
    assert_eq!(same, [false, false, true, true]);
    assert!(own[2].libraries.contains_key("onnxruntime"));
    let old = Builder { gpu: Gpu { architecture: "7.5".into(), ..key().gpu }, ..builder(&pipeline, &store, &stop) };
    assert!(matches!(old.keys(&runs, &Form::ALL), Err(EnginesError::Architecture(_))));
    assert!(matches!(old.find(&runs), Ok(None)));

    // TensorRT-RTX's is for an architecture that it knows, or else for the GPU, and of one form.
    let rtx = |architecture: &str, number: &str| {
        let gpu = Gpu { name: number.into(), architecture: architecture.into(), driver: number.into() };
        let setup = Setup::Rtx(Box::new(RtxOptions { cuda: cuda.clone(), ..RtxOptions::default() }));
        let builder = Builder { setup, gpu, ..builder(&pipeline, &store, &stop) };
        assert!(matches!(builder.keys(&runs, &Form::ALL), Err(EnginesError::Form)));
        builder.keys(&runs, &[Form::default()]).expect("keys").swap_remove(0)
    };
    assert_eq!(rtx("8.9", "one"), rtx("8.9", "two"));
    assert_ne!(rtx("8.9", "one"), rtx("8.6", "one"));
    assert_ne!(rtx("12.3", "one"), rtx("12.3", "two"));
    let key = rtx("8.9", "one");
    assert_eq!((key.provider.as_str(), key.options["nv_target_sm"].as_str()), ("tensorrt-rtx", "sm89"));
    assert!(key.holds(&rtx("8.9", "two")));
}

#[test]
fn a_run_takes_an_engine_of_its_size_or_of_a_range_with_its_weights() {
    let (folder, store) = store();
    let pipeline = pipeline(&folder);
    let stop = AtomicBool::new(false);
    let builder = builder(&pipeline, &store, &stop);
    let range = Sizes { least: [9, 32, 48], greatest: [49, 64, 96] };
    let stored = |runs: &Runs, form: Form, text: &str| {
        let key = builder.keys(runs, &[form]).expect("keys").swap_remove(0);
        build(&store, &key, text).expect("built")
    };
    let plain = Form::default();
    for runs in runs(&pipeline, range) {
        stored(&runs, plain, "range");
    }
    let found = |size: [usize; 3]| {
        let found = runs(&pipeline, size.into()).into_iter().map(|runs| builder.find(&runs).expect("looked"));
        found.map(|ready| ready.map(|ready| text(&ready.entry)).unwrap_or_default()).collect::<Vec<_>>()
    };
    let graphs =
        ["text_encoder/model.onnx", "transformer/model.onnx", "vae_decoder/first.onnx", "vae_decoder/next.onnx"];
    for size in [[9, 32, 48], [13, 48, 64], [17, 64, 48], [45, 32, 96], [49, 64, 96]] {
        let expected = if size[0] == 9 { &graphs[..3] } else { &graphs };
        let files: Vec<_> = runs(&pipeline, size.into()).iter().map(Runs::file).collect();
        assert_eq!(files, expected, "{size:?}");
        assert!(found(size).iter().all(|text| text == "range"), "{size:?}: {:?}", found(size));
    }
    for size in [[53, 64, 96], [9, 16, 48], [9, 32, 112]] {
        // The text encoder knows no size.
        assert!(found(size)[1..].iter().any(String::is_empty), "{size:?}: {:?}", found(size));
        assert_eq!(found(size)[1], "", "{size:?}");
    }
    // One frame is another graph of the VAE's than any range has.
    assert_eq!(found([1, 32, 48])[2], "");

    let one = runs(&pipeline, [13, 48, 64].into()).swap_remove(1);
    stored(&one, Form { stripped: true, ..plain }, "stripped");
    let ready = builder.find(&one).expect("looked").expect("there");
    let model = ready.entry.folder.join("model.onnx");
    assert_eq!(text(&ready.entry), "stripped");
    assert_eq!(ready.engine, Engine { model, weights_from: Some(pipeline.bundle().path("transformer")) });
    stored(&one, plain, "plain");
    let ready = builder.find(&one).expect("looked").expect("there");
    assert_eq!((text(&ready.entry).as_str(), ready.engine.weights_from), ("plain", None));
}
