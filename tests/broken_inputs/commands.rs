//! Command lines of `cogvx-export`.

use crate::{check, intact, refused};

#[test]
fn sizes_no_video_has_are_refused() {
    let cases = [
        refused(
            "two numbers",
            "cogvx-export CKPT -o OUT --shapes 9x32",
            intact,
            "`--shapes`: expected FRAMESxHEIGHTxWIDTH such as 49x480x720, found `9x32`",
        ),
        refused(
            "no numbers",
            "cogvx-export CKPT -o OUT --shapes tiny",
            intact,
            "`--shapes`: expected FRAMESxHEIGHTxWIDTH such as 49x480x720, found `tiny`",
        ),
        refused(
            "frames that are not 4N + 1",
            "cogvx-export CKPT -o OUT --shapes 8x32x32",
            intact,
            "`--shapes`: expected frames of 4N + 1, at most 65536, found 8",
        ),
        refused(
            "no frames",
            "cogvx-export CKPT -o OUT --shapes 0x32x32",
            intact,
            "`--shapes`: expected frames of 4N + 1, at most 65536, found 0",
        ),
        refused(
            "rows that are not whole patches",
            "cogvx-export CKPT -o OUT --shapes 9x40x32",
            intact,
            "`--shapes`: expected height of a multiple of 16, at most 65536, found 40",
        ),
        refused(
            "no columns",
            "cogvx-export CKPT -o OUT --shapes 9x32x0",
            intact,
            "`--shapes`: expected width of a multiple of 16, at most 65536, found 0",
        ),
        refused(
            "2^63 columns",
            "cogvx-export CKPT -o OUT --shapes 9x32x9223372036854775808",
            intact,
            "`--shapes`: expected width of a multiple of 16, at most 65536, found 9223372036854775808",
        ),
        refused(
            "more than 2^64 columns",
            "cogvx-export CKPT -o OUT --shapes 9x32x99999999999999999999",
            intact,
            "`--shapes`: expected FRAMESxHEIGHTxWIDTH such as 49x480x720, found `9x32x99999999999999999999`",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn words_the_command_does_not_know_are_refused() {
    let cases = [
        refused(
            "an unknown precision",
            "cogvx-export CKPT -o OUT --precision int3",
            intact,
            "invalid value 'int3' for '--precision <PRECISION>'\n\
             \x20 [possible values: fp32, fp16, bf16]",
        ),
        refused(
            "an unknown component",
            "cogvx-export CKPT -o OUT --components unet",
            intact,
            "invalid value 'unet' for '--components <COMPONENTS>'\n\
             \x20 [possible values: text-encoder, transformer, vae, vae-decoder, vae-encoder]",
        ),
        refused(
            "no output",
            "cogvx-export CKPT",
            intact,
            "the following required arguments were not provided:\n\
             \x20 --output <OUTPUT>",
        ),
        refused("an unknown command", "cogvx transmogrify CKPT", intact, "unrecognized subcommand 'transmogrify'"),
    ];
    check("2b-fp32", &cases);
}
