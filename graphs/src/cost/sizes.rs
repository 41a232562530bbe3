//! Numbers for the sizes that a graph leaves open.

use std::collections::BTreeMap;

use super::CostError;
use crate::Dim;
use crate::dim::Monomial;
use crate::op::Type;

/// What the named sizes of a graph are, such as `frames` and `batch`.
///
/// ```
/// use cogvx_graphs::{Dim, cost::Sizes};
/// let sizes = Sizes::new([("frames", 13), ("height", 60)]);
/// let rows = &(&Dim::named("frames") * 2) + &Dim::named("height");
/// assert_eq!(sizes.of(&rows), Ok(86));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes(BTreeMap<String, usize>);

impl Sizes {
    /// Sizes by name.
    #[must_use]
    pub fn new<'a>(named: impl IntoIterator<Item = (&'a str, usize)>) -> Self {
        Self(named.into_iter().map(|(name, n)| (name.to_string(), n)).collect())
    }

    /// The number that `dim` is.
    ///
    /// # Errors
    /// A name that is not among these.
    pub fn of(&self, dim: &Dim) -> Result<usize, CostError> {
        let known = match dim {
            Dim::Fixed(n) => Some(*n),
            Dim::Symbol(Monomial { numerator, denominator, names }) => {
                let product = names.iter().try_fold(*numerator, |n, name| n.checked_mul(self.named(name)?));
                product.map(|n| n / denominator)
            }
        };
        known.ok_or_else(|| CostError::Size(dim.to_string()))
    }

    /// All sizes of a tensor.
    ///
    /// # Errors
    /// As [`Sizes::of`].
    pub fn shape(&self, r#type: &Type) -> Result<Vec<usize>, CostError> {
        r#type.shape.iter().map(|dim| self.of(dim)).collect()
    }

    /// Bytes of a tensor.
    ///
    /// # Errors
    /// As [`Sizes::of`].
    pub fn bytes(&self, r#type: &Type) -> Result<u64, CostError> {
        Ok(r#type.dtype.bytes(elements(&self.shape(r#type)?)))
    }

    /// A name is one of these, or a sum of sizes as [`Dim`]'s operators and the models write them.
    fn named(&self, name: &str) -> Option<usize> {
        if let Some(&n) = self.0.get(name) {
            return Some(n);
        }
        let mut reader = Reader { sizes: self, rest: name };
        reader.sum().filter(|_| reader.rest.is_empty())
    }
}

/// How many elements a tensor of this shape has.
#[must_use]
pub fn elements(shape: &[usize]) -> u64 {
    shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64))
}

/// Reads `2*frames + height/4`, `double(frames)` and the like.
struct Reader<'a> {
    sizes: &'a Sizes,
    rest: &'a str,
}

impl Reader<'_> {
    /// Whether `token` comes next; it is passed then.
    fn takes(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn sum(&mut self) -> Option<usize> {
        let mut n = self.product()?;
        loop {
            n = if self.takes(" + ") {
                n.checked_add(self.product()?)?
            } else if self.takes(" - ") {
                n.checked_sub(self.product()?)?
            } else {
                return Some(n);
            };
        }
    }

    fn product(&mut self) -> Option<usize> {
        let mut n = self.factor()?;
        loop {
            n = if self.takes("*") {
                n.checked_mul(self.factor()?)?
            } else if self.takes("/") {
                n.checked_div(self.factor()?)?
            } else {
                return Some(n);
            };
        }
    }

    fn factor(&mut self) -> Option<usize> {
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if self.takes("(") {
            let n = self.sum()?;
            if word == "groups" {
                let of = self.takes(", ").then(|| self.sum()).flatten().filter(|&of| of > 0 && self.takes(")"))?;
                return Some(n.div_ceil(of));
            }
            if !self.takes(")") {
                return None;
            }
            return match word {
                "" => Some(n),
                // Of an odd number of frames the first stands alone.
                "double" => n.checked_mul(2)?.checked_sub(n % 2),
                "halve" => Some(n.div_ceil(2)),
                _ => None,
            };
        }
        word.parse().ok().or_else(|| self.sizes.0.get(word).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_size_is_a_number() {
        let (frames, height) = (Dim::named("frames"), Dim::named("height"));
        let sizes = Sizes::new([("frames", 5), ("height", 6)]);
        let sum = &(&Dim::Fixed(2) + &frames) + &(&height / 2);
        for (dim, expected) in [
            (Dim::Fixed(7), 7),
            (Dim::product([&frames, &height]), 30),
            (&(&frames * 8) / 4, 10),
            (sum.clone(), 10),
            (sum.clone() * &(&sum / 5), 20),
            (Dim::named("double(frames)"), 9),
            (Dim::named("double(double(frames))"), 17),
            (Dim::named("halve(double(frames))"), 5),
            (Dim::named("frames - 2"), 3),
            (&Dim::named("groups(double(frames), 4)") * 6, 18),
            (&Dim::named("double(frames)") * 4, 36),
        ] {
            assert_eq!(sizes.of(&dim), Ok(expected), "{dim}");
        }
        for unknown in [
            "width",
            "frames +",
            "triple(frames)",
            "double(frames",
            "groups(frames, 0)",
            "frames - height",
            "frames height",
        ] {
            assert_eq!(sizes.of(&Dim::named(unknown)), Err(CostError::Size(unknown.into())));
        }
    }
}
