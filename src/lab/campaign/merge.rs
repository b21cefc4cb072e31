// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One report of what the parts of a run wrote.

use super::Shard;
use crate::report::Report;

/// What parts come to.
#[derive(Debug)]
pub struct Merged {
    /// As one run would have written it, if nothing is missing.
    pub report: Report,
    /// Sentences about what is missing; empty: nothing.
    pub missing: Vec<String>,
}

impl Merged {
    /// 0 all as expected, 1 some differ, 2 some inconclusive or missing (and none differs).
    pub fn exit_status(&self) -> u8 {
        match self.report.exit_status() {
            0 if !self.missing.is_empty() => 2,
            status => status,
        }
    }
}

/// Merges reports, each with the name of its file.
///
/// # Errors
/// They are not parts of one run, or one is there twice: a sentence.
pub fn merge(reports: Vec<(String, Report)>) -> Result<Merged, String> {
    let mut parts: Vec<(String, Shard, Report)> = Vec::new();
    for (name, mut report) in reports {
        let Some(shard) = report.shard.take() else {
            return Err(format!("{name} is the report of no shard: give what runs with --shard wrote"));
        };
        if let Some((first, of, other)) = parts.first() {
            let why = difference((of, other), (&shard, &report));
            if let Some(why) = why {
                return Err(format!("{name} is of another run than {first}: {why}"));
            }
        }
        if let Some((first, ..)) = parts.iter().find(|(_, other, _)| other.part == shard.part) {
            return Err(format!("{name} and {first} are both shard {}: leave one out", shard.part));
        }
        parts.push((name, shard, report));
    }
    parts.sort_by_key(|(_, shard, _)| shard.part.index);
    let Some((_, shard, first)) = parts.first() else { return Err("there is nothing to merge".into()) };
    let shard = shard.clone();
    let (mut whole, mut missing) = (Report { rows: Vec::new(), ..first.clone() }, Vec::new());
    let there = |index: &u32| parts.iter().any(|(_, shard, _)| shard.part.index == *index);
    whole.missing = (1..=shard.part.of).filter(|index| !there(index)).collect();
    if !whole.missing.is_empty() {
        let numbers: Vec<_> = whole.missing.iter().map(|index| format!("{index}/{}", shard.part.of)).collect();
        missing.push(format!("missing: shard {}", numbers.join(", ")));
    }
    for (name, Shard { part, rows, .. }, report) in parts {
        let own: std::collections::BTreeSet<_> = report.rows.iter().filter_map(|row| row.number).collect();
        let strange = report.rows.iter().any(|row| row.number.is_none_or(|at| at >= rows || !part.has(at)));
        if strange || own.len() != report.rows.len() {
            return Err(format!("{name} has rows that are not of shard {part}: it was changed since it was written"));
        }
        let lacks = part.count(rows) - own.len() as u64;
        if lacks > 0 {
            missing.push(format!("missing: {lacks} rows of shard {part} ({name})"));
        }
        whole.rows.extend(report.rows);
    }
    whole.rows.sort_by_key(|row| row.number);
    Ok(Merged { report: whole, missing })
}

