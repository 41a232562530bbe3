//! `cogvx quality`: two bundles, the same prompts and seeds.

mod browser;
mod common;

use std::fs;
use std::path::Path;

use cogvx::export::ExportOptions;
use cogvx_calibration::plan::Scheme;
use serde_json::Value;

use common::{bundle_of, cogvx, fixture, fresh_folder, root, said, spoilt};

/// What `cogvx quality --json` says, and its exit code.
fn judged(bundle: &Path, against: &Path, arguments: &[&str]) -> (i32, Value) {
    let mut command = cogvx();
    command.arg("quality").arg(bundle).arg("--against").arg(against).args(["--threads", "1", "--json"]).args(arguments);
    let output = command.output().expect("cogvx starts");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&output)));
    (output.status.code().expect("an exit code"), report)
}

/// What it says to people.
fn told(bundle: &Path, against: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = cogvx();
    command.arg("quality").arg(bundle).arg("--against").arg(against).args(["--threads", "1"]).args(arguments);
    let output = command.output().expect("cogvx starts");
    (output.status.code(), said(&output))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

const SHORT: [&str; 6] = ["--samples", "2", "--steps", "2", "--frames", "9"];

#[test]
fn a_bundle_equals_itself() {
    let bundle = fixture("2b-fp32");
    let folder = fresh_folder();
    let prompts = folder.path().join("prompts.txt");
    fs::write(&prompts, "a <b>fox</b> & \"friends\"\n\n").expect("a writable folder");
    let (prompts, page) = (prompts.display().to_string(), folder.path().join("quality.html"));
    let page_path = page.display().to_string();
    let arguments = [&SHORT[..], &["--prompts", &prompts, "--min-worst-psnr", "100", "--html", &page_path]].concat();
    let (code, report) = judged(&bundle, &bundle, &arguments);
    assert_eq!((code, &report["good"]), (0, &true.into()), "{report:#}");
    let videos = report["videos"].as_array().expect("a list");
    // Beyond the last prompt it begins anew, with another seed.
    assert_eq!(videos.iter().map(|v| v["seed"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1)]);
    for video in videos {
        assert_eq!((&video["equal"], &video["psnr"]), (&true.into(), &Value::Null), "{video:#}");
        assert_eq!(video["latent_error"], serde_json::json!([0.0, 0.0]));
        assert_eq!(video["flicker"]["difference"], 0.0);
        assert_eq!(video["faults"], serde_json::json!([]));
        assert!(video.get("seen").is_none(), "a fox is no shape: {video:#}");
    }
    assert_eq!((&report["summary"]["equal"], &report["summary"]["faulty"]), (&2.into(), &0.into()));
    let [ours, theirs] = ["judged", "reference"].map(|side| report[side]["bytes"].as_u64().expect("bytes"));
    assert_eq!(ours, theirs);
    assert!(number(&report["judged"]["step_seconds"]) > 0.0);

    let page = fs::read_to_string(page).expect("a page");
    assert!(page.contains("a &lt;b&gt;fox&lt;/b&gt; &amp; &quot;friends&quot;") && !page.contains("<b>"));
    is_one_page(&page);
    browser::look_at(Path::new(&page_path));
    assert_eq!(common::entries(folder.path()).len(), 2, "nothing else is left");
}

/// Elements are closed in order, and nothing is fetched.
fn is_one_page(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
    assert!(!page.contains("://") && !page.contains("url(") && !page.contains("<script"), "it needs nothing else");
    let sources = page.match_indices("src=\"").map(|(at, found)| &page[at + found.len()..]);
    assert!(sources.clone().count() >= 6, "filmstrips");
    assert!(sources.clone().all(|source| source.starts_with("data:image/png;base64,iVBOR")), "of PNG");
    let mut open = vec![];
    for tag in page.split('<').skip(2).filter_map(|text| text.split('>').next()) {
        let name = tag.split(' ').next().unwrap_or_default();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "<{tag}>"),
            None if ["meta", "img"].contains(&name) || tag.ends_with('/') => {}
            None => open.push(name),
        }
    }
    assert_eq!(open, [""; 0]);
}

