// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the linux-mm and linux-rdma lists claimed in 2018, and the rows that ask it: `rnic lab --thread`. docs/thread.md holds what they said
//! on the kernels of this program, with a sentence of judgement for each claim.

use std::io::{self, Write};

use super::plan::{Row, all_rows};
use super::report::{Rounds, RowResult, ground, short};

/// A claim.
#[derive(Debug)]
pub struct Claim {
    /// What was said.
    pub said: &'static str,
    /// The rows that ask it: a scenario, and what else a row has to be: a mode, or its part before the first "+"; a file system, alone or with the
    /// disk below it ("ext4/pmem"); a folio size.
    pub rows: &'static [&'static str],
}

/// Every claim, in the order of the argument (docs/thread.md).
pub const CLAIMS: &[Claim] = &[
    Claim {
        said: "Pinned pages under writeback are corrupted, and nobody addresses it",
        rows: &["H01 pinned single", "H06 pinned", "H12w large", "H04p large"],
    },
    Claim {
        said: "Any user of get_user_pages that writes can do it",
        rows: &["H18 dio single", "H01x ext4", "H01u ext4", "H12u io_uring+user btrfs"],
    },
    Claim { said: "RDMA has only the longer window", rows: &["H01r pinned ext4", "H12r dio ext4", "H04wr ext4 large"] },
    Claim {
        said: "Notifiers keep both sides from acting at once",
        rows: &[
            "H01 odp single",
            "H06 odp",
            "H10 odp ext4",
            "H13 odp ext4",
            "H16 odp",
            "H05 odp ext4",
            "H25 odp",
            "H26 odp",
            "H27 odp",
        ],
    },
    Claim { said: "Notifiers cost a lot", rows: &["price"] },
    Claim {
        said: "Registrations of writable file mappings should be refused where there are no notifiers",
        rows: &[
            "H01 pinned ext4",
            "H05 pinned ext4",
            "H15 pinned",
            "H16 pinned",
            "H13n pinned-ro ext4",
            "H14t pinned-ro ext4",
            "H17m pinned-ro ext4",
            "H33 ext4",
        ],
    },
    Claim {
        said: "The file system's side could accommodate it: stable pages, a bounce, a fixup",
        rows: &[
            "H04 dio single",
            "H07 ext4/integrity",
            "H08 ext4/raid1",
            "H11 cpu ext4/raid1",
            "H11 odp ext4/raid1",
            "H11 odp btrfs",
        ],
    },
    Claim {
        said: "get_user_pages is a broken interface: a file system can explode when its page is dirtied behind its back",
        rows: &["H03 dio ext4", "H03n pageout+page btrfs large"],
    },
    Claim { said: "The longterm call is a stop-gap for DAX", rows: &["H20 ext4/pmem", "H20 pinned xfs/pmem"] },
    Claim {
        said: "break_layouts() coordinates; where there is no hole it costs nothing",
        rows: &[
            "H21 dio+k ext4/pmem",
            "H21 dio+far ext4/pmem",
            "H21 dio+other ext4/pmem",
            "H21s ext4/pmem",
            "H22 ext4/pmem",
            "H22t ext4/pmem",
        ],
    },
    Claim {
        said: "Whoever punches a hole has the owner told, and evicted",
        rows: &["H24 ext4", "H34", "H14t pinned-ro ext4", "H15t pinned", "H35"],
    },
    Claim {
        said: "With such an eviction there is no need for notifiers",
        rows: &["H24 ro-watch ext4", "H24 odp-watch ext4"],
    },
];

/// Whether `spec` asks a row that is all of this.
fn asks(spec: &str, scenario: &str, mode: &str, (fs, disk, folio): (&str, Option<&str>, &str)) -> bool {
    let mut words = spec.split(' ');
    let ground = ground(fs, disk);
    let way = mode.split('+').next().unwrap_or(mode);
    words.next() == Some(scenario) && words.all(|word| [mode, way, fs, folio, ground.as_str()].contains(&word))
}

/// The rows of every claim, each once, in the order of the tables.
pub fn rows() -> Vec<Row> {
    let asked = |row: &Row| {
        let (disk, folio) = (row.disk_named(), row.folio.to_string());
        let ground = (row.fs.name(), disk, folio.as_str());
        let mut specs = CLAIMS.iter().flat_map(|claim| claim.rows);
        specs.any(|spec| asks(spec, row.scenario.id, row.scenario.mode, ground))
    };
    all_rows().into_iter().filter(asked).collect()
}

