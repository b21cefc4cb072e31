// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! On which of the matches an injection fires: a number, or one that the seed draws from a range.

use toml::Value;

/// On which match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nth {
    /// On this one, from 1; 0: on any.
    Fixed(u32),
    /// On one of these, both ends included.
    Between(u32, u32),
}

impl Nth {
    /// What a plan has to say.
    pub const WANTED: &str = "a whole number, or [first, last] of which the seed draws one, where first is at least 1";

    /// A number, or `[first, last]`.
    pub fn read(value: &Value) -> Option<Self> {
        let number = |value: &Value| value.as_integer().and_then(|number| u32::try_from(number).ok());
        match value.as_array().map(Vec::as_slice) {
            None => number(value).map(Self::Fixed),
            Some([first, last]) => {
                let (first, last) = (number(first)?, number(last)?);
                (1 <= first && first <= last).then_some(Self::Between(first, last))
            }
            Some(_) => None,
        }
    }

    /// The number that `seed` draws.
    pub fn drawn(self, seed: u64) -> u32 {
        match self {
            Self::Fixed(number) => number,
            Self::Between(first, last) => {
                let count = u64::from(last - first) + 1;
                first + (probe::drawn(seed, 0) % count) as u32
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn read(text: &str) -> Option<Nth> {
        let table: toml::Table = toml::from_str(&format!("nth = {text}")).unwrap();
        Nth::read(&table["nth"])
    }

    #[test]
    fn a_number_or_a_range() {
        assert_eq!(
            (read("3"), read("[2, 5]"), read("[4, 4]")),
            (Some(Nth::Fixed(3)), Some(Nth::Between(2, 5)), Some(Nth::Between(4, 4)))
        );
        for bad in ["-1", "4294967296", "[0, 3]", "[3, 2]", "[1, 2, 3]", "[]", "'2'", "[1, 4294967296]"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_seed_draws_the_same_again_and_seeds_draw_all() {
        let nth = Nth::Between(2, 5);
        let all: BTreeSet<u32> = (0..100).map(|seed| nth.drawn(seed)).collect();
        assert_eq!(all, (2..=5).collect());
        assert!((0..100).all(|seed| nth.drawn(seed) == nth.drawn(seed)));
        assert_eq!(Nth::Between(1, u32::MAX).drawn(7), Nth::Between(1, u32::MAX).drawn(7));
        assert_eq!((Nth::Fixed(0).drawn(9), Nth::Between(4, 4).drawn(9)), (0, 4));
    }
}
