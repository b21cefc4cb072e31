// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rows of a whole run in their order: kernel by kernel, seed by seed. A row's number is its place there.

use super::Seeds;
use crate::plan::Row;

/// Most rows of a run: their facts are kept until its end.
pub const MOST_ROWS: u64 = 100_000;

/// A row with its number.
pub type Numbered = (u64, Row);

/// Each row once for each seed; without seeds the rows as they are.
pub fn over_seeds(rows: &[Row], seeds: Option<Seeds>) -> Vec<Row> {
    match seeds {
        None => rows.to_vec(),
        Some(seeds) => {
            seeds.range().flat_map(|seed| rows.iter().map(move |row| Row { seed: Some(seed), ..*row })).collect()
        }
    }
}

/// A run in a number (FNV-1a): its kernels, each with its full version, and their rows.
pub fn print_of<'a>(kernels: impl IntoIterator<Item = (&'a str, &'a str, &'a [Row])>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut mix = |text: &str| {
        for byte in text.bytes().chain([b'\n']) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for (name, version, rows) in kernels {
        mix(name);
        mix(version);
        for row in rows {
            mix(&row.to_string());
            mix(&row.seed.map_or_else(String::new, |seed| seed.to_string()));
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::all_rows;

    #[test]
    fn the_order_is_seed_by_seed() {
        let rows = &all_rows()[..2];
        let seeds: Seeds = "5..6".parse().unwrap();
        let whole = over_seeds(rows, Some(seeds));
        let names: Vec<_> = whole.iter().map(|row| (row.seed, row.to_string())).collect();
        let name = |at: usize| rows[at].to_string();
        assert_eq!(names, [(Some(5), name(0)), (Some(5), name(1)), (Some(6), name(0)), (Some(6), name(1))]);
        assert!(over_seeds(rows, None).iter().all(|row| row.seed.is_none()));
    }

    #[test]
    fn another_run_has_another_number() {
        let rows = all_rows();
        let seeds = |text: &str| over_seeds(&rows[..3], Some(text.parse().unwrap()));
        let print = |kernel: &str, version: &str, rows: &[Row]| print_of([(kernel, version, rows)]);
        let one = print("6.1", "6.1.192-2", &seeds("1..3"));
        assert_eq!(one, print("6.1", "6.1.192-2", &seeds("1..3")));
        for other in [
            print("6.1", "6.1.192-2", &seeds("1..4")),
            print("6.1", "6.1.193-1", &seeds("1..3")),
            print("7.3", "6.1.192-2", &seeds("1..3")),
            print("6.1", "6.1.192-2", &rows[..3]),
        ] {
            assert_ne!(one, other);
        }
    }
}