/// The claims with what their rows came to, as a table in Markdown. Rows that were not selected are left out.
pub fn print(out: &mut dyn Write, rows: &[RowResult]) -> io::Result<()> {
    let mut kernels: Vec<&str> = Vec::new();
    for row in rows {
        if !kernels.contains(&row.kernel.as_str()) {
            kernels.push(&row.kernel);
        }
    }
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let head = ["claim", "rows"].into_iter().chain(kernels.iter().map(|kernel| short(kernel)));
    let head: Vec<String> = head.map(String::from).collect();
    writeln!(out, "\n{}\n|{}", line(&head), "---|".repeat(head.len()))?;
    for claim in CLAIMS {
        let ran = |spec: &&&str| rows.iter().any(|row| asked(spec, row));
        for (number, spec) in claim.rows.iter().filter(ran).enumerate() {
            let said = if number == 0 { claim.said } else { "" };
            let mut cells = vec![said.to_owned(), (*spec).to_owned()];
            cells.extend(kernels.iter().map(|kernel| words(rows.iter().filter(|row| row.kernel == **kernel), spec)));
            writeln!(out, "{}", line(&cells))?;
        }
    }
    Ok(())
}

fn asked(spec: &str, row: &RowResult) -> bool {
    asks(spec, &row.scenario, &row.mode, (&row.fs, row.disk.as_deref(), &row.folio))
}

/// What the rows that `spec` asks came to: each word once, and on how many rows where there are several.
fn words<'a>(rows: impl Iterator<Item = &'a RowResult>, spec: &str) -> String {
    let mut words: Vec<(String, usize)> = Vec::new();
    for row in rows {
        if !asked(spec, row) {
            continue;
        }
        let word = match row.rounds.filter(|rounds| rounds.of > 1) {
            // Of how many rounds the word is true: of a race that harmed nothing, of all.
            Some(Rounds { hits: 0, of }) => format!("{} in {of} of {of}", row.observed),
            Some(Rounds { hits, of }) => format!("{} in {hits} of {of}", row.observed),
            None => row.observed.clone(),
        };
        match words.iter_mut().find(|(known, _)| *known == word) {
            Some((_, times)) => *times += 1,
            None => words.push((word, 1)),
        }
    }
    if words.is_empty() {
        return "not run".into();
    }
    let several = words.len() > 1;
    let text = |(word, times): &(String, usize)| if several { format!("{word} ({times})") } else { word.clone() };
    words.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Observed, Verdict};

    const PAGE: &str = include_str!("../../docs/thread.md");

    #[test]
    fn every_claim_asks_rows_that_there_are() {
        let all = all_rows();
        for spec in CLAIMS.iter().flat_map(|claim| claim.rows) {
            let found = all.iter().any(|row| {
                let folio = row.folio.to_string();
                asks(spec, row.scenario.id, row.scenario.mode, (row.fs.name(), row.disk_named(), &folio))
            });
            assert!(found, "{spec}");
        }
        assert!(rows().len() < all.len() / 2, "{} of {}", rows().len(), all.len());
    }

    #[test]
    fn the_page_has_every_claim_and_its_rows_in_this_order() {
        let mut rest = PAGE;
        for claim in CLAIMS {
            for cell in [claim.said].iter().chain(claim.rows) {
                let at =
                    rest.find(&format!("| {cell} |")).unwrap_or_else(|| panic!("docs/thread.md, in its place: {cell}"));
                rest = &rest[at + 2 + cell.len()..];
            }
        }
    }

    #[test]
    fn a_cell_has_each_word_once() {
        let of = |verdict| {
            let row = all_rows()[0];
            RowResult::new(&row, "6.1", "6.1.192-2", None, &Observed::new(verdict), Vec::new())
        };
        let rows = [of(Verdict::Lost), of(Verdict::Safe), of(Verdict::Lost)];
        let spec = rows[0].scenario.clone();
        assert_eq!(words(rows.iter(), &spec), "LOST (2), SAFE (1)");
        assert_eq!(words(rows[..1].iter(), &spec), "LOST");
        assert_eq!(words(rows.iter(), "H99"), "not run");
        let race = |verdict, hits| RowResult { rounds: Some(Rounds { hits, of: 20 }), ..of(verdict) };
        let races = [race(Verdict::Lost, 3), race(Verdict::Safe, 0)];
        assert_eq!(words(races.iter(), &spec), "LOST in 3 of 20 (1), SAFE in 20 of 20 (1)");
    }
}
