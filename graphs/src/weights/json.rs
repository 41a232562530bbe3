//! JSON maps that say when a key comes twice.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Most entries read: the largest checkpoints have a few thousand, and memory for a header is a multiple of its size.
const MAX_PAIRS: usize = 200_000;

/// The pairs of a JSON object in file order; one `__metadata__`, which safetensors reserves, is skipped.
pub(crate) struct Pairs<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairwise<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Pairwise<V> {
            type Value = Pairs<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut pairs, mut metadata) = (Vec::new(), false);
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        if std::mem::replace(&mut metadata, true) {
                            return Err(A::Error::custom("`__metadata__` a second time"));
                        }
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if pairs.len() == MAX_PAIRS {
                        return Err(A::Error::custom(format!("more than {MAX_PAIRS} entries")));
                    }
                    let value = map.next_value().map_err(|e| A::Error::custom(format!("`{}`: {e}", shown(&key))))?;
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Pairwise(PhantomData))
    }
}

impl<V> Pairs<V> {
    /// The pairs in key order, or the first key that comes twice.
    pub fn sorted(self) -> Result<Vec<(String, V)>, String> {
        let mut pairs = self.0;
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        match pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(twice) => Err(twice[0].0.clone()),
            None => Ok(pairs),
        }
    }
}

/// A list of at most `N` whole numbers; a longer one is cut at `N + 1` so that it can be told from a full one.
#[derive(Clone)]
pub(crate) struct Short<const N: usize>(pub Vec<u64>);

impl<'de, const N: usize> Deserialize<'de> for Short<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Cut<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for Cut<N> {
            type Value = Short<N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of whole numbers")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element::<u64>()? {
                    if items.len() <= N {
                        items.push(item);
                    }
                }
                Ok(Short(items))
            }
        }
        deserializer.deserialize_seq(Cut)
    }
}

/// Parses all of `bytes` as UTF-8 JSON; the error is the message.
pub(crate) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("expected UTF-8, found {e}"))?;
    serde_json::from_str(text).map_err(|e| format!("expected JSON, found {}", shown(&e.to_string())))
}

/// `text` as it can go to a terminal: escaped, at most 200 characters.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(200).flat_map(escape).collect();
    if text.chars().nth(200).is_some() {
        shown.push('…');
    }
    shown
}

fn escape(c: char) -> impl Iterator<Item = char> {
    let plain = !c.is_control();
    plain.then_some(c).into_iter().chain(c.escape_unicode().filter(move |_| !plain))
}
