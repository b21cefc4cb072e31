// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! More than two power cuts: images of disks that had written out a part of their cache, in an order of their own (`--cuts all`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Bench;
use super::cuts::Frozen;
use crate::finding::Stop;
use crate::plan::DiskKind;
use blk::PowerCut;

/// Images drawn of a moment.
const IMAGES: u32 = 8;

/// Which power cuts a row makes where it asks what one leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cuts {
    /// The kind one and the cruel one.
    #[default]
    Two,
    /// Beside them eight that are drawn by the row's data: of the writes that no flush covers any may survive, each as a whole. Only on a plain
    /// disk: a stack below a file system may be apart after a crash, and puts itself right.
    All,
}

impl FromStr for Cuts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "two" => Ok(Self::Two),
            "all" => Ok(Self::All),
            _ => Err("power cuts are \"two\" (kind and cruel) or \"all\" (and some that are drawn by the seed)".into()),
        }
    }
}

impl Cuts {
    /// Whether nothing is special.
    pub fn are_two(&self) -> bool {
        *self == Self::Two
    }
}

impl Bench<'_> {
    /// From here on the row makes these power cuts.
    pub fn make_cuts(&mut self, which: Cuts) {
        self.which_cuts = which;
    }

    /// The drawn images of this moment, to be read by [`Bench::read_pages`]. None where nothing is unflushed: then every cut leaves the same.
    ///
    /// # Errors
    /// An image could not be made, or is not what the ledger says.
    pub fn draw_cuts(&mut self) -> Result<Vec<Frozen>, Stop> {
        let any = self.which_cuts == Cuts::All && self.row.disk == DiskKind::Plain;
        if !any || self.guest.fs_disk().unflushed() == 0 {
            return Ok(Vec::new());
        }
        let seed = self.nonce ^ u64::from(self.cuts);
        (1..=IMAGES).map(|nth| self.freeze(PowerCut::Drawn { seed, nth, tear: false })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_have_two_words() {
        assert_eq!(("two".parse(), "all".parse()), (Ok(Cuts::Two), Ok(Cuts::All)));
        assert_eq!(Cuts::default(), Cuts::Two);
        assert!("ALL".parse::<Cuts>().unwrap_err().contains("\"all\""));
    }
}
