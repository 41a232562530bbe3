//! Files of prompts: the file, the line and the field are named, and nothing is run.

use crate::scene::Scene;
use crate::{Case, check, intact, refused};

const PROMPTS: &str = "PROMPTS";

/// A file that is refused.
const fn batch(name: &'static str, breaks: fn(&Scene), message: &'static str) -> Case {
    Case { name, breaks, line: "cogvx run CKPT --prompts PROMPTS -o OUT", message }
}

/// A second line that is wrong.
fn second(scene: &Scene, line: &str) {
    scene.write(PROMPTS, format!("{{\"prompt\": \"fox\"}}\n{line}\n{{\"prompt\": \"boat\"}}\n"));
}

#[test]
fn files_of_prompts_are_refused_by_line_and_field() {
    let cases = [
        batch("no prompts", intact, "`PROMPTS`: expected a file, found nothing"),
        batch("prompts that are a FIFO", |s| s.fifo(PROMPTS), "`PROMPTS`: expected a regular file, found a fifo"),
        batch("no lines", |s| s.write(PROMPTS, "\n \n"), "`PROMPTS`: expected a JSON object a line, found none"),
        batch("prompts not UTF-8", |s| s.write(PROMPTS, b"\xff"), "`PROMPTS`: stream did not contain valid UTF-8"),
        batch(
            "a plain prompt",
            |s| second(s, "a fox"),
            "`PROMPTS`, line 2: expected a JSON object, found expected value at column 1",
        ),
        batch(
            "a line cut short",
            |s| second(s, r#"{"prompt": "fox""#),
            "`PROMPTS`, line 2: expected a JSON object, found EOF while parsing an object at column 16",
        ),
        batch(
            "a list for a line",
            |s| second(s, r#"["fox"]"#),
            "`PROMPTS`, line 2: expected a JSON object, found invalid type: sequence, expected an object at column 0",
        ),
        batch(
            "a line nested deep",
            |s| second(s, &format!("{{\"prompt\": {}", "[".repeat(100_000))),
            "`PROMPTS`, line 2: expected a JSON object, found recursion limit exceeded at column 138",
        ),
        batch(
            "an unknown field",
            |s| second(s, r#"{"prompt": "fox", "num_frames": 9}"#),
            "`PROMPTS`, line 2, `num_frames`: expected one of prompt, negative_prompt, seed, steps, guidance, \
             dynamic_cfg, image, video, strength, frames, height, width, scheduler, fps, sequential_guidance, vae_tiling, \
             guidance_interval, guidance_every, step_cache, output, found another field",
        ),
        batch(
            "a share of the steps that is none",
            |s| second(s, r#"{"prompt": "fox", "guidance_interval": "0-1"}"#),
            "`PROMPTS`, line 2, `guidance_interval`: expected a text such as \"0:0.8\", found `\"0-1\"`",
        ),
        batch(
            "a text for a number",
            |s| second(s, r#"{"prompt": "fox", "seed": "3"}"#),
            "`PROMPTS`, line 2, `seed`: expected a whole number that is not negative, found `\"3\"`",
        ),
        batch(
            "a negative number of steps",
            |s| second(s, r#"{"prompt": "fox", "steps": -1}"#),
            "`PROMPTS`, line 2, `steps`: expected a whole number that is not negative, found `-1`",
        ),
        batch(
            "a number for a truth",
            |s| second(s, r#"{"prompt": "fox", "dynamic_cfg": 1}"#),
            "`PROMPTS`, line 2, `dynamic_cfg`: expected true or false, found `1`",
        ),
        batch(
            "an unknown sampler",
            |s| second(s, r#"{"prompt": "fox", "scheduler": "euler"}"#),
            "`PROMPTS`, line 2, `scheduler`: expected `ddim` or `dpm`, found `\"euler\"`",
        ),
        batch("no prompt", |s| second(s, r#"{"seed": 3}"#), "`PROMPTS`, line 2, `prompt`: expected a text, found none"),
        batch(
            "a field twice",
            |s| second(s, r#"{"prompt": "fox", "prompt": "boat"}"#),
            "`PROMPTS`, line 2, `prompt`: expected it once, found it twice",
        ),
        batch(
            "an image and a video",
            |s| second(s, r#"{"prompt": "fox", "image": "a.png", "video": "b.gif"}"#),
            "`PROMPTS`, line 2, `video`: expected it or `image`, found both",
        ),
        batch(
            "an output that climbs",
            |s| second(s, r#"{"prompt": "fox", "output": "../fox.mp4"}"#),
            "`PROMPTS`, line 2, `output`: expected the name of a file in the folder of `--output`, found `../fox.mp4`",
        ),
        batch(
            "an absolute output",
            |s| second(s, r#"{"prompt": "fox", "output": "/videos/fox.mp4"}"#),
            "`PROMPTS`, line 2, `output`: expected the name of a file in the folder of `--output`, found `/videos/fox.mp4`",
        ),
        batch(
            "two videos in one place",
            |s| second(s, r#"{"prompt": "dog", "output": "001-FOX.mp4"}"#),
            "`PROMPTS`, line 2, `output`: expected a name of its own, found `001-FOX.mp4`, which line 1 has",
        ),
        refused(
            "a file for a folder",
            "cogvx run CKPT --prompts PROMPTS -o OUT",
            |s| (second(s, ""), s.write("OUT", "mine")).0,
            "`OUT`: expected a folder for the videos, found a file",
        ),
        refused(
            "a prompt and prompts",
            "cogvx run CKPT -p fox --prompts PROMPTS -o OUT",
            intact,
            "the argument '--prompt <PROMPT>' cannot be used with '--prompts <FILE>'",
        ),
        refused(
            "a format without prompts",
            "cogvx run CKPT -p fox --format gif -o OUT",
            intact,
            "the argument '--prompt <PROMPT>' cannot be used with '--format <FORMAT>'",
        ),
    ];
    check("2b-fp32", &cases);
}
