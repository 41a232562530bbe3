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
                // A name may be a sum, see `Add`.
                let alone = *m == Monomial { numerator: 1, denominator: 1, names: vec![m.names[0].clone()] };
                for (i, name) in m.names.iter().enumerate() {
                    let times = if i == 0 { "" } else { "*" };
                    if name.contains(' ') && !alone {
                        write!(f, "{times}({name})")?;
                    } else {
                        write!(f, "{times}{name}")?;
                    }
                }
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
    use proptest::prelude::*;

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

    #[test]
    fn a_product_of_a_sum_has_parentheses() {
        let sum = &Dim::named("tokens") + &Dim::named("frames");
        assert_eq!((Dim::named("batch") * &sum).to_string(), "batch*(tokens + frames)");
        assert_eq!((&sum / 2).to_string(), "(tokens + frames)/2");
        assert_eq!(sum.to_string(), "tokens + frames");
    }

    /// What a size is, for known values of its names.
    fn value(dim: &Dim, values: &[(&str, usize)]) -> (usize, usize) {
        match dim {
            Dim::Fixed(n) => (*n, 1),
            Dim::Symbol(m) => {
                let named = |name: &str| values.iter().find(|(n, _)| *n == name).map_or(1, |(_, value)| *value);
                (m.numerator * m.names.iter().map(|name| named(name)).product::<usize>(), m.denominator)
            }
        }
    }

    fn dim() -> impl Strategy<Value = Dim> {
        let name = prop_oneof![Just("frames"), Just("height"), Just("width")];
        (1_usize..40, proptest::collection::vec(name, 0..4)).prop_map(|(n, names)| {
            Dim::product(&names.into_iter().map(Dim::named).collect::<Vec<_>>()) * &Dim::Fixed(n)
        })
    }

    proptest! {
        #[test]
        fn sizes_calculate_as_numbers_do(a in dim(), b in dim(), n in 1_usize..20, sizes in [1_usize..50, 1_usize..50, 1_usize..50]) {
            let values = [("frames", sizes[0]), ("height", sizes[1]), ("width", sizes[2])];
            let of = |dim: &Dim| value(dim, &values);
            let product = a.clone() * &b;
            prop_assert_eq!(of(&product), (of(&a).0 * of(&b).0, 1));
            prop_assert_eq!(&product, &(b.clone() * &a));
            prop_assert_eq!(&(&(&a * n) / n), &a);
            let (over, under) = of(&(&a / n));
            if a.fixed().is_none() {
                prop_assert_eq!(over * n, of(&a).0 * under);
            } else {
                prop_assert_eq!(over, of(&a).0 / n);
            }
            prop_assert!(a.may_equal(&a));
            prop_assert_eq!(a.may_equal(&b), a == b || a.fixed().is_none() || b.fixed().is_none());
        }
    }
}
