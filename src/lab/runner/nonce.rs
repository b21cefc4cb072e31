// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a row's data are made of. It follows from seed, kernel and row alone, whatever else runs: a row that runs again by itself, or in
//! another part of a run, has the same data.

use crate::plan::Row;

/// A nonce that no other row has, except under the same seed; another attempt has another.
pub(super) fn nonce(seed: u64, kernel: &str, row: &Row, attempt: u64) -> u64 {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(attempt + 1);
    for byte in kernel.bytes().chain([b'\n']).chain(row.to_string().bytes()) {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controls::selftest;
    use crate::plan::all_rows;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_rows_have_the_same_data() {
        let rows: Vec<Row> = all_rows().into_iter().chain(selftest(&all_rows(), |_| None)).collect();
        let names: BTreeSet<String> = rows.iter().map(Row::to_string).collect();
        let mut nonces = BTreeSet::new();
        for kernel in ["6.1", "6.12", "7.3"] {
            for (seed, attempt) in [(1, 0), (1, 1), (2, 0)] {
                nonces.extend(rows.iter().map(|row| nonce(seed, kernel, row, attempt)));
            }
        }
        assert_eq!(nonces.len(), 9 * names.len());
        assert_eq!(nonce(1, "6.1", &rows[3], 0), nonce(1, "6.1", &rows[3], 0));
    }
}
