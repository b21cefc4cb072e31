// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tables of rows that measured.

use std::io::{self, Write};

use super::{Figure, RowResult, ground, short};

/// Width of a figure's name.
const NAME: usize = 64;
/// The rows that only measure.
const PRICE: &str = "price";
/// Kinds of registration, in the order of the columns.
const MODES: [&str; 2] = ["pinned", "odp"];

/// Rows that only measure: pinned and on-demand paging side by side, and how many times as much; then what was measured lap by lap. After
/// them the steps of other rows that were timed. Nothing where no row measured.
pub fn print_prices(out: &mut dyn Write, rows: &[RowResult]) -> io::Result<()> {
    let measured = || rows.iter().filter(|row| !row.figures.is_empty());
    let price = |row: &&RowResult| row.scenario == PRICE;
    let mut kernels: Vec<&str> = measured().filter(price).map(|r| r.kernel.as_str()).collect();
    kernels.dedup();
    for kernel in kernels {
        let of = MODES.map(|mode| {
            let row = measured().filter(price).find(|r| r.kernel == kernel && r.mode == mode);
            row.map_or(&[][..], |row| &row.figures)
        });
        side_by_side(out, kernel, of)?;
        laps(out, kernel, of)?;
    }
    steps(out, &measured().filter(|row| !price(row)).collect::<Vec<_>>())
}

/// Steps that were timed, a line each.
fn steps(out: &mut dyn Write, rows: &[&RowResult]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{:<9}{:<15}{:<15}{:<8}{:<NAME$} {:>12}", "scenario", "fs", "mode", "kernel", "step", "took")?;
    for row in rows {
        for figure in &row.figures {
            let took = format!("{:.1} {}", figure.value, figure.unit);
            let (kernel, ground) = (short(&row.kernel), ground(&row.fs, row.disk.as_deref()));
            writeln!(
                out,
                "{:<9}{ground:<15}{:<15}{kernel:<8}{:<NAME$} {took:>12}",
                row.scenario, row.mode, figure.name
            )?;
        }
    }
    Ok(())
}

fn find<'a>(figures: &'a [Figure], name: &str) -> Option<&'a Figure> {
    figures.iter().find(|figure| figure.name == name)
}

fn named(figure: &Figure) -> String {
    format!("{} ({})", figure.name, figure.unit)
}

/// Single figures: one of each row.
fn side_by_side(out: &mut dyn Write, kernel: &str, [pinned, odp]: [&[Figure]; 2]) -> io::Result<()> {
    let head = format!("kernel {}", short(kernel));
    writeln!(out, "\n{head:<NAME$} {:>12} {:>12} {:>12}", "pinned", "odp", "odp/pinned")?;
    let names = if odp.is_empty() { pinned } else { odp };
    for figure in names.iter().filter(|figure| figure.spread.is_none()) {
        let [pinned, odp] = [pinned, odp].map(|figures| find(figures, &figure.name).map(|found| found.value));
        let text = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.1}"));
        let ratio = pinned.zip(odp).filter(|(pinned, _)| *pinned > 0.0).map(|(pinned, odp)| odp / pinned);
        let ratio = ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
        writeln!(out, "{:<NAME$} {:>12} {:>12} {ratio:>12}", named(figure), text(pinned), text(odp))?;
    }
    Ok(())
}

/// What was measured lap by lap, as the least, the median, and what nine of ten are not above.
fn laps(out: &mut dyn Write, kernel: &str, modes: [&[Figure]; 2]) -> io::Result<()> {
    if !modes.iter().any(|figures| figures.iter().any(|figure| figure.spread.is_some())) {
        return Ok(());
    }
    let head = format!("kernel {}, lap by lap", short(kernel));
    writeln!(out, "\n{head:<NAME$} {:<7} {:>5} {:>10} {:>10} {:>10}", "", "n", "min", "median", "p90")?;
    for (mode, figures) in MODES.into_iter().zip(modes) {
        for (figure, spread) in figures.iter().filter_map(|figure| Some((figure, figure.spread?))) {
            let (name, n) = (named(figure), spread.n);
            let [min, median, p90] = [spread.min, spread.median, spread.p90].map(|value| format!("{value:.1}"));
            writeln!(out, "{name:<NAME$} {mode:<7} {n:>5} {min:>10} {median:>10} {p90:>10}")?;
        }
    }
    writeln!(out, "Ratios within one row mean something on an emulated host, times do not.")
}

#[cfg(test)]
mod tests {
    use super::super::Spread;
    use super::*;
    use crate::plan::all_rows;
    use crate::verdict::{Observed, Verdict};

    fn price(mode: &str, figures: Vec<Figure>) -> RowResult {
        let row =
            RowResult::new(&all_rows()[0], "6.1", "6.1.192-2", None, &Observed::new(Verdict::Measured), Vec::new());
        RowResult { scenario: PRICE.into(), mode: mode.into(), figures, ..row }
    }

    fn figure(name: &str, value: f64, spread: Option<Spread>) -> Figure {
        Figure { name: name.into(), value, unit: "us".into(), spread }
    }

    fn printed(rows: &[RowResult]) -> Vec<Vec<String>> {
        let mut text = Vec::new();
        print_prices(&mut text, rows).unwrap();
        let text = String::from_utf8(text).unwrap();
        text.lines().map(|line| line.split_whitespace().map(String::from).collect()).collect()
    }

    #[test]
    fn prices_stand_side_by_side() {
        let rows =
            [("pinned", 2.0), ("odp", 3.0)].map(|(mode, value)| price(mode, vec![figure("latency", value, None)]));
        assert_eq!(printed(&rows).last().unwrap()[..], ["latency", "(us)", "2.0", "3.0", "1.50"]);
        assert!(printed(&[price("odp", Vec::new())]).is_empty());
    }

    #[test]
    fn a_step_that_was_timed_has_its_line_and_no_prices() {
        let row =
            RowResult { scenario: "H21".into(), ..price("dio+k", vec![figure("punch, a read held", 4132.44, None)]) };
        let lines = printed(&[row]);
        assert_eq!(lines.last().unwrap()[0], "H21");
        assert!(
            lines.last().unwrap().ends_with(&["punch,", "a", "read", "held", "4132.4", "us"].map(String::from)),
            "{lines:?}"
        );
        assert!(!lines.concat().contains(&"odp/pinned".to_owned()));
    }

    #[test]
    fn what_was_measured_lap_by_lap_has_its_spread() {
        let spread = Spread { n: 3, min: 1.0, median: 2.0, p90: 9.0 };
        let lines = printed(&[price("odp", vec![figure("zap", 2.0, Some(spread))])]);
        assert!(
            lines.contains(&["zap", "(us)", "odp", "3", "1.0", "2.0", "9.0"].map(String::from).to_vec()),
            "{lines:?}"
        );
        assert!(!lines.iter().any(|line| line.contains(&"-".to_owned())), "not among the single figures: {lines:?}");
    }
}
