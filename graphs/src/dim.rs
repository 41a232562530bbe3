//! Sizes of tensor axes: known numbers, or expressions over the sizes a graph is fed with.

use std::fmt;
use std::ops::{Add, Div, Mul};
use std::rc::Rc;

/// The size of one axis.
///
/// Symbolic sizes are monomials over named sizes, `numerator * names / denominator`; that is all CogVideoX needs
/// (`frames*height*width/4` video tokens). Division is exact: the caller guarantees that it leaves no remainder.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A size known when the graph is built.
    Fixed(usize),
    /// A size known when the graph runs.
    Symbol(Monomial),
}

/// `numerator * names / denominator`, reduced; `names` are sorted.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Monomial {
    /// Constant factor.
    pub numerator: usize,
    /// Constant divisor.
    pub denominator: usize,
    /// Named factors.
    pub names: Vec<Rc<str>>,
}

impl Dim {
    /// A named size.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self::Symbol(Monomial { numerator: 1, denominator: 1, names: vec![name.into()] })
    }

    /// The number, if it is known.
    #[must_use]
    pub fn fixed(&self) -> Option<usize> {
        match self {
            Self::Fixed(n) => Some(*n),
            Self::Symbol(_) => None,
        }
    }

    /// The name, if the size is one name and nothing else.
    #[must_use]
    pub fn name(&self) -> Option<&Rc<str>> {
        match self {
            Self::Symbol(Monomial { numerator: 1, denominator: 1, names }) if names.len() == 1 => names.first(),
            _ => None,
        }
    }

    /// Whether two axes may have the same size; symbols are equal only to themselves but may turn out equal to anything.
    #[must_use]
    pub fn may_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed(a), Self::Fixed(b)) => a == b,
            _ => true,
        }
    }

    fn monomial(&self) -> Monomial {
        match self {
            Self::Fixed(n) => Monomial { numerator: *n, denominator: 1, names: vec![] },
            Self::Symbol(m) => m.clone(),
        }
    }

    /// The product of several sizes.
    #[must_use]
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Self>) -> Self {
        dims.into_iter().fold(Self::Fixed(1), |a, b| a * b)
    }
}

impl Monomial {
    fn reduced(self) -> Dim {
        let divisor = gcd(self.numerator, self.denominator).max(1);
        let (numerator, denominator) = (self.numerator / divisor, self.denominator / divisor);
        if self.names.is_empty() {
            return Dim::Fixed(numerator / denominator.max(1));
        }
        Dim::Symbol(Self { numerator, denominator, names: self.names })
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Mul<&Dim> for Dim {
    type Output = Dim;
    fn mul(self, other: &Dim) -> Dim {
        let (a, b) = (self.monomial(), other.monomial());
        let mut names: Vec<_> = a.names.into_iter().chain(b.names).collect();
        names.sort();
        Monomial {
            numerator: a.numerator.saturating_mul(b.numerator),
            denominator: a.denominator.saturating_mul(b.denominator),
            names,
        }
        .reduced()
    }
}

impl Mul<usize> for &Dim {
    type Output = Dim;
    fn mul(self, factor: usize) -> Dim {
        self.clone() * &Dim::Fixed(factor)
    }
}

impl Div<usize> for &Dim {
    type Output = Dim;
    fn div(self, divisor: usize) -> Dim {
        let m = self.monomial();
        Monomial { denominator: m.denominator.saturating_mul(divisor), ..m }.reduced()
    }
}

/// The sum of two sizes; a sum with a symbol in it becomes a name of its own, such as `tokens + frames*height*width/4`.
impl Add<&Dim> for &Dim {
    type Output = Dim;
    fn add(self, other: &Dim) -> Dim {
        match (self, other) {
            (Dim::Fixed(a), Dim::Fixed(b)) => Dim::Fixed(a + b),
            (Dim::Fixed(0), n) | (n, Dim::Fixed(0)) => n.clone(),
            _ => Dim::named(&format!("{self} + {other}")),
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Self::Fixed(n)
    }
}

impl From<&Dim> for Dim {
    fn from(dim: &Dim) -> Self {
        dim.clone()
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Symbol(m) => {
                if m.numerator != 1 {
                    write!(f, "{}*", m.numerator)?;
                }
                f.write_str(&m.names.join("*"))?;
                if m.denominator != 1 {
                    write!(f, "/{}", m.denominator)?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Sizes from numbers, names' [`Dim`]s and expressions: `dims![2, &frames, &height * 2]`.
#[macro_export]
macro_rules! dims {
    ($($dim:expr),* $(,)?) => { vec![$($crate::Dim::from($dim)),*] };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_as_expressions_over_names() {
        let (frames, height, width) = (Dim::named("frames"), Dim::named("height"), Dim::named("width"));
        let tokens = Dim::product([&frames, &(&height / 2), &(&width / 2)]);
        assert_eq!(tokens.to_string(), "frames*height*width/4");
        assert_eq!((&tokens * 4).to_string(), "frames*height*width");
        assert_eq!((&Dim::named("tokens") + &tokens).to_string(), "tokens + frames*height*width/4");
    }

    #[test]
    fn fixed_sizes_stay_numbers() {
        assert_eq!(&(&Dim::Fixed(60) / 2) * 3, Dim::Fixed(90));
    }
}
