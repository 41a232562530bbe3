//! `cogvx calibrate`: tables that are merged, gone on with, made with LoRAs, and what becomes of one when it is killed.
#![cfg(unix)]

mod scene;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use cogvx_calibration::table::Table;

use scene::{Scene, wait};

/// A command that must succeed.
fn done(scene: &Scene, line: &str) {
    let said = scene.run(line);
    assert_eq!(said.code, Some(0), "{line}: {}", said.stderr);
}

fn table(scene: &Scene, name: &str) -> Table {
    Table::open(&scene.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn merged_tables_know_what_each_has_seen() {
    let scene = Scene::new("2b-fp32");
    for (name, seed) in [("a", 0), ("b", 5), ("both", 0)] {
        done(&scene, &format!("cogvx calibrate CKPT --output {name} --samples 1 --steps 3 --ranges 2 --seed {seed}"));
    }
    done(&scene, "cogvx calibrate CKPT --output both --resume --samples 1 --steps 3 --ranges 2 --seed 5");
    done(&scene, "cogvx calibrate CKPT --output merged --merge a --merge b");
    let [a, b, both, merged] = ["a", "b", "both", "merged"].map(|name| table(&scene, name));
    assert_eq!(merged.runs, [a.runs.clone(), b.runs.clone()].concat());
    assert_eq!((&merged.runs, &merged.layers), (&both.runs, &both.layers));
    for (name, place) in &merged.places {
        let [a, b, both] = [&a, &b, &both].map(|table| &table.places[name]);
        // Bounds are those of both runs in one table; so are counts, but for the width of their bins.
        assert_eq!([&place.least, &place.greatest], [&both.least, &both.greatest], "{name}");
        assert_ne!([&place.least, &place.greatest], [&a.least, &a.greatest], "{name}");
        assert_eq!([place.seen, place.histogram.total()], [a.seen + b.seen, both.histogram.total()], "{name}");
        assert_eq!(place.rows.len(), both.rows.len(), "{name}");
    }
    // Into what is there.
    done(&scene, "cogvx calibrate CKPT --output a --resume --merge b");
    assert_eq!(table(&scene, "a").places, merged.places);
    done(
        &scene,
        "cogvx-export CKPT -o OUT --components transformer --quantize int8-static --prefer size --calibration merged",
    );
}

#[test]
fn a_table_made_with_a_lora_is_for_exports_with_it() {
    let scene = Scene::new("2b-fp32");
    fs::copy(scene::fixtures().join("lora.safetensors"), scene.path("lora")).expect("copied");
    for (name, lora) in [("plain", ""), ("TABLE", " --lora lora:2")] {
        done(&scene, &format!("cogvx calibrate CKPT --output {name} --samples 1 --steps 2{lora}"));
    }
    let [plain, with] = ["plain", "TABLE"].map(|name| table(&scene, name));
    let place = "transformer/transformer_blocks.1.attn1.to_q.weight";
    assert_ne!(plain.places[place].least, with.places[place].least);
    let export = "cogvx-export CKPT -o OUT --components transformer --quantize int8 --prefer size --calibration TABLE";
    done(&scene, &format!("{export} --lora lora:2"));
    for other in ["", " --lora lora", " --lora lora:2 --lora lora"] {
        let said = scene.run(&format!("{export}{other} --overwrite"));
        assert_eq!(said.code, Some(2), "{other}");
        assert!(said.stderr.contains("expected a table of the checkpoint with the fingerprint"), "{}", said.stderr);
    }
}

#[test]
fn a_table_knows_the_images_it_has_seen() {
    let scene = Scene::new("1.5-i2v");
    for (name, from) in [("a.png", "1.5-i2v-even-input.png"), ("b.png", "1.5-i2v-padded-input.png")] {
        fs::copy(scene::fixtures().join("references").join(from), scene.path(name)).expect("copied");
    }
    let hash = |name: &str| Some(cogvx::picture::hash(&scene.path(name)).expect("an image"));
    let images = |name: &str| table(&scene, name).runs.into_iter().map(|run| run.image).collect::<Vec<_>>();
    let calibrate = "cogvx calibrate CKPT --steps 1 --output";
    done(&scene, &format!("{calibrate} TABLE --samples 3 --image a.png --image b.png"));
    assert_eq!(images("TABLE"), [hash("a.png"), hash("b.png"), hash("a.png")]);
    assert_ne!(hash("a.png"), hash("b.png"));
    // The same from the lines of a file, whatever the images are called.
    fs::copy(scene.path("a.png"), scene.path("other.png")).expect("copied");
    let prompts: Vec<_> = table(&scene, "TABLE").runs.into_iter().map(|run| run.prompt).collect();
    let line = |i: usize, image: &str| serde_json::json!({"prompt": prompts[i], "image": image});
    let lines = [line(0, "other.png"), line(1, "b.png"), line(2, "a.png")].map(|line| line.to_string());
    scene.write("PROMPTS", lines.join("\n"));
    let seen = table(&scene, "TABLE");
    done(&scene, &format!("{calibrate} TABLE --resume --prompts PROMPTS"));
    assert_eq!(table(&scene, "TABLE"), seen);
    done(&scene, &format!("{calibrate} lines --prompts PROMPTS"));
    assert_eq!(table(&scene, "lines"), seen);
    // Another image is something to be seen, and makes another table.
    done(&scene, &format!("{calibrate} TABLE --resume --samples 1 --image b.png"));
    assert_eq!(images("TABLE")[3..], [hash("b.png")]);
    assert_ne!(table(&scene, "TABLE").places, seen.places);
}

#[test]
fn a_table_is_readable_as_any_new_file() {
    let scene = Scene::new("2b-fp32");
    done(&scene, "cogvx calibrate CKPT --output TABLE --samples 1 --steps 1");
    scene.write("new", "");
    let [table, new] = ["TABLE", "new"].map(|name| fs::metadata(scene.path(name)).expect("there").permissions().mode());
    assert_eq!(table, new);
}

#[test]
fn a_calibration_killed_at_any_moment_leaves_the_old_table_or_a_newer_one() {
    const TIMES: u32 = 12;
    let scene = Scene::new("2b-fp32");
    let calibrate = |samples| format!("cogvx calibrate CKPT --output TABLE --resume --samples {samples} --steps 2");
    done(&scene, &calibrate(1));
    let old = fs::read(scene.path("TABLE")).expect("a table");
    let since = std::time::Instant::now();
    done(&scene, &calibrate(6));
    let whole = since.elapsed();
    let mut killed = 0;
    for moment in 0..TIMES {
        scene.write("TABLE", &old);
        let mut child = scene.command(&calibrate(6)).spawn().expect("it starts");
        std::thread::sleep(whole * moment / TIMES);
        child.kill().expect("a child");
        killed += u32::from(!wait(&mut child, Duration::from_mins(1)).expect("killed").success());
        let runs = table(&scene, "TABLE").runs.len();
        assert!((1..=6).contains(&runs), "{runs}");
        for name in scene.names().iter().filter(|name| name.starts_with(".cogvx-")) {
            scene.remove(name);
        }
    }
    assert!(killed > TIMES / 3, "{killed} killed");
    // And goes on from there.
    done(&scene, &calibrate(6));
    assert_eq!(table(&scene, "TABLE").runs.len(), 6);
}

#[test]
fn a_table_knows_what_was_decoded() {
    let scene = Scene::new("2b-fp32");
    let calibrate = "cogvx calibrate CKPT --output TABLE --resume --samples 1 --steps 1";
    let said = scene.run(calibrate);
    assert!(said.stdout.contains("the VAE was not seen"), "{} {}", said.stdout, said.stderr);
    let without = table(&scene, "TABLE");
    assert!(without.vae.is_none() && !without.values.keys().any(|name| name.starts_with("vae_")));
    // The same prompt, to be decoded now.
    let said = scene.run(&format!("{calibrate} --vae"));
    assert!(said.stdout.contains("1 prompts decoded"), "{} {}", said.stdout, said.stderr);
    let with = table(&scene, "TABLE");
    assert_eq!(with.runs.iter().map(|run| run.vae).collect::<Vec<_>>(), [false, true]);
    let value = "vae_decoder/decoder.mid_block.resnets.0.conv1.conv/Conv";
    assert!(["", ".input"].iter().all(|end| with.values.contains_key(&format!("{value}{end}"))));
    // There is nothing more to see, whether or not it were decoded.
    for line in [calibrate.to_string(), format!("{calibrate} --vae")] {
        done(&scene, &line);
        assert_eq!(table(&scene, "TABLE"), with);
    }
}
