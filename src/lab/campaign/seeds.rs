// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The seeds of a run.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// One seed after the other, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    last: u64,
}

impl Seeds {
    /// `count` of them from `first` on.
    ///
    /// # Errors
    /// There are not so many.
    pub fn from(first: u64, count: u64) -> Result<Self, String> {
        let last = count.checked_sub(1).and_then(|more| first.checked_add(more));
        let last = last.ok_or_else(|| format!("there are no {count} seeds from {first} on: use --repeat 1 or more"))?;
        Ok(Self { first, last })
    }

    /// The first of them.
    pub fn first(self) -> u64 {
        self.first
    }

    /// All of them.
    pub fn range(self) -> RangeInclusive<u64> {
        self.first..=self.last
    }

    /// How many there are; `u64::MAX` may be one too few.
    pub fn count(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let wrong = || format!("{text:?} is not FIRST..LAST: write for example 1..200, which is 200 seeds");
        let [first, last] = [first, last].map(|number| number.trim().parse::<u64>().ok());
        match first.zip(last) {
            Some((first, last)) if first <= last => Ok(Self { first, last }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_included() {
        let seeds: Seeds = "3..5".parse().unwrap();
        assert_eq!(
            (seeds.range().collect::<Vec<_>>(), seeds.count(), seeds.to_string()),
            (vec![3, 4, 5], 3, "3..5".into())
        );
        assert_eq!("7".parse::<Seeds>().unwrap(), Seeds::from(7, 1).unwrap());
        assert_eq!(Seeds::from(3, 3).unwrap(), seeds);
        assert_eq!(format!("0..{}", u64::MAX).parse::<Seeds>().unwrap().count(), u64::MAX);
        for bad in ["", "5..3", "1..", "..3", "1..2..3", "a..b", "-1..3", "1...3"] {
            assert!(bad.parse::<Seeds>().unwrap_err().contains("1..200"), "{bad}");
        }
        assert!(Seeds::from(1, 0).is_err() && Seeds::from(u64::MAX, 2).is_err());
        assert!(Seeds::from(u64::MAX, 1).is_ok());
    }
}
