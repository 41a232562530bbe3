//! Pages that need nothing else: one file of HTML, with charts as inline SVG and pictures as data.

mod chart;
mod film;

use std::io::{self, Write};

pub(crate) use chart::{Chart, Line};
pub(crate) use film::{is_shown, small, strip};

use crate::video::encode_png;

const STYLE: &str = include_str!("page/style.css");

/// Begin a page with this title.
pub(crate) fn begin(out: &mut impl Write, title: &str) -> io::Result<()> {
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>",
        escaped(title)
    )
}

/// End it.
pub(crate) fn end(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "<footer>cogvx {}</footer>\n</main>\n</body>\n</html>", env!("CARGO_PKG_VERSION"))
}

/// A picture of `rgb` bytes, `[height, width, 3]`, shown `zoom` times as large as it is.
pub(crate) fn picture(
    out: &mut impl Write,
    name: &str,
    [height, width]: [usize; 2],
    zoom: usize,
    rgb: &[u8],
) -> io::Result<()> {
    writeln!(
        out,
        "<img alt=\"{}\" width=\"{}\" height=\"{}\" src=\"{}\">",
        escaped(name),
        width * zoom,
        height * zoom,
        data([height, width], rgb)?
    )
}

/// The same as an address.
pub(crate) fn data([height, width]: [usize; 2], rgb: &[u8]) -> io::Result<String> {
    let mut png = vec![];
    encode_png(&mut png, width, height, rgb).map_err(io::Error::other)?;
    Ok(format!("data:image/png;base64,{}", base64(&png)))
}

/// Text as HTML.
pub(crate) fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            // Nothing that HTML forbids.
            c if c.is_control() && !c.is_ascii_whitespace() => html.push('\u{fffd}'),
            c => html.push(c),
        }
    }
    html
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0_usize, |bits, i| bits << 8 | usize::from(chunk.get(i).copied().unwrap_or(0)));
        for digit in 0..4 {
            let is_there = digit <= chunk.len();
            text.push(if is_there { char::from(DIGITS[bits >> (18 - 6 * digit) & 63]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{base64, escaped};

    #[test]
    fn text_cannot_leave_its_element() {
        let found = escaped("a <script>alert('1')</script> & \"b\"\u{0}");
        assert_eq!(found, "a &lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &quot;b&quot;\u{fffd}");
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        let cases = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let expected = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        assert_eq!(cases.map(|case| base64(case.as_bytes())), expected);
        assert_eq!(base64(&[0xff, 0xfe, 0xfb]), "//77");
    }
}
