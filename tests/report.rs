//! The page of `cogvx report`.

mod browser;
mod common;

use std::fs;

use common::{cogvx, fixture, fresh_folder, root, said};

/// Addresses in a page.
fn addresses(page: &str) -> impl Iterator<Item = &str> {
    ["src=\"", "href=\"", "url("].into_iter().flat_map(move |before| page.split(before).skip(1))
}

#[test]
fn a_page_shows_a_run_and_needs_nothing_else() {
    let folder = fresh_folder();
    let html = folder.path().join("report.html");
    let sensitivity = folder.path().join("sensitivity.json");
    fs::write(
        &sensitivity,
        r#"{"format": "cogvx-sensitivity", "scheme": "int8", "checkpoint": "x", "all": 0.1,
            "groups": [{"name": "transformer/blocks <0>", "error": 0.1, "layers": ["a"]}]}"#,
    )
    .expect("a writable folder");
    let shapes = root().join("examples/shapes-model");
    let arguments = ["--steps", "2", "--guidance", "3", "--frames", "9", "--threads", "1", "--blocks", "0,1"];
    let mut command = cogvx();
    command.arg("report").arg(&shapes).args(["--prompt", "a red circle <b>moving</b> left"]).args(arguments);
    let output = command.arg("--sensitivity").arg(&sensitivity).arg("--html").arg(&html).output().expect("a program");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let page = fs::read_to_string(&html).expect("a page");
    for part in [
        "a red circle &lt;b&gt;moving&lt;/b&gt; left",
        "frames of the video",
        "How tensors flow",
        "largest magnitude by layer and step",
        "attention to ▁red",
        "head ",
        "Where the time goes",
        "How numbers are distributed",
        "transformer/blocks &lt;0&gt;",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(addresses(&page).all(|address| address.starts_with("data:image/png;base64,")), "a network is asked");
    assert!(!page.contains("<script") && !page.contains("http"), "{}", page.len());
    let left: Vec<_> = fs::read_dir(folder.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    browser::look_at(&html);
}

#[test]
fn a_bundle_has_a_page_without_values() {
    let folder = fresh_folder();
    let (bundle, _) = common::bundle_of(&fixture("2b-fp32"), folder.path(), &cogvx::export::ExportOptions::default());
    let html = folder.path().join("page.html");
    let mut command = cogvx();
    command.arg("report").arg(&bundle).args(["--prompt", "a fox", "--steps", "1", "--threads", "1", "--no-time"]);
    let output = command.arg("--html").arg(&html).output().expect("a program");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let page = fs::read_to_string(&html).expect("a page");
    assert!(page.contains("frames of the video") && page.contains("give the checkpoint"));
    let output = cogvx()
        .arg("report")
        .arg(&bundle)
        .args(["--prompt", "a fox", "--blocks", "99"])
        .arg("--html")
        .arg(folder.path().join("other.html"))
        .output()
        .expect("a program");
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("`--blocks`: expected blocks from 0 to "), "{}", said(&output));
    assert!(!folder.path().join("other.html").exists());
}

#[test]
fn a_browser_shows_what_is_wrong_of_a_page() {
    let folder = fresh_folder();
    let page = folder.path().join("page.html");
    let parts = [
        "<p style=\"width:500px\">wide</p>",
        "<p>under</p><p style=\"margin-top:-2.4em\">over</p>",
        "<img alt=\"a picture\" src=\"data:image/png;base64,xx\">",
        "<h2 style=\"color:white\">white</h2>",
    ];
    let html = "<!DOCTYPE html><style>body { margin: 0; background: white }</style><h1>A page</h1>PARTS<footer>its end</footer>";
    fs::write(&page, html.replace("PARTS", &parts.concat())).expect("a writable folder");
    let Some(problems) = browser::problems(&page) else { return eprintln!("skipped: expected Chromium") };
    for expected in ["as wide as 500", "P wide", "text on text", "IMG a picture: not loaded", "\"white\": 1 colours"] {
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
    }
}