#[test]
fn int8_is_close_to_the_float_model_and_smaller() {
    let shapes = root().join("examples/shapes-model");
    let folder = fresh_folder();
    let options = ExportOptions { quantize: Some(Scheme::Int8), ..ExportOptions::default() };
    let (bundle, _) = bundle_of(&shapes, folder.path(), &options);
    let arguments = ["--samples", "2", "--steps", "10", "--guidance", "3"];
    let (code, report) = judged(&bundle, &shapes, &arguments);
    assert_eq!((code, &report["problems"]), (0, &serde_json::json!([])), "{report:#}");
    let summary = &report["summary"];
    let [mean, worst] = ["mean", "worst"].map(|part| number(&summary["psnr"][part]));
    assert!(mean > 38.0 && mean < 80.0 && worst <= mean && worst > 35.0, "{summary:#}");
    assert!(number(&summary["worst_frame_psnr"]) <= worst, "{summary:#}");
    assert!(number(&summary["ssim"]["worst"]) > 0.98 && number(&summary["ssim"]["mean"]) < 1.0, "{summary:#}");
    for video in report["videos"].as_array().expect("a list") {
        let errors: Vec<_> = video["latent_error"].as_array().expect("a list").iter().map(number).collect();
        assert!(errors.len() == 10 && errors.iter().all(|e| *e > 0.0 && *e < 0.1), "{errors:?}");
        assert!(errors[9] > errors[0], "errors add up: {errors:?}");
        assert_eq!(video["frame_psnr"].as_array().map(Vec::len), Some(9));
    }
    for side in ["accuracy", "reference_accuracy"] {
        assert_eq!(summary[side]["all"], 1.0, "{summary:#}");
        assert!(number(&summary[side]["iou"]) > 0.7, "{summary:#}");
    }
    let size = |side: &str| number(&report[side]["components"]["transformer"]);
    assert!(size("judged") < 0.6 * size("reference"), "{} of {}", size("judged"), size("reference"));
    assert_eq!(report["judged"]["components"]["vae_decoder"], report["reference"]["components"]["vae_decoder"]);

    let limits = ["--min-psnr", "20", "--min-worst-psnr", "99"];
    let (code, said) = told(&bundle, &shapes, &[&arguments[..], &limits].concat());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not good: worst PSNR: expected at least 99 dB, found "), "{said}");
    assert!(!said.contains("mean PSNR:"), "{said}");
}

#[test]
fn broken_models_are_found_out() {
    let good = fixture("2b-fp32");
    let vae = "vae/diffusion_pytorch_model.safetensors";
    let bias = |name: &str, x: f32, to: f32| match name {
        "decoder.conv_out.conv.weight" => 0.0,
        "decoder.conv_out.conv.bias" => to,
        _ => x,
    };
    for (file, edit, fault) in [
        (
            "transformer/diffusion_pytorch_model.safetensors",
            &(|name: &str, x| if name.ends_with("proj_out.bias") { f32::NAN } else { x }) as &dyn Fn(&str, f32) -> f32,
            "NaN or infinity from the transformer",
        ),
        ("text_encoder/model.safetensors", &|_, _| f32::INFINITY, "NaN or infinity from the text encoder"),
        (vae, &|name, x| bias(name, x, f32::NAN), "NaN or infinity from the vae decoder"),
        (vae, &|name, x| bias(name, x, 0.0), "video of one colour"),
        (vae, &|name, x| bias(name, x, -2.0), "black video"),
    ] {
        let folder = fresh_folder();
        let bad = spoilt("2b-fp32", &folder.path().join("bad"), file, edit);
        let (code, said) = told(&bad, &good, &SHORT);
        assert_eq!(code, Some(1), "{fault}: {said}");
        assert!(said.contains(&format!("not good: 2 of 2 videos broken: {fault} (\"")), "{fault}: {said}");
        let (code, said) = told(&good, &bad, &SHORT);
        assert_eq!(code, Some(1), "{fault}: {said}");
        assert!(said.contains(&format!("2 of the reference's 2 videos broken: {fault}")), "{fault}: {said}");
    }
}

#[test]
fn models_that_cannot_make_the_same_video_are_an_error() {
    let folder = fresh_folder();
    let (one, other) = (fixture("2b-fp32"), fixture("2b-fp16-sharded"));
    let missing = folder.path().join("none");
    let page = folder.path().join("none/page.html").display().to_string();
    for (bundle, arguments, expected) in [
        (&other, &[][..], "expected videos of 9x32x32 as of"),
        (
            &other,
            &["--frames", "9", "--height", "48", "--width", "48"],
            "2b-fp16-sharded`: expected videos of 9 frames from latents of 3x4x6x6 as of the reference, found videos of 9 frames \
             from latents of 3x6x6x6",
        ),
        (&fixture("1.5-i2v"), &["--frames", "9", "--height", "32", "--width", "32"], "`--image`"),
        (&missing, &[], "none"),
        (&one, &["--html", &page], "none/page.html"),
        (&one, &["--min-psnr", "nan"], "expected a number of dB"),
        (&one, &["--guidance=-1"], "`--guidance`"),
    ] {
        let (code, said) = told(bundle, &one, arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(expected) && said.contains("error: "), "{arguments:?}: {said}");
    }
    assert!(common::entries(folder.path()).is_empty());
}

#[test]
fn models_that_continue_an_image_are_compared_from_one() {
    let bundle = fixture("1.5-i2v");
    let image = root().join("docs/red-circle.png").display().to_string();
    let other = root().join("tests/fixtures/references/1.5-i2v-even-input.png").display().to_string();
    let arguments = ["--samples", "3", "--steps", "1", "--image", &image, "--image", &other];
    let (code, report) = judged(&bundle, &bundle, &arguments);
    assert_eq!((code, &report["summary"]["equal"]), (0, &3.into()), "{report:#}");
    let images: Vec<_> = report["videos"].as_array().expect("a list").iter().map(|v| v["image"].as_str()).collect();
    assert_eq!(images, [Some(&*image), Some(&*other), Some(&*image)]);
    // One step waits for the transformer to load.
    assert_eq!(report["judged"]["step_seconds"], Value::Null);
}