/// Why two parts are not of one run.
fn difference(one: (&Shard, &Report), other: (&Shard, &Report)) -> Option<String> {
    let pair = |what: &str, one: &str, other: &str| (one != other).then(|| format!("its {what} is {other}, not {one}"));
    pair("rnic", &one.1.rnic, &other.1.rnic)
        .or_else(|| pair("build of rnic", &one.1.build, &other.1.build))
        .or_else(|| pair("number of shards", &one.0.part.of.to_string(), &other.0.part.of.to_string()))
        .or_else(|| pair("seed", &one.1.seed.to_string(), &other.1.seed.to_string()))
        .or_else(|| one.1.setting.differs(&other.1.setting).map(|option| format!("its {option} is another")))
        .or_else(|| (one.0.whole != other.0.whole).then(|| "its rows, kernels or seeds are others".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::{Part, Setting};
    use crate::expect::Expectation;
    use crate::plan::all_rows;
    use crate::report::RowResult;
    use crate::verdict::{Observed, Verdict};

    const ROWS: u64 = 8;

    fn rows(verdict: impl Fn(u64) -> Verdict) -> Vec<RowResult> {
        let row = |number: u64| {
            let expected = Some(Expectation { verdict: "SAFE", source: "a test" });
            let row = &all_rows()[number as usize];
            let result = RowResult::new(row, "6.1", "6.1.192-2", expected, &Observed::new(verdict(number)), Vec::new());
            RowResult { number: Some(number), ..result }
        };
        (0..ROWS).map(row).collect()
    }

    /// Part `index` of 3 of a run with these rows.
    fn part(rows: &[RowResult], index: u32) -> (String, Report) {
        let part = Part { index, of: 3 };
        let own = rows.iter().filter(|row| part.has(row.number.unwrap())).cloned().collect();
        let shard = Some(Shard { part, rows: ROWS, whole: "w".into() });
        (format!("{index}.json"), Report { rnic: "1".into(), seed: 7, shard, rows: own, ..Report::default() })
    }

    fn parts(rows: &[RowResult], which: &[u32]) -> Vec<(String, Report)> {
        which.iter().map(|index| part(rows, *index)).collect()
    }

    #[test]
    fn three_shards_are_one_run_in_any_order() {
        for odd in [Verdict::Safe, Verdict::Lost, Verdict::Inconclusive] {
            let rows = rows(|number| if number == 5 { odd } else { Verdict::Safe });
            let one = Report { rnic: "1".into(), seed: 7, rows: rows.clone(), ..Report::default() };
            let merged = merge(parts(&rows, &[3, 1, 2])).unwrap();
            assert!(merged.missing.is_empty());
            assert_eq!(serde_json::to_string(&merged.report).unwrap(), serde_json::to_string(&one).unwrap());
            assert_eq!(merged.exit_status(), one.exit_status());
        }
    }

    #[test]
    fn what_is_missing_is_said_by_number() {
        let rows = rows(|_| Verdict::Safe);
        let merged = merge(parts(&rows, &[3, 1])).unwrap();
        assert_eq!((merged.missing, merged.report.missing), (vec!["missing: shard 2/3".into()], vec![2]));
        let merged = merge(parts(&rows, &[2])).unwrap();
        assert_eq!((merged.missing[0].as_str(), merged.exit_status()), ("missing: shard 1/3, 3/3", 2));
        // A shard that was ended in the middle.
        let mut cut = parts(&rows, &[1, 2, 3]);
        cut[1].1.rows.pop();
        let merged = merge(cut).unwrap();
        assert_eq!((merged.missing[0].as_str(), merged.exit_status()), ("missing: 1 rows of shard 2/3 (2.json)", 2));
        // Harm outranks what is missing.
        let harmed = self::rows(|_| Verdict::Lost);
        assert_eq!(merge(parts(&harmed, &[1])).unwrap().exit_status(), 1);
    }

    #[test]
    fn what_is_not_of_one_run_is_refused() {
        let rows = rows(|_| Verdict::Safe);
        let refused = |change: &dyn Fn(&mut Report)| {
            let mut parts = parts(&rows, &[1, 2]);
            change(&mut parts[1].1);
            merge(parts).unwrap_err()
        };
        let shard = |report: &mut Report, change: &dyn Fn(&mut Shard)| report.shard.iter_mut().for_each(change);
        assert_eq!(refused(&|report| report.seed = 8), "2.json is of another run than 1.json: its seed is 8, not 7");
        assert!(refused(&|report| report.rnic = "2".into()).ends_with("its rnic is 2, not 1"));
        assert!(refused(&|report| report.build = "b".into()).contains("its build of rnic is b"));
        let limited = Setting { row_limit: Some(1), ..Setting::default() };
        assert!(refused(&|report| report.setting = limited.clone()).ends_with("its --row-limit is another"));
        let four = |report: &mut Report| shard(report, &|shard| shard.part.of = 4);
        assert!(refused(&four).ends_with("its number of shards is 4, not 3"));
        let other = |report: &mut Report| shard(report, &|shard| shard.whole = "x".into());
        assert!(refused(&other).ends_with("its rows, kernels or seeds are others"));
        let twice = |report: &mut Report| shard(report, &|shard| shard.part.index = 1);
        assert_eq!(refused(&twice), "2.json and 1.json are both shard 1/3: leave one out");
        assert!(refused(&|report| report.shard = None).starts_with("2.json is the report of no shard"));
        assert!(refused(&|report| report.rows[0].number = Some(0)).contains("not of shard 2/3"));
        assert!(refused(&|report| report.rows[0].number = None).contains("not of shard 2/3"));
        assert!(merge(Vec::new()).is_err());
    }
}
