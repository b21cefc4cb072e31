// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measurements of a row.

use serde::{Deserialize, Serialize};

/// A measurement of a row. Field names are stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much; where it was measured several times, the median.
    pub value: f64,
    /// Of what.
    pub unit: String,
    /// Where it was measured several times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
}

/// How measurements of one thing scatter. Field names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many.
    pub n: usize,
    /// The least.
    pub min: f64,
    /// Half are no more.
    pub median: f64,
    /// Nine of ten are no more.
    pub p90: f64,
}

impl Spread {
    /// Of these; `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        // The least value that so many tenths are not above.
        let at = |tenths: usize| values.get((values.len() * tenths).div_ceil(10).saturating_sub(1)).copied();
        Some(Self { n: values.len(), min: *values.first()?, median: at(5)?, p90: at(9)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_what_was_measured() {
        assert_eq!(Spread::of(Vec::new()), None);
        assert_eq!(Spread::of(vec![3.0]), Some(Spread { n: 1, min: 3.0, median: 3.0, p90: 3.0 }));
        let ten = (1..=10).rev().map(f64::from).collect();
        assert_eq!(Spread::of(ten), Some(Spread { n: 10, min: 1.0, median: 5.0, p90: 9.0 }));
    }
}
