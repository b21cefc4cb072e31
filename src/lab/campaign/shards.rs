// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run in parts, each for a machine of its own. Rows are dealt out by their numbers, so that all parts together are the whole, and each
//! has some of every kernel and seed.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most parts of a run.
const MOST: u32 = 10_000;

/// Part `index` (from 1) of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which, from 1.
    pub index: u32,
    /// Of how many.
    pub of: u32,
}

/// A part as its report names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which.
    #[serde(flatten)]
    pub part: Part,
    /// Rows of the whole run.
    pub rows: u64,
    /// What the whole run is, in a number: rows, kernels and seeds.
    pub whole: String,
}

impl Part {
    fn new(index: u32, of: u32) -> Option<Self> {
        ((1..=MOST).contains(&of) && (1..=of).contains(&index)).then_some(Self { index, of })
    }

    /// Whether row number `number` of the whole is in it.
    pub fn has(self, number: u64) -> bool {
        number % u64::from(self.of) == u64::from(self.index - 1)
    }

    /// All parts, if there are to be so many; none beyond the most that there can be.
    pub fn all(of: u32) -> impl Iterator<Item = Self> {
        (1..=of).filter_map(move |index| Self::new(index, of))
    }

    /// Which of so many things in a row it has, where neighbours stay together: those that boot the same kernel.
    pub fn stretch(self, things: usize) -> Range<usize> {
        let edge = |index: u32| (things as u128 * u128::from(index) / u128::from(self.of)) as usize;
        edge(self.index - 1)..edge(self.index)
    }

    /// How many of `rows` rows are in it.
    pub fn count(self, rows: u64) -> u64 {
        let of = u64::from(self.of);
        rows / of + u64::from(u64::from(self.index - 1) < rows % of)
    }

    /// What the variables of a Slurm array or of an indexed job of Kubernetes say, and in which words. `variable` reads one.
    ///
    /// # Errors
    /// None is set, or they make no part of anything.
    pub fn of_variables(variable: impl Fn(&str) -> Option<String>) -> Result<(Self, String), String> {
        let number = |name: &str| match variable(name).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => match text.parse::<u32>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("{name}={text} is no number: unset it, or say which part with --shard I/N")),
            },
        };
        let part = |index: Option<u32>, of: u32, said: String| match index.and_then(|index| Self::new(index, of)) {
            Some(part) => Ok((part, said)),
            None => Err(format!("{said} is no part of a run: say which with --shard I/N, from 1/N to N/N")),
        };
        if let (Some(id), Some(of)) = (number("SLURM_ARRAY_TASK_ID")?, number("SLURM_ARRAY_TASK_COUNT")?) {
            let (min, step) = (number("SLURM_ARRAY_TASK_MIN")?, number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1));
            // Slurm always says with which number an array begins. Where it does not, an array from 0 is refused at its first task.
            let min = min.unwrap_or(1);
            let index = id.checked_sub(min).and_then(|after| (after / step).checked_add(1));
            let said = format!("SLURM_ARRAY_TASK_ID={id}, from {min} on, of SLURM_ARRAY_TASK_COUNT={of}");
            return part(index, of, said);
        }
        if let (Some(index), Some(of)) = (number("JOB_COMPLETION_INDEX")?, number("JOB_COMPLETIONS")?) {
            let said = format!("JOB_COMPLETION_INDEX={index}, from 0 on, of JOB_COMPLETIONS={of}");
            return part(index.checked_add(1), of, said);
        }
        Err("--shard auto needs SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, or JOB_COMPLETION_INDEX and \
             JOB_COMPLETIONS: set them, or say which part with --shard I/N"
            .into())
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        numbers.and_then(|(index, of)| Self::new(index, of)).ok_or_else(|| {
            format!("{text:?} is not part I of N: write 1/3, 2/3 or 3/3 (of at most {MOST}), or auto for what a job's variables say")
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_the_whole_in_order() {
        for things in [0, 1, 2, 7, 282] {
            for of in [1, 2, 3, 5] {
                let all: Vec<usize> = Part::all(of).flat_map(|part| part.stretch(things)).collect();
                assert_eq!(all, (0..things).collect::<Vec<_>>(), "{things} in {of}");
                let sizes: Vec<_> = Part::all(of).map(|part| part.stretch(things).len()).collect();
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            }
        }
    }

    fn variables(set: &[(&str, &str)]) -> Result<String, String> {
        let read = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        Part::of_variables(read).map(|(part, _)| part.to_string())
    }

    #[test]
    fn all_parts_are_the_whole_and_no_row_is_in_two() {
        for of in 1..=7 {
            let parts: Vec<_> = (1..=of).map(|index| Part::new(index, of).unwrap()).collect();
            assert!((0..50).all(|number| parts.iter().filter(|part| part.has(number)).count() == 1));
            for rows in 0..20 {
                for part in &parts {
                    assert_eq!(part.count(rows), (0..rows).filter(|number| part.has(*number)).count() as u64, "{part}");
                }
            }
        }
    }

    #[test]
    fn a_part_is_written_with_a_slash() {
        assert_eq!("2/3".parse(), Ok(Part { index: 2, of: 3 }));
        for bad in ["", "2", "0/3", "4/3", "1/0", "a/b", "1/3/5", "-1/3", "1/10001"] {
            assert!(bad.parse::<Part>().unwrap_err().contains("1/3, 2/3 or 3/3"), "{bad}");
        }
    }

    #[test]
    fn the_variables_of_an_array_and_of_an_indexed_job() {
        let slurm = |id, min, count| {
            variables(&[("SLURM_ARRAY_TASK_ID", id), ("SLURM_ARRAY_TASK_MIN", min), ("SLURM_ARRAY_TASK_COUNT", count)])
        };
        assert_eq!(slurm("1", "1", "3").unwrap(), "1/3");
        assert_eq!(slurm("2", "0", "3").unwrap(), "3/3");
        assert_eq!(slurm("12", "10", "4").unwrap(), "3/4");
        assert_eq!(slurm("3", "", "3").unwrap(), "3/3");
        assert!(slurm("0", "", "3").unwrap_err().contains("from 1 on"));
        assert!(slurm("4", "1", "3").unwrap_err().contains("SLURM_ARRAY_TASK_ID=4"));
        assert!(slurm("0", "1", "3").is_err() && slurm("one", "1", "3").unwrap_err().contains("is no number"));
        let stepped = [("ID", "8"), ("MIN", "0"), ("STEP", "4"), ("COUNT", "3")];
        let stepped: Vec<_> = stepped.map(|(name, value)| (format!("SLURM_ARRAY_TASK_{name}"), value)).into();
        let stepped: Vec<_> = stepped.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(variables(&stepped).unwrap(), "3/3");
        assert_eq!(variables(&[("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "5")]).unwrap(), "1/5");
        assert!(variables(&[("JOB_COMPLETION_INDEX", "5"), ("JOB_COMPLETIONS", "5")]).is_err());
        assert!(variables(&[("JOB_COMPLETION_INDEX", "5")]).unwrap_err().contains("--shard auto needs"));
        assert!(variables(&[]).unwrap_err().contains("SLURM_ARRAY_TASK_COUNT"));
    }
}
