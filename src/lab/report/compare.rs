// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two reports side by side, row by row: for people, and no part of any verdict.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};

use super::name::{one_line, row_name};
use super::{Report, Rounds, RowResult, short};

/// A time that differs by less is none.
const SECONDS: f64 = 5.0;
/// Nor one by a smaller factor.
const FACTOR: f64 = 2.0;

/// What became of a row.
#[derive(Debug, Clone, PartialEq)]
enum Change {
    /// Other verdict: before, now.
    Verdict(String, String),
    /// The older report does not have it; its verdict.
    New(String),
    /// The newer one does not; its verdict.
    Gone(String),
    /// Harm in so many rounds: before, now.
    Rounds(Rounds, Rounds),
    /// Seconds: before, now.
    Time(f64, f64),
}

impl Change {
    /// Heading, in the order in which they are printed.
    const HEADINGS: [&str; 5] =
        ["verdict changed", "new", "gone", "harm in another number of rounds", "took another time"];

    fn heading(&self) -> usize {
        match self {
            Change::Verdict(..) => 0,
            Change::New(_) => 1,
            Change::Gone(_) => 2,
            Change::Rounds(..) => 3,
            Change::Time(..) => 4,
        }
    }

    fn words(&self) -> [String; 2] {
        let rounds = |rounds: &Rounds| format!("{} of {}", rounds.hits, rounds.of);
        match self {
            Change::Verdict(before, now) => [before.clone(), now.clone()],
            Change::New(now) => ["-".into(), now.clone()],
            Change::Gone(before) => [before.clone(), "-".into()],
            Change::Rounds(before, now) => [rounds(before), rounds(now)],
            Change::Time(before, now) => [format!("{before:.1} s"), format!("{now:.1} s")],
        }
    }
}

/// What makes a row the same in both: not its kernel's version, which is what one wants to compare, but its kernel's name.
fn key(row: &RowResult) -> (String, String, String) {
    (short(&row.kernel).into(), row.scenario.clone(), row_name(row))
}

/// Each row with what became of it. Rows with one name (a run that repeats) are compared in their order.
fn changes<'a>(old: &'a Report, new: &'a Report) -> Vec<(&'a RowResult, Change)> {
    let mut before: BTreeMap<_, VecDeque<&RowResult>> = BTreeMap::new();
    old.rows.iter().for_each(|row| before.entry(key(row)).or_default().push_back(row));
    let mut all = Vec::new();
    for row in &new.rows {
        match before.get_mut(&key(row)).and_then(VecDeque::pop_front) {
            None => all.push((row, Change::New(row.observed.clone()))),
            Some(was) => all.extend(differences(was, row).into_iter().map(|change| (row, change))),
        }
    }
    let mut gone: Vec<&RowResult> = before.into_values().flatten().collect();
    gone.sort_by_key(|row| old.rows.iter().position(|other| std::ptr::eq(*row, other)));
    all.extend(gone.into_iter().map(|row| (row, Change::Gone(row.observed.clone()))));
    all
}

fn differences(was: &RowResult, is: &RowResult) -> Vec<Change> {
    let mut found = Vec::new();
    if was.observed != is.observed {
        found.push(Change::Verdict(was.observed.clone(), is.observed.clone()));
    }
    if let (Some(before), Some(now)) = (was.rounds, is.rounds)
        && before != now
    {
        found.push(Change::Rounds(before, now));
    }
    let (least, most) = (was.seconds.min(is.seconds), was.seconds.max(is.seconds));
    if most - least > SECONDS && most > FACTOR * least {
        found.push(Change::Time(was.seconds, is.seconds));
    }
    found
}

/// What differs between two reports, as a table. `name`: the older one's.
pub fn print_comparison(out: &mut dyn Write, name: &str, old: &Report, new: &Report) -> io::Result<()> {
    writeln!(out, "compared with {} ({} rows, seed {}):", one_line(name), old.rows.len(), old.seed)?;
    for (kernel, version) in new.kernels() {
        let other = old.kernels().into_iter().find(|(known, v)| short(known) == short(kernel) && *v != version);
        if let Some((_, before)) = other {
            writeln!(
                out,
                "kernel {}: {} before, {} now",
                one_line(short(kernel)),
                one_line(before),
                one_line(version)
            )?;
        }
    }
    let all = changes(old, new);
    for (place, heading) in Change::HEADINGS.iter().enumerate() {
        let of: Vec<_> = all.iter().filter(|(_, change)| change.heading() == place).collect();
        if of.is_empty() {
            continue;
        }
        writeln!(out, "{heading} ({}):", of.len())?;
        for (row, change) in of {
            let [before, now] = change.words();
            let (scenario, name) = (one_line(&row.scenario), one_line(&row_name(row)));
            writeln!(
                out,
                "  {scenario:<8} {name:<32} {:<6} {:<18} {}",
                short(&row.kernel),
                one_line(&before),
                one_line(&now)
            )?;
        }
    }
    match all.iter().any(|(_, change)| !matches!(change, Change::Time(..))) {
        true => Ok(()),
        false => writeln!(out, "the same rows with the same verdicts"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::name::tests::hostile;

    fn told(old: &Report, new: &Report) -> String {
        let mut out = Vec::new();
        print_comparison(&mut out, "old.json", old, new).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_differs_is_told_by_row_and_what_does_not_is_not() {
        let (old, mut new) = (hostile(), hostile());
        assert!(told(&old, &new).ends_with("the same rows with the same verdicts\n"));
        new.rows[0].observed = "SAFE".into();
        new.rows[3].rounds = Some(Rounds { hits: 1, of: 20 });
        new.rows[3].seconds = 20.0;
        new.rows[3].kernel_version = "6.1.999-1".into();
        new.rows.remove(4);
        let mut added = new.rows[3].clone();
        added.scenario = "H99".into();
        new.rows.push(added);
        let mut old = old;
        old.rows[3].rounds = Some(Rounds { hits: 2, of: 20 });
        let kinds: Vec<_> = changes(&old, &new).iter().map(|(_, change)| change.clone()).collect();
        assert_eq!(
            kinds,
            [
                Change::Verdict("LOST".into(), "SAFE".into()),
                Change::Rounds(Rounds { hits: 2, of: 20 }, Rounds { hits: 1, of: 20 }),
                Change::Time(1.5, 20.0),
                Change::New("NOT-RUN".into()),
                Change::Gone("SAFE".into()),
            ]
        );
        let text = told(&old, &new);
        for word in ["verdict changed (1):", "new (1):", "gone (1):", "2 of 20", "20.0 s", "6.1.999-1 now"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!text.contains('\0') && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn rows_that_repeat_are_compared_in_their_order() {
        let (old, mut new) = (hostile(), hostile());
        new.rows.push(new.rows[0].clone());
        assert_eq!(
            changes(&old, &new).into_iter().map(|(_, change)| change).collect::<Vec<_>>(),
            [Change::New("LOST".into())]
        );
    }
}
